"""Hand out limited receivers to many requesters at once."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fastattn._core import backends, names
from fastattn._core.arrays import (
    FLOAT64,
    as_array,
    as_numbers,
    check_dtype,
    check_size,
    finite_number,
    is_bool,
)
from fastattn._core.environment import default_environment
from fastattn._core.threads import resolve

if TYPE_CHECKING:
    from fastattn._core.annotations import ArrayLike, BackendName

__all__ = ["SharedAllocation", "allocate_shared"]


@dataclass(frozen=True, eq=False)
class SharedAllocation:
    """What `allocate_shared` found.

    Attributes
    ----------
    allocation : ndarray, (m, n)
        What each requester spends on each receiver, float64.
    converged : bool
        Whether `violation` is at most the tolerance.
    iterations : int
        Rounds done; a step of Newton's method, or a try of one, is a round.
    violation : float
        How far from the solution the last round began, as a part of a budget: the largest, over
        the requesters, of what it and all further rounds would move, as far as the last ones tell,
        and of how far the requester is behind others that use a receiver it wants. No bound is
        ever exceeded, converged or not.

    Examples
    --------
    >>> import fastattn
    >>> found = fastattn.allocate_shared([[1.0, 1.0]], [8.0], [3.0, 4.0])
    >>> found.allocation, found.converged
    (array([[3., 4.]]), True)
    """

    allocation: np.ndarray
    converged: bool
    iterations: int
    violation: float


@names.closed
@default_environment()
def allocate_shared(
    weights: ArrayLike,
    budgets: ArrayLike,
    capacities: ArrayLike,
    *,
    tol: float = 1e-9,
    max_iter: int = 10_000,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> SharedAllocation:
    r"""Spend many budgets at once, by weights, on receivers of limited capacity.

    The result is :math:`x_{ij} = w_{ij} a_i b_j` with :math:`\sum_j x_{ij} \le` ``budgets[i]`` and
    :math:`\sum_i x_{ij} \le` ``capacities[j]``: all receivers shrink by a factor
    :math:`b_j \le 1` of their own, below 1 only where capacity is used up, and what a requester
    cannot spend there it spends on its other receivers, in proportion to their weights.

    Parameters
    ----------
    weights : array_like, (m, n)
        How much requester i wants of receiver j, at least 0; what is 0 gets nothing. Only ratios
        within a row matter. Labels of pandas objects are not looked at.
    budgets : array_like, (m,) or a number
        What each requester spends at most.
    capacities : array_like, (n,) or a number
        What each receiver takes at most; may be inf.
    tol : float
        Stop when the violation is at most this part of every budget.
    max_iter : int
        Stop after this many rounds in any case, which is reported and not an error.
    backend : {"cython", "numba", "reference"}, optional
        None: the automatic choice, as for `attention`.
    threads : int, optional
        At most this many threads. None: as for `attention`. Bits do not depend on it.

    Returns
    -------
    found : SharedAllocation
        The allocation, float64 (m, n), and how its search ended: ``converged``, ``iterations``,
        ``violation``.

    Raises
    ------
    ValueError
        If a weight, budget or capacity is negative or NaN, a weight or budget infinite, or the
        shapes do not fit; the text names row and column.
    TypeError
        If an operand is complex, extended precision, object, masked, sparse or lazy, or a budget or
        capacity a bool.

    See Also
    --------
    fastattn.fuse : with ``allocation`` as weights.

    Notes
    -----
    Where the capacities allow every budget to be spent, this is the allocation closest to the
    weights in relative entropy, :math:`\sum x_{ij} \log(x_{ij} / w_{ij})`, of all those that spend
    every budget. Where they do not, the shortfall is shared: the spent parts of the budgets are as
    equal as can be (whoever has the smallest has the largest possible, then the next, and so on),
    and with these sums per requester the allocation is again the closest to the weights. In both
    cases no other spends more in total: the sum is that of a maximum flow. Put differently, it is
    the point within the capacities that is closest, in relative entropy, to those that spend
    everything.

    Requesters and receivers take turns (Sinkhorn's iteration with one side made an inequality):
    :math:`a_i = B_i / \sum_j w_{ij} b_j`, then :math:`b_j = \min(1, C_j / \sum_i w_{ij} a_i)`.
    From b = 1 on a only grows and b only falls. Factors that would overflow, as they do without
    end where demand cannot be met, go into the weights.

    What is left falls by a constant factor a round, which may be next to 1; and at a tie, where
    some requesters can spend exactly what the receivers open to them hold and others want those
    too, less and less from round to round. Where that would take long, from the twelfth round on
    and once a call, a maximum flow tells what each requester can spend and which cells no such flow
    uses, in blocks as Dulmage and Mendelsohn's. What the factors could only tend to, 0 there, is
    set, and Newton's method finds the factors of the rest, in some ten steps. The total is that of
    a maximum flow up to `tol`, as a part. In all it takes tens of rounds, also where everything
    hangs together in long chains or weights are forty orders apart; some hundred with more than
    65 536 cells, where rounds take less than the finish for longer, and now and then where weights
    of a row differ by sixty orders and sums of bounds by less than a millionth, at the same time.

    A round reads the weights once, with 8 bytes a cell; the matrix of the result is the only copy.
    The finish needs room for some ten more. It looks for the flow at 2\ :sup:`33` cells at most,
    some seconds, and takes at most 100 of Newton's steps, each of which reads the matrix some forty
    times and multiplies every cell at most twice with its whole row, or column, whichever is
    shorter. Where the shorter side is longer than 2048, or the flow takes longer, rounds go on
    without a finish.

    At the end no sum of a row or column, added exactly and rounded once (`math.fsum`), is above its
    bound: where rounding made it so, the row or column shrinks by less than 1e-14 of itself.
    Weights of less than 2\ :sup:`-1000` of the row's largest may count as 0, and budgets of less
    than 2\ :sup:`-700` of the largest.

    References
    ----------
    .. [1] Sinkhorn, R., "Diagonal equivalence to matrices with prescribed row and column sums",
       American Mathematical Monthly 74, 1967.
    .. [2] Benamou, J.-D., Carlier, G., Cuturi, M., Nenna, L. and Peyré, G., "Iterative Bregman
       projections for regularized transportation problems", SIAM J. Sci. Comput. 37, 2015.
    .. [3] Chizat, L., Peyré, G., Schmitzer, B. and Vialard, F.-X., "Scaling algorithms for
       unbalanced optimal transport problems", Mathematics of Computation 87, 2018.
    .. [4] Rothblum, U. G. and Schneider, H., "Scalings of matrices which have prespecified row sums
       and column sums via optimization", Linear Algebra and its Applications 114, 1989: which
       cells keep the factors from converging.
    .. [5] Fujishige, S., "Lexicographically optimal base of a polymatroid with respect to a weight
       vector", Mathematics of Operations Research 5, 1980: a shortfall shared fairly.
    .. [6] Dulmage, A. L. and Mendelsohn, N. S., "Coverings of bipartite graphs", Canadian Journal
       of Mathematics 10, 1958: what no maximum flow uses.

    Examples
    --------
    Both teams prefer the first reviewer, who has time for 6 hours.

    >>> import fastattn
    >>> hours = fastattn.allocate_shared([[3.0, 1.0], [1.0, 1.0]], [8.0, 4.0], [6.0, float("inf")])
    >>> hours.allocation.round(3)
    array([[4.708, 3.292],
           [1.292, 2.708]])
    >>> hours.allocation.sum(axis=0).round(6), hours.converged
    (array([6., 6.]), True)

    Where the second reviewer is the only one for the first team, the second team leaves it alone.

    >>> fastattn.allocate_shared([[0, 1], [1, 1]], [4, 5], [float("inf"), 4]).allocation.round(6)
    array([[0., 4.],
           [5., 0.]])
    """
    if unknown:
        names.refuse(allocate_shared, unknown)
    workers = resolve(threads)
    tolerance = finite_number("tol", tol, "the default is 1e-9")
    if tolerance < 0:
        raise ValueError(f"tol must not be negative, got {tol!r}; the default is 1e-9")
    rounds = _at_least_one(max_iter)
    chosen = backends.pick(backend)
    weights = as_array("weights", weights)
    check_dtype("weights", weights.dtype, weights.shape)
    if weights.ndim != 2:
        raise ValueError(
            f"weights have shape {weights.shape}; one row per requester and one column per "
            "receiver are needed: "
            + (
                "of one requester they are `np.asarray(weights)[None]`"
                if weights.ndim == 1
                else "of a batch each matrix is a call of its own"
            )
        )
    check_size(weights.shape, FLOAT64)
    spent = _bounds("budgets", budgets, weights.shape, 0)
    taken = _bounds("capacities", capacities, weights.shape, 1)
    if weights.size == 0:
        return SharedAllocation(np.zeros(weights.shape), True, 0, 0.0)
    _check_weights(weights)
    found, iterations, violation = chosen.allocate_shared(
        weights, spent, taken, tolerance, rounds, workers
    )
    return SharedAllocation(found, violation <= tolerance, iterations, violation)


def _at_least_one(max_iter: Any) -> int:
    wrong = f"max_iter must be an integer of at least 1, got {max_iter!r}; the default is 10_000"
    try:
        count = operator.index(max_iter)
    except TypeError:
        raise TypeError(wrong) from None
    if is_bool(max_iter):
        raise TypeError(wrong)
    if count < 1:
        raise ValueError(wrong)
    return count


def _bounds(name: str, x: Any, shape: tuple[int, ...], axis: int) -> np.ndarray:
    """Return one bound for every row (axis 0) or column (axis 1) of the weights, checked."""
    line, whose = (("row", "requester"), ("column", "receiver"))[axis]
    given = as_numbers(name, x)
    if given.shape not in ((), (shape[axis],)):
        raise ValueError(
            f"{name} have shape {given.shape} and weights {shape}: one number for every {whose}, "
            f"shape ({shape[axis]},), or one for all"
        )
    bounds = np.broadcast_to(given, (shape[axis],)).astype(FLOAT64) + 0.0  # -0.0 is 0
    wrong = ~(bounds >= 0)
    way_out = "0 is the least"
    if axis == 0:
        wrong |= np.isinf(bounds)
        way_out = "a budget without limit is `np.sum(capacities)`"
    if wrong.any():
        at = int(np.argmax(wrong))
        raise ValueError(
            f"the entry of {name} for {line} {at} is {bounds[at]}, which is no bound; {way_out}"
        )
    return bounds


def _check_weights(weights: np.ndarray) -> None:
    """Raise unless every weight is a finite number of at least 0."""
    # The least and the largest tell, and NaN goes through both; without an array of flags.
    if weights.min() >= 0 and weights.max() < np.inf:
        return
    numbers = weights.astype(FLOAT64)
    row, column = np.argwhere(~((numbers >= 0) & (numbers < np.inf)))[0].tolist()
    raise ValueError(
        f"the weight in row {row}, column {column} is {numbers[row, column]}; weights are finite "
        "and at least 0, and a receiver that a requester may not use has weight 0"
    )
