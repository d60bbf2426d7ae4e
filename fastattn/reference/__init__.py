"""The meaning of every operation, in NumPy and float64: what fastattn is tested against.

Each function says in a few lines what its namesake in `fastattn` computes. Nothing here is tuned,
and nothing here imports anything but NumPy. Hidden keys are *selected* away, never multiplied by
zero, so that what they hold (inf, NaN) cannot matter.

`fastattn.reference.tiled` is the second half of the room: the same attention as the kernels compute
it, in numbered steps, for readers of the kernels.
"""

from fastattn.reference import tiled
from fastattn.reference.allocation import apportion, proportional
from fastattn.reference.attention import attention, key_ranges, scores
from fastattn.reference.fusion import fuse, merge_states
from fastattn.reference.normalize import log_softmax, logsumexp, softmax
from fastattn.reference.shared_allocation import allocate_shared
from fastattn.reference.similarity import default_scale, similarity
from fastattn.reference.varlen import attention_varlen

__all__ = [
    "allocate_shared",
    "apportion",
    "attention",
    "attention_varlen",
    "default_scale",
    "fuse",
    "key_ranges",
    "log_softmax",
    "logsumexp",
    "merge_states",
    "proportional",
    "scores",
    "similarity",
    "softmax",
    "tiled",
]
