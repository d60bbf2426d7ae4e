"""From a problem to the record its kernel reads: pure bookkeeping, nothing runs here."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastattn._core.pages import Pages
from fastattn._core.plan import PAGE_KEYS
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


def _representable(softcap: float | None, dtype: np.dtype) -> float | None:
    """Bring a cap into the range where neither it nor its inverse overflows; no score tells."""
    tiny = float(np.finfo(dtype).tiny)
    return None if softcap is None else min(max(softcap, tiny), 1.0 / tiny)


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
        **split_scale(
            problem.similarity,
            problem.scale,
            _representable(problem.softcap, problem.dtype),
            adds,
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
    else:
        lse = np.broadcast_to(np.zeros((), problem.dtype), query.shape[:-1])
        strides = contiguous_strides(lse.shape, lse.itemsize)
        lse = np.lib.stride_tricks.as_strided(lse, lse.shape, strides)
    record.set(lse_head=lse.strides[-2], lse_row=lse.strides[-1])
    operands = {"query": query, "key": key, "value": value, "output": output, "lse": lse}
    _point_extras(record, problem, operands)
    _point_tables(record, problem, operands)
    return record


def contiguous_strides(shape: tuple[int, ...], item: int) -> tuple[int, ...]:
    """Strides of a C-contiguous array."""
    return tuple(item * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _point_extras(record: Record, problem: Problem, operands: dict[str, np.ndarray]) -> None:
    """Masks, documents, slopes, sinks and pages."""
    mask = problem.mask
    if mask is not None:
        kind = BOOL_MASK if mask.dtype == np.bool_ else FLOAT_MASK
        head, row, column = mask.strides[-3:]
        record.set(mask_head=head, mask_row=row, mask_key=column, mask_kind=kind)
        record.set(mask_code=storage_code(mask.dtype))
        operands["mask"] = mask
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
            operands[field] = array
    if problem.gathered is not None:
        indices = problem.gathered.indices
        record.set(index_bytes=indices.itemsize, table_rows=problem.gathered.rows)
        record.point(indices=indices)
    if problem.pages is not None:
        _point_pages(record, problem, problem.pages, operands)


def _point_pages(
    record: Record, problem: Problem, pages: Pages, operands: dict[str, np.ndarray]
) -> None:
    """Tables of the addresses of every page of every key head."""
    heads = problem.key.shape[-3]
    item = pages.dtype.itemsize
    record.set(key_code=storage_code(pages.dtype), value_code=storage_code(pages.dtype))

    def table(addresses: np.ndarray, row: int) -> np.ndarray:
        steps = np.arange(heads, dtype=np.int64)[:, None] * (PAGE_KEYS * row)
        return np.ascontiguousarray(addresses[..., None, :] + steps)

    for side, addresses, scales in (
        ("key", pages.key, pages.key_scale),
        ("value", pages.value, pages.value_scale),
    ):
        row = getattr(problem, side).shape[-1] * item
        record.set(**{f"{side}_row": row, f"{side}_feature": item})
        operands["pages"] = table(addresses, row)
        record.point(**{f"{side}_pages": operands["pages"]})
        if scales is not None:
            record.point(**{f"{side}_scales": table(scales, 4)})


def _point_tables(record: Record, problem: Problem, operands: dict[str, np.ndarray]) -> None:
    """Lengths, offsets, and how each operand walks the batch: what belongs to the signature."""
    rows = problem.query.shape[:-2]
    lengths = problem.key_lengths
    if lengths is None:
        lengths = np.broadcast_to(np.int64(problem.key.shape[-2]), rows)
    offsets = np.broadcast_to(np.asarray(problem.query_offset, np.int64), rows)
    operands["lengths"], operands["offsets"] = lengths, offsets
    record.set(lengths_head=lengths.strides[-1], offsets_head=offsets.strides[-1])
    batch = rows[:-1]
    # What is not there walks like the query, so that it keeps no batch dims apart.
    steps = [operands.get(name, operands["query"]).strides[: len(batch)] for name in OPERANDS]
    shape, merged = merge_dims(batch, steps)
    record.set(entries=math.prod(batch), entry_rank=len(shape))
    # The tables stand last in `kept`.
    record.point(
        lengths=lengths,
        offsets=offsets,
        entry_shape=np.array([*shape, 1], np.int64),
        entry_strides=np.array([*np.ravel(merged), 0], np.int64),
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
    if is_gathered(problem):
        return True
    if isinstance(problem, Problem) and problem.pages is not None:
        return problem.pages.dtype != problem.dtype
    return key.dtype != problem.dtype and key.strides[-1] == key.itemsize
