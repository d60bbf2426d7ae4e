"""Handing out a limited budget in proportion to weights, with caps: what it means, in fractions.

A float64 is a fraction, so nothing here rounds before the result does.
"""

from collections.abc import Callable
from fractions import Fraction
from math import inf, isinf, nan, ulp

__all__ = ["DIVISORS", "allocate_row", "apportion", "proportional", "spendable"]

# method -> the square of the divisor of a receiver that has s units: its claim to the next unit is
# weight / divisor, and squares compare like the claims themselves.
DIVISORS: dict[str, Callable[[int], int]] = {
    "dhondt": lambda s: (s + 1) ** 2,
    "sainte_lague": lambda s: (2 * s + 1) ** 2,
    "huntington_hill": lambda s: s * (s + 1),
}


def spendable(weights: list[float], lower: list[float], upper: list[float]) -> Fraction | float:
    """Add up the most that can be spent: caps, but lower bounds where the weight is 0."""
    most = [b if w > 0 else a for w, a, b in zip(weights, lower, upper, strict=True)]
    return inf if any(map(isinf, most)) else sum(map(Fraction, most), Fraction(0))


def proportional(
    weights: list[float], budget: float, lower: list[float], upper: list[float]
) -> list[Fraction]:
    """Find ``clip(theta * w, lower, upper)`` with the theta that spends `budget`, exactly.

    Where the caps are below the budget every receiver of positive weight has its cap. The budget is
    at least the sum of `lower`.

    Examples
    --------
    >>> [float(x) for x in proportional([2.0, 1.0, 1.0], 8.0, [0.0] * 3, [3.0, 9.0, 9.0])]
    [3.0, 2.5, 2.5]
    """
    weights_, lower_ = list(map(Fraction, weights)), list(map(Fraction, lower))
    total = Fraction(budget)
    # No receiver can have more than the budget, so that stands for no cap.
    upper_ = [max(low, total if isinf(cap) else min(Fraction(cap), total))
              for low, cap in zip(lower_, upper, strict=True)]  # fmt: skip

    def clipped(theta: Fraction) -> list[Fraction]:
        return [min(max(theta * w, low), cap)
                for w, low, cap in zip(weights_, lower_, upper_, strict=True)]  # fmt: skip

    bounds = [(w, low, cap) for w, low, cap in zip(weights_, lower_, upper_, strict=True) if w > 0]
    kinks = sorted({low / w for w, low, _ in bounds} | {cap / w for w, _, cap in bounds})
    # Between two kinks the amounts are linear in theta: find the two around the budget.
    below = Fraction(0)
    for kink in kinks:
        if sum(clipped(kink)) >= total:
            first, last = sum(clipped(below)), sum(clipped(kink))
            step = (total - first) / (last - first) if last > first else Fraction(0)
            return clipped(below + step * (kink - below))
        below = kink
    return clipped(below)


def apportion(
    weights: list[float], units: int, lower: list[int], upper: list[float], method: str
) -> list[int]:
    """Hand out whole units, one after the other; equal claims go to the lower index.

    ``largest_remainder``: the proportional amounts rounded down, then one unit each to the largest
    rests. The divisor methods: unit after unit to the largest ``weight / divisor``.

    Examples
    --------
    >>> apportion([5.0, 3.0, 1.0], 4, [0, 0, 0], [9, 9, 9], "largest_remainder")
    [2, 1, 1]
    >>> apportion([5.0, 3.0, 1.0], 4, [0, 0, 0], [9, 9, 9], "dhondt")
    [3, 1, 0]
    """
    if method == "largest_remainder":
        amounts = proportional(weights, units, list(map(float, lower)), upper)
        given = [amount.numerator // amount.denominator for amount in amounts]
        by_rest = sorted(range(len(given)), key=lambda i: (given[i] - amounts[i], i))
        for i in by_rest[: units - sum(given)]:
            # Where all caps are reached nothing has a rest.
            given[i] += amounts[i] > given[i]
        return given
    given = list(lower)
    divisor = DIVISORS[method]
    for _ in range(units - sum(lower)):
        claims = []
        for i, w in enumerate(weights):
            if w > 0 and given[i] < upper[i]:
                square = divisor(given[i])
                first = square == 0  # before every claim that is finite, by weight
                claim = Fraction(w) if first else Fraction(w) ** 2 / square
                claims.append(((first, claim), -i))
        if not claims:
            break
        given[-max(claims)[1]] += 1
    return given


def allocate_row(
    weights: list[float],
    lower: list[float],
    upper: list[float],
    budget: float,
    method: str | None,
) -> tuple[list[float], float]:
    """Give one row's amounts and what is left of its budget; NaN where the row makes no sense.

    For real amounts one unit in the last place of the budget counts as nothing left, and as no
    overrun of the lower bounds.

    Examples
    --------
    >>> allocate_row([1.0, 3.0], [0.0, 0.0], [inf, 5.0], 8.0, None)
    ([3.0, 5.0], 0.0)
    """
    bounds = zip(weights, lower, upper, strict=True)
    if not all(0 <= w < inf and 0 <= low < inf and low <= cap for w, low, cap in bounds):
        return [0.0] * len(weights), nan
    slack = Fraction(ulp(budget) if method is None else 0)
    if sum(map(Fraction, lower), Fraction(0)) > Fraction(budget) + slack:
        return [0.0] * len(weights), nan
    most = spendable(weights, lower, upper)
    left = 0.0 if most >= Fraction(budget) - slack else float(Fraction(budget) - Fraction(most))
    if method is None:
        return [float(x) for x in proportional(weights, budget, lower, upper)], left
    caps = [cap if isinf(cap) else int(cap) for cap in upper]
    given = apportion(weights, int(budget), list(map(int, lower)), caps, method)
    return list(map(float, given)), left
