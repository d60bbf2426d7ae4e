"""What a case is: a name and a call of public functions, and the ways it is to take.

`within` sets numbers of the engine that only tell when something pays, so that small arrays go the
ways of large ones; bits depend on none.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import strategies

import fastattn
from fastattn._core import threads
from fastattn._engine import launcher, normalize, stages

from . import lanes

__all__ = [
    "BF16", "BOTH", "F16", "F32", "F64", "IN_CHUNKS", "IN_PIECES", "NARROW", "STREAMED", "WIDE",
    "Case", "attend", "draw", "operands", "spilling",
]  # fmt: skip

F32, F64, F16 = "float32", "float64", "float16"
BF16 = "bfloat16"
# What names of cases begin with instead of the function's.
_FUNCTIONS = {
    "cache": "KVCache",
    "shared": "allocate_shared",
    "states": "attention_state",
    "varlen": "attention_varlen",
}


@dataclass(frozen=True)
class Case:
    """A call, and what is set while it runs: (object, name, value), or (dict, key, value)."""

    name: str
    call: Callable[[], Any]
    within: tuple[tuple[Any, str, Any], ...] = ()
    widens: bool = False  # bfloat16, as a CPU that does not multiply it
    threads: int = 1

    @property
    def operation(self) -> str:
        """The public function, or class, that it calls."""
        word = re.match("(pairs, )?([a-z_]+)", self.name)[2]
        return _FUNCTIONS.get(word, word)

    @property
    def pairs(self) -> bool:
        """Whether it may multiply bfloat16 as it is."""
        multiplies = self.operation in ("attention", "attention_varlen", "KVCache")
        return multiplies and not self.widens and ("pairs" in self.name or BF16 in self.name)

    @contextlib.contextmanager
    def settings(self) -> Iterator[None]:
        with contextlib.ExitStack() as changed:
            changed.enter_context(mock.patch.object(threads, "_chosen", self.threads))
            # Workers take turns: so many, however many processors there are.
            changed.enter_context(
                mock.patch.object(threads, "_affinity", return_value=self.threads)
            )
            changed.enter_context(mock.patch.object(threads, "_machine", None))
            if self.threads > 1:  # and for little work too
                changed.enter_context(mock.patch.object(launcher, "_PARALLEL_SECONDS", 0.0))
            for where, name, value in self.within:
                if isinstance(where, dict):
                    changed.enter_context(mock.patch.dict(where, {name: value}))
                else:
                    changed.enter_context(mock.patch.object(where, name, value))
            yield


STREAMED = (
    (stages, "_STREAM_BYTES", 64), (stages, "_STREAM_ROW", 64), (normalize, "_STREAM_BYTES", 64),
    (normalize, "_SHIFT_BYTES", 64),
)  # fmt: skip
IN_CHUNKS = ((normalize, "_BLOCK_BYTES", 64), (normalize, "_CHUNK_BYTES", 64))
IN_PIECES = (*IN_CHUNKS, (normalize, "_AGAIN_NUMBERS", 512))
NARROW = ((lanes.WIDTHS, "float32", 2), (lanes.WIDTHS, "int32", 2), (lanes.WIDTHS, "float64", 1))
WIDE = ((lanes.WIDTHS, "float64", 4),)
BOTH = {"return_lse": True, "return_weights": True}


def draw(seed, shape, dtype=F32, spread=1.0):
    drawn = np.random.default_rng(seed).standard_normal(shape) * spread
    return drawn.astype(strategies.dtype_of(dtype))


def operands(rows, keys, features, value_features=None, *, batch=(), dtype=F32, seed=7):
    sizes = (rows, features), (keys, features), (keys, value_features or features)
    return [draw(seed + i, (*batch, *size), dtype) for i, size in enumerate(sizes)]


def spilling(arrays, power=1):
    """Operands whose products overflow under a scale of 2**power, not without it, and cancel."""
    query, key = (x.copy() for x in arrays[:2])
    most = np.finfo(F64 if query.dtype == F64 else F32).maxexp
    query[:, :2], key[:, :2], key[::2, :2] = 2.0 ** (most - 2 - power), 0, [6, -6 + 2**-5]
    return [query, key, *arrays[2:]]


def attend(name, arrays, threads=1, within=(), widens=False, **options):
    """A case of attention."""
    return Case(
        f"attention, {name}",
        lambda: fastattn.attention(*arrays, **options),
        threads=threads,
        within=within,
        widens=widens,
    )
