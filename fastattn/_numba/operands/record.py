"""The call record as kernels see it: named words at an address.

What stands where, `fastattn._engine.layouts` says.
"""

from typing import Any

import numpy as np
from numba import types
from numba.core.imputils import lower_getattr_generic
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import intrinsic, models, register_model

from fastattn._engine import layouts
from fastattn._engine.layouts import (
    BOOL_MASK,
    COSINE,
    DOT,
    EUCLIDEAN,
    FLOAT_MASK,
    KEYS_DECODE,
    KEYS_DECODE_SMALL,
    NO_MASK,
    PANELS_IN_PLACE,
    PANELS_WIDENED,
    UNBOUNDED,
    VALUES_DECODE_SMALL,
    VALUES_IN_PLACE,
    VALUES_LATE,
    VALUES_STAGED,
)

from ..compiler.compile import device
from ..compiler.native import load_int64
from ..machine.emit import I64, load_ir

__all__ = [
    "BOOL_MASK",
    "COSINE",
    "DOT",
    "EUCLIDEAN",
    "FLOAT_MASK",
    "KEYS_DECODE",
    "KEYS_DECODE_SMALL",
    "NO_MASK",
    "PANELS_IN_PLACE",
    "PANELS_WIDENED",
    "RECORD_WORDS",
    "UNBOUNDED",
    "VALUES_DECODE_SMALL",
    "VALUES_IN_PLACE",
    "VALUES_LATE",
    "VALUES_STAGED",
    "WORD",
    "factors_in",
    "factors_of",
    "operand_offset",
    "read_factors",
    "reader",
    "record_address",
]

# Rows of the stride table `entry_strides`. Not Python integers: Numba compiles a function anew for
# each of those that it is called with.
(
    QUERY, KEY, VALUE, MASK, LENGTHS, OFFSETS, OUTPUT, LSE,
    QUERY_IDS, KEY_IDS, ALIBI, SINKS, PAGES, FACTORS,
) = map(np.int64, range(len(layouts.OPERANDS)))  # fmt: skip


class RecordType(types.Type):
    """The named words of one operation's record; kernels read them as attributes of an address.

    A Numba record type would do the same, but spells all its fields out in the name of every
    function that takes one.
    """

    def __init__(self, table: layouts.Layout, variant: Any = None) -> None:
        self.word = table.word
        self.floats = frozenset(table.floats)
        # How a call multiplies, where its kernel asks: see `variant`.
        self.variant = variant
        super().__init__(name=f"{table.name}({variant.name})" if variant else table.name)

    def field_type(self, field: str) -> types.Type:
        return types.float64 if field in self.floats else types.int64


@register_model(RecordType)
class _LayoutModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, I64)


@infer_getattr
class _LayoutAttributes(AttributeTemplate):
    key = RecordType

    def generic_resolve(self, layout, field):
        return layout.field_type(field) if field in layout.word else None


@lower_getattr_generic(RecordType)
def _read_field(context, builder, layout, call, field):
    address = builder.add(call, I64(8 * layout.word[field]))
    return load_ir(builder, address, context.get_value_type(layout.field_type(field)))


def reader(table: layouts.Layout):
    """Make the function with which a kernel sees the record at an address."""
    layout = RecordType(table)

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
WORD = layouts.ATTENTION.word
RECORD_WORDS = len(WORD)
_OWN_FACTORS = WORD[layouts.FACTORS.floats[0]]
# Of one head: a part of any record with factors, or an entry of a table.
read_factors = reader(layouts.FACTORS)


@device
def operand_offset(call, operand, entry_index):
    """Byte offset of one entry in an operand with any batch strides."""
    offset = 0
    rest = entry_index
    strides = call.entry_strides + 8 * operand * call.entry_rank
    for axis in range(call.entry_rank - 1, 0, -1):
        size = load_int64(call.entry_shape, axis)
        quotient = rest // size
        offset += (rest - quotient * size) * load_int64(strides, axis)
        rest = quotient
    # The first dim needs no division, and most calls have no other.
    if call.entry_rank > 0:
        offset += rest * load_int64(strides, 0)
    return offset


@device
def factors_of(call, row):
    """The factors of a row of the entry at hand: those of its query head."""
    if call.factors_head == 0:
        return read_factors(call.entry_factors)
    return read_factors(call.entry_factors + row // call.queries * call.factors_head)


@device
def factors_in(call, entry_index, head):
    """The factors of a query head of any entry, whatever entry is at hand."""
    place = record_address(call) + 8 * _OWN_FACTORS
    if call.factors:
        place = call.factors + operand_offset(call, FACTORS, entry_index)
        place += head * call.factors_head
    return read_factors(place)
