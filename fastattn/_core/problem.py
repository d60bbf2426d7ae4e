"""One attention call, validated and canonical.

The seam of small calls
-----------------------
Validation comes in two parts, so that a loop of small calls pays for it once:

1. ``signature(...)`` turns the arguments into one hashable tuple: shapes, strides and dtypes of
   the arrays, and the options. It looks at no number inside an array.
2. ``recipe(signature)`` is everything that follows from the signature alone: dtype, canonical
   layouts, output shapes, resolved scale and alignment. All errors about shapes, dtypes and
   options are raised here. Recipes are kept, so a second call of the same signature is a dict
   lookup.
3. ``bind(recipe, ...)`` adds the arrays of this call, and checks the only values that can be
   wrong, `key_lengths` and `query_offset`. Its result is the `Problem` that a backend plans.

A backend whose `Execution.repeat()` returns a function offers more: that function is kept
(`fastattn._core.kept`), and later calls of the same options and layouts, if they carry no per-batch
arrays, go straight from the lookup to it, without a `Problem`. Only the arrays' addresses differ
between such calls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastattn._core.arrays import Layout, as_array, per_head, view
from fastattn._core.layouts import layout
from fastattn._core.masks import as_mask, warn_of_zeros_and_ones
from fastattn._core.pages import Pages
from fastattn._core.recipe import Recipe
from fastattn._core.visibility import (
    LARGEST_POSITION,
    check_together,
    positions,
    segment_ids,
)

__all__ = ["NO_EXTRAS", "Extras", "Gathered", "Problem", "arrays", "bind"]

_ndarray = np.ndarray
# query, key, value, mask
Operands = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


class Extras(NamedTuple):
    """The small arrays of one call, over its batch, heads or rows; as the caller gave them."""

    key_lengths: Any = None
    query_offset: Any = None
    query_segments: Any = None
    key_segments: Any = None
    alibi_slopes: Any = None
    sinks: Any = None

    def given(self) -> tuple[bool, bool, bool]:
        """Tell a signature what it needs to know of them."""
        return (
            self.key_lengths is not None,
            self.query_offset is not None,
            self.alibi_slopes is not None,
        )


NO_EXTRAS = Extras()


class Gathered(NamedTuple):
    """Keys and values that are rows of tables, in the order of a list of row numbers."""

    indices: np.ndarray  # int32 or int64, contiguous
    rows: int  # of the tables


class Problem(NamedTuple):
    """One attention call, validated and canonical; arrays are read-only views, never copies."""

    query: np.ndarray  # (*batch, Hkv, G, L, E); batch dims broadcast (zero strides); any storage
    key: np.ndarray  # (*batch, Hkv, S, E)
    value: np.ndarray  # (*batch, Hkv, S, Ev)
    mask: np.ndarray | None  # (*batch, Hkv, G, L, S), bool or float
    key_lengths: np.ndarray | None  # int64 (*batch, Hkv, G), within 0..S
    query_offset: np.ndarray | int  # int64 (*batch, Hkv, G), or one int; 0 where nothing asks
    causal: bool
    window: tuple[int | None, int | None]  # (left, right), None unbounded
    similarity: str
    scale: float | np.ndarray  # resolved, never None; or float64 (*batch, Hkv, G)
    softcap: float | None
    dtype: np.dtype  # compute dtype: float32 or float64
    output_shape: tuple[int, ...]  # what the caller gets
    output_dtype: np.dtype
    return_lse: bool
    return_weights: bool
    query_segments: np.ndarray | None = None  # int64 (*batch, Hkv, G, L)
    key_segments: np.ndarray | None = None  # int64 (*batch, Hkv, G, S)
    alibi_slopes: np.ndarray | None = None  # (*batch, Hkv, G), compute dtype
    sinks: np.ndarray | None = None  # (*batch, Hkv, G), compute dtype
    pages: Pages | None = None  # then key and value say shapes and dtypes only
    gathered: Gathered | None = None  # then key and value are tables, and their S that of the list
    products: str = ""  # how operands are multiplied: the engine's choice (its `variants`)


def bind(
    recipe: Recipe,
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None,
    extras: Extras = NO_EXTRAS,
    key_start: int = 0,
) -> Problem:
    """Join a recipe with the arrays of one call; checks the values of the small ones.

    `key_start` is the position of key 0 of a part; the problem is in the part's own coordinates.
    """
    offset, lengths = _positions(recipe, extras, key_start)
    if mask is not None:
        warn_of_zeros_and_ones(mask)
    problem_extras: dict[str, np.ndarray | None] = {}
    if extras is not NO_EXTRAS:
        problem_extras = _extras(recipe, extras)
    return Problem(
        view(query, recipe.query),
        view(key, recipe.key),
        view(value, recipe.value),
        None if mask is None or recipe.mask is None else view(mask, recipe.mask),
        lengths,
        offset,
        recipe.causal,
        recipe.window,
        recipe.similarity,
        recipe.scale,
        recipe.softcap,
        recipe.dtype,
        recipe.output_shape,
        recipe.output_dtype,
        recipe.return_lse,
        recipe.return_weights,
        **problem_extras,  # type: ignore[arg-type]
    )


def _positions(
    recipe: Recipe, extras: Extras, key_start: int
) -> tuple[np.ndarray | int, np.ndarray | None]:
    """Resolve where row 0 stands and how many keys there are, in the coordinates of a part."""
    rows, keys, batch = recipe.rows, recipe.keys, recipe.batch
    lengths: Any = None
    if extras.key_lengths is not None:
        largest, bound = (
            (keys, f"S = {keys}") if not recipe.is_part else (LARGEST_POSITION, "2**53")
        )
        lengths = positions("key_lengths", extras.key_lengths, batch, 0, largest, bound)
    offset: Any = 0
    if extras.query_offset is not None:
        offset = positions(
            "query_offset", extras.query_offset, batch, -LARGEST_POSITION, LARGEST_POSITION, "2**53"
        )
    if recipe.alignment == "bottom_right":
        offset = (keys if lengths is None else lengths) - rows
    elif recipe.alignment == "zero":
        offset = 0
    if recipe.positioned:
        offset = offset - key_start
    if lengths is not None:
        if recipe.is_part:
            lengths = np.clip(lengths - key_start, 0, keys)
        lengths = _per_batch(lengths, recipe)
    if isinstance(offset, (np.ndarray, np.integer)):
        offset = _per_batch(np.asarray(offset), recipe) if np.ndim(offset) else int(offset)
    return offset, lengths


def _extras(recipe: Recipe, extras: Extras) -> dict[str, np.ndarray | None]:
    """Check and lay out what is not about positions: segments, slopes and sinks."""
    check_together(extras.query_segments, extras.key_segments)
    found: dict[str, np.ndarray | None] = {}
    for name, length in (("query_segments", recipe.rows), ("key_segments", recipe.keys)):
        ids = getattr(extras, name)
        if ids is not None:
            if np.ndim(ids) == 0 and len(recipe.lse_shape) == len(recipe.batch):
                ids = np.reshape(ids, 1)  # a 1-D query has no L axis
            ids = segment_ids(name, ids, recipe.batch, length)
            ids = view(ids, _over_batch(ids, recipe, 1))
        found[name] = ids
    for name in ("alibi_slopes", "sinks"):
        numbers = getattr(extras, name)
        if numbers is not None:
            numbers = per_head(name, numbers, recipe.batch, recipe.dtype, name == "sinks")
            numbers = view(numbers, _over_batch(numbers, recipe, 0))
        found[name] = numbers
    return found


def _over_batch(array: np.ndarray, recipe: Recipe, trailing: int) -> Layout:
    """Lay an array that broadcasts to the batch dims out as (*batch, Hkv, G, ...)."""
    shape, strides = layout(
        array.shape, array.strides, recipe.outer, recipe.kv_heads, recipe.groups, trailing
    )
    return shape, strides


def _per_batch(array: np.ndarray, recipe: Recipe) -> np.ndarray:
    """View one integer, or integers over the batch, as (*batch, Hkv, G)."""
    array = np.array(array, dtype=np.int64, order="C")
    return view(array, _over_batch(array, recipe, 0))


def arrays(query: Any, key: Any, value: Any, mask: Any) -> Operands:
    """Return the operands as plain ndarrays; nothing is copied that already is one."""
    if type(query) is not _ndarray:
        query = as_array("query", query)
    if type(key) is not _ndarray:
        key = as_array("key", key)
    if type(value) is not _ndarray:
        value = as_array("value", value)
    if mask is not None and type(mask) is not _ndarray:
        mask = as_mask(mask, query.shape, key.shape[-2] if key.ndim > 1 else 0)
    return query, key, value, mask
