"""Where the rows of keys and values lie: in one array, in a table by index, or in pages.

What the tiles cannot read in place is staged: copied row by row into scratch, widened and
dequantised on the way. Everything after that sees plain rows. (Halves and int8 are not staged for
few rows: `decode_small`.)
"""

import numpy as np

from fastattn._core.constants import FUSE_KEYS, PAGE_KEYS, PANEL_KEYS, SEGMENT_KEYS

from ..compiler.compile import device
from ..compiler.native import load_int32, load_int64, store_int64
from ..machine.emit import LANES
from ..machine.memory import load_scalar, native_code, prefetch, store_scalar
from ..machine.simd import item_size
from ..machine.storage import dequantise_row, pack_small, widen_row
from .pack import PREFETCH_KEYS, clear_row, finish_panel, pack_ahead, pack_matrix
from .record import (
    KEY,
    PANELS_IN_PLACE,
    PANELS_WIDENED,
    VALUE,
    VALUES_IN_PLACE,
    VALUES_STAGED,
    factors_of,
)

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
def scale_place(scales, j):
    """Address of the scale of key j in an entry's table of addresses of scales; 0 without one."""
    if scales == 0:
        return 0
    return load_int64(scales, j // PAGE_KEYS) + j % PAGE_KEYS * 4


@device
def copy_last_keys(call, first, count, size, target):
    """Copy the last keys of an entry from `first` on, and the very last again up to `count`.

    What lies behind the last key belongs to somebody else. Their scales come behind them.
    """
    scales, copied = call.entry_key_scales, target + count * size
    for r in range(count):
        j = min(first + r, call.keys - 1)
        source = row_place(call, call.entry_key, call.entry_key_pages, call.key_row, j)
        for word in range(size // 8):
            store_int64(target + r * size, word, load_int64(source, word))
        if scales != 0:
            scale = load_scalar(np.float32(0), scale_place(scales, j))
            store_scalar(copied + 4 * r, scale)


@device
def listed_later(call, side, base, row_stride, j):
    """Address of the row to ask for beside listed row j of the keys or values.

    Behind a segment's keys come its values, and behind those the keys of what is listed next.
    """
    later, start = j + AHEAD_ROWS, j // SEGMENT_KEYS * SEGMENT_KEYS
    stop = min(start + SEGMENT_KEYS, call.keys)
    if later >= stop:
        if side == KEY:
            base, row_stride = call.entry_value, call.value_row
            later = min(start + later - stop, stop - 1)
        else:
            base, row_stride = call.entry_key, call.key_row
            later = min(later, call.listed - 1)
    return base + row_index(call, later) * row_stride


@device
def stage_rows(tag, call, side, first, count, feature, features, target, target_stride):
    """Copy rows first to first + count of the entry's keys or values (`side`) into scratch.

    Of each row only the features from `feature` on, and nothing is written beyond them.
    """
    code, row_stride = call.value_code, call.value_row
    feature_stride = call.value_feature
    base, pages, scales = call.entry_value, call.entry_value_pages, call.entry_value_scales
    if side == KEY:
        code, row_stride = call.key_code, call.key_row
        feature_stride = call.key_feature
        base, pages, scales = call.entry_key, call.entry_key_pages, call.entry_key_scales
    base_feature = feature * feature_stride
    # In a table of columns every feature has a line of its own: fetching is work like loading.
    near = features * feature_stride if feature_stride <= 64 else 0
    source = later = scale = 0
    for r in range(count):
        j = first + r
        if r == 0 or call.indices != 0 or j % PAGE_KEYS == 0:
            source = row_place(call, base, pages, row_stride, j) + base_feature
            scale = scale_place(scales, j)
            later = source
            if call.indices != 0:
                later = listed_later(call, side, base, row_stride, j) + base_feature
            elif j + PAGE_KEYS < call.keys:
                later = row_place(call, base, pages, row_stride, j + PAGE_KEYS) + base_feature
        for line in range(0, near, 64):
            prefetch(later + line)
        place = target + r * target_stride
        if scale != 0:
            factor = load_scalar(np.float32(0), scale)
            dequantise_row(tag, source, features, factor, place)
            scale += 4
        else:
            widen_row(tag, code, source, feature_stride, features, place)
        source += row_stride
        later += row_stride


@device
def lines_ahead(call, first):
    """Address and stride of lines to ask for while the panel of keys from `first` on is scored.

    They follow those that packing it has asked for, where keys lie row behind row.
    """
    wanted = first + PANEL_KEYS + PREFETCH_KEYS
    near = call.key_feature * call.features == call.key_row and call.indices == 0
    if not near or wanted >= call.keys:
        return call.entry_key, 0
    return row_place(call, call.entry_key, call.entry_key_pages, call.key_row, wanted), 64


@device
def pack_entry_panel(tag, call, first, target, scratch):
    """Pack keys first to first + 64 (fewer at the end) of the entry at hand into a panel."""
    item = item_size(tag)
    stride, keys = PANEL_KEYS * item, min(call.keys - first, PANEL_KEYS)
    code, row_stride, feature_stride = call.key_code, call.key_row, call.key_feature
    source, whole, ahead = 0, 0, PREFETCH_KEYS * row_stride
    if call.indices == 0:
        base, pages = call.entry_key, call.entry_key_pages
        source = row_place(call, base, pages, row_stride, first)
        if pages != 0:
            # Behind a page lies something else.
            following = min(first + PANEL_KEYS, call.keys - 1) // PANEL_KEYS * PANEL_KEYS
            ahead = row_place(call, base, pages, row_stride, following) - source
    if call.panel_way != PANELS_IN_PLACE:
        if call.panel_way == PANELS_WIDENED:
            whole = keys // LANES * LANES
            scales = scale_place(call.entry_key_scales, first)
            pack_small(
                tag, code, source, row_stride, whole, call.features, scales, target, stride, ahead
            )
        source = scratch + call.at_stage
        code, row_stride, feature_stride = native_code(tag), call.features * item, item
        stage_rows(
            tag, call, KEY, first + whole, keys - whole, 0, call.features, source, row_stride
        )
        ahead = 0
    if whole < keys:
        pack_ahead(
            tag, code, source, feature_stride, row_stride, call.features, keys - whole,
            target + whole * item, stride, ahead,
        )  # fmt: skip
    finish_panel(tag, call, factors_of(call, 0), target)


@device
def stage_values(tag, call, first, count, column, columns, target, stride):
    """Copy some columns of value rows of the entry at hand into scratch, zeros beside the last."""
    features = min(columns, call.value_features - column)
    if call.value_columns:
        source = call.entry_value + first * call.value_row + column * call.value_feature
        pack_matrix(
            tag, call.value_code, source, call.value_row, call.value_feature, count, features,
            target, stride,
        )  # fmt: skip
    else:
        stage_rows(tag, call, VALUE, first, count, column, features, target, stride)
    if features % LANES != 0:
        for row in range(count):
            clear_row(tag, target + row * stride, features, features // LANES * LANES + LANES)


@device
def place_values(tag, call, segment, low, high, scratch):
    """List where the values of columns low to high of a segment lie, staged if they must be.

    Returns the distance between rows. The list names the first row of each 128 keys among
    them, and of the 128 behind. Values that are staged late stay in the nearest cache: 128 keys at
    a time, when they are fused. A task of several blocks of rows stages each segment once.
    """
    start = segment * SEGMENT_KEYS
    if call.value_way == VALUES_IN_PLACE:
        base, pages, stride = call.entry_value, call.entry_value_pages, call.value_row
        last = call.keys - 1
        for chunk in range(low // FUSE_KEYS, (high - 1) // FUSE_KEYS + 2):
            j = min(start + chunk * FUSE_KEYS, last) // FUSE_KEYS * FUSE_KEYS
            place = row_place(call, base, pages, stride, j)
            store_int64(scratch + call.at_chunks, chunk, place)
        return stride
    stride = (call.value_features + LANES - 1) // LANES * LANES * item_size(tag)
    packed = scratch + call.at_values
    for chunk in range(SEGMENT_KEYS // FUSE_KEYS + 1):
        store_int64(scratch + call.at_chunks, chunk, packed + chunk * FUSE_KEYS * stride)
    if call.value_way == VALUES_STAGED:
        place, columns = packed + low * stride, call.value_features
        stage_values(tag, call, start + low, high - low, 0, columns, place, stride)
    return stride
