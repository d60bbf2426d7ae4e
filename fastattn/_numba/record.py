"""The call record: everything one attention call tells its kernel, as one row of named words.

A record is one array of 8-byte words, so that a call costs one small copy of a template and a few
addresses. Addresses and strides are in bytes. The three words in front belong to the launcher.
"""

import numpy as np
from numba import types
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.core.imputils import lower_getattr_generic
from numba.extending import intrinsic, models, register_model

from .compile import device
from .native import load_int64
from .simd import I64, load_ir

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


class CallType(types.Type):
    """A record at an address; kernels read its fields as attributes.

    A Numba record type would do the same, but spells all its fields out in the name of every
    function that takes one.
    """

    def __init__(self) -> None:
        super().__init__(name="Call")


_CALL = CallType()


@register_model(CallType)
class _CallModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, I64)


@infer_getattr
class _CallAttributes(AttributeTemplate):
    key = CallType

    def generic_resolve(self, call, field):
        if field not in WORD:
            return None
        return types.float64 if field in _FLOAT_FIELDS else types.int64


@lower_getattr_generic(CallType)
def _read_field(context, builder, kind, call, field):
    address = builder.add(call, I64(8 * WORD[field]))
    kind = context.get_value_type(types.float64 if field in _FLOAT_FIELDS else types.int64)
    return load_ir(builder, address, kind)


@intrinsic
def read_record(typing_context, address):
    """The record at an address."""
    return _CALL(types.int64), lambda context, builder, signature, arguments: arguments[0]


@device
def operand_offset(call, operand, entry_index):
    """Byte offset of one entry in an operand with any batch strides."""
    offset = 0
    rest = entry_index
    for axis in range(call.entry_rank - 1, -1, -1):
        size = load_int64(call.entry_shape, axis)
        offset += rest % size * load_int64(call.entry_strides, operand * call.entry_rank + axis)
        rest //= size
    return offset
