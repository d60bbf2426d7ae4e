"""NumPy's BLAS on the threads of the compiled kernels, where its public callback allows that."""

from __future__ import annotations

import ctypes
import os
import re
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from . import _native

__all__ = ["share", "shared", "unshare"]

# How builds of OpenBLAS spell their public names: `scipy_openblas_get_config64_` in NumPy's wheels.
_SPELLINGS = [
    (prefix, suffix) for prefix in ("scipy_", "", "cblas_") for suffix in ("64_", "", "_64")
]
_PTHREADS = 1  # what `openblas_get_parallel` calls threads of its own; 2: OpenMP's


class _Library(NamedTuple):
    """An OpenBLAS, as far as it is asked here."""

    config: str
    threads: int
    most: int  # as many as it has room for
    parallel: int
    callback: int  # what its callback is now; 0: none
    setter: int | None  # where the function is that sets it


def _numpy_library() -> Any:
    """Return the library that NumPy's core is; through it those are found that it is linked to."""
    core: Any = import_module("numpy._core._multiarray_umath")
    return ctypes.CDLL(core.__file__, mode=os.RTLD_NOLOAD | os.RTLD_NOW)


def _read(library: Any) -> _Library | None:
    """Ask an OpenBLAS behind a library what it is; None: there is none."""
    for prefix, suffix in _SPELLINGS:
        get_config = getattr(library, f"{prefix}openblas_get_config{suffix}", None)
        if get_config is None:
            continue
        get_config.restype = ctypes.c_char_p
        config = (get_config() or b"").decode("ascii", "replace")
        most = re.search(r"MAX_THREADS=(\d+)", config)
        setter = getattr(library, f"{prefix}openblas_set_threads_callback_function{suffix}", None)
        try:
            callback = ctypes.c_void_p.in_dll(library, "openblas_threads_callback_").value
        except ValueError:  # not to be seen from here
            callback = None
        return _Library(
            config.strip(),
            getattr(library, f"{prefix}openblas_get_num_threads{suffix}")(),
            int(most[1]) if most else 0,
            getattr(library, f"{prefix}openblas_get_parallel{suffix}")(),
            callback or 0,
            None if setter is None else ctypes.cast(setter, ctypes.c_void_p).value,
        )
    return None


def _refusal(library: _Library | None) -> str | None:
    """Say why the jobs of a BLAS cannot run here, or None."""
    if library is None:
        name = np.show_config(mode="dicts")["Build Dependencies"]["blas"].get("name", "unknown")
        return f"it is no OpenBLAS that tells its settings (NumPy was built with {name})"
    if library.setter is None:
        return f"its callback for threads came with OpenBLAS 0.3.27: {library.config}"
    if library.parallel != _PTHREADS:
        what = "OpenMP's threads" if library.parallel else "one thread"
        return f"this OpenBLAS was built for {what}: {library.config}"
    if library.threads < 2:
        return "it uses one thread"
    if library.callback and not _native.shares_blas():
        return "another library has set its callback for threads already"
    # Its own threads are numbered from below, ours from above.
    if 2 * library.threads > library.most:
        return (
            f"it uses {library.threads} threads and has room for {library.most}, of which half can "
            "be ours: OPENBLAS_NUM_THREADS in the environment sets fewer"
        )
    return None


def share() -> tuple[str, str | None]:
    """Have NumPy's BLAS run its jobs on our threads; returns what it is, and why it cannot."""
    library = _read(_numpy_library())
    reason = _refusal(library)
    if library is None or reason is not None:
        return ("" if library is None else library.config), reason
    assert library.setter is not None
    if not _native.share_blas(library.setter, library.most, library.threads):
        reason = f"the system gives no {library.threads} threads"
    return library.config, reason


def unshare() -> None:
    """Let it run them on its own threads again."""
    _native.unshare_blas()


def shared() -> bool:
    """Whether it runs them on ours."""
    return _native.shares_blas()
