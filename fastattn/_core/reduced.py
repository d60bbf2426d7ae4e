"""Scores with the axes that are summed over moved last: what softmax and its relatives work on."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .arrays import FLOAT64, as_array, broadcast_shapes, check_dtype, check_size, dtypes, is_bool
from .masks import check_mask_dtype, warn_of_zeros_and_ones

__all__ = ["Rows", "order_of", "rows_beyond_reach", "within_reach"]


class Rows(NamedTuple):
    """Scores with the reduced axes moved last and joined into one: (*outer, n)."""

    x: np.ndarray
    mask: np.ndarray | None
    factors: np.ndarray | None
    inputs: tuple[np.ndarray | None, ...]  # as given, for telling overlaps
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    outer: tuple[int, ...]
    dtype: np.dtype

    def reduced(self, keepdims: bool) -> tuple[int, ...]:
        """Return the shape without the reduced axes, or with size 1 there."""
        return tuple(
            1 if at in self.axes else size
            for at, size in enumerate(self.shape)
            if keepdims or at not in self.axes
        )

    @classmethod
    def of(cls, x: Any, axis: Any, mask: Any, factors: Any = None) -> Rows:
        """Check the operands and view them as rows."""
        x = as_array("x", x)
        _, dtype = dtypes(("x", x.dtype, x.shape))
        if factors is not None:
            x, factors, dtype = _broadcast_factors(x, factors)
        axes = _axes(axis, x.shape)
        check_size(x.shape, dtype, "x")
        given = x
        if mask is not None:
            mask = as_array("mask", mask)
            check_mask_dtype(mask.dtype, mask.shape)
            warn_of_zeros_and_ones(mask)
        inputs = (given, mask)
        if mask is not None:
            check_size(x.shape, mask.dtype, "the mask")
            try:
                mask = np.broadcast_to(mask, x.shape)
            except ValueError:
                raise ValueError(
                    f"mask of shape {mask.shape} does not broadcast to x's {x.shape}: every dim "
                    "must be equal or 1"
                ) from None
        outer = tuple(size for at, size in enumerate(x.shape) if at not in axes)
        length = math.prod(x.shape[at] for at in axes)
        joined = (*outer, length)
        x = np.broadcast_to(_joined(x, axes, joined), joined)
        if mask is not None:
            mask = np.broadcast_to(_joined(mask, axes, joined), joined)
        if factors is not None:
            factors = _joined(factors, axes, joined)
        return cls(x, mask, factors, inputs, given.shape, axes, outer, dtype)


# An exponential that underflows beside a factor of up to 2 to this power counts for nothing.
_LARGEST_POWER = 250


def rows_beyond_reach(factors: np.ndarray) -> np.ndarray | None:
    """Say which rows, (*outer), have a factor that could make up for a lost exponential.

    None: no row has one.
    """
    if factors.dtype.itemsize < 8 or factors.dtype.kind != "f":
        return None
    beyond = _is_far(factors).any(axis=-1)
    return np.asarray(beyond) if beyond.any() else None


def within_reach(
    rows: Rows, scale: float, some: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the scaled scores, factors and mask of some rows, (number, n), with no such factor.

    Powers of two of those are taken into the scores, factor by factor.
    """
    assert rows.factors is not None
    factors, scores = rows.factors[some], rows.x[some].astype(FLOAT64) * scale
    far, (mantissa, power) = _is_far(factors), np.frexp(factors)
    scores = np.where(far, scores + power * math.log(2), scores)
    mask = None if rows.mask is None else rows.mask[some]
    return scores, np.where(far, mantissa, factors), mask


def _is_far(factors: np.ndarray) -> np.ndarray:
    far: np.ndarray = (abs(np.frexp(factors)[1]) > _LARGEST_POWER) & np.isfinite(factors)
    return far


def _broadcast_factors(x: np.ndarray, b: Any) -> tuple[np.ndarray, np.ndarray, np.dtype]:
    """Broadcast scores and factors; returns the dtype of the result too.

    Factors take part in it as NumPy's promotion has it: small integers as small floats, and Python
    numbers not at all.
    """
    factors, operands = as_array("b", b), [("x", x.dtype, x.shape)]
    if check_dtype("b", factors.dtype, factors.shape):
        dtype = factors.dtype
    else:
        dtype = np.result_type(factors.dtype, np.float16)
    if type(b) not in (bool, int, float) and factors.dtype.kind != "b":
        operands.append(("b", dtype, factors.shape))
    try:
        shape = broadcast_shapes(x.shape, factors.shape)
    except ValueError:
        raise ValueError(
            f"b of shape {factors.shape} does not broadcast with x of shape {x.shape}: every dim "
            "must be equal or 1; give a factor per row an axis to stand on, `b[:, None]`"
        ) from None
    for name, array in (("x", x), ("b", factors)):
        check_size(shape, array.dtype, name)
    return np.broadcast_to(x, shape), np.broadcast_to(factors, shape), dtypes(*operands)[1]


def _axes(axis: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the reduced axes, non-negative and ascending."""
    if axis is None:
        return tuple(range(len(shape)))
    try:
        if any(map(is_bool, axis if isinstance(axis, (list, tuple)) else (axis,))):
            raise TypeError
        if not shape and axis in (0, -1):
            return ()
        return tuple(sorted(np.lib.array_utils.normalize_axis_tuple(axis, len(shape), "axis")))
    except (np.exceptions.AxisError, OverflowError):
        raise ValueError(
            f"axis {axis!r} does not exist in x of shape {shape}: from {-len(shape)} to "
            f"{len(shape) - 1}, a tuple of these, or None for all"
        ) from None
    except ValueError:
        raise ValueError(f"axis {axis!r} names an axis of x of shape {shape} twice") from None
    except TypeError:
        raise TypeError(f"axis must be an int, a tuple of ints or None, not {axis!r}") from None


def order_of(axes: tuple[int, ...], dims: int) -> tuple[int, ...]:
    return (*(at for at in range(dims) if at not in axes), *axes)


def _joined(x: np.ndarray, axes: tuple[int, ...], joined: tuple[int, ...]) -> np.ndarray:
    return x.transpose(order_of(axes, x.ndim)).reshape(joined)
