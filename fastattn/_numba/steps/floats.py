"""The variants that multiply numbers as they compute with them: float32 and float64.

Everything else is read as one of these: halves and int8 are widened, integers converted.
"""

import numpy as np

from ..compiler.compile import device
from ..machine.memory import load_scalar
from ..machine.simd import item_size
from ..operands.pack import scale_row
from ..operands.places import place_values, stage_values
from ..operands.variant import VariantSteps, never_fuses, never_scores
from .decode import score_decode
from .decode_small import fuse_decode_small, score_decode_small
from .normalise import (
    fuse_listed,
    fuse_visible_row,
    normalise_apart,
    normalise_row,
    zero_columns,
)
from .score import score_packed


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


def _multiplying(tag, score_small, fuse_small) -> VariantSteps:
    return VariantSteps(
        name=tag.dtype.name,
        tag=tag,
        features="",
        scale_row=scale_row,
        narrow_query=keep_query,
        score_packed=score_packed,
        score_decode=score_decode,
        score_decode_small=score_small,
        query_element=query_number,
        panels_stay=panels_kept,
        normalise_row=normalise_row,
        normalise_apart=normalise_apart,
        zero_columns=zero_columns,
        place_values=place_values,
        stage_values=stage_values,
        fuse_listed=fuse_listed,
        fuse_decode_small=fuse_small,
        fuse_visible_row=fuse_visible_row,
        settle_sums=keep_sums,
    )


# Small dtypes are computed in float32, unless they meet float64.
FLOAT32 = _multiplying(np.float32(0), score_decode_small, fuse_decode_small)
FLOAT64 = _multiplying(np.float64(0), never_scores, never_fuses)
