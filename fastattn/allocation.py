"""Handing out a limited budget in proportion to weights, within bounds, to the unit."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any, Never, get_args

import numpy as np

from fastattn._core import backends, names
from fastattn._core.annotations import Method, OnUnspent
from fastattn._core.arrays import (
    FLOAT64,
    as_array,
    as_numbers,
    check_dtype,
    check_size,
    deliver,
    is_bool,
    new_array,
    result_array,
)
from fastattn._core.environment import default_environment
from fastattn._core.threads import resolve
from fastattn.units import MOST_UNITS, Unit

if TYPE_CHECKING:
    from fastattn._core.annotations import ArrayLike, BackendName

__all__ = ["allocate"]

METHODS: tuple[str, ...] = get_args(Method)


@names.closed
@default_environment()
def allocate(
    weights: ArrayLike,
    budget: ArrayLike,
    *,
    lower: ArrayLike = 0,
    upper: ArrayLike | None = None,
    unit: float | None = None,
    axis: int = -1,
    where: ArrayLike | None = None,
    method: Method = "largest_remainder",
    on_unspent: OnUnspent = "raise",
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> Any:
    r"""Hand out a budget in proportion to weights: :math:`a_i = \min(\max(\theta w_i, l_i), u_i)`.

    with the one :math:`\theta` for which the amounts add up to the budget. Of all amounts within
    the bounds that spend the budget these are the closest to the weights in relative entropy.
    With `unit` the amounts are whole numbers of units.

    Parameters
    ----------
    weights : array_like
        Finite and not negative; any shape, rows along `axis`. Read as float64, as are all numbers;
        labels of pandas objects are not looked at (`attention_allocation` does).
    budget : array_like, broadcasts to the shape of `weights` without `axis`
        What each row hands out; finite, not negative.
    lower, upper : array_like, broadcast to the shape of `weights`
        Least and most for each receiver, ``0 <= lower <= upper``; `upper` None or inf: no cap.
        A receiver of weight 0 gets its lower bound.
    unit : int or float, optional
        Hand out whole multiples of this: whole hours, cents, seats; at most 2**52 of them. `lower`
        is rounded up to units and `upper` down. None: real amounts.
    axis : int
        The axis that a budget is handed out over.
    where : array_like of bool, broadcasts to the shape of `weights`, optional
        False: not a receiver. It gets 0, whatever its weight (NaN too) and bounds are.
    method : {"largest_remainder", "sainte_lague", "dhondt", "huntington_hill"}
        With `unit` only: how units are rounded. The first rounds the real amounts down and gives
        what is left, one unit each, to the largest remainders; the others give unit after unit to
        the largest :math:`w_i / d(s_i)`, where :math:`s_i` units are there already and :math:`d(s)`
        is :math:`2s + 1`, :math:`s + 1` or :math:`\sqrt{s (s + 1)}` (which gives everybody of any
        weight a first unit before anybody a second).
    on_unspent : {"raise", "keep"}
        What to do where the caps forbid spending all: an error, or return also what is left.
    out : ndarray, the shape of `weights`, optional
        Where to store the amounts, of their dtype; may overlap an operand. None: a new array.
    backend : {"cython", "numba", "reference"}, optional
        None: the automatic choice, as for `attention`.
    threads : int, optional
        At most this many threads. None: as for `attention`.

    Returns
    -------
    amounts : ndarray, the shape of `weights`
        In the unit of the budget: float64, whatever the dtype of the weights; int64 where `unit`
        is an int. `out` itself where given.
    unspent : ndarray, the shape of `weights` without `axis`
        With ``on_unspent="keep"`` only: what the caps left of each budget. float64; int64 where
        `unit` is an int and the budgets are integers.

    Raises
    ------
    ValueError
        If a weight, budget or bound is NaN, negative, or a lower bound above its upper; if a budget
        is below the sum of its lower bounds, is no whole number of units, or cannot be spent; the
        text names the row. Nothing is returned then, and what `out` holds is no result.
    TypeError
        If an operand is complex, extended precision, object, masked, sparse or lazy, a budget or
        bound is a bool, or `where` is none.

    Notes
    -----
    Whole units add up to the budget exactly: as integers with an int `unit`, else in number, each
    amount being the float nearest to so many units (57 cents of 0.01 are 0.57). Real amounts, each
    rounded once, add up to it within one unit in the last place of the budget (add them with
    `math.fsum`: a plain sum rounds), unless the budget is so small that they are subnormal. What
    caps leave within that counts as spent. The amounts do not depend on the order of the
    receivers, on other rows, on threads or on memory layout, bit for bit.

    Claims that differ by less than one part in 2**80 count as equal, and remainders that differ by
    less than that part of a unit or a 2**98th of the budget; among equals the lower index comes
    first (receivers in reverse have other amounts exactly where that decided). The divisor methods
    are monotone: a larger budget takes nothing from anybody, and neither do they with a larger
    weight of one's own. Largest remainders stay within one unit of the real amounts instead.
    Weights below 1e-300 of their row's largest count as that much, and bounds below 1e-300 of the
    budget may count as 0.

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
    >>> fastattn.allocate([53, 24, 23], 7, unit=1, method="dhondt", where=[True, True, False])
    array([5, 2, 0])
    """
    if unknown:
        names.refuse(allocate, unknown)
    keep = _choice("on_unspent", on_unspent, get_args(OnUnspent)) == "keep"
    _choice("method", method, METHODS)
    if unit is None and method != METHODS[0]:
        raise ValueError(
            f"the method {method!r} hands out whole units: say how large they are, e.g. `unit=1`"
        )
    workers = resolve(threads)
    engine = backends.pick(backend, "allocate")
    rows = _Rows(weights, budget, lower, upper, where, axis)
    if unit is not None:
        rows.count_in(Unit(unit), keep)
    whole = rows.unit is not None and rows.unit.is_int
    operands = (rows.given, rows.budget, rows.lower, rows.upper, rows.where)
    amounts = result_array(out, rows.given.shape, np.dtype(np.int64 if whole else float), operands)
    unspent = new_array(rows.shape[:-1], FLOAT64)
    engine.allocate(
        rows.weights,
        rows.budget,
        rows.lower,
        rows.upper,
        rows.where,
        np.moveaxis(amounts, rows.axis, -1),
        unspent,
        None if unit is None else method,
        1 if rows.unit is None or rows.unit.parts else rows.unit.size,
        workers,
    )
    rows.check(unspent, keep)
    if rows.unit is not None and rows.unit.parts:
        amounts /= rows.unit.parts
    amounts = deliver(amounts, out)
    return (amounts, rows.left(unspent)) if keep else amounts


def _choice(name: str, x: Any, words: tuple[str, ...]) -> str:
    if type(x) is str and x in words:
        return x
    raise ValueError(f"{name} must be one of {', '.join(map(repr, words))}, not {x!r}")


class _Rows:
    """The operands of one call as rows of receivers: (*rows, n), budgets (*rows)."""

    def __init__(
        self, weights: Any, budget: Any, lower: Any, upper: Any, where: Any, axis: Any
    ) -> None:
        self.given = given = as_array("weights", weights)
        check_dtype("weights", given.dtype, given.shape)
        check_size(given.shape, FLOAT64, "weights")
        if given.ndim == 0:
            raise ValueError(f"weights are one number, {weights!r}: receivers need an axis")
        self.axis = _axis(axis, given.shape)
        self.unit: Unit | None = None
        self.weights = np.moveaxis(given, self.axis, -1)
        self.shape = self.weights.shape
        self.own_budget = _numbers("budget", budget)
        self.budget = self._budgets(np.asarray(self.own_budget, np.float64))
        self.where = None if where is None else self._spread("where", _bools(where))
        self.low = _numbers("lower", lower)
        self.cap = None if upper is None else _numbers("upper", upper)
        self._place_bounds()

    def _place_bounds(self) -> None:
        """Bounds that are one number stay one number, and no bound is none."""
        low, cap = (None if x is None else np.asarray(x, np.float64) for x in (self.low, self.cap))
        none = low is None or (low.ndim == 0 and low == 0)
        self.lower = None if none else self._spread("lower", low)
        self.upper = None if cap is None else self._spread("upper", cap)

    def _spread(self, name: str, x: Any) -> np.ndarray:
        try:
            return np.moveaxis(np.broadcast_to(x, self.given.shape), self.axis, -1)
        except ValueError:
            raise ValueError(
                f"{name} of shape {x.shape} does not broadcast to the shape of weights, "
                f"{self.given.shape}: every dim must be equal, 1 or missing"
            ) from None

    def _budgets(self, given: np.ndarray) -> np.ndarray:
        try:
            budgets = np.broadcast_to(given, self.shape[:-1])
        except ValueError:
            raise ValueError(
                f"budget of shape {given.shape} does not broadcast to the rows of weights, "
                f"{self.shape[:-1]} (shape {self.given.shape} without axis {self.axis}): one "
                "budget for each row, or one for all"
            ) from None
        wrong = ~((given >= 0) & (given < math.inf))
        if wrong.any():
            at = _first(wrong)
            raise ValueError(f"budget{_at(at)} is {given[at]}: budgets are finite and not negative")
        return budgets

    def _complain_of_budget(self, wrong: np.ndarray, text: str) -> None:
        """Raise for the first budget that cannot be counted in units."""
        if wrong.any():
            rows = self.shape[:-1]
            at = _first(np.broadcast_to(wrong, rows)) if math.prod(rows) else ()
            given = np.broadcast_to(self.own_budget, rows)[at] if at else self.own_budget
            raise ValueError(f"the budget{_of(at)} is {given}, {text}")

    def count_in(self, unit: Unit, keep: bool) -> None:
        """Turn budgets and bounds into numbers of units."""
        self.unit = unit
        units, self.beside = unit.split(self.own_budget)
        self._complain_of_budget(
            (units > MOST_UNITS) | (unit.is_int & (np.asarray(self.own_budget, float) >= 2.0**63)),
            f"more than 2**52 units of {unit.size} or more than an int64 holds: count in something "
            "larger",
        )
        if not keep:
            self._complain_of_budget(
                self.beside != 0,
                f"which is no whole number of units of {unit.size}: round it, or let "
                '`on_unspent="keep"` leave the rest over',
            )
        self.budget = np.broadcast_to(units, self.shape[:-1])
        self.low = unit.counts(self.low, np.ceil)
        self.cap = None if self.cap is None else unit.counts(self.cap, np.floor)
        self._place_bounds()

    def left(self, unspent: np.ndarray) -> Any:
        """Return what was not spent, in the unit of the budget."""
        if self.unit is None:
            return unspent[()]
        left = self.unit.amounts(unspent) + self.beside
        whole = self.unit.is_int and self.own_budget.dtype.kind in "biu"
        return left.astype(np.int64 if whole else np.float64)[()]

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
        shown = float if self.unit is None else self.unit.shown
        no_weight = ~((weights >= 0) & (weights < math.inf))
        no_bounds = ~((lower >= 0) & (lower < math.inf) & (lower <= upper))
        wrong = np.flatnonzero(part & (no_weight | no_bounds))
        if wrong.size:
            i = int(wrong[0])
            if no_weight[i]:
                return (
                    f"weight {i}{row} is {weights[i]}: weights are finite and not negative; "
                    "the option where leaves receivers out"
                )
            rounded = "" if self.unit is None else f", in whole units of {self.unit.size}"
            return (
                f"receiver {i}{row} has lower {shown(lower[i])} and upper {shown(upper[i])}"
                f"{rounded}: bounds must be 0 <= lower <= upper, and lower finite"
            )
        budget = f"the budget{row} is {shown(self.budget[at])}"
        if math.isnan(unspent):
            least = shown(lower[part].sum())
            return (
                f"{budget}, below the sum of the lower bounds, {least}: raise the budget or lower "
                "the bounds"
            )
        ways = ["raise upper"] if (weights[part] > 0).any() else []
        if (weights[part] == 0).any():
            ways.append("give weight to those of weight 0, who get their lower bounds alone")
        if not part.any():
            ways.append("name receivers, of which this row has none")
        return (
            f"{budget}, and its receivers can take {shown(self.budget[at] - unspent)} at most: "
            f'{", ".join(ways)}, or let `on_unspent="keep"` return the {shown(unspent)} that are '
            "left"
        )


def _axis(axis: Any, shape: tuple[int, ...]) -> int:
    choice = f"weights of shape {shape}: an int from {-len(shape)} to {len(shape) - 1}"
    try:
        place = operator.index(axis)
    except TypeError:
        raise TypeError(f"axis {axis!r} is no axis of {choice}") from None
    if is_bool(axis):
        raise TypeError(f"axis {axis!r} is no axis of {choice}")
    if not -len(shape) <= place < len(shape):
        raise ValueError(f"axis {axis!r} does not exist in {choice}")
    return place % len(shape)


def _numbers(name: str, x: Any) -> np.ndarray:
    array = as_numbers(name, x)
    check_size(array.shape, FLOAT64, name)
    return array


def _bools(where: Any) -> np.ndarray:
    array = as_array("where", where)
    if array.dtype != np.bool_:
        raise TypeError(
            f"where of shape {array.shape} has dtype {array.dtype}: it must be bool, True for "
            "receivers: `np.asarray(where, bool)`"
        )
    return array


def _first(wrong: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.argwhere(wrong)[0])


def _at(at: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, at))}]" if at else ""


def _of(at: tuple[int, ...]) -> str:
    """Name a row in the middle of a sentence."""
    return f" of row {at[0] if len(at) == 1 else at}" if at else ""
