"""How the keys and values of a call are read: the one place where it is decided, and why.

The choice stands in the call's record, whose words kernels obey, and in its plan, which
`fastattn.explain` shows. It rests on dtypes, layouts, options and the rows of a task, never on the
number of keys. No bit of a result depends on it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastattn._core.constants import BLOCK_ROWS, DECODE_BYTES, DECODE_FEATURES, DECODE_ROWS, LANES
from fastattn._core.places import Gathered, Packed, Pages
from fastattn._core.problem import Problem

from . import variants
from .layouts import KEY_WAYS, PANEL_WAYS, VALUE_WAYS

__all__ = ["Operands", "Way", "choose", "operands_of"]


class Stored(NamedTuple):
    """How the rows of keys or of values lie in memory."""

    native: bool  # numbers as they are computed with
    small: bool  # halves in the machine's byte order, or int8 with scales
    contiguous: bool  # within a row
    columns: bool  # one number a row lies beside that of the next row
    item: int  # bytes of an element


class Operands(NamedTuple):
    """All of a call that its way depends on, but the rows of a task."""

    products: str
    similarity: str
    item: int  # bytes of a number computed with
    gathered: bool  # rows of tables, by a list
    paged: bool
    documents: bool
    features: int
    value_features: int
    key: Stored
    value: Stored


class Way(NamedTuple):
    """How keys and values are read.

    Attributes
    ----------
    products
        What is multiplied: `float32`, `float64`, or bfloat16 in `pairs`.
    keys
        How queries meet them: `packed` in panels that all rows of a task share; or where they lie,
        by few rows (`decode`; `decode_small` for halves and int8, widened in registers).
    panels
        What panels are packed from, should there be any: keys `in place`, `widened` in registers
        on the way, or `staged`, copied row by row first.
    values
        `in place`; `staged`, copied once for all blocks of rows; staged `late`, when they are
        fused; or `decode_small`, as keys.
    by_columns
        Whether values are copied feature by feature, each of which lies in one piece.
    why
        Of keys, panels and values: why they are not read as one would like best.
    """

    products: str
    keys: str
    panels: str
    values: str
    by_columns: bool
    why: tuple[str, str, str]

    def __repr__(self) -> str:
        columns = ", by columns" if self.by_columns else ""
        told = (
            f"{name} {way}{more}{f' ({reason})' if reason else ''}"
            for name, way, more, reason in zip(
                ("keys", "panels", "values"),
                (self.keys, self.panels, self.values),
                ("", "", columns),
                self.why,
                strict=True,
            )
        )
        return f"<Way: {self.products}; {'; '.join(told)}>"

    def words(self) -> dict[str, int]:
        """Spell it as words of a record."""
        return {
            "key_way": KEY_WAYS.index(self.keys),
            "panel_way": PANEL_WAYS.index(self.panels),
            "value_way": VALUE_WAYS.index(self.values),
            "value_columns": int(self.by_columns),
        }

    @property
    def copies_keys(self) -> bool:
        """Whether scratch has room for rows of keys that are copied before they are packed."""
        return self.panels != "in place"

    @property
    def copies_values(self) -> bool:
        """Whether scratch has room for values."""
        return self.values != "in place"


# Keys that are widened while they are packed have at least so many bytes.
_WIDENED_BYTES = 16

# What stands against a way, in words: the first that holds is the reason.
_Obstacles = tuple[tuple[Callable[[Operands, int], bool], str], ...]

_MANY_ROWS = (
    lambda one, rows: rows > DECODE_ROWS,
    f"a task has more than {DECODE_ROWS} rows, which share what is packed",
)
_GATHERED = (lambda one, rows: one.gathered, "rows are listed")
_NOT_DOT = (
    lambda one, rows: one.similarity not in ("dot", "scaled_dot"),
    "the similarity is no plain product",
)
_DECODE_SMALL: _Obstacles = (
    _MANY_ROWS,
    _NOT_DOT,
    _GATHERED,
    (lambda one, rows: not one.key.contiguous, "the features of a key lie apart"),
    (
        lambda one, rows: one.features == 0 or one.features * one.key.item % DECODE_BYTES != 0,
        f"the bytes of a key are no multiple of {DECODE_BYTES}",
    ),
)
_DECODE: _Obstacles = (
    _MANY_ROWS,
    _NOT_DOT,
    _GATHERED,
    (lambda one, rows: not one.key.native, "keys are of another dtype or byte order"),
    (lambda one, rows: not one.key.contiguous, "the features of a key lie apart"),
    (lambda one, rows: one.documents, "there are documents"),
    (
        lambda one, rows: one.features == 0 or one.features % 4 != 0,
        "features are no multiple of 4",
    ),
)
_FUSE_SMALL: _Obstacles = (
    _MANY_ROWS,
    _GATHERED,
    (lambda one, rows: not one.value.contiguous, "the features of a value lie apart"),
    (
        lambda one, rows: one.value_features % DECODE_FEATURES != 0,
        f"features of a value are no multiple of {DECODE_FEATURES}",
    ),
)
_IN_PLACE: _Obstacles = (
    _GATHERED,
    (lambda one, rows: not one.value.native, "values are of another dtype or byte order"),
    (lambda one, rows: not one.value.contiguous, "the features of a value lie apart"),
    (
        lambda one, rows: one.value_features % LANES != 0,
        f"features of a value are no multiple of {LANES}",
    ),
)


def _first(obstacles: _Obstacles, operands: Operands, rows: int) -> str:
    """Say what stands against a way; nothing where it can be gone."""
    return next((reason for holds, reason in obstacles if holds(operands, rows)), "")


@functools.lru_cache(maxsize=256)
def choose(operands: Operands, rows: int) -> Way:
    """Decide how tasks of so many rows, at most, read the keys and values of a call."""
    one = operands
    if one.item == 4 and one.key.small:
        keys, no_decode = "decode_small", _first(_DECODE_SMALL, one, rows)
    else:
        keys, no_decode = "decode", _first(_DECODE, one, rows)
    if no_decode:
        keys = "packed"
    panels, not_plain = _panels(one)
    values = "in place"
    not_in_place = _first(_IN_PLACE, one, rows)
    if not_in_place:
        values = "late" if rows <= BLOCK_ROWS else "staged"
        if one.item == 4 and one.value.small:
            no_small = _first(_FUSE_SMALL, one, rows)
            values, not_in_place = (values, no_small) if no_small else ("decode_small", "")
    by_columns = values in ("late", "staged") and one.value.columns and one.products != "pairs"
    by_columns = by_columns and not (one.gathered or one.paged)
    return Way(one.products, keys, panels, values, by_columns, (no_decode, not_plain, not_in_place))


def _panels(one: Operands) -> tuple[str, str]:
    """Decide what panels of keys are packed from, and why."""
    if one.gathered:
        return "staged", "rows are listed"
    if one.products == "pairs":
        if one.key.small and one.key.contiguous and one.features % 2 == 0:
            return "in place", ""
        return "staged", "pairs of features do not lie as one word each"
    if one.key.native or not (one.paged or one.key.contiguous):
        return "in place", ""
    if one.key.small and one.features * one.key.item >= _WIDENED_BYTES:
        return "widened", "keys are of a small dtype"
    return "staged", "keys are of another dtype or byte order"


def operands_of(products: tuple[str, ...], problem: Problem) -> Operands:
    """Look at how the operands of a problem lie, where these variants are in use."""
    key, value, dtype, place = problem.key, problem.value, problem.dtype, problem.place
    if isinstance(place, Pages):
        stored, scaled = (place.dtype, place.dtype), place.key_scale is not None
        steps = place.dtype.itemsize, place.dtype.itemsize
    else:
        stored, scaled = (key.dtype, value.dtype), False
        steps = key.strides[-1], value.strides[-1]
    gathered = isinstance(place, Gathered) or (
        isinstance(place, Packed) and place.indices is not None
    )
    return Operands(
        variants.choose(products, problem),
        problem.options.similarity,
        dtype.itemsize,
        gathered,
        isinstance(place, Pages),
        problem.extras.query_segments is not None,
        key.shape[-1],
        value.shape[-1],
        _stored(stored[0], dtype, steps[0], key.strides[-2], scaled, key.shape[-1]),
        _stored(stored[1], dtype, steps[1], value.strides[-2], scaled, value.shape[-1]),
    )


def _stored(
    dtype: np.dtype, computed: np.dtype, step: int, row: int, scaled: bool, features: int
) -> Stored:
    item, computed_item = dtype.itemsize, computed.itemsize
    return Stored(
        native=dtype == computed and dtype.isnative,
        small=scaled or _is_half(dtype),
        contiguous=step == item or features == 0,
        columns=step != computed_item and row == computed_item,
        item=item,
    )


@functools.cache  # a dtype's name costs microseconds
def _is_half(dtype: np.dtype) -> bool:
    return dtype.name in ("float16", "bfloat16") and dtype.isnative
