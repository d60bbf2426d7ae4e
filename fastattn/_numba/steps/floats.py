"""The variants that multiply numbers as they compute with them: float32 and float64.

Everything else is read as one of these: halves and int8 are widened, integers converted.
"""

import numpy as np

from ..compiler.compile import device
from ..machine.memory import load_scalar
from ..machine.simd import item_size
from ..operands.pack import scale_row
from ..operands.places import place_values, stage_values
from ..operands.variant import Variant
from .normalise import (
    fuse_block,
    fuse_visible_row,
    normalise_apart,
    normalise_row,
    zero_columns,
)
from .score import score_block


@device
def keep_query(tag, call, row, width):
    """Queries stay in the type they are computed in."""


@device
def query_number(tag, call, row, i):
    """Element i of a row of a task's queries, as it was packed."""
    return load_scalar(tag, row + i * item_size(tag))


@device
def panels_kept(tag, call):
    """Panels of floats are what the tiles read: those made by `score_again` may stay."""
    return 1


@device
def keep_sums(tag, call, rows, result, scratch):
    """Exact weights leave nothing to correct."""


def _multiplying(tag) -> Variant:
    return Variant(
        name=tag.dtype.name,
        tag=tag,
        features="",
        scale_row=scale_row,
        narrow_query=keep_query,
        score_block=score_block,
        query_element=query_number,
        panels_stay=panels_kept,
        normalise_row=normalise_row,
        normalise_apart=normalise_apart,
        zero_columns=zero_columns,
        place_values=place_values,
        stage_values=stage_values,
        fuse_block=fuse_block,
        fuse_visible_row=fuse_visible_row,
        settle_sums=keep_sums,
    )


FLOAT32 = _multiplying(np.float32(0))
FLOAT64 = _multiplying(np.float64(0))
