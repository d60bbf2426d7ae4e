"""Runs two jobs at the same moment, over and over, and tells what became of both.

A program of its own, because it forks: ``python races.py MODE TRIES FOLDER``. The modes: ``lse``,
where the jobs have outputs of their own and one file for the log-sum-exp; ``same``, one job twice;
``overwrite`` in front, where both may replace what is there. In half of the tries one of the two is
killed at some moment, and goes on afterwards. One line of JSON per try.
"""

import dataclasses
import json
import os
import signal
import sys
import time
from pathlib import Path

import jobs
import numpy as np

from fastattn.batch import JobError, run_job

LONGEST = 0.02  # of the wait before a job starts, or is killed


def started(job, gate, delay):
    """Fork a job that begins when the gate opens; return its process and its report."""
    report, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, report
    os.close(report)
    os.read(gate, 1)
    time.sleep(delay)
    try:
        run_job(job)
        text = "finished"
    except JobError as error:
        text = f"refused: {error}"
    os.write(write, text.encode()[:4000])
    os._exit(0)


def both(pair, random, kill):
    """Run two jobs at once, and go on with the one that is killed."""
    read, gate = os.pipe()
    running = [started(job, read, random.random() * LONGEST) for job in pair]
    os.write(gate, b"go")
    if kill:
        time.sleep(random.random() * 4 * LONGEST)
        os.kill(running[0][0], signal.SIGKILL)
    told = []
    for child, report in running:
        os.waitpid(child, 0)
        told.append(os.read(report, 5000).decode())
        os.close(report)
    os.close(read)
    os.close(gate)
    if not told[0]:
        try:
            run_job(dataclasses.replace(pair[0], resume=True))
            told[0] = "finished"
        except JobError as error:
            told[0] = f"refused: {error}"
    return told


def main(mode, tries, folder):
    overwrite = mode.startswith("overwrite")
    place = Path(folder)
    job = jobs.save(
        place,
        jobs.arrays((2, 2, 9, 4), (2, 2, 7, 4), value_features=3),
        lse_out=str(place / "lse.npy"),
        backend="reference",
        chunk_rows=9,
        overwrite=overwrite,
    )
    other = job
    if not mode.endswith("same"):
        other = dataclasses.replace(job, out=str(place / "other.npy"), scale=0.25)
    expected = []
    for one in (job, other):
        run_job(dataclasses.replace(one, overwrite=True))
        expected.append([Path(path).read_bytes() for path in (one.out, one.lse_out)])
    random = np.random.default_rng(0)
    for number in range(int(tries)):
        for name in jobs.names(place):
            (place / name).unlink()
        told = both((job, other), random, kill=number % 2)
        right = []
        for one, results in zip((job, other), expected, strict=True):
            found = [
                Path(path).exists() and Path(path).read_bytes() for path in (one.out, one.lse_out)
            ]
            right.append([was == result for was, result in zip(found, results, strict=True)])
        print(json.dumps({"told": told, "right": right, "left": sorted(jobs.names(place))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
