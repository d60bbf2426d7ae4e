"""What a shared allocation can use at all: maximum flows, levels, and cells that carry nothing.

Rows spend budgets on columns of limited capacity. Where some rows want more than the columns open
to them hold, all of them spend the same part of their budgets, a level, and nobody else gets any of
these columns; where they want exactly that much, nobody else does either. Factors of rows and
columns could only tend to such zeros, without end. Here they are found, from the allocation that
rounds have reached so far: sums decide what is full, up to `SHARP`, and every step is a search
through the cells, so that no bit depends on threads.

The levels are those of the lexicographically optimal flow (Megiddo 1974; Fujishige 1980): a maximum
flow in which all rows spend the same part; if some cannot, those that its residual graph reaches
from them are a level or more below, and the others above. Cells that carry nothing in any maximum
flow lead from one strongly connected component of the residual graph to another (Dulmage and
Mendelsohn 1958).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

__all__ = ["usable_cells"]

# What is missing of a bound by no more than this part is nothing: sums are hardly more exact.
SHARP = 2.0**-45
# A cell of no more than this part of its row or column carries nothing; of no more than the second
# part it has nothing to give.
FAINT = 2.0**-38
EMPTY = 2.0**-50
# Searches may look at so many cells in all, some seconds; then rounds have to do without.
_MOST_CELLS = 1 << 33

# a, b -> a @ b.T
Products = Callable[[np.ndarray, np.ndarray], np.ndarray]


class _TooMuchWork(Exception):
    """The searches have looked at as many cells as they may."""


class _Flow:
    """A flow from many lines to fewer nodes, (nodes, lines): the longer axis is contiguous."""

    def __init__(
        self, amounts: np.ndarray, wanted: np.ndarray, supply: np.ndarray, room: np.ndarray
    ) -> None:
        self.amounts = np.ascontiguousarray(amounts)
        self.wanted = np.ascontiguousarray(wanted)
        self.supply = supply
        self.room = room

    def fill(self, count: Callable[[int], None]) -> None:
        """Make the flow a maximum one: along shortest ways from lines that lack to open nodes."""
        pushed = True
        while pushed:
            count(self.amounts.size)
            lacking = _missing(self.supply, self.amounts.sum(axis=0))
            room = _missing(self.room, self.amounts.sum(axis=1))
            pushed = bool(lacking.any() and room.any()) and self._search(lacking, room)

    def _search(self, lacking: np.ndarray, room: np.ndarray) -> bool:
        """Search once, breadth first, pushing along each way found; say whether any was."""
        seen = lacking > 0
        before = np.full(len(room), -2)
        queue = np.flatnonzero((self.wanted & seen).any(axis=1)).tolist()
        before[queue] = -1
        pushed = False
        free = self.wanted[room > 0].any(axis=0)
        for node in queue:  # which grows
            way = [node]
            while before[way[0]] >= 0:
                way.insert(0, int(before[way[0]]))
            if room[node] > 0:
                pushed |= self._push(way, lacking, room) > 0
                continue
            least = EMPTY * np.maximum(self.supply, self.room[node])
            givers = self.amounts[node] > least
            for after in np.flatnonzero(room > 0).tolist():
                if not (free & (self.amounts[node] > least)).any():
                    break
                amount = self._push([*way, after], lacking, room)
                pushed |= amount > 0
                if amount < 0:
                    break
            givers &= ~seen
            if givers.any():
                seen |= givers
                unseen = np.flatnonzero((before == -2) & ~(room > 0))
                found = unseen[(self.wanted[unseen] & givers).any(axis=1)]
                before[found] = node
                queue.extend(found.tolist())
        return pushed

    def _push(self, way: list[int], lacking: np.ndarray, room: np.ndarray) -> float:
        """Push as much as goes along a way of nodes: each passes lines on to the next.

        Returns how much; less than 0 where none goes even to the last but one.
        """
        stocks = [lacking * self.wanted[way[0]]]
        stocks += [self.amounts[node] * self.wanted[after] for node, after in pairwise(way)]
        totals = [float(stock.sum()) for stock in stocks]
        amount = min(float(room[way[-1]]), *totals)
        if not amount > 0:
            return -1.0 if min(totals[:-1], default=1) <= 0 else 0.0
        for node, after, stock, total in zip([-1, *way], way, stocks, totals, strict=False):
            # Rounding must leave nothing where all is taken.
            moved = stock
            if amount < total:
                moved = np.clip(amount - (np.cumsum(stock) - stock), 0, stock)
            self.amounts[after] += moved
            if node < 0:
                lacking -= moved
            else:
                self.amounts[node] -= moved
        room[way[-1]] -= amount
        return amount

    def joined(self, is_open: np.ndarray, open_nodes: bool, products: Products) -> np.ndarray:
        """Tell which wanted cells some maximum flow uses: (nodes, lines).

        `is_open` tells which nodes, or else which lines, have room; these are joined in one more
        node, since what one of them has less another may have more.
        """
        least = np.maximum(self.supply, self.room[:, None])
        used = self.amounts > FAINT * least
        nodes = len(used)
        passes = np.eye(nodes + 1, dtype=bool)
        passes[:nodes, :nodes] |= _any(products, used, self.wanted)
        if open_nodes:
            passes[:nodes, nodes] = is_open
            passes[nodes, :nodes] = used.any(axis=1)
        else:  # lines and nodes, and all directions, are exchanged
            passes[nodes, :nodes] = (self.wanted & is_open).any(axis=1)
            passes[:nodes, nodes] = used.any(axis=1)
        further = _any(products, passes, passes.T)
        while not np.array_equal(passes, further):
            passes, further = further, _any(products, further, further.T)
        same = passes & passes.T
        kept: np.ndarray = _any(products, same[:nodes, :nodes], used.T)
        if not open_nodes:
            kept |= same[:nodes, nodes, None] & is_open
        # What is too small beside what it goes with cannot be told.
        kept |= ~used.any(axis=0) | ~used.any(axis=1)[:, None]
        kept &= self.wanted
        return kept


def _missing(bounds: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Return what sums leave of their bounds; what rounding may have left is nothing."""
    missing: np.ndarray = bounds - sums
    missing[missing <= SHARP * bounds] = 0
    return missing


def _any(products: Products, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Tell for rows of `a` and rows of `b` whether any place is true in both."""
    counts: np.ndarray = products(a.astype(np.float32), b.astype(np.float32)) > 0
    return counts


class _Block:
    """Some rows and columns that have to do with each other, and the part they should spend."""

    def __init__(
        self, amounts: np.ndarray, wanted: np.ndarray, budgets: np.ndarray, capacities: np.ndarray
    ) -> None:
        self._capacities = capacities
        total = budgets.sum()
        self.part = min(1.0, float(capacities.sum() / total))
        self._supply = self.part * budgets
        room = np.minimum(capacities, total)
        amounts = amounts * wanted
        for bounds, axis in ((self._supply[:, None], 1), (room, 0)):
            sums = amounts.sum(axis=axis, keepdims=True).reshape(bounds.shape)
            amounts *= np.where(sums > bounds, bounds, 1) / np.where(sums > bounds, sums, 1)
        self._upright = len(budgets) >= len(capacities)
        if self._upright:
            self._flow = _Flow(amounts.T, wanted.T, self._supply, room)
        else:
            self._flow = _Flow(amounts, wanted, room, self._supply)

    def _by_rows(self, array: np.ndarray) -> np.ndarray:
        turned: np.ndarray = array.T if self._upright else array
        return turned

    def behind(self, count: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """Let flow what can; tell the rows that lack nevertheless with all that could help them.

        And their columns. None, if all rows spend their part.
        """
        self._flow.fill(count)
        amounts, wanted = map(self._by_rows, (self._flow.amounts, self._flow.wanted))
        room = np.minimum(self._capacities, self._supply.sum() / self.part)
        rows = _missing(self._supply, amounts.sum(axis=1)) > 0
        columns = np.zeros(len(room), bool)
        new = rows
        while new.any():
            found = wanted[new].any(axis=0) & ~columns
            columns |= found
            least = EMPTY * np.maximum(self._supply[:, None], room[found])
            new = (amounts[:, found] > least).any(axis=1) & ~rows
            rows = rows | new
        return rows | (rows.any() & ~wanted[:, ~columns].any(axis=1)), columns

    def joined(self, products: Products) -> np.ndarray:
        """Tell which wanted cells some maximum flow uses: (rows, columns)."""
        sums = self._by_rows(self._flow.amounts).sum(axis=0)
        is_open = sums < self._capacities * (1 - SHARP)
        return self._by_rows(self._flow.joined(is_open, self._upright, products))


def usable_cells(
    amounts: np.ndarray,
    wanted: np.ndarray,
    budgets: np.ndarray,
    capacities: np.ndarray,
    products: Products,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Tell which part of its budget each row can spend, and which wanted cells it can use for it.

    `amounts` is an allocation within the bounds, at best near the solution. None where the search
    would take too long.
    """
    parts = np.ones(len(budgets))
    usable = wanted.copy()
    rows = np.flatnonzero((budgets > 0) & wanted.any(axis=1))
    blocks = [(rows, np.flatnonzero(wanted[rows].any(axis=0)))]
    left = _MOST_CELLS

    def count(cells: int) -> None:
        nonlocal left
        left -= cells
        if left < 0:
            raise _TooMuchWork

    try:
        while blocks:
            rows, columns = blocks.pop()
            if rows.size == 0:
                continue
            place = np.ix_(rows, columns)
            block = _Block(amounts[place], wanted[place], budgets[rows], capacities[columns])
            parts[rows] = block.part
            behind, full = block.behind(count)
            if behind.any() and not behind.all():
                blocks.append((rows[behind], columns[full]))
                blocks.append((rows[~behind], columns[~full]))
                usable[np.ix_(rows[~behind], columns[full])] = False
            else:
                usable[place] = block.joined(products)
    except _TooMuchWork:
        return None
    return parts, usable
