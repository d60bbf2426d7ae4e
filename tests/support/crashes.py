"""Runs one job over and over, and lets the n-th call that changes the disk end it.

A program of its own, because it forks: ``python crashes.py MODE FOLDER``. The modes are ``kill``
(SIGKILL, and what was not synced by then is lost: bytes, and the names of new files), an errno's
name (the call fails with it), and ``interrupt`` (Ctrl-C arrives in it). ``overwrite`` in front
means that an older output is there, ``discard`` that an unfinished job is, which the one at hand
discards. After each death the job is resumed, and begun again where the refusal says so. One line
of JSON per n says what was found.
"""

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jobs

from fastattn.batch import Interrupted, JobError, run_job
from fastattn.batch.progress import Notes

CALLS = ("open", "pwrite", "fsync", "posix_fallocate", "ftruncate", "replace", "link", "unlink")
PLACES = dict.fromkeys(CALLS, os) | {"flock": fcntl}
ORIGINAL = {name: getattr(place, name) for name, place in PLACES.items()}
OLD = b"an older output"


class Disk:
    """Counts the calls that change the disk, and ends the n-th of them."""

    def __init__(self, fatal, end):
        self.fatal, self.end = fatal, end
        self.calls = 0
        self.unsynced = []
        self.unnamed = []
        for name, place in PLACES.items():
            setattr(place, name, self.watch(name, ORIGINAL[name]))

    def watch(self, name, original):
        def watched(*arguments, **options):
            created = name == "open" and arguments[1] & os.O_CREAT
            if name != "open" or created:
                self.calls += 1
                if self.calls == self.fatal:
                    self.end(self)
            result = original(*arguments, **options)
            if created:
                self.unnamed.append((arguments[0], options["dir_fd"]))
            elif name == "pwrite":
                self.unsynced.append((arguments[0], arguments[2], result))
            elif name == "fsync":
                same = os.fstat(arguments[0])
                self.unsynced = [
                    entry
                    for entry in self.unsynced
                    if not os.path.samestat(os.fstat(entry[0]), same)
                ]
                self.unnamed = [
                    entry
                    for entry in self.unnamed
                    if not os.path.samestat(os.fstat(entry[1]), same)
                ]
            return result

        return watched

    @staticmethod
    def restore():
        for name, place in PLACES.items():
            setattr(place, name, ORIGINAL[name])


def kill(disk):
    """Die, and take along what nobody waited for."""
    for descriptor, offset, length in disk.unsynced:
        ORIGINAL["pwrite"](descriptor, bytes(length), offset)
    for name, folder in disk.unnamed:
        ORIGINAL["unlink"](name, dir_fd=folder)
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


class Stop(Notes):
    """Interrupts a job when two chunks are done."""

    left = 2

    def advance(self, rows):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def break_off(job):
    """Leave an unfinished job."""
    try:
        run_job(dataclasses.replace(job, overwrite=False), Stop())
    except Interrupted:
        return
    raise AssertionError("not interrupted")


def state_of(path, expected):
    if not os.path.exists(path):
        return "absent"
    data = Path(path).read_bytes()
    return "complete" if data == expected else "old" if data == OLD else "WRONG"


def main(mode, folder):
    before, _, mode = mode.rpartition(" ")
    job = jobs.save(
        Path(folder),
        jobs.arrays((2, 2, 9, 4), (2, 2, 7, 4), value_features=3),
        lse_out=os.path.join(folder, "lse.npy"),
        backend="reference",
        chunk_rows=9,
        overwrite=bool(before),
    )
    outputs = [job.out, job.lse_out]
    run_job(job)
    expected = [Path(path).read_bytes() for path in outputs]
    n, outcome = 0, ""
    while outcome != "finished":
        n += 1
        for name in jobs.names(Path(folder)):
            os.unlink(os.path.join(folder, name))
        if before == "overwrite":
            for path in outputs:
                Path(path).write_bytes(OLD)
        elif before == "discard":
            break_off(job)
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
            if before == "discard":
                assert "--overwrite instead of --resume" in resumed
                run_job(job)
        at_last = [state_of(path, data) for path, data in zip(outputs, expected, strict=True)]
        rest = sorted(jobs.names(Path(folder)))
        report = {"n": n, "outcome": outcome, "after": after, "left": left}
        report |= {"resumed": resumed, "at_last": at_last, "rest": rest}
        print(json.dumps(report), flush=True)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
