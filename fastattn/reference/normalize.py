"""Turning scores into weights: softmax and its logarithms, as SciPy defines them, with a mask."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["log_softmax", "logsumexp", "masked", "softmax"]

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
        row_max = _finite_max(scores, axis)
        row_sum = np.sum(np.exp(scores - row_max), axis=axis, keepdims=True)
        logarithms = scores - row_max - np.log(row_sum)
        return logarithms if mask is None else np.where(scores == -np.inf, -np.inf, logarithms)


def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    keepdims: bool = False,
) -> Float64Array:
    """Compute ``log(sum(exp(scale·x)))`` along `axis`; −inf for an empty slice."""
    with np.errstate(all="ignore"):
        scores = masked(x, scale, mask)
        row_max = _finite_max(scores, axis)
        row_sum = np.sum(np.exp(scores - row_max), axis=axis, keepdims=True)
        result: Float64Array = np.log(row_sum) + row_max
    return result if keepdims else np.squeeze(result, axis=axis)


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


def _finite_max(scores: Float64Array, axis: Axis) -> Float64Array:
    """Find the largest score, or 0 where it is infinite: ``inf - inf`` must not arise."""
    row_max = np.max(scores, axis=axis, keepdims=True, initial=-np.inf)
    return np.where(np.isinf(row_max), 0.0, row_max)
