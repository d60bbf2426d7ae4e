"""Where keys and values lie, as a value: what a problem is asked instead of what it is."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from fastattn._core.pages import Pages

__all__ = ["DENSE", "Dense", "Gathered", "Packed", "Pages", "Place"]


class Dense(NamedTuple):
    """In arrays of their own, a row each."""


class Gathered(NamedTuple):
    """In rows of tables, in the order of a list of row numbers.

    Key and value are the tables, with the rows of the list for their own: nobody reads them so.
    """

    indices: np.ndarray  # int32 or int64, contiguous
    rows: int  # of the tables


class Packed(NamedTuple):
    """End to end with those of other sequences, queries too, or in rows of tables.

    Arrays are (Hkv, G, rows, E) and (Hkv, keys or table rows, .): sequences are no batch dim.
    Offsets are int64 (sequences,) or one int, ids int64 (rows,) and (keys or len(indices),).
    """

    query_splits: np.ndarray  # int64 (sequences + 1,), never decreasing, within 0..rows
    key_splits: np.ndarray  # int64 (sequences + 1,), within 0..keys or 0..len(indices)
    indices: np.ndarray | None  # int32 or int64, native, every used one a row of the tables


# `Pages`: in pages of a cache, found by their addresses; key and value say shapes and dtypes only.
Place = Dense | Gathered | Pages | Packed
DENSE: Final = Dense()
