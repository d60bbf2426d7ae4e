"""How alike a query and a key are: dot, scaled dot, cosine and negative squared distance."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["default_scale", "similarity", "split_scale", "unit_rows"]

Float64Array = NDArray[np.float64]


def similarity(
    query: ArrayLike, key: ArrayLike, *, metric: str = "cosine", scale: ArrayLike | None = None
) -> Float64Array:
    """Compare every query with every key; the result is times `scale`.

    Parameters
    ----------
    query : array_like (..., L, E) or (E,)
    key : array_like (..., S, E)
    metric : {"cosine", "dot", "scaled_dot", "euclidean"}
        ``q·k / (|q||k|)``, within -1 and 1; ``q·k``, ``q·k`` and ``-|q - k|²``.
    scale : float or array over the batch dims, optional
        None means `default_scale`.

    Returns
    -------
    float64 array (..., L, S), or (..., S) for a query of one dimension

    Examples
    --------
    >>> similarity([[0.1, 0.2]], [[0.5, 0.3], [0.4, 0.5], [0.2, 0.4]]).round(5)
    array([[0.84366, 0.9778 , 1.     ]])
    """
    with np.errstate(invalid="ignore"):
        query = np.asarray(query, dtype=np.float64)
        key = np.asarray(key, dtype=np.float64)
    if query.ndim == 1:
        return similarity(query[None], key, metric=metric, scale=scale)[..., 0, :]
    if scale is None:
        scale = default_scale(metric, query.shape[-1])
    with np.errstate(all="ignore"):
        return _METRICS[metric](query, key, np.asarray(scale, np.float64)[..., None, None])


def default_scale(metric: str, features: int) -> float:
    """Give ``1 / sqrt(E)`` for ``"scaled_dot"`` (1 when E is 0), 1 for the other metrics."""
    return 1 / math.sqrt(features) if metric == "scaled_dot" and features else 1.0


def split_scale(
    scale: Float64Array, *, even: bool = False
) -> tuple[Float64Array, NDArray[np.int32]]:
    """Write `scale` as ``rest * 2**exponent``; multiplying by the power of two is exact.

    The rest is 1 or more, so that nothing is larger before it is applied.
    """
    half, above = np.frexp(scale)
    rest, exponent = 2 * half, above - 1
    odd = exponent % 2 if even else 0
    return np.ldexp(rest, odd), exponent - odd


def unit_rows(rows: Float64Array) -> Float64Array:
    """Bring rows to length one; zero rows stay zero, norms neither overflow nor underflow."""
    largest = np.max(np.abs(rows), axis=-1, keepdims=True, initial=0)
    exponent = np.frexp(np.where(np.isfinite(largest), largest, 1))[1]
    rows = np.ldexp(rows, -exponent)
    norm = np.sqrt(np.sum(rows * rows, axis=-1, keepdims=True))
    return rows / np.where(norm == 0, 1, norm)


def _dot(query: Float64Array, key: Float64Array, scale: Float64Array) -> Float64Array:
    rest, exponent = split_scale(scale)
    products = _scaled_products(query, key, exponent)
    # What overflows with the power of two may be in range without it until all is summed.
    without = np.ldexp(query @ np.swapaxes(key, -1, -2), exponent)
    spilt = ~np.isfinite(products) & np.isfinite(without)
    return np.where(spilt, without, products) * rest


def _scaled_products(
    query: Float64Array, key: Float64Array, exponent: NDArray[np.int32]
) -> Float64Array:
    scaled = np.ldexp(query, exponent)
    if np.array_equal(np.ldexp(scaled, -exponent), np.broadcast_to(query, scaled.shape), True):
        products: Float64Array = scaled @ np.swapaxes(key, -1, -2)
        return products
    # The query would lose bits: in each product the larger factor shrinks, or the smaller grows.
    products = scaled[..., :0] @ np.swapaxes(key[..., :0], -1, -2)
    for feature in range(query.shape[-1]):
        pair = query[..., :, None, feature], key[..., None, :, feature]
        first_is_larger = np.abs(pair[0]) > np.abs(pair[1])
        larger, smaller = np.where(first_is_larger, *pair), np.where(first_is_larger, *pair[::-1])
        shrunk, grown = np.ldexp(larger, exponent) * smaller, larger * np.ldexp(smaller, exponent)
        products += np.where(exponent < 0, shrunk, grown)
    return products


def _cosine(query: Float64Array, key: Float64Array, scale: Float64Array) -> Float64Array:
    cosine = unit_rows(query) @ np.swapaxes(unit_rows(key), -1, -2)
    return np.clip(cosine, -1.0, 1.0) * scale  # rounding takes some beyond


def _euclidean(query: Float64Array, key: Float64Array, scale: Float64Array) -> Float64Array:
    rest, exponent = split_scale(scale, even=True)
    distance = query[..., :0] @ np.swapaxes(key[..., :0], -1, -2)  # zeros of the result's shape
    for feature in range(query.shape[-1]):  # a loop, so that no array of L × S × E is needed
        difference = query[..., :, None, feature] - key[..., None, :, feature]
        distance += np.ldexp(difference, exponent // 2) ** 2
    return -distance * rest


_METRICS = {"dot": _dot, "scaled_dot": _dot, "cosine": _cosine, "euclidean": _euclidean}
