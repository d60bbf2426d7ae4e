"""Accuracy against plain NumPy in the same dtype over a stated distribution: contract point 4.

``PYTHONPATH=. python tests/accuracy.py --cases 1000`` prints the figures;
`test_accuracy.py` holds the bounds.

The distribution: S log-uniform in 1..32768, E and Ev in 1..128, L in 1..64 (float64, whose truth is
computed in long doubles: E and Ev in 1..32, L in 1..4); normal queries, keys and values; the scale
is ``s / sqrt(E)`` with s log-uniform in 0.1..30; a third of the cases has offsets on its keys, a
third on its values (0.1 to 100), a third has one element in a hundred 30 times larger; a quarter is
causal.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import tolerances

import fastattn


@dataclass(frozen=True)
class Figure:
    """Errors of one case, in units of the largest value's ulp."""

    seed: int
    keys: int
    scale: float
    ours: float
    plain: float

    @property
    def excess(self) -> float:
        """How much of the allowed error is used: above 1 the contract is broken."""
        allowed = tolerances.ACCURACY_LARGEST_RATIO * self.plain + tolerances.ACCURACY_ULPS
        return self.ours / allowed

    @property
    def ratio(self) -> float:
        """Our error over plain NumPy's; both at least a quarter ulp, the error of a lucky zero."""
        return max(self.ours, 0.25) / max(self.plain, 0.25)


def log_uniform(rng, low, high):
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def draw(seed, dtype):
    """Query, key, value, scale and visibility of one case."""
    rng = np.random.default_rng([seed, 44])
    most_rows, most_features = (64, 128) if dtype == np.float32 else (4, 32)
    rows, keys, features, value_features = (
        round(log_uniform(rng, 1, most))
        for most in (most_rows, 32768, most_features, most_features)
    )
    query, key, value = (
        rng.standard_normal(shape)
        for shape in ((rows, features), (keys, features), (keys, value_features))
    )
    scale = log_uniform(rng, 0.1, 30) / math.sqrt(features)
    if rng.random() < 1 / 3:
        key += rng.uniform(-3, 3, features)
    if rng.random() < 1 / 3:
        value += rng.choice([-1, 1]) * log_uniform(rng, 0.1, 100)
    if rng.random() < 1 / 3:
        for array in (query, key, value):
            array[rng.random(array.shape) < 0.01] *= 30
    causal = rng.random() < 1 / 4
    return *(array.astype(dtype) for array in (query, key, value)), scale, causal


def attend_plainly(query, key, value, scale, hidden):
    """Softmax attention as NumPy users write it, in the dtype of its inputs."""
    p = (query @ key.T) * query.dtype.type(scale)
    p[hidden] = -np.inf
    p = np.exp(p - p.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p @ value


def measure(seed, dtype) -> Figure:
    """Errors of fastattn and of plain NumPy on one case, against a wider dtype."""
    query, key, value, scale, causal = draw(seed, dtype)
    rows, keys = len(query), len(key)
    offset = max(keys - rows, 0)
    position = np.arange(keys)
    hidden = np.zeros((rows, keys), bool)
    if causal:
        hidden = position[None] > np.arange(rows)[:, None] + offset
    wide = np.float64 if dtype == np.float32 else np.longdouble
    truth = attend_plainly(*(x.astype(wide) for x in (query, key, value)), scale, hidden)
    options = {"causal": True, "query_offset": offset} if causal else {}
    ours = fastattn.attention(query, key, value, similarity="dot", scale=scale, **options)
    plain = attend_plainly(query, key, value, scale, hidden)
    ulp = np.finfo(dtype).eps * float(np.abs(value).max())
    errors = (float(np.abs(result - truth).max() / ulp) for result in (ours, plain))
    return Figure(seed, keys, scale, *errors)


def mean_ratio(figures) -> float:
    """Geometric mean of our error over plain NumPy's."""
    return math.exp(sum(math.log(figure.ratio) for figure in figures) / len(figures))


def report(figures, dtype) -> str:
    worst = max(figures, key=lambda figure: figure.excess)
    return (
        f"{np.dtype(dtype).name}: {len(figures)} cases, geometric mean of error over plain NumPy's "
        f"{mean_ratio(figures):.3f} (at most {tolerances.ACCURACY_MEAN_RATIO}), largest use of "
        f"1.5 x NumPy + 2 ulp {worst.excess:.3f} at {worst}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for dtype in (np.float32, np.float64):
        seeds = range(arguments.seed, arguments.seed + arguments.cases)
        print(report([measure(seed, dtype) for seed in seeds], dtype), flush=True)


if __name__ == "__main__":
    main()
