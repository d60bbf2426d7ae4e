"""What is measured: named cases with their FLOPs, their bytes and inputs from fixed seeds.

To measure a shape of your own, add one line to ``CASES``::

    attention("my-shape", batch=(4, 16), queries=300, keys=77, features=96, causal=True),

and run ``python -m bench --cases my-shape`` or ``pytest bench -k my-shape``. The maker counts the
work: only visible (query, key) pairs, two FLOPs per multiply-add, both products; a causal mask
over equal lengths counts as exactly half. Exponentials, masks and packing count as nothing.
Bytes are the compulsory ones: each input read once, each output written once.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
ALIGNMENT = 64  # bytes; what torch gives its own tensors, so that nobody pays for our allocation


@dataclass(frozen=True, eq=False)
class Case:
    """One measured call: the operation, its input shapes, options, work and what bounds it."""

    name: str
    operation: str  # "attention", "softmax", "logsumexp", "similarity" or "fuse"
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    bound: str = "compute"  # the ceiling to hold it against: "compute", "read", "copy", "latency"
    note: str = ""

    def inputs(self) -> Arrays:
        """The input arrays, the same in every process: standard normal, seeded by the name."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        arrays = {}
        for name, shape in self.shapes.items():
            if name == "mask":
                arrays[name] = _mask(rng, shape, self.options["mask"], self.dtype)
            else:
                arrays[name] = aligned(rng.standard_normal(shape, dtype=np.dtype(self.dtype)))
        return arrays


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy of ``array`` that starts on a cache line."""
    raw = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _mask(rng: np.random.Generator, shape: tuple[int, ...], kind: str, dtype: str) -> np.ndarray:
    """About half the keys visible (bool), or a bias for each pair (float)."""
    if kind == "bool":
        mask = rng.random(shape, dtype=np.float32) < 0.5
        mask[..., 0] = True  # peers give NaN for a row without a key
        return mask
    return aligned(rng.standard_normal(shape, dtype=np.dtype(dtype)))


def visible_pairs(
    queries: int, keys: int, causal: bool, window: tuple[int | None, int | None]
) -> float:
    """How many (query, key) pairs of one head take part; causal over equal lengths is half."""
    left, right = window
    if left is None and right is None:
        return queries * keys / 2 if causal else float(queries * keys)
    rows = np.arange(queries)
    first = np.zeros_like(rows) if left is None else np.maximum(rows - left, 0)
    stop = np.full_like(rows, keys) if right is None else np.minimum(rows + right + 1, keys)
    if causal:
        stop = np.minimum(stop, rows + 1)
    return float(np.maximum(stop - first, 0).sum())


def attention(
    name: str,
    *,
    batch: tuple[int, ...],
    queries: int,
    features: int,
    keys: int | None = None,
    value_features: int | None = None,
    key_heads: int | None = None,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    mask: str | None = None,
    return_weights: bool = False,
    dtype: str = "float32",
    bound: str = "compute",
    note: str = "",
) -> Case:
    """An attention call; ``batch`` ends in the query heads, ``key_heads`` makes it grouped."""
    keys = queries if keys is None else keys
    value_features = features if value_features is None else value_features
    key_batch = batch if key_heads is None else (*batch[:-1], key_heads)
    shapes = {
        "query": (*batch, queries, features),
        "key": (*key_batch, keys, features),
        "value": (*key_batch, keys, value_features),
    }
    output = int(np.prod(batch)) * queries * value_features
    options: dict[str, Any] = {}
    if causal:
        options["causal"] = True
    if window != (None, None):
        options["window"] = window
    if mask is not None:
        options["mask"] = mask
        shapes["mask"] = (queries, keys)
    if key_heads is not None:
        options["enable_gqa"] = True
    if return_weights:
        options["return_weights"] = True
        output += int(np.prod(batch)) * queries * keys
    pairs = visible_pairs(queries, keys, causal, window) * int(np.prod(batch))
    moved = sum(int(np.prod(shape)) for shape in shapes.values()) + output
    return Case(
        name,
        "attention",
        shapes,
        dtype,
        options,
        flops=2.0 * pairs * (features + value_features),
        bytes=float(moved * np.dtype(dtype).itemsize),
        bound=bound,
        note=note,
    )


def rowwise(
    operation: str, name: str, *, shape: tuple[int, int], axis: int = -1, out: bool = False
) -> Case:
    """Softmax or log-sum-exp of a matrix; with ``out`` the result array exists before the call."""
    elements = shape[0] * shape[1]
    reduces = operation == "logsumexp"
    moved = elements + (elements // shape[axis] if reduces else elements)
    options = {"axis": axis, "out": out}
    bound = "read" if reduces else "copy"
    return Case(name, operation, {"x": shape}, options=options, bytes=4.0 * moved, bound=bound)


def similarity(
    name: str, metric: str, *, queries: int, keys: int, features: int, dtype: str = "float32"
) -> Case:
    """All pairs of one metric, into an array that exists before the call where a peer can."""
    shapes = {"query": (queries, features), "key": (keys, features)}
    per_feature = 3.0 if metric == "euclidean" else 2.0  # a difference and a multiply-add
    itemsize = np.dtype(dtype).itemsize
    return Case(
        name,
        "similarity",
        shapes,
        dtype,
        {"metric": metric},
        flops=per_feature * queries * keys * features,
        bytes=float(itemsize * (queries * keys + (queries + keys) * features)),
    )


def fuse(name: str, *, batch: tuple[int, ...], queries: int, keys: int, features: int) -> Case:
    """Weights times values, as a call of its own."""
    shapes = {"weights": (*batch, queries, keys), "value": (*batch, keys, features)}
    heads = int(np.prod(batch))
    elements = heads * (queries * keys + keys * features + queries * features)
    flops = 2.0 * heads * queries * keys * features
    return Case(name, "fuse", shapes, flops=flops, bytes=4.0 * elements)


CASES: tuple[Case, ...] = (
    attention("prefill", batch=(1, 8), queries=2048, features=64),
    attention("prefill-causal", batch=(1, 8), queries=2048, features=64, causal=True),
    attention("long-causal", batch=(1, 2), queries=8192, features=64, causal=True),
    attention("encoder-128", batch=(32, 12), queries=128, features=64),
    attention("encoder-512", batch=(4, 12), queries=512, features=64),
    attention("wide-causal", batch=(1, 8), queries=1024, features=128, causal=True),
    attention("wide-256", batch=(1, 4), queries=1024, features=256),
    attention("prefill-float64", batch=(1, 8), queries=2048, features=64, dtype="float64"),
    attention("mask-bool", batch=(1, 8), queries=2048, features=64, mask="bool"),
    attention("mask-float", batch=(1, 8), queries=2048, features=64, mask="float"),
    attention("window", batch=(1, 2), queries=8192, features=64, causal=True, window=(255, None)),
    attention("cross-few", batch=(1, 8), queries=7, keys=10_000, features=64, bound="read"),
    attention("odd-80", batch=(1, 8), queries=1000, features=80),
    attention("odd-33-17", batch=(1, 8), queries=1000, features=33, value_features=17),
    attention("narrow-8", batch=(1, 8), queries=2048, features=8),
    attention("one-head", batch=(1, 1), queries=256, features=64),
    attention("weights", batch=(1, 8), queries=1024, features=64, return_weights=True),
    attention(
        "decode-grouped",
        batch=(8, 32),
        key_heads=8,
        queries=1,
        keys=4096,
        features=128,
        bound="read",
    ),
    attention(
        "decode-one-key-head",
        batch=(1, 4),
        key_heads=1,
        queries=1,
        keys=32_768,
        features=128,
        bound="read",
    ),
    attention("decode-short", batch=(1, 32), queries=1, keys=512, features=128, bound="read"),
    attention("pooling", batch=(8192, 1), queries=1, keys=50, features=64, bound="read"),
    attention("tiny", batch=(1, 4), queries=16, features=32, bound="latency"),
    attention("small", batch=(1, 4), queries=64, features=64, bound="latency"),
    rowwise("softmax", "softmax-out", shape=(8192, 4096), out=True),
    rowwise("softmax", "softmax", shape=(8192, 4096)),
    rowwise("softmax", "softmax-axis0-out", shape=(8192, 4096), axis=0, out=True),
    rowwise("logsumexp", "logsumexp", shape=(8192, 4096)),
    similarity("cosine", "cosine", queries=4096, keys=32_768, features=128),
    similarity("dot", "dot", queries=4096, keys=32_768, features=128),
    similarity("euclidean", "euclidean", queries=4096, keys=4096, features=64),
    similarity(
        "euclidean-float64", "euclidean", queries=2048, keys=4096, features=64, dtype="float64"
    ),
    fuse("fuse", batch=(1, 8), queries=2048, keys=2048, features=64),
)


def select(patterns: list[str] | None) -> list[Case]:
    """The cases whose names match one of the shell patterns, in the order of the table."""
    from fnmatch import fnmatchcase

    if not patterns:
        return list(CASES)
    chosen = [case for case in CASES if any(fnmatchcase(case.name, p) for p in patterns)]
    if not chosen:
        names = ", ".join(case.name for case in CASES)
        raise SystemExit(f"no case matches {' '.join(patterns)}; there are: {names}")
    return chosen
