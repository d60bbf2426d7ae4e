"""bfloat16 multiplied as it is, pair by pair, or widened to float32: who decides, and how.

CPUs with AVX512_BF16 multiply pairs of bfloat16 and add both products in one instruction. AMD's,
from Zen 4 on, then do twice the work of float32's multiply-add. Intel's, from Cooper Lake to
Emerald Rapids, do half of it: there the dots alone, in registers, take longer than all of attention
widened to float32. So the feature alone decides nothing.
"""

from __future__ import annotations

import functools
import os

import numpy as np

from fastattn._core.places import Pages
from fastattn._core.problem import Problem

__all__ = ["can_pair", "takes_pairs"]

VARIABLE = "FASTATTN_BFLOAT16_DOT"
_CPUS = "/proc/cpuinfo"


def takes_pairs(able: bool) -> bool:
    """Tell whether kernels for pairs are used, where the CPU is `able` to run them.

    ``FASTATTN_BFLOAT16_DOT=1`` takes them wherever there are any, ``0`` nowhere.
    """
    asked = os.environ.get(VARIABLE, "").strip()
    if asked not in ("", "0", "1"):
        raise ValueError(
            f"{VARIABLE} must be 1 (multiply bfloat16 as it is where the CPU can), 0 (widen it to "
            f"float32) or empty (whatever is faster on this CPU), not {asked!r}"
        )
    return able and asked != "0" and (asked == "1" or _is_faster())


def _is_faster() -> bool:
    """Tell whether a CPU with the dot of pairs does more of them than of float32's."""
    try:
        with open(_CPUS, "rb") as lines:
            return b"AuthenticAMD" in lines.read(256)
    except OSError:
        return False


def can_pair(problem: Problem) -> bool:
    """Tell whether a call may be computed in pairs: by its dtypes and options, never by a size.

    Cosine and Euclidean similarity need float32's accuracy in the query and the keys.
    """
    if problem.options.similarity not in ("dot", "scaled_dot"):
        return False
    place, stored = problem.place, (problem.key.dtype, problem.value.dtype)
    if isinstance(place, Pages):
        stored = (place.dtype, place.dtype)
    return all(_is_bfloat16(dtype) for dtype in (problem.query.dtype, *stored))


@functools.cache  # a dtype's name costs microseconds
def _is_bfloat16(dtype: np.dtype) -> bool:
    return dtype.name == "bfloat16"
