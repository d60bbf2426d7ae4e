"""Weights packed once and kept: of Parameters, as long as they live and do not change.

What is kept of a weight stands under the very object and the address of its memory, and holds while
torch's count of its changes (`_version`) is what it was and all its bits are. Torch does not count
what is written by way of ``.data``, of a NumPy view, or by a fused optimizer; and looking at all
bits costs more than a product by a few rows. So weights are kept within `keeping` alone: there each
is looked at once, at its first use, and again after what torch's dispatcher shows to have written
into it. Elsewhere they are read as they lie.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import numpy as np
import torch

import fastattn
from fastattn.bridges.torch.tensors import array_of

__all__ = ["forget_weights", "keeping", "kept_bytes", "note_written", "owner_of", "weight_of"]

# Of the machine's memory, for all that is kept; what comes later is read as it lies.
_MOST_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


class _Block(threading.local):
    """Numbers of the packs that have been looked at since this thread began to keep; None: not."""

    looked: set[int] | None = None


_block = _Block()
_numbers = count()


@contextmanager
def keeping() -> Iterator[None]:
    """Keep weights packed on this thread; those that are kept already are looked at again."""
    before, _block.looked = _block.looked, set()
    try:
        yield
    finally:
        _block.looked = before


def note_written(tensors: Iterable[Any]) -> None:
    """Look again at weights, if one of these lies in the memory of one."""
    if _block.looked:
        kept = {pack.storage for pack in list(_packs.values())}
        plain = (x for x in tensors if x.is_cpu and x.layout is torch.strided)
        if any(x.untyped_storage().data_ptr() in kept for x in plain):
            _block.looked.clear()


# Words of a block, and what is added to each: by it, the sum tells places apart.
_WORDS = 1 << 15
_ADDED = np.random.default_rng(0).integers(0, 1 << 32, _WORDS, dtype=np.uint32)
_HALF, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def _checksum(array: np.ndarray) -> bytes:
    """Sum all bits up, so that a change of any of them, or of their order, changes the sum.

    Per block, ``sum((a + r) * (b + s))`` of pairs of words: two contents have the same sum by a
    chance of 2**-32. It is 6 GB/s on one core, three times a cryptographic hash.
    """
    if not array.flags.c_contiguous:
        array = array.T if array.T.flags.c_contiguous else np.ascontiguousarray(array)
    octets = array.reshape(-1).view(np.uint8)
    whole = octets.size // 8 * 8
    words = octets[:whole].view(np.uint32)
    sums = []
    for start in range(0, words.size, _WORDS):
        block = words[start : start + _WORDS]
        pairs = (block + _ADDED[: block.size]).view(np.uint64)
        high = pairs >> _HALF
        pairs &= _LOW
        pairs *= high
        sums.append(pairs.sum())
    return np.array(sums, np.uint64).tobytes() + octets[whole:].tobytes()


class _Pack:
    """One weight, packed; and how to tell that it has changed."""

    def __init__(self, owner: torch.Tensor, weight: torch.Tensor, forget: Any) -> None:
        self.owner = weakref.ref(owner, forget)
        self.version, self.storage = owner._version, owner.untyped_storage().data_ptr()
        array = array_of(weight)
        self.bits = _checksum(array)
        self.packed = fastattn.pack_linear(array)
        self.number = next(_numbers)

    def holds(self, owner: torch.Tensor, weight: torch.Tensor, looked: set[int]) -> bool:
        """Tell whether it still is what the weight is."""
        known: torch.Tensor | None = self.owner()
        if known is None or known is not owner or known._version != self.version:
            return False
        if self.number not in looked:
            if _checksum(array_of(weight)) != self.bits:
                return False
            looked.add(self.number)
        return True


# Found by whose memory it is, where the weight begins there, and how it lies.
_packs: dict[tuple[Any, ...], _Pack] = {}


def kept_bytes() -> int:
    """Return the memory that kept weights take, beside the weights."""
    return sum(pack.packed.nbytes for pack in list(_packs.values()))


def forget_weights() -> None:
    """Forget all weights that `batch_invariant` keeps packed: they are packed anew when used.

    It gives their memory back. Within `batch_invariant` it also is for weights that NumPy or
    another thread has written into past torch's count: all other changes are seen.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.bridges.torch.forget_weights()
    """
    _packs.clear()


def owner_of(weight: torch.Tensor) -> torch.nn.Parameter | None:
    """Return the Parameter that a weight is, or is a view of."""
    owner = weight if type(weight) is torch.nn.Parameter else weight._base
    return None if type(owner) is not torch.nn.Parameter or owner.is_inference() else owner


def weight_of(weight: torch.Tensor, owner: torch.nn.Parameter | None) -> Any:
    """Return what `fastattn.linear` takes for a weight (N, K).

    That is a `PackedWeight`, if it lies in the memory of a Parameter and weights are kept; an array
    otherwise.
    """
    looked = _block.looked
    if owner is not None and looked is not None:
        place = id(owner), weight.data_ptr(), weight.shape, weight.stride(), weight.dtype
        pack = _packs.get(place)
        if pack is None or not pack.holds(owner, weight, looked):
            pack = _keep(place, owner, weight)
            if pack is not None:
                looked.add(pack.number)
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
