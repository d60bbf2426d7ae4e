"""Ragged cases for libraries that only know rectangles: padded arrays, and buckets of them.

A peer may choose the rectangle. What it costs to make stands in the name of the line: padded
before the clock starts, padded within the call, or sorted into buckets of similar length before
the clock starts. Rows listed from a table are gathered within the call, as there is nothing else
a user of a table could do; only the padded list of row numbers may exist before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bench.cases import Arrays, Case
from bench.contender import Prepare, Refused, Variant


class Slots(NamedTuple):
    """Where sequences lie in a rectangle ``(sequences, longest)``, and where they come from."""

    rows: np.ndarray  # (sequences, longest) of the packed array or the table; padding is row 0
    real: np.ndarray  # (sequences, longest) bool

    @property
    def full(self) -> bool:
        """Whether nothing is padding."""
        return bool(self.real.all())


def slots(splits: np.ndarray, listed: np.ndarray | None, which: np.ndarray) -> Slots:
    """The rectangle of the sequences ``which``, as wide as the longest of them."""
    starts, counts = splits[:-1][which], np.diff(splits)[which]
    along = np.arange(counts.max(initial=0))
    real = along < counts[:, None]
    rows = np.where(real, starts[:, None] + along, 0)
    if listed is not None:
        rows = np.where(real, listed[rows], 0)
    return Slots(rows, real)


def buckets(arrays: Arrays) -> Iterator[np.ndarray]:
    """Sequences of similar length together: numbers of those up to 1, 2, 4, 8, ... keys."""
    sizes = np.ceil(np.log2(np.maximum(np.diff(arrays["key_splits"]), 1)))
    for size in np.unique(sizes):
        yield np.flatnonzero(sizes == size)


def rectangle(arrays: Arrays, which: np.ndarray) -> tuple[Slots, Slots]:
    """Where the queries and the keys of some sequences go."""
    queries = slots(arrays["query_splits"], None, which)
    return queries, slots(arrays["key_splits"], arrays.get("key_indices"), which)


def heads_first(rows: np.ndarray, at: Slots) -> np.ndarray:
    """Packed rows (total, H, E) as a zero-padded rectangle (sequences, H, longest, E)."""
    taken = rows[at.rows]
    taken[~at.real] = 0
    return np.ascontiguousarray(np.moveaxis(taken, 1, 2))


def key_mask(case: Case, keys: Slots) -> np.ndarray | None:
    """Which keys are real, (sequences, 1, 1, longest); None where nothing needs hiding.

    Under causality padding stands behind every query that is read, so that it needs no mask.
    """
    if keys.full or case.options.get("causal"):
        return None
    return keys.real[:, None, None, :]


def padded(case: Case, arrays: Arrays) -> tuple[Case, Arrays, Slots]:
    """The same work as a call of equal lengths, padded ahead, and where its queries are."""
    every = np.arange(len(arrays["key_splits"]) - 1)
    queries, keys = rectangle(arrays, every)
    rectangles = {
        "query": heads_first(arrays["query"], queries),
        "key": heads_first(arrays["key"], keys),
        "value": heads_first(arrays["value"], keys),
    }
    mask = key_mask(case, keys)
    if mask is not None:
        rectangles["mask"] = mask
    options = {name: case.options[name] for name in ("causal",) if name in case.options}
    shapes = {name: array.shape for name, array in rectangles.items()}
    dense = dataclasses.replace(
        case, operation="attention", shapes=shapes, options=options, fixed={}
    )
    return dense, rectangles, queries


def packed(output: np.ndarray, queries: Slots) -> np.ndarray:
    """The rows of a padded output (sequences, H, longest, Ev) end to end, (total, H, Ev)."""
    return np.moveaxis(output, 1, 2)[queries.real]


def padded_variants(
    case: Case, arrays: Arrays, threads: int, attention: Prepare
) -> dict[str, Variant]:
    """What a library's dense ``attention`` offers on rectangles that were padded ahead."""
    if "key_indices" in arrays:
        raise Refused("no rows from a table")
    dense, rectangles, queries = padded(case, arrays)
    return {
        f"padded ahead, {name}": Variant(
            one.run, lambda result, read=one.read: packed(read(result), queries)
        )
        for name, one in attention(dense, rectangles, threads).items()
    }
