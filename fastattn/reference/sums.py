"""Sums as the kernels cut them: over features in chains, runs of chains, runs added exactly; over
keys on lanes.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["LANES", "add_runs", "sum_of_lanes"]

# Features of a chain, of a run of chains, and of a chain of squares.
FEATURE_CHAIN = 64
FEATURE_RUN = 1024
SQUARE_CHAIN = 16
LANES = 16

Float64Array = NDArray[np.float64]


def add_runs(
    query: Float64Array, panel: Float64Array, zero: Float64Array, squared: bool
) -> Float64Array:
    """Add runs of features exactly: a sum, and beside it the error of all its additions."""
    total, error = zero, zero
    for first in range(0, query.shape[-1], FEATURE_RUN):
        stop = min(first + FEATURE_RUN, query.shape[-1])
        run = zero
        for feature in range(first, stop, FEATURE_CHAIN):
            run = run + _chain(
                query, panel, zero, feature, min(feature + FEATURE_CHAIN, stop), squared
            )
        longer = total + run
        other = longer - total
        error = error + ((total - (longer - other)) + (run - other))
        total = longer
    # Of infinity nothing is lost but NaN.
    return np.where(np.isnan(total + error), total, total + error)


def _chain(
    query: Float64Array,
    panel: Float64Array,
    zero: Float64Array,
    first: int,
    stop: int,
    squared: bool,
) -> Float64Array:
    """Products, or negative squares, of the features first to stop."""
    total, part = zero, zero
    for feature in range(first, stop):
        if squared and feature % SQUARE_CHAIN == 0:
            total, part = total + part, zero
        left, right = query[..., feature, None], panel[..., feature, None, :]
        part = part + (-((left - right) ** 2) if squared else left * right)
    return total + part


def sum_of_lanes(weights: Float64Array) -> Float64Array:
    """Add up each row on 16 lanes, then the lanes by their tree."""
    lanes = np.zeros((*weights.shape[:-1], LANES))
    for first in range(0, weights.shape[-1], LANES):
        some = weights[..., first : first + LANES]
        lanes[..., : some.shape[-1]] += some
    for width in (8, 4, 2, 1):
        lanes = lanes[..., :width] + lanes[..., width : 2 * width]
    return lanes[..., 0]
