"""From a problem to the record its kernel reads: pure bookkeeping, nothing runs here."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np

from fastattn._core.pages import Pages
from fastattn._core.problem import Problem
from fastattn._core.ragged import RaggedProblem

from .addresses import storage_code
from .layouts import (
    ATTENTION,
    BOOL_MASK,
    COSINE,
    DOT,
    EUCLIDEAN,
    FLOAT_MASK,
    NO_MASK,
    OPERANDS,
    UNBOUNDED,
)
from .record import Record, merge_dims

__all__ = ["describe", "key_staged", "split_scale", "value_in_place"]

Walks = dict[str, tuple[int, ...]]  # how operands walk: their strides

METRICS = {"dot": DOT, "scaled_dot": DOT, "cosine": COSINE, "euclidean": EUCLIDEAN}


def split_scale(
    similarity: str, scale: float, softcap: float | None, shaped: bool
) -> dict[str, Any]:
    """Divide scale into a power of two, exact on the operands, and a rest in [1, 4).

    The sign goes onto the query too, so that scores rise with the product; a negative factor of
    distances, and 0, are applied to the scores. `shaped` says that final scores are needed as such,
    not only as exponents.
    """
    metric = METRICS[similarity]
    shaped = shaped or softcap is not None
    words: dict[str, Any] = dict(
        metric=metric,
        query_first=1.0,
        query_second=1.0,
        key_factor=1.0,
        difference_factor=1.0,
        softcap=softcap or 0.0,
    )
    if scale == 0.0:
        # On the operands too: 0 times a product that overflowed would be NaN.
        factor = "difference_factor" if metric == EUCLIDEAN else "key_factor"
        return words | {factor: 0.0} | dict(rest=0.0, shaped=1, rescaled=1)
    mantissa, exponent = math.frexp(abs(scale))
    rest, exponent = 2.0 * mantissa, exponent - 1
    if metric == EUCLIDEAN:
        half, odd = divmod(exponent, 2)
        rest *= 2.0**odd
        if half > 0:
            # On the operands it might overflow where their differences do not.
            words["difference_factor"] = math.ldexp(1.0, half)
        else:
            words["query_first"] = words["key_factor"] = math.ldexp(1.0, half)
        if scale < 0.0:
            rest, shaped = -rest, True
    else:
        words["query_first"] = math.copysign(math.ldexp(1.0, exponent // 2), scale)
        words["query_second"] = math.ldexp(1.0, exponent - exponent // 2)
    rescaled = softcap is not None or (shaped and rest != 1.0)
    return words | dict(rest=rest, shaped=int(shaped), rescaled=int(rescaled))


def _finite(words: dict[str, Any], dtype: np.dtype) -> dict[str, Any]:
    """Keep the factors of a query finite in the dtype: 0 times infinity would be NaN."""
    most = 1.0 / _tiny(dtype)
    for factor in ("query_first", "query_second"):
        words[factor] = min(max(words[factor], -most), most)
    return words


def _representable(softcap: float | None, dtype: np.dtype) -> float | None:
    """Bring a cap into the range where neither it nor its inverse overflows; no score tells."""
    tiny = _tiny(dtype)
    return None if softcap is None else min(max(softcap, tiny), 1.0 / tiny)


@functools.cache  # NumPy takes microseconds to say it
def _tiny(dtype: np.dtype) -> float:
    """Return the smallest normal number."""
    return float(np.finfo(dtype).tiny)


def describe(problem: Problem, output: np.ndarray, lse: np.ndarray | None = None) -> Record:
    """Everything of a record that does not depend on the plan; a missing lse is contiguous."""
    query, key, value, mask = problem.query, problem.key, problem.value, problem.mask
    record = Record(ATTENTION)
    left, right = problem.window
    right = UNBOUNDED if right is None else right
    adds = mask is not None and mask.dtype != np.bool_
    adds = adds or problem.alibi_slopes is not None
    record.set(
        groups_of_heads=query.shape[-3],
        queries=query.shape[-2],
        keys=key.shape[-2],
        features=query.shape[-1],
        value_features=value.shape[-1],
        left=UNBOUNDED if left is None else left,
        right=min(right, 0) if problem.causal else right,
        query_code=storage_code(query.dtype),
        key_code=storage_code(key.dtype),
        value_code=storage_code(value.dtype),
        output_code=storage_code(output.dtype),
        value_in_place=int(value_in_place(problem)),
        key_staged=int(key_staged(problem)),
        mask_kind=NO_MASK,
        **_finite(
            split_scale(
                problem.similarity,
                problem.scale,
                _representable(problem.softcap, problem.dtype),
                adds,
            ),
            problem.dtype,
        ),
    )
    for field, array in (("query", query), ("output", output)):
        head, row, feature = array.strides[-3:]
        record.set(**{f"{field}_head": head, f"{field}_row": row, f"{field}_feature": feature})
    for field, array in (("key", key), ("value", value)):
        record.set(**{f"{field}_row": array.strides[-2], f"{field}_feature": array.strides[-1]})
    record.point(query=query, key=key, value=value, output=output)
    if lse is not None:
        record.point(lse=lse)
        lse_strides = lse.strides
    else:
        lse_strides = contiguous_strides(query.shape[:-1], problem.dtype.itemsize)
    record.set(lse_head=lse_strides[-2], lse_row=lse_strides[-1])
    arrays = {"query": query, "key": key, "value": value, "output": output}
    walks = {field: array.strides for field, array in arrays.items()} | {"lse": lse_strides}
    _point_extras(record, problem, walks)
    _point_tables(record, problem, walks)
    return record


def contiguous_strides(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    """Strides of a C-contiguous array."""
    return tuple(item * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _point_extras(record: Record, problem: Problem, walks: Walks) -> None:
    """Masks, documents, slopes, sinks and pages."""
    mask = problem.mask
    if mask is not None:
        kind = BOOL_MASK if mask.dtype == np.bool_ else FLOAT_MASK
        head, row, column = mask.strides[-3:]
        record.set(mask_head=head, mask_row=row, mask_key=column, mask_kind=kind)
        record.set(mask_code=storage_code(mask.dtype))
        walks["mask"] = mask.strides
        record.point(mask=mask)
    extras = {
        "query_ids": problem.query_segments,
        "key_ids": problem.key_segments,
        "alibi": problem.alibi_slopes,
        "sinks": problem.sinks,
    }
    for field, array in extras.items():
        if array is not None:
            head = array.strides[-2] if field.endswith("ids") else array.strides[-1]
            record.set(**{f"{field}_head": head})
            record.point(**{field: array})
            walks[field] = array.strides
    if problem.gathered is not None:
        indices = problem.gathered.indices
        record.set(index_bytes=indices.itemsize, table_rows=problem.gathered.rows)
        record.point(indices=indices)
    if problem.pages is not None:
        _point_pages(record, problem, problem.pages, walks)


def _point_pages(record: Record, problem: Problem, pages: Pages, walks: Walks) -> None:
    """Tables of the addresses of every page of every key head."""
    item, code = pages.dtype.itemsize, storage_code(pages.dtype)
    record.set(
        key_code=code,
        value_code=code,
        key_row=problem.key.shape[-1] * item,
        value_row=problem.value.shape[-1] * item,
        key_feature=item,
        value_feature=item,
    )
    walks["pages"] = pages.key.strides
    record.point(key_pages=pages.key, value_pages=pages.value)
    if pages.key_scale is not None and pages.value_scale is not None:
        record.point(key_scales=pages.key_scale, value_scales=pages.value_scale)


def _point_tables(record: Record, problem: Problem, walks: Walks) -> None:
    """Lengths, offsets, and how each operand walks the batch: what belongs to the signature."""
    rows = problem.query.shape[:-2]
    lengths = problem.key_lengths
    if lengths is None:
        lengths = np.broadcast_to(np.int64(problem.key.shape[-2]), rows)
    offsets = problem.query_offset
    if not isinstance(offsets, np.ndarray):
        offsets = np.broadcast_to(np.int64(offsets), rows)
    walks["lengths"], walks["offsets"] = lengths.strides, offsets.strides
    record.set(lengths_head=lengths.strides[-1], offsets_head=offsets.strides[-1])
    batch = rows[:-1]
    # What is not there walks like the query, so that it keeps no batch dims apart.
    steps = [walks.get(name, walks["query"])[: len(batch)] for name in OPERANDS]
    shape, merged = merge_dims(batch, steps)
    record.set(entries=math.prod(batch), entry_rank=len(shape))
    # The tables stand last in `kept`.
    record.point(
        lengths=lengths,
        offsets=offsets,
        entry_shape=np.array([*shape, 1], np.int64),
        entry_strides=np.array([*itertools.chain(*merged), 0], np.int64),
    )


def is_gathered(problem: Problem | RaggedProblem) -> bool:
    """Whether keys and values are rows of tables."""
    if isinstance(problem, RaggedProblem):
        return problem.key_indices is not None
    return problem.gathered is not None


def value_in_place(problem: Problem | RaggedProblem) -> bool:
    """Whether the tile can read value rows where they lie."""
    value = problem.value
    dtype, contiguous = value.dtype, value.strides[-1] == value.itemsize
    if isinstance(problem, Problem) and problem.pages is not None:
        dtype, contiguous = problem.pages.dtype, True
    elif is_gathered(problem):
        return False
    return (
        dtype == problem.dtype
        and dtype.isnative
        and value.shape[-1] % 16 == 0
        and (contiguous or value.shape[-1] == 0)
    )


def key_staged(problem: Problem | RaggedProblem) -> bool:
    """Whether key rows are copied before they are packed: gathered, widened or dequantised."""
    key = problem.key
    if is_gathered(problem) or problem.in_pairs:
        return True
    if isinstance(problem, Problem) and problem.pages is not None:
        return problem.pages.dtype != problem.dtype
    return key.dtype != problem.dtype and key.strides[-1] == key.itemsize
