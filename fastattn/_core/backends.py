"""Which backend does a call, and why the others do not.

``backend=`` comes before `use_backend`, that before ``FASTATTN_BACKEND``, that before the automatic
choice. Nothing falls back in silence: a named backend that cannot do a call is an error.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from typing import Any, cast, get_args

from fastattn._core.annotations import BackendName
from fastattn._core.execution import Backend, Execution
from fastattn._core.places import Packed
from fastattn._core.problem import Problem

__all__ = [
    "KNOWN",
    "choose",
    "describe",
    "load",
    "pick",
    "prepare",
    "use_backend",
    "warmup",
]

_MODULES = {
    "cython": "fastattn._cython.backend",
    "numba": "fastattn._numba.backend",
    "reference": "fastattn.reference.backend",
}
KNOWN: tuple[BackendName, ...] = get_args(BackendName)
# The automatic choice takes the first that is there and does the call: kernels that are compiled
# before those that must be compiled first. The reference is never among them: it is the meaning,
# orders of magnitude slower and quadratic in memory.
_AUTOMATIC = ("cython", "numba")

_selected: ContextVar[str | None] = ContextVar("fastattn_backend", default=None)
# Read once, like Numba's own variables: os.environ.get costs a tenth of a small call.
_FROM_ENVIRONMENT = os.environ.get("FASTATTN_BACKEND", "").strip() or None

_loaded: dict[str, Backend] = {}
# Backends of the automatic choice that cannot be imported here, and why.
_missing: dict[str, str] = {}


def _check(name: Any, source: str) -> str:
    if type(name) is str and name in _MODULES:
        return name
    raise ValueError(
        f"{source} names the unknown backend {name!r}: one of {', '.join(map(repr, KNOWN))}, "
        "or none for the automatic choice"
    )


def choose(backend: Any) -> str | None:
    """Return the name that the caller, the context or the environment asks for; None: automatic."""
    if backend is not None:
        return _check(backend, "backend")
    selected = _selected.get()
    if selected is not None:
        return selected
    if _FROM_ENVIRONMENT is not None:
        return _check(_FROM_ENVIRONMENT, "the environment variable FASTATTN_BACKEND")
    return None


@contextmanager
def use_backend(backend: BackendName | None) -> Iterator[None]:
    """Let every call in a ``with`` block run on one backend.

    Parameters
    ----------
    backend : {"cython", "numba", "reference"} or None
        The backend; None goes back to the automatic choice inside the block.

    Raises
    ------
    ValueError
        If there is no backend of this name.

    Notes
    -----
    This is a context variable: other threads and other asyncio tasks do not see it. ``backend=``
    of a single call comes before it, and it comes before the environment variable
    ``FASTATTN_BACKEND``, which is read once, at import. Without ``with`` it does nothing.

    Examples
    --------
    >>> import fastattn
    >>> with fastattn.use_backend("reference"):
    ...     fastattn.explain([[1.0]], [[1.0]], [[2.0]]).backend
    'reference'
    """
    token = _selected.set(None if backend is None else _check(backend, "use_backend"))
    try:
        yield
    finally:
        _selected.reset(token)


def load(name: str) -> Backend:
    """Import a backend on first use."""
    backend = _loaded.get(name)
    if backend is None:
        module = import_module(_MODULES[name])
        backend = _loaded[name] = cast(Backend, getattr(module, "backend", module))
    return backend


def _there(name: str) -> Backend | None:
    """Load a backend of the automatic choice; where it cannot be imported, note why.

    What was never installed is missing by somebody's choice. What is there and does not work is
    worth a warning: the next backend has the same bits, so nothing else would show it.
    """
    if name not in _missing:
        try:
            return load(name)
        except ImportError as error:
            _missing[name] = str(error)
            if not isinstance(error, ModuleNotFoundError):
                text = f"backend {name!r} is left out: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
    return None


def pick(backend: Any, operation: str = "warmup") -> Backend:
    """Return the backend of an operation other than attention: one that has a function for it."""
    wanted = choose(backend)
    if wanted is not None:
        named = load(wanted)
        if not hasattr(named, operation):
            raise ValueError(
                f"backend {wanted!r} does not do {operation}: name none, or one of "
                f"{', '.join(repr(name) for name in KNOWN if hasattr(load(name), operation))}"
            )
        return named
    for name in _AUTOMATIC:
        there = _there(name)
        if there is not None and hasattr(there, operation):
            return there
    reasons = "; ".join(
        f"{name}: {_missing.get(name, f'does not do {operation}')}" for name in _AUTOMATIC
    )
    raise ImportError(
        f'no backend is there ({reasons}); `backend="reference"` computes in plain NumPy'
    )


def prepare(problem: Problem, wanted: str | None, threads: int) -> Execution:
    """Plan a call on the backend named `wanted`, or on the first that does it."""
    refusals: dict[str, str] = {}
    for name in _AUTOMATIC if wanted is None else (wanted,):
        backend = load(name) if wanted is not None else _there(name)
        reason = _missing[name] if backend is None else backend.refusal(problem)
        if backend is not None and reason is None:
            if isinstance(problem.place, Packed):
                execution = backend.prepare_varlen(problem, threads)
            else:
                execution = backend.prepare_attention(problem, threads)
            execution.refusals.update(refusals)
            return execution
        refusals[name] = str(reason)
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refusals.items())
    raise ValueError(
        f"no backend does this call ({reasons}), query {problem.query.shape}, key "
        f"{problem.key.shape} (batch, heads, ...): name another of "
        f"{', '.join(map(repr, KNOWN))}, as in "
        '`backend="reference"`'
    )


def describe(name: str) -> str:
    """Say whether a backend can be loaded, and what it says of itself."""
    try:
        backend = load(name)
    except (ImportError, ValueError) as error:  # Numba: ValueError for a wrong setting of its own
        return f"cannot be imported: {error}"
    about = getattr(backend, "about", dict)
    return ", ".join(["available", *(f"{key} {text}" for key, text in about().items() if text)])


def warmup() -> None:
    """Compile every kernel, or load it from the disk cache, before the first call needs it.

    Raises
    ------
    ImportError
        If the backend cannot be imported.

    Notes
    -----
    This is about the backend that a call would take now. With ``numba``, seconds where the cache is
    empty, a moment where it is filled; the cache is private to the user, the machine's CPU and the
    versions of fastattn, Numba and Python. With ``cython`` nothing is left to do. ``fastattn
    warmup`` does the same from the command line, for container images.

    Examples
    --------
    >>> import fastattn
    >>> fastattn.warmup()
    """
    pick(None).warmup()
