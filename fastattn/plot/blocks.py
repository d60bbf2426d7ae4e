"""Long axes, shortened to what a picture can show: every cell drawn is the mean of a block."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Blocks(NamedTuple):
    """A matrix as it is drawn, and how many rows and columns went into each of its cells."""

    means: np.ndarray
    hidden: np.ndarray
    rows: int
    columns: int


def block_length(length: int, most: int) -> int:
    """Return how many of `length` neighbours share a cell, so that at most `most` are drawn."""
    return max(1, -(-length // max(1, most)))


def block_means(
    weights: np.ndarray, hidden: np.ndarray, most_rows: int, most_columns: int
) -> Blocks:
    """Average the visible cells of each block; a block without any is hidden.

    Goes over the matrix a block of rows at a time, so that a big one costs no second copy.
    """
    length, width = weights.shape
    rows, columns = block_length(length, most_rows), block_length(width, most_columns)
    edges = np.arange(0, width, columns)
    shape = (-(-length // rows), len(edges))
    means, all_hidden = np.full(shape, np.nan), np.ones(shape, bool)
    for index, start in enumerate(range(0, length, rows)):
        seen = ~hidden[start : start + rows]
        part = np.asarray(weights[start : start + rows], dtype=np.float64)
        part = np.where(seen, part, 0.0)
        counts = np.add.reduceat(seen.sum(axis=0), edges)
        # A visible infinity of either sign becomes what the picture calls "not finite".
        with np.errstate(invalid="ignore", over="ignore"):
            sums = np.add.reduceat(part.sum(axis=0), edges)
        np.divide(sums, counts, out=means[index], where=counts > 0)
        all_hidden[index] = counts == 0
    return Blocks(means, all_hidden, rows, columns)


def vector_means(values: np.ndarray, length: int) -> np.ndarray:
    """Average every `length` neighbours; the last block has what is left."""
    edges = np.arange(0, len(values), length)
    return np.add.reduceat(values, edges, dtype=np.float64) / np.diff(edges, append=len(values))
