"""What a mask may be, and what is probably none."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import numpy as np

from fastattn._core.arrays import FLOAT32, FLOAT64, as_array, is_half

__all__ = ["as_mask", "check_mask_dtype", "warn_of_zeros_and_ones"]

_PACKAGE = os.path.dirname(os.path.dirname(__file__))
# Along each axis so many elements are looked at before all are.
_LOOKED_AT = 16
# Larger masks are not looked through: nobody is warned of them.
_MOST_ELEMENTS = 1 << 28


def as_mask(mask: Any, query: tuple[int, ...], keys: int) -> np.ndarray:
    """Return a mask as a plain ndarray; of a function say how to make one, for these shapes."""
    if callable(mask) and not hasattr(mask, "__array__") and 2 <= len(query) <= 4:
        zeros = "0, " * (4 - len(query))
        sizes = ", ".join(f":{size}" for size in (*query[:-1], keys))
        raise TypeError(
            "mask is a function, and an array is needed: of a function of batch, head, query and "
            f"key, as in PyTorch's flex_attention, pass `mask({zeros}*np.ogrid[{sizes}])`"
        )
    return as_array("mask", mask)


def check_mask_dtype(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """Accept bool and float masks only: an integer mask could mean either, so it is asked for."""
    if dtype.kind == "b" or dtype.num in (FLOAT32.num, FLOAT64.num) or is_half(dtype):
        return
    raise TypeError(
        f"mask of shape {shape} has dtype {dtype}; it must be bool, where True may attend "
        "(`np.asarray(mask, bool)`), or a float of at most 64 bits, which is added to the scores "
        "(`np.asarray(mask, np.float32)`)"
    )


def _only_zeros_and_ones(numbers: np.ndarray) -> bool:
    return bool(((numbers == 0) | (numbers == 1)).all())


def warn_of_zeros_and_ones(mask: np.ndarray) -> None:
    """Warn of a float mask of only 0 and 1, at least one 1: hardly ever is it meant to be added.

    A few elements are looked at first, which nearly always rule it out, and all only where each of
    these is 0 or 1, in masks of up to 2**28 elements (repeats by broadcasting not counted). Calls
    that are repeated from memory are not looked at again.
    """
    if mask.dtype.kind == "b" or not mask.size:
        return
    lead = (0,) * max(mask.ndim - 2, 0)
    sample = mask[lead][tuple(slice(None, None, -(-n // _LOOKED_AT)) for n in mask.shape[-2:])]
    if not _only_zeros_and_ones(sample):
        return
    once = mask[tuple(slice(1) if step == 0 else slice(None) for step in mask.strides)]
    if once.size > _MOST_ELEMENTS:
        return
    blocks: Any = np.nditer(once, ["external_loop", "buffered"], buffersize=1 << 16)
    has_ones = False
    for block in blocks:
        if not _only_zeros_and_ones(block):
            return
        has_ones = has_ones or bool((block == 1).any())
    if not has_ones:
        return
    frame, depth = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(
        f"mask of shape {mask.shape} and dtype {mask.dtype} holds only 0 and 1, and floats are "
        "added to the scores: a mask whose 1 may attend is `np.asarray(mask, bool)`, one whose 1 "
        "hides is `np.where(mask, -np.inf, 0)`; if 1 is to be added, fastattn is right",
        UserWarning,
        stacklevel=depth,
    )
