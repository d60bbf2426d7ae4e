"""The record beside an output in the making: what the job is, and which chunks are safely done.

One line per entry, `crc32 json`, appended and synced: first the job (inputs, options, outputs,
borders), then one line per finished chunk with the digests of the outputs up to its end. A line
that a crash tore fails its checksum, and reading stops there. The file is locked while a job runs.
"""

import errno
import fcntl
import json
import os
import zlib
from typing import Any

from fastattn.batch.errors import JobError, named
from fastattn.batch.writers import partial_path, write_all

FORMAT = "fastattn job manifest 1"

Digests = dict[str, str]


def manifest_path(path: str) -> str:
    """Where the manifest of an output lies."""
    return partial_path(path) + ".manifest"


class Manifest:
    """The open, locked manifest of the output at `path`.

    Attributes
    ----------
    job : dict or None
        The first line: None when there is none, or it was torn.
    records : list of dict
        For each finished chunk, in order, the digest of each output up to the chunk's end.
    """

    def __init__(self, path: str) -> None:
        self.path = manifest_path(path)
        self._descriptor = self._open_locked()
        self.job: dict[str, Any] | None = None
        self.records: list[Digests] = []
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _open_locked(self) -> int:
        while True:
            with named(self.path, "be created"):
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The job that held the lock may have finished and removed the file since.
                if os.fstat(descriptor).st_ino == os.stat(self.path).st_ino:
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise JobError(
                    f"{self.path}: another job is writing this output just now; wait for it, or "
                    "choose another output"
                ) from None
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    return descriptor  # a file system without locks
                os.close(descriptor)
                raise JobError(f"{self.path}: cannot be locked: {error.strerror}") from error
            os.close(descriptor)

    def _load(self) -> None:
        with named(self.path, "be read"):
            size = os.fstat(self._descriptor).st_size
            data = os.pread(self._descriptor, size, 0) if size else b""
        self._end = 0
        for line in data.splitlines(keepends=True):
            entry = _parse(line)
            if entry is None:
                break
            if self._end == 0:
                if entry.get("format") != FORMAT:
                    break
                self.job = entry
            else:
                self.records.append(entry)
            self._end += len(line)
        if data and self.job is None and not _is_torn(data):
            raise JobError(
                f"{self.path}: is no manifest that this version of fastattn reads; if nothing else "
                "needs it, remove it and run the job again"
            )

    def clear(self) -> None:
        """Forget the job and all that was recorded."""
        with named(self.path, "be emptied"):
            os.ftruncate(self._descriptor, 0)
            os.fsync(self._descriptor)
        self._end = 0
        self.job = None
        self.records = []

    def start(self, job: dict[str, Any]) -> None:
        """Record the job, in an empty manifest."""
        self._append(job)
        self.job = job

    def record(self, digests: Digests) -> None:
        """Record one more finished chunk, durably. Its data must be synced before."""
        self._append(digests)
        self.records.append(digests)

    def forget(self, count: int) -> None:
        """Keep only the first `count` chunk records."""
        job, kept = self.job, self.records[:count]
        assert job is not None
        self._end = len(_line(job)) + sum(len(_line(record)) for record in kept)
        with named(self.path, "be cut"):
            os.ftruncate(self._descriptor, self._end)
        self.records = kept

    def _append(self, entry: dict[str, Any]) -> None:
        line = _line(entry)
        with named(self.path, "take an entry"):
            write_all(self._descriptor, line, self._end)
            os.fsync(self._descriptor)
        self._end += len(line)

    def remove(self) -> None:
        """Remove the manifest; the job is over."""
        with named(self.path, "be removed"):
            os.unlink(self.path)

    def close(self) -> None:
        """Close the file and so give up its lock; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def difference(found: Any, recorded: Any, name: str = "") -> str | None:
    """Say where the job at hand first differs from the recorded one; None when it does not."""
    if isinstance(found, dict) and isinstance(recorded, dict):
        for key in [*recorded, *(key for key in found if key not in recorded)]:
            inner = f"{name} {key}".strip()
            reason = difference(found.get(key), recorded.get(key), inner)
            if reason:
                return reason
        return None
    if found == recorded:
        return None
    return f"{name} is {_show(found)} now and was {_show(recorded)} when the job began"


def _show(value: Any) -> str:
    return "absent" if value is None else json.dumps(value)


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> dict[str, Any] | None:
    text = line[9:-1]
    if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(text):
        return None
    entry = json.loads(text)
    return entry if isinstance(entry, dict) else None


def _is_torn(data: bytes) -> bool:
    """Whether `data` can be what a crash left of a manifest's first line: cut, or with holes."""
    head = data.split(b"\0")[0].split(b"\n")[0]
    start = f'{{"format": "{FORMAT.rstrip("0123456789")}'.encode()
    return not head[:8].strip(b"0123456789abcdef") and start.startswith(head[9 : 9 + len(start)])
