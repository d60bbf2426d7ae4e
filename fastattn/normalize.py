"""The second stage on its own: softmax, log_softmax and logsumexp over any axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fastattn._core import backends, kept, names
from fastattn._core.arrays import (
    FLOAT64,
    as_array,
    check_out,
    deliver,
    finite_number,
    is_direct,
    new_array,
    result_array,
)
from fastattn._core.environment import default_environment
from fastattn._core.reduced import Rows, order_of, rows_beyond_reach, within_reach
from fastattn._core.scales import LEAST_NORMAL, scale_of
from fastattn._core.threads import resolve

if TYPE_CHECKING:
    from collections.abc import Hashable

    from fastattn._core.annotations import ArrayLike, Axis, BackendName


__all__ = ["log_softmax", "logsumexp", "softmax"]


@names.closed
def softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> np.ndarray:
    r"""Turn scores into weights that add up to one: :math:`e^{s_j} / \sum_k e^{s_k}`.

    with :math:`s = \mathrm{scale} \cdot x + \mathrm{mask}`.

    Parameters
    ----------
    x : array_like
        Scores of any shape.
    axis : int, tuple of ints or None
        The axis or axes that the weights add up over; None: all. The default is the last axis, the
        keys; SciPy's is None.
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
    Agrees with ``scipy.special.softmax`` for real floats, given the same `axis`. Where a mask hides
    a whole row its weights are 0.

    Several axes that cannot be walked as one (say 0 and 2 of three, or a transposed `x` with None)
    cost a copy of `x`; a single axis never does, whatever its stride.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.softmax([[0.0, 0.0], [0.0, 100.0]])
    array([[5.00000000e-01, 5.00000000e-01],
           [3.72007598e-44, 1.00000000e+00]])
    >>> fastattn.softmax([0.0, 7.0, 0.0], mask=[True, False, True])
    array([0.5, 0. , 0.5])
    """
    if unknown:
        names.refuse(softmax, unknown)
    return _weights("softmax", x, axis, scale, mask, out, backend, threads)


@names.closed
def log_softmax(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
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
    Agrees with ``scipy.special.log_softmax`` for real floats, given the same `axis`: -1 by default,
    None in SciPy. Hidden entries are -inf. A logarithm near 0, that of a weight near 1, is as exact
    as any other: to a few ulp of itself, and what rounding the distances to the maximum changes.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.log_softmax([0.0, 1000.0])
    array([-1000.,     0.])
    """
    if unknown:
        names.refuse(log_softmax, unknown)
    return _weights("log_softmax", x, axis, scale, mask, out, backend, threads)


@names.closed
def logsumexp(
    x: ArrayLike,
    axis: Axis = -1,
    *,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    scale: float = 1.0,
    mask: ArrayLike | None = None,
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> Any:
    r"""Add up on the exponential scale: :math:`\log \sum_j b_j e^{s_j}`, without overflow.

    Parameters
    ----------
    x, axis, scale, mask, backend, threads
        As for `softmax`.
    b : array_like, broadcasts with `x`, optional
        Factors of the exponentials, of any sign. Where one is 0, `x` does not count, whatever it
        holds, and neither does a factor where `x` is -inf. With factors all is computed in float64.
        None: all 1.
    keepdims : bool
        Keep the reduced axes with size 1.
    return_sign : bool
        Append the sign of the sum, and take the logarithm of its size.
    out : ndarray, the shape of the result, optional
        Where to store the result; may overlap `x`. None: a new array.

    Returns
    -------
    lse : ndarray or NumPy scalar
        `x`, broadcast with `b`, without `axis` (or with size 1 there); a scalar, as NumPy's
        reductions give, where no axis is left. `out` itself where given. Of the dtype of `x`,
        float64 for integers; `b` takes part in the dtype as in NumPy, but for Python numbers. NaN
        where the sum is negative and no sign is returned.
    sign : ndarray or NumPy scalar
        Only with `return_sign`: 1, 0, -1, or NaN where the sum is NaN; shape and dtype of `lse`.

    Raises
    ------
    ValueError, TypeError
        Exactly where `softmax` would, and if `b` does not broadcast with `x`.

    Notes
    -----
    Agrees with ``scipy.special.logsumexp`` for real floats, given the same `axis`: -1 by default,
    None in SciPy. Over nothing, or where everything is hidden, it is -inf, with the sign 0.

    A result near 0 is right to a few ulp of itself. Where the largest entry is near 0, its part of
    the sum and the rest are added apart. Where it and the logarithm of the sum cancel, as in a
    normalised row of log-probabilities, so that the result is below a quarter of the largest entry
    (with factors: of that or 1, whichever is more), the row is gone through again, in twice the
    precision, which takes five to ten times as long where entries lie side by side, and up to
    twenty elsewhere, on one thread a row: then ``scale * x + mask`` is not rounded either, and what
    is lost is a few times the square of the dtype's epsilon. Where factors of both signs leave
    little of a sum, and so a large negative result, an error of their terms remains; factors beyond
    2^±250 are taken into the entries, and an ulp of those remains.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> fastattn.logsumexp([1000.0, 1000.0]).round(5)
    np.float64(1000.69315)
    >>> fastattn.logsumexp([0.0, -40.0])
    np.float64(4.248354255291589e-18)
    >>> fastattn.logsumexp(np.log([0.5, 0.5]))  # what rounding log(0.5) leaves
    np.float64(2.3190468138462996e-17)
    >>> lse, sign = fastattn.logsumexp([1.0, 2.0], b=[1, -1], return_sign=True)
    >>> lse.round(5), sign
    (np.float64(1.54132), np.float64(-1.0))
    """
    if unknown:
        names.refuse(logsumexp, unknown)
    keepdims, return_sign = bool(keepdims), bool(return_sign)
    kind = "logsumexp keepdims" if keepdims else "logsumexp"
    options, scale, workers = _begin(kind, axis, scale, backend, threads)
    if b is not None:
        found = _with_factors(x, axis, b, scale, mask, keepdims, return_sign, out, backend, workers)
        return found if return_sign else found[0]
    x, mask = _arrays(x, mask)
    lse = None if options is None else kept.find(options, workers, out, x, mask)
    if lse is None:
        rows = Rows.of(x, axis, mask)
        result = result_array(out, rows.reduced(keepdims), rows.dtype, rows.inputs)
        target = result.reshape(rows.outer, copy=False)
        with default_environment():
            repeat = backends.pick(backend).logsumexp(rows.x, rows.mask, target, scale, workers)
        if options is not None:
            seen = rows.x, rows.mask, target
            kept.keep(options, workers, out, repeat, rows.inputs, (result,), seen)
        lse = deliver(result, out)
    given = lse if out is not None else lse[()]
    if not return_sign:
        return given
    # Without factors nothing is negative; NaN stays.
    sign = np.where(np.isnan(lse), lse, lse > -np.inf).astype(lse.dtype)
    return given, sign[()]


def _with_factors(
    x: Any,
    axis: Any,
    b: Any,
    scale: float,
    mask: Any,
    keepdims: bool,
    return_sign: bool,
    out: Any,
    backend: str | None,
    workers: int,
) -> tuple[Any, Any]:
    """Compute logsumexp with factors `b`, and the signs of the sums if they are asked for."""
    rows = Rows.of(x, axis, mask, b)
    shape = rows.reduced(keepdims)
    if out is not None:
        check_out(out, shape, rows.dtype)
    # In float64, where no factor of float32 is far from another. Side by side: a kernel steps
    # through both results alike.
    both = new_array((*rows.outer, 2), FLOAT64)
    target, signs = both[..., 0], both[..., 1]
    with default_environment():
        assert rows.factors is not None
        compute = backends.pick(backend).logsumexp
        signed = signs if return_sign else None
        compute(rows.x, rows.mask, target, scale, workers, rows.factors, signed)
        beyond = rows_beyond_reach(rows.factors)
        if beyond is not None:  # those rows alone: what another one holds changes no bit of a row
            scores, factors, mask = within_reach(rows, scale, beyond)
            again = new_array((len(scores), 2), FLOAT64)
            signed = again[:, 1] if return_sign else None
            compute(scores, mask, again[:, 0], 1.0, workers, factors, signed)
            both[beyond] = again
        result = result_array(out, shape, rows.dtype, ())
        result[...] = target.reshape(shape)
        sign = signs.reshape(shape).astype(rows.dtype)[()] if return_sign else None
    return deliver(result, out) if out is not None else result[()], sign


def _begin(
    kind: str, axis: Any, scale: Any, backend: Any, threads: Any
) -> tuple[tuple[Hashable, ...] | None, float, int]:
    """Check what no array decides; returns the options of a kept call, the scale, the threads."""
    scale = finite_number("scale", scale, "1 leaves the scores as they are")
    workers = resolve(threads)
    if type(axis) is not int and axis is not None:
        return None, scale, workers
    spelled = scale if scale >= LEAST_NORMAL else scale_of(scale)
    return (kind, backends.choose(backend), axis, spelled), scale, workers


def _arrays(x: Any, mask: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Make arrays of what is none yet, so that a repeated call of lists is found too."""
    if type(x) is not np.ndarray:
        x = as_array("x", x)
    if mask is not None and type(mask) is not np.ndarray:
        mask = as_array("mask", mask)
    return x, mask


def _weights(
    kind: str, x: Any, axis: Any, scale: Any, mask: Any, out: Any, backend: Any, threads: Any
) -> np.ndarray:
    options, scale, workers = _begin(kind, axis, scale, backend, threads)
    x, mask = _arrays(x, mask)
    if options is not None:
        found = kept.find(options, workers, out, x, mask)
        if found is not None:
            return found  # type: ignore[no-any-return]
    rows = Rows.of(x, axis, mask)
    result, target = _target(rows, out)
    function = getattr(backends.pick(backend), kind)
    with default_environment():
        repeat = function(rows.x, rows.mask, target, scale, workers)
    if options is not None:
        seen = rows.x, rows.mask, target
        kept.keep(options, workers, out, repeat, rows.inputs, (result,), seen)
    return deliver(result, out)  # type: ignore[no-any-return]


def _target(rows: Rows, out: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the result in the caller's shape and the same memory as (*outer, n)."""
    joined = (*rows.outer, rows.x.shape[-1])
    order = order_of(rows.axes, len(rows.shape))
    if out is not None:
        checked = check_out(out, rows.shape, rows.dtype)
        x, mask = rows.inputs
        # In place is safe row by row: a row is read before its weights are written.
        others = (mask,) if x is not None and _same_memory(checked, x) else (x, mask)
        if is_direct(checked, rows.dtype, others):
            target = _view_joined(checked, order, joined)
            if target is not None:
                return checked, target
    result = new_array(rows.shape, rows.dtype)
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


def _same_memory(one: np.ndarray, other: np.ndarray) -> bool:
    """Tell whether two arrays are the same elements in the same places."""
    return one is other or (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.strides == other.strides
        and one.ctypes.data == other.ctypes.data
    )
