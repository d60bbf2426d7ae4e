"""Steps called by themselves, for what no call of the face is known to bring about.

Each gets the plain kernels and asserts what it expects.
"""

import numpy as np

from fastattn._engine.layouts import ALLOCATION, DHONDT

from .memory import Memory, Region, use

__all__ = ["STEPS"]

_LINE = 16


def units_move_to_earlier_claims(plain):
    """Rounding that had hidden an order of claims: the last unit goes where it belongs."""
    parts = {
        "at_weights": [3.0, 1.0],
        "at_lower": [0.0, 0.0],
        "at_upper": [4.0, 4.0],
        "at_amounts": [1.0, 3.0],
    }
    scratch = np.zeros(_LINE * len(parts))
    words = np.zeros(len(ALLOCATION.word), np.int64)
    for number, (field, values) in enumerate(parts.items()):
        scratch[_LINE * number :][: len(values)] = values
        words[ALLOCATION.word[field]] = 8 * _LINE * number
    words[ALLOCATION.word["receivers"]], words[ALLOCATION.word["method"]] = 2, DHONDT
    memory = Memory()
    for name, array in (("the record", words), ("scratch", scratch)):
        every = bytearray(b"\1" * array.nbytes)
        memory.add(Region(name, array.ctypes.data, every, writable=every))
    world = plain.world
    with use(memory), np.errstate(all="ignore"):
        call = world.module("allocation").read_call(words.ctypes.data)
        world.module("apportion").settle(call, scratch.ctypes.data, 1.0)
    assert scratch[_LINE * 3 :][:2].tolist() == [3.0, 1.0]


STEPS = [units_move_to_earlier_claims]
