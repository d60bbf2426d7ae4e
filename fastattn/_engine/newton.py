"""Newton's method for shared allocation, for where rounds would take too long.

Row i spends ``budgets[i]`` by the factor exp(v_i), column j then shrinks to its capacity C_j if its
total t_j is above it. The factors of the solution are the minimum of the convex function

    sum_j (t_j if t_j <= C_j else C_j + C_j log(t_j / C_j)) - sum_i budgets[i] v_i

whose gradient is what rows spend too much. Its second derivatives are a Laplace matrix: rows and
full columns are the nodes, amounts the conductances, and columns that are not full the ground.
Eliminating the nodes of the longer side leaves a Laplace matrix of the shorter one, and eliminating
these one by one only adds and multiplies numbers of at least 0 (Grassmann, Taksar and Heyman 1985),
so that weak links between parts keep all their digits. Exponentials and logarithms need
not be right to the last place, so they are made of arithmetic that rounds alike everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

__all__ = ["Newton"]

# How much the logarithm of a factor may change in one step, at first and at last.
_FIRST_REACH, _LEAST_REACH, _MOST_REACH = 4.0, 1.0, 32.0
# A step that does not let the function fall by this part of what its slope says goes too far; it
# is cut to no less than this. Where rounding hides a fall, its slope must not rise that steeply.
_LEAST_FALL, _TOO_STEEP = 0.05, 0.5
_LEAST_PART = 0.1
_ROUNDING, _NOISE = 2.0**-46, 2.0**-44
# A column so near to its capacity counts as full or not by what it is after this part of a step.
_NEAR, _SOON = 0.1, 0.1
# Steps without much success before the search is given up.
_PATIENCE = 40
_PANEL = 32
_FACTORS = 2.0**-200, 2.0**200
_BEYOND = 2.0**1000
_ROOT, _LOG_2 = 0.5**0.5, 0.6931471805599453

# a, b -> a @ b.T
Products = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Newton:
    """The state of the search: an allocation within the capacities.

    Attributes
    ----------
    amounts : ndarray, (m, n)
        The allocation: weights times factors.
    growth : ndarray, (n,)
        By how much each column may grow: to a factor of 1.
    left : float
        What the last step would have moved, or what rows lack, whichever is more: the largest
        part of a budget.
    """

    def __init__(
        self,
        amounts: np.ndarray,
        column_factors: np.ndarray,
        budgets: np.ndarray,
        capacities: np.ndarray,
        products: Products,
    ) -> None:
        self.amounts = amounts
        self.left = np.inf
        self._before = np.empty_like(amounts)
        self._budgets = budgets
        self._inverse = _inverse(budgets)
        self._capacities = capacities
        self._products = products
        self.growth = np.where(column_factors > 1 / _BEYOND, _inverse(column_factors), _BEYOND)
        self._reach = _FIRST_REACH

    def run(self, target: float, most: int) -> int:
        """Take steps until at most `target` is left; returns how many, at most `most`.

        Less where many of them have not halved what is left, which rounding may forbid.
        """
        step, slope = None, 0.0
        steps, best, best_at = 0, np.inf, 0
        while steps < min(most, best_at + _PATIENCE) and self.left > target:
            steps += 1
            if step is not None:
                part = self._part(step, slope)
                if part < 1:
                    step, slope = step * part, slope * part
                    self._reach = max(self._reach * part, _LEAST_REACH)
                    continue
            self._fit()
            self._spend()
            full = self._fit()
            lacking = self._lacking()
            step = self._step(full, lacking)
            if self.left < 0.5 * best:
                best, best_at = self.left, steps
            slope = float((lacking * step).sum())
            self.amounts, self._before = self._before, self.amounts
        # The last step was not looked at; it is taken where it is next to nothing.
        if step is not None and self.left <= target:
            self._try(step)
        else:
            self.amounts = self._before
        self._fit()
        return steps

    def _part(self, step: np.ndarray, slope: float) -> float:
        """Try a step along which the function falls by `slope`; return the part of it to take."""
        rise = self._try(step)
        noise = _NOISE * float(((np.abs(step) + 1) * self._budgets).sum())
        if slope > 16 * noise:
            # Where a parabola has its minimum, but not too near.
            if rise > -_LEAST_FALL * slope:
                return max(0.5 * slope / (slope + rise), _LEAST_PART)
            return 1.0
        # The function is flat up to rounding; slopes tell more.
        growth = self.growth
        self._fit()
        rise = -float((self._lacking() * step).sum())
        if rise > max(_TOO_STEEP * slope, _NOISE * float((np.abs(step) * self._budgets).sum())):
            self.growth = growth
            return max(slope / (slope + rise), _LEAST_PART) if slope > 0 else _LEAST_PART
        return 1.0

    def _try(self, step: np.ndarray) -> float:
        """Go from the allocation before, and return by how much the function rises."""
        factors = _grown(step)
        old = self._before.sum(axis=0)
        np.multiply(self._before, factors[:, None], out=self.amounts)
        new, bounds = self.amounts.sum(axis=0), self._capacities
        # The totals that factors of 1 would give; between two that are full only the ratio counts.
        before, after = old * self.growth, new * self.growth
        ratio = np.maximum(after, bounds) / np.maximum(before, bounds)
        both = (before > bounds) & (after > bounds)
        ratio[both] = (new / old)[both]
        rise = np.minimum(after, bounds) - np.minimum(before, bounds)
        rise += np.where(ratio == 1, 0, bounds) * _logarithm(ratio)
        return float(rise.sum() - (self._budgets * _logarithm(factors)).sum())

    def _spend(self) -> None:
        """Let rows spend their budgets."""
        share = self._budgets * _inverse(self.amounts.sum(axis=1))
        self.amounts *= np.where(share > 0, share.clip(*_FACTORS), 1)[:, None]

    def _fit(self) -> np.ndarray:
        """Shrink columns to their capacities, or let them grow again; tell which are full."""
        totals = self.amounts.sum(axis=0)
        full: np.ndarray = totals * self.growth > self._capacities
        factors = np.where(full, self._capacities * _inverse(totals), self.growth)
        self.amounts *= factors
        self.growth = np.minimum(self.growth * _inverse(factors), _BEYOND)
        return full

    def _lacking(self) -> np.ndarray:
        lacking: np.ndarray = self._budgets - self.amounts.sum(axis=1)
        return lacking

    def _step(self, full: np.ndarray, lacking: np.ndarray) -> np.ndarray:
        """Choose what to add to the logarithms of the factors of the rows.

        Columns that turn have the amounts of what they turn to, until they are fitted again.
        """
        rows, columns, cut = self._solve(full, lacking)
        # Columns that are about to become full, or not to be so any more, will be that for most of
        # the step.
        totals = self.amounts.sum(axis=0)
        rising = (self.amounts * rows[:, None]).sum(axis=0) * _inverse(totals)
        above = self.growth * totals * _inverse(self._capacities) - 1
        turning = (np.abs(above) < _NEAR) & (full != (above + _SOON * rising > 0))
        if turning.any():
            full = full ^ turning
            # Rows see them as they will be then, or else the step would not lead there.
            factors = np.where(full, self._capacities * _inverse(totals), self.growth)[turning]
            self.amounts[:, turning] *= factors
            self.growth[turning] /= factors
            rows, columns, cut = self._solve(full, self._lacking())
        spare = self._before  # which is done with
        np.add.outer(rows, columns, out=spare)
        np.abs(spare, out=spare)
        np.multiply(self.amounts, spare, out=spare)
        moved = np.maximum(spare.sum(axis=1), np.abs(lacking)) * self._inverse
        self.left = float(moved.max())
        most = 4 * self._reach
        if cut or np.abs(rows).max() > most:
            self._reach = min(2 * self._reach, _MOST_REACH)
        bounded: np.ndarray = rows.clip(-most, most)
        return bounded

    def _solve(self, full: np.ndarray, lacking: np.ndarray) -> tuple[np.ndarray, np.ndarray, bool]:
        """Solve for the changes of rows and of full columns; tell whether any was cut."""
        amounts = self.amounts
        among = np.ascontiguousarray(amounts.T[full])
        ground = amounts[:, ~full].sum(axis=1)
        columns = np.zeros(len(full))
        if len(among) <= len(lacking):
            inverse = _inverse(self._budgets - lacking)
            scaled = np.concatenate([among, ground[None]]) * np.sqrt(inverse)
            linked = self._products(scaled, scaled)
            push = -(among * (lacking * inverse)).sum(axis=1)
            size = (among * (self._budgets * inverse)).sum(axis=1)
            found, cut = _eliminate(
                linked[:-1, :-1], linked[:-1, -1], push, size, self._reach, self._products
            )
            rows = (lacking - (among * found[:, None]).sum(axis=0)) * inverse
            columns[full] = found
        else:
            inverse = _inverse(among.sum(axis=1))
            scaled = np.ascontiguousarray((among * np.sqrt(inverse)[:, None]).T)
            linked = self._products(scaled, scaled)
            rows, cut = _eliminate(
                linked, ground, lacking.copy(), self._budgets.copy(), self._reach, self._products
            )
            columns[full] = -(among * rows).sum(axis=1) * inverse
        return rows, columns, cut


def _inverse(x: np.ndarray) -> np.ndarray:
    """Return 1 / x, and 0 where that overflows or x is 0."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / x
    inverse[np.isinf(inverse)] = 0
    return inverse


def _grown(step: np.ndarray) -> np.ndarray:
    """Return nearly exp(step), in arithmetic that rounds alike everywhere."""
    half = step / 1024
    grown: np.ndarray = (1 + half) / (1 - half)
    for _ in range(9):
        grown = grown * grown
    return grown


def _logarithm(x: np.ndarray) -> np.ndarray:
    """Return the logarithm, up to some 2**-50, in arithmetic that rounds alike everywhere."""
    part, exponent = np.frexp(x)
    tangent = (part - _ROOT) / (part + _ROOT)
    square, total = tangent * tangent, np.zeros_like(part)
    for power in range(19, 0, -2):
        total = total * square + 1 / power
    logarithm: np.ndarray = 2 * tangent * total + (exponent - 0.5) * _LOG_2
    logarithm[~(x > 0)] = -_BEYOND
    return logarithm


def _eliminate(
    linked: np.ndarray,
    ground: np.ndarray,
    push: np.ndarray,
    size: np.ndarray,
    reach: float,
    products: Products,
) -> tuple[np.ndarray, bool]:
    """Solve a Laplace matrix: ``(ground_p + sum_q linked_pq) x_p - sum_q linked_pq x_q = push_p``.

    What a node is pushed by itself is cut at `reach`, which keeps parts that hang together weakly,
    or not with the ground at all, from going off; a push is nothing where rounding of the sums that
    it is the difference of, `size`, may have made it. Returns x and whether anything was cut. The
    diagonal of `linked` does not matter; the first four arrays are overwritten.
    """
    nodes = len(push)
    diagonal = np.zeros(nodes)
    found = np.zeros(nodes)
    clipped = False
    for first in range(0, nodes, _PANEL):
        stop = min(first + _PANEL, nodes)
        for p in range(first, stop):
            links = linked[p, p + 1 :]
            diagonal[p] = ground[p] + links.sum()
            part = links * _inverse(diagonal[p : p + 1])
            if abs(push[p]) > _ROUNDING * size[p]:
                clipped |= bool(abs(push[p]) > reach * diagonal[p])
                found[p] = np.clip(push[p], -reach * diagonal[p], reach * diagonal[p])
                found[p] = (
                    found[p] / diagonal[p] if diagonal[p] > 0 else np.copysign(reach, push[p])
                )
            ground[p + 1 :] += part * ground[p]
            push[p + 1 :] += part * push[p]
            size[p + 1 :] += part * size[p]
            linked[p + 1 : stop, p + 1 :] += part[: stop - p - 1, None] * links
        if stop < nodes:
            links = linked[first:stop, stop:]
            part = links * _inverse(diagonal[first:stop])[:, None]
            linked[stop:, stop:] += products(part.T, links.T)
    for p in range(nodes - 1, -1, -1):
        links = linked[p, p + 1 :]
        found[p] += (links * found[p + 1 :]).sum() * _inverse(diagonal[p : p + 1])[0]
    return found, clipped
