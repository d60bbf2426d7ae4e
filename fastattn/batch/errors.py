"""What can go wrong in a job, each with the exit code that the command line gives it."""

import contextlib
import errno
import os
from collections.abc import Iterator


class JobError(Exception):
    """A job that cannot start or go on; the text names the file, the finding and the way out."""

    exit_code = 1


class UsageError(JobError):
    """What was asked for cannot work, whatever the files hold."""

    exit_code = 2


_WAYS_OUT = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of the quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


@contextlib.contextmanager
def named(path: str, action: str) -> Iterator[None]:
    """Turn an operating system's error into a `JobError` that names the file and a way out."""
    try:
        yield
    except OSError as error:
        finding = os.strerror(error.errno) if error.errno else str(error)
        way_out = _WAYS_OUT.get(error.errno or 0, "check the disk")
        raise JobError(f"{path}: cannot {action}: {finding}; {way_out}") from error
