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

from fastattn._core.arrays import Layout, as_array, view
from fastattn._core.layouts import layout
from fastattn._core.masks import as_mask, warn_of_zeros_and_ones
from fastattn._core.options import HEAD, KEY, NO_EXTRAS, QUERY, Extras, Options, rows_of
from fastattn._core.places import DENSE, Place
from fastattn._core.recipe import Recipe
from fastattn._core.visibility import LARGEST_POSITION, check_together, positions

__all__ = ["Problem", "arrays", "bind", "of_heads"]

_ndarray = np.ndarray
# query, key, value, mask
Operands = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]


class Problem(NamedTuple):
    """One attention call, validated and canonical; arrays are read-only views, never copies."""

    query: np.ndarray  # (*batch, Hkv, G, L, E); batch dims broadcast (zero strides); any storage
    key: np.ndarray  # (*batch, Hkv, S, E)
    value: np.ndarray  # (*batch, Hkv, S, Ev)
    mask: np.ndarray | None  # (*batch, Hkv, G, L, S), bool or float
    options: Options  # resolved
    extras: Extras  # laid out
    place: Place  # where keys and values lie, by which shapes may mean something else
    dtype: np.dtype  # compute dtype: float32 or float64
    output_shape: tuple[int, ...]  # what the caller gets
    output_dtype: np.dtype


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
    others = {} if extras is NO_EXTRAS else _others(recipe, extras)
    return Problem(
        view(query, recipe.query),
        view(key, recipe.key),
        view(value, recipe.value),
        None if mask is None or recipe.mask is None else view(mask, recipe.mask),
        recipe.options,
        Extras(query_offset=offset, key_lengths=lengths, **others),
        DENSE,
        recipe.dtype,
        recipe.output_shape,
        recipe.output_dtype,
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


def _others(recipe: Recipe, extras: Extras) -> dict[str, np.ndarray]:
    """Check and lay out what is not about positions: what queries, keys and heads have."""
    check_together(extras.query_segments, extras.key_segments)
    found: dict[str, np.ndarray] = {}
    for row in rows_of(QUERY, KEY):
        ids = getattr(extras, row.name)
        if ids is None:
            continue
        if as_array(row.name, ids).ndim == 0 and len(recipe.lse_shape) == len(recipe.batch):
            ids = as_array(row.name, ids).reshape(1)  # a 1-D query has no L axis
        ids = row.check(ids, recipe.batch, recipe.rows if row.kind == QUERY else recipe.keys)
        found[row.name] = view(ids, _over_batch(ids, recipe, 1))
    return found | of_heads(recipe, extras)


def of_heads(recipe: Recipe, extras: Extras) -> dict[str, np.ndarray]:
    """Check and lay out what heads have."""
    found: dict[str, np.ndarray] = {}
    for row in rows_of(HEAD):
        numbers = getattr(extras, row.name)
        if numbers is not None:
            numbers = row.check(numbers, recipe.batch, recipe.dtype)
            found[row.name] = view(numbers, _over_batch(numbers, recipe, 0))
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
