"""Offline jobs: attention from files to files, in chunks of bounded memory, safe to kill.

`readers` and `writers` know files, `folders` makes, locks and names those that are written,
`borders` cuts a job, `manifest` remembers what is done (`schema` says what it may hold),
`unfinished` is a job on the disk, and `runner` does the work through the public face of fastattn.
The command ``fastattn run`` and the examples call `run_job`, and hardly anything else in here.
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
