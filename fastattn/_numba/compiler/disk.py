"""The disk cache of compiled kernels, by Numba's public means and behind its own safeguards.

Numba's cache does not see a change in a callee, an intrinsic or a constant of another file, keeps
index and data in two files without a lock, and raises from the caller's call when either is
damaged. So Numba only ever reads and writes a temporary folder of one function; what lies in it is
fetched from and put into a `store` whose folder is named after everything that shapes the code:
the sources, the versions, the processor and the compiler's settings. Trouble with the disk is
never an error: it costs the time to compile.

The user's own Numba cache folder is not touched: the setting is changed for the microseconds in
which the cache of one function is enabled; `compile` lets in one thread at a time.
"""

import hashlib
import inspect
import logging
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba.core.errors import NumbaError
from numba.core.registry import cpu_target

from fastattn._numba.compiler import native
from fastattn._numba.compiler.store import Store, root

_logger = logging.getLogger("fastattn.cache")

# Settings of Numba that change the code it makes and that its own cache key leaves out.
_CODE_SETTINGS = (
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "ENABLE_AVX",
    "DISABLE_INTEL_SVML",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
    "EXTEND_VARIABLE_LIFETIMES",
    "ENABLE_PROFILING",
    "LLVM_REFPRUNE_PASS",
    "LLVM_REFPRUNE_FLAGS",
)

_stores: dict[str, Store] = {}


def source_files() -> list[Path]:
    """Return every file whose code or constants can be part of a compiled kernel."""
    package = Path(__file__).resolve().parents[2]
    others = [
        "_core/constants.py",
        *(f"_engine/{one}.py" for one in ("layouts", "launcher", "company")),
    ]
    return [*(package / one for one in others), *sorted((package / "_numba").rglob("*.py"))]


def _hash_sources() -> str | None:
    """Digest all `source_files`, or None where they are no plain files."""
    digest = hashlib.sha256()
    try:
        for path in source_files():
            content = path.read_bytes()
            digest.update(f"{path.name} {len(content)}\n".encode() + content)
    except OSError:
        return None
    return digest.hexdigest()


# Taken before any kernel is imported. Sources that change under a running process would otherwise
# put old code under a new name, so they switch its cache off.
_SOURCES = _hash_sources()


def version_name() -> str:
    """Name the folder for exactly this code, on this machine, made by these versions."""
    settings = [(name, str(getattr(numba.config, name, None))) for name in _CODE_SETTINGS]
    parts = (
        _SOURCES,
        numba.__version__,
        native.LLVMLITE_VERSION,
        np.__version__,
        sys.implementation.cache_tag,
        sys.version,
        platform.machine(),
        cpu_target.target_context.codegen().magic_tuple(),
        settings,
    )
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()[:24]
    return f"{sys.implementation.cache_tag}-numba{numba.__version__}-{digest}"


def _open_store() -> tuple[Store | None, str | None]:
    """Return the store to use now, or why there is none."""
    place = root()
    if place is None:
        return None, "switched off (FASTATTN_CACHE) or no home folder"
    if _SOURCES is None:
        return None, "the sources are not plain files"
    if _hash_sources() != _SOURCES:
        return None, "the sources have changed since this process started"
    folder = str(place / version_name())
    if folder not in _stores:
        _stores[folder] = Store(place, os.path.basename(folder))
    store = _stores[folder]
    return (store, None) if store.refusal is None else (None, store.refusal)


def describe() -> dict[str, str | None]:
    """Where compiled kernels are kept, or why they are not: for `show_config`."""
    store, refusal = _open_store()
    return {"folder": str(store.folder) if store else None, "refusal": refusal}


def _enable(compiled: Any, workspace: str) -> str | None:
    """Let Numba cache one function under ``workspace``; return the folder it chose there."""
    config = numba.config
    settings = {"CACHE_DIR": workspace, "CACHE_LOCATOR_CLASSES": ""}
    saved = {name: getattr(config, name) for name in settings if hasattr(config, name)}
    try:
        for name in saved:
            setattr(config, name, settings[name])
        compiled.enable_caching()
    finally:
        for name, value in saved.items():
            setattr(config, name, value)
    folders = os.listdir(workspace)
    return os.path.join(workspace, folders[0]) if len(folders) == 1 else None


class _Unit:
    """One function to compile: its name in the store, and how to make and compile it."""

    def __init__(
        self,
        name: str,
        make: Callable[[], Any],
        compile_it: Callable[[Any], None],
        was_cached: Callable[[Any], bool],
    ) -> None:
        self.name = name
        self.make = make
        self.compile_it = compile_it
        self.was_cached = was_cached

    def plainly(self) -> Any:
        """Compile without a cache."""
        compiled = self.make()
        self.compile_it(compiled)
        return compiled

    def through(self, files: dict[str, bytes]) -> tuple[Any, bool, dict[str, bytes]]:
        """Compile with these files as Numba's cache; return also a hit and the files after it."""
        try:
            with tempfile.TemporaryDirectory(prefix="fastattn-") as workspace:
                compiled = self.make()
                folder = _enable(compiled, workspace)
                if folder is None:
                    return self.plainly(), False, {}
                for name, content in files.items():
                    Path(folder, name).write_bytes(content)
                self.compile_it(compiled)
                hit = self.was_cached(compiled)
                after = {} if hit else {path.name: path.read_bytes() for path in _files(folder)}
                return compiled, hit, after
        except NumbaError:
            raise  # the function itself does not compile
        except Exception as error:  # a full disk, or files that only looked right
            _logger.info("no disk cache for %s: %r", self.name, error)
            return self.plainly(), False, {}


def _files(folder: str) -> list[Path]:
    return [path for path in Path(folder).iterdir() if path.is_file()]


def build(
    name: str,
    function: Callable,
    make: Callable[[], Any],
    compile_it: Callable[[Any], None],
    was_cached: Callable[[Any], bool],
) -> tuple[Any, bool]:
    """Make and compile a Numba object, or load it from the disk.

    Parameters
    ----------
    name
        Its name in the cache; functions of one name but other sources are kept apart.
    function
        The Python function inside.
    make
        Returns a fresh object with ``enable_caching``.
    compile_it
        Compiles it, for its one signature.
    was_cached
        Tells whether that found the code in Numba's cache.

    Returns
    -------
    The compiled object, and whether it came from the disk.
    """
    unit = _Unit(name, make, compile_it, was_cached)
    source = _source_digest(function)
    store, refusal = _open_store() if source is not None else (None, "no source file")
    if store is None:
        _logger.info("no disk cache for %s: %s", name, refusal)
        return unit.plainly(), False
    cell = f"{name}-{source}"
    files = store.fetch(cell)
    if files is None:
        with store.locked(cell):
            files = store.fetch(cell)  # another process may have been faster
            if files is None:
                compiled, _, after = unit.through({})
                _keep(store, cell, after)
                return compiled, False
    compiled, hit, after = unit.through(files)
    if not hit:  # another variant of one name (closures), or code that did not load
        _keep(store, cell, after)
    return compiled, hit


def _keep(store: Store, cell: str, files: dict[str, bytes]) -> None:
    if files and _hash_sources() == _SOURCES:
        store.put(cell, files)


def _source_digest(function: Callable) -> str | None:
    """Digest the file a function stands in, or None where Numba could not cache it."""
    try:
        return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()[:16]
    except (OSError, TypeError):
        return None
