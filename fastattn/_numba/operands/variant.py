"""What differs between the ways to multiply: a variant names its steps, others ask for them.

A variant is one file of `steps`, which makes its `VariantSteps`, and one entry of
`stages.attention`. It is a value while kernels are compiled and nothing afterwards: the record that
a kernel reads knows it (`reader_of`), and a function made by `step` becomes that of the record's
variant. So a kernel holds the code of one variant, and no step asks which.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba import types
from numba.extending import intrinsic, models, overload, register_model, typeof_impl

from fastattn._engine import layouts

from ..compiler.compile import DEVICE_OPTIONS, device
from .record import RecordType

__all__ = [
    "VariantSteps",
    "fuse_decode_small",
    "fuse_listed",
    "fuse_visible_row",
    "narrow_query",
    "never_fuses",
    "never_scores",
    "normalise_apart",
    "normalise_row",
    "panels_stay",
    "place_values",
    "query_element",
    "read_record_of",
    "reader_of",
    "scale_row",
    "score_decode",
    "score_decode_small",
    "score_packed",
    "settle_sums",
    "stage_values",
    "step",
    "tag_of",
    "zero_columns",
]


@dataclass(frozen=True, eq=False)
class VariantSteps:
    """The steps that are a variant's own: how it multiplies queries with keys, weights with values.

    Which calls may take it, `fastattn._engine.variants` says.

    Attributes
    ----------
    name
        Of what is multiplied; its kernel is `attend_` and this (`fastattn._engine.variants`).
    tag
        A number of the type it computes in.
    features
        What a CPU must have for it, beside those of its level, as LLVM names them.
    scale_row, narrow_query
        Pack: the power of two of a scale goes onto a row of queries; what the tiles read of it.
    score_packed, score_decode, score_decode_small
        Pack and score: similarities of a block of rows with the keys of a segment, for each way to
        read these (`fastattn._engine.way`); `never_scores` where no call goes it.
    query_element, panels_stay
        For `score_again`: a number of a packed query; whether panels of floats are what tiles read.
    normalise_row, normalise_apart, zero_columns
        Normalise: scores become weights, as the tiles read them.
    place_values, stage_values
        Where the values of a segment lie, and some of them copied to where tiles read them.
    fuse_listed, fuse_decode_small, fuse_visible_row
        Fuse: weights times values, of a block, for each way to read these (or `never_fuses`), and
        of a row without its hidden keys.
    settle_sums
        What is left to correct in a fused block.
    """

    name: str
    tag: Any
    features: str
    scale_row: Callable
    narrow_query: Callable
    score_packed: Callable
    score_decode: Callable
    score_decode_small: Callable
    query_element: Callable
    panels_stay: Callable
    normalise_row: Callable
    normalise_apart: Callable
    zero_columns: Callable
    place_values: Callable
    stage_values: Callable
    fuse_listed: Callable
    fuse_decode_small: Callable
    fuse_visible_row: Callable
    settle_sums: Callable


class VariantType(types.Dummy):
    """The type of one variant: all that a compiled function knows of it."""

    def __init__(self, variant: VariantSteps) -> None:
        self.variant = variant
        super().__init__(name=f"Variant({variant.name})")


register_model(VariantType)(models.OpaqueModel)


@typeof_impl.register(VariantSteps)
def _type_of_variant(variant, context):
    return VariantType(variant)


def reader_of(table: layouts.Layout) -> Callable:
    """Make the function with which kernels of a variant see the record at an address."""

    @intrinsic
    def read_record_of(typing_context, variant, address):
        """The record at an address, of a call that takes this variant."""
        record = RecordType(table, variant.variant)
        return record(variant, types.int64), lambda context, builder, signature, values: values[1]

    return read_record_of


# The record of attention.
read_record_of = reader_of(layouts.ATTENTION)


@intrinsic
def tag_of(typing_context, variant):
    """The tag of a variant."""
    tag = types.float64 if variant.variant.tag.itemsize == 8 else types.float32
    return tag(variant), lambda context, *rest: context.get_constant(tag, 0)


def step(name: str) -> Callable:
    """Make the device function that is this step of the variant whose record it is called with.

    Numba decides while it compiles.
    """

    def of_variant(*arguments):
        raise NotImplementedError("only kernels call this")

    def choose(*arguments):
        # With NUMBA_DISABLE_JIT all functions are plain ones: `compile.refusal` says so later.
        variants = [one.variant for one in arguments if getattr(one, "variant", None)]
        return getattr(variants[0], name).py_func

    of_variant.__name__ = name
    # Each variant's step has the names of its arguments.
    overload(of_variant, jit_options=DEVICE_OPTIONS, strict=False)(choose)
    return of_variant


@device
def never_scores(tag, call, segment, queries, rows, low, high, scratch):
    """For a way to read keys that no call of a variant goes."""


@device
def never_fuses(tag, call, segment, rows, low, high, begin, block, scratch):
    """For a way to read values that no call of a variant goes."""


scale_row = step("scale_row")
narrow_query = step("narrow_query")
score_packed = step("score_packed")
score_decode = step("score_decode")
score_decode_small = step("score_decode_small")
query_element = step("query_element")
panels_stay = step("panels_stay")
normalise_row = step("normalise_row")
normalise_apart = step("normalise_apart")
zero_columns = step("zero_columns")
place_values = step("place_values")
stage_values = step("stage_values")
fuse_listed = step("fuse_listed")
fuse_decode_small = step("fuse_decode_small")
fuse_visible_row = step("fuse_visible_row")
settle_sums = step("settle_sums")
