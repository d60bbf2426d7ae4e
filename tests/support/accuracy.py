"""Accuracy against plain NumPy in the same dtype over a stated distribution: contract point 4.

``PYTHONPATH=. python tests/accuracy.py --cases 1000`` prints the figures, ``--table`` those of
every metric, dtype and kind of features from E = 1 to 1 000 000; `test_accuracy.py` holds the
bounds.

The distribution: S log-uniform in 1..32768, L in 32..128, E in 1..128, Ev in 16..128 (float64,
whose truth is computed in long doubles: L in 8..16, E in 1..48, Ev in 16..32); normal queries, keys
and values; the scale is ``s / sqrt(E)`` with s log-uniform in 0.1..30; a third of the cases has
offsets on its keys, a third on its values (0.1 to 100), a third has one element in a hundred 30
times larger; a quarter is causal.

The table has a few rows and keys, so that E can be large: features that are normal, positive
(uniform in 0..1) or constant along each vector, whose roundings do not cancel. Calls so small NumPy
adds up on many lanes, and of constants errs less than we where E is below 400; not in calls of more
rows, which `test_accuracy.py` has. Halves are judged
against what NumPy makes of them in float32, rounded once.

The error of a case is the root mean square over its outputs, in ulps of the largest value. Printed
beside it is how many cases are beyond the same bound by their largest single error: with large
scores the rounding of one score decides that one, ours as NumPy's, so that a few always are.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import strategies
import tolerances

import fastattn

SPANS = {
    np.dtype(np.float32): ((32, 128), (1, 32768), (1, 128), (16, 128)),
    np.dtype(np.float64): ((8, 16), (1, 32768), (1, 48), (16, 32)),
}


@dataclass(frozen=True)
class Figure:
    """Errors of one case, in units of the largest value's ulp."""

    seed: int
    keys: int
    scale: float
    ours: float
    plain: float
    largest: tuple[float, float] = (0.0, 0.0)  # ours and plain NumPy's

    @property
    def excess(self) -> float:
        """How much of the allowed error is used: above 1 the contract is broken."""
        return excess(self.ours, self.plain)

    @property
    def ratio(self) -> float:
        """Our error over plain NumPy's; both at least 0.02 ulp, since 0 over 0 is no ratio."""
        return max(self.ours, 0.02) / max(self.plain, 0.02)


def excess(ours, plain):
    """An error over what contract point 4 allows beside plain NumPy's."""
    return ours / (tolerances.ACCURACY_LARGEST_RATIO * plain + tolerances.ACCURACY_ULPS)


def log_uniform(rng, low, high):
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def draw(seed, dtype):
    """Query, key, value, scale and visibility of one case."""
    rng = np.random.default_rng([seed, 44])
    rows, keys, features, value_features = (
        round(log_uniform(rng, *span)) for span in SPANS[np.dtype(dtype)]
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
    errors = [np.abs(result - truth).astype(np.float64) / ulp for result in (ours, plain)]
    return Figure(
        seed,
        keys,
        scale,
        *(float(np.sqrt(np.mean(error**2))) for error in errors),
        tuple(float(error.max()) for error in errors),
    )


def mean_ratio(figures) -> float:
    """Geometric mean of our error over plain NumPy's."""
    return math.exp(sum(math.log(figure.ratio) for figure in figures) / len(figures))


def report(figures, dtype) -> str:
    worst = max(figures, key=lambda figure: figure.excess)
    unlucky = sum(excess(*figure.largest) > 1 for figure in figures)
    return (
        f"{np.dtype(dtype).name}: {len(figures)} cases, geometric mean of error over plain "
        f"NumPy's {mean_ratio(figures):.3f} (at most {tolerances.ACCURACY_MEAN_RATIO}); largest "
        f"use of 1.5 x NumPy + 2 ulp {worst.excess:.3f} at {worst}; beyond it by their largest "
        f"single error: {unlucky}"
    )


# --- wide vectors --------------------------------------------------------------------------------

WIDTHS = (1, 3, 16, 64, 128, 256, 512, 768, 1536, 4096, 16384, 150528, 1_000_000)
METRICS = ("dot", "scaled_dot", "cosine", "euclidean")
KINDS = ("signed", "positive", "constant")
DTYPES = ("float32", "float64", "float16", "bfloat16")


def draw_vectors(rng, kind, shape, dtype):
    """Vectors whose features are normal, uniform in 0..1, or all alike along each vector."""
    if kind == "constant":
        column = rng.uniform(0.5, 2, (*shape[:-1], 1)).astype(dtype)
        return np.ascontiguousarray(np.broadcast_to(column, shape))
    drawn = rng.standard_normal(shape, np.float32) if kind == "signed" else rng.random(shape)
    return drawn.astype(dtype)


def compare_plainly(query, key, metric):
    """Similarities as NumPy users write them, in the dtype of the inputs; no scale."""
    if metric == "euclidean":
        return np.stack([-((row - key) ** 2).sum(axis=-1) for row in query])
    if metric == "cosine":
        query, key = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    return query @ key.T


FEW_ROWS = (*(1,) * 4, 3, 8), 16


def measure_wide(metric, dtype, kind, features, seed=0, sizes=FEW_ROWS) -> tuple[Figure, Figure]:
    """Errors of `similarity` and of `attention` at one width, over calls of some rows and keys."""
    calls, keys = sizes
    dtype = strategies.dtype_of(dtype)
    rng = np.random.default_rng([seed, features, *map(ord, f"{metric}{dtype}{kind}")])
    computed = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    wide = np.dtype(np.float64 if computed == np.float32 else np.longdouble)
    key, value = draw_vectors(rng, kind, (keys, features), dtype), rng.standard_normal((keys, 8))
    value = value.astype(dtype)
    scale = 10.0 if metric == "cosine" else 1 / math.sqrt(features)
    errors: dict[str, list] = {"similarity": [], "attention": []}
    for rows in calls:
        query = draw_vectors(rng, kind, (rows, features), dtype)
        results = [
            (scores, soften(scores * scores.dtype.type(scale), value.astype(scores.dtype)))
            for scores in (
                compare_plainly(query.astype(kept), key.astype(kept), metric)
                for kept in (wide, computed)
            )
        ]
        (truth, true_output), (plain, plain_output) = results
        ours = fastattn.similarity(query, key, metric=metric, scale=1.0)
        output = fastattn.attention(query, key, value, similarity=metric, scale=scale)
        for name, expected, *found in (
            ("similarity", truth, ours, plain),
            ("attention", true_output, output, plain_output),
        ):
            size = np.abs(truth if name == "similarity" else value.astype(wide)).max()
            ulp = float(size) * tolerances.epsilon(dtype) or 1.0
            errors[name].append(
                [np.ravel((x.astype(dtype).astype(wide) - expected) / ulp) for x in found]
            )
    figures = []
    for found in errors.values():
        ours, plain = (np.concatenate(side).astype(np.float64) for side in zip(*found, strict=True))
        rms = [float(np.sqrt(np.mean(x**2))) for x in (ours, plain)]
        figures.append(Figure(seed, keys, scale, *rms, (abs(ours).max(), abs(plain).max())))
    return tuple(figures)


def soften(scores, value):
    """The softmax of scores times values, in their dtype."""
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    return p @ value


def print_table(widths=WIDTHS) -> None:
    """A line per metric, dtype and kind: of each width our error over NumPy's, of both calls."""
    print("our error / NumPy's (our error in ulps of the largest score or value); ! is too much")
    for dtype in DTYPES:
        for metric in METRICS:
            for kind in KINDS:
                cells: dict[str, list[str]] = {"similarity": [], "attention": []}
                for features in widths:
                    both = measure_wide(metric, dtype, kind, features)
                    for name, figure in zip(cells, both, strict=True):
                        mark = "!" if figure.excess > 1 else ""
                        cells[name].append(f"{figure.ratio:.2f} ({figure.ours:.2g}){mark}")
                for name, row in cells.items():
                    print(f"| {dtype} {metric} {kind} {name} | {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="widths up to a million instead")
    arguments = parser.parse_args()
    if arguments.table:
        print_table()
        return
    for dtype in (np.float32, np.float64):
        seeds = range(arguments.seed, arguments.seed + arguments.cases)
        print(report([measure(seed, dtype) for seed in seeds], dtype), flush=True)


if __name__ == "__main__":
    main()
