"""A launch on checked memory: regions from the arrays of a record, scratch with gaps, workers."""

import ctypes

import numpy as np

from fastattn._core.constants import PAGE_KEYS
from fastattn._engine import layouts

from .arrays import Mapped, poison, regions_of
from .memory import RECORD, Memory, Region, use
from .workers import run_in_turns

__all__ = ["Launcher"]

# Between the parts of scratch, and between workers: more than a kernel writes at once.
_GAP = 4096
# Which record an entry reads, by the first word of its name.
_LAYOUTS = {
    "attend": layouts.ATTENTION, "fold": layouts.ATTENTION, "compare": layouts.SIMILARITY,
    "normalise": layouts.SOFTMAX, "fuse": layouts.FUSE, "apply": layouts.LINEAR,
    "hand": layouts.ALLOCATION, "share": layouts.SHARED,
}  # fmt: skip
# Fields whose arrays a kernel writes. What is fresh in them is found by its contents.
_RESULTS = ("output", "lse", "weights", "sign", "unspent")
_WRITTEN = {
    "AttentionCall": (
        "output", "lse", "weights", "state_output", "state_max", "state_sum", "state_rest",
        "partial_output", "partial_max", "partial_sum", "partial_rest",
    ),
    "SimilarityCall": ("output",),
    "SoftmaxCall": ("output", "sign", "maxima", "sums", "rests", "near", "near_sums"),
    "FuseCall": ("output",),
    "LinearCall": ("output",),
    "AllocationCall": ("output", "unspent"),
    "SharedCall": (
        "matrix", "spent", "next_row_factors", "next_column_factors", "sums", "rests", "changes",
    ),
}  # fmt: skip


class Launcher:
    """Runs the tasks of plain entries; knows arrays by the field and the address they came with."""

    def __init__(self):
        self.entries = {}  # address -> entry
        self.known = {}  # (field, address) -> array
        self.launches = 0
        self.most_workers = 0

    def know(self, field, array):
        self.known[field, array.__array_interface__["data"][0]] = array

    def forget(self):
        """Let go of all arrays; whoever calls knows that no call is under way."""
        self.known.clear()

    def run(self, entry, call, tasks, seconds_per_task, workers):
        """Run tasks 0 to `tasks` of the record `call`, an array."""
        self.run_at(entry, call.ctypes.data, tasks, seconds_per_task, workers)

    def run_at(self, entry, call, tasks, seconds_per_task, workers):
        self._run(entry, call, 0, tasks, max(1, min(workers, tasks)))

    def run_serially(self, address, call, first, stop):
        """What compiled callers of the launcher call."""
        self._run(self.entries[address], call, first, stop, 1)

    def _run(self, entry, call, first, stop, workers):
        layout = _LAYOUTS[entry.name.split("_")[0]]
        words = words_at(call, len(layout.word))
        before = words.copy()
        words[:3] = first, stop, workers
        self.launches += 1
        self.most_workers = max(self.most_workers, workers)
        try:
            memory, _kept = self._memory(layout, words, workers)
            with use(memory), np.errstate(all="ignore"):
                run_in_turns(entry.function, call, memory, workers)
        finally:
            counter = words[:3].copy()
            words[...] = before
            words[:3] = counter

    def _memory(self, layout, words, workers):
        memory = Memory()
        mapped = [self._mapped(layout, words, field) for field in _pointers(layout)]
        mapped = [one for one in mapped if one is not None]
        mapped += self._mapped_pages(layout, words)
        for region in regions_of(mapped):
            memory.add(region)
        scratch = _spread_scratch(layout, words, workers, memory)
        record = bytearray(b"\1" * words.nbytes)
        counter = bytearray(b"\1" * 8 + b"\0" * (words.nbytes - 8))
        memory.add(Region(RECORD, words.ctypes.data, record, writable=counter))
        return memory, scratch

    def _mapped(self, layout, words, field):
        address = int(words[layout.word[field]])
        if address == 0:
            return None
        if field == "sign":
            address += int(words[layout.word["output"]])
        array = self.known.get((field, address))
        if array is None:
            raise AssertionError(f"nobody knows the array of {field} of a {layout.name}")
        rows = _real_rows(layout, words, field)
        if rows is not None:
            shape = (*array.shape[:-2], rows, array.shape[-1])
            array = np.lib.stride_tricks.as_strided(array, shape, array.strides)
        written = field in _WRITTEN[layout.name]
        return Mapped(field, array, written, written and field in _RESULTS)

    def _mapped_pages(self, layout, words):
        if layout is not layouts.ATTENTION:
            return
        for field in ("key_pages", "value_pages", "key_scales", "value_scales"):
            table = int(words[layout.word[field]])
            if table:
                yield from self._mapped_table(layout, words, field, self.known[field, table])

    def _mapped_table(self, layout, words, field, table):
        """The rows of every page of a table that were ever written."""
        item = int(words[layout.word["key_feature"]])
        features = "features" if field.startswith("key") else "value_features"
        size = 4 if field.endswith("scales") else item * int(words[layout.word[features]])
        for page in np.unique(table[table != 0]):
            buffer = (ctypes.c_char * (PAGE_KEYS * size)).from_address(int(page))
            rows = np.ndarray((PAGE_KEYS, size), np.uint8, buffer)
            yield Mapped(f"{field} {page:#x}", rows, fresh_rows=True)


def words_at(address, count):
    """The words of a record where they lie, writable."""
    return np.ctypeslib.as_array((ctypes.c_int64 * count).from_address(address))


# Integers of a record that are addresses of arrays, in any layout.
_ADDRESSES = {
    "entry_shape", "entry_strides", "query", "key", "value", "indices", "key_pages", "value_pages",
    "key_scales", "value_scales", "mask", "lengths", "offsets", "query_ids", "key_ids", "alibi",
    "sinks", "factors", "output", "lse", "weights", "borders", "first_task", "query_splits",
    "key_splits", "state_output", "state_max", "state_sum", "state_rest", "partial_output",
    "partial_max", "partial_sum", "partial_rest", "x", "sign", "maxima", "sums", "rests", "near",
    "near_sums", "budget",
    "lower", "upper", "allowed", "unspent", "source", "matrix", "budgets", "capacities", "spent",
    "row_factors", "column_factors", "next_row_factors", "next_column_factors", "changes", "weight",
    "bias",
}  # fmt: skip


def _pointers(layout):
    return [field for field in layout.integers if field in _ADDRESSES]


def _real_rows(layout, words, field):
    """Rows of a table that is described as if it had one for each listed key."""
    if layout is layouts.ATTENTION and field in ("key", "value"):
        if words[layout.word["indices"]]:
            return int(words[layout.word["table_rows"]])
        if words[layout.word["key_pages"]]:
            return 0  # there is no such array: its rows are in pages
    return None


def _spread_scratch(layout, words, workers, memory):
    """Give each part of each worker's scratch a region of its own, with nothing around it."""
    word = layout.word
    stride = int(words[word["scratch_stride"]])
    fields = [field for field in layout.integers if field.startswith("at_")]
    starts = {field: int(words[word[field]]) for field in fields} or {"": 0}
    borders = sorted({*starts.values(), stride})
    sizes = dict(zip(borders, [*np.diff(borders), 0], strict=True))
    # Of parts that begin at one place all but the last are empty.
    last = {start: field for field, start in starts.items()}
    place, parts = _GAP, []
    for field, start in starts.items():
        size = int(sizes[start]) if last[start] == field else 0
        parts.append((field, place, size))
        place += size + _GAP
    buffer = poison(np.empty(workers * place + 64, np.uint8))
    base = buffer.ctypes.data + -buffer.ctypes.data % 64
    for worker in range(workers):
        for field, start, size in parts:
            if size:
                name = f"scratch {field} of worker {worker}"
                memory.add(Region.fresh(name, base + worker * place + start, size, worker))
    for field, start, _ in parts:
        if field:
            words[word[field]] = start
    words[word["scratch"]] = base if fields else base + parts[0][1]
    words[word["scratch_stride"]] = place
    return buffer
