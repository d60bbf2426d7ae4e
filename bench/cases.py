"""What is measured: named cases with their FLOPs, their bytes and inputs from fixed seeds.

To measure a shape of your own, add one line to ``CASES``::

    attention("my-shape", batch=(4, 16), queries=300, keys=77, features=96, causal=True),

and run ``python -m bench --cases my-shape`` or ``pytest bench -k my-shape``. The maker counts the
work: only visible (query, key) pairs, two FLOPs per multiply-add, both products; a causal mask
over equal lengths counts as exactly half. Exponentials, masks and packing count as nothing.
Bytes are the compulsory ones: each input read once, each output written once. ``varlen`` makes
ragged calls, ``cache`` decode steps from a ``KVCache``; draw.py says how lengths are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench import draw
from bench.draw import visible_pairs

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Case:
    """One measured call: the operation, its input shapes, options, work and what bounds it."""

    name: str
    operation: str  # "attention", "varlen", "cache", a stage's name, "allocate", ...
    shapes: Mapping[str, tuple[int, ...]]
    dtype: str = "float32"
    options: Mapping[str, Any] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    bound: str = "compute"  # the ceiling to hold it against: "compute", "read", "copy", "latency"
    note: str = ""
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)  # splits, ids, slopes: not drawn

    def inputs(self) -> Arrays:
        """The input arrays, the same in every process: standard normal, seeded by the name."""
        rng, dtype = draw.generator(self.name), draw.numpy_dtype(self.dtype)
        arrays = {}
        for name, shape in self.shapes.items():
            if name == "mask":
                arrays[name] = draw.mask(rng, shape, self.options["mask"], dtype)
            elif self.operation.startswith("allocate"):
                arrays[name] = draw.receivers(rng, name, shape)
            elif name == "key_indices":
                arrays[name] = rng.integers(0, self.shapes["key"][0], shape, np.int32)
            else:
                arrays[name] = draw.normal(rng, shape, dtype)
        return arrays | self.fixed


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
    bias_heads: bool = False,
    alibi: bool = False,
    sinks: bool = False,
    documents: bool = False,
    return_weights: bool = False,
    dtype: str = "float32",
    bound: str = "compute",
    note: str = "",
) -> Case:
    """An attention call; ``batch`` ends in the query heads, ``key_heads`` makes it grouped.

    ``mask`` is one of those of ``draw.mask``: of what a causal one, blocks or padding hide, nothing
    counts. ``bias_heads`` gives each head its own, shared by the batch. ``documents`` packs
    heavy-tailed documents into the row: pairs of two documents are no work.
    """
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
        shapes["mask"] = (*batch[-1:], queries, keys) if bias_heads else (queries, keys)
        shapes["mask"] = (batch[0], 1, 1, keys) if mask == "padding" else shapes["mask"]
    if key_heads is not None:
        options["enable_gqa"] = True
    if return_weights:
        options["return_weights"] = True
        output += int(np.prod(batch)) * queries * keys
    if sinks:
        options["sinks"] = True
        shapes["sinks"] = batch[-1:]
    fixed: Arrays = {}
    if alibi:
        options["alibi"] = True
        fixed["alibi_slopes"] = draw.alibi_slopes(batch[-1])
    visible = visible_pairs(queries, keys, causal or mask == "causal", window)
    if mask in ("blocks", "padding"):
        visible = draw.shown_pairs(mask, batch[0], queries, keys)
    if documents:
        options["documents"] = draw.HEAVY_TAILED
        ids = draw.document_ids(draw.heavy_tailed_lengths(name, queries), queries)
        fixed["query_segments"] = fixed["key_segments"] = ids
        parts = np.bincount(ids)
        visible = sum(visible_pairs(int(n), int(n), causal, window) for n in parts[parts > 0])
    pairs = visible * int(np.prod(batch))
    moved = sum(int(np.prod(shape)) for shape in shapes.values()) + output
    return Case(
        name,
        "attention",
        shapes,
        dtype,
        options,
        flops=2.0 * pairs * (features + value_features),
        bytes=float(moved * draw.ITEMSIZE[dtype]),
        bound=bound,
        note=note,
        fixed=fixed,
    )


def varlen(
    name: str,
    *,
    lengths: np.ndarray | list[int],
    told: str,
    features: int,
    heads: int = 1,
    own_queries: bool = False,
    causal: bool = False,
    table: int | None = None,
    bound: str = "read",
) -> Case:
    """Sequences of ``lengths`` keys packed end to end, or listed from a ``table`` of so many rows.

    Each has one query (pooling), or with ``own_queries`` as many as keys. ``told`` is what the
    sheet says of the lengths. A row of a table that is listed often is read once.
    """
    key_splits = draw.splits(lengths)
    query_splits = key_splits if own_queries else np.arange(len(key_splits))
    total = int(key_splits[-1])
    rows = total if table is None else table
    shapes: dict[str, tuple[int, ...]] = {
        "query": (int(query_splits[-1]), heads, features),
        "key": (rows, heads, features),
        "value": (rows, heads, features),
    }
    options: dict[str, Any] = {"lengths": told} | ({"causal": True} if causal else {})
    touched = float(total)
    if table is not None:
        shapes["key_indices"] = (total,)
        touched = table * -np.expm1(total * np.log1p(-1 / table))  # expected, of random lists
        options["listed"] = total
    counts = (np.diff(query_splits), np.diff(key_splits))
    pairs = sum(
        visible_pairs(int(q), int(k), causal, (None, None)) for q, k in zip(*counts, strict=True)
    )
    return Case(
        name,
        "varlen",
        shapes,
        options=options,
        flops=4.0 * pairs * heads * features,
        bytes=4.0 * (2 * shapes["query"][0] + 2 * touched) * heads * features,
        bound=bound,
        fixed={"query_splits": query_splits, "key_splits": key_splits},
    )


def cache(
    name: str, *, batch: int, heads: int, key_heads: int, keys: int, features: int, dtype: str
) -> Case:
    """One query a head over a ``KVCache`` that stores ``keys`` tokens as ``dtype``."""
    shapes = {
        "query": (batch, heads, 1, features),
        "key": (batch, key_heads, keys, features),
        "value": (batch, key_heads, keys, features),
    }
    per_row = features * draw.ITEMSIZE[dtype] + (4 if dtype == "int8" else 0)  # and its scale
    moved = 2 * batch * key_heads * keys * per_row + 8 * batch * heads * features
    return Case(
        name,
        "cache",
        shapes,
        dtype,
        {"enable_gqa": True},
        flops=4.0 * batch * heads * keys * features,
        bytes=float(moved),
        bound="read",
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


def linear(name: str, *, rows: int, features: int, outputs: int, packed: bool = True) -> Case:
    """A linear layer with its bias; weights packed before the clock starts, or not."""
    shapes = {"x": (rows, features), "weight": (outputs, features), "bias": (outputs,)}
    moved = 4.0 * (rows * (features + outputs) + outputs * (features + 1))
    flops, bound = 2.0 * rows * features * outputs, "read" if rows < 24 else "compute"
    options = {"packed": packed}
    return Case(name, "linear", shapes, "float32", options, flops=flops, bytes=moved, bound=bound)


def multihead(name: str, *, batch: int, length: int, features: int, heads: int) -> Case:
    """Self-attention by the whole module: projections, heads, output projection."""
    shapes = {"query": (batch, length, features), **draw.module_weights(features)}
    flops = batch * length * features * (8.0 * features + 4.0 * length)
    return Case(name, "multihead", shapes, options={"heads": heads}, flops=flops)


def allocate(
    name: str, *, rows: int, receivers: int, capped: bool = False, units: bool = False
) -> Case:
    """A budget handed out in each row, log-normal weights; with caps, or in whole units."""
    shapes = {"weights": (rows, receivers), "budget": (rows,)}
    moved = 8.0 * rows * (2 * receivers + 1)
    options = {"capped": capped, "units": units}
    return Case(name, "allocate", shapes, "float64", options, bytes=moved, bound="copy")


def allocate_shared(name: str, *, rows: int, receivers: int, rounds: int) -> Case:
    """So many rounds of sharing receivers; a round has to read the weights once."""
    shapes = {"weights": (rows, receivers), "budgets": (rows,), "capacities": (receivers,)}
    read = 8.0 * rows * receivers * rounds
    options = {"rounds": rounds}
    return Case(name, "allocate_shared", shapes, "float64", options, bytes=read, bound="read")


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
    attention("mask-causal", batch=(1, 8), queries=2048, features=64, mask="causal"),
    attention("mask-blocks", batch=(1, 8), queries=2048, features=64, mask="blocks"),
    attention("mask-padding", batch=(32, 12), queries=256, features=64, mask="padding"),
    attention("mask-float", batch=(1, 8), queries=2048, features=64, mask="float"),
    attention(
        "bias-shared", batch=(4, 8), queries=1024, features=64, mask="float", bias_heads=True
    ),
    attention("alibi", batch=(1, 8), queries=2048, features=64, causal=True, alibi=True),
    attention("sinks", batch=(1, 8), queries=2048, features=64, causal=True, sinks=True),
    attention("prefill-bfloat16", batch=(1, 8), queries=2048, features=64, dtype="bfloat16"),
    attention("window", batch=(1, 2), queries=8192, features=64, causal=True, window=(255, None)),
    attention("cross-few", batch=(1, 8), queries=7, keys=10_000, features=64, bound="read"),
    attention("odd-80", batch=(1, 8), queries=1000, features=80),
    attention("odd-33-17", batch=(1, 8), queries=1000, features=33, value_features=17),
    attention("narrow-8", batch=(1, 8), queries=2048, features=8),
    attention("one-head", batch=(1, 1), queries=256, features=64),
    attention("weights", batch=(1, 8), queries=1024, features=64, return_weights=True),
    multihead("module", batch=4, length=512, features=768, heads=12),
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
    *(
        attention(
            f"decode-{dtype}",
            batch=(8, 32),
            key_heads=8,
            queries=1,
            keys=4096,
            features=128,
            dtype=dtype,
            bound="read",
        )
        for dtype in ("bfloat16", "float16")
    ),
    *(
        cache(
            f"cache-{dtype}",
            batch=8,
            heads=32,
            key_heads=8,
            keys=4096,
            features=128,
            dtype=dtype,
        )
        for dtype in ("float32", "int8")
    ),
    attention("decode-short", batch=(1, 32), queries=1, keys=512, features=128, bound="read"),
    attention("pooling", batch=(8192, 1), queries=1, keys=50, features=64, bound="read"),
    varlen("ragged-50", lengths=[50] * 8192, told="50 each", features=64),
    varlen("ragged-50-table", lengths=[50] * 8192, told="50 each", features=64, table=200_000),
    varlen(
        "ragged-heavy",
        lengths=draw.heavy_tailed_lengths("ragged-heavy", 1024),
        told=draw.HEAVY_TAILED,
        features=64,
    ),
    varlen(
        "ragged-heavy-table",
        lengths=draw.heavy_tailed_lengths("ragged-heavy", 1024),
        told=draw.HEAVY_TAILED,
        features=64,
        table=200_000,
    ),
    varlen(
        "ragged-causal",
        lengths=draw.heavy_tailed_lengths("ragged-causal", 16),
        told=draw.HEAVY_TAILED,
        features=64,
        heads=2,
        own_queries=True,
        causal=True,
        bound="compute",
    ),
    attention("documents", batch=(1, 8), queries=4096, features=64, causal=True, documents=True),
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
    linear("linear-row", rows=1, features=4096, outputs=4096),
    linear("linear-row-unpacked", rows=1, features=4096, outputs=4096, packed=False),
    linear("linear-few", rows=7, features=3072, outputs=768),
    linear("linear", rows=512, features=768, outputs=3072),
    linear("linear-unpacked", rows=512, features=768, outputs=3072, packed=False),
    allocate("allocate", rows=1_000_000, receivers=32),
    allocate("allocate-capped", rows=1_000_000, receivers=32, capped=True),
    allocate("allocate-units", rows=1_000_000, receivers=32, units=True),
    allocate_shared("allocate-shared", rows=8000, receivers=1000, rounds=30),
    allocate_shared("allocate-shared-narrow", rows=500_000, receivers=32, rounds=30),
)
