"""How a call may multiply its operands: the variants that kernels of fused attention have.

The first of `VARIANTS` that a backend has, and that a problem may take, is taken. Which steps of
the kernels a variant has of its own stands there (`_numba.operands.variant`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from fastattn._core.problem import Problem

from .bfloat16 import can_pair, takes_pairs

__all__ = ["KERNEL", "VARIANTS", "VariantRule", "choose", "in_use"]

# The kernel they are variants of: their entries are called this and the name of the variant.
KERNEL = "attend"


class VariantRule(NamedTuple):
    """Which calls may take a variant, and on which machine.

    Attributes
    ----------
    name
        Of the variant, as the `products` of a call's `Way` are called.
    admits
        Whether a problem may.
    pays
        Whether it is worth it on this machine; it is told whether the CPU is able.
    """

    name: str
    admits: Callable[[Problem], bool]
    pays: Callable[[bool], bool] = bool


def _computes(name: str) -> VariantRule:
    dtype = np.dtype(name)
    return VariantRule(name, lambda problem: problem.dtype == dtype)


VARIANTS = (VariantRule("pairs", can_pair, takes_pairs), _computes("float32"), _computes("float64"))


def in_use(entries: Collection[str]) -> tuple[str, ...]:
    """Name the variants that are worth it on this machine, of a backend with these entries."""
    found = []
    for variant in VARIANTS:
        able = f"{KERNEL}_{variant.name}" in entries
        if variant.pays(able):
            found.append(variant.name)
    return tuple(found)


def choose(products: tuple[str, ...], problem: Problem) -> str:
    """Name the variant that a problem takes, of those in use."""
    return next(one.name for one in VARIANTS if one.name in products and one.admits(problem))
