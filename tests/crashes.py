"""Runs one job over and over, and lets the n-th call that changes the disk end it.

A program of its own, because it forks: ``python crashes.py MODE FOLDER``. The modes are ``kill``
(SIGKILL, and what was not synced by then is lost), an errno's name (the call fails with it), and
``interrupt`` (Ctrl-C arrives in it); ``overwrite`` in front means that an older output is there.
After each death the job is resumed. One line of JSON per n says what was found.
"""

import dataclasses
import errno
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jobs

from fastattn.batch import Interrupted, JobError, run_job

CALLS = ("pwrite", "fsync", "posix_fallocate", "ftruncate", "replace", "link", "unlink")
ORIGINAL = {name: getattr(os, name) for name in CALLS}
OLD = b"an older output"


class Disk:
    """Counts the calls that change the disk, and ends the n-th of them."""

    def __init__(self, fatal, end):
        self.fatal, self.end = fatal, end
        self.calls = 0
        self.unsynced = []
        for name in CALLS:
            setattr(os, name, self.watch(name, ORIGINAL[name]))

    def watch(self, name, original):
        def watched(*arguments):
            self.calls += 1
            if self.calls == self.fatal:
                self.end(self)
            result = original(*arguments)
            if name == "pwrite":
                self.unsynced.append((arguments[0], arguments[2], result))
            elif name == "fsync":
                same = os.fstat(arguments[0]).st_ino
                self.unsynced = [
                    entry for entry in self.unsynced if os.fstat(entry[0]).st_ino != same
                ]
            return result

        return watched

    @staticmethod
    def restore():
        for name in CALLS:
            setattr(os, name, ORIGINAL[name])


def kill(disk):
    """Die, and take along what nobody waited for."""
    for descriptor, offset, length in disk.unsynced:
        ORIGINAL["pwrite"](descriptor, bytes(length), offset)
    os.kill(os.getpid(), signal.SIGKILL)


def fail(code):
    def end(disk):
        raise OSError(code, os.strerror(code))

    return end


def interrupt(disk):
    raise KeyboardInterrupt


def run_in_child(job, n):
    child = os.fork()
    if child == 0:
        Disk(n, kill)
        run_job(job)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return "died" if os.WIFSIGNALED(status) else "finished"


def run_here(job, n, end):
    Disk(n, end)
    try:
        run_job(job)
    except JobError as error:
        return f"error {error.exit_code}: {error}"
    except Interrupted as error:
        return f"interrupted: {error}"
    finally:
        Disk.restore()
    return "finished"


def state_of(path, expected):
    if not os.path.exists(path):
        return "absent"
    data = Path(path).read_bytes()
    return "complete" if data == expected else "old" if data == OLD else "WRONG"


def main(mode, folder):
    mode, overwrite = mode.removeprefix("overwrite "), mode.startswith("overwrite")
    job = jobs.save(
        Path(folder),
        jobs.arrays((2, 2, 9, 4), (2, 2, 7, 4), value_features=3),
        lse_out=os.path.join(folder, "lse.npy"),
        backend="reference",
        chunk_rows=9,
        overwrite=overwrite,
    )
    outputs = [job.out, job.lse_out]
    run_job(job)
    expected = [Path(path).read_bytes() for path in outputs]
    n, outcome = 0, ""
    while outcome != "finished":
        n += 1
        for name in jobs.names(Path(folder)):
            os.unlink(os.path.join(folder, name))
        if overwrite:
            for path in outputs:
                Path(path).write_bytes(OLD)
        if mode == "kill":
            outcome = run_in_child(job, n)
        else:
            end = interrupt if mode == "interrupt" else fail(getattr(errno, mode))
            outcome = run_here(job, n, end)
        after = [state_of(path, data) for path, data in zip(outputs, expected, strict=True)]
        left = sorted(jobs.names(Path(folder)))
        try:
            resumed = run_job(dataclasses.replace(job, resume=True)).resumed_chunks
        except JobError as error:
            resumed = str(error)
        at_last = [state_of(path, data) for path, data in zip(outputs, expected, strict=True)]
        rest = sorted(jobs.names(Path(folder)))
        report = {"n": n, "outcome": outcome, "after": after, "left": left}
        report |= {"resumed": resumed, "at_last": at_last, "rest": rest}
        print(json.dumps(report), flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
