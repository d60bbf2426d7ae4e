"""PyTorch where it has no call of its own: ragged sequences and narrow caches.

Ragged sequences become rectangles (see ragged.py), made before the clock starts, within the call,
or bucket by bucket. Nested tensors are tried as well; on CPUs their attention pads within the call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench import peer_torch, ragged
from bench.cases import Arrays, Case
from bench.contender import Variant
from bench.forms import additive
from bench.peer_torch import as_numpy, inference, tensor
from bench.ragged import Slots

_attend = functional.scaled_dot_product_attention


def _mask(case: Case, keys: Slots) -> torch.Tensor | None:
    mask = ragged.key_mask(case, keys)
    return None if mask is None else tensor(additive(mask, case.dtype))


def _rows(at: Slots) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(at.rows))


def _rectangle(rows: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rows ``at`` (sequences, longest) of (total, H, E) as (sequences, H, longest, E)."""
    return rows.index_select(0, at.reshape(-1)).unflatten(0, at.shape).transpose(1, 2)


def _operands(arrays: Arrays) -> list[torch.Tensor]:
    return [tensor(arrays[name]) for name in ("query", "key", "value")]


def varlen(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """Padded before the clock starts; with a table only its list is, and rows are gathered."""
    if "key_indices" not in arrays:
        variants = ragged.padded_variants(case, arrays, threads, peer_torch.attention)
        return variants | _nested(case, arrays)
    every = np.arange(len(arrays["key_splits"]) - 1)
    queries, keys = ragged.rectangle(arrays, every)
    query, key, value = _operands(arrays)
    mask, at_query, at_key = _mask(case, keys), _rows(queries), _rows(keys)
    causal = bool(case.options.get("causal"))

    def run() -> torch.Tensor:
        rectangles = (_rectangle(rows, at_key) for rows in (key, value))
        return _attend(_rectangle(query, at_query), *rectangles, mask, is_causal=causal)

    read = lambda result: ragged.packed(as_numpy(result), queries)  # noqa: E731
    return {"list padded ahead, rows gathered": Variant(inference(run), read)}


def _nested(case: Case, arrays: Arrays) -> dict[str, Variant]:
    """Jagged nested tensors over the packed arrays, made ahead; none where torch refuses."""
    splits = {name: torch.from_numpy(arrays[f"{name}_splits"]) for name in ("query", "key")}
    jagged = torch.nested.nested_tensor_from_jagged
    tensors = [
        jagged(rows, splits[kind]).transpose(1, 2)
        for rows, kind in zip(_operands(arrays), ("query", "key", "key"), strict=True)
    ]
    causal = bool(case.options.get("causal"))

    def run() -> torch.Tensor:
        with torch.no_grad():  # nested tensors and inference mode exclude each other
            return _attend(*tensors, is_causal=causal)

    try:
        run()
    except (RuntimeError, NotImplementedError, ValueError):
        return {}
    return {"nested": Variant(run, lambda result: as_numpy(result.transpose(1, 2).values()))}


def padding_timed(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """From packed arrays or a table, splits and lists to packed output, all within the call."""
    query, key, value = _operands(arrays)
    splits = [torch.from_numpy(arrays[f"{name}_splits"]) for name in ("query", "key")]
    listed = arrays.get("key_indices")
    listed = None if listed is None else torch.from_numpy(listed)
    causal = bool(case.options.get("causal"))

    def slots(bounds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        counts = bounds.diff()
        along = torch.arange(int(counts.max()))
        real = along < counts[:, None]
        return torch.where(real, bounds[:-1, None] + along, 0), real

    def run() -> torch.Tensor:
        (at_query, real_query), (at_key, real_key) = map(slots, splits)
        if listed is not None:
            at_key = listed[at_key]
        mask = None if causal or bool(real_key.all()) else real_key[:, None, None, :]
        rectangles = (_rectangle(rows, at_key) for rows in (key, value))
        output = _attend(_rectangle(query, at_query), *rectangles, mask, is_causal=causal)
        return output.transpose(1, 2)[real_query]

    return {"padded within the call": Variant(inference(run), as_numpy)}


def buckets(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """Sequences of similar length together, each bucket padded ahead; gathered where a table is."""
    operands = _operands(arrays)
    parts: list[Callable[[], torch.Tensor]] = []
    rows, real = [], []
    for which in ragged.buckets(arrays):
        queries, keys = ragged.rectangle(arrays, which)
        parts.append(_bucket(case, arrays, operands, queries, keys))
        rows.append(torch.from_numpy(queries.rows[queries.real]))
        real.append(torch.from_numpy(queries.real))
    shape = (*arrays["query"].shape[:-1], arrays["value"].shape[-1])

    def run() -> torch.Tensor:
        output = torch.empty(shape, dtype=operands[0].dtype)
        for attend, at, within in zip(parts, rows, real, strict=True):
            output[at] = attend().transpose(1, 2)[within]
        return output

    name = "buckets " + ("gathered" if "key_indices" in arrays else "padded ahead")
    return {f"{len(parts)} {name}": Variant(inference(run), as_numpy)}


def _bucket(
    case: Case, arrays: Arrays, operands: list[torch.Tensor], queries: Slots, keys: Slots
) -> Callable[[], torch.Tensor]:
    mask = _mask(case, keys)
    causal = bool(case.options.get("causal"))
    attend = functools.partial(_attend, attn_mask=mask, is_causal=causal)
    at_query, at_key = _rows(queries), _rows(keys)
    if "key_indices" in arrays:
        query, key, value = operands
        query = _rectangle(query, at_query).contiguous()
        return lambda: attend(query, _rectangle(key, at_key), _rectangle(value, at_key))
    ahead = [
        _rectangle(rows, at).contiguous()
        for rows, at in zip(operands, (at_query, at_key, at_key), strict=True)
    ]
    return lambda: attend(*ahead)


def cache(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """A cache held as dense tensors: float32, or for int8 as bfloat16 and as int8 with scales."""
    if case.dtype != "int8":
        return peer_torch.attention(case, arrays, threads)
    from bench.draw import numpy_dtype

    half = numpy_dtype("bfloat16")
    narrow = dataclasses.replace(case, dtype="bfloat16")
    rounded = {name: array.astype(half) for name, array in arrays.items()}
    variants = {
        f"kept as bfloat16, {name}": one
        for name, one in peer_torch.attention(narrow, rounded, threads).items()
    }
    return variants | {"int8 dequantised within the call": _dequantised(arrays)}


def _dequantised(arrays: Arrays) -> Variant:
    query = tensor(arrays["query"])
    stored = []
    for name in ("key", "value"):
        rows = tensor(arrays[name])
        scale = rows.abs().amax(-1, keepdim=True) / 127
        stored.append(((rows / scale).round().to(torch.int8), scale))

    def run() -> Any:
        key, value = (rows.to(torch.float32) * scale for rows, scale in stored)
        return _attend(query, key, value, enable_gqa=True)

    return Variant(inference(run), as_numpy)
