"""Runs a job: opens and checks everything, computes chunk by chunk, and says what became of it."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import fastattn
from fastattn.batch.attend import KeyCache, attend_streamed, attend_whole, check_call
from fastattn.batch.errors import JobError, Refused, UsageError
from fastattn.batch.inputs import check_paths, describe_inputs, open_inputs
from fastattn.batch.job import Job, Summary
from fastattn.batch.progress import Notes, Progress
from fastattn.batch.unfinished import Unfinished, kept_before


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a job; the text says what was left and how to go on."""


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
    ``max_memory`` are streamed through `fastattn.attention_state`. Every file that is written is
    locked, and is made where nothing was: a second job on one of them is refused.

    A resumed job goes on only where the inputs still hold what they held, wherever and whenever
    they were copied: the manifest records a SHA-256 of each, of all of it up to 64 MiB, else of
    1024 pieces of 64 KiB, evenly spaced: 50 ms a file where hashing runs at 1.3 GB/s. In larger
    files a change is found where it reaches any of the pieces, as every stretch longer than a
    thousandth of the file does; a shorter one may be missed.

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

    unfinished: Unfinished | None = None

    def __init__(self, job: Job, progress: Progress) -> None:
        self.job = job
        self.progress = progress
        self.start = time.monotonic()
        self.compute_seconds = 0.0
        self.computed_rows = 0

    def result(self) -> Summary:
        job = self.job
        with ExitStack() as stack, self._broken_off():
            files, small = open_inputs(job, stack)
            check_paths(job)
            call = check_call(job, files, small)
            inputs = describe_inputs(job, files, small, call)
            self.unfinished = Unfinished(job, inputs, call, self.progress, stack)
            self.unfinished.prepare()
            if not self.unfinished.published:
                self._compute(self.unfinished)
                for file in files.values():
                    file.check_unchanged()
                self.unfinished.publish()
            self.unfinished.finish()
            return self._summary(self.unfinished)

    def _compute(self, job: Unfinished) -> None:
        inputs, borders, layout = job.inputs, job.borders, job.inputs.layout
        chunks = range(job.resumed, borders.count(layout.extents))
        done = borders.chunk(layout.extents, chunks[0]).first_row if chunks else layout.total_rows
        self.progress.begin(layout.total_rows, done)
        self.computed_rows = layout.total_rows - done
        cache = KeyCache(inputs)
        try:
            for index in chunks:
                chunk = borders.chunk(layout.extents, index)
                attend = attend_whole if borders.part_keys is None else attend_streamed
                before = time.monotonic()
                results = attend(inputs, borders, chunk, cache, "lse" in job.outputs)
                self.compute_seconds += time.monotonic() - before
                job.record(results, chunk.row_count)
                del results  # not to be held while the next chunk is computed
                self.progress.advance(chunk.row_count)
        finally:
            self.progress.end()

    @contextmanager
    def _broken_off(self) -> Iterator[None]:
        """Leave something to resume, or nothing, and say which."""
        try:
            yield
        except KeyboardInterrupt as error:
            raise Interrupted(f"interrupted; {self._leave()}") from error
        except (UsageError, Refused):
            self._leave()
            raise
        except JobError as error:
            if self.unfinished is None:
                raise
            raise JobError(f"{error} ({self._leave()})") from error
        except MemoryError as error:
            left = self._leave()
            raise JobError(
                f"out of memory: {error}; give a smaller --max-memory ({left})"
            ) from error
        except BaseException:
            self._leave()
            raise

    def _leave(self) -> str:
        return kept_before(self.job) if self.unfinished is None else self.unfinished.leave()

    def _summary(self, done: Unfinished) -> Summary:
        job, seconds = self.job, time.monotonic() - self.start
        shapes = {role: list(file.shape) for role, file in done.inputs.files.items()}
        shapes |= {name: list(file.shape) for name, file in done.outputs.items()}
        count = done.borders.count(done.inputs.layout.extents)
        return Summary(
            out=done.outputs["out"].path,
            lse_out=done.outputs["lse"].path if "lse" in done.outputs else None,
            shapes=shapes,
            dtype=str(done.inputs.dtype),
            chunks=count,
            resumed_chunks=done.resumed,
            part_keys=done.borders.part_keys,
            max_memory=job.max_memory,
            seconds=seconds,
            compute_seconds=self.compute_seconds,
            rows_per_second=self.computed_rows / seconds,
            threads=int(getattr(done.call.plan, "workers", 1)),
            backend=done.call.backend,
            numerics_version=fastattn.numerics_version,
            checksum=done.digests["out"],
            lse_checksum=done.digests.get("lse"),
        )
