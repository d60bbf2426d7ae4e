"""Attention on NumPy arrays: fused, fast on CPUs, and equal to the last bit however it is cut.

Importing this package loads NumPy and nothing heavier; a backend is imported by the first call.
"""

# ruff: noqa: E402
from fastattn.start import guard_start as _guard_start

_guard_start()  # before anything that takes time

from fastattn._core.backends import use_backend, warmup
from fastattn._core.config import NUMERICS_VERSION as numerics_version
from fastattn._core.config import VERSION as __version__
from fastattn._core.config import show_config
from fastattn._core.threads import set_threads
from fastattn.allocation import allocate
from fastattn.attention import attention, explain
from fastattn.attention_allocation import AllocationResult, attention_allocation
from fastattn.cache import KVCache
from fastattn.fusion import fuse
from fastattn.multihead import MultiHeadAttention
from fastattn.normalize import log_softmax, logsumexp, softmax
from fastattn.shared_allocation import SharedAllocation, allocate_shared
from fastattn.similarity import similarity
from fastattn.state import State, attention_state, merge_states
from fastattn.varlen import attention_varlen

__all__ = [
    "AllocationResult",
    "KVCache",
    "MultiHeadAttention",
    "SharedAllocation",
    "State",
    "__version__",
    "allocate",
    "allocate_shared",
    "attention",
    "attention_allocation",
    "attention_state",
    "attention_varlen",
    "explain",
    "fuse",
    "log_softmax",
    "logsumexp",
    "merge_states",
    "numerics_version",
    "set_threads",
    "show_config",
    "similarity",
    "softmax",
    "use_backend",
    "warmup",
]


def __getattr__(name: str) -> object:
    # Loaded when somebody asks for it: the meaning is not needed to compute.
    if name == "reference":
        from importlib import import_module

        return import_module("fastattn.reference")
    raise AttributeError(f"module 'fastattn' has no attribute {name!r}")
