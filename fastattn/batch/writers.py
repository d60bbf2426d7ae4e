"""The output of a job: a preallocated file under a temporary name, which gets its own name last."""

import contextlib
import errno
import hashlib
import io
import math
import os
from typing import Any

import numpy as np

from fastattn.batch.errors import JobError, UsageError, named

# Calls of the file system go through the module `os` by name, so that tests can make the n-th fail.

_READ_BYTES = 1 << 20


def final_path(path: str) -> str:
    """Resolve an output's path, and refuse what no job can replace."""
    path = os.path.realpath(path)  # a symbolic link stays one: its target is what gets written
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise JobError(f"output {path}: its folder {folder} does not exist; create it first")
    if os.path.lexists(path) and not os.path.isfile(path):
        raise JobError(f"output {path}: is there and is no regular file; choose another path")
    return path


def partial_path(path: str) -> str:
    """Return the temporary name of an output: in the same folder, so that it can be renamed."""
    return path + ".part"


def refuse_existing(path: str, overwrite: bool, with_resume: str = "") -> None:
    """Refuse an output that exists, unless it may be replaced."""
    if not overwrite and os.path.lexists(path):
        raise UsageError(
            f"output {path}: is there already; give {with_resume}--overwrite to replace it"
        )


def sync_folder(path: str) -> None:
    """Make the names in the folder of `path` durable."""
    folder = os.path.dirname(path)
    with named(folder, "be synced"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_all(descriptor: int, data: Any, offset: int) -> None:
    """Write all bytes of a buffer at `offset`."""
    view = memoryview(data).cast("B")
    while len(view):
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done


def write_whole(path: str, data: Any, overwrite: bool) -> None:
    """Write a file that has a name only when it is on the disk: a killed program leaves no part.

    Where the file system knows no files without a name, it has another one until then.
    """
    temporary = f"{path}.{os.getpid()}.part"
    try:
        with named(temporary, "be written"):
            descriptor, nameless = _open_for_whole(temporary)
            try:
                write_all(descriptor, data, 0)
                os.fsync(descriptor)
                if nameless:
                    _give_name(descriptor, temporary)
            finally:
                os.close(descriptor)
        with named(path, "take the finished file"):
            if not overwrite:
                # Fails where a file of that name has appeared in the meantime, and on a file system
                # without hard links, where a moment's race is left.
                with contextlib.suppress(OSError):
                    os.link(temporary, path)
                    return
                refuse_existing(path, overwrite)
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


def _open_for_whole(temporary: str) -> tuple[int, bool]:
    """Open a file without a name in the folder of `temporary`, or one of that name."""
    flags = os.O_WRONLY | os.O_CLOEXEC
    if os.path.isdir("/proc/self/fd"):  # through which it gets its name
        with contextlib.suppress(OSError, AttributeError):
            return os.open(os.path.dirname(temporary), flags | os.O_TMPFILE, 0o666), True
    return os.open(temporary, flags | os.O_CREAT | os.O_TRUNC, 0o666), False


def _give_name(descriptor: int, path: str) -> None:
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # With a folder's descriptor Python calls linkat, which alone follows the link in /proc.
        os.link(f"/proc/self/fd/{descriptor}", os.path.basename(path), dst_dir_fd=folder)
    finally:
        os.close(folder)


class PartialFile:
    """An output `.npy` file in the making, with the digest of what has been written so far.

    Data is appended in order, so that one running SHA-256 over header and data is at every chunk
    border the digest of the file up to there, and at the end that of the whole file.
    """

    def __init__(self, role: str, path: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.role = role
        self.path = path
        self.temporary = partial_path(path)
        self.dtype = dtype
        self.shape = shape
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape},
        )
        self.header = header.getvalue()
        self.nbytes = len(self.header) + math.prod(shape) * dtype.itemsize
        self._descriptor = -1
        self._written = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes written so far."""
        return self._hash.hexdigest()

    def create(self) -> None:
        """Make the temporary file, take its whole space on the disk, and write the header."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with named(self.temporary, "be created"):
            self._descriptor = os.open(self.temporary, flags, 0o666)
        with named(self.temporary, f"be given its {self.nbytes} bytes"):
            self._allocate()
        self._written = 0
        self._hash = hashlib.sha256()
        self.append(self.header)
        self.sync()

    def _allocate(self) -> None:
        try:
            os.posix_fallocate(self._descriptor, 0, self.nbytes)
        except (OSError, AttributeError) as error:
            # Not every file system (and not macOS) can; pwrite then meets a full disk itself.
            unable = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
            if isinstance(error, OSError) and error.errno not in unable:
                raise
            os.ftruncate(self._descriptor, self.nbytes)

    def reopen(self) -> None:
        """Open the temporary file that an earlier run left."""
        with named(self.temporary, "be opened"):
            self._descriptor = os.open(self.temporary, os.O_RDWR | os.O_CLOEXEC)
            found = os.fstat(self._descriptor).st_size
        if found != self.nbytes:
            raise JobError(
                f"{self.temporary}: expected {self.nbytes} bytes, found {found}; it is not what "
                "the killed job left: start again with --overwrite instead of --resume"
            )

    def advance(self, data_bytes: int) -> str:
        """Read on to `data_bytes` bytes after the header, as if they had just been written.

        Returns the digest of the file up to there.
        """
        stop = len(self.header) + data_bytes
        with named(self.temporary, "be read"):
            while self._written < stop:
                part = os.pread(
                    self._descriptor, min(_READ_BYTES, stop - self._written), self._written
                )
                if not part:
                    raise JobError(f"{self.temporary}: was cut short; start again with --overwrite")
                self._hash.update(part)
                self._written += len(part)
        return self.digest

    def rewind(self, data_bytes: int) -> None:
        """Go back to `data_bytes` bytes after the header; what follows will be written anew."""
        if self._written > len(self.header) + data_bytes:
            self._written = 0
            self._hash = hashlib.sha256()
        self.advance(data_bytes)

    def append(self, data: Any) -> None:
        """Write a contiguous buffer after what is there; it is durable only after `sync`."""
        view = memoryview(data).cast("B") if len(data) else memoryview(b"")
        with named(self.temporary, f"take {len(view)} bytes at {self._written}"):
            write_all(self._descriptor, view, self._written)
        self._hash.update(view)
        self._written += len(view)

    def sync(self) -> None:
        """Wait until all that was written is on the disk. A failure here is final for the run."""
        with named(self.temporary, "be synced"):
            os.fsync(self._descriptor)

    def publish(self, overwrite: bool) -> None:
        """Give the finished file its own name; without `overwrite`, only if that is free."""
        with named(self.path, "take the finished output"):
            if overwrite:
                os.replace(self.temporary, self.path)
                return
            try:
                os.link(self.temporary, self.path)
            except FileExistsError:
                raise UsageError(
                    f"{self.role} {self.path}: appeared while the job ran; the result waits "
                    "beside it: give --resume --overwrite to replace it"
                ) from None
            except OSError:  # a file system without hard links: a moment's race is left
                if os.path.lexists(self.path):
                    raise
                os.replace(self.temporary, self.path)
                return
            os.unlink(self.temporary)

    def is_published(self, digest: str) -> bool:
        """Whether an earlier run got as far as naming this file; tidies a name left over by it."""
        with named(self.path, "be read"):
            if not os.path.exists(self.path):
                return False
            if os.path.exists(self.temporary):
                if not os.path.samefile(self.temporary, self.path):
                    return False
                os.unlink(self.temporary)
                return True
            with open(self.path, "rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == digest

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
