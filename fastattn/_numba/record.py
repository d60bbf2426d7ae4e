"""The call record: everything one call tells its kernel, as one row of named words.

A record is one array of 8-byte words, so that a call costs one small copy of a template and a few
addresses. Addresses and strides are in bytes. The three words in front belong to the launcher.
"""

from collections.abc import Sequence

from numba import types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_model

from .compile import device
from .emit import I64, load_ir
from .native import load_int64

# A visible range may reach this far beyond any position.
UNBOUNDED = 1 << 60

DOT, COSINE, EUCLIDEAN = 0, 1, 2
NO_MASK, BOOL_MASK, FLOAT_MASK = 0, 1, 2

_INTEGER_FIELDS = """
    next_task stop_task workers
    groups_of_heads queries keys features value_features
    entries first_entry entry_rank entry_shape entry_strides
    tasks bundle task_rows row_tasks first_segment stop_segment split segment_tasks
    query query_head query_row query_feature query_code
    key key_row key_feature key_code
    value value_row value_feature value_code value_in_place
    key_staged indices index_bytes table_rows
    key_pages value_pages key_scales value_scales
    mask mask_head mask_row mask_key mask_code mask_kind
    lengths lengths_head offsets offsets_head left right
    query_ids query_ids_head key_ids key_ids_head
    alibi alibi_head sinks sinks_head
    output output_head output_row output_feature output_code
    lse lse_head lse_row weights
    entry_key entry_value entry_key_pages entry_value_pages entry_key_scales entry_value_scales
    entry_mask entry_query_ids entry_key_ids entry_alibi entry_offsets entry_lengths
    ragged sequences borders first_task query_splits key_splits offsets_step
    metric shaped rescaled
    state_output state_max state_sum state_exact resume suspend
    partial_output partial_max partial_sum
    scratch scratch_stride
    at_query at_scores at_block at_running at_panels at_values at_rows at_packed at_state
    at_stage at_chunks at_ids at_record at_ahead
""".split()
_FLOAT_FIELDS = "query_first query_second key_factor difference_factor rest softcap".split()

# Rows of the stride table `entry_strides`, one stride a batch dim each.
OPERANDS = (
    "query", "key", "value", "mask", "lengths", "offsets", "output", "lse",
    "query_ids", "key_ids", "alibi", "sinks", "pages", "scales",
)  # fmt: skip
(
    QUERY, KEY, VALUE, MASK, LENGTHS, OFFSETS, OUTPUT, LSE,
    QUERY_IDS, KEY_IDS, ALIBI, SINKS, PAGES, SCALES,
) = range(len(OPERANDS))  # fmt: skip


class Layout(types.Type):
    """The named words of one operation's record; kernels read them as attributes of an address.

    A Numba record type would do the same, but spells all its fields out in the name of every
    function that takes one.
    """

    def __init__(self, name: str, integers: Sequence[str], floats: Sequence[str] = ()) -> None:
        self.word = {field: i for i, field in enumerate((*integers, *floats))}
        self.floats = frozenset(floats)
        super().__init__(name=name)

    def field_type(self, field: str) -> types.Type:
        return types.float64 if field in self.floats else types.int64


@register_model(Layout)
class _LayoutModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, I64)


@infer_getattr
class _LayoutAttributes(AttributeTemplate):
    key = Layout

    def generic_resolve(self, layout, field):
        return layout.field_type(field) if field in layout.word else None


@lower_getattr_generic(Layout)
def _read_field(context, builder, layout, call, field):
    address = builder.add(call, I64(8 * layout.word[field]))
    return load_ir(builder, address, context.get_value_type(layout.field_type(field)))


def reader(layout: Layout):
    """Make the function with which a kernel sees the record at an address."""

    @intrinsic
    def read_record(typing_context, address):
        """The record at an address."""
        return layout(types.int64), lambda context, builder, signature, arguments: arguments[0]

    return read_record


@intrinsic
def record_address(typing_context, record):
    """The address of a record."""
    return types.int64(record), lambda context, builder, signature, arguments: arguments[0]


# The record of attention.
RECORD = Layout("Call", _INTEGER_FIELDS, _FLOAT_FIELDS)
WORD = RECORD.word
RECORD_WORDS = len(WORD)
read_record = reader(RECORD)


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
