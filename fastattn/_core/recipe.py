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
    finite_number,
    flag,
    result_array,
    view,
)
from fastattn._core.environment import default_environment
from fastattn._core.kept import Bounded
from fastattn._core.layouts import layout, mask_layout
from fastattn._core.scales import (
    LARGEST,
    LEAST_NORMAL,
    Scales,
    broadcast_scales,
    is_positive,
    is_small,
    scale_of,
)
from fastattn._core.visibility import Window, alignment_of, check_causal, check_window

__all__ = [
    "ONE_NUMBER_PER_KEY",
    "SIMILARITIES",
    "Recipe",
    "Results",
    "Signature",
    "check_similarity",
    "default_scale",
    "recipe",
    "signature",
    "spelt",
]

# Said of a value with one dim.
ONE_NUMBER_PER_KEY = ": one number per key is `np.asarray(value)[:, None]`"
SIMILARITIES = ("dot", "scaled_dot", "cosine", "euclidean")

_empty = np.empty


class Signature(NamedTuple):
    """What a call looks like before any number in its arrays is read; hashable."""

    # Flat, since every nested tuple costs a call 50 ns. Strides are None where the shape says them.
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
    similarity: str
    scale: float | Scales | None
    causal: bool | str
    window: Window | None
    softcap: float | None
    enable_gqa: bool
    return_lse: bool
    return_weights: bool
    lengths_given: bool
    offset_given: bool
    alibi_given: bool
    is_part: bool  # the keys are a part of a longer axis (attention_state)


# Of `spelt`, in the order of `Signature`.
Options = tuple[
    str, float | Scales | None, bool | str, Window | None, float | None, bool, bool, bool
]
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
    causal: bool
    window: Window
    similarity: str
    scale: float | np.ndarray  # or (*outer, Hkv, G)
    softcap: float | None
    dtype: np.dtype  # to compute in, and of lse
    output_dtype: np.dtype
    output_shape: tuple[int, ...]
    lse_shape: tuple[int, ...]
    weights_shape: tuple[int, ...]
    return_lse: bool
    return_weights: bool
    is_part: bool

    def allocate(self, out: Any, inputs: tuple[np.ndarray | None, ...]) -> Results:
        """Make output, lse and weights of the caller's shapes; `out` serves where it can."""
        return (
            _empty(self.output_shape, self.output_dtype)
            if out is None
            else result_array(out, self.output_shape, self.output_dtype, inputs),
            _empty(self.lse_shape, self.dtype) if self.return_lse else None,
            _empty(self.weights_shape, self.dtype) if self.return_weights else None,
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


def check_similarity(name: str, similarity: Any) -> None:
    """Raise ValueError unless `similarity` is one of the known words."""
    if type(similarity) is not str or similarity not in SIMILARITIES:
        raise ValueError(
            f"unknown {name} {similarity!r}: one of {', '.join(map(repr, SIMILARITIES))}"
        )


def default_scale(similarity: str, features: int) -> float:
    """Return the scale that None stands for."""
    return 1.0 / math.sqrt(features) if similarity == "scaled_dot" and features else 1.0


def spelt(
    similarity: str = "scaled_dot",
    scale: Any = None,
    causal: Any = False,
    window: Any = None,
    softcap: Any = None,
    enable_gqa: Any = False,
    return_lse: Any = False,
    return_weights: Any = False,
) -> Options:
    """Check the options of a call that no array decides, and bring them to one spelling each.

    1, 1.0 and True are equal and hash alike, so an unchecked `scale=True` would slip through on
    the entry of `scale=1.0`.
    """
    if type(similarity) is not str or similarity not in SIMILARITIES:
        check_similarity("similarity", similarity)
    if scale is not None and not (type(scale) is float and LEAST_NORMAL <= scale <= LARGEST):
        scale = scale_of(scale)
    if causal is not False and causal is not True:
        causal = check_causal(causal)
    if window is not None:
        window = check_window(window)
    if softcap is not None:
        softcap = finite_number("softcap", softcap, "None means no cap")
        if not is_positive(softcap):
            raise ValueError(f"softcap must be positive, not {softcap!r}; None means no cap")
    if enable_gqa is not False and enable_gqa is not True:
        enable_gqa = flag("enable_gqa", enable_gqa)
    if return_lse is not False and return_lse is not True:
        return_lse = flag("return_lse", return_lse)
    if return_weights is not False and return_weights is not True:
        return_weights = flag("return_weights", return_weights)
    return similarity, scale, causal, window, softcap, enable_gqa, return_lse, return_weights


def signature(
    query: np.ndarray,
    key: np.ndarray,
    value: np.ndarray,
    mask: np.ndarray | None,
    options: Options,
    lengths_given: bool = False,
    offset_given: bool = False,
    alibi_given: bool = False,
    is_part: bool = False,
) -> tuple[Any, ...]:
    """Make the hashable signature of a call whose arrays are plain ndarrays.

    The tuple has the order of `Signature`; it is a bare tuple because making a named one costs
    0.3 µs more.
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
        lengths_given,
        offset_given,
        alibi_given,
        is_part,
    )


_recipes: Bounded[Recipe] = Bounded()


def recipe(call: tuple[Any, ...]) -> Recipe:
    """Return the recipe of a signature, from memory or by full validation."""
    found = _recipes.get(call)
    if found is None:
        found = _make_recipe(Signature._make(call))
        if is_small(found.scale):
            _recipes.keep(call, found)
    return found


def _make_recipe(call: Signature) -> Recipe:
    q_shape, q_strides = _shape_and_strides(call.query_shape, call.query_strides, call.query_dtype)
    k_shape, k_strides = _shape_and_strides(call.key_shape, call.key_strides, call.key_dtype)
    v_shape, v_strides = _shape_and_strides(call.value_shape, call.value_strides, call.value_dtype)
    dtype, output_dtype = dtypes(
        ("query", call.query_dtype, q_shape),
        ("key", call.key_dtype, k_shape),
        ("value", call.value_dtype, v_shape),
    )
    one_row = len(q_shape) == 1
    if one_row:
        q_shape, q_strides = (1, *q_shape), (0, *q_strides)
    _check_sizes(q_shape, k_shape, v_shape, one_row)
    rows, features = q_shape[-2:]
    keys, value_features = v_shape[-2:]
    outer, heads, kv_heads = _batch(q_shape, k_shape, v_shape, call.enable_gqa)
    groups = heads // kv_heads if kv_heads else 1
    batch = (*outer, heads) if max(len(q_shape), len(k_shape), len(v_shape)) > 2 else ()
    positioned = call.window is not None or call.alibi_given
    alignment = alignment_of(
        call.causal,
        positioned,
        call.offset_given,
        rows,
        None if call.is_part else keys,
    )
    if call.is_part and alignment == "bottom_right" and not call.lengths_given:
        raise ValueError(
            'where "bottom_right" is depends on the total number of keys, of which this is a part: '
            "pass it as `key_lengths=total`, or `causal=True, query_offset=n`, with n the position "
            "of query row 0"
        )
    scale: float | np.ndarray = default_scale(call.similarity, features)
    if call.scale is not None:
        scale = broadcast_scales(call.scale, batch)
    if isinstance(scale, np.ndarray):
        scale = view(scale, layout(scale.shape, scale.strides, outer, kv_heads, groups, 0))
    row = () if one_row else (rows,)
    output_shape, weights_shape = (*batch, *row, value_features), (*batch, *row, keys)
    check_size(output_shape, output_dtype)
    if call.return_weights:
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
        mask=call.mask and mask_layout(call.mask, outer, heads, batch, groups, (rows, keys)),
        alignment=alignment,
        positioned=positioned or call.causal is not False,
        causal=call.causal is not False,
        window=call.window or (None, None),
        similarity=call.similarity,
        scale=scale,
        softcap=call.softcap,
        dtype=dtype,
        output_dtype=output_dtype,
        output_shape=output_shape,
        lse_shape=(*batch, *row),
        weights_shape=weights_shape,
        return_lse=call.return_lse,
        return_weights=call.return_weights,
        is_part=call.is_part,
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
