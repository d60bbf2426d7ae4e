"""Where the rows of keys and values lie: in one array, in a table by index, or in pages.

What the tiles cannot read in place is staged: copied row by row into scratch, widened and
dequantised on the way. Everything after that sees plain rows.
"""

import numpy as np

from fastattn._core.plan import PAGE_KEYS, PANEL_KEYS

from .compile import device
from .emit import LANES
from .memory import load, load_scalar, native_code, prefetch, store, store_scalar
from .native import load_int32, load_int64
from .pack import pack_keys
from .record import KEY
from .simd import cast, item_size, splat
from .storage import widen_row

# Rows of a table are fetched this many rows before their turn: nobody else can guess them.
AHEAD_ROWS = 8


@device
def row_index(call, j):
    """Row of key j in its array: j, or what the list of indices says, kept within the table."""
    if call.indices == 0:
        return j
    if call.index_bytes == 4:
        index = load_int32(call.indices + 4 * j)
    else:
        index = load_int64(call.indices, j)
    return min(max(index, 0), call.table_rows - 1)


@device
def row_place(call, base, pages, row_stride, j):
    """Address of the row of key j; `pages` is 0, or the entry's table of page addresses."""
    if pages != 0:
        return load_int64(pages, j // PAGE_KEYS) + j % PAGE_KEYS * row_stride
    return base + row_index(call, j) * row_stride


@device
def stage_rows(tag, call, side, first, count, target, target_stride):
    """Copy rows first to first + count of the entry's keys or values (`side`) into scratch.

    Writes the features of each row, and nothing beyond.
    """
    code, row_stride = call.value_code, call.value_row
    feature_stride, features = call.value_feature, call.value_features
    base, pages, scales = call.entry_value, call.entry_value_pages, call.entry_value_scales
    if side == KEY:
        code, row_stride = call.key_code, call.key_row
        feature_stride, features = call.key_feature, call.features
        base, pages, scales = call.entry_key, call.entry_key_pages, call.entry_key_scales
    for r in range(count):
        j = first + r
        if call.indices != 0 and r + AHEAD_ROWS < count:
            later = row_place(call, base, pages, row_stride, j + AHEAD_ROWS)
            for line in range(0, features * feature_stride, 64):
                prefetch(later + line)
        place = target + r * target_stride
        source = row_place(call, base, pages, row_stride, j)
        widen_row(tag, code, source, feature_stride, features, place)
        if scales != 0:
            at = load_int64(scales, j // PAGE_KEYS) + j % PAGE_KEYS * 4
            scale_staged(tag, place, features, cast(tag, load_scalar(np.float32(0), at)))


@device
def scale_staged(tag, row, length, scale):
    """Multiply a row by a scale: the dequantised number, rounded once."""
    item = item_size(tag)
    whole = length // LANES * LANES
    wide = splat(scale)
    for i in range(0, whole, LANES):
        store(row + i * item, load(tag, row + i * item) * wide)
    for i in range(whole, length):
        store_scalar(row + i * item, load_scalar(tag, row + i * item) * scale)


@device
def pack_entry_panel(tag, call, first, target, scratch):
    """Pack keys first to first + 64 (fewer at the end) of the entry at hand into a panel."""
    item = item_size(tag)
    keys = min(call.keys - first, PANEL_KEYS)
    code, row_stride, feature_stride = call.key_code, call.key_row, call.key_feature
    if call.key_staged:
        source = scratch + call.at_stage
        code, row_stride, feature_stride = native_code(tag), call.features * item, item
        stage_rows(tag, call, KEY, first, keys, source, row_stride)
    else:
        source = row_place(call, call.entry_key, call.entry_key_pages, row_stride, first)
    pack_keys(tag, call, code, source, feature_stride, row_stride, keys, target)
