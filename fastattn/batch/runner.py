"""Runs a job: opens and checks everything, cuts it, computes, writes, records, and names last.

The order on the disk is what makes a job safe to kill at any moment: data is written and synced
before its chunk is recorded; the outputs get their names after the last record; the manifest goes
when they have them.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy as np

import fastattn
from fastattn.batch.attend import KeyCache, attend_streamed, attend_whole, check_call, scratch_bytes
from fastattn.batch.borders import Borders, choose_borders, memory_needed
from fastattn.batch.errors import JobError, UsageError
from fastattn.batch.inputs import check_paths, describe_inputs, open_inputs
from fastattn.batch.job import Job, Summary
from fastattn.batch.manifest import FORMAT, Manifest, difference
from fastattn.batch.progress import Notes, Progress
from fastattn.batch.units import format_size
from fastattn.batch.writers import PartialFile, final_path, refuse_existing, sync_folder


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a job; the text says what was left and how to go on."""


class _AnotherJob(JobError):
    """What lies there was begun by another job; its text says all the ways out there are."""


def run_job(job: Job, progress: Progress | None = None) -> Summary:
    """Compute attention from files to a file in chunks of bounded memory.

    The output is built under a temporary name beside its own, chunk by chunk, each synced and then
    recorded in a manifest; it gets its name last. A job that was killed is resumed with
    ``resume=True`` and ends with the same bytes. The bits are those of one call of
    `fastattn.attention` on the whole arrays, wherever the chunk borders lie.

    Parameters
    ----------
    job : Job
        What to compute, from where, to where.
    progress : Progress, optional
        Told how far the work is; None: nobody is.

    Returns
    -------
    Summary
        Shapes, chunks, speed and checksums.

    Raises
    ------
    UsageError
        When the request cannot work: options that do not fit the shapes, an existing output
        without ``overwrite``, too little ``max_memory``.
    JobError
        When a file is missing, damaged or changes, or the disk fails. Nothing is left under the
        output's name.
    Interrupted
        On Ctrl-C.

    Notes
    -----
    Inputs are read with `pread`, so that they may be larger than memory; keys that do not fit into
    ``max_memory`` are streamed through `fastattn.attention_state`. The job holds one lock, on its
    manifest: a second job on the same output is refused.

    Examples
    --------
    >>> import numpy as np, os, tempfile
    >>> from fastattn.batch import Job, run_job
    >>> folder = tempfile.mkdtemp()
    >>> paths = {name: os.path.join(folder, name + ".npy") for name in ("query", "key", "value")}
    >>> out = os.path.join(folder, "out.npy")
    >>> np.save(paths["query"], np.zeros((3, 2), np.float32))
    >>> np.save(paths["key"], np.ones((4, 2), np.float32))
    >>> np.save(paths["value"], np.arange(4, dtype=np.float32)[:, None])
    >>> run_job(Job(**paths, out=out)).chunks
    1
    >>> np.load(out).ravel()
    array([1.5, 1.5, 1.5], dtype=float32)
    """
    return _Run(job, progress or Notes()).result()


class _Run:
    """One run of a job, from its checks to its summary."""

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job = job
        self.progress = progress
        self.start = time.monotonic()
        self.resumed = 0
        self.compute_seconds = 0.0

    def result(self) -> Summary:
        job = self.job
        with ExitStack() as stack:
            files, small = open_inputs(job, stack)
            check_paths(job)
            self.execution = check_call(job, files, small)
            self.inputs = describe_inputs(job, files, small, self.execution)
            self._open_outputs(stack)
            self.manifest = Manifest(self.outputs["out"].path)
            stack.callback(self.manifest.close)
            with self._broken_off():
                self._prepare()
                if not self._published:
                    self._compute()
                    for file in self.inputs.files.values():
                        file.check_unchanged()
                    self._publish()
                self.manifest.remove()
                with suppress(JobError):  # the outputs have their names, durably
                    sync_folder(self.manifest.path)
            return self._summary()

    def _open_outputs(self, stack: ExitStack) -> None:
        job, inputs = self.job, self.inputs
        shape, out = inputs.output_shape, final_path(job.out)
        self.outputs = {"out": PartialFile("output", out, inputs.dtype, shape)}
        if job.lse_out:
            path = final_path(job.lse_out)
            self.outputs["lse"] = PartialFile("lse output", path, inputs.lse_dtype, shape[:-1])
        for file in self.outputs.values():
            stack.callback(file.close)

    def _description(self, borders: Borders) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "numerics_version": fastattn.numerics_version,
            "backend": self.execution.backend,
            # Another arithmetic: of this CPU, or asked for by the environment.
            "bfloat16_dot": self.execution.problem.in_pairs,
            "inputs": {role: file.identity() for role, file in self.inputs.files.items()},
            "options": self.job.options(),
            "outputs": {
                name: {
                    "file": os.path.relpath(file.path, os.path.dirname(self.manifest.path)),
                    "bytes": file.nbytes,
                }
                for name, file in self.outputs.items()
            },
            "borders": borders._asdict(),
        }

    def _prepare(self) -> None:
        """Start a job, or find where an earlier run of it stopped."""
        job, manifest = self.job, self.manifest
        self._published = False
        if manifest.job is not None and not job.resume and not job.overwrite:
            raise UsageError(
                f"{manifest.path}: an unfinished job on this output was left here; give --resume "
                "to go on with it, or --overwrite to discard it and start again"
            )
        if manifest.job is not None and job.resume:
            self._resume()
            return
        if job.resume:
            self.progress.note("no unfinished job was found; starting from the beginning")
        for file in self.outputs.values():
            refuse_existing(file.path, job.overwrite)
        self.borders = choose_borders(
            self.inputs.layout, job.max_memory, self._scratch, job.chunk_rows
        )
        manifest.clear()
        sync_folder(manifest.path)
        for file in self.outputs.values():
            file.create()
        manifest.start(self._description(self.borders))
        sync_folder(manifest.path)

    def _resume(self) -> None:
        manifest = self.manifest
        assert manifest.job is not None
        self.borders = Borders(**manifest.job["borders"])
        reason = difference(self._description(self.borders), manifest.job)
        extents = self.inputs.layout.extents
        if reason:
            raise _AnotherJob(
                f"{manifest.path}: the unfinished job cannot be resumed: {reason}; restore what it "
                "was, or give --overwrite instead of --resume to start again"
            )
        needed = memory_needed(self.inputs.layout, self.borders, self._scratch)
        if needed > self.job.max_memory:
            raise UsageError(
                f"the borders of the unfinished job need {format_size(needed)}; give --max-memory "
                f"{-(-needed // 2**20)}M or more, or --overwrite to start again with smaller chunks"
            )
        records = manifest.records
        if len(records) == self.borders.count(extents) and self._find_published():
            return
        for file in self.outputs.values():
            refuse_existing(file.path, self.job.overwrite, "--resume ")
        safe = self._verify()
        if safe < len(records):
            self.progress.note(
                f"{len(records) - safe} recorded chunks are damaged; computing them again"
            )
            manifest.forget(safe)
        self.resumed = safe
        self.progress.note(f"resuming after {safe} of {self.borders.count(extents)} chunks")

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
                    raise JobError(f"{file.temporary}: is damaged; start again with --overwrite")
                file.publish(self.job.overwrite)
        sync_folder(self.outputs["out"].path)
        self.resumed = len(self.manifest.records)
        self._published = True
        self._digests = last
        return True

    def _verify(self) -> int:
        """Count the recorded chunks whose bytes are still those that were recorded."""
        ends = [0]
        for index in range(len(self.manifest.records)):
            ends.append(ends[-1] + self.borders.chunk(self.inputs.layout.extents, index).row_count)
        safe = len(self.manifest.records)
        for name, file in self.outputs.items():
            file.reopen()
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

    def _compute(self) -> None:
        layout, borders, manifest = self.inputs.layout, self.borders, self.manifest
        chunks = range(len(manifest.records), borders.count(layout.extents))
        done = borders.chunk(layout.extents, chunks[0]).first_row if chunks else layout.total_rows
        self.progress.begin(layout.total_rows, done)
        self._first_row = done
        cache = KeyCache(self.inputs)
        try:
            for index in chunks:
                chunk = borders.chunk(layout.extents, index)
                attend = attend_whole if borders.part_keys is None else attend_streamed
                before = time.monotonic()
                results = attend(self.inputs, borders, chunk, cache, "lse" in self.outputs)
                self.compute_seconds += time.monotonic() - before
                self._write(results, chunk.row_count)
                del results  # not to be held while the next chunk is computed
                self.progress.advance(chunk.row_count)
        finally:
            self.progress.end()
        self._digests = {name: file.digest for name, file in self.outputs.items()}

    def _write(self, results: list[np.ndarray], rows: int) -> None:
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

    def _publish(self) -> None:
        # The output proper comes last: where it is, everything is.
        for file in reversed(self.outputs.values()):
            file.publish(self.job.overwrite)
        for file in self.outputs.values():
            sync_folder(file.path)

    @contextmanager
    def _broken_off(self) -> Iterator[None]:
        """Leave something to resume, or nothing, and say which."""
        before = self.manifest.job
        try:
            yield
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted; {self._leave(before)}") from error
        except (UsageError, _AnotherJob):
            self._leave(before)
            raise
        except JobError as error:
            raise JobError(f"{error} ({self._leave(before)})") from error
        except MemoryError as error:
            left = self._leave(before)
            raise JobError(
                f"out of memory: {error}; give a smaller --max-memory ({left})"
            ) from error
        except BaseException:
            self._leave(before)
            raise

    def _leave(self, before: dict[str, Any] | None) -> str:
        if self.manifest.job is not None and not os.path.exists(self.manifest.path):
            return "the output is complete"
        done = len(self.manifest.records)
        untouched = before is not None and self.manifest.job is before
        if done or untouched:
            return f"{done} finished chunks are kept: run the same command with --resume to go on"
        for path in (*(file.temporary for file in self.outputs.values()), self.manifest.path):
            with suppress(OSError):
                os.unlink(path)
        return "nothing was left behind"

    def _scratch(self, borders: Borders) -> int:
        return scratch_bytes(self.inputs, borders)

    def _summary(self) -> Summary:
        job, seconds = self.job, time.monotonic() - self.start
        shapes = {role: list(file.shape) for role, file in self.inputs.files.items()}
        shapes |= {name: list(file.shape) for name, file in self.outputs.items()}
        count = self.borders.count(self.inputs.layout.extents)
        computed = 0 if self._published else self.inputs.layout.total_rows - self._first_row
        return Summary(
            out=self.outputs["out"].path,
            lse_out=self.outputs["lse"].path if "lse" in self.outputs else None,
            shapes=shapes,
            dtype=str(self.inputs.dtype),
            chunks=count,
            resumed_chunks=self.resumed,
            part_keys=self.borders.part_keys,
            max_memory=job.max_memory,
            seconds=seconds,
            compute_seconds=self.compute_seconds,
            rows_per_second=computed / seconds,
            threads=int(getattr(self.execution.plan, "workers", 1)),
            backend=self.execution.backend,
            numerics_version=fastattn.numerics_version,
            checksum=self._digests["out"],
            lse_checksum=self._digests.get("lse"),
        )
