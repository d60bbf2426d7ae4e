"""A call record under construction."""

from __future__ import annotations

import numpy as np

from .addresses import address
from .layouts import Layout

__all__ = ["Record", "merge_dims"]


def merge_dims(
    shape: tuple[int, ...], strides: list[tuple[int, ...]]
) -> tuple[list[int], list[list[int]]]:
    """Join neighbouring batch dims that every operand walks as one."""
    kept = [axis for axis, size in enumerate(shape) if size != 1]
    sizes = [shape[axis] for axis in kept]
    steps = [[one[axis] for axis in kept] for one in strides]
    axis = len(sizes) - 1
    while axis > 0:
        if all(one[axis - 1] == one[axis] * sizes[axis] for one in steps):
            sizes[axis - 1 : axis + 1] = [sizes[axis - 1] * sizes[axis]]
            for one in steps:
                del one[axis - 1]
        axis -= 1
    return sizes, steps


class Record:
    """A call record under construction; keeps what its addresses point to."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.words = np.zeros(len(layout.word), np.int64)
        self._floats = self.words.view(np.float64)
        self.kept: list[np.ndarray] = []
        self.tables: list[np.ndarray] = []  # those of the signature

    def set(self, **words: float) -> None:
        word, floats_from = self.layout.word, len(self.layout.integers)
        for field, value in words.items():
            place = word[field]
            target = self.words if place < floats_from else self._floats
            target[place] = value

    def point(self, **arrays: np.ndarray) -> None:
        self.kept += arrays.values()
        words, word = self.words, self.layout.word
        for field, array in arrays.items():
            words[word[field]] = address(array)

    def point_tables(self, **arrays: np.ndarray) -> None:
        for field, array in arrays.items():
            self.tables.append(array)
            self.words[self.layout.word[field]] = address(array)

    def copy(self) -> Record:
        """Return another record of the same words, to change for one call; it keeps no array."""
        other = Record.__new__(Record)
        other.layout = self.layout
        other.words = self.words.copy()
        other._floats = other.words.view(np.float64)
        other.kept = []
        other.tables = []
        return other

    def forget_arrays(self) -> None:
        """Keep no more than the tables, which belong to the signature."""
        self.kept = []
