"""Offline jobs: attention from files to files, in chunks of bounded memory, safe to kill.

The command ``fastattn run`` and the examples call `run_job`, and hardly anything else in here;
the work is done through the public face of fastattn.

job.py          what is asked of a job, and its summary   units.py     2G as a number, and back
runner.py       opens and checks everything, computes chunk by chunk
attend.py       the calls a job is made of                borders.py   where it is cut
readers.py inputs.py   `.npy` files in boxes, and what each chunk needs of them
writers.py      an output in the making                   progress.py  a bar, lines, or nothing
folders.py      how any file that is written is made, locked, watched and named
manifest.py schema.py unfinished.py   what is recorded of a job, and the job on the disk
errors.py       what can go wrong, with its exit code

**Files.** An output gets its name when it is complete and is never replaced without `overwrite`.
Files that are written are locked, so that a second job on one of them is refused, and never made
through a link. Exit code 0 is done, 1 a failure of a file or the machine, 2 a request that cannot
work, 130 an interrupt. NumPy saves bfloat16 without its name, as raw bytes: `bfloat16` reads
them, and ``np.load("o.npy").view(ml_dtypes.bfloat16)`` what comes out.

**Resumed.** A killed job goes on with `resume` and ends with the same bytes. It is resumed only
on inputs that hold what they held, wherever and whenever they were copied. Each is known by a
SHA-256: of all of it up to 64 MiB, beyond that of 1024 pieces of 64 KiB, evenly spaced, which
takes 50 ms a file at 1.3 GB/s. What this misses: a change of a stretch shorter than a thousandth
of a large file may fall between the pieces; where such a file has another time than it had, the
job says so. Nor is a job resumed by another version of the numerics, or where bfloat16 is
multiplied otherwise.
"""

from fastattn.batch.errors import JobError, UsageError
from fastattn.batch.job import Job, Summary
from fastattn.batch.progress import Progress, progress_on
from fastattn.batch.runner import Interrupted, run_job
from fastattn.batch.units import format_size, parse_size

__all__ = [
    "Interrupted",
    "Job",
    "JobError",
    "Progress",
    "Summary",
    "UsageError",
    "format_size",
    "parse_size",
    "progress_on",
    "run_job",
]
