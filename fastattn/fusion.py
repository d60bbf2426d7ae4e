"""The last stage on its own: weigh the values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Never

import numpy as np

from fastattn._core import backends, kept, names
from fastattn._core.arrays import as_array, deliver, dtypes, result_array, spread
from fastattn._core.environment import default_environment
from fastattn._core.recipe import ONE_NUMBER_PER_KEY
from fastattn._core.threads import resolve

if TYPE_CHECKING:
    from fastattn._core.annotations import ArrayLike, BackendName

__all__ = ["fuse"]


@names.closed
def fuse(
    weights: ArrayLike,
    value: ArrayLike,
    *,
    reduce: bool = True,
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> np.ndarray:
    r"""Weigh values and add them up: :math:`o_i = \sum_j w_{ij} v_j`.

    Parameters
    ----------
    weights : array_like, (..., L, S) or (S,)
        One weight per query and key; a 1-D array is one query, and the result loses its L axis.
    value : array_like, (..., S, Ev)
        One row per key. Batch dims broadcast.
    reduce : bool
        False keeps the weighted values :math:`w_{ij} v_j` apart instead of adding them.
    out : ndarray, optional
        Where to store the result; may overlap an input. None: a new array.
    backend : {"cython", "numba", "reference"}, optional
        None: the automatic choice, as for `attention`.
    threads : int, optional
        At most this many threads. None: as for `attention`.

    Returns
    -------
    fused : ndarray, (..., L, Ev), or (..., L, S, Ev) with ``reduce=False``
        Of the dtype to which the operands promote; integers count as float64. `out` itself
        where given.

    Raises
    ------
    ValueError
        If S differs or batch dims do not broadcast.
    TypeError
        If an operand is complex, extended precision, object, masked, sparse or lazy.

    Notes
    -----
    ``fuse(softmax(similarity(...)), value)`` equals `attention` to rounding. A weight of 0 does
    not hide its value here: ``0 * nan`` is NaN, as in ``weights @ value``.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.fuse([0.25, 0.75], [[4.0, 0.0], [8.0, 4.0]])
    array([7., 3.])
    >>> fastattn.fuse([0.25, 0.75], [[4.0, 0.0], [8.0, 4.0]], reduce=False)
    array([[1., 0.],
           [6., 3.]])
    """
    if unknown:
        names.refuse(fuse, unknown)
    reduce, workers = bool(reduce), resolve(threads)
    # What is no array yet is one from here on: a repeated call of lists is found too.
    if type(weights) is not np.ndarray:
        weights = as_array("weights", weights)
    if type(value) is not np.ndarray:
        value = as_array("value", value)
    options = "fuse", backends.choose(backend), reduce
    found = kept.find(options, workers, out, weights, value)
    if found is not None:
        return found  # type: ignore[no-any-return]
    weights, value = as_array("weights", weights), as_array("value", value)
    _, dtype = dtypes(
        ("weights", weights.dtype, weights.shape), ("value", value.dtype, value.shape)
    )
    shown = f"weights {weights.shape}, value {value.shape}"
    if weights.ndim < 1 or value.ndim < 2:
        raise ValueError(
            f"too few dims: {shown}; weights are (..., L, S) or (S,), value (..., S, Ev)"
            + ONE_NUMBER_PER_KEY * (value.ndim == 1)
        )
    if weights.shape[-1] != value.shape[-2]:
        raise ValueError(
            f"weights are over S = {weights.shape[-1]} keys and value has S = {value.shape[-2]} "
            f"rows: {shown}; the last axis of weights is axis -2 of value"
        )
    one_row = weights.ndim == 1
    rows, values = spread(shown, weights[None] if one_row else weights, value)
    row = () if one_row else (rows.shape[-2],)
    tail = values.shape[-1:] if reduce else values.shape[-2:]
    result = result_array(out, (*rows.shape[:-2], *row, *tail), dtype, (weights, value))
    at = rows.ndim - 2
    target = result[(slice(None),) * at + (None,)] if one_row else result
    with default_environment():
        repeat = backends.pick(backend).fuse(rows, values, target, reduce, workers)
    seen = rows, values, target
    kept.keep(options, workers, out, repeat, (weights, value), (result,), seen)
    return deliver(result, out)  # type: ignore[no-any-return]
