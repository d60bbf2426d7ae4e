"""Weights packed once and kept: of Parameters, as long as they live and do not change.

What is kept of a weight stands under the very object and the address of its memory, and holds while
torch's count of its changes (`_version`) is what it was and some of its numbers, spread over rows
and columns, have the bits they had. Torch does not count what is written by way of ``.data`` or of
a NumPy view: such writes are seen by those numbers alone, that is, where they change weights at
large (loading, scaling, averaging), not single ones. `clear` is for those.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np
import torch

import fastattn
from fastattn.bridges.torch.tensors import array_of

__all__ = ["clear", "kept_bytes", "owner_of", "weight_of"]

_SAMPLES = 64
# Of the machine's memory, for all that is kept; what comes later is read as it lies.
_MOST_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


class _Pack:
    """One weight, packed; and how to tell that it has changed."""

    def __init__(self, owner: torch.Tensor, weight: torch.Tensor, forget: Any) -> None:
        self.owner = weakref.ref(owner, forget)
        self.version, self.storage = owner._version, owner.untyped_storage().data_ptr()
        # Not the weight's own view, which would keep it alive.
        array = array_of(weight.detach())
        self.numbers, self.places = _sample(array)
        self.bits = self.read()
        self.packed = fastattn.pack_linear(array)

    def read(self) -> bytes:
        """Return the bits of the numbers that are looked at."""
        return self.numbers[self.places].tobytes()

    def holds(self, owner: torch.Tensor) -> bool:
        """Tell whether it still is what the weight is."""
        known = self.owner()
        return (
            known is not None
            and known is owner
            and owner._version == self.version
            and self.read() == self.bits
        )


def _sample(array: np.ndarray) -> tuple[np.ndarray, Any]:
    """Choose numbers of a matrix, from the first row and column to the last of both."""
    rows, columns = (
        np.linspace(0, max(size - 1, 0), _SAMPLES).astype(np.intp) for size in array.shape
    )
    if not array.size:
        return array, np.s_[:0]
    if array.flags.c_contiguous:  # one index is read faster than two
        return array.reshape(-1), rows * array.shape[1] + columns
    return array, (rows, columns)


# Found by whose memory it is, where the weight begins there, and how it lies.
_packs: dict[tuple[Any, ...], _Pack] = {}


def kept_bytes() -> int:
    """Return the memory that kept weights take, beside the weights."""
    return sum(pack.packed.nbytes for pack in list(_packs.values()))


def clear() -> None:
    """Forget all kept weights."""
    _packs.clear()


def owner_of(weight: torch.Tensor) -> torch.nn.Parameter | None:
    """Return the Parameter that a weight is, or is a view of."""
    owner = weight if type(weight) is torch.nn.Parameter else weight._base
    return None if type(owner) is not torch.nn.Parameter or owner.is_inference() else owner


def weight_of(weight: torch.Tensor, owner: torch.nn.Parameter | None) -> Any:
    """Return what `fastattn.linear` takes for a weight (N, K).

    That is a `PackedWeight`, if it lies in the memory of a Parameter; an array otherwise.
    """
    if owner is not None:
        place = id(owner), weight.data_ptr(), weight.shape, weight.stride(), weight.dtype
        pack = _packs.get(place)
        if pack is None or not pack.holds(owner):
            pack = _keep(place, owner, weight)
        if pack is not None:
            return pack.packed
    return array_of(weight)


def _keep(place: tuple[Any, ...], owner: torch.Tensor, weight: torch.Tensor) -> _Pack | None:
    """Pack a weight and keep it, if there is room."""
    _packs.pop(place, None)
    # What was kept of memory that it had before, and held it.
    storage = owner.untyped_storage().data_ptr()
    for other, former in list(_packs.items()):
        if other[0] == place[0] and former.storage != storage:
            _packs.pop(other, None)
    if kept_bytes() + weight.nbytes > _MOST_BYTES:
        return None

    def forget(known: Any) -> None:
        pack = _packs.get(place)
        if pack is not None and pack.owner is known:
            _packs.pop(place, None)

    pack = _packs[place] = _Pack(owner, weight, forget)
    return pack
