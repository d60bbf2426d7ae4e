"""Turning scores into weights: softmax and its logarithms, as SciPy defines them, with a mask."""

import decimal
from decimal import Decimal
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastattn.reference.shapes import broadcast_shapes

__all__ = ["log_of_sum", "log_softmax", "logsumexp", "masked", "softmax"]

Float64Array = NDArray[np.float64]
Axis = int | tuple[int, ...] | None


def softmax(
    x: ArrayLike, axis: Axis = -1, *, scale: float = 1.0, mask: ArrayLike | None = None
) -> Float64Array:
    """Compute ``exp(scale·x − logsumexp(scale·x))`` along `axis`.

    A `mask` that is bool hides where False; one that is float is added after the scaling, and
    hides where the sum is −inf. A slice that a mask leaves empty has weights 0; without a mask, a
    slice of −inf alone gives NaN, as SciPy's does.

    Examples
    --------
    >>> softmax([0.84366, 0.97780, 1.0]).round(4)
    array([0.3019, 0.3452, 0.3529])
    """
    with np.errstate(all="ignore"):
        scores = masked(x, scale, mask)
        row_max = np.max(scores, axis=axis, keepdims=True, initial=-np.inf)
        weights = np.exp(scores - row_max)
        weights = weights / np.sum(weights, axis=axis, keepdims=True)
        return weights if mask is None else np.where(scores == -np.inf, 0.0, weights)


def log_softmax(
    x: ArrayLike, axis: Axis = -1, *, scale: float = 1.0, mask: ArrayLike | None = None
) -> Float64Array:
    """Compute ``scale·x − logsumexp(scale·x)`` along `axis`, also where `softmax` underflows."""
    with np.errstate(all="ignore"):
        scores = masked(x, scale, mask)
        row_max, at_max, rest = parts_of_sum(scores, axis)
        logarithms = scores - row_max - log_of_sum(at_max, rest)
        return logarithms if mask is None else np.where(scores == -np.inf, -np.inf, logarithms)


def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    b: ArrayLike | None = None,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """Compute ``log(sum(b·exp(scale·x)))`` along `axis`; −inf for an empty slice.

    A sum that is negative gives NaN, or with `return_sign` the logarithm of its size beside its
    sign. Where `b` is 0 there is nothing, whatever `x` holds.
    """
    with np.errstate(all="ignore"):
        scores = masked(x, scale, mask)
        bias = masked(np.zeros(scores.shape), 1.0, mask)
        terms = [np.asarray(term, np.float64) for term in (x, scale, bias, 1.0 if b is None else b)]
        if b is not None:
            shape = broadcast_shapes(scores.shape, terms[-1].shape)
            b = terms[-1]
            scores, b = np.broadcast_to(scores, shape), np.broadcast_to(b, shape)
            # A factor that makes up for an exponential which underflows is part of the score.
            mantissa, power = np.frexp(b)
            far = np.abs(power) > 250
            scores = np.where(far, scores + power * np.log(2), scores)
            b = np.where(far, mantissa, b)
        row_max, at_max, rest = parts_of_sum(scores, axis, b)
        result, sign = np.asarray(row_max + log_of_sum(at_max, rest)), np.sign(at_max + rest)
        terms = [np.broadcast_to(term, scores.shape) for term in terms]
        _in_sixty_digits(row_max, result, terms, b is not None)
        if not return_sign:
            result = np.where(sign < 0, np.nan, result)
    results = [result, sign] if keepdims else [np.squeeze(one, axis=axis) for one in (result, sign)]
    return (results[0], results[1]) if return_sign else results[0]


def _in_sixty_digits(
    row_max: Float64Array, result: Float64Array, terms: list[Float64Array], has_factors: bool
) -> None:
    """Compute results near 0 again, where maximum and logarithm, or factors, cancel.

    What is left is made of digits that both have lost. `terms`: x, scale, bias and factor.
    """
    size = np.maximum(np.abs(row_max), 1.0 if has_factors else 0.0)
    for index in np.argwhere(np.abs(result) < size / 4):
        at = tuple(
            slice(None) if count == 1 else i for count, i in zip(result.shape, index, strict=True)
        )
        total = Decimal(0)
        with decimal.localcontext(prec=60):
            for x, scale, bias, factor in zip(*(term[at].ravel() for term in terms), strict=True):
                if factor != 0 and bias > -np.inf:
                    score = Decimal(float(x)) * Decimal(float(scale)) + Decimal(float(bias))
                    total += Decimal(float(factor)) * score.exp()
            result[tuple(index)] = float(abs(total).ln())


def parts_of_sum(
    scores: Float64Array, axis: Axis, b: Float64Array | None = None
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Take a sum of exponentials apart, relative to the largest: that, its part, the rest."""
    factors = np.ones(scores.shape) if b is None else b
    scores = np.where(factors == 0.0, -np.inf, scores)
    row_max = np.max(scores, axis=axis, keepdims=True, initial=-np.inf)
    row_max = np.where(np.isinf(row_max), 0.0, row_max)  # inf - inf must not arise
    terms = np.where(scores == -np.inf, 0.0, factors * np.exp(scores - row_max))
    is_max = scores == row_max
    at_max = np.sum(np.where(is_max, terms, 0.0), axis=axis, keepdims=True)
    return row_max, at_max, np.sum(np.where(is_max, 0.0, terms), axis=axis, keepdims=True)


def log_of_sum(at_max: Float64Array, rest: Float64Array) -> Float64Array:
    """Compute ``log(|at_max + rest|)``, also where the sum is near 1 and the rest is small."""
    ratio = rest / at_max
    near = np.log(np.abs(at_max)) + np.log1p(ratio)
    return np.where((ratio > -0.5) & (ratio < np.inf), near, np.log(np.abs(at_max + rest)))


def masked(x: ArrayLike, scale: float, mask: ArrayLike | None) -> Float64Array:
    """Apply scale and mask: −inf where a bool mask is False, plus a float mask."""
    scores = np.asarray(x, dtype=np.float64) * scale
    if mask is None:
        return scores
    mask = np.asarray(mask)
    return np.where(mask, scores, -np.inf) if mask.dtype == bool else hide(scores + mask, mask)


def hide(scores: Float64Array, mask: NDArray[Any]) -> Float64Array:
    """Put −inf wherever a float mask is −inf, whatever the score holds there (+inf, NaN)."""
    return np.where(mask == -np.inf, -np.inf, scores)
