"""Files that others have too: two jobs at once, planted names, folders that move."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import tempfile

import children
import jobs
import numpy as np
import pytest
from places import SUPPORT

import fastattn
from fastattn.batch import JobError, UsageError, folders, run_job
from fastattn.batch.manifest import discard_unfinished
from fastattn.batch.progress import Notes

MODES = ["lse", "same", "overwrite lse", "overwrite same"]


class Meddler(Notes):
    """Does something to the files when so many chunks are done."""

    def __init__(self, act, after=1):
        super().__init__()
        self.act = act
        self.left = after

    def advance(self, rows):
        self.left -= 1
        if self.left == 0:
            self.act()


@pytest.fixture
def job(tmp_path):
    """A job of twelve chunks with two outputs in a folder of their own."""
    (place := tmp_path / "place").mkdir()
    outputs = {"out": str(place / "out.npy"), "lse_out": str(place / "lse.npy")}
    return jobs.save(tmp_path, jobs.arrays(), backend="reference", chunk_rows=37, **outputs)


def is_right(job):
    expected = fastattn.attention(**jobs.arrays(), backend="reference", return_lse=True)
    found = np.load(job.out), np.load(job.lse_out)
    return all(map(jobs.same_bits, found, expected))


def left_after(job, act, after=1):
    """What a job says when something is done to its files meanwhile."""
    meddler = Meddler(act, after)
    with pytest.raises(JobError) as refusal:
        run_job(job, meddler)
    assert refusal.value.exit_code == 1
    assert meddler.left == 0  # it is noticed at once, not when all is computed
    return str(refusal.value)


@pytest.mark.parametrize("mode", MODES)
def test_two_jobs_at_the_same_moment(mode):
    """Whoever ends well has written its own rows alone, and the other says why it did not."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [sys.executable, str(SUPPORT / "races.py"), mode, "40", folder],
            env=children.environment(OPENBLAS_NUM_THREADS=1),
            capture_output=True,
            text=True,
            timeout=children.PATIENCE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    tries = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(tries) == 40
    busy = 0
    for report in tries:
        # A job may be killed when it is over, which its resumption then finds.
        ends = zip(report["told"], report["right"], strict=True)
        finished = [told == "finished" or all(right) for told, right in ends]
        assert any(finished), report
        for ended, (out, _) in zip(finished, report["right"], strict=True):
            assert out or not ended, report
        whole = [lse for ended, (_, lse) in zip(finished, report["right"], strict=True) if ended]
        # Only a job that came later and was to replace it may have taken the place of the file.
        assert all(whole) or (mode == "overwrite lse" and any(whole) and all(finished)), report
        busy += any("another job" in told for told in report["told"])
        # The last one of what a killed job left behind.
        refusals = ("another job", "is there already", "in the way", "appeared", "an unfinished")
        for ended, told in zip(finished, report["told"], strict=True):
            assert ended or any(words in told for words in refusals), report
    assert busy


def test_a_second_job_on_one_of_the_outputs_is_refused_before_work(job, tmp_path):
    other = dataclasses.replace(job, out=str(tmp_path / "other.npy"), scale=0.5)
    texts = []

    def second():
        for another in (other, job, dataclasses.replace(job, resume=True)):
            for overwrite in (False, True):
                with pytest.raises(JobError, match="another job") as refusal:
                    run_job(dataclasses.replace(another, overwrite=overwrite), Meddler(pytest.fail))
                texts.append(str(refusal.value))

    run_job(job, Meddler(second))
    assert is_right(job)
    assert texts[0].startswith(f"{job.lse_out}.part: another job")
    assert texts[2].startswith(f"{job.out}.part.manifest: another job")
    if os.path.exists("/proc/locks"):
        assert all(f"(process {os.getpid()})" in text for text in texts)
    # The way out: another output.
    assert all("choose another output" in text for text in texts)
    run_job(dataclasses.replace(other, lse_out=str(tmp_path / "other-lse.npy")))
    assert jobs.names(tmp_path) == {"place", "other.npy", "other-lse.npy"}


HELD = """
    import os, sys
    import jobs
    from fastattn.batch import Job, run_job
    from fastattn.batch.progress import Notes

    class Wait(Notes):
        def advance(self, rows):
            print("working", flush=True)
            sys.stdin.read()

    run_job(Job(**{fields!r}), Wait())
"""


def test_a_killed_job_blocks_nobody(job, tmp_path):
    child = children.start(HELD.format(fields=dataclasses.asdict(job)))
    assert child.stdout.readline() == "working\n", children.rest(child)
    other = dataclasses.replace(job, out=str(tmp_path / "other.npy"))
    with pytest.raises(JobError, match="another job") as refusal:
        run_job(other)
    if os.path.exists("/proc/locks"):
        assert f"(process {child.pid})" in str(refusal.value)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    # What it left is not the other's to replace, but its own to go on with.
    with pytest.raises(JobError, match=r"lse\.npy\.part: is in the way"):
        run_job(dataclasses.replace(other, overwrite=True))
    assert run_job(dataclasses.replace(job, resume=True)).resumed_chunks >= 1
    assert is_right(job)
    assert jobs.names(tmp_path) == {"place"}


def test_one_file_under_two_names_is_no_second_output(job, tmp_path, monkeypatch):
    place = tmp_path / "place"
    same = pytest.raises(UsageError, match="are the same file; give two")
    os.symlink(place, tmp_path / "link")
    with same:
        run_job(dataclasses.replace(job, lse_out=str(tmp_path / "link" / "out.npy")))
    (place / "out.npy").write_text("mine")
    os.link(place / "out.npy", place / "lse.npy")
    os.symlink("out.npy", place / "soft.npy")
    for lse_out in ("lse.npy", "soft.npy"):
        with same:
            run_job(dataclasses.replace(job, lse_out=str(place / lse_out), overwrite=True))
    assert (place / "out.npy").read_text() == "mine"
    for name in ("out.npy", "lse.npy", "soft.npy"):
        (place / name).unlink()

    def without_capitals(call):
        return lambda path, *given, **options: call(
            path.lower() if options.get("dir_fd") and isinstance(path, str) else path,
            *given,
            **options,
        )

    for name in ("open", "stat", "unlink"):
        monkeypatch.setattr(os, name, without_capitals(getattr(os, name)))
    with same:
        run_job(dataclasses.replace(job, lse_out=str(place / "OUT.npy")))
    assert jobs.names(place) == set()


def test_an_output_is_not_replaced_before_its_job_is_over(job, tmp_path, monkeypatch):
    """It has its name, the other output has not: both belong together."""
    other = dataclasses.replace(job, out=str(tmp_path / "other.npy"), scale=0.5, overwrite=True)
    link = os.link
    met = []

    def between(source, name, **options):
        if name == "out.npy":
            with pytest.raises(JobError, match=r"lse\.npy: another job"):
                run_job(other)
            met.append(name)
        link(source, name, **options)

    monkeypatch.setattr(os, "link", between)
    run_job(job)
    assert met
    assert is_right(job)
    assert jobs.names(tmp_path) == {"place"}


def test_a_file_is_made_only_where_nothing_is(tmp_path):
    place = folders.Folder(str(tmp_path))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    for name in ("file", "link", "dangling"):
        with pytest.raises(FileExistsError):
            folders.HeldFile.create(place, name)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "absent").exists()
    place.close()


@pytest.mark.parametrize("what", ["link", "dangling link", "pipe", "folder", "file"])
@pytest.mark.parametrize("name", ["out.npy.part", "lse.npy.part", "out.npy.part.manifest"])
def test_what_is_planted_under_a_temporary_name_is_refused(what, name, job, tmp_path):
    place, victim = tmp_path / "place", tmp_path / "victim"
    planted = place / name
    if what != "dangling link":
        victim.write_text("mine")
    plant = {
        "pipe": lambda: os.mkfifo(planted),
        "folder": planted.mkdir,
        "file": lambda: planted.write_text("mine"),
    }
    plant.get(what, lambda: planted.symlink_to(victim))()
    for overwrite in (False, True):
        with pytest.raises(JobError, match=r"remove (it|the)") as refusal:
            run_job(dataclasses.replace(job, overwrite=overwrite))
        assert str(planted) in str(refusal.value)
    assert what == "dangling link" or victim.read_text() == "mine"
    assert not (what == "dangling link" and victim.exists())
    assert jobs.names(place) == {name}
    (planted.rmdir if what == "folder" else planted.unlink)()
    run_job(job)
    assert is_right(job)


@pytest.mark.parametrize("name", ["out.npy.part", "lse.npy.part", "out.npy.part.manifest"])
@pytest.mark.parametrize("what", ["link", "hard link"])
def test_names_planted_before_a_resume(what, name, job, tmp_path):
    place = tmp_path / "place"
    with pytest.raises(KeyboardInterrupt):
        run_job(job, Meddler(lambda: signal.raise_signal(signal.SIGINT)))
    moved = tmp_path / "moved"
    os.rename(place / name, moved)
    (os.symlink if what == "link" else os.link)(moved, place / name)
    before = moved.read_bytes()
    with pytest.raises(JobError, match="symbolic link" if what == "link" else "hard links"):
        run_job(dataclasses.replace(job, resume=True))
    assert moved.read_bytes() == before
    # The way out: the file, or a copy of it, in its place.
    os.unlink(place / name)
    (place / name).write_bytes(before)
    assert run_job(dataclasses.replace(job, resume=True)).resumed_chunks == 1
    assert is_right(job)


@pytest.mark.parametrize("name", ["out.npy.part", "lse.npy.part", "out.npy.part.manifest"])
@pytest.mark.parametrize("what", ["removed", "replaced"])
def test_a_file_that_is_taken_away_while_the_job_runs(what, name, job, tmp_path):
    path = tmp_path / "place" / name

    def meddle():
        data = path.read_bytes()
        path.unlink()
        if what == "replaced":
            path.write_bytes(data[::-1])

    text = left_after(job, meddle, after=3)
    assert f"{path}: was removed or replaced while the job ran" in text
    assert "are kept" not in text
    assert not os.path.exists(job.out)
    # The way out.
    assert "--overwrite instead of --resume" in text
    if (name, what) != ("out.npy.part.manifest", "replaced"):
        for left in ("out.npy.part", "lse.npy.part"):
            if name == "out.npy.part.manifest":  # by which the others were known
                (tmp_path / "place" / left).unlink()
        run_job(dataclasses.replace(job, overwrite=True))
        assert is_right(job)


def test_a_file_that_is_swapped_at_the_last_moment_gets_no_name(job, tmp_path, monkeypatch):
    """Between the last look and the naming there is nothing that can be swapped by name."""
    part, secret = f"{job.out}.part", tmp_path / "secret"
    secret.write_text("mine")
    link = os.link

    def swapped(source, name, **options):
        if name == "out.npy":
            os.rename(part, tmp_path / "real")
            os.rename(secret, part)
        link(source, name, **options)

    monkeypatch.setattr(os, "link", swapped)
    run_job(job)
    assert is_right(job)

    replace = os.replace
    secret.write_text("mine")

    def swapped_again(source, name, **options):
        if name == "out.npy":
            os.rename(part, tmp_path / "real")
            os.rename(secret, part)
        replace(source, name, **options)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "replace", swapped_again)
    with pytest.raises(JobError, match=r"out\.npy: was removed or replaced while the job ran"):
        run_job(dataclasses.replace(job, overwrite=True))


@pytest.mark.parametrize("after", [1, 12])
def test_a_folder_that_is_moved_while_the_job_runs(after, job, tmp_path):
    place, elsewhere = tmp_path / "place", tmp_path / "elsewhere"
    text = left_after(job, lambda: place.rename(elsewhere), after)
    assert f"{place}: this folder was moved while the job ran" in text
    assert "complete" not in text
    assert not place.exists()
    assert not (elsewhere / "out.npy").exists()
    # Both ways out.
    if after == 1:
        elsewhere.rename(place)
        there = job
    else:
        assert f" to {elsewhere}" in text
        there = dataclasses.replace(
            job, out=str(elsewhere / "out.npy"), lse_out=str(elsewhere / "lse.npy")
        )
    assert run_job(dataclasses.replace(there, resume=True)).resumed_chunks == after
    assert is_right(there)


def test_a_folder_that_is_removed_while_the_job_runs(job, tmp_path):
    def remove():
        for name in os.listdir(tmp_path / "place"):
            os.unlink(tmp_path / "place" / name)
        (tmp_path / "place").rmdir()

    text = left_after(job, remove, after=2)
    assert "this folder was removed while the job ran" in text
    assert "--resume" not in text
    (tmp_path / "place").mkdir()
    run_job(job)
    assert is_right(job)


def test_ctrl_c_after_a_folder_was_moved_does_not_speak_of_a_complete_output(job, tmp_path):
    def meddle():
        (tmp_path / "place").rename(tmp_path / "elsewhere")
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="this folder was moved"):
        run_job(job, Meddler(meddle))


def test_a_folder_that_cannot_be_written(job, tmp_path, monkeypatch):
    opened = os.open

    def refuse(path, flags, *given, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return opened(path, flags, *given, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(JobError, match="Read-only file system; choose a folder that can be"):
        run_job(job)
    assert os.listdir(tmp_path / "place") == []


def test_a_file_system_without_locks_works(job, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folders.fcntl, "flock", none)
    run_job(job)
    assert is_right(job)


def test_a_file_system_without_hard_links_works(job, monkeypatch):
    def none(*_, **__):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", none)
    run_job(job)
    assert is_right(job)


def test_the_unfinished_job_of_somebody_at_work_is_not_discarded(job, tmp_path):
    """As an example would that fails because another one runs in its folder."""
    run_job(job, Meddler(lambda: discard_unfinished(job.out)))
    assert is_right(job)
    with pytest.raises(KeyboardInterrupt):
        run_job(
            dataclasses.replace(job, lse_out=None, overwrite=True),
            Meddler(lambda: signal.raise_signal(signal.SIGINT)),
        )
    discard_unfinished(job.out)
    assert jobs.names(tmp_path / "place") == {"lse.npy", "out.npy"}
