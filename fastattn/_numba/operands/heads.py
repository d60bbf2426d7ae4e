"""Where a task's operands begin: the worker's own copy of the record, rewritten as it goes.

A worker copies the record of the call into its scratch. For each (batch, key head) entry, and in a
ragged call for each sequence, it writes there what the steps below need, so that they read one
record whatever kind of call it is.
"""

import numpy as np

from fastattn._core.constants import SEGMENT_KEYS

from ..compiler.compile import device
from ..compiler.native import load_int64, store_int64
from ..machine.emit import LANES
from ..machine.memory import load, store
from .record import (
    ALIBI,
    KEY,
    KEY_IDS,
    LENGTHS,
    MASK,
    NO_MASK,
    OFFSETS,
    PAGES,
    QUERY_IDS,
    RECORD_WORDS,
    VALUE,
    WORD,
    factors_in,
    operand_offset,
    record_address,
)
from .variant import read_record_of

_ENTRY_KEY, _ENTRY_VALUE = WORD["entry_key"], WORD["entry_value"]
_ENTRY_KEY_PAGES, _ENTRY_VALUE_PAGES = WORD["entry_key_pages"], WORD["entry_value_pages"]
_ENTRY_KEY_SCALES, _ENTRY_VALUE_SCALES = WORD["entry_key_scales"], WORD["entry_value_scales"]
_ENTRY_MASK, _ENTRY_ALIBI = WORD["entry_mask"], WORD["entry_alibi"]
_ENTRY_QUERY_IDS, _ENTRY_KEY_IDS = WORD["entry_query_ids"], WORD["entry_key_ids"]
_ENTRY_OFFSETS, _ENTRY_LENGTHS = WORD["entry_offsets"], WORD["entry_lengths"]
_ENTRY_FACTORS = WORD["entry_factors"]
_QUERIES, _KEYS, _QUERY, _KEY, _VALUE = (
    WORD[field] for field in ("queries", "keys", "query", "key", "value")
)
_OUTPUT, _LSE = WORD["output"], WORD["lse"]
_INDICES, _LISTED = WORD["indices"], WORD["listed"]
_QUERY_IDS, _KEY_IDS = WORD["query_ids"], WORD["key_ids"]
_OFFSETS, _LENGTHS = WORD["offsets"], WORD["lengths"]
_ROW_TASKS, _STOP_SEGMENT = WORD["row_tasks"], WORD["stop_segment"]


@device
def copy_record(source, target):
    """Copy the words of a record."""
    whole = RECORD_WORDS // LANES * LANES
    for word in range(0, whole, LANES):
        store(target + 8 * word, load(np.float64(0), source + 8 * word))
    for word in range(whole, RECORD_WORDS):
        store_int64(target, word, load_int64(source, word))


@device
def own_record(variant, call_address, worker):
    """Copy the record of a call into the worker's scratch."""
    shared = read_record_of(variant, call_address)
    own = shared.scratch + worker * shared.scratch_stride + shared.at_record
    copy_record(call_address, own)
    return read_record_of(variant, own)


@device
def enter_entry(call, entry_index):
    """Write where the operands of an entry begin."""
    own = record_address(call)
    store_int64(own, _ENTRY_KEY, call.key + operand_offset(call, KEY, entry_index))
    store_int64(own, _ENTRY_VALUE, call.value + operand_offset(call, VALUE, entry_index))
    store_int64(own, _ENTRY_LENGTHS, call.lengths + operand_offset(call, LENGTHS, entry_index))
    store_int64(own, _ENTRY_OFFSETS, call.offsets + operand_offset(call, OFFSETS, entry_index))
    store_int64(own, _ENTRY_FACTORS, record_address(factors_in(call, entry_index, 0)))
    if call.mask_kind != NO_MASK:
        store_int64(own, _ENTRY_MASK, call.mask + operand_offset(call, MASK, entry_index))
    if call.alibi:
        store_int64(own, _ENTRY_ALIBI, call.alibi + operand_offset(call, ALIBI, entry_index))
    if call.query_ids:
        ids = call.query_ids + operand_offset(call, QUERY_IDS, entry_index)
        store_int64(own, _ENTRY_QUERY_IDS, ids)
        ids = call.key_ids + operand_offset(call, KEY_IDS, entry_index)
        store_int64(own, _ENTRY_KEY_IDS, ids)
    if call.key_pages:
        offset = operand_offset(call, PAGES, entry_index)
        store_int64(own, _ENTRY_KEY_PAGES, call.key_pages + offset)
        store_int64(own, _ENTRY_VALUE_PAGES, call.value_pages + offset)
        if call.key_scales:
            store_int64(own, _ENTRY_KEY_SCALES, call.key_scales + offset)
            store_int64(own, _ENTRY_VALUE_SCALES, call.value_scales + offset)


@device
def enter_sequence(call, shared, sequence):
    """Make the worker's record that of one sequence of a ragged call."""
    own = record_address(call)
    first_query = load_int64(shared.query_splits, sequence)
    queries = load_int64(shared.query_splits, sequence + 1) - first_query
    first_key = load_int64(shared.key_splits, sequence)
    keys = load_int64(shared.key_splits, sequence + 1) - first_key
    rows = shared.groups_of_heads * queries
    store_int64(own, _QUERIES, queries)
    store_int64(own, _KEYS, keys)
    store_int64(own, _QUERY, shared.query + first_query * shared.query_row)
    store_int64(own, _OUTPUT, shared.output + first_query * shared.output_row)
    if shared.lse:
        store_int64(own, _LSE, shared.lse + first_query * shared.lse_row)
    if shared.indices:
        store_int64(own, _INDICES, shared.indices + first_key * shared.index_bytes)
        store_int64(own, _LISTED, shared.listed - first_key)
    else:
        store_int64(own, _KEY, shared.key + first_key * shared.key_row)
        store_int64(own, _VALUE, shared.value + first_key * shared.value_row)
    if shared.query_ids:
        store_int64(own, _QUERY_IDS, shared.query_ids + 8 * first_query)
        store_int64(own, _KEY_IDS, shared.key_ids + 8 * first_key)
    store_int64(own, _OFFSETS, shared.offsets + 8 * sequence * shared.offsets_step)
    # The length of a sequence is the word `keys` of this very record.
    store_int64(own, _LENGTHS, own + 8 * _KEYS)
    store_int64(own, _ROW_TASKS, (rows + shared.task_rows - 1) // shared.task_rows)
    store_int64(own, _STOP_SEGMENT, (keys + SEGMENT_KEYS - 1) // SEGMENT_KEYS)


@device
def find_sequence(shared, sequence, task):
    """Find the sequence of a task: the last one whose first task is not above it.

    Looks at `sequence` and the next one first, unless that is negative.
    """
    low, high = 0, shared.sequences
    if sequence >= 0 and load_int64(shared.first_task, sequence) <= task:
        low = sequence
        if low + 1 < high and load_int64(shared.first_task, low + 1) > task:
            high = low + 1
        elif low + 2 < high and load_int64(shared.first_task, low + 2) > task:
            low, high = low + 1, low + 2
    while high - low > 1:
        middle = (low + high) // 2
        if load_int64(shared.first_task, middle) <= task:
            low = middle
        else:
            high = middle
    return low
