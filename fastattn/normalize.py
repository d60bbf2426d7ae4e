"""The second stage on its own: softmax, log_softmax and logsumexp over any axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn._core import backends, repeats
from fastattn._core.arrays import (
    as_array,
    check_mask_dtype,
    check_out,
    deliver,
    dtypes,
    finite_number,
    is_direct,
    result_array,
    same_memory,
)
from fastattn._core.threads import resolve

if TYPE_CHECKING:
    from collections.abc import Hashable

    from numpy.typing import ArrayLike

    Axis = int | tuple[int, ...] | None

__all__ = ["log_softmax", "logsumexp", "softmax"]


def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    out: np.ndarray | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> np.ndarray:
    r"""Turn scores into weights that add up to one: :math:`e^{s_j} / \sum_k e^{s_k}`.

    with :math:`s = \mathrm{scale} \cdot x + \mathrm{mask}`.

    Parameters
    ----------
    x : array_like
        Scores of any shape.
    axis : int, tuple of ints or None
        The axis or axes that the weights add up over; None: all.
    scale : float
        Factor of the scores, any finite number.
    mask : array_like, broadcasts to the shape of `x`, optional
        bool: True where an entry takes part; float: added, -inf hides.
    out : ndarray, the shape of `x`, optional
        Where to store the result; may be `x` itself or overlap it. None: a new array.
    backend : {"cython", "numba", "reference"}, optional
        None: the automatic choice, as for `attention`.
    threads : int, optional
        At most this many threads. None: as for `attention`.

    Returns
    -------
    weights : ndarray, the shape of `x`
        Of the dtype of `x`; float64 for integers. `out` itself where given.

    Raises
    ------
    ValueError
        If an axis does not exist, the mask does not broadcast or the scale is not finite.
    TypeError
        If `x` is complex, extended precision, object, masked, sparse or lazy.

    Notes
    -----
    Agrees with ``scipy.special.softmax`` for real floats. Where a mask hides a whole row its
    weights are 0. Several axes that cannot be walked as one (say 0 and 2 of three, or a transposed
    `x` with None) cost a copy of `x`; a single axis never does, whatever its stride.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.softmax([[0.0, 0.0], [0.0, 100.0]])
    array([[5.00000000e-01, 5.00000000e-01],
           [3.72007598e-44, 1.00000000e+00]])
    >>> fastattn.softmax([0.0, 7.0, 0.0], mask=[True, False, True])
    array([0.5, 0. , 0.5])
    """
    return _weights("softmax", x, axis, scale, mask, out, backend, threads)


def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    out: np.ndarray | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> np.ndarray:
    r"""Take the logarithm of softmax without leaving the log scale: :math:`s_j - \mathrm{lse}(s)`.

    Parameters
    ----------
    x, axis, scale, mask, out, backend, threads
        As for `softmax`.

    Returns
    -------
    log_weights : ndarray, the shape of `x`
        Of the dtype of `x`; float64 for integers. `out` itself where given.

    Raises
    ------
    ValueError, TypeError
        Exactly where `softmax` would.

    Notes
    -----
    Agrees with ``scipy.special.log_softmax`` for real floats. Hidden entries are -inf.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.log_softmax([0.0, 1000.0])
    array([-1000.,     0.])
    """
    return _weights("log_softmax", x, axis, scale, mask, out, backend, threads)


def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    keepdims: bool = False,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    out: np.ndarray | None = None,
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    r"""Add up on the exponential scale: :math:`\log \sum_j e^{s_j}`, without overflow.

    Parameters
    ----------
    x, axis, scale, mask, backend, threads
        As for `softmax`.
    keepdims : bool
        Keep the reduced axes with size 1.
    out : ndarray, the shape of the result, optional
        Where to store the result; may overlap `x`. None: a new array.

    Returns
    -------
    lse : ndarray or NumPy scalar
        `x` without `axis` (or with size 1 there), of the dtype of `x`, float64 for integers; a
        scalar, as NumPy's reductions give, where no axis is left. `out` itself where given.

    Raises
    ------
    ValueError, TypeError
        Exactly where `softmax` would.

    Notes
    -----
    Agrees with ``scipy.special.logsumexp`` for real floats. Over nothing, or where everything is
    hidden, it is -inf.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.logsumexp([1000.0, 1000.0]).round(5)
    np.float64(1000.69315)
    """
    keepdims = bool(keepdims)
    call, scale, workers = _begin(
        "logsumexp keepdims" if keepdims else "logsumexp",
        x,
        axis,
        scale,
        mask,
        out,
        backend,
        threads,
    )
    again = repeats.find(call, x, mask, out)
    if again is not None:
        return again if out is not None else again[()]
    rows = _Rows.of(x, axis, mask)
    shape = tuple(
        1 if at in rows.axes else size
        for at, size in enumerate(rows.shape)
        if keepdims or at not in rows.axes
    )
    result = result_array(out, shape, rows.dtype, rows.inputs)
    target = result.reshape(rows.outer, copy=False)
    repeat = backends.pick(backend).logsumexp(rows.x, rows.mask, target, scale, workers)
    repeats.keep(call, repeat, (*rows.inputs, result), (rows.x, rows.mask, target), out)
    return deliver(result, out) if out is not None else result[()]


class _Rows(NamedTuple):
    """Scores with the reduced axes moved last and joined into one: (*outer, n)."""

    x: np.ndarray
    mask: np.ndarray | None
    inputs: tuple[np.ndarray | None, ...]  # as given, for telling overlaps
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    outer: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def of(cls, x: Any, axis: Any, mask: Any) -> _Rows:
        """Check the operands and view them as rows."""
        x = as_array("x", x)
        _, dtype = dtypes(("x", x.dtype, x.shape))
        axes = _axes(axis, x.shape)
        given = x
        if mask is not None:
            mask = as_array("mask", mask)
            check_mask_dtype(mask.dtype, mask.shape)
        inputs = (given, mask)
        if mask is not None:
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
        return cls(x, mask, inputs, given.shape, axes, outer, dtype)


def _axes(axis: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the reduced axes, non-negative and ascending."""
    if axis is None:
        return tuple(range(len(shape)))
    if not shape and axis in (0, -1):
        return ()
    try:
        return tuple(sorted(np.lib.array_utils.normalize_axis_tuple(axis, len(shape), "axis")))
    except np.exceptions.AxisError:
        raise ValueError(
            f"axis {axis!r} does not exist in x of shape {shape}: from {-len(shape)} to "
            f"{len(shape) - 1}, a tuple of these, or None for all"
        ) from None
    except ValueError:
        raise ValueError(f"axis {axis!r} names an axis of x of shape {shape} twice") from None
    except TypeError:
        raise TypeError(f"axis must be an int, a tuple of ints or None, not {axis!r}") from None


def _order(axes: tuple[int, ...], dims: int) -> tuple[int, ...]:
    return (*(at for at in range(dims) if at not in axes), *axes)


def _joined(x: np.ndarray, axes: tuple[int, ...], joined: tuple[int, ...]) -> np.ndarray:
    return x.transpose(_order(axes, x.ndim)).reshape(joined)


def _begin(
    kind: str, x: Any, axis: Any, scale: Any, mask: Any, out: Any, backend: Any, threads: Any
) -> tuple[tuple[Hashable, ...] | None, float, int]:
    """Check what no array decides; returns the call's signature, the scale and the threads."""
    scale = finite_number("scale", scale, "1 leaves the scores as they are")
    workers = resolve(threads)
    if type(axis) is not int and axis is not None:
        return None, scale, workers
    options = (kind, axis, scale, backends.choose(backend), workers)
    return repeats.signature(options, x, mask, out), scale, workers


def _weights(
    kind: str, x: Any, axis: Any, scale: Any, mask: Any, out: Any, backend: Any, threads: Any
) -> np.ndarray:
    call, scale, workers = _begin(kind, x, axis, scale, mask, out, backend, threads)
    again = repeats.find(call, x, mask, out)
    if again is not None:
        return again
    rows = _Rows.of(x, axis, mask)
    result, target = _target(rows, out)
    function = getattr(backends.pick(backend), kind)
    repeat = function(rows.x, rows.mask, target, scale, workers)
    repeats.keep(call, repeat, (*rows.inputs, result), (rows.x, rows.mask, target), out)
    return deliver(result, out)  # type: ignore[no-any-return]


def _target(rows: _Rows, out: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the result in the caller's shape and the same memory as (*outer, n)."""
    joined = (*rows.outer, rows.x.shape[-1])
    order = _order(rows.axes, len(rows.shape))
    if out is not None:
        checked = check_out(out, rows.shape, rows.dtype)
        x, mask = rows.inputs
        # In place is safe row by row: a row is read before its weights are written.
        others = (mask,) if x is not None and same_memory(checked, x) else (x, mask)
        if is_direct(checked, rows.dtype, others):
            target = _view_joined(checked, order, joined)
            if target is not None:
                return checked, target
    result = np.empty(rows.shape, rows.dtype)
    target = _view_joined(result, order, joined)
    if target is None:
        # The reduced axes are apart in C order: let the result lie as it is computed.
        target = np.empty(joined, rows.dtype)
        moved = target.reshape([rows.shape[at] for at in order])
        result = moved.transpose(np.argsort(order))
    return result, target


def _view_joined(
    array: np.ndarray, order: tuple[int, ...], joined: tuple[int, ...]
) -> np.ndarray | None:
    try:
        return array.transpose(order).reshape(joined, copy=False)
    except ValueError:
        return None
