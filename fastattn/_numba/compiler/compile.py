"""Every compile option in one place: `device` functions, kernel `entry` points, native `driver`s.

Nothing is compiled on import. A kernel entry has one native signature, ``void(int64 call_address,
int64 worker)``, so that one parallel driver (`launch`) serves every operation: ``parallel=True``
costs several times the compile time of plain code, and is paid once for the whole library. An
entry compiles when its address is first asked for, and comes from the disk cache (`disk`) if it
was compiled before on this machine.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import numba
from numba.core import sigutils
from numba.core.ccallback import CFunc

from fastattn._numba.compiler import disk as cache

try:
    from fastattn._numba.compiler.linking import DeviceCompiler
except (ImportError, AttributeError):  # a class of Numba's that it builds on is gone
    from numba.core.compiler import Compiler as DeviceCompiler

# No fast-math flag and no contraction: bits are part of the contract. error_model "numpy" keeps
# division free of a zero test (and of a raise, which would leak every array a kernel holds).
OPTIONS = {"nogil": True, "boundscheck": False, "error_model": "numpy", "fastmath": False}

DEVICE_OPTIONS = {
    **OPTIONS,
    # Nobody calls these from Python or C, so no wrapper is compiled: a tenth of the time.
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": DeviceCompiler,
}

ENTRY_SIGNATURE = "void(int64, int64)"

# Numba compiles in one thread at a time anyway. A fork waits for it: the child of a process that
# was just compiling would wait for ever for Numba's own lock, whose holder it does not have.
_compile_lock = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_compile_lock.acquire,
        after_in_parent=_compile_lock.release,
        after_in_child=_compile_lock.release,
    )


def refusal() -> str | None:
    """Why nothing can be compiled in this process, or None."""
    if numba.config.DISABLE_JIT:
        return (
            "NUMBA_DISABLE_JIT is set, so Numba compiles nothing; unset it, or ask for "
            '`backend="reference"`'
        )
    return None


def device(function: Callable | None = None, *, inlined: bool = False) -> Any:
    """Make a function callable from kernels; ``inlined=True`` copies it into each caller.

    Device functions are generic: Numba compiles them per argument types, when an entry needs them.
    Inlining happens before types are inferred: code that is called from one place only costs a
    third less to compile that way, because each level of calls is optimised anew.
    """
    if function is None:
        return lambda decorated: device(decorated, inlined=inlined)
    return numba.njit(**DEVICE_OPTIONS, inline="always" if inlined else "never")(function)


class Compiled:
    """A function compiled on first use, once for all threads, through the disk cache.

    Attributes
    ----------
    name
        Module and qualified name, the name in the cache.
    seconds
        How long compiling or loading took; None before.
    from_cache
        Whether it came from the disk cache; None before.
    """

    def __init__(self, function: Callable) -> None:
        self.function = function
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.__doc__ = function.__doc__
        self.seconds: float | None = None
        self.from_cache: bool | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __getattr__(self, attribute: str) -> Any:
        # Only reached while the compiled attribute does not exist: afterwards asking for it is a
        # plain instance attribute, which a call of a few microseconds can afford.
        if attribute != self._attribute:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {attribute!r}")
        with _compile_lock:
            if attribute not in self.__dict__:
                reason = refusal()
                if reason is not None:
                    raise RuntimeError(f"cannot compile {self.name}: {reason}")
                start = time.perf_counter()
                compiled, self.from_cache = cache.build(
                    self.name, self.function, self._make, self._compile, self._was_cached
                )
                self.seconds = time.perf_counter() - start
                self.__dict__[attribute] = self._result(compiled)
        return self.__dict__[attribute]

    _attribute: str

    def _make(self) -> Any:
        raise NotImplementedError

    def _compile(self, compiled: Any) -> None:
        raise NotImplementedError

    def _was_cached(self, compiled: Any) -> bool:
        raise NotImplementedError

    def _result(self, compiled: Any) -> Any:
        raise NotImplementedError

    def warm(self) -> None:
        """Compile now, if it has not happened yet."""
        getattr(self, self._attribute)


class Entry(Compiled):
    """A kernel's entry point; ``address`` is that of its native ``void(int64, int64)``."""

    _attribute = "address"
    address: int

    def __init__(self, function: Callable, features: str) -> None:
        super().__init__(function)
        self.features = features

    def _make(self) -> Any:
        # numba.cfunc() would compile at once, under the global cache folder of that moment; its
        # class separates making, enabling the cache, and compiling.
        signature = sigutils.normalize_signature(ENTRY_SIGNATURE)
        return CFunc(self.function, signature, locals={}, options=dict(OPTIONS))

    def _compile(self, compiled: Any) -> None:
        compiled.compile()

    def _was_cached(self, compiled: Any) -> bool:
        return compiled.cache_hits > 0

    def _result(self, compiled: Any) -> int:
        self._owner = compiled  # owns the machine code
        return compiled.address


class Driver(Compiled):
    """A function called from Python with one signature; ``run`` is the compiled one."""

    _attribute = "run"
    run: Callable

    def __init__(self, function: Callable, signature: str, parallel: bool) -> None:
        super().__init__(function)
        self.signature = signature
        self.parallel = parallel

    def _make(self) -> Any:
        return numba.njit(**OPTIONS, parallel=self.parallel)(self.function)

    def _compile(self, compiled: Any) -> None:
        compiled.compile(self.signature)

    def _was_cached(self, compiled: Any) -> bool:
        return bool(compiled.stats.cache_hits)

    def _result(self, compiled: Any) -> Callable:
        self._owner = compiled
        # Without the dispatcher, which would look at the types of the arguments first.
        return compiled.get_overload(self.signature)


def entry(function: Callable[[int, int], None] | None = None, *, features: str = "") -> Any:
    """Make a kernel's entry point of ``function(call_address, worker)``.

    It needs a CPU with some `features`, as LLVM names them, beside those of its level.
    """
    if function is None:
        return lambda decorated: entry(decorated, features=features)
    return Entry(function, features)


def driver(signature: str, *, parallel: bool = False) -> Callable[[Callable], Driver]:
    """Make a natively callable function of one signature, such as the launcher's own."""
    return lambda function: Driver(function, signature, parallel)


def warm(compiled: Iterable[Compiled]) -> None:
    """Compile every one of these that is not compiled yet."""
    for one in compiled:
        one.warm()


__all__ = [
    "ENTRY_SIGNATURE",
    "OPTIONS",
    "Compiled",
    "Driver",
    "Entry",
    "device",
    "driver",
    "entry",
    "refusal",
    "warm",
]
