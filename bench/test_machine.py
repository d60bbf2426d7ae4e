"""The machine's ceilings and fastattn's start-up, under pytest-benchmark."""

from __future__ import annotations

import pytest

from bench import ceilings, startup


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_multiply_adds(benchmark, threads: int, dtype: str) -> None:
    if dtype == "bfloat16" and not ceilings.has_bfloat16_dot():
        pytest.skip("the CPU has no bfloat16 dot")
    run, flops = ceilings.fma_turn(dtype, threads)
    benchmark.group = "ceiling"
    benchmark.extra_info.update(flops=flops, threads=threads)
    benchmark(run)


@pytest.mark.parametrize("kind", ["read", "copy"])
def test_memory(benchmark, threads: int, kind: str) -> None:
    run, moved = ceilings.memory_turn(2**28, threads, kind == "copy")
    benchmark.group = "ceiling"
    benchmark.extra_info.update(bytes=moved, threads=threads)
    benchmark(run)
    ceilings.release_buffers()


def test_import(benchmark) -> None:
    """Whole children, interpreter and NumPy included; the import alone is in ``extra_info``."""
    pytest.importorskip("fastattn")
    benchmark.group = "start"
    inside = []
    benchmark.pedantic(
        lambda: inside.append(startup.import_seconds("fastattn", children=1)), rounds=5
    )
    benchmark.extra_info.update(import_seconds=sorted(inside)[len(inside) // 2])
