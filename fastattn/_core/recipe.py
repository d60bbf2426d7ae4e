"""The part of one call's validation that its shapes, dtypes and options decide: the recipe.

`fastattn._core.problem` tells how signature, recipe and problem belong together.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from fastattn._core.arrays import (
    Layout,
    broadcast_shapes,
    check_dims,
    check_size,
    deliver,
    dtypes,
    result_array,
    view,
)
from fastattn._core.environment import default_environment
from fastattn._core.kept import Bounded
from fastattn._core.layouts import layout, mask_layout
from fastattn._core.options import Options
from fastattn._core.scales import broadcast_scales, is_small
from fastattn._core.visibility import alignment_of

__all__ = [
    "ONE_NUMBER_PER_KEY",
    "Recipe",
    "Results",
    "default_scale",
    "recipe",
    "signature",
]

# Said of a value with one dim.
ONE_NUMBER_PER_KEY = ": one number per key is `np.asarray(value)[:, None]`"

_empty = np.empty


class Described(NamedTuple):
    """How the operands of a call are laid out. Strides are None where the shape says them."""

    query_shape: tuple[int, ...]
    query_strides: tuple[int, ...] | None
    query_dtype: np.dtype
    key_shape: tuple[int, ...]
    key_strides: tuple[int, ...] | None
    key_dtype: np.dtype
    value_shape: tuple[int, ...]
    value_strides: tuple[int, ...] | None
    value_dtype: np.dtype
    mask: tuple[Any, ...] | None  # shape, strides, dtype


class Given(NamedTuple):
    """What a signature knows of arrays that it does not look at."""

    key_lengths: bool
    query_offset: bool
    alibi_slopes: bool
    is_part: bool  # the keys are a part of a longer axis (attention_state)


Results = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # output, lse, weights


class Recipe(NamedTuple):
    """What follows from a signature alone."""

    batch: tuple[int, ...]  # batch dims as the caller sees them, heads included
    outer: tuple[int, ...]  # batch dims without heads
    kv_heads: int
    groups: int
    rows: int
    keys: int
    query: Layout
    key: Layout
    value: Layout
    mask: Layout | None
    alignment: str  # "zero", "given" or "bottom_right"
    positioned: bool  # some option asks where a query stands
    options: Options  # resolved
    dtype: np.dtype  # to compute in, and of lse
    output_dtype: np.dtype
    output_shape: tuple[int, ...]
    lse_shape: tuple[int, ...]
    weights_shape: tuple[int, ...]
    is_part: bool

    def allocate(self, out: Any, inputs: tuple[np.ndarray | None, ...]) -> Results:
        """Make output, lse and weights of the caller's shapes; `out` serves where it can."""
        return (
            _empty(self.output_shape, self.output_dtype)
            if out is None
            else result_array(out, self.output_shape, self.output_dtype, inputs),
            _empty(self.lse_shape, self.dtype) if self.options.return_lse else None,
            _empty(self.weights_shape, self.dtype) if self.options.return_weights else None,
        )

    def deliver(
        self,
        output: np.ndarray,
        lse: np.ndarray | None,
        weights: np.ndarray | None,
        out: np.ndarray | None,
    ) -> Any:
        """Return what the caller asked for: the output alone, or a tuple."""
        if out is not None:
            output = deliver(output, out)
        if lse is None and weights is None:
            return output
        if weights is not None and self.output_dtype is not self.dtype:
            with default_environment():
                weights = weights.astype(self.output_dtype)
        return tuple(result for result in (output, lse, weights) if result is not None)

    def canonical(self, results: Results) -> Results:
        """View results as (*batch, Hkv, G, L, ...) for a backend to fill."""
        output, lse, weights = results
        return (
            self._spread(output, 2),
            None if lse is None else self._spread(lse, 1),
            None if weights is None else self._spread(weights, 2),
        )

    def _spread(self, array: np.ndarray, trailing: int) -> np.ndarray:
        shape, strides = array.shape, array.strides
        if len(self.lse_shape) == len(self.batch):
            # A 1-D query: its results have no L axis.
            at = len(self.batch)
            shape, strides = (*shape[:at], 1, *shape[at:]), (*strides[:at], 0, *strides[at:])
        canonical = layout(shape, strides, self.outer, self.kv_heads, self.groups, trailing)
        return view(array, canonical, writeable=True)


def default_scale(similarity: str, features: int) -> float:
    """Return the scale that None stands for."""
    return 1.0 / math.sqrt(features) if similarity == "scaled_dot" and features else 1.0


def signature(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None,
    options: tuple[Any, ...],
    key_lengths: bool = False,
    query_offset: bool = False,
    alibi_slopes: bool = False,
    is_part: bool = False,
) -> tuple[Any, ...]:
    """Make the hashable signature of a call whose arrays are plain ndarrays.

    It is what `Described`, `Options` and `Given` hold, one behind the other: what a call looks like
    before any number in its arrays is read. Flat and bare, since every nested tuple costs a call
    50 ns, and making a named one 0.3 µs.
    """
    return (
        query.shape,
        # No strides where the shape says them: making, hashing, comparing costs 0.1 µs an array.
        None if query.flags.c_contiguous else query.strides,
        query.dtype,
        key.shape,
        None if key.flags.c_contiguous else key.strides,
        key.dtype,
        value.shape,
        None if value.flags.c_contiguous else value.strides,
        value.dtype,
        None if mask is None else (mask.shape, mask.strides, mask.dtype),
        *options,
        key_lengths,
        query_offset,
        alibi_slopes,
        is_part,
    )


_recipes: Bounded[Recipe] = Bounded()


def recipe(call: tuple[Any, ...]) -> Recipe:
    """Return the recipe of a signature, from memory or by full validation."""
    found = _recipes.get(call)
    if found is None:
        found = _make_recipe(call)
        if is_small(found.options.scale):
            _recipes.keep(call, found)
    return found


_OPTIONS_AT = len(Described._fields)
_GIVEN_AT = _OPTIONS_AT + len(Options._fields)


def _make_recipe(call: tuple[Any, ...]) -> Recipe:
    seen = Described._make(call[:_OPTIONS_AT])
    options, given = Options._make(call[_OPTIONS_AT:_GIVEN_AT]), Given._make(call[_GIVEN_AT:])
    q_shape, q_strides = _shape_and_strides(seen.query_shape, seen.query_strides, seen.query_dtype)
    k_shape, k_strides = _shape_and_strides(seen.key_shape, seen.key_strides, seen.key_dtype)
    v_shape, v_strides = _shape_and_strides(seen.value_shape, seen.value_strides, seen.value_dtype)
    dtype, output_dtype = dtypes(
        ("query", seen.query_dtype, q_shape),
        ("key", seen.key_dtype, k_shape),
        ("value", seen.value_dtype, v_shape),
    )
    one_row = len(q_shape) == 1
    if one_row:
        q_shape, q_strides = (1, *q_shape), (0, *q_strides)
    _check_sizes(q_shape, k_shape, v_shape, one_row)
    rows, features = q_shape[-2:]
    keys, value_features = v_shape[-2:]
    outer, heads, kv_heads = _batch(q_shape, k_shape, v_shape, options.enable_gqa)
    groups = heads // kv_heads if kv_heads else 1
    batch = (*outer, heads) if max(len(q_shape), len(k_shape), len(v_shape)) > 2 else ()
    positioned = options.window is not None or given.alibi_slopes
    alignment = alignment_of(
        options.causal,
        positioned,
        given.query_offset,
        rows,
        None if given.is_part else keys,
    )
    if given.is_part and alignment == "bottom_right" and not given.key_lengths:
        raise ValueError(
            'where "bottom_right" is depends on the total number of keys, of which this is a part: '
            "pass it as `key_lengths=total`, or `causal=True, query_offset=n`, with n the position "
            "of query row 0"
        )
    scale: float | np.ndarray = default_scale(options.similarity, features)
    if options.scale is not None:
        scale = broadcast_scales(options.scale, batch)
    if isinstance(scale, np.ndarray):
        scale = view(scale, layout(scale.shape, scale.strides, outer, kv_heads, groups, 0))
    row = () if one_row else (rows,)
    output_shape, weights_shape = (*batch, *row, value_features), (*batch, *row, keys)
    check_size(output_shape, output_dtype)
    if options.return_weights:
        check_size(weights_shape, dtype)
    return Recipe(
        batch=batch,
        outer=outer,
        kv_heads=kv_heads,
        groups=groups,
        rows=rows,
        keys=keys,
        query=layout(q_shape, q_strides, outer, kv_heads, groups, 2),
        key=layout(k_shape, k_strides, outer, kv_heads, None, 2),
        value=layout(v_shape, v_strides, outer, kv_heads, None, 2),
        mask=seen.mask and mask_layout(seen.mask, outer, heads, batch, groups, (rows, keys)),
        alignment=alignment,
        positioned=positioned or options.causal is not False,
        options=options._replace(
            scale=scale,
            causal=options.causal is not False,
            window=options.window or (None, None),
        ),
        dtype=dtype,
        output_dtype=output_dtype,
        output_shape=output_shape,
        lse_shape=(*batch, *row),
        weights_shape=weights_shape,
        is_part=given.is_part,
    )


def _shape_and_strides(
    shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: np.dtype
) -> Layout:
    if strides is None:
        strides = tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return shape, strides


def _check_sizes(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], one_row: bool
) -> None:
    shown = f"query {query[1:] if one_row else query}, key {key}, value {value}"
    if len(query) < 2 or len(key) < 2 or len(value) < 2:
        raise ValueError(
            f"too few dims: {shown}; query is (..., L, E) or (E,), key (..., S, E), value "
            "(..., S, Ev)" + ONE_NUMBER_PER_KEY * (len(value) == 1)
        )
    check_dims(len(query), len(key), len(value))
    if query[-1] != key[-1]:
        raise ValueError(
            f"query has E = {query[-1]} features and key E = {key[-1]}: {shown}; their last axes "
            "must match, since every query is compared with every key feature by feature (is one "
            "of them transposed?)"
        )
    if key[-2] != value[-2]:
        raise ValueError(
            f"key has S = {key[-2]} keys and value S = {value[-2]}: {shown}; one value row per key "
            "is needed (axis -2 of both)"
        )


def _batch(
    query: tuple[int, ...], key: tuple[int, ...], value: tuple[int, ...], enable_gqa: bool
) -> tuple[tuple[int, ...], int, int]:
    """Return batch dims without heads, query heads, and key heads (fewer: groups share a head)."""
    heads, kv = (shape[-3] if len(shape) > 2 else 1 for shape in (query, key))
    shown = f"query {query}, key {key}, value {value}"
    try:
        outer = broadcast_shapes(query[:-3], key[:-3], value[:-3])
        kv = broadcast_shapes((kv,), value[-3:-2])[0]
        if not enable_gqa:
            heads = broadcast_shapes((heads,), (kv,))[0]
    except ValueError:
        raise ValueError(
            f"batch dims do not broadcast: {shown}; all dims before the last two must be equal, "
            "1 or missing"
            + ("" if enable_gqa else " (fewer key heads than query heads: `enable_gqa=True`)")
        ) from None
    if not enable_gqa:
        # One key head for many query heads is packed once, exactly as if GQA had been asked for.
        return outer, heads, 1 if kv == 1 else heads
    if heads % kv if kv else heads:
        raise ValueError(
            f"grouped heads: the query heads must be a multiple of the key heads, not "
            f"{heads} over {kv}: {shown}; heads are axis -3"
        )
    return outer, heads, kv
