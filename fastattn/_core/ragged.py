"""One ragged call, validated and canonical: sequences of any lengths in packed arrays.

Sequence b holds the query rows ``query_splits[b] .. query_splits[b + 1]`` and the keys
``key_splits[b] .. key_splits[b + 1]``, of the packed arrays or, with `key_indices`, of the list of
row numbers into tables. Everything that `fastattn.attention` counts on the key axis counts here
from the sequence's own first key.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastattn._core.arrays import (
    as_array,
    broadcast_shapes,
    check_size,
    flag,
    given_dtype,
    view,
)
from fastattn._core.options import KEY, QUERY, Extras, Options, rows_of
from fastattn._core.places import Packed
from fastattn._core.problem import Problem, arrays, of_heads
from fastattn._core.recipe import Recipe, recipe, signature
from fastattn._core.visibility import LARGEST_POSITION, alignment_of, check_together, positions

__all__ = ["head_major", "ragged_problem"]


def head_major(array: np.ndarray) -> np.ndarray:
    """View a packed (total, H, n) array as (H, total, n), and (total, H) as (H, total)."""
    return array.swapaxes(0, 1) if array.ndim > 1 else array


def ragged_problem(
    query: Any,
    key: Any,
    value: Any,
    options: Options,
    extras: Extras,
    *,
    query_splits: Any,
    key_splits: Any,
    key_indices: Any,
    partial: Any,
) -> tuple[Recipe, Problem, Packed]:
    """Validate a ragged call of checked options; the recipe is of the packed arrays, heads first.

    That recipe knows nothing of positions, which each sequence has for itself.
    """
    query, key, value, _ = arrays(query, key, value, None)
    _check_packed(query, key, value)
    _check_heads(query, key, value, options.enable_gqa)
    query, key, value = (head_major(x) if x.ndim == 3 else x for x in (query, key, value))
    unplaced = options._replace(causal=False, window=None)
    made = recipe(signature(query, key, value, None, unplaced))
    place = _sequences(made, query_splits, key_splits, key_indices, partial)
    problem = Problem(
        query=view(query, made.query),
        key=view(key, made.key),
        value=view(value, made.value),
        mask=None,
        options=made.options._replace(
            causal=options.causal is not False, window=options.window or (None, None)
        ),
        extras=_extras(made, place, options, extras),
        place=place,
        dtype=made.dtype,
        output_shape=_caller_shape(made),
        output_dtype=made.output_dtype,
    )
    return made, problem, place


def _extras(made: Recipe, place: Packed, options: Options, extras: Extras) -> Extras:
    """Check and lay out the small arrays: those of heads, of packed queries and of listed keys."""
    check_together(extras.query_segments, extras.key_segments)
    listed = made.keys if place.indices is None else len(place.indices)
    found: dict[str, Any] = {"query_offset": _offsets(options, extras, place)}
    for row in rows_of(QUERY, KEY):
        ids = getattr(extras, row.name)
        if ids is not None:
            found[row.name] = row.check(ids, (), made.rows if row.kind == QUERY else listed)
    return Extras(**found, **of_heads(made, extras))


def _sequences(
    made: Recipe, query_splits: Any, key_splits: Any, key_indices: Any, partial: Any
) -> Packed:
    """Check where each sequence's queries and keys begin, and which rows of a table these are."""
    partial = flag("partial", partial)
    own = _splits("query_splits", query_splits, made.rows, f"{made.rows} query rows", partial)
    indices, listed, what = None, made.keys, f"{made.keys} packed keys"
    if key_indices is not None:
        indices = _indices(key_indices)
        listed, what = len(indices), f"{len(indices)} key_indices"
    theirs = _splits("key_splits", key_splits, listed, what, partial)
    if len(own) != len(theirs):
        raise ValueError(
            f"query_splits of shape {own.shape} and key_splits of shape {theirs.shape} disagree on "
            "the number of sequences: both need batch + 1 entries"
        )
    if indices is not None:
        _check_indices(indices, theirs, made.keys, key_indices)
    return Packed(own, theirs, indices)


def _caller_shape(made: Recipe) -> tuple[int, ...]:
    shape = made.output_shape
    return shape if len(shape) == 2 else (shape[1], shape[0], shape[2])


def _check_packed(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> None:
    shown = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if any(x.ndim not in (2, 3) for x in (query, key, value)):
        raise ValueError(
            f"packed arrays are (total, heads, features) or (total, features): {shown}; lay "
            "sequences end to end, and say with splits where each begins"
        )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query has E = {query.shape[-1]} features and key E = {key.shape[-1]}: {shown}; "
            "their last axes must match"
        )
    if len(key) != len(value):
        raise ValueError(
            f"key has {len(key)} rows and value {len(value)}: {shown}; one value row per key is "
            "needed (axis 0 of both)"
        )


def _check_heads(query: np.ndarray, key: np.ndarray, value: np.ndarray, enable_gqa: bool) -> None:
    """Refuse what the recipe would, which sees the heads first and would show other shapes."""
    heads, key_heads, value_heads = (x.shape[1] if x.ndim > 2 else 1 for x in (query, key, value))
    shown = f"query {query.shape}, key {key.shape}, value {value.shape}; heads are axis 1"
    try:
        (kv,) = broadcast_shapes((key_heads,), (value_heads,))
        if not enable_gqa:
            broadcast_shapes((heads,), (kv,))
    except ValueError:
        raise ValueError(
            f"numbers of heads must be equal or 1: {shown}"
            + ("" if enable_gqa else " (fewer key heads than query heads: `enable_gqa=True`)")
        ) from None
    if enable_gqa and (heads % kv if kv else heads):
        raise ValueError(
            f"grouped heads: the query heads must be a multiple of the key heads, not "
            f"{heads} over {kv}: {shown}"
        )


def _splits(name: str, x: Any, total: int, what: str, partial: bool) -> np.ndarray:
    """Return offsets as an int64 copy: never decreasing, from 0 to total, or within if partial."""
    array = as_array(name, x)
    if array.ndim != 1 or not len(array):
        raise ValueError(
            f"{name} of shape {array.shape} must hold batch + 1 offsets: sequence b is "
            f"{name}[b]:{name}[b + 1], `np.r_[0, np.cumsum(lengths)]`"
        )
    dtype = given_dtype(x, array)
    if dtype.kind not in "iu":
        raise TypeError(
            f"{name} of shape {array.shape} has dtype {dtype}; it must hold integers: "
            f"`np.asarray({name}).astype(np.int64)`, once every entry is a whole number"
        )
    check_size(array.shape, np.dtype(np.int64), name)
    # A copy, though other threads rarely write splits: a kernel trusts them with its addresses.
    splits = array.astype(np.int64)
    if array.dtype == np.uint64 and int(array.max()) > LARGEST_POSITION:
        raise ValueError(f"{name} ends at {int(array.max())}, beyond the {what}")
    falls = np.flatnonzero(splits[1:] < splits[:-1])
    if len(falls):
        b, lengths = int(falls[0]), _lengths(name, splits, total)
        raise ValueError(
            f"{name} decreases from {splits[b]} to {splits[b + 1]} at entry {b + 1}: sequence {b} "
            f"would have {splits[b + 1] - splits[b]} rows; offsets never decrease (are these "
            f"lengths? `np.r_[0, np.cumsum({lengths})]`)"
        )
    if splits[0] < 0 or splits[-1] > total:
        raise ValueError(
            f"{name} runs from {splits[0]} to {splits[-1]}, outside the {what} (0..{total})"
        )
    if not partial and (splits[0] > 0 or splits[-1] < total):
        lengths = _lengths(name, splits, total)
        raise ValueError(
            f"{name} runs from {splits[0]} to {splits[-1]} and there are {what}, of which some "
            "would be in no sequence: offsets of sequences that lie end to end are "
            f"`np.r_[0, np.cumsum({lengths})]`; if the rest is left out on purpose, as by a slice "
            "of Arrow lists, `partial=True`"
        )
    return splits


def _lengths(name: str, splits: np.ndarray, total: int) -> str:
    """Name what splits are made of: themselves, if they are lengths."""
    return name if int(splits.sum()) == total else "lengths"


def _indices(x: Any) -> np.ndarray:
    array = as_array("key_indices", x)
    dtype = given_dtype(x, array)
    if array.ndim != 1 or dtype.kind not in "iu":
        raise TypeError(
            f"key_indices of shape {array.shape} and dtype {dtype} must be one flat list of "
            "integers, row numbers of the key and value tables, cut into sequences by key_splits"
        )
    check_size(array.shape, np.dtype(np.int64), "key_indices")
    # Read in place where it can be: a list of indices may be larger than the tables.
    plain = array.flags.c_contiguous and array.flags.aligned and array.dtype.isnative
    if plain and array.dtype in (np.int32, np.int64):
        return array
    if array.dtype.kind == "u" and array.itemsize == 8:
        array = array.clip(max=LARGEST_POSITION)  # beyond any table, and no negative int64
    return array.astype(np.int64)


def _check_indices(indices: np.ndarray, splits: np.ndarray, rows: int, given: Any) -> None:
    first, last = int(splits[0]), int(splits[-1])
    used = indices[first:last]
    if not len(used) or (int(used.min()) >= 0 and int(used.max()) < rows):
        return
    at = first + int(np.argmax((used < 0) | (used >= rows)))
    sequence = int(np.searchsorted(splits, at, side="right")) - 1
    found = as_array("key_indices", given)[at]
    raise ValueError(
        f"key_indices[{at}] is {found} (sequence {sequence}), outside the tables' rows "
        f"0..{rows - 1}: indices count from 0 and negative ones do not wrap"
    )


def _offsets(options: Options, extras: Extras, place: Packed) -> np.ndarray | int:
    """Where each sequence's query row 0 stands on its own key axis."""
    causal, given, (own, keys, _) = options.causal, extras.query_offset, place
    # Whether L = S is asked sequence by sequence, below.
    positioned = options.window is not None or extras.alibi_slopes is not None
    alignment = alignment_of(causal, positioned, given is not None, 0, 0)
    batch = len(own) - 1
    if given is not None:
        offset = positions(
            "query_offset", given, (batch,), -LARGEST_POSITION, LARGEST_POSITION, "2**53"
        )
        if alignment == "given":
            return np.broadcast_to(offset, batch) if offset.ndim else int(offset)
    elif alignment == "bottom_right":
        return np.diff(keys) - np.diff(own)
    elif causal is True:
        differ = np.flatnonzero(np.diff(own) != np.diff(keys))
        if len(differ):
            b = int(differ[0])
            alignment_of(True, False, False, int(own[b + 1] - own[b]), int(keys[b + 1] - keys[b]))
    return 0
