"""What can go wrong in a job, each with the exit code that the command line gives it."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from fastattn.batch.job import INTEGERS, OPTIONS, PER_HEAD, SEGMENTS


class JobError(Exception):
    """A job that cannot start or go on; the text names the file, the finding and the way out."""

    exit_code = 1

    def in_options(self) -> str:
        """Say it as the command line spells options."""
        return str(self)


class Refused(JobError):
    """What lies on the disk is another's, or of no use to the job; the text says all ways out."""


class Busy(Refused):
    """Another job writes the file just now."""


class UsageError(JobError):
    """What was asked for cannot work, whatever the files hold."""

    exit_code = 2


# Options whose names are no words of a sentence.
_NAMES = [name for name in (*OPTIONS, *INTEGERS, *PER_HEAD, *SEGMENTS) if "_" in name]
# How Python spells an option: alone, with a value, or to be filled in. Within an expression, such
# as ``key_lengths[:, None]``, a name stands for an array and stays.
_OPTION = re.compile(
    rf"(?<![\w(.-])(causal|{'|'.join(_NAMES)})"
    r'\b(?![\[(])(?:=(?:True|"?([\w.]*)"?))?'
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

        text = _OPTION.sub(option, self._reason).replace(", --", " --")
        return f"{text} (files: {self._files})"


def cut(found: object, most: int = 160) -> str:
    """Show what a file holds: at most so many characters, and none that moves a cursor."""
    try:
        text = str(found)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list in a list in ...
        text = f"a {type(found).__name__} too large to show"
    shown = text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"
    return "".join(c if c.isprintable() and c.isascii() else ascii(c)[1:-1] for c in shown)


_WAYS_OUT = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of the quota",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOENT: "check the path",
    errno.ELOOP: "it is a symbolic link, which is not followed here: remove it",
    errno.EISDIR: "remove the folder of that name",
    errno.ENXIO: "it is no regular file: remove it",
    errno.ENOTDIR: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


@contextlib.contextmanager
def named(path: str, action: str, but: type[OSError] | tuple[()] = ()) -> Iterator[None]:
    """Turn an operating system's error into a `JobError` that names the file and a way out.

    Errors of the type `but` are the caller's, and pass.
    """
    try:
        yield
    except but:
        raise
    except OSError as error:
        finding = os.strerror(error.errno) if error.errno else cut(error)
        way_out = _WAYS_OUT.get(error.errno or 0, "check the disk")
        raise JobError(f"{path}: cannot {action}: {finding}; {way_out}") from error
