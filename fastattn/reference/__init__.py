"""The meaning of every operation, in NumPy and float64: what fastattn is tested against.

Each function says in a few lines what its namesake in `fastattn` computes. Nothing here is tuned,
and nothing here imports anything but NumPy. Hidden keys are *selected* away, never multiplied by
zero, so that what they hold (inf, NaN) cannot matter.

attention.py similarity.py normalize.py fusion.py varlen.py   attention and its stages
linear.py       linear maps
allocation.py shared_allocation.py   budgets, in fractions, and shared ones
pages.py        the keys of a cache, gathered             shapes.py    broadcasting beyond 32 dims
sums.py         sums as the kernels cut them
tiled.py        the same attention as the kernels compute it, in numbered steps, for their readers
backend.py      all of it as a backend, which is never chosen by itself
"""

from fastattn.reference import tiled
from fastattn.reference.allocation import apportion, proportional
from fastattn.reference.attention import attention, key_ranges, scores
from fastattn.reference.fusion import fuse, merge_states
from fastattn.reference.linear import linear
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
    "linear",
    "log_softmax",
    "logsumexp",
    "merge_states",
    "proportional",
    "scores",
    "similarity",
    "softmax",
    "tiled",
]
