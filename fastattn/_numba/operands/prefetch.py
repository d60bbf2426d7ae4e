"""Read ahead: ask for what the next task needs, one cache line per step of this task's tiles.

A task of a short sequence finds nothing of its own in a near cache, and would wait for its queries,
keys, values and output as long as it computes with them. The tiles of the task before it have time
to ask. Evenly: requests in a burst fill the core's few line buffers, and whoever sends them waits
there as long as the loads would have.

Nothing here changes a result: a wrong guess of the next task only moves memory in vain.
"""

from fastattn._core.constants import BLOCK_ROWS, FUSE_KEYS, SEGMENT_KEYS

from ..compiler.compile import device
from ..compiler.native import load_int64, store_int64
from ..machine.simd import item_size
from .record import KEY, OUTPUT, QUERY, VALUE, operand_offset

# The cursor's words: operand, row and byte within the row of the next column of lines. A list of
# operands follows, four words each.
_OPERAND, _ROW, _BYTE, _LIST = range(4)
_ADDRESS, _STRIDE, _ROWS, _WIDTH, _WORDS = range(5)
_OPERANDS = 4
_LINE = 64


@device
def place_of_task(call, task):
    """The entry a task belongs to, and its first row."""
    if call.split:
        task //= call.segment_tasks
    if call.row_tasks == 1:
        return call.first_entry + task, 0
    # Under a causal mask the last rows see most: the long tasks go first.
    entry_index, block = divmod(task, call.row_tasks)
    return call.first_entry + entry_index, (call.row_tasks - 1 - block) * call.task_rows


@device
def following_task(call, task, stop):
    """The task this worker will probably take after one in a bundle that ends before `stop`."""
    if task + 1 < stop:
        return task + 1
    # While this task runs, every other worker is likely to take a bundle.
    return (call.next_task + call.workers - 1) * call.bundle


@device
def _list_operand(cursor, operand, address, stride, rows, width):
    first = _LIST + operand * _WORDS
    store_int64(cursor, first + _ADDRESS, address)
    store_int64(cursor, first + _STRIDE, stride)
    store_int64(cursor, first + _ROWS, rows)
    store_int64(cursor, first + _WIDTH, width)


@device
def look_ahead(tag, call, task, scratch):
    """Set the cursor to what a task needs first; to nothing, if there is no such task.

    Tasks of few rows have too few steps for it, and read their own values ahead. Sequences of a
    ragged batch and keys in pages would have to be found first.
    """
    cursor = scratch + call.at_ahead
    store_int64(cursor, _OPERAND, _OPERANDS)
    if task >= call.tasks or call.split or call.task_rows <= BLOCK_ROWS:
        return
    if call.ragged or call.indices != 0 or call.key_pages != 0:
        return
    for word in (_OPERAND, _ROW, _BYTE):
        store_int64(cursor, word, 0)
    entry_index, first_row = place_of_task(call, task)
    head, i = divmod(first_row, call.queries)
    keys, rows = min(call.keys, SEGMENT_KEYS), call.task_rows
    width, value_width = call.features * item_size(tag), call.value_features * item_size(tag)
    key = call.key + operand_offset(call, KEY, entry_index)
    value = call.value + operand_offset(call, VALUE, entry_index)
    query = call.query + operand_offset(call, QUERY, entry_index)
    query += head * call.query_head + i * call.query_row
    output = call.output + operand_offset(call, OUTPUT, entry_index)
    output += head * call.output_head + i * call.output_row
    _list_operand(cursor, 0, key, call.key_row, keys, width)
    _list_operand(cursor, 1, value, call.value_row, keys, value_width)
    _list_operand(cursor, 2, query, call.query_row, rows, width)
    _list_operand(cursor, 3, output, call.output_row, rows, value_width)


@device
def all_asked(call, scratch):
    """Whether nothing is left to ask for."""
    return load_int64(scratch + call.at_ahead, _OPERAND) == _OPERANDS


@device
def next_lines(call, scratch):
    """Address and stride of the lines that the next `FUSE_KEYS` steps of a tile ask for."""
    cursor = scratch + call.at_ahead
    operand = load_int64(cursor, _OPERAND)
    if operand == _OPERANDS:
        return cursor, 0
    row, byte = load_int64(cursor, _ROW), load_int64(cursor, _BYTE)
    first = _LIST + operand * _WORDS
    stride = load_int64(cursor, first + _STRIDE)
    address = load_int64(cursor, first + _ADDRESS) + row * stride + byte
    byte += _LINE
    if byte >= load_int64(cursor, first + _WIDTH):
        byte, row = 0, row + FUSE_KEYS
        if row >= load_int64(cursor, first + _ROWS):
            row, operand = 0, operand + 1
    store_int64(cursor, _OPERAND, operand)
    store_int64(cursor, _ROW, row)
    store_int64(cursor, _BYTE, byte)
    return address, stride
