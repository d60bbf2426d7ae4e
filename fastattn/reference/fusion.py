"""Weighted sums of values, and the joining of results over disjoint parts of the keys."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastattn.reference.normalize import log_of_sum

__all__ = ["fuse", "fuse_visible", "merge_states"]

Float64Array = NDArray[np.float64]


def fuse(weights: ArrayLike, value: ArrayLike, *, reduce: bool = True) -> Float64Array:
    """Compute ``weights @ value``, or with ``reduce=False`` every ``w_i * v_i``: (..., L, S, Ev).

    Examples
    --------
    >>> fuse([[0.25, 0.75]], [[4.0, 0.0], [0.0, 4.0]])
    array([[1., 3.]])
    """
    with np.errstate(all="ignore"):
        weights = np.asarray(weights, dtype=np.float64)
        value = np.asarray(value, dtype=np.float64)
        products: Float64Array
        products = weights @ value if reduce else weights[..., None] * value[..., None, :, :]
    return products


def fuse_visible(
    weights: Float64Array, value: Float64Array, attended: NDArray[np.bool_]
) -> Float64Array:
    """Sum over the attended keys alone, so that a hidden inf or NaN cannot enter."""
    finite = np.isfinite(value)
    output = weights @ np.where(finite, value, 0.0)
    keys_finite = np.all(finite, axis=(*range(value.ndim - 2), value.ndim - 1))
    for position in np.flatnonzero(~keys_finite):
        one_value = value[..., position, None, :]
        product = weights[..., position, None] * np.where(np.isfinite(one_value), 0.0, one_value)
        output = output + np.where(attended[..., position, None], product, 0.0)
    return output


def merge_states(
    outputs: ArrayLike | Sequence[ArrayLike], lses: ArrayLike | Sequence[ArrayLike], axis: int = 0
) -> tuple[Float64Array, Float64Array]:
    """Join attention over disjoint parts of the keys to attention over all of them.

    ``lse = log Σ exp(lse_p)`` and ``output = Σ exp(lse_p − lse) output_p``; a part that saw no key
    (lse −inf) has no say, whatever its output holds.

    Parameters
    ----------
    outputs : array_like, (P, ..., L, Ev) with P at `axis`
    lses : array_like, (P, ..., L) with P at `axis`
    axis : int
        Counted in `lses`.
    """
    lses = np.asarray(lses, dtype=np.float64)
    axis = range(lses.ndim)[axis]
    lses = np.moveaxis(lses, axis, 0)
    outputs = np.moveaxis(np.asarray(outputs, dtype=np.float64), axis, 0)
    with np.errstate(all="ignore"):
        lse_max = np.max(lses, axis=0, initial=-np.inf)
        empty = lse_max == -np.inf
        shares = np.where(lses == -np.inf, 0.0, np.exp(lses - lse_max))
        share_sum = np.where(empty, 1.0, np.sum(shares, axis=0))
        parts = np.where((lses == -np.inf)[..., None], 0.0, outputs * shares[..., None])
        output = np.sum(parts, axis=0) / share_sum[..., None]
        is_max = lses == lse_max
        at_max = np.sum(np.where(is_max, shares, 0.0), axis=0)
        rest = np.sum(np.where(is_max, 0.0, shares), axis=0)
        lse = np.where(empty, -np.inf, lse_max + log_of_sum(at_max, rest))
    return output, lse
