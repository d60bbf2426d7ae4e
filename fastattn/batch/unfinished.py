"""A job on the disk: begun or found again, its chunks recorded, its outputs named, or left.

The order on the disk is what makes a job safe to kill at any moment. The manifest says what the job
is before any file of it is made, so that what lies there is known to be its own; data is written
and synced before its chunk is recorded; the outputs get their names after the last record; the
manifest goes when they have them.
"""

import os
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np

import fastattn
from fastattn.batch.attend import scratch_bytes
from fastattn.batch.borders import Borders, choose_borders, memory_needed
from fastattn.batch.errors import JobError, Refused, UsageError
from fastattn.batch.folders import Folder
from fastattn.batch.inputs import Inputs, same_outputs
from fastattn.batch.job import Job
from fastattn.batch.manifest import FORMAT, Digests, Manifest, difference, manifest_path
from fastattn.batch.progress import Progress
from fastattn.batch.readers import DIGEST_BYTES
from fastattn.batch.schema import plain
from fastattn.batch.units import format_size
from fastattn.batch.writers import PartialFile, final_path, refuse_existing

_GO_ON = "run the same command with --resume to go on"


def kept_before(job: Job) -> str:
    """Say what lies there of a job that has not looked yet."""
    there = os.path.lexists(manifest_path(os.path.realpath(job.out)))
    kept = f"the unfinished job on this output is kept as it was: {_GO_ON}"
    return kept if there else "nothing was left behind"


class Unfinished:
    """The outputs and the manifest of a job, locked; `stack` closes them.

    Attributes
    ----------
    borders : Borders
        How the job is cut, from `prepare` on.
    resumed : int
        Chunks that an earlier run had finished.
    published : bool
        Whether the outputs have their names.
    digests : dict
        Of the finished outputs.
    """

    borders: Borders
    digests: Digests

    def __init__(
        self, job: Job, inputs: Inputs, call: Any, progress: Progress, stack: ExitStack
    ) -> None:
        self.job = job
        self.inputs = inputs
        self.call = call
        self.progress = progress
        self.resumed = 0
        self.published = False
        self._begun = False  # what lies on the disk was begun by this run
        self._discarding = False  # ... or is being removed by it
        self.outputs: dict[str, PartialFile] = {}
        shape = inputs.output_shape
        wanted = {"out": (job.out, "output", inputs.dtype, shape)}
        if job.lse_out:
            wanted["lse"] = (job.lse_out, "lse output", inputs.lse_dtype, shape[:-1])
        for name, (given, role, dtype, lengths) in wanted.items():
            path = final_path(given)
            folder = Folder(os.path.dirname(path))
            stack.callback(folder.close)
            file = PartialFile(role, folder, os.path.basename(path), dtype, lengths)
            stack.callback(file.close)
            self.outputs[name] = file
        out = self.outputs["out"]
        self.manifest = Manifest(out.folder, out.name)
        stack.callback(self.manifest.close)

    def prepare(self) -> None:
        """Start a job, or find where an earlier run of it stopped."""
        job, manifest = self.job, self.manifest
        if manifest.is_there and (job.resume or not job.overwrite):
            if manifest.fault:
                raise Refused(manifest.fault)
            if not job.resume:
                raise UsageError(
                    f"{manifest.path}: an unfinished job on this output was left here; give "
                    "--resume to go on with it, or --overwrite to discard it and start again"
                )
            self._resume()
            return
        if job.resume:
            self.progress.note("no unfinished job was found; starting from the beginning")
        earlier = []
        for name, file in self.outputs.items():
            refuse_existing(file.path, job.overwrite)
            if manifest.claims(name, self._beside(file)):
                earlier.append(file)
            else:
                file.refuse_taken()
        self.borders = choose_borders(
            self.inputs.layout, job.max_memory, self._scratch, job.chunk_rows
        )
        self._begin(earlier)

    def _begin(self, earlier: list[PartialFile]) -> None:
        """Record the job, then make its files: what lies there is then known to be its own."""
        description = self._description(self.borders)
        self._discarding = bool(earlier)
        for file in reversed(earlier):  # another job may be at work on any but the first
            file.discard()
        if earlier:
            self._sync_folders()
        self.manifest.clear()
        self._begun = True
        self.manifest.start(description)
        self._sync_folders()
        self._create()

    def _create(self) -> None:
        first, *others = self.outputs.values()
        first.create()
        for file in others:
            if first.has_name_of(file):  # by another path, or in a folder that knows no capitals
                raise same_outputs(self.job)
            file.create()
        self._sync_folders()

    def _sync_folders(self) -> None:
        for file in self.outputs.values():
            file.folder.sync()

    def _resume(self) -> None:
        manifest, layout = self.manifest, self.inputs.layout
        assert manifest.job is not None
        self.borders = Borders(**manifest.job["borders"])
        reason = difference(self._description(self.borders), manifest.job)
        if reason is None and (misfit := self.borders.misfit(layout)):
            reason = f"its borders make no sense: {misfit}"
        if reason:
            raise Refused(
                f"{manifest.path}: the unfinished job cannot be resumed: {reason}; restore what it "
                "was, or give --overwrite instead of --resume to start again"
            )
        needed = memory_needed(layout, self.borders, self._scratch)
        if needed > self.job.max_memory:
            raise UsageError(
                f"the borders of the unfinished job need {format_size(needed)}; give --max-memory "
                f"{-(-needed // 2**20)}M or more, or --overwrite instead of --resume to start "
                "again with smaller chunks"
            )
        count = self.borders.count(layout.extents)
        manifest.read_records(count)
        records = manifest.records
        if len(records) == count and self._find_published():
            return
        for file in self.outputs.values():
            refuse_existing(file.path, self.job.overwrite, "--resume ")
        self._note_times(manifest.job["inputs"])
        safe = self._verify() if records else self._start_over()
        if safe < len(records):
            self.progress.note(
                f"{len(records) - safe} recorded chunks are damaged; computing them again"
            )
        manifest.forget(safe)
        self.resumed = safe
        self.progress.note(f"resuming after {safe} of {count} chunks")

    def _note_times(self, recorded: dict[str, Any]) -> None:
        """Say where a change might have been missed."""
        for role, file in self.inputs.files.items():
            touched = file.identity()["mtime_ns"] != recorded[role]["mtime_ns"]
            if touched and file.status.st_size > DIGEST_BYTES:
                self.progress.note(
                    f"{file.name}: has another time than when the job began; "
                    f"{format_size(DIGEST_BYTES)} of its {format_size(file.status.st_size)} were "
                    "compared and are what they were"
                )

    def _start_over(self) -> int:
        """Make the files of a job that had finished nothing, whichever of them it had."""
        for file in self.outputs.values():
            file.discard()
        self._create()
        return 0

    def _find_published(self) -> bool:
        """Whether the earlier run was killed while it gave the outputs their names."""
        last = self.manifest.records[-1]
        named = {name: file.is_published(last[name]) for name, file in self.outputs.items()}
        if not any(named.values()):
            return False
        for name, file in self.outputs.items():
            if not named[name]:
                file.reopen()
                if file.advance(file.nbytes - len(file.header)) != last[name]:
                    raise Refused(
                        f"{file.temporary}: is damaged, while the other output has its name; give "
                        "--overwrite instead of --resume to start again"
                    )
                file.publish(self.job.overwrite)
        self._sync_folders()
        self.resumed = len(self.manifest.records)
        self.published = True
        self.digests = last
        return True

    def _verify(self) -> int:
        """Count the recorded chunks whose bytes are still those that were recorded."""
        ends = [0]
        for index in range(len(self.manifest.records)):
            ends.append(ends[-1] + self.borders.chunk(self.inputs.layout.extents, index).row_count)
        safe = len(self.manifest.records)
        for name, file in self.outputs.items():
            if not file.reopen():
                self.progress.note(f"{file.temporary}: its header was damaged; written again")
            for index in range(safe):
                digest = file.advance(ends[index + 1] * self._row_bytes(name))
                if digest != self.manifest.records[index][name]:
                    safe = index
                    break
        for name, file in self.outputs.items():
            file.rewind(ends[safe] * self._row_bytes(name))
        return safe

    def _row_bytes(self, name: str) -> int:
        inputs = self.inputs
        if name == "lse":
            return inputs.lse_dtype.itemsize
        return inputs.dtype.itemsize * inputs.layout.value_features

    def _description(self, borders: Borders) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "numerics_version": fastattn.numerics_version,
            "backend": self.call.backend,
            # Another arithmetic: of this CPU, or asked for by the environment.
            "bfloat16_dot": self.call.way is not None and self.call.way.products == "pairs",
            "inputs": {role: file.identity() for role, file in self.inputs.files.items()},
            "options": {name: plain(option) for name, option in self.job.options().items()},
            "outputs": {
                name: {"file": self._beside(file), "bytes": file.nbytes}
                for name, file in self.outputs.items()
            },
            "borders": borders._asdict(),
        }

    def _beside(self, file: PartialFile) -> str:
        """Return where an output lies, seen from the manifest."""
        return os.path.relpath(file.path, self.manifest.folder.path)

    def record(self, results: list[np.ndarray], rows: int) -> None:
        """Write what was computed of the next chunk, and record it when it is on the disk."""
        for (name, file), result in zip(self.outputs.items(), results, strict=True):
            if result.dtype != file.dtype or result.nbytes != rows * self._row_bytes(name):
                raise JobError(
                    f"the backend gave {result.dtype} {result.shape} for {rows} rows of "
                    f"{file.role} {file.dtype} {file.shape}: a fault of fastattn, please report it"
                )
            file.append(np.ascontiguousarray(result).reshape(-1).view(np.uint8))
        for file in self.outputs.values():
            file.sync()
        self.manifest.record({name: file.digest for name, file in self.outputs.items()})

    def publish(self) -> None:
        """Give the outputs their names; the output proper comes last."""
        # Where the output proper is, everything is.
        for file in reversed(self.outputs.values()):
            file.publish(self.job.overwrite)
        self._sync_folders()
        self.published = True
        self.digests = self.manifest.records[-1]

    def finish(self) -> None:
        """Remove the manifest: the job is over."""
        self.manifest.remove()
        with suppress(JobError):  # the outputs have their names, durably
            self.manifest.folder.sync()

    def leave(self) -> str:
        """Remove what is of no use to anybody, and say what there is."""
        manifest = self.manifest
        try:
            for file in self.outputs.values():
                file.folder.check_place()
            if self.published and not manifest.is_present():
                return "the output is complete"
        except JobError as error:
            return str(error)
        if self._discarding and not self._begun:
            return "the unfinished job may be partly discarded: start again with --overwrite"
        if manifest.records:
            return f"{len(manifest.records)} finished chunks are kept: {_GO_ON}"
        if manifest.is_there and not self._begun:
            return f"the unfinished job on this output is kept: {_GO_ON}"
        left = []
        for path, remove in [
            *((file.temporary, file.abandon) for file in self.outputs.values()),
            (manifest.path, manifest.remove),
        ]:
            try:
                remove()
            except JobError:
                left.append(path)
        return f"left behind: {', '.join(left)}" if left else "nothing was left behind"

    def _scratch(self, borders: Borders) -> int:
        return scratch_bytes(self.inputs, borders)
