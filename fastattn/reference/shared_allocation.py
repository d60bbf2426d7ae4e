"""What shared allocation means: requesters spend budgets on receivers of limited capacity."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["allocate_shared", "fair_parts"]

Array = NDArray[np.float64]
Bools = NDArray[np.bool_]

# From this round on what no solution uses is dropped, and Newton's steps are tried.
_ROUNDS = 32
# What is missing of a bound by no more than this part is nothing, and a flow that is no larger.
_SHARP, _FAINT = 2.0**-45, 2.0**-38


@np.errstate(all="ignore")
def allocate_shared(
    weights: ArrayLike,
    budgets: ArrayLike,
    capacities: ArrayLike,
    *,
    tol: float = 1e-9,
    max_iter: int = 10_000,
) -> tuple[Array, int, float]:
    """Return the allocation ``weights * a[:, None] * b``, rounds, violation.

    Every row spends its budget, then every column shrinks to its capacity, in turns: alternating
    projections in relative entropy. Where that takes long, rows spend their `fair_parts` instead,
    on the cells that some such allocation uses, and Newton's steps replace rounds.
    """
    budgets = np.array(budgets, np.float64)  # a copy, which fair parts are taken of
    capacities = np.asarray(capacities, np.float64)
    x: Array = np.abs(np.asarray(weights, np.float64)) * (capacities > 0)
    spending = (budgets > 0) & (x > 0).any(axis=1)
    x = x / np.where(spending, x.max(axis=1), 1)[:, None]
    shrunk = np.ones_like(capacities)  # by how much all rounds have made a column smaller
    violation = 1.0  # the first round moves all there is
    for iteration in range(1, max_iter + 1):
        if iteration == _ROUNDS:
            parts, usable = fair_parts(x, budgets, capacities)
            budgets, x = budgets * parts, x * usable
        share = np.where(spending, x.sum(axis=1) / np.where(spending, budgets, 1), 1)
        share[share == 0] = 1
        following = np.where(spending / share, 1 / share, 0)[:, None] * x
        kept = _ratio(capacities, following.sum(axis=0), 1 / shrunk)
        following = following * kept
        if iteration >= _ROUNDS:
            following, kept = _newton(following, kept, shrunk, budgets, capacities)
        if iteration > 1:
            # A row could have more of a receiver whose other users spend more of their budgets.
            used = following > tol * np.minimum(budgets[:, None], capacities)
            level = np.where(kept < 1, np.where(used, share[:, None], 0).max(axis=0), 1)
            behind = np.where(x > 0, level, 0).max(axis=1, initial=0) - share
            moved = abs(following - x).sum(axis=1) / np.where(spending, budgets, 1)
            violation = float(np.maximum(behind, moved)[spending].max(initial=0))
        x, shrunk = following, shrunk * kept
        if violation <= tol:
            break
    x *= np.minimum(1, budgets / np.maximum(x.sum(axis=1), budgets + (budgets == 0)))[:, None]
    return x, iteration, violation


def _ratio(bound: Any, total: Array, most: Any = 1.0) -> Array:
    """By how much to shrink what is above its bound, or by how much, at most, it may grow."""
    above = total * most > bound
    ratio: Array = np.where(above, np.where(above, bound, 1) / np.where(above, total, 1), most)
    return ratio


def _newton(
    x: Array, kept: Array, shrunk: Array, budgets: Array, capacities: Array
) -> tuple[Array, Array]:
    """Return what a round has made, or a step of Newton's from there where rows lack less then."""
    some = x.any(axis=1)
    lacking = np.where(some, budgets - x.sum(axis=1), 0)
    full = (x.sum(axis=0) >= capacities * (1 - _SHARP)) & (capacities > 0)
    shared = x[:, full] / np.sqrt(capacities[full])
    step = np.linalg.lstsq(np.diag(x.sum(axis=1)) - shared @ shared.T, lacking)[0]
    following = x * np.exp(step.clip(-8, 8))[:, None]
    again = _ratio(capacities, following.sum(axis=0), 1 / np.maximum(shrunk * kept, 1e-300))
    following = following * again
    rest = abs(budgets - following.sum(axis=1))
    better = (rest[some] / budgets[some]).max(initial=0) < (abs(lacking)[some] / budgets[some]).max(
        initial=0
    )
    return (following, kept * again) if better else (x, kept)


def fair_parts(wanted: ArrayLike, budgets: Array, capacities: Array) -> tuple[Array, Bools]:
    """Return the parts of the budgets that the fairest maximum flow spends, and the cells it uses.

    The smallest part is the largest possible, then the next, and so on. If all can spend one part
    they do; otherwise those who cannot, with all who could help them, have less than the others.

    Examples
    --------
    The first can only have what the second leaves of the one receiver; the third goes elsewhere:

    >>> parts, usable = fair_parts(np.array([[1, 0], [1, 0], [1, 1]]), np.full(3, 2.0),
    ...                            np.array([1.0, 9.0]))
    >>> parts, usable.tolist()
    (array([0.25, 0.25, 1.  ]), [[True, False], [True, False], [False, True]])
    """
    wanted = np.asarray(wanted) > 0
    parts, usable = np.ones(len(budgets)), wanted.copy()
    blocks = [((budgets > 0) & wanted.any(axis=1), capacities > 0)]
    while blocks:
        rows, columns = blocks.pop()
        total = capacities[columns & wanted[rows].any(axis=0)].sum()
        part = min(1.0, float(total / budgets[rows].sum())) if rows.any() else 1.0
        parts[rows] = part
        block = wanted & rows[:, None] & columns
        flow, behind, full = _maximum_flow(
            block, part * budgets * rows, np.where(columns, capacities, 0)
        )
        if behind.any() and not behind[rows].all():
            usable &= ~((rows & ~behind)[:, None] & full)
            blocks += [(rows & behind, columns & full), (rows & ~behind, columns & ~full)]
        else:
            usable &= _used(block, flow, part * budgets, capacities) | ~rows[:, None]
    return parts, usable


def _maximum_flow(wanted: Bools, supply: Array, room: Array) -> tuple[Array, Bools, Bools]:
    """Return a maximum flow, and the rows and columns that a row which lacks some can reach."""
    flow = np.zeros(wanted.shape)
    while True:
        lacking = supply - flow.sum(axis=1)
        free = np.where(np.isinf(room), np.inf, room - flow.sum(axis=0))
        ways = {int(i): [int(i)] for i in np.flatnonzero(lacking > _SHARP * supply)}
        found: dict[int, list[int]] = {}  # ways to columns: row, column, row, column, ...
        rows = list(ways)
        for i in rows:  # which grows
            for j in map(int, np.flatnonzero(wanted[i])):
                if j not in found:
                    found[j] = [*ways[i], j]
                    givers = flow[:, j] > _SHARP * np.maximum(supply, min(room[j], supply.sum()))
                    for k in map(int, np.flatnonzero(givers)):
                        if k not in ways:
                            ways[k] = [*found[j], k]
                            rows.append(k)
        ends = [j for j in found if free[j] > _SHARP * min(room[j], supply.sum())]
        if not ends:
            return flow, _flags(ways, len(supply)), _flags(found, len(room))
        way = min((found[j] for j in ends), key=len)
        forth = list(zip(way[::2], way[1::2], strict=True))
        back = list(zip(way[2::2], way[1:-1:2], strict=True))
        amount = min(lacking[way[0]], free[way[-1]], *(flow[cell] for cell in back))
        for cell in forth:
            flow[cell] += amount
        for cell in back:
            flow[cell] -= amount


def _flags(some: Any, count: int) -> Bools:
    flags = np.zeros(count, bool)
    flags[list(some)] = True
    return flags


def _used(wanted: Bools, flow: Array, supply: Array, room: Array) -> Bools:
    """Tell the cells that some maximum flow uses, given one: they lie on a way round.

    From a row to a column that it wants and back to who uses it; all columns with room are one.
    """
    (m, n), total = wanted.shape, flow.sum()
    reach = np.eye(m + n + 1, dtype=bool)
    reach[:m, m:-1] = wanted
    bounds = np.maximum(supply[:, None], np.minimum(room, total))
    reach[m:-1, :m] = (flow > _FAINT * bounds).T
    reach[m:-1, -1] = flow.sum(axis=0) < room * (1 - _SHARP)
    reach[-1, m:-1] = reach[m:-1, :m].any(axis=1)
    for _ in range((m + n).bit_length()):
        reach = reach.astype(float) @ reach > 0
    together: Bools = (reach & reach.T)[:m, m:-1]
    return wanted & together
