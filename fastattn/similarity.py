"""The first stage on its own: how similar each query is to each key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Never

import numpy as np

from fastattn._core import backends, kept, names
from fastattn._core.arrays import (
    as_array,
    deliver,
    dtypes,
    result_array,
    spread,
)
from fastattn._core.environment import default_environment
from fastattn._core.options import check_similarity
from fastattn._core.recipe import default_scale
from fastattn._core.scales import broadcast_scales, is_small, scale_of
from fastattn._core.threads import resolve

if TYPE_CHECKING:
    from fastattn._core.annotations import ArrayLike, BackendName, Similarity

__all__ = ["similarity"]


@names.closed
def similarity(
    query: ArrayLike,
    key: ArrayLike,
    *,
    metric: Similarity = "cosine",
    scale: ArrayLike | None = None,
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> np.ndarray:
    r"""Compare every query with every key: ``scale * metric(query[i], key[j])``.

    Parameters
    ----------
    query : array_like, (..., L, E) or (E,)
        L queries of E features; a 1-D query is one query, and the result loses its L axis.
    key : array_like, (..., S, E)
        S keys. Batch dims broadcast.
    metric : {"cosine", "dot", "scaled_dot", "euclidean"}
        ``cosine``: :math:`q \cdot k / (|q||k|)`, within -1 and 1, 0 for a zero vector; ``dot`` and
        ``scaled_dot``: :math:`q \cdot k`; ``euclidean``: :math:`-|q - k|^2`, from differences, so
        that larger is more similar for every metric.
    scale : float or float array over the batch dims, optional
        Any finite number, or an array of them with exactly as many dims as the batch, size 1 where
        shared. None: ``1/sqrt(E)`` for ``scaled_dot`` (1 when E is 0), else 1.
    out : ndarray, (..., L, S), optional
        Where to store the result; may overlap an input. None: a new array.
    backend : {"cython", "numba", "reference"}, optional
        None: the automatic choice, as for `attention`.
    threads : int, optional
        At most this many threads. None: as for `attention`.

    Returns
    -------
    scores : ndarray, (..., L, S)
        Of the dtype to which the operands promote; integers count as float64. `out` itself
        where given.

    Raises
    ------
    ValueError
        If E differs, batch dims do not broadcast, the metric is unknown or the scale not finite.
    TypeError
        If an operand is complex, extended precision, object, masked, sparse or lazy.

    Notes
    -----
    Norms neither overflow at 1e30 nor underflow at 1e-30, and errors do not grow with E. An entry
    that the dtype holds is found though its sums over features overflow with the scale, or without
    it; where they do so either way it is inf or NaN, as with NumPy. Beside the result, memory is a
    few blocks per thread. The bits of an entry depend on its query, its key and the scale alone,
    and query and key may change places: ``similarity(x, x)`` is symmetric, so that
    ``scipy.spatial.distance.squareform(1 - similarity(x, x))`` takes it.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.similarity([0.1, 0.2], [[0.5, 0.3], [0.4, 0.5], [0.2, 0.4]]).round(5)
    array([0.84366, 0.9778 , 1.     ])
    """
    if unknown:
        names.refuse(similarity, unknown)
    check_similarity("metric", metric)
    given = None if scale is None else scale_of(scale)
    workers = resolve(threads)
    # What is no array yet is one from here on: a repeated call of lists is found too.
    if type(query) is not np.ndarray:
        query = as_array("query", query)
    if type(key) is not np.ndarray:
        key = as_array("key", key)
    options = "similarity", backends.choose(backend), metric, given
    found = kept.find(options, workers, out, query, key)
    if found is not None:
        return found  # type: ignore[no-any-return]
    query, key = as_array("query", query), as_array("key", key)
    _, dtype = dtypes(("query", query.dtype, query.shape), ("key", key.dtype, key.shape))
    shown = f"query {query.shape}, key {key.shape}"
    if query.ndim < 1 or key.ndim < 2:
        raise ValueError(f"too few dims: {shown}; query is (..., L, E) or (E,), key (..., S, E)")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query has E = {query.shape[-1]} features and key E = {key.shape[-1]}: {shown}; their "
            "last axes must match"
        )
    one_row = query.ndim == 1
    rows = query[None] if one_row else query
    rows, keys = spread(shown, rows, key)
    batch = rows.shape[:-2]
    factor: float | np.ndarray = default_scale(metric, rows.shape[-1])
    if given is not None:
        factor = broadcast_scales(given, batch)
    if isinstance(factor, np.ndarray):
        factor = np.broadcast_to(factor, batch)
    shape = (*batch, *(() if one_row else (rows.shape[-2],)), keys.shape[-2])
    result = result_array(out, shape, dtype, (query, key))
    target = result[..., None, :] if one_row else result
    with default_environment():
        repeat = backends.pick(backend).similarity(rows, keys, target, metric, factor, workers)
    if is_small(factor):
        seen = rows, keys, target
        kept.keep(options, workers, out, repeat, (query, key), (result,), seen)
    return deliver(result, out)  # type: ignore[no-any-return]
