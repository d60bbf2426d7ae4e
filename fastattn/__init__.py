"""Attention on NumPy arrays: fused, fast on CPUs, and equal to the last bit however it is cut.

Importing this package loads NumPy and nothing heavier; a backend is imported by the first call.
"""

from fastattn._core.backends import use_backend
from fastattn._core.config import NUMERICS_VERSION as numerics_version
from fastattn._core.config import VERSION as __version__
from fastattn._core.config import show_config
from fastattn._core.threads import set_threads
from fastattn.attention import attention, explain

__all__ = [
    "__version__",
    "attention",
    "explain",
    "numerics_version",
    "set_threads",
    "show_config",
    "use_backend",
]
