"""``python -m bench.company``: attention by turns with NumPy's products and with PyTorch.

A library timed alone has all cores to itself. In a program the threads of one look out for more
work while those of the other compute. Each case times a step of somebody else's and a call of
attention by turns, and says how long both take against the sum of each alone, measured in the same
process: 1.00 is as if the other were not there. The machine's own noise is a few hundredths.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

import fastattn

SHAPE = (1, 8, 1000, 64)
ROWS, FEATURES, WIDE = 1000, 768, 3072
REST = 0.1  # seconds in which threads of everybody fall asleep

Step = Callable[[], object]


class Company(NamedTuple):
    """Two steps that a program takes by turns."""

    name: str
    whose: str  # threads
    other: Step
    ours: Step


def _numpy_cases(whose: str) -> Iterator[Company]:
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, *SHAPE), dtype=np.float32)
    square = rng.standard_normal((700, 700), dtype=np.float32)
    x = rng.standard_normal((ROWS, FEATURES), dtype=np.float32)
    weight = rng.standard_normal((FEATURES, FEATURES), dtype=np.float32)

    def attend() -> object:
        return fastattn.attention(query, key, value)

    yield Company("NumPy, 700x700 @ 700x700", whose, lambda: square @ square, attend)
    sizes = f"{ROWS}x{FEATURES} @ {FEATURES}x{FEATURES}"
    yield Company(f"NumPy, {sizes}", whose, lambda: x @ weight, attend)


def _torch_cases(bridged: bool) -> Iterator[Company]:
    import torch

    torch.manual_seed(0)
    torch.set_grad_enabled(False)
    query, key, value = torch.randn(3, *SHAPE)
    arrays = [one.numpy() for one in (query, key, value)]
    wide, x = torch.randn(ROWS, WIDE), torch.randn(ROWS, FEATURES)
    weight = torch.randn(FEATURES, FEATURES)
    bridge = fastattn.bridges.torch
    whose = "torch's, by the bridge" if bridged else "own"

    def attend() -> object:
        if bridged:
            return bridge.scaled_dot_product_attention(query, key, value)
        return fastattn.attention(*arrays)

    functional = torch.nn.functional
    steps: dict[str, Step] = {
        f"torch, gelu of {ROWS}x{WIDE}": lambda: functional.gelu(wide),
        f"torch, linear {FEATURES} to {FEATURES} of {ROWS}": lambda: functional.linear(x, weight),
    }
    for name, other in steps.items():
        yield Company(name, whose, other, attend)


def _median(step: Step, rounds: int) -> float:
    time.sleep(REST)
    step()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(case: Company, rounds: int) -> str:
    """Time a case; return its row."""

    def both() -> None:
        case.other()
        case.ours()

    other, ours, together = (_median(step, rounds) for step in (case.other, case.ours, both))
    times = " | ".join(f"{1000 * seconds:.2f}" for seconds in (other, ours, together))
    return f"| {case.name} | {case.whose} | {times} | {together / (other + ours):.2f} |"


def _cases(kind: str) -> Iterator[Company]:
    if kind == "numpy":
        return _numpy_cases("own")
    if kind == "numpy-shared":
        sharing = fastattn.share_threads()
        return _numpy_cases("one pool") if sharing.shared else iter(())
    return _torch_cases(kind == "torch-bridge")


KINDS = ("numpy", "numpy-shared", "torch", "torch-bridge")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line: every kind in a process of its own, as threads stay."""
    parser = argparse.ArgumentParser(prog="python -m bench.company", description=__doc__)
    parser.add_argument("--rounds", type=int, default=31, help="per step (%(default)s)")
    parser.add_argument("--kind", choices=KINDS, help="one of them, in this process")
    options = parser.parse_args(arguments)
    if options.kind:
        for case in _cases(options.kind):
            print(measure(case, options.rounds), flush=True)
        return 0
    print("| by turns with | threads of attention | other, ms | attention | both | of the sum |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for kind in KINDS:
        if "torch" in kind and importlib.util.find_spec("torch") is None:
            print(f"{kind} skipped: torch is not installed", file=sys.stderr)
            continue
        command = [sys.executable, "-m", "bench.company", "--kind", kind]
        subprocess.run([*command, "--rounds", str(options.rounds)], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
