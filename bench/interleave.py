"""Rounds in which every contender takes one turn, and ratios taken within a round.

The machine is shared and its clock wanders: two timings a minute apart compare two machines. Here
all contenders of a case take turns on the same arrays in the same second; a ratio is formed round
by round, and its median is published with its quartiles. The order rotates from round to round,
so that nobody always plays after the same neighbour.

Before each turn a short register loop runs on all threads until it reaches its usual rate. It
replaces a pause: spinning workers of the previous contender fall asleep meanwhile, and a virtual
machine gets its cores back. (Left idle for 20 ms, two virtual CPUs were seen to share one physical
core and to halve everybody's speed for tens of milliseconds, with no counter showing it.) The
probe knows nothing of the contenders; turns played in spite of a slow probe are counted.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.ceilings import fma_turn

TURN_SECONDS = 0.005  # a turn repeats a short call for at least this long
WARM_SECONDS = 0.005  # unmeasured calls before the measured ones of a turn
WARM_BELOW_SECONDS = 0.05  # a longer call warms itself
ESTIMATE_CALLS = 5
ESTIMATE_SECONDS = 0.15  # short calls are repeated for a fifth of it: five alone choose by noise
HOPELESS = 8.0  # this many times slower than the fastest, and a long call: one round is enough
HOPELESS_SECONDS = 0.2
MIN_ROUNDS = 3
PROBE_STEPS = 200_000  # of the register loop, about 2 ms
PROBE_CALIBRATION = 300  # about a second
PROBE_TRIES = 100  # before one turn; after that it is played and marked
STEADY_SHARE = 0.88  # of the probe's usual rate; one core for two threads gives 0.55
STEADY_PROBES = 3  # in a row, about as long as an onnxruntime or OpenMP worker spins


class Turn(NamedTuple):
    """A timed call and what to set (a thread count) before it."""

    run: Callable[[], Any]
    before: Callable[[], Any] = lambda: None


class Spread(NamedTuple):
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        spec = spec or ".2f"
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


class Probe:
    """Keeps all cores busy until the machine gives them in full, by a register loop."""

    def __init__(self, threads: int) -> None:
        self._turn, self._work = fma_turn("float32", threads, PROBE_STEPS)
        self._latest: deque[float] = deque(maxlen=5)
        self._usual = 0.0
        for _ in range(PROBE_CALIBRATION):
            self._is_steady()

    def _is_steady(self) -> bool:
        start = time.perf_counter()
        self._turn()
        rate = self._work / (time.perf_counter() - start)
        self._latest.append(rate)
        # The best median of a few in a row: no outlier makes it, no long slow phase lowers it.
        self._usual = max(self._usual, statistics.median(self._latest))
        return rate >= STEADY_SHARE * self._usual

    def settle(self) -> bool:
        """Loop until a few probes in a row reach the usual rate; False when they never do."""
        in_a_row = 0
        for _ in range(PROBE_TRIES):
            in_a_row = in_a_row + 1 if self._is_steady() else 0
            if in_a_row == STEADY_PROBES:
                return True
        return False


class Rounds(NamedTuple):
    """What ``play`` measured: seconds per call by round, and turns played on a slow machine."""

    times: dict[str, list[float]]
    turns: int
    unsteady: int


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles of finite values; NaN where there are none."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return Spread(math.nan, math.nan, math.nan)
    low, median, high = np.percentile(finite, [25, 50, 75])
    return Spread(float(median), float(low), float(high))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Spread of ``numerator / denominator``, formed within each round that both played."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def geometric_mean(values: Sequence[float]) -> float:
    """Geometric mean; NaN of nothing."""
    return math.exp(sum(math.log(v) for v in values) / len(values)) if values else math.nan


def seconds_per_call(turn: Turn, calls: int) -> float:
    """Unmeasured calls where they are short, then the measured ones."""
    if calls > 1:
        warm_until = time.perf_counter() + WARM_SECONDS
        turn.run()
        while time.perf_counter() < warm_until:
            turn.run()
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for _ in range(calls):
            turn.run()
        return (time.perf_counter() - start) / calls
    finally:
        if collecting:
            gc.enable()


def estimate(turn: Turn) -> float:
    """The fastest of a few warm calls, in seconds."""
    turn.before()
    turn.run()
    times: list[float] = []
    while sum(times) < ESTIMATE_SECONDS and (
        len(times) < ESTIMATE_CALLS or sum(times) < ESTIMATE_SECONDS / 5
    ):
        start = time.perf_counter()
        turn.run()
        times.append(time.perf_counter() - start)
    return min(times)


def play(
    turns: Mapping[str, Turn],
    estimates: Mapping[str, float],
    probe: Probe,
    *,
    rounds: int,
    seconds: float,
) -> Rounds:
    """Let every contender take one turn per round; NaN where it sat a round out.

    Stops after ``rounds`` rounds, or after ``seconds`` once ``MIN_ROUNDS`` are played.
    """
    names = list(turns)
    calls = {}
    for name in names:
        short = estimates[name] < WARM_BELOW_SECONDS
        calls[name] = max(2 if short else 1, math.ceil(TURN_SECONDS / estimates[name]))
    times: dict[str, list[float]] = {name: [] for name in names}
    fastest = min(estimates.values())
    played = unsteady = 0
    start = time.perf_counter()
    for number in range(rounds):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name in order if number % 2 == 0 else reversed(order):
            if number and estimates[name] > max(HOPELESS_SECONDS, HOPELESS * fastest):
                times[name].append(math.nan)
                continue
            turns[name].before()
            unsteady += not probe.settle()
            played += 1
            times[name].append(seconds_per_call(turns[name], calls[name]))
        if number + 1 >= MIN_ROUNDS and time.perf_counter() - start > seconds:
            break
    return Rounds(times, played, unsteady)
