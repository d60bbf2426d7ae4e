"""Linear maps, and weights packed once for many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fastattn._core import backends, kept, names
from fastattn._core.arrays import (
    LINE,
    as_array,
    check_dims,
    check_size,
    deliver,
    dtypes,
    on_lines,
    result_array,
)
from fastattn._core.constants import PANEL_KEYS, padded
from fastattn._core.environment import default_environment
from fastattn._core.threads import resolve

if TYPE_CHECKING:
    from fastattn._core.annotations import ArrayLike, BackendName

__all__ = ["PackedWeight", "linear", "pack_linear"]

_TURNED_FEATURES = 1024


class PackedWeight:
    """Weights of a linear map in the order in which `linear` reads them; made by `pack_linear`.

    It holds a copy, and cannot be changed. Pickles.

    Attributes
    ----------
    shape : tuple of int
        (N, K), that of the weights.
    dtype : dtype
        That of the weights; float64 for integers.
    nbytes : int
        Memory it takes: N goes up to the next multiple of 64.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> packed = fastattn.pack_linear(np.ones((3, 4), np.float32))
    >>> fastattn.linear(np.ones((2, 4), np.float32), packed)
    array([[4., 4., 4.],
           [4., 4., 4.]], dtype=float32)
    """

    __slots__ = ("_panels", "shape")

    shape: tuple[int, int]
    _panels: np.ndarray

    def __init__(self, *arguments: object, **options: object) -> None:
        raise TypeError("a PackedWeight is made by `fastattn.pack_linear(weight)`")

    def __setattr__(self, name: str, value: object) -> Never:
        raise AttributeError(f"{name} of a PackedWeight cannot be set: pack other weights")

    def __delattr__(self, name: str) -> Never:
        raise AttributeError(f"{name} of a PackedWeight cannot be deleted")

    def __array__(self, *arguments: object, **options: object) -> Never:
        raise TypeError("a PackedWeight is no array: it is what linear takes for weight, alone")

    @property
    def dtype(self) -> np.dtype:
        """That of the weights; float64 for integers."""
        return self._panels.dtype

    @property
    def nbytes(self) -> int:
        """Memory it takes."""
        return self._panels.nbytes

    def __repr__(self) -> str:
        return f"PackedWeight(shape={self.shape}, dtype={self.dtype})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_panels, (self._panels, self.shape)


def _of_panels(panels: np.ndarray, shape: tuple[int, int]) -> PackedWeight:
    if panels.ctypes.data % LINE:  # as they come from a pickle
        panels, given = on_lines(panels.shape, panels.dtype), panels
        panels[...] = given
    panels.flags.writeable = False
    packed = object.__new__(PackedWeight)
    object.__setattr__(packed, "_panels", panels)
    object.__setattr__(packed, "shape", shape)
    return packed


@names.closed
def pack_linear(weight: ArrayLike, **unknown: Never) -> PackedWeight:
    """Pack the weights of a linear map once, for many calls of `linear`.

    Parameters
    ----------
    weight : array_like, (N, K)
        As for `linear`. It is copied, in its own dtype.

    Returns
    -------
    packed : PackedWeight
        What `linear` takes for `weight`, with the very bits that the weights give. Calls of few
        rows gain most: weights then come from memory in the order of their addresses.

    Raises
    ------
    ValueError
        If `weight` has not two dims.
    TypeError
        If it is complex, extended precision, object, masked, sparse or lazy.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> weight = np.random.default_rng(0).standard_normal((100, 30), dtype=np.float32)
    >>> packed = fastattn.pack_linear(weight)
    >>> packed, packed.nbytes
    (PackedWeight(shape=(100, 30), dtype=float32), 15360)
    >>> x = np.ones((5, 30), np.float32)
    >>> np.array_equal(fastattn.linear(x, packed), fastattn.linear(x, weight))
    True
    """
    if unknown:
        names.refuse(pack_linear, unknown)
    weight = _check_weight(as_array("weight", weight))
    _, dtype = dtypes(("weight", weight.dtype, weight.shape))
    outputs, features = weight.shape
    shape = padded(outputs, PANEL_KEYS) // PANEL_KEYS, features, PANEL_KEYS
    check_size(shape, dtype, "packed weights")
    panels = on_lines(shape, dtype)
    with default_environment():
        for number, panel in enumerate(panels):
            _fill_panel(panel, weight[number * PANEL_KEYS : (number + 1) * PANEL_KEYS])
    return _of_panels(panels, (outputs, features))


def _fill_panel(panel: np.ndarray, rows: np.ndarray) -> None:
    """Turn up to 64 rows of weights into a panel, zeros behind them."""
    # By way of a copy whose rows are no power of two apart, which would be in each other's way in
    # the nearest cache: three times as fast.
    near = np.empty((len(rows), _TURNED_FEATURES + PANEL_KEYS), panel.dtype)
    for first in range(0, len(panel), _TURNED_FEATURES):
        part = rows[:, first : first + _TURNED_FEATURES]
        turned = near[:, : part.shape[1]]
        turned[...] = part
        panel[first : first + _TURNED_FEATURES, : len(rows)] = turned.T
    panel[:, len(rows) :] = 0


def unpacked(packed: PackedWeight) -> np.ndarray:
    """Return the weights (N, K) that were packed, as a read-only copy."""
    rows = packed._panels.transpose(0, 2, 1).reshape(-1, packed.shape[1])[: packed.shape[0]]
    rows.flags.writeable = False
    return rows


def _check_weight(weight: np.ndarray) -> np.ndarray:
    if weight.ndim != 2:
        more = ": one output is `weight[None]`" if weight.ndim == 1 else ""
        raise ValueError(f"weight of shape {weight.shape} must have two dims, (N, K){more}")
    return weight


@names.closed
def linear(
    x: ArrayLike,
    weight: ArrayLike | PackedWeight,
    bias: ArrayLike | None = None,
    *,
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> np.ndarray:
    r"""Apply a linear map to every row: :math:`y = x W^T + b`, ``x @ weight.T + bias``.

    Parameters
    ----------
    x : array_like, (..., K)
        Rows of K features; one dim is one row.
    weight : array_like, (N, K), or PackedWeight
        One row of weights per output, as PyTorch's ``Linear`` keeps them. Weights that are used
        again and again are packed once, by `pack_linear`.
    bias : array_like, (N,), optional
        What is added to each output. None: nothing is.
    out : ndarray, (..., N), optional
        Where to store the result; may overlap an input. None: a new array.
    backend : {"cython", "numba", "reference"}, optional
        None: the automatic choice, as for `attention`.
    threads : int, optional
        At most this many threads. None: as for `attention`.

    Returns
    -------
    y : ndarray, (..., N)
        Of the dtype to which the operands promote; integers count as float64. `out` itself
        where given.

    Raises
    ------
    ValueError
        If K or N differ, `weight` has not two dims, or `x` none.
    TypeError
        If an operand is complex, extended precision, object, masked, sparse or lazy.

    Notes
    -----
    The bits of a row of the result depend on that row of `x`, on `weight` and `bias` alone: not on
    the rows beside it, on threads or layout, or on whether weights are packed. Halves are
    accumulated in float32, and rounded once, after the bias. One row with weights that are not
    packed may take longer than elsewhere, up to 1.4 times as long as NumPy's product.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> fastattn.linear([1.0, 2.0], [[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], [0.5, 0.0, 0.0])
    array([11.5, 17. , 23. ])

    A row alone has the bits that it has among others:

    >>> rng = np.random.default_rng(0)
    >>> x, weight = (rng.standard_normal((n, 300), dtype=np.float32) for n in (50, 200))
    >>> y = fastattn.linear(x, weight)
    >>> np.array_equal(fastattn.linear(x[7], weight), y[7])
    True
    """
    if unknown:
        names.refuse(linear, unknown)
    workers = resolve(threads)
    # What is no array yet is one from here on: a repeated call of lists is found too.
    if type(x) is not np.ndarray:
        x = as_array("x", x)
    outputs = None
    if type(weight) is PackedWeight:
        outputs, held = weight.shape[0], weight._panels
    elif type(weight) is not np.ndarray:
        held = as_array("weight", weight)
    else:
        held = weight
    if bias is not None and type(bias) is not np.ndarray:
        bias = as_array("bias", bias)
    options = "linear", backends.choose(backend), outputs
    found = kept.find(options, workers, out, x, held, bias)
    if found is not None:
        return found  # type: ignore[no-any-return]
    shape = _check_weight(held).shape if outputs is None else (outputs, held.shape[1])
    dtype = _check_operands(x, held.dtype, shape, bias, outputs is None)
    result = result_array(out, (*x.shape[:-1], shape[0]), dtype, (x, held, bias))
    with default_environment():
        repeat = backends.pick(backend).linear(x, held, bias, result, workers)
    operands = x, held, bias
    kept.keep(options, workers, out, repeat, operands, (result,), (*operands, result))
    return deliver(result, out)  # type: ignore[no-any-return]


def _check_operands(
    x: np.ndarray,
    weight_dtype: np.dtype,
    shape: tuple[int, ...],
    bias: np.ndarray | None,
    can_turn: bool,
) -> np.dtype:
    """Return the dtype of the result of operands that fit, or raise; `shape` is (N, K)."""
    shown = f"x {x.shape}, weight {shape}"
    if x.ndim < 1:
        raise ValueError(f"too few dims: {shown}; x is (..., K) or (K,)")
    check_dims(x.ndim)
    outputs, features = shape
    if x.shape[-1] != features:
        turned = ", pass `weight.T`" if can_turn and x.shape[-1] == outputs else ""
        raise ValueError(
            f"x has K = {x.shape[-1]} features and weight K = {features}: {shown}; weight is "
            f"(N, K){turned}"
        )
    named = [("x", x.dtype, x.shape), ("weight", weight_dtype, shape)]
    if bias is not None:
        if bias.shape != (outputs,):
            hint = ", one number per row of weight"
            if bias.size == 1:
                hint = f": `np.full({outputs}, bias)`"
            elif bias.size == outputs:
                hint = ": `np.ravel(bias)`"
            raise ValueError(
                f"bias has shape {bias.shape} and must have ({outputs},){hint}; {shown}"
            )
        named.append(("bias", bias.dtype, bias.shape))
    return dtypes(*named)[1]
