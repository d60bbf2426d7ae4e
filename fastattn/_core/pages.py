"""Keys and values that grow: a pool of pages, and the table that says whose they are.

A page holds 128 keys of all heads and their values. Pages come in chunks that are never moved, so
growing copies nothing; entries may share a page (`reorder`), and then whoever writes first takes a
copy of it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastattn._core.constants import PAGE_KEYS

__all__ = ["PageTable", "Pages", "quantise"]

# A chunk holds as many pages as there are already, up to about this many bytes.
_CHUNK_BYTES = 256 << 20
# New keys are written this many (key, head) rows at a time, which bounds the temporary copy.
_ROWS_AT_ONCE = 1 << 15
# Of so many times the pages that are held the memory is kept for those to come.
_MOST_FREE = 4
# What int8 reaches in either direction.
_LEVELS = np.float32(127)


class Pages(NamedTuple):
    """Where a call finds keys and values that lie in pages: addresses, never written again."""

    dtype: np.dtype  # of storage
    key: np.ndarray  # int64 (*batch, heads, pages), of a head's first key in a page
    value: np.ndarray  # int64 (*batch, heads, pages)
    key_scale: np.ndarray | None  # int64 (*batch, heads, pages), of its float32 scales; int8 only
    value_scale: np.ndarray | None
    kept: tuple[np.ndarray, ...]  # the memory behind the addresses


class _Chunk(NamedTuple):
    """Pages allocated together."""

    key: np.ndarray  # (pages, heads, PAGE_KEYS, E)
    value: np.ndarray  # (pages, heads, PAGE_KEYS, Ev)
    key_scale: np.ndarray  # (pages, heads, PAGE_KEYS), no heads where nothing is quantised
    value_scale: np.ndarray


def quantise(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round each row (last axis) to int8 with one float32 scale: the largest becomes 127.

    A row of zeros has scale 0. Requires finite input.
    """
    # `np.where` and `np.clip` take as long as all the rest, where it is one token.
    scale = np.maximum.reduce(np.abs(x), axis=-1, initial=0.0).astype(np.float32) / _LEVELS
    safe = (scale + (scale == 0))[..., None]
    levels = np.rint(x / safe)
    return np.maximum(np.minimum(levels, _LEVELS), -_LEVELS).astype(np.int8), scale


class PageTable:
    """The pages of `entries` growing sequences.

    Attributes
    ----------
    lengths : ndarray, int64 (entries,)
        Keys in each sequence; replaced whenever they change, never written in place.
    longest : int
        Keys of the longest sequence.
    dropped : ndarray, int64 (entries,), or None
        Keys at the beginning of each sequence that are gone, whole pages; None: nowhere any.
    """

    def __init__(
        self,
        entries: int,
        heads: int,
        features: tuple[int, int],
        dtype: np.dtype,
        window: int | None = None,
    ) -> None:
        self.heads, self.features, self.dtype, self.window = heads, features, dtype, window
        self.scaled = dtype == np.int8
        self.lengths = np.zeros(entries, np.int64)
        self.dropped: np.ndarray | None = None
        self._chunks: list[_Chunk] = []
        self._where = np.empty((0, 2), np.int64)  # page -> chunk, place in it
        self._uses = np.empty(0, np.int64)  # page -> entries that hold it
        # entry, page number -> page; replaced whenever it changes, never written in place.
        self._pages = np.full((entries, 0), -1, np.int64)
        self._found: tuple[np.ndarray, Pages] | None = None  # what was looked up, in which pages
        # How many keys every entry can take without asking for room, all in the page that it ends
        # in, and where those pages are: chunk, entries, places in the chunk. None: not looked up.
        self._spare = 0
        # How many keys more until a page is hidden from all queries to come, by the window.
        self._fresh = 0
        self._tails: list[tuple[_Chunk, Any, np.ndarray]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out where pages are: those of a copy lie elsewhere."""
        return {**self.__dict__, "_found": None, "_tails": None}

    @property
    def lengths(self) -> np.ndarray:
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: np.ndarray) -> None:
        self._lengths, self.longest = lengths, int(lengths.max(initial=0))

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for chunk in self._chunks for part in chunk)

    def append(
        self,
        key: np.ndarray,
        value: np.ndarray,
        counts: np.ndarray | None = None,
    ) -> None:
        """Write the first `counts` of the new keys behind each sequence's last; None: all of them.

        `key` and `value` are (entries, heads, new, features). If memory runs out the sequences are
        as they were before. Queries at the last `new` positions see as many keys before their own
        as the window says; pages that none of them sees are given back.
        """
        entries, _, new, _ = key.shape
        if counts is None and 0 < new <= self._spare and self._fresh > 0:
            self._write_tails(key, value)
            self._fresh -= new
            self._spare -= new  # first: an interrupt in between then leaves too little
            self.lengths = self.lengths + new
            return
        if counts is None:
            counts = np.full(entries, new, np.int64)
        stop = self.lengths + counts
        before = self._pages, self.dropped
        if self.window is not None:
            self._drop(np.minimum(stop - max(new, 1) - self.window, self.lengths))
        if not self._spare or counts.max(initial=0) > self._spare:
            self._tails = None
            try:
                self._make_room(self.lengths, stop)
            except MemoryError:
                self._pages, self.dropped = before
                self._count()
                raise
        step = max(1, _ROWS_AT_ONCE // max(1, self.heads * entries))
        for first in range(0, key.shape[2], step):
            tokens = np.arange(first, min(first + step, key.shape[2]))
            entry, at = np.nonzero(tokens[None, :] < counts[:, None])
            if len(entry):
                token = tokens[at]
                self._write(entry, self.lengths[entry] + token, key, value, token)
        self._end_at(stop)
        if self.window is not None:
            self._free()

    def drop_before(self, positions: np.ndarray) -> None:
        """Give back the pages of each sequence that end at or before its position."""
        self._drop(positions)
        self._free()

    def _drop(self, positions: np.ndarray) -> None:
        gone = np.maximum(positions, 0) // PAGE_KEYS
        gone = np.maximum(gone, 0 if self.dropped is None else self.dropped // PAGE_KEYS)
        if not gone.any():
            return
        held = np.where(np.arange(self._pages.shape[1]) < gone[:, None], -1, self._pages)
        # First: an interrupt in between then refuses what is still there.
        self.dropped = gone * PAGE_KEYS
        self._pages = held
        self._count()

    def truncate(self, lengths: np.ndarray) -> None:
        """Forget the keys from `lengths` on; whole pages go back to the pool."""
        same_page = lengths // PAGE_KEYS == self.lengths // PAGE_KEYS
        if self._spare and np.all(same_page & (lengths % PAGE_KEYS > 0)):
            # A few rejected tokens: every sequence ends in the page of its own that it ended in.
            self._end_at(lengths)
            return
        self._spare, self._tails = 0, None
        if self.dropped is not None:
            self.dropped = np.where(lengths > 0, self.dropped, 0)
        kept = -(-lengths // PAGE_KEYS)
        forgotten = np.arange(self._pages.shape[1]) >= kept[:, None]
        self._pages = np.where(forgotten, -1, self._pages)
        self._count()
        self.lengths = lengths.astype(np.int64)

    def select(self, sources: np.ndarray) -> None:
        """Let entry i go on from what entry ``sources[i]`` holds, or from nothing where that is -1.

        Pages are shared, not copied.
        """
        self._spare, self._tails = 0, None
        new = sources < 0
        held, lengths = self._pages, self.lengths
        if len(held) == 0:
            held, lengths = np.full((1, held.shape[1]), -1, np.int64), np.zeros(1, np.int64)
        self._pages = np.where(new[:, None], -1, held[sources])
        self._count()
        if self.dropped is not None:
            self.dropped = np.where(new, 0, self.dropped[sources])
        self.lengths = np.where(new, 0, lengths[sources])
        self._free()

    def pages(self, batch: tuple[int, ...]) -> Pages:
        """Look up where every page is, up to the longest sequence; 0 where an entry has none.

        No kernel reads a page of which no row sees a key.

        What is found is kept while the pages stay the same, since decoding asks at every token.
        """
        shape = (*batch, self.heads, -(-self.longest // PAGE_KEYS))
        held, found = self._pages, self._found
        if found is None or found[0] is not held or found[1].key.shape != shape:
            found = self._found = held, self._look_up(held, shape)
        return found[1]

    def _look_up(self, held: np.ndarray, shape: tuple[int, ...]) -> Pages:
        used = held[:, None, : shape[-1]]

        def addresses(part: str) -> np.ndarray:
            if not len(self._where):
                return np.zeros(shape, np.int64)
            arrays = [getattr(chunk, part) for chunk in self._chunks]
            bases = np.array([a.__array_interface__["data"][0] for a in arrays], np.int64)
            (chunk, place), (page, head) = self._where.T, arrays[0].strides[:2]
            heads = np.arange(self.heads, dtype=np.int64)[:, None] * head
            found = (bases[chunk] + place * page)[used] + heads
            return np.where(used < 0, 0, found).reshape(shape)

        return Pages(
            dtype=self.dtype,
            key=addresses("key"),
            value=addresses("value"),
            key_scale=addresses("key_scale") if self.scaled else None,
            value_scale=addresses("value_scale") if self.scaled else None,
            kept=tuple(array for chunk in self._chunks for array in chunk),
        )

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Copy all keys and values: (entries, heads, longest, features), 0 beyond a length."""
        entries, longest = len(self.lengths), self.longest
        dtype = np.dtype(np.float32) if self.scaled else self.dtype
        results = [np.zeros((entries, self.heads, longest, n), dtype) for n in self.features]
        for entry, length in enumerate(self.lengths):
            for number in range(-(-int(length) // PAGE_KEYS)):
                if self._pages[entry, number] < 0:
                    continue
                chunk, place = self._where[self._pages[entry, number]]
                first = number * PAGE_KEYS
                count = min(int(length) - first, PAGE_KEYS)
                for result, part in zip(results, ("key", "value"), strict=True):
                    rows = getattr(self._chunks[chunk], part)[place, :, :count]
                    if self.scaled:
                        scale = getattr(self._chunks[chunk], f"{part}_scale")[place, :, :count]
                        rows = rows.astype(np.float32) * scale[..., None]
                    result[entry, :, first : first + count] = rows
        return results[0], results[1]

    def _write(
        self,
        entry: np.ndarray,
        position: np.ndarray,
        key: np.ndarray,
        value: np.ndarray,
        token: np.ndarray,
    ) -> None:
        """Put tokens (entry, token) of the new arrays at positions of their sequences."""
        chunks, places = self._where[self._pages[entry, position // PAGE_KEYS]].T
        rows = position % PAGE_KEYS
        for number in np.unique(chunks):
            chosen = chunks == number
            source = entry[chosen], slice(None), token[chosen]
            target = places[chosen], slice(None), rows[chosen]
            self._store(self._chunks[number], target, key[source], value[source])

    def _write_tails(self, key: np.ndarray, value: np.ndarray) -> None:
        """Put new keys and values of every entry into the pages that were found for them."""
        rows = (self.lengths % PAGE_KEYS)[:, None] + np.arange(key.shape[2])
        if self._tails is None:
            self._tails = self._find_tails()
        for chunk, chosen, places in self._tails:
            target = places, slice(None), rows[chosen]
            self._store(chunk, target, key[chosen].swapaxes(1, 2), value[chosen].swapaxes(1, 2))

    def _find_tails(self) -> list[tuple[_Chunk, Any, np.ndarray]]:
        """Find the page that each sequence ends in; none ends where its page does."""
        held = self._pages[np.arange(len(self.lengths)), self.lengths // PAGE_KEYS]
        chunks, places = self._where[held].T
        numbers = np.unique(chunks)
        tails: list[tuple[_Chunk, Any, np.ndarray]] = []
        for number in numbers:
            chosen = slice(None) if len(numbers) == 1 else np.flatnonzero(chunks == number)
            tails.append((self._chunks[number], chosen, places[chosen][:, None]))
        return tails

    def _store(self, chunk: _Chunk, target: Any, key: np.ndarray, value: np.ndarray) -> None:
        """Put keys and values at their places in a chunk, rounded to its type."""
        for new, stored, scales in (
            (key, chunk.key, chunk.key_scale),
            (value, chunk.value, chunk.value_scale),
        ):
            if self.scaled:
                stored[target], scales[target] = quantise(new)
            else:
                stored[target] = new

    def _end_at(self, lengths: np.ndarray) -> None:
        """Let sequences end in pages that are theirs alone."""
        self._spare = 0
        self.lengths = lengths
        self._spare = int((-lengths % PAGE_KEYS).min(initial=PAGE_KEYS))
        self._fresh = PAGE_KEYS
        if self.window is not None:
            left = lengths - (0 if self.dropped is None else self.dropped)
            self._fresh = PAGE_KEYS + self.window - int(left.max(initial=0))

    def _make_room(self, start: np.ndarray, stop: np.ndarray) -> None:
        """Give every entry pages of its own for positions start to stop."""
        first, last = start // PAGE_KEYS, -(-stop // PAGE_KEYS)
        count = int(last.max(initial=0))
        held = self._pages
        if count > held.shape[1]:
            # Half as many again: the table is copied a few times, the pages never.
            wider = max(count, held.shape[1] * 3 // 2) - held.shape[1]
            held = np.pad(held, ((0, 0), (0, wider)), constant_values=-1)
        number = np.arange(held.shape[1])
        written = (number >= first[:, None]) & (number < last[:, None])
        wanting = written & (held < 0)
        shared = written & (held >= 0)
        shared[shared] = self._uses[held[shared]] > 1
        if held is self._pages and not wanting.any() and not shared.any():
            return
        fresh = self._take(int(wanting.sum() + shared.sum()))
        copies = fresh[int(wanting.sum()) :]
        for old, new in zip(held[shared], copies, strict=True):
            self._copy(int(old), int(new))
        held = held.copy()
        held[wanting], held[shared] = fresh[: len(fresh) - len(copies)], copies
        self._pages = held
        self._count()

    def _take(self, count: int) -> np.ndarray:
        """Find free pages, after allocating a chunk if there are too few."""
        free = np.flatnonzero(self._uses == 0)
        if len(free) < count:
            have = len(self._where)
            page = self.heads * PAGE_KEYS * sum(self.features) * self.dtype.itemsize
            most = max(1, _CHUNK_BYTES // max(1, page))
            size = max(count - len(free), min(have, most))
            self._chunks.append(self._new_chunk(size))
            where = np.stack([np.full(size, len(self._chunks) - 1), np.arange(size)], axis=1)
            self._where = np.concatenate([self._where, where])
            self._uses = np.concatenate([self._uses, np.zeros(size, np.int64)])
            free = np.flatnonzero(self._uses == 0)
        return free[:count]

    def _new_chunk(self, size: int) -> _Chunk:
        shape = (size, self.heads, PAGE_KEYS)
        scales = shape if self.scaled else (size, 0, PAGE_KEYS)
        return _Chunk(
            *(np.empty((*shape, n), self.dtype) for n in self.features),
            *(np.empty(scales, np.float32) for _ in self.features),
        )

    def _free(self) -> None:
        """Where few pages are held, move them together and let go of the memory of the others.

        Few, so that on the whole fewer pages are copied than given back.
        """
        used = np.flatnonzero(self._uses)
        if len(self._where) <= _MOST_FREE * max(1, len(used)):
            return
        try:
            chunk = self._new_chunk(len(used))
        except MemoryError:
            return
        for place, page in enumerate(used):
            number, here = self._where[page]
            for old, new in zip(self._chunks[number], chunk, strict=True):
                new[place] = old[here]
        held = np.where(self._pages < 0, -1, np.searchsorted(used, self._pages))
        self._found = self._tails = None
        where = np.stack([np.zeros(len(used), np.int64), np.arange(len(used))], axis=1)
        self._chunks = [chunk] if len(used) else []
        self._where, self._uses = where, self._uses[used]
        self._pages = held

    def _copy(self, source: int, target: int) -> None:
        (one, here), (other, there) = self._where[source], self._where[target]
        for old, new in zip(self._chunks[one], self._chunks[other], strict=True):
            new[there] = old[here]

    def _count(self) -> None:
        held: Any = self._pages[self._pages >= 0]
        self._uses = np.bincount(held, minlength=len(self._where)).astype(np.int64)
