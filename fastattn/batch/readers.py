"""`.npy` files, read in boxes with `pread` and never mapped.

A file that is cut short while the job runs is then an error of the job, where a mapping would end
the process with SIGBUS.
"""

import ast
import hashlib
import math
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from fastattn.batch.errors import JobError, UsageError, cut, named
from fastattn.batch.units import format_size

Range = tuple[int, int]

_MAGIC = b"\x93NUMPY"
_HEADER_BYTES = 1 << 16  # NumPy itself writes at most 64 KiB unless a structured dtype is stored
_READ_BYTES = 1 << 30  # Linux moves less than 2 GiB per call
# Runs that lie closer than this are fetched together and picked apart in memory: one call costs
# about a microsecond, the time in which some tens of KiB come from the page cache.
_GAP_BYTES = 1 << 16
SPAN_BYTES = 1 << 20
# A file is known again by what it holds: by all of it up to this size, else by as many bytes in
# evenly spaced pieces, head and end among them. Hashed at some 1.3 GB/s: 50 ms a file.
DIGEST_BYTES = 1 << 26
_DIGEST_PIECES = 1 << 10
_TEXT_BYTES = 1 << 24
_MOST_DIMS = 64  # of a NumPy array
_MOST_BYTES = 2**63 - 1  # of a file


class NpyFile:
    """One `.npy` file, its header checked against the size of the file before anything is read.

    Parameters
    ----------
    role : str
        What the file is to the job, for messages: ``query``, ``key``, ...
    path : str
        Where it lies.
    bfloat16 : bool
        Whether items of two raw bytes, as which NumPy saves bfloat16, are bfloat16.

    Raises
    ------
    JobError
        When it is missing, is no regular file, is no `.npy`, holds objects or records, or holds
        less than its header says.
    """

    def __init__(self, role: str, path: str, bfloat16: bool = False) -> None:
        self.role = role
        self.path = path
        self._raw_is_bfloat16 = bfloat16
        self._buffer = np.empty(0, np.uint8)
        with named(self.name, "be opened"):
            self._descriptor = _open(path)
        try:
            self._inspect()
        except BaseException:
            self.close()
            raise

    @property
    def name(self) -> str:
        """The role and the path, as messages show them."""
        return f"{self.role} file {self.path}"

    def _inspect(self) -> None:
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise JobError(
                f"{self.name}: expected a regular file, found {_kind(found.st_mode)}; "
                "save the array with numpy.save first"
            )
        self.status = found
        start = self._pread_some(12)
        self.data_offset, text = self._header_text(start)
        self.dtype, self.fortran_order, self.shape = self._parse_header(text)
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize
        held = found.st_size - self.data_offset
        claim = f"{self.name}: its header claims {self.dtype} {cut(self.shape)}, which is "
        if self.nbytes > _MOST_BYTES:
            raise JobError(f"{claim}more than any file holds; write it again")
        if self.nbytes > held:
            raise JobError(
                f"{claim}{self.nbytes} bytes ({format_size(self.nbytes)}), but only {held} follow "
                "it; the file was cut short or its header is wrong: write it again"
            )
        if self.nbytes < held:
            raise JobError(
                f"{claim}{self.nbytes} bytes, but {held} follow it; a file with several arrays or "
                "a wrong header: save the one array meant with numpy.save"
            )

    def _header_text(self, start: bytes) -> tuple[int, bytes]:
        if not start.startswith(_MAGIC) or len(start) < 12:
            raise JobError(
                f"{self.name}: expected a .npy file, found {_guess(start)}; "
                "save the array with `numpy.save(path, array)`"
            )
        version = (start[6], start[7])
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise JobError(
                f"{self.name}: .npy format {version[0]}.{version[1]} is not known (1.0 to 3.0 "
                "are); load it with NumPy and save it again"
            )
        prefix = 10 if version == (1, 0) else 12
        length = int.from_bytes(start[8:prefix], "little")
        text = b"" if length > _HEADER_BYTES else self._pread_some(length, prefix)
        if len(text) < length or length > _HEADER_BYTES:
            raise JobError(
                f"{self.name}: its header claims to be {length} bytes long, but the file has "
                f"{self.status.st_size} (and a header at most {_HEADER_BYTES}); write it again"
            )
        return prefix + length, text

    def _parse_header(self, text: bytes) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
        try:
            with warnings.catch_warnings(action="ignore"):  # the text is nobody's source
                header = ast.literal_eval(text.decode("utf-8").strip())
                descr, order, shape = (header[word] for word in ("descr", "fortran_order", "shape"))
                if not (_is_shape(shape) and type(order) is bool):
                    raise ValueError("shape or fortran_order has the wrong type")
                # Only records are described by anything else than a word.
                dtype = np.dtype(descr) if type(descr) is str else np.dtype("V")
        except Exception as error:  # whatever a parser of Python and one of dtypes may raise
            raise JobError(
                f"{self.name}: its .npy header cannot be read "
                f"({cut(error) or type(error).__name__}); write it again with numpy.save"
            ) from error
        if dtype.hasobject or dtype.names or dtype.subdtype or dtype.itemsize == 0:
            items = f"items of dtype {cut(ascii(descr))}"
            held = "pickled Python objects" if dtype.hasobject else items
            raise JobError(
                f"{self.name}: expected numbers, found {held}, which are never loaded; "
                "`numpy.save(path, array.astype(numpy.float32))`"
            )
        return self._named(dtype), order, shape

    def _named(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        """Tell bfloat16, whose name NumPy does not save, from other items of two raw bytes."""
        if dtype.kind != "V" or dtype.itemsize != 2:
            return dtype
        if not self._raw_is_bfloat16:
            raise JobError(
                f"{self.name}: expected numbers, found items of two raw bytes, which is how NumPy "
                "saves bfloat16: give --bfloat16 if they are, else "
                "`numpy.save(path, array.astype(numpy.float32))`"
            )
        try:
            from ml_dtypes import bfloat16
        except ImportError:
            raise UsageError(
                "bfloat16 needs the package ml_dtypes: `pip install ml_dtypes`"
            ) from None
        found: np.dtype[Any] = np.dtype(bfloat16)
        return found

    def _pread_some(self, length: int, offset: int = 0) -> bytes:
        with named(self.name, "be read"):
            return os.pread(self._descriptor, length, offset)

    def identity(self) -> dict[str, Any]:
        """Describe the file so that a manifest can know it again."""
        return {
            "bytes": self.status.st_size,
            "mtime_ns": self.status.st_mtime_ns,
            "dtype": self.dtype.str,
            "shape": list(self.shape),
            "fortran_order": self.fortran_order,
            "data_offset": self.data_offset,
            "content": self.content,
        }

    @cached_property
    def content(self) -> str:
        """SHA-256 of what the file held when it was first asked for, or of pieces of it."""
        return self._digest()

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for start, stop in _pieces(self.status.st_size):
            for offset in range(start, stop, SPAN_BYTES):
                length = min(SPAN_BYTES, stop - offset)
                data = self._pread_some(length, offset)
                if len(data) < length:
                    raise JobError(
                        f"{self.name}: was cut short while the job ran: expected {length} bytes at "
                        f"{offset}, found {len(data)}; restore it and run the job again"
                    )
                digest.update(data)
        return digest.hexdigest()

    def check_unchanged(self) -> None:
        """Refuse to go on when the file holds something else than at the start."""
        with named(self.name, "be looked at"):
            now = os.fstat(self._descriptor)
        # The last one tells of a change whose writer has set back the clock of the file.
        times = ("st_size", "st_mtime_ns", "st_ctime_ns")
        if all(getattr(now, time) == getattr(self.status, time) for time in times):
            return
        if now.st_size != self.status.st_size or self._digest() != self.content:
            raise JobError(
                f"{self.name}: was changed while the job ran ({self.status.st_size} bytes at the "
                f"start, {now.st_size} now); run the job again on files that stay as they are"
            )

    def read(self, box: Sequence[Range]) -> np.ndarray:
        """Read the half-open ranges `box`, one per axis.

        The array has the file's own dtype; a file in Fortran order gives a Fortran ordered array.
        It lies in a buffer that the next `read` of this file uses again: fresh memory for every
        chunk would cost as much in page faults as copying the data.
        """
        # A file in Fortran order is the C-ordered file of the reversed shape.
        turn = -1 if self.fortran_order else 1
        lengths, ranges = self.shape[::turn], tuple(box)[::turn]
        strides, stride = [], self.dtype.itemsize
        for length in reversed(lengths):
            strides.append(stride)
            stride *= length
        strides.reverse()
        shape = [stop - start for start, stop in ranges]
        size = math.prod(shape) * self.dtype.itemsize
        if self._buffer.size < size:
            self._buffer = np.empty(0, np.uint8)  # first, so that old and new are never both held
            self._buffer = np.empty(size, np.uint8)
        target = self._buffer[:size].view(self.dtype).reshape(shape)
        first = sum(start * step for (start, _), step in zip(ranges, strides, strict=True))
        with named(self.name, "be read"):
            self._fill(target, tuple(strides), self.data_offset + first)
        return target.T if self.fortran_order else target

    def _fill(self, target: np.ndarray, strides: tuple[int, ...], offset: int) -> None:
        if target.size == 0:
            return
        last = sum((n - 1) * step for n, step in zip(target.shape, strides, strict=True))
        span = last + self.dtype.itemsize
        if span == target.nbytes:
            self._pread_into(target.reshape(-1).view(np.uint8), offset)
        elif span <= SPAN_BYTES and span <= _GAP_BYTES * _runs(target, strides):
            buffer = np.empty(span, np.uint8)
            self._pread_into(buffer, offset)
            target[...] = np.ndarray(target.shape, target.dtype, buffer, strides=strides)
        else:
            for index in range(target.shape[0]):
                self._fill(target[index, ...], strides[1:], offset + index * strides[0])

    def _pread_into(self, target: np.ndarray, offset: int) -> None:
        done = 0
        while done < target.size:
            part = target[done : done + _READ_BYTES]
            got = os.preadv(self._descriptor, [part], offset + done)  # type: ignore[list-item]
            if got == 0:
                raise JobError(
                    f"{self.name}: was cut short while the job ran: expected {target.size} bytes "
                    f"at {offset}, found {done}; restore it and run the job again"
                )
            done += got

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_text(role: str, path: str) -> str:
    """Read a text file, which may not be endless."""
    name = f"{role} file {path}"
    with named(name, "be read"):
        descriptor = _open(path)
        try:
            kind = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(kind):
                raise JobError(f"{name}: expected a text file, found {_kind(kind)}")
            text = os.pread(descriptor, _TEXT_BYTES + 1, 0)
        finally:
            os.close(descriptor)
    if len(text) > _TEXT_BYTES:
        raise JobError(f"{name}: is larger than {format_size(_TEXT_BYTES)}; give the labels alone")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not ({error.reason})"
        raise JobError(f"{name}: expected lines of text in UTF-8, found that {reason}") from error


def _open(path: str) -> int:
    # Without O_NONBLOCK, opening a FIFO that nobody writes to would wait for ever.
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_shape(shape: Any) -> bool:
    counts = isinstance(shape, tuple) and all(type(length) is int for length in shape)
    return counts and len(shape) <= _MOST_DIMS and all(0 <= length < 2**63 for length in shape)


def _pieces(size: int) -> Iterator[Range]:
    """Yield the parts of a file of this size by which it is known again."""
    if size <= DIGEST_BYTES:
        yield 0, size
        return
    length = DIGEST_BYTES // _DIGEST_PIECES
    for index in range(_DIGEST_PIECES):
        start = (size - length) * index // (_DIGEST_PIECES - 1)
        yield start, start + length


def _runs(target: np.ndarray, strides: tuple[int, ...]) -> int:
    """Count the contiguous runs of bytes in the file that make up `target`."""
    run, axis = target.itemsize, target.ndim
    while axis and (strides[axis - 1] == run or target.shape[axis - 1] == 1):
        axis -= 1
        run *= target.shape[axis]
    return math.prod(target.shape[:axis])


def _kind(mode: int) -> str:
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a named pipe",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
    }
    return kinds.get(stat.S_IFMT(mode), "something else")


def _guess(start: bytes) -> str:
    if not start:
        return "an empty file"
    if start.startswith(_MAGIC):
        return "only the first bytes of one"
    if start.startswith(b"PK"):
        return "a zip archive (an .npz? its arrays are `dict(numpy.load(path))`)"
    if start.startswith(b"\x80"):
        return "a pickle, which is never loaded"
    if start.startswith(b"\x89HDF"):
        return "an HDF5 file"
    return f"a file that begins with {start[:8]!r}"
