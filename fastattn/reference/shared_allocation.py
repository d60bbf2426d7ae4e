"""What shared allocation means: requesters spend budgets on receivers of limited capacity."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["allocate_shared"]


@np.errstate(all="ignore")
def allocate_shared(
    weights: ArrayLike,
    budgets: ArrayLike,
    capacities: ArrayLike,
    *,
    tol: float = 1e-9,
    max_iter: int = 10_000,
) -> tuple[NDArray[np.float64], int, float]:
    """Return the allocation ``weights * a[:, None] * b``, rounds, violation.

    Every row spends its budget, then every column shrinks to its capacity, in turns: alternating
    projections in relative entropy.
    """
    budgets, capacities = np.asarray(budgets, np.float64), np.asarray(capacities, np.float64)
    x: NDArray[np.float64] = np.asarray(weights, np.float64) * (capacities > 0)
    wanted = x > 0
    spending = (budgets > 0) & wanted.any(axis=1)
    x = x / np.where(spending, x.max(axis=1), 1)[:, None]
    kept = np.ones_like(capacities)  # by how much the last round made a column smaller
    violation = 1.0  # the first round moves all there is
    for iteration in range(1, max_iter + 1):
        share = np.where(spending, x.sum(axis=1) / np.where(spending, budgets, 1), 1)
        share[share == 0] = 1
        following = np.where(spending / share, 1 / share, 0)[:, None] * x
        kept = _ratio(capacities, following.sum(axis=0))
        following = following * kept
        if iteration > 1:
            # A row could have more of a receiver whose other users spend more of their budgets.
            behind = np.where(wanted, kept, 0).max(axis=1, initial=0) - share
            moved = abs(following - x).sum(axis=1) / np.where(spending, budgets, 1)
            violation = float(np.maximum(behind, moved)[spending].max(initial=0))
        x = following
        if violation <= tol:
            break
    x *= np.minimum(1, budgets / np.maximum(x.sum(axis=1), budgets + (budgets == 0)))[:, None]
    return x, iteration, violation


def _ratio(bound: Any, total: NDArray[np.float64]) -> NDArray[np.float64]:
    """By how much to shrink what is above its bound."""
    above = total > bound
    return np.where(above, np.where(above, bound, 1) / np.where(above, total, 1), 1)
