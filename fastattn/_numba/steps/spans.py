"""Which stretch of a segment a block of rows sees: by key ranges, and by documents.

Documents packed into one row see nothing of each other. The smallest and the largest id of each
panel of 64 keys tell where a block's own documents can begin and end; what lies outside is skipped.
"""

from fastattn._core.constants import PANEL_KEYS, SEGMENT_KEYS

from ..compiler.compile import device
from ..compiler.native import load_int64, store_int64
from ..machine.emit import LANES
from .blocks import BEGIN, END, slot, visible_span

_PANELS = SEGMENT_KEYS // PANEL_KEYS


@device
def find_documents(call, segment, scratch):
    """Write the smallest and largest id of each panel of a segment into scratch."""
    found = scratch + call.at_ids
    start = segment * SEGMENT_KEYS
    for panel in range(_PANELS):
        first = start + panel * PANEL_KEYS
        stop = min(first + PANEL_KEYS, call.keys)
        if first >= stop:
            break
        smallest = largest = load_int64(call.entry_key_ids, first)
        for j in range(first + 1, stop):
            number = load_int64(call.entry_key_ids, j)
            smallest = min(smallest, number)
            largest = max(largest, number)
        store_int64(found, panel, smallest)
        store_int64(found, _PANELS + panel, largest)


@device
def segment_span(call, segment, first_row, first, stop, narrowing, alike, scratch):
    """Columns low (a multiple of sixteen) to high of a segment that rows first to stop may see."""
    start = segment * SEGMENT_KEYS
    low, high = visible_span(call, scratch, first, first + 1 if alike else stop)
    low = max(low - start, 0) // LANES * LANES
    high = min(high - start, SEGMENT_KEYS, call.keys - start)
    if not narrowing or low >= high:
        return low, high
    smallest, largest = (1 << 63) - 1, -(1 << 63)
    for r in range(first, stop):
        seen = load_int64(slot(call, scratch, END, r), 0)
        if load_int64(slot(call, scratch, BEGIN, r), 0) < seen:
            head, i = divmod(first_row + r, call.queries)
            number = load_int64(call.entry_query_ids + head * call.query_ids_head, i)
            smallest = min(smallest, number)
            largest = max(largest, number)
    found = scratch + call.at_ids
    while low < high and foreign(found, low // PANEL_KEYS, smallest, largest):
        low = (low // PANEL_KEYS + 1) * PANEL_KEYS
    while low < high and foreign(found, (high - 1) // PANEL_KEYS, smallest, largest):
        high = (high - 1) // PANEL_KEYS * PANEL_KEYS
    return low, high


@device
def foreign(found, panel, smallest, largest):
    """Whether no id of a panel lies between two ids."""
    lowest, highest = load_int64(found, panel), load_int64(found, _PANELS + panel)
    return highest < smallest or lowest > largest
