"""What can go wrong in a job, each with the exit code that the command line gives it."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class JobError(Exception):
    """A job that cannot start or go on; the text names the file, the finding and the way out."""

    exit_code = 1

    def in_options(self) -> str:
        """Say it as the command line spells options."""
        return str(self)


class UsageError(JobError):
    """What was asked for cannot work, whatever the files hold."""

    exit_code = 2


# How Python spells an option: alone, with a value, or to be filled in. Within an expression, such
# as ``key_lengths[:, None]``, a name stands for an array and stays.
_OPTION = re.compile(
    r"(?<![\w(.-])(causal|enable_gqa|query_offset|query_segments|key_segments|key_lengths"
    r'|alibi_slopes)\b(?![\[(])(?:=(?:True|"?([\w.]*)"?))?'
)


class CallRefused(UsageError):
    """The public face refused the options of a job, or arrays of its files' shapes."""

    def __init__(self, reason: str, files: str) -> None:
        super().__init__(f"{reason} (files: {files})")
        self._reason, self._files = reason, files

    def in_options(self) -> str:
        """Say it as the command line spells options."""

        def option(found: re.Match[str]) -> str:
            return f"--{found[1].replace('_', '-')} {found[2] or ''}".rstrip()

        return f"{_OPTION.sub(option, self._reason)} (files: {self._files})"


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
