"""The judge: plain NumPy in float64, asked for sampled rows, so that any size can be checked.

Nobody is timed before its output has passed. The tolerance is wide enough for every way of
summing float32 and narrow enough to refuse a peer that computes in bfloat16 without saying so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench import allocation, multihead, shared
from bench.cases import Arrays, Case

# Of the largest expected magnitude. Halves: a few roundings of the output, as some peers round
# weights too; int8: what one scale per token and head leaves of keys and values.
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1.6e-2, "int8": 3e-2}
SAMPLED_ROWS = 24
SAMPLED_BYTES = 2**27  # float64 bytes of keys the judge may make at once

Pick = Callable[[np.ndarray], np.ndarray]


class WrongResult(AssertionError):
    """A contender's output that differs from the float64 result by more than the tolerance."""


def sampled(length: int, count: int = SAMPLED_ROWS) -> np.ndarray:
    """At most ``count`` indices: a run at the start, in the middle and at the end."""
    if length <= count:
        return np.arange(length)
    third = count // 3
    middle = (length - third) // 2
    runs = (np.arange(third), middle + np.arange(third), length - third + np.arange(third))
    return np.unique(np.concatenate(runs))


def visibility(case: Case, arrays: Arrays, rows: np.ndarray, keys: int) -> np.ndarray | None:
    """Which keys causality, window and documents leave to ``rows``; None means all."""
    causal = case.options.get("causal", False)
    left, right = case.options.get("window", (None, None))
    documents = "query_segments" in arrays
    if not causal and left is None and right is None and not documents:
        return None
    distance = np.arange(keys) - rows[:, None]
    visible = np.ones(distance.shape, bool)
    if causal:
        visible &= distance <= 0
    if left is not None:
        visible &= distance >= -left
    if right is not None:
        visible &= distance <= right
    if documents:
        visible &= arrays["query_segments"][rows][:, None] == arrays["key_segments"]
    return visible


def _softmax(scores: np.ndarray, sinks: np.ndarray | None = None) -> np.ndarray:
    """Weights of each row; a sink is one more score that has no value."""
    largest = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - largest)
    total = weights.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks.astype(np.float64)[:, None, None] - largest)
    return weights / total


def _attention(case: Case, arrays: Arrays) -> tuple[Pick, list[np.ndarray]]:
    rows = sampled(case.shapes["query"][-2])
    per_batch = 8 * max(int(np.prod(case.shapes[name][1:])) for name in ("key", "value"))
    batch = sampled(case.shapes["query"][0], max(3, min(64, SAMPLED_BYTES // per_batch)))
    query = arrays["query"][batch][..., rows, :].astype(np.float64)
    key, value = (arrays[name][batch].astype(np.float64) for name in ("key", "value"))
    heads, key_heads = query.shape[-3], key.shape[-3]
    grouped = (*query.shape[:-3], key_heads, heads // key_heads, *query.shape[-2:])
    products = query.reshape(grouped) @ key[..., :, None, :, :].swapaxes(-1, -2)
    scores = products.reshape(*query.shape[:-1], -1) / np.sqrt(query.shape[-1])
    if "mask" in arrays:
        full = (*case.shapes["query"][:-1], key.shape[-2])
        mask = np.broadcast_to(arrays["mask"], full)[..., rows, :][batch]
        scores += np.where(mask, 0.0, -np.inf) if mask.dtype == bool else mask
    if "alibi_slopes" in arrays:
        distances = np.abs(rows[:, None] - np.arange(key.shape[-2]))
        scores -= arrays["alibi_slopes"].astype(np.float64)[:, None, None] * distances
    visible = visibility(case, arrays, rows, key.shape[-2])
    if visible is not None:
        scores[..., ~visible] = -np.inf
    weights = _softmax(scores, arrays.get("sinks"))
    by_group = weights.reshape(*grouped[:-1], -1)
    output = (by_group @ value[..., :, None, :, :]).reshape(*query.shape[:-1], -1)
    outputs = [output, weights] if case.options.get("return_weights") else [output]
    return (lambda result: result[batch][..., rows, :]), outputs


def _varlen(case: Case, arrays: Arrays) -> tuple[Pick, list[np.ndarray]]:
    """Whole sequences at the start, in the middle (where the longest is) and at the end."""
    query, key, value = (arrays[name] for name in ("query", "key", "value"))
    listed = arrays.get("key_indices", np.arange(len(key)))
    outputs, picked = [], []
    for b in sampled(len(arrays["key_splits"]) - 1):
        rows = np.arange(*arrays["query_splits"][b : b + 2])
        seen = listed[slice(*arrays["key_splits"][b : b + 2])]
        parts = (array.astype(np.float64) for array in (query[rows], key[seen], value[seen]))
        own, keys, values = (np.moveaxis(part, 1, 0) for part in parts)
        scores = own @ keys.swapaxes(-1, -2) / np.sqrt(own.shape[-1])
        visible = visibility(case, {}, np.arange(len(rows)), len(seen))
        if visible is not None:
            scores[..., ~visible] = -np.inf
        outputs.append(np.moveaxis(_softmax(scores) @ values, 0, 1))
        picked.append(rows)
    which = np.concatenate(picked)
    return (lambda output: output[which]), [np.concatenate(outputs)]


def _rowwise(case: Case, arrays: Arrays) -> tuple[Pick, list[np.ndarray]]:
    along_rows = case.options["axis"] in (-1, 1)
    rows = sampled(case.shapes["x"][0 if along_rows else 1])
    x = arrays["x"][rows] if along_rows else arrays["x"][:, rows]
    x = x.astype(np.float64)
    axis = case.options["axis"]
    largest = x.max(axis=axis, keepdims=True)
    total = np.exp(x - largest).sum(axis=axis, keepdims=True)
    if case.operation == "logsumexp":
        return (lambda output: output[rows]), [np.squeeze(largest + np.log(total), axis)]
    pick = (lambda output: output[rows]) if along_rows else (lambda output: output[:, rows])
    return pick, [np.exp(x - largest) / total]


def _similarity(case: Case, arrays: Arrays) -> tuple[Pick, list[np.ndarray]]:
    rows = sampled(case.shapes["query"][-2])
    query, key = arrays["query"][rows].astype(np.float64), arrays["key"].astype(np.float64)
    metric = case.options["metric"]
    if metric == "euclidean":
        scores = np.stack([-np.square(key - one).sum(axis=-1) for one in query])
    else:
        if metric == "cosine":
            query /= np.linalg.norm(query, axis=-1, keepdims=True)
            key /= np.linalg.norm(key, axis=-1, keepdims=True)
        scores = query @ key.T
    return (lambda output: output[rows]), [scores]


def _fuse(case: Case, arrays: Arrays) -> tuple[Pick, list[np.ndarray]]:
    rows = sampled(case.shapes["weights"][-2])
    weights = arrays["weights"][..., rows, :].astype(np.float64)
    return (lambda output: output[..., rows, :]), [weights @ arrays["value"].astype(np.float64)]


def _linear(case: Case, arrays: Arrays) -> tuple[Pick, list[np.ndarray]]:
    rows = sampled(case.shapes["x"][0])
    wide = {name: x.astype(np.float64) for name, x in arrays.items()}
    return (lambda output: output[rows]), [wide["x"][rows] @ wide["weight"].T + wide["bias"]]


def _allocate(case: Case, arrays: Arrays) -> tuple[Pick, list[np.ndarray]]:
    rows = sampled(case.shapes["weights"][0])
    return (lambda output: output[rows]), [allocation.exact(case, arrays, rows)]


def _allocate_shared(case: Case, arrays: Arrays) -> tuple[Pick, list[np.ndarray]]:
    rows = sampled(case.shapes["weights"][0])
    return (lambda output: output[rows]), [shared.in_numpy(case, arrays)[rows]]


def _multihead(case: Case, arrays: Arrays) -> tuple[Pick, list[np.ndarray]]:
    rows = sampled(case.shapes["query"][0], 3)  # whole sequences: a row needs all the others
    wide = {name: x.astype(np.float64) for name, x in multihead.state(arrays).items()}
    x = arrays["query"][rows].astype(np.float64)
    return (lambda output: output[rows]), [multihead.written_out(x, wide, case.options["heads"])]


_EXPECTED: dict[str, Any] = {
    "attention": _attention,
    "cache": _attention,
    "varlen": _varlen,
    "softmax": _rowwise,
    "logsumexp": _rowwise,
    "similarity": _similarity,
    "fuse": _fuse,
    "linear": _linear,
    "allocate": _allocate,
    "allocate_shared": _allocate_shared,
    "multihead": _multihead,
}


class Truth:
    """The float64 answer to one case at its sampled rows."""

    def __init__(self, case: Case, arrays: Arrays) -> None:
        self.case = case
        self._pick, self._expected = _EXPECTED[case.operation](case, arrays)

    def error(self, result: Any) -> float:
        """Largest error of ``result`` relative to the largest expected magnitude.

        Raises
        ------
        WrongResult
            If the number of arrays, a shape or the error is not what it must be.
        """
        outputs = list(result) if isinstance(result, tuple) else [result]
        if len(outputs) != len(self._expected):
            raise WrongResult(f"{len(outputs)} arrays where {len(self._expected)} are expected")
        worst = 0.0
        for output, expected in zip(outputs, self._expected, strict=True):
            picked = self._pick(np.asarray(output)).astype(np.float64)
            if picked.shape != expected.shape:
                raise WrongResult(f"sampled shape {picked.shape}, expected {expected.shape}")
            error = np.abs(picked - expected).max() / np.abs(expected).max()
            worst = max(worst, float(error)) if error == error else np.inf
        if not worst <= TOLERANCE[self.case.dtype]:
            limit = TOLERANCE[self.case.dtype]
            raise WrongResult(f"{self.case.name}: relative error {worst:.2g} above {limit:.0e}")
        return worst
