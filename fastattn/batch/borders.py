"""Where a job is cut: boxes of batch indices and query rows, and parts of the keys, under a limit
of memory. Pure functions of shapes: no file is touched here.

A chunk is a range of one axis of (batch..., rows), with single indices on the axes before it and
whole axes behind it, so that its output is one contiguous range of the output file. No bit of the
result depends on where the borders lie.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from fastattn.batch.errors import UsageError
from fastattn.batch.readers import SPAN_BYTES, Range
from fastattn.batch.units import format_size

# Streamed parts of the keys begin at multiples of this, which every segment size (512 or a power
# of two below it) divides: then they give the bits of one call.
PART_KEYS = 512
_PART_SEGMENTS = 16
# A chunk takes some seconds at most, so that a killed job loses little: multiply-adds per chunk ...
_CHUNK_WORK = 1 << 38
# ... unless that would leave too few rows to use the machine, or to be worth reading the keys for.
_LEAST_ROWS = 1024
_LEAST_ROWS_STREAMED = 4096


class Operand(NamedTuple):
    """The shape of one input, and which of the job's axes its axes follow."""

    shape: tuple[int, ...]
    itemsize: int
    trailing: tuple[Literal["rows", "keys", "features"], ...]
    key_heads: bool = False  # its last batch axis counts key heads, not query heads

    def box(self, chunk: "Chunk", keys: Range, group: int) -> tuple[Range, ...]:
        """Find the part of this input that a chunk reads when it looks at the key range `keys`."""
        lead = len(self.shape) - len(self.trailing)
        ranges = list(chunk.batch[len(chunk.batch) - lead :])
        if self.key_heads and ranges:
            start, stop = ranges[-1]
            ranges[-1] = (start // group, -(-stop // group))
        follows = {"rows": chunk.rows, "keys": keys}
        ranges += [
            follows.get(word, (0, length))
            for word, length in zip(self.trailing, self.shape[lead:], strict=True)
        ]
        return tuple(
            (0, 1) if length == 1 and stop > start else (start, stop)
            for (start, stop), length in zip(ranges, self.shape, strict=True)
        )

    def box_bytes(self, chunk: "Chunk", keys: Range, group: int) -> int:
        """Bytes of that part."""
        return self.itemsize * math.prod(
            stop - start for start, stop in self.box(chunk, keys, group)
        )


class Layout(NamedTuple):
    """The sizes of a job."""

    batch: tuple[int, ...]  # heads included
    rows: int
    keys: int
    features: int
    value_features: int
    group: int  # query heads per key head; 1 without enable_gqa
    operands: dict[str, Operand]
    row_bytes: int  # of output and lse, per row
    compute_itemsize: int

    @property
    def extents(self) -> tuple[int, ...]:
        """The axes that chunks are cut from."""
        return (*self.batch, self.rows)

    @property
    def total_rows(self) -> int:
        """Rows of the output file."""
        return math.prod(self.extents)


class Chunk(NamedTuple):
    """One piece of the output, computed and written at once."""

    batch: tuple[Range, ...]
    rows: Range
    first_row: int  # in the output file, counted over all batch indices
    row_count: int


class Borders(NamedTuple):
    """How a job is cut; what a manifest records."""

    axis: int
    size: int
    part_keys: int | None  # keys per part where they are streamed, None where they are read whole

    def count(self, extents: tuple[int, ...]) -> int:
        """Count the chunks; there is at least one."""
        if 0 in extents:
            return 1
        return math.prod(extents[: self.axis]) * -(-extents[self.axis] // self.size)

    def misfit(self, layout: "Layout") -> str | None:
        """Say what makes no sense for a job of these sizes; None when nothing does."""
        extents = layout.extents
        if 0 in extents:
            return None if self == Borders(0, 1, None) else "an empty output is one chunk"
        if self.axis >= len(extents):
            return f"axis {self.axis}, where there are {len(extents)}"
        if self.size > extents[self.axis]:
            return f"size {self.size} on an axis of {extents[self.axis]}"
        if self.size not in _allowed_sizes(layout, self.axis, self.size):
            return f"size {self.size} for groups of {layout.group} heads"
        if self.part_keys is not None and self.part_keys % PART_KEYS:
            return f"part_keys {self.part_keys}, no multiple of {PART_KEYS}"
        return None

    def chunk(self, extents: tuple[int, ...], index: int) -> Chunk:
        """Return the chunk of that number, in the order of the output file."""
        if 0 in extents:  # an empty output is one empty chunk, so that every job has one
            everything = [(0, length) for length in extents]
            return Chunk(tuple(everything[:-1]), everything[-1], 0, 0)
        length = extents[self.axis]
        lead, piece = divmod(index, -(-length // self.size))
        ranges: list[Range] = []
        for axis_length in reversed(extents[: self.axis]):
            lead, at = divmod(lead, axis_length)
            ranges.insert(0, (at, at + 1))
        start = piece * self.size
        ranges.append((start, min(start + self.size, length)))
        ranges += [(0, rest) for rest in extents[self.axis + 1 :]]
        first = 0
        for (start, _), axis_length in zip(ranges, extents, strict=True):
            first = first * axis_length + start
        rows = math.prod(stop - start for start, stop in ranges)
        return Chunk(tuple(ranges[:-1]), ranges[-1], first, rows)

    def parts(self, visible: Range) -> Iterator[Range]:
        """Walk through the parts that hold the visible keys: at least one, which may be empty."""
        size = self.part_keys
        if size is None:
            raise ValueError("the keys of this job are read whole")
        start = visible[0] // size * size
        while True:
            yield start, min(start + size, visible[1])
            start += size
            if start >= visible[1]:
                return


Scratch = Callable[[Borders], int]


def memory_needed(layout: Layout, borders: Borders, scratch: Scratch) -> int:
    """Bytes that the job holds at most while it works on one chunk (the first is the largest)."""
    chunk = borders.chunk(layout.extents, 0)
    streamed = borders.part_keys is not None
    keys = (0, min(borders.part_keys or layout.keys, layout.keys))
    held = sum(part.box_bytes(chunk, keys, layout.group) for part in layout.operands.values())
    held += chunk.row_count * layout.row_bytes
    if streamed:
        # The state so far, the merger that follows it, and that of a part, which keeps its segments
        # apart: folding them among themselves first would give other bits than one call.
        states = 2 + -(-keys[1] // PART_KEYS)
        row = (layout.value_features + 2) * layout.compute_itemsize
        held += states * chunk.row_count * row
    return held + scratch(borders) + SPAN_BYTES


def choose_borders(
    layout: Layout, limit: int, scratch: Scratch, chunk_rows: int | None = None
) -> Borders:
    """Cut a job into the largest chunks that `limit` bytes and `chunk_rows` rows allow.

    The outermost axis that can be cut is, so that chunks are few. Keys are read whole where at
    least some hundred query rows fit beside them, and streamed in parts otherwise.

    Raises
    ------
    UsageError
        When not even one row and the smallest part of the keys fit.
    """
    axes = range(len(layout.extents))
    if 0 in layout.extents:
        return Borders(0, 1, None)

    def memory(borders: Borders) -> int:
        return memory_needed(layout, borders, scratch)

    for streamed in (False, True):
        for axis in axes:
            part = _part_keys(layout, axis, limit, scratch) if streamed else None
            if streamed and part is None:
                continue
            most = _most_by_work(layout, axis, streamed, chunk_rows)
            borders = _largest(layout, axis, part, most, lambda b: memory(b) <= limit)
            if borders is not None:
                return borders
    least = Borders(axes[-1], 1, min(PART_KEYS, layout.keys))
    needed = memory(least)
    raise UsageError(
        f"the memory to be used is {format_size(limit)}, but one query row and "
        f"{least.part_keys} keys take {format_size(needed)}; give --max-memory "
        f"{-(-needed // 2**20)}M or more"
    )


def _most_by_work(layout: Layout, axis: int, streamed: bool, chunk_rows: int | None) -> int:
    """Find the size along an axis at which a chunk is enough work, or has enough rows."""
    behind = math.prod(layout.extents[axis + 1 :])
    work = behind * layout.keys * (layout.features + layout.value_features)
    most = _CHUNK_WORK // max(work, 1)
    if axis == len(layout.batch):
        most = max(most, _LEAST_ROWS_STREAMED if streamed else _LEAST_ROWS)
    if chunk_rows is not None:
        most = min(most, chunk_rows // behind)
    return min(most, layout.extents[axis])


def _largest(
    layout: Layout, axis: int, part: int | None, most: int, fits: Callable[[Borders], bool]
) -> Borders | None:
    sizes = _allowed_sizes(layout, axis, most)
    low, high = 0, len(sizes)  # sizes[:low] fit, sizes[high:] do not
    while low < high:
        middle = (low + high) // 2
        if fits(Borders(axis, sizes[middle], part)):
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return None
    size = sizes[low - 1]
    if axis == len(layout.batch) and part is None and size < min(most, _LEAST_ROWS // 4):
        return None  # so few rows are not worth whole keys
    return Borders(axis, size, part)


def _allowed_sizes(layout: Layout, axis: int, most: int) -> "range | list[int]":
    group = layout.group
    if group == 1 or axis != len(layout.batch) - 1:
        return range(1, most + 1)
    # A chunk holds whole groups of query heads, or lies within one.
    inside = [size for size in range(1, min(group - 1, most) + 1) if group % size == 0]
    return inside + list(range(group, most + 1, group))


def _part_keys(layout: Layout, axis: int, limit: int, scratch: Scratch) -> int | None:
    """Find how many keys a streamed part takes; None when not even the smallest part fits.

    Parts are small, since the state of a part grows with its segments times the chunk's rows: the
    memory is better spent on rows, each of which saves a pass over all the keys.
    """
    for part in range(_PART_SEGMENTS * PART_KEYS, 0, -PART_KEYS):
        needed = memory_needed(layout, Borders(axis, 1, part), scratch)
        if needed <= limit // 2 or (part == PART_KEYS and needed <= limit):
            return part
    return None
