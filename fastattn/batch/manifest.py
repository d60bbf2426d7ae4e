"""The record beside an output in the making: what the job is, and which chunks are safely done.

One line per entry, `crc32 json`, appended and synced: first the job (inputs, options, outputs,
borders), then one line per finished chunk with the digests of the outputs up to its end. A line
that a crash tore fails its checksum, and reading stops there; one whose checksum is right and whose
content is not what a job writes is an error. The file is locked while a job runs.
"""

import contextlib
import json
import os
import zlib
from typing import Any

from fastattn.batch import schema
from fastattn.batch.errors import JobError, Refused, UsageError, cut
from fastattn.batch.folders import Folder, HeldFile, remove_left
from fastattn.batch.writers import partial_path

FORMAT = "fastattn job manifest 2"
_ANY_FORMAT = FORMAT.rstrip("0123456789")

# What is read at once, whatever the size of the file.
_JOB_BYTES = 1 << 20
_RECORD_BYTES = 1 << 10
_READ_BYTES = 1 << 20

Digests = dict[str, str]


def manifest_path(path: str) -> str:
    """Where the manifest of an output lies."""
    return partial_path(path) + ".manifest"


class Manifest:
    """The open, locked manifest of the output of that name in a folder.

    Attributes
    ----------
    job : dict or None
        The first line: None when there is none, or it was torn, or `fault` says what is wrong.
    fault : str or None
        Why what lies there cannot be resumed, but may be discarded.
    records : list of dict
        For each finished chunk, in order, the digest of each output up to the chunk's end; empty
        until `read_records`.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder = folder
        self.name = manifest_path(name)
        self.path = folder.join(self.name)
        self.job: dict[str, Any] | None = None
        self.fault: str | None = None
        self.records: list[Digests] = []
        self._claimed: Any = None
        self._end = 0
        self._file = self._open_locked()
        try:
            self._read_job()
        except BaseException:
            self.close()
            raise

    def _open_locked(self) -> HeldFile:
        for _ in range(100):  # the job that has it may be over, and the file gone, at any moment
            with contextlib.suppress(FileNotFoundError):
                return HeldFile.reopen(self.folder, self.name)
            with contextlib.suppress(FileExistsError, FileNotFoundError):
                return HeldFile.create(self.folder, self.name)
        raise JobError(f"{self.path}: comes and goes; see who writes there, and run the job again")

    @property
    def is_there(self) -> bool:
        """Whether an unfinished job is recorded, of use or not."""
        return self.job is not None or self.fault is not None

    def is_present(self) -> bool:
        """Whether the file still lies there."""
        return self._file.is_named(self.name)

    def _read_job(self) -> None:
        self._file.check_alone()
        head = self._file.read(_JOB_BYTES, 0)
        line = head[: head.find(b"\n") + 1]
        try:
            entry = _parse(line)
            self._claimed = entry
            if entry is None:
                if self._file.status.st_size > _JOB_BYTES or not _is_torn(head):
                    raise JobError(
                        f"{self.path}: is no manifest of a job; if nothing else needs it, remove "
                        "it and run the job again"
                    )
                return
            self._check_format(entry)
            if self.fault is None:
                schema.JOB(entry, "")
                _check_form(entry, line)
                self.job, self._end = entry, len(line)
        except schema.Misfit as misfit:
            self.fault = self._not_written_so(misfit)

    def _check_format(self, entry: dict[str, Any]) -> None:
        found = entry.get("format")
        if type(found) is str and found != FORMAT and found.startswith(_ANY_FORMAT):
            self.fault = (
                f"{self.path}: the unfinished job was begun by another version of fastattn, which "
                f"writes {cut(ascii(found), 60)} where this one reads '{FORMAT}': finish it with "
                "that version, or give --overwrite instead of --resume to start again"
            )
        elif found != FORMAT:
            raise schema.Misfit("format", f"'{FORMAT}'", found)

    def _not_written_so(self, misfit: ValueError) -> str:
        return (
            f"{self.path}: is not as a job writes it: {misfit}; give --overwrite instead of "
            "--resume to start again"
        )

    def claims(self, output: str, file: str) -> bool:
        """Whether the job that lies here, of use or not, says that this output is its own."""
        if output == "out":  # beside which it lies
            return self.is_there
        found = self._claimed
        for name in ("outputs", output, "file"):
            found = found.get(name) if isinstance(found, dict) else None
        return bool(found == file)

    def read_records(self, most: int) -> None:
        """Read the chunk records, of which there are at most so many."""
        assert self.job is not None
        check, rest, offset = schema.record_of(self.job), b"", self._end
        records: list[Digests] = []
        while True:
            data = self._file.read(_READ_BYTES, offset)
            offset += len(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                try:
                    entry = _parse(line + b"\n") if len(line) <= _RECORD_BYTES else None
                    if entry is None:
                        data = b""
                        break
                    field = f"record {len(records)}"
                    check(entry, field)
                    _check_form(entry, line + b"\n", field)
                    if len(records) == most:
                        raise schema.Misfit(field, f"absent, of a job of {most} chunks", entry)
                except schema.Misfit as misfit:
                    raise Refused(self._not_written_so(misfit)) from misfit
                records.append(entry)
                self._end += len(line) + 1
            if not data or len(rest) > _RECORD_BYTES:
                self.records = records
                return

    def clear(self) -> None:
        """Forget the job and all that was recorded."""
        self._file.truncate(0)
        self._file.sync()
        self._end = 0
        self.job = self.fault = self._claimed = None
        self.records = []

    def start(self, job: dict[str, Any]) -> None:
        """Record the job, in an empty manifest."""
        if len(_line(job)) > _JOB_BYTES:
            raise UsageError(
                "the options are too many to be recorded with the job: give --scale, "
                "--alibi-slopes and --sinks as files"
            )
        self._append(job)
        self.job = job

    def record(self, digests: Digests) -> None:
        """Record one more finished chunk, durably. Its data must be synced before."""
        self._append(digests)
        self.records.append(digests)

    def forget(self, count: int) -> None:
        """Keep only the first `count` chunk records, and nothing behind them."""
        self._end -= sum(len(_line(record)) for record in self.records[count:])
        self._file.truncate(self._end)
        self.records = self.records[:count]

    def _append(self, entry: dict[str, Any]) -> None:
        line = _line(entry)
        self._file.write(line, self._end)
        self._file.sync()
        self._file.check()
        self._end += len(line)

    def remove(self) -> None:
        """Remove the manifest; the job is over."""
        self._file.remove()

    def close(self) -> None:
        """Close the file and so give up its lock; a second call does nothing."""
        self._file.close()


def discard_unfinished(out: str) -> None:
    """Remove what an unfinished job on an output left, unless one is at work on it."""
    path = os.path.realpath(out)
    name = os.path.basename(path)
    with (
        contextlib.suppress(JobError, FileNotFoundError),
        contextlib.closing(Folder(os.path.dirname(path))) as folder,
        contextlib.closing(HeldFile.reopen(folder, manifest_path(name))) as manifest,
    ):
        remove_left(folder, partial_path(name))
        manifest.remove()


def difference(found: Any, recorded: Any, name: str = "") -> str | None:
    """Say where the job at hand first differs from the recorded one; None when it does not.

    When an input was written does not count: what it holds does.
    """
    if isinstance(found, dict) and isinstance(recorded, dict):
        for key in [*recorded, *(key for key in found if key not in recorded)]:
            inner = f"{name} {key}".strip()
            same = key == "mtime_ns" and key in found and key in recorded
            reason = None if same else difference(found.get(key), recorded.get(key), inner)
            if reason:
                return reason
        return None
    if found == recorded and isinstance(found, bool) == isinstance(recorded, bool):
        return None
    return f"{name} is {_show(found)} now and was {_show(recorded)} when the job began"


def _show(value: Any) -> str:
    return "absent" if value is None else cut(json.dumps(value))


def _line(entry: dict[str, Any]) -> bytes:
    text = json.dumps(entry, allow_nan=False).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parse(line: bytes) -> dict[str, Any] | None:
    """Read a line; None where it was torn."""
    text = line[9:-1]
    if not line.endswith(b"\n") or line[:9] != b"%08x " % zlib.crc32(text):
        return None
    try:
        entry = json.loads(text.decode("ascii"))
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise schema.Misfit("line", f"JSON ({cut(reason, 80)})", cut(text, 80)) from error
    if type(entry) is not dict:
        raise schema.Misfit("line", "a table", entry)
    return entry


def _check_form(entry: dict[str, Any], line: bytes, field: str = "line") -> None:
    """Refuse other spellings of the same: a name that stands twice, spaces, 1e2 for 100.0."""
    if _line(entry) != line:
        raise schema.Misfit(field, "spelled as JSON is written here", cut(line[9:], 80))


def _is_torn(data: bytes) -> bool:
    """Whether `data` can be what a crash left of a manifest's first line: cut, or with holes."""
    head = data.split(b"\0")[0].split(b"\n")[0]
    start = f'{{"format": "{_ANY_FORMAT}'.encode()
    return not head[:8].strip(b"0123456789abcdef") and start.startswith(head[9 : 9 + len(start)])
