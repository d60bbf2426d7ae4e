"""Handing out a limited budget in proportion to weights, within bounds, to the unit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn._core import backends
from fastattn._core.arrays import as_array, dtypes
from fastattn._core.threads import resolve

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["allocate"]

METHODS = ("largest_remainder", "sainte_lague", "dhondt", "huntington_hill")
# A quotient this close to a whole number, relatively, is that number: 0.3 / 0.1 is three units.
_WHOLE = 4 * 2.0**-52
_MOST_UNITS = 2**52  # sums of amounts rounded up must be exact too


def allocate(
    weights: ArrayLike,
    budget: ArrayLike,
    *,
    lower: ArrayLike = 0,
    upper: ArrayLike | None = None,
    unit: float | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    method: str = "largest_remainder",
    on_unspent: str = "raise",
    backend: str | None = None,
    threads: int | None = None,
) -> Any:
    r"""Hand out a budget in proportion to weights: :math:`a_i = \min(\max(\theta w_i, l_i), u_i)`.

    with the one :math:`\theta` for which the amounts add up to the budget. Of all amounts within
    the bounds that spend the budget these are the closest to the weights in relative entropy.
    With `unit` the amounts are whole numbers of units.

    Parameters
    ----------
    weights : array_like
        Finite and not negative; any shape, rows along `axis`.
    budget : array_like, broadcasts to the shape of `weights` without `axis`
        What each row hands out; finite, not negative.
    lower, upper : array_like, broadcast to the shape of `weights`
        Least and most for each receiver, ``0 <= lower <= upper``; `upper` None or inf: no cap.
        A receiver of weight 0 gets its lower bound.
    unit : int or float, optional
        Hand out whole multiples of this: whole hours, cents, seats. `lower` is rounded up to units
        and `upper` down. None: real amounts.
    axis : int
        The axis that a budget is handed out over.
    where : array_like of bool, broadcasts to the shape of `weights`, optional
        False: not a receiver. It gets 0, whatever its weight (NaN too) and bounds are.
    method : {"largest_remainder", "sainte_lague", "dhondt", "huntington_hill"}
        With `unit` only: how units are rounded. The first rounds the real amounts down and gives
        what is left, one unit each, to the largest remainders; the others give unit after unit to
        the largest :math:`w_i / d(s_i)`, where :math:`s_i` units are there already and :math:`d(s)`
        is :math:`2s + 1`, :math:`s + 1` or :math:`\sqrt{s (s + 1)}`.
    on_unspent : {"raise", "keep"}
        What to do where the caps forbid spending all: an error, or return also what is left.
    backend : {"cython", "numba", "reference"}, optional
        None: the automatic choice, as for `attention`.
    threads : int, optional
        At most this many threads. None: as for `attention`.

    Returns
    -------
    amounts : ndarray, the shape of `weights`
        In the unit of the budget: float64, whatever the dtype of the weights; int64 where `unit`
        is an int.
    unspent : ndarray, the shape of `weights` without `axis`
        With ``on_unspent="keep"`` only: what the caps left of each budget. float64; int64 where
        `unit` is an int and the budgets are integers.

    Raises
    ------
    ValueError
        If a weight, budget or bound is NaN, negative, or a lower bound above its upper; if a budget
        is below the sum of its lower bounds, is no whole number of units, or cannot be spent; the
        text names the row. Nothing is returned then.
    TypeError
        If an operand is complex, extended precision, object, masked, sparse or lazy, or `where`
        not bool.

    Notes
    -----
    Whole units add up to the budget exactly. Real amounts, each rounded once, add up to it within
    one unit in the last place of the budget (add them with `math.fsum`: a plain sum rounds). What
    caps leave within that counts as spent. The amounts do not depend on the order of the
    receivers, on other rows, on threads or on memory layout, bit for bit.

    Claims that differ by less than one part in 2**80 count as equal, and remainders that differ by
    less than that part of a unit or a 2**98th of the budget; among equals the lower index comes
    first. The divisor methods are monotone: a larger budget takes
    nothing from anybody, and neither do they with a larger weight of one's own. Largest remainders
    stay within one unit of the real amounts instead. Weights below 1e-300 of their row's largest
    count as that much.

    References
    ----------
    .. [1] M. Balinski, H. P. Young, "Fair Representation", 1982: the methods and what they keep.
    .. [2] J. Demmel, H. D. Nguyen, "Fast Reproducible Floating-Point Summation", ARITH 2013, for
       sums that no order changes.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.allocate([0.5, 0.3, 0.2], 100.0, upper=[40.0, 100.0, 100.0])
    array([40., 36., 24.])
    >>> fastattn.allocate([5, 3, 1], 10, unit=1)
    array([6, 3, 1])
    >>> fastattn.allocate([[1, 1, 1], [0, 2, 1]], [1, 2], unit=1)
    array([[1, 0, 0],
           [0, 1, 1]])
    >>> fastattn.allocate([1.0, 1.0], 10.0, upper=3.0, on_unspent="keep")
    (array([3., 3.]), np.float64(4.0))
    """
    keep = _choice("on_unspent", on_unspent, ("raise", "keep")) == "keep"
    method = _choice("method", method, METHODS)
    if unit is None and method != METHODS[0]:
        raise ValueError(
            f"method={method!r} hands out whole units: say how large they are, e.g. unit=1"
        )
    workers = resolve(threads)
    engine = backends.pick(backend, "allocate")
    rows = _Rows(weights, budget, lower, upper, where, axis)
    if unit is not None:
        rows.count_in(unit, keep)
    whole = type(rows.unit) is int
    amounts = np.empty(rows.shape, np.int64 if whole else np.float64)
    unspent = np.empty(rows.shape[:-1], np.float64)
    engine.allocate(
        rows.weights,
        rows.budget,
        rows.lower,
        rows.upper,
        rows.where,
        amounts,
        unspent,
        None if unit is None else method,
        1 if rows.unit is None else rows.unit,
        workers,
    )
    rows.check(unspent, keep)
    amounts = np.moveaxis(amounts, -1, rows.axis)
    if not keep:
        return amounts
    return amounts, rows.left(unspent)


def _choice(name: str, x: Any, words: tuple[str, ...]) -> str:
    if type(x) is str and x in words:
        return x
    raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}, not {x!r}")


class _Rows:
    """The operands of one call as rows of receivers: (*rows, n), budgets (*rows)."""

    def __init__(
        self, weights: Any, budget: Any, lower: Any, upper: Any, where: Any, axis: Any
    ) -> None:
        given = _numbers("weights", weights)
        if given.ndim == 0:
            raise ValueError(f"weights are one number, {weights!r}: receivers need an axis")
        if type(axis) is not int or not -given.ndim <= axis < given.ndim:
            raise ValueError(
                f"axis {axis!r} does not exist in weights of shape {given.shape}: an int from "
                f"{-given.ndim} to {given.ndim - 1}"
            )
        self.axis = axis % given.ndim
        self.given = given.shape
        self.unit: float | None = None
        self.weights = np.moveaxis(given, self.axis, -1)
        self.shape = self.weights.shape
        self.budget = self._budgets(budget)
        self.kept_back = np.zeros(())  # what is no whole number of units
        self.where = None if where is None else self._spread("where", _bools(where))
        # Bounds that are one number stay one number, and no bound is none.
        self.low = np.asarray(_numbers("lower", lower), np.float64)
        self.cap = None if upper is None else np.asarray(_numbers("upper", upper), np.float64)
        self._place_bounds()

    def _place_bounds(self) -> None:
        none = self.low.ndim == 0 and self.low == 0
        self.lower = None if none else self._spread("lower", self.low)
        self.upper = None if self.cap is None else self._spread("upper", self.cap)

    def _spread(self, name: str, x: np.ndarray) -> np.ndarray:
        try:
            return np.moveaxis(np.broadcast_to(x, self.given), self.axis, -1)
        except ValueError:
            raise ValueError(
                f"{name} of shape {x.shape} does not broadcast to the shape of weights, "
                f"{self.given}: every dim must be equal, 1 or missing"
            ) from None

    def _budgets(self, budget: Any) -> np.ndarray:
        given = _numbers("budget", budget)
        self.whole_budgets = given.dtype.kind in "biu"
        given = np.asarray(given, np.float64)
        try:
            budgets = np.broadcast_to(given, self.shape[:-1])
        except ValueError:
            raise ValueError(
                f"budget of shape {given.shape} does not broadcast to the rows of weights, "
                f"{self.shape[:-1]} (shape {self.given} without axis {self.axis}): one budget for "
                "each row, or one for all"
            ) from None
        wrong = ~((given >= 0) & (given < math.inf))
        if wrong.any():
            at = _first(wrong)
            raise ValueError(f"budget{_at(at)} is {given[at]}: budgets are finite and not negative")
        return budgets

    def count_in(self, unit: Any, keep: bool) -> None:
        """Turn budgets and bounds into numbers of units."""
        self.unit = _unit(unit)
        size = float(self.unit)
        with np.errstate(over="ignore"):
            units = _round(self.budget / size, np.floor)
        large = (units > _MOST_UNITS) | (self.budget >= 2.0**63)
        if large.any():
            at = _first(large)
            raise ValueError(
                f"the budget{_of(at)} is {self.budget[at]}, more than 2**52 units of {unit} or "
                "more than an int64 holds: count in something larger"
            )
        odd = ~(np.abs(self.budget / size - units) <= _WHOLE * np.maximum(units, 1))
        if odd.any() and not keep:
            at = _first(odd)
            raise ValueError(
                f"the budget{_of(at)} is {self.budget[at]}, which is no whole number of units of "
                f'{unit}: round it, or let on_unspent="keep" leave the rest over'
            )
        self.kept_back = np.where(odd, self.budget - units * size, 0.0)
        self.budget = units
        with np.errstate(invalid="ignore", over="ignore"):
            self.low = _round(self.low / size, np.ceil)
            self.cap = None if self.cap is None else _round(self.cap / size, np.floor)
        self._place_bounds()

    def left(self, unspent: np.ndarray) -> Any:
        """Return what was not spent, in the unit of the budget."""
        if self.unit is None:
            return unspent[()]
        left = unspent * self.unit + self.kept_back
        whole = type(self.unit) is int and self.whole_budgets
        return (left.astype(np.int64) if whole else left)[()]

    def check(self, unspent: np.ndarray, keep: bool) -> None:
        """Raise for the first row that could not be done; NaN marks those that make no sense."""
        wrong = ~(unspent == 0) if not keep else np.isnan(unspent)
        if wrong.any():
            at = _first(wrong)
            raise ValueError(self._complaint(at, float(unspent[at])))

    def _complaint(self, at: tuple[int, ...], unspent: float) -> str:
        n = self.shape[-1]
        weights = self.weights[at].astype(np.float64)
        lower = np.zeros(n) if self.lower is None else self.lower[at]
        upper = np.full(n, math.inf) if self.upper is None else self.upper[at]
        part = np.ones(n, bool) if self.where is None else self.where[at]
        row = _of(at)
        size, name = (
            (1.0, "") if self.unit is None else (float(self.unit), f" units of {self.unit}")
        )
        for i in np.flatnonzero(part):
            if not 0 <= weights[i] < math.inf:
                return (
                    f"weight {i}{row} is {weights[i]}: weights are finite and not negative; "
                    "where= leaves receivers out"
                )
            if not 0 <= lower[i] < math.inf or not lower[i] <= upper[i]:
                return (
                    f"receiver {i}{row} has lower {lower[i]} and upper {upper[i]}{name}: bounds "
                    "must be 0 <= lower <= upper, and lower finite"
                )
        least = math.fsum(lower[part])
        budget = f"the budget{row} is {self.budget[at] * size}"
        if math.isnan(unspent):
            return (
                f"{budget}, below the sum of the lower bounds, {least * size}: raise the budget or "
                "lower the bounds"
            )
        return (
            f"{budget}, and its receivers can take {(self.budget[at] - unspent) * size} at most: "
            f'raise upper, or let on_unspent="keep" return the {unspent * size} that are left'
        )


def _numbers(name: str, x: Any) -> np.ndarray:
    array = as_array(name, x)
    dtypes((name, array.dtype, array.shape))
    return array


def _bools(where: Any) -> np.ndarray:
    array = as_array("where", where)
    if array.dtype != np.bool_:
        raise TypeError(
            f"where of shape {array.shape} has dtype {array.dtype}: it must be bool, True for "
            "receivers: where.astype(bool)"
        )
    return array


def _unit(unit: Any) -> float:
    """Return the unit: an int where it is one, else a float."""
    if isinstance(unit, (bool, np.bool_, str, bytes)) or np.ndim(unit) != 0:
        raise TypeError(f"unit must be one positive number, not {unit!r}")
    if isinstance(unit, (int, np.integer)):
        size: float = int(unit)
    else:
        try:
            size = float(unit)
        except (TypeError, ValueError) as error:
            raise TypeError(f"unit must be one positive number, not {unit!r}") from error
    if not 0 < size < 2**63:
        raise ValueError(f"unit must be positive and finite, not {unit!r}")
    return size


def _round(x: np.ndarray, towards: Any) -> np.ndarray:
    """Round to whole numbers, up or down; what is next to one is that one."""
    with np.errstate(invalid="ignore"):
        nearest = np.rint(x)
        close = np.abs(x - nearest) <= _WHOLE * np.maximum(nearest, 1)
    result: np.ndarray = np.where(close, nearest, towards(x))
    return result


def _first(wrong: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(wrong)[0])


def _at(at: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, at))}]" if at else ""


def _of(at: tuple[int, ...]) -> str:
    """Name a row in the middle of a sentence."""
    return f" of row {at[0] if len(at) == 1 else at}" if at else ""
