"""From a problem to the record its kernel reads: pure bookkeeping, nothing runs here."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

from fastattn._core.options import HEAD, KEY, QUERY, rows_of
from fastattn._core.places import Gathered, Pages
from fastattn._core.problem import Problem

from .addresses import storage_code
from .layouts import (
    ATTENTION,
    BOOL_MASK,
    COSINE,
    DOT,
    EUCLIDEAN,
    FACTORS,
    FLOAT_MASK,
    NO_MASK,
    OPERANDS,
    UNBOUNDED,
)
from .record import Record, merge_dims

__all__ = ["EXTRA_WORDS", "METRICS", "describe", "split_scales"]

Walks = dict[str, tuple[int, ...]]  # how operands walk: their strides

# What records call the small arrays of a call.
EXTRA_WORDS = {
    "query_offset": "offsets",
    "key_lengths": "lengths",
    "query_segments": "query_ids",
    "key_segments": "key_ids",
    "alibi_slopes": "alibi",
    "sinks": "sinks",
}
_POINTED = rows_of(QUERY, KEY, HEAD)  # positions are tables, which every call has

METRICS = {"dot": DOT, "scaled_dot": DOT, "cosine": COSINE, "euclidean": EUCLIDEAN}


def split_scale(similarity: str, scale: float, shaped: bool, dtype: np.dtype) -> tuple[float, ...]:
    """Divide scale into powers of two, exact on the operands, and a rest in [1, 4): `FACTORS`.

    The sign goes onto the query too, so that scores rise with the product; a negative factor of
    distances is applied to the scores. So is the part of a power that is beyond the square of what
    the dtype holds. `shaped` says that final scores are needed as such, not only as exponents;
    otherwise the rest comes late, with those.
    """
    words = dict.fromkeys(FACTORS.floats, 1.0)
    if scale == 0.0:
        # On the operands: 0 times a product that overflowed would be NaN.
        words["query_first"] = 0.0
        words["key_factor"] = 0.0 if similarity == "euclidean" else 1.0
        return tuple(words.values())
    most = -_least_exponent(dtype)
    mantissa, exponent = math.frexp(abs(scale))
    rest, exponent = 2.0 * mantissa, exponent - 1
    if similarity == "euclidean":
        half, odd = divmod(exponent, 2)
        rest *= 2.0**odd
        own = min(max(half, -most), most)
        waiting = 2 * (half - own)
        if own > 0:
            # On the operands it might overflow where their differences do not.
            words["difference_factor"] = 2.0**own
        else:
            words["query_first"] = words["key_factor"] = 2.0**own
        if scale < 0.0:
            rest, shaped = -rest, True
    else:
        own = min(max(exponent, -2 * most), 2 * most)
        waiting = exponent - own
        words["query_first"] = math.copysign(2.0 ** (own // 2), scale)
        words["query_second"] = 2.0 ** (own - own // 2)
    waiting = min(max(waiting, -2 * most), 2 * most)
    words["power_first"], words["power_second"] = (
        2.0 ** (waiting // 2),
        2.0 ** (waiting - waiting // 2),
    )
    words["rest" if shaped else "late_rest"] = rest
    return tuple(words.values())


def split_scales(
    similarity: str, scale: float | np.ndarray, shaped: bool, dtype: np.dtype
) -> tuple[tuple[float, ...], np.ndarray | None, bool, bool]:
    """Divide one scale, or one of each head (*batch, Hkv, G).

    Returns the factors of the first, a table (*batch, Hkv, G, factors) that repeats nothing where
    there are several, whether any of them changes scores behind the product, and whether any puts
    a power of two onto queries under which sums may overflow that do not without it.
    """
    # Sums of a cosine stay within 1, and rounding.
    most = 2.0 ** -_least_exponent(dtype) if similarity == "cosine" else 1.0

    if not isinstance(scale, np.ndarray):
        factors = split_scale(similarity, scale, shaped, dtype)
        return factors, None, _rescales(factors), _enlarges(factors, most)
    own = scale[tuple(slice(None) if stride else slice(1) for stride in scale.strides)]
    distinct, which = np.unique(own, return_inverse=True)
    found = [split_scale(similarity, float(one), shaped, dtype) for one in distinct]
    found = found or [split_scale(similarity, 1.0, shaped, dtype)]
    table = np.array(found)[which.reshape(own.shape)]
    spread = np.broadcast_to(table, (*scale.shape, len(FACTORS.floats)))
    enlarged = any(_enlarges(one, most) for one in found)
    return found[0], spread, any(map(_rescales, found)), enlarged


def _rescales(factors: tuple[float, ...]) -> bool:
    at = FACTORS.floats.index("power_first")
    return factors[at : at + 3] != (1.0, 1.0, 1.0)


def _enlarges(factors: tuple[float, ...], most: float) -> bool:
    first, second = map(FACTORS.floats.index, ("query_first", "query_second"))
    return abs(factors[first] * factors[second]) > most


def _representable(softcap: float | None, dtype: np.dtype) -> float | None:
    """Bring a cap into the range where neither it nor its inverse overflows; no score tells."""
    tiny = 2.0 ** _least_exponent(dtype)
    return None if softcap is None else min(max(softcap, tiny), 1.0 / tiny)


@functools.cache  # NumPy takes microseconds to say it
def _least_exponent(dtype: np.dtype) -> int:
    """Return that of the smallest normal number."""
    return int(np.finfo(dtype).minexp)


def describe(problem: Problem, output: np.ndarray, lse: np.ndarray | None = None) -> Record:
    """Everything of a record that does not depend on the plan; a missing lse is contiguous."""
    query, key, value, mask = problem.query, problem.key, problem.value, problem.mask
    record, options = Record(ATTENTION), problem.options
    assert options.window is not None  # the face has resolved it
    left, right = options.window
    right = UNBOUNDED if right is None else right
    adds = mask is not None and mask.dtype != np.bool_
    adds = adds or problem.extras.alibi_slopes is not None
    softcap = _representable(options.softcap, problem.dtype)
    factors, table, rescaled, enlarged = split_scales(
        options.similarity, options.scale, adds or softcap is not None, problem.dtype
    )
    record.set(
        groups_of_heads=query.shape[-3],
        queries=query.shape[-2],
        keys=key.shape[-2],
        features=query.shape[-1],
        value_features=value.shape[-1],
        left=UNBOUNDED if left is None else left,
        right=min(right, 0) if options.causal else right,
        query_code=storage_code(query.dtype),
        key_code=storage_code(key.dtype),
        value_code=storage_code(value.dtype),
        output_code=storage_code(output.dtype),
        mask_kind=NO_MASK,
        metric=METRICS[options.similarity],
        rescaled=int(rescaled or softcap is not None),
        enlarged=int(enlarged),
        softcap=softcap or 0.0,
        **dict(zip(FACTORS.floats, factors, strict=True)),
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
    _point_tables(record, problem, table, walks)
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
    for option in _POINTED:
        array = getattr(problem.extras, option.name)
        if array is not None:
            field = EXTRA_WORDS[option.name]
            record.set(**{f"{field}_head": array.strides[-1 if option.kind == HEAD else -2]})
            record.point(**{field: array})
            walks[field] = array.strides
    place = problem.place
    if isinstance(place, Gathered):
        indices = place.indices
        listed = {"listed": indices.size, "table_rows": place.rows}
        record.set(index_bytes=indices.itemsize, **listed)
        record.point(indices=indices)
    if isinstance(place, Pages):
        _point_pages(record, problem, place, walks)


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


def _point_tables(
    record: Record, problem: Problem, factors: np.ndarray | None, walks: Walks
) -> None:
    """Factors, lengths, offsets and how each operand walks: what belongs to the signature."""
    rows = problem.query.shape[:-2]
    lengths = problem.extras.key_lengths
    if lengths is None:
        lengths = np.broadcast_to(np.int64(problem.key.shape[-2]), rows)
    offsets = problem.extras.query_offset
    if not isinstance(offsets, np.ndarray):
        offsets = np.broadcast_to(np.int64(offsets), rows)
    walks["lengths"], walks["offsets"] = lengths.strides, offsets.strides
    record.set(lengths_head=lengths.strides[-1], offsets_head=offsets.strides[-1])
    if factors is not None:
        walks["factors"] = factors.strides[:-1]
        record.set(factors_head=factors.strides[-2])
    batch = rows[:-1]
    # What is not there walks like the query, so that it keeps no batch dims apart.
    steps = [walks.get(name, walks["query"])[: len(batch)] for name in OPERANDS]
    shape, merged = merge_dims(batch, steps)
    record.set(entries=math.prod(batch), entry_rank=len(shape))
    record.point_tables(
        **({} if factors is None else {"factors": factors}),
        lengths=lengths,
        offsets=offsets,
        entry_shape=np.array([*shape, 1], np.int64),
        entry_strides=np.array([*itertools.chain(*merged), 0], np.int64),
    )
