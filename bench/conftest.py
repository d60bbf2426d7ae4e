"""Fixtures and options of ``pytest bench``; the timing flags are pytest-benchmark's own."""

from __future__ import annotations

import functools
import warnings

import pytest

from bench import sheet
from bench.__main__ import usable_cpus
from bench.cases import Arrays, Case
from bench.contender import Refused
from bench.contenders import CONTENDERS, load
from bench.draw import missing_dtype
from bench.truth import Truth


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--bench-threads",
        type=int,
        default=usable_cpus(),
        help="threads for every contender of the bench",
    )


@pytest.fixture(scope="session")
def loaded(request: pytest.FixtureRequest) -> None:
    """Import the contenders of the chosen tests in the order that harms nobody."""
    callspecs = [getattr(item, "callspec", None) for item in request.session.items]
    chosen = {spec.params["name"] for spec in callspecs if spec and "name" in spec.params}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load([name for name in CONTENDERS if name in chosen and not CONTENDERS[name].missing()])


@functools.lru_cache(maxsize=1)  # contenders of one case follow each other
def _inputs(case: Case) -> tuple[Arrays, Truth]:
    arrays = case.inputs()
    return arrays, Truth(case, arrays)


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--bench-threads")


@pytest.fixture
def race(benchmark, threads, loaded):
    """Check one contender on one case against float64 NumPy, then let pytest-benchmark time it."""

    def run(case: Case, name: str) -> None:
        missing = CONTENDERS[name].missing() or missing_dtype(case.dtype)
        if missing is not None:
            pytest.skip(f"{missing} is not installed")
        arrays, truth = _inputs(case)
        try:
            label, variant = sheet.prepare(name, case, arrays, threads, truth)
        except Refused as refusal:
            pytest.skip(f"{name} refuses: {refusal}")
        benchmark.group = case.name
        benchmark.extra_info.update(
            variant=label, threads=threads, flops=case.flops, bytes=case.bytes
        )
        benchmark(variant.run)

    return run
