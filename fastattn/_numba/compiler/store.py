"""Files of compiled code: one private folder per version of everything, one checked file per entry.

A cell holds the files that Numba wrote for one function, as a zip archive behind its own checksum.
It appears under its name in one step (written aside, then renamed) and is read whole before
anything is believed of it, so that a torn, truncated or foreign file is a miss and never an error.
Compiled code is loaded by pickle, that is, executed: a folder or a file that somebody else owns or
can write is refused. This room knows nothing of Numba.
"""

import contextlib
import hashlib
import io
import logging
import os
import re
import stat
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on Windows: the rename alone keeps files whole
    fcntl = None  # type: ignore[assignment]

_MAGIC = b"fastattn compiled 1\n"
_HEADER_BYTES = len(_MAGIC) + hashlib.sha256().digest_size
_SUFFIX = ".cell"
_LOCK_SECONDS = 120.0  # a waiter gives up here and compiles for itself
_POLL_SECONDS = 0.02
_STALE_SECONDS = 3600.0
MOST_BYTES = 256 * 2**20
MOST_FOLDERS = 8

_logger = logging.getLogger("fastattn.cache")


def root() -> Path | None:
    """Return the folder of all versions, or None where there is no place or FASTATTN_CACHE=0."""
    if os.environ.get("FASTATTN_CACHE", "").strip().lower() in ("0", "off", "false", "no"):
        return None
    chosen = os.environ.get("FASTATTN_CACHE_DIR")
    if chosen:
        return Path(chosen).absolute()
    user_cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(user_cache):
        return Path(user_cache) / "fastattn"
    home = os.path.expanduser("~")
    if not os.path.isdir(home):  # as for users made for a service: a home is not ours to make
        return None
    if sys.platform == "darwin":
        return Path(home, "Library", "Caches", "fastattn")
    return Path(home, ".cache", "fastattn")


def _fault(status: os.stat_result) -> str | None:
    """Why code from this file or folder must not be run, or None."""
    if not hasattr(os, "geteuid"):
        return None
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not to {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"can be written by others (mode {stat.S_IMODE(status.st_mode):o}; chmod 700 it)"
    return None


class Store:
    """The cells of one version of everything that shapes compiled code.

    Parameters
    ----------
    place
        The folder of all versions, from `root`.
    version
        The name of this version's folder.
    """

    def __init__(self, place: Path, version: str) -> None:
        self.place = place
        self.folder = place / version
        self.refusal = self._prepare()

    def _prepare(self) -> str | None:
        """Make and check the folders; return why they cannot be used, or None."""
        for folder in (self.place, self.folder):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                status = folder.stat() if folder is self.place else folder.lstat()
            except OSError as error:
                return f"{folder}: {error.strerror or error}"
            if not stat.S_ISDIR(status.st_mode):
                return f"{folder} is not a folder"
            fault = _fault(status)
            if fault is not None:
                _logger.warning("compiled kernels are not kept: %s %s", folder, fault)
                return f"{folder} {fault}"
        with contextlib.suppress(OSError):
            os.utime(self.folder)  # in use: the last to be pruned
        return None

    def fetch(self, name: str) -> dict[str, bytes] | None:
        """Return the files of a cell, or None where there is none to be trusted."""
        path = self._path(name)
        try:
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            with open(descriptor, "rb") as file:
                fault = _fault(os.fstat(descriptor))
                content = file.read() if fault is None else b""
        except OSError:
            return None
        archive = content[_HEADER_BYTES:]
        if content[:_HEADER_BYTES] != _header(name, archive):
            return None
        with zipfile.ZipFile(io.BytesIO(archive)) as cell:
            files = {member: cell.read(member) for member in cell.namelist()}
        with contextlib.suppress(OSError):
            os.utime(path)
        return files

    def put(self, name: str, files: Mapping[str, bytes]) -> None:
        """Keep the files of a cell, if the disk lets us."""
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as cell:
            for member in sorted(files):
                cell.writestr(zipfile.ZipInfo(member), files[member])
        archive = buffer.getvalue()
        temporary = None
        try:
            descriptor, temporary = tempfile.mkstemp(suffix=".tmp", dir=self.folder)
            with open(descriptor, "wb") as file:
                file.write(_header(name, archive) + archive)
            os.replace(temporary, self._path(name))
        except OSError as error:
            _logger.info("could not keep %s: %s", name, error)
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
        prune(self.place, self.folder)

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[None]:
        """Hold the lock of a cell, so that of many processes one compiles and the others load.

        Where it cannot be had, the caller goes on without it and only works for nothing.
        """
        descriptor = None
        if fcntl is not None:
            with contextlib.suppress(OSError):
                flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
                descriptor = os.open(self._path(name).with_suffix(".lock"), flags, 0o600)
        try:
            if descriptor is not None:
                _wait_for(descriptor)
            yield
        finally:
            if descriptor is not None:
                # Unlocked by word: a child forked meanwhile shares the lock and would keep it.
                with contextlib.suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    def _path(self, name: str) -> Path:
        readable = re.sub(r"[^A-Za-z0-9_.]+", "_", name)[-80:]
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return self.folder / f"{readable}-{digest}{_SUFFIX}"


def _header(name: str, archive: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(name.encode() + b"\0" + archive).digest()


def _wait_for(descriptor: int) -> None:
    deadline = time.monotonic() + _LOCK_SECONDS
    while time.monotonic() < deadline:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_POLL_SECONDS)
        except OSError:  # a file system without locks
            return
        else:
            return


def prune(
    place: Path, in_use: Path, most_bytes: int = MOST_BYTES, most_folders: int = MOST_FOLDERS
) -> None:
    """Bound what is kept: drop the folders, then the cells, that were used longest ago.

    A process that still uses a dropped folder compiles again what it had not loaded yet.
    """
    with contextlib.suppress(OSError):
        folders = [
            Path(entry) for entry in os.scandir(place) if entry.is_dir(follow_symlinks=False)
        ]
        folders.sort(key=lambda folder: (folder == in_use, _used(folder)))
        for folder in folders[: max(0, len(folders) - most_folders)]:
            _remove(folder)
        cells = []
        for folder in folders:
            cells += _tidy(folder)
        cells.sort()
        total = sum(size for _, size, _ in cells)
        for _, size, path in cells:
            if total <= most_bytes:
                break
            total -= size
            with contextlib.suppress(OSError):
                os.unlink(path)


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _tidy(folder: Path) -> list[tuple[float, int, str]]:
    """Drop files left half-written by a killed process; return (used, size, path) of each cell."""
    cells = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            status = entry.stat(follow_symlinks=False)
            if entry.name.endswith(_SUFFIX):
                cells.append((status.st_mtime, status.st_size, entry.path))
            elif entry.name.endswith(".tmp") and status.st_mtime < time.time() - _STALE_SECONDS:
                os.unlink(entry.path)
    return cells


def _remove(folder: Path) -> None:
    """Remove a version's folder, and nothing that this module did not write."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.endswith((_SUFFIX, ".lock", ".tmp")):
                os.unlink(entry.path)
        os.rmdir(folder)
