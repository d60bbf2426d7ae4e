"""The call record: everything one attention call tells its kernel, as one row of named words.

A record is one array of 8-byte words, so that a call costs one small copy of a template and a few
addresses. Addresses and strides are in bytes. The three words in front belong to the launcher.
"""

import numpy as np
from numba import carray

from .compile import device
from .simd import pointer_of

# A visible range may reach this far beyond any position.
UNBOUNDED = 1 << 60

DOT, COSINE, EUCLIDEAN = 0, 1, 2
NO_MASK, BOOL_MASK, FLOAT_MASK = 0, 1, 2

_INTEGER_FIELDS = """
    next_task stop_task workers
    groups_of_heads queries keys features value_features
    entries first_entry entry_rank entry_shape entry_strides
    task_rows row_tasks first_segment stop_segment split segment_tasks
    query query_head query_row query_feature query_code
    key key_row key_feature key_code
    value value_row value_feature value_code value_in_place
    mask mask_head mask_row mask_key mask_code mask_kind
    lengths lengths_head offsets offsets_head left right
    output output_head output_row output_feature
    lse weights weights_head
    metric shaped rescaled
    state_output state_max state_sum state_exact resume suspend
    partial_output partial_max partial_sum
    scratch scratch_stride
    at_query at_scores at_block at_running at_panels at_values at_rows at_packed at_state at_segment_max
""".split()
_FLOAT_FIELDS = (
    "query_factor key_factor difference_factor rest power_first power_second softcap".split()
)

RECORD = np.dtype(
    [(name, np.int64) for name in _INTEGER_FIELDS] + [(name, np.float64) for name in _FLOAT_FIELDS]
)
WORD = {name: i for i, name in enumerate(RECORD.names)}

# Rows of the stride table `entry_strides`, one stride a batch dim each.
OPERANDS = ("query", "key", "value", "mask", "lengths", "offsets", "output")
QUERY, KEY, VALUE, MASK, LENGTHS, OFFSETS, OUTPUT = range(len(OPERANDS))


@device
def read_record(address):
    """The record at an address."""
    return carray(pointer_of(address), (1,), RECORD)[0]
