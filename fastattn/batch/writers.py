"""The output of a job: a preallocated file under a temporary name, which gets its own name last."""

import contextlib
import errno
import hashlib
import io
import math
import os
import secrets
from typing import Any

import numpy as np

from fastattn.batch.errors import JobError, Refused, UsageError, named
from fastattn.batch.folders import (
    Folder,
    HeldFile,
    open_nameless,
    refuse_locked,
    refuse_taken,
    remove_left,
)

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


def refuse_input(target: str, role: str, path: str | None) -> None:
    """Refuse to write to an input, under whichever name."""
    with contextlib.suppress(OSError):  # one of them does not exist
        if path is not None and os.path.samefile(path, target):
            raise UsageError(
                f"the {role} file {path} would be written to as {target}; choose another output"
            )


def write_whole(path: str, data: Any, overwrite: bool) -> None:
    """Write a file that has a name only when it is on the disk: a killed program leaves no part.

    Where the file system knows no files without a name, it has another one until then.
    """
    with contextlib.closing(Folder(os.path.dirname(path))) as folder:
        name = os.path.basename(path)
        file = open_nameless(folder, f"{name}.{secrets.token_hex(4)}.part")
        try:
            file.write(data, 0)
            file.sync()
            try:
                file.take_name(name, overwrite)
            except FileExistsError:
                refuse_existing(path, overwrite)
                raise
            folder.sync()
        finally:
            if file.name != name:
                with contextlib.suppress(JobError):
                    file.remove()
            file.close()


class PartialFile:
    """An output `.npy` file in the making, with the digest of what has been written so far.

    Data is appended in order, so that one running SHA-256 over header and data is at every chunk
    border the digest of the file up to there, and at the end that of the whole file.
    """

    def __init__(
        self, role: str, folder: Folder, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]
    ) -> None:
        self.role = role
        self.folder = folder
        self.name = name
        self.path = folder.join(name)
        self.temporary = partial_path(self.path)
        self.dtype = dtype
        self.shape = shape
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header,
            {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape},
        )
        self.header = header.getvalue()
        self.nbytes = len(self.header) + math.prod(shape) * dtype.itemsize
        self._file: HeldFile | None = None
        self._written = 0
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes written so far."""
        return self._hash.hexdigest()

    @property
    def _held(self) -> HeldFile:
        assert self._file is not None
        return self._file

    def refuse_taken(self) -> None:
        """Refuse a temporary name that is another's."""
        refuse_taken(self.folder, partial_path(self.name), self.role)

    def create(self) -> None:
        """Make the temporary file, take its whole space on the disk, and write the header."""
        try:
            self._file = HeldFile.create(self.folder, partial_path(self.name))
        except (FileExistsError, FileNotFoundError):
            self.refuse_taken()
            raise Refused(
                f"{self.temporary}: another job had this just now, and is over; run yours again"
            ) from None
        with named(self.temporary, f"be given its {self.nbytes} bytes"):
            self._allocate()
        self._held.write(self.header, 0)
        self._rewind()
        self.sync()
        refuse_locked(self.folder, self.name)  # now that nobody else can name a file so

    def _allocate(self) -> None:
        try:
            os.posix_fallocate(self._held.descriptor, 0, self.nbytes)
        except (OSError, AttributeError) as error:
            # Not every file system (and not macOS) can; pwrite then meets a full disk itself.
            unable = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
            if isinstance(error, OSError) and error.errno not in unable:
                raise
            self._held.truncate(self.nbytes)

    def reopen(self) -> bool:
        """Open the temporary file that an earlier run left; False where its header was damaged.

        A header follows from shape and dtype, so it is simply written again.
        """
        again = "what was finished is lost; give --overwrite instead of --resume to start again"
        try:
            self._file = HeldFile.reopen(self.folder, partial_path(self.name))
        except FileNotFoundError:
            raise Refused(f"{self.temporary}: is gone, and {again}") from None
        found = self._held.status.st_size
        if found != self.nbytes:
            raise Refused(
                f"{self.temporary}: expected the {self.nbytes} bytes that the unfinished job left, "
                f"found {found}: {again}"
            )
        self._held.check_alone()
        whole = self._has_its_header()
        if not whole:
            self._held.write(self.header, 0)
        self._rewind()
        refuse_locked(self.folder, self.name)
        return whole

    def discard(self) -> None:
        """Remove the temporary file that an unfinished job left, unless a job is at work on it."""
        remove_left(self.folder, partial_path(self.name))

    def has_name_of(self, other: "PartialFile") -> bool:
        """Whether what lies under the temporary name of another is the file of this one."""
        there = other.folder.status(partial_path(other.name))
        return there is not None and os.path.samestat(there, self._held.status)

    def abandon(self) -> None:
        """Remove the temporary file, if this run has it and it has not got its name."""
        if self._file is not None and self._file.name != self.name:
            self._file.remove()

    def _has_its_header(self) -> bool:
        return self._held.read(len(self.header), 0) == self.header

    def _rewind(self) -> None:
        self._written = len(self.header)
        self._hash = hashlib.sha256(self.header)

    def advance(self, data_bytes: int) -> str:
        """Read on to `data_bytes` bytes after the header, as if they had just been written.

        Returns the digest of the file up to there.
        """
        stop = len(self.header) + data_bytes
        while self._written < stop:
            part = self._held.read(min(_READ_BYTES, stop - self._written), self._written)
            if not part:
                raise Refused(
                    f"{self.temporary}: was cut short just now; see who writes there, and give "
                    "--overwrite instead of --resume to start again"
                )
            self._hash.update(part)
            self._written += len(part)
        return self.digest

    def rewind(self, data_bytes: int) -> None:
        """Go back to `data_bytes` bytes after the header; what follows will be written anew."""
        if self._written > len(self.header) + data_bytes:
            self._rewind()
        self.advance(data_bytes)

    def append(self, data: Any) -> None:
        """Write a contiguous buffer after what is there; it is durable only after `sync`."""
        self._held.write(data, self._written)
        self._hash.update(data)
        self._written += len(data)

    def sync(self) -> None:
        """Wait until all is on the disk, and see that the file is still the one of its name."""
        self._held.sync()
        self._held.check()

    def publish(self, overwrite: bool) -> None:
        """Give the finished file its own name; without `overwrite`, only if that is free."""
        if self._held.status.st_size != self.nbytes or not self._has_its_header():
            raise Refused(
                f"{self.temporary}: somebody else wrote to it while the job ran; see who does, and "
                "start again with --overwrite instead of --resume"
            )
        try:
            self._held.take_name(self.name, overwrite)
        except FileExistsError:
            raise UsageError(
                f"{self.role} {self.path}: appeared while the job ran; the result waits "
                "beside it: give --resume --overwrite to replace it"
            ) from None

    def is_published(self, digest: str) -> bool:
        """Whether an earlier run got as far as naming this file; tidies a name left over by it."""
        there = self.folder.status(self.name)
        if there is None:
            return False
        temporary = self.folder.status(partial_path(self.name))
        if temporary is not None:
            if not os.path.samestat(temporary, there):
                return False
            self.discard()
            return True
        with named(self.path, "be read"), open(self.path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file is not None:
            self._file.close()
