"""Going on with a job that was broken off, and refusing to when it is another job."""

import dataclasses
import io
import os
import shutil
from itertools import pairwise
from pathlib import Path

import jobs
import numpy as np
import pytest

import fastattn
from fastattn.batch import JobError, UsageError, manifest, readers, run_job, runner, unfinished
from fastattn.batch.attend import check_call
from fastattn.batch.progress import Notes


def broken_off(job, after=1):
    """Run a job until so many chunks are done."""

    class Stop(Notes):
        left = after

        def advance(self, rows):
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=f"{after} finished chunks are kept"):
        run_job(job, Stop())


CHANGES = {
    "scale": ({"scale": 0.5}, "options scale is 0.5 now and was null|was absent"),
    "window": ({"window": (3, 4)}, "options window"),
    "lse": ({"lse_out": "lse.npy"}, "outputs lse is"),
    "backend": ({"backend": "reference"}, "backend is"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_job_is_not_resumed(change, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options, text = CHANGES[change]
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    broken_off(job)
    with pytest.raises(JobError, match=text) as refusal:
        run_job(dataclasses.replace(job, resume=True, **options))
    assert "--overwrite instead of --resume" in str(refusal.value)
    assert "run the same command" not in str(refusal.value)  # that is what was just done
    assert run_job(dataclasses.replace(job, resume=True)).resumed_chunks == 1


@pytest.mark.parametrize("what", ["content", "shape", "numerics_version"])
def test_changed_inputs_are_not_resumed(what, tmp_path, monkeypatch):
    inputs = jobs.arrays()
    job = jobs.save(tmp_path, inputs, chunk_rows=37)
    broken_off(job)
    text = {"content": "inputs key content", "shape": "inputs key", "numerics_version": what}
    if what == "content":
        before = os.stat(job.key)
        np.save(job.key, inputs["key"] + 1)
        os.utime(job.key, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if nothing had been
    elif what == "shape":
        np.save(job.key, inputs["key"][..., ::-1, :].astype(np.float64))
    else:
        monkeypatch.setattr(fastattn, "numerics_version", -1)
    with pytest.raises(JobError, match=text[what]):
        run_job(dataclasses.replace(job, resume=True))
    assert run_job(dataclasses.replace(job, overwrite=True)).resumed_chunks == 0


def test_halves_multiplied_otherwise_are_not_joined(tmp_path, monkeypatch):
    """As on another CPU, or with another FASTATTN_BFLOAT16_DOT."""
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    broken_off(job)

    def elsewhere(*arguments):
        execution = check_call(*arguments)
        way = execution.way._replace(products="pairs")
        execution.plan = execution.plan._replace(way=way)
        return execution

    with monkeypatch.context() as patch:
        patch.setattr(runner, "check_call", elsewhere)
        with pytest.raises(JobError, match="bfloat16_dot is true now and was false"):
            run_job(dataclasses.replace(job, resume=True))
    assert run_job(dataclasses.replace(job, resume=True)).resumed_chunks == 1


def test_an_unfinished_job_is_neither_resumed_nor_discarded_in_silence(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    broken_off(job, 3)
    with pytest.raises(UsageError, match=r"--resume .* --overwrite"):
        run_job(job)
    # Borders are those of the manifest, whatever is asked for now.
    summary = run_job(dataclasses.replace(job, resume=True, chunk_rows=None, threads=1))
    assert (summary.chunks, summary.resumed_chunks) == (12, 3)
    expected = fastattn.attention(**jobs.arrays())
    assert jobs.same_bits(np.load(job.out), expected)


@pytest.mark.parametrize("chunk", [0, 1, 2])
def test_damage_to_finished_chunks_is_found_and_mended(chunk, tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37, lse_out=str(tmp_path / "lse.npy"))
    broken_off(job, 3)
    with open(job.out + ".part", "r+b") as file:
        file.seek(128 + chunk * 37 * 5 * 4 + 11)
        file.write(b"\x55")
    summary = run_job(dataclasses.replace(job, resume=True))
    assert summary.resumed_chunks == chunk
    assert jobs.same_bits(np.load(job.out), fastattn.attention(**jobs.arrays()))


def test_a_partial_output_that_is_gone_or_cut(tmp_path):
    lse_out = str(tmp_path / "lse.npy")
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37, lse_out=lse_out)
    for path in (job.out, lse_out):
        broken_off(job)
        for size, text in ((300, r"expected the \d+ bytes .* found 300"), (None, "is gone")):
            os.unlink(path + ".part") if size is None else os.truncate(path + ".part", size)
            for _ in range(2):
                with pytest.raises(JobError, match=text) as refusal:
                    run_job(dataclasses.replace(job, resume=True))
                assert refusal.value.exit_code == 1
                assert str(refusal.value).startswith(path + ".part: ")
                assert "what was finished is lost" in str(refusal.value)
                assert "kept" not in str(refusal.value)
        # The way out that it tells of.
        assert "give --overwrite instead of --resume to start again" in str(refusal.value)
        run_job(dataclasses.replace(job, overwrite=True))
        assert jobs.names(tmp_path) == {"out.npy", "lse.npy"}
        assert jobs.same_bits(np.load(job.out), fastattn.attention(**jobs.arrays()))
        os.unlink(job.out)
        os.unlink(lse_out)


def test_resuming_under_less_memory_than_the_borders_need(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    broken_off(job)
    with pytest.raises(UsageError, match="give --max-memory"):
        run_job(dataclasses.replace(job, resume=True, max_memory=1 << 20))
    assert run_job(dataclasses.replace(job, resume=True)).resumed_chunks == 1


def test_a_refused_request_does_not_discard_an_unfinished_job(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    broken_off(job, 2)
    with pytest.raises(UsageError, match="--max-memory"):
        run_job(dataclasses.replace(job, overwrite=True, max_memory=1000))
    assert run_job(dataclasses.replace(job, resume=True)).resumed_chunks == 2


def test_inputs_that_were_only_copied_or_touched_are_known_again(tmp_path):
    """What they hold counts: not where they lie, nor since when."""
    inputs = jobs.arrays() | {"key_lengths": np.full((3, 1), 40), "sinks": np.zeros(4)}
    job = jobs.save(tmp_path, inputs, chunk_rows=37)
    broken_off(job, 2)
    (tmp_path / "copies").mkdir()
    copies = {}
    for role in inputs:
        os.utime(getattr(job, role), (1, 1))
        copies[role] = shutil.copy(getattr(job, role), tmp_path / "copies")
    moved = dataclasses.replace(job, resume=True, **copies)
    assert run_job(moved).resumed_chunks == 2
    assert jobs.same_bits(np.load(job.out), fastattn.attention(**inputs))


def test_small_inputs_that_changed_are_not_mixed_in(tmp_path):
    inputs = jobs.arrays() | {"key_lengths": np.full((3, 1), 40)}
    job = jobs.save(tmp_path, inputs, chunk_rows=37)
    broken_off(job)
    np.save(job.key_lengths, np.full((3, 1), 41))
    with pytest.raises(JobError, match="inputs key_lengths content"):
        run_job(dataclasses.replace(job, resume=True))
    np.save(job.key_lengths, inputs["key_lengths"])  # the way out
    assert run_job(dataclasses.replace(job, resume=True)).resumed_chunks == 1


def test_a_large_input_is_known_by_pieces(tmp_path, monkeypatch):
    """Head, end and every long stretch are seen; a single byte between the pieces is not."""
    monkeypatch.setattr(readers, "DIGEST_BYTES", 1 << 14)  # of 16 bytes
    monkeypatch.setattr(unfinished, "DIGEST_BYTES", 1 << 14)
    size = 10 << 14
    found = list(readers._pieces(size))
    assert len(found) == 1024
    assert (found[0][0], found[-1][1]) == (0, size)
    assert {stop - start for start, stop in found} == {16}
    assert max(after - before for (before, _), (after, _) in pairwise(found)) <= size // 1000
    inputs = jobs.arrays((37, 8), (1600, 8))
    job = jobs.save(tmp_path, inputs, chunk_rows=5)
    broken_off(job)
    original = Path(job.key).read_bytes()
    spacing = len(original) // 1023
    gap = next(stop for _, stop in readers._pieces(len(original)) if stop > 5000) + 1

    def resumed(start, length):
        """Whether a job goes on after these bytes were changed, and what it says."""
        with open(job.key, "r+b") as file:
            file.seek(start)
            file.write(bytes(byte ^ 255 for byte in original[start : start + length]))
        notes = io.StringIO()
        try:
            run_job(dataclasses.replace(job, resume=True), Notes(notes))
        except JobError as error:
            notes.write(str(error))
        Path(job.key).write_bytes(original)
        return notes.getvalue()

    assert "inputs key content" in resumed(len(original) - 1, 1)
    assert "inputs key content" in resumed(gap, spacing)
    # Which is said, since the file has another time.
    assert "16 KiB of its 50.12 KiB were compared and are what they were" in resumed(gap, 1)


@pytest.mark.parametrize("name", ["out.npy", "lse.npy"])
def test_a_damaged_header_of_a_partial_output_is_mended(name, tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37, lse_out=str(tmp_path / "lse.npy"))
    broken_off(job, 3)
    with open(tmp_path / f"{name}.part", "r+b") as file:
        file.seek(60)
        file.write(b"9999")
    notes = io.StringIO()
    summary = run_job(dataclasses.replace(job, resume=True), Notes(notes))
    assert summary.resumed_chunks == 3  # the chunks are what they were
    assert f"{name}.part: its header was damaged; written again" in notes.getvalue()
    expected = fastattn.attention(**jobs.arrays(), return_lse=True)
    for path, result in zip((job.out, job.lse_out), expected, strict=True):
        np.save(tmp_path / "query.npy", result)
        assert (tmp_path / "query.npy").read_bytes() == Path(path).read_bytes()


@pytest.mark.parametrize("what", ["header", "size"])
def test_damage_by_others_while_the_job_runs_is_not_published(what, tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)

    class Damage(Notes):
        def advance(self, rows):
            with open(job.out + ".part", "r+b") as file:
                file.truncate(9100) if what == "size" else file.write(b"?")

    with pytest.raises(JobError, match="somebody else wrote to it") as refusal:
        run_job(job, Damage())
    assert "kept" not in str(refusal.value)
    assert not os.path.exists(job.out)
    run_job(dataclasses.replace(job, overwrite=True))  # the way out
    assert jobs.same_bits(np.load(job.out), fastattn.attention(**jobs.arrays()))


@pytest.mark.parametrize("where", ["open_inputs", "check_call", "Manifest.read_records"])
def test_ctrl_c_before_a_resume_begins_tells_of_what_is_there(where, tmp_path, monkeypatch):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    broken_off(job, 2)
    before = {name: (tmp_path / name).read_bytes() for name in jobs.names(tmp_path)}
    place, _, method = where.rpartition(".")

    def interrupted(*_):
        raise KeyboardInterrupt

    for options in ({"resume": True}, {"overwrite": True}, {}):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(manifest, place) if place else runner, method, interrupted)
            if place and not options.get("resume"):
                continue
            with pytest.raises(KeyboardInterrupt, match=r"is kept.*: run the same command with --"):
                run_job(dataclasses.replace(job, **options))
        assert {name: (tmp_path / name).read_bytes() for name in jobs.names(tmp_path)} == before
    assert run_job(dataclasses.replace(job, resume=True)).resumed_chunks == 2


def test_ctrl_c_before_anything_begins_leaves_nothing(tmp_path, monkeypatch):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "check_call", interrupted)
    with pytest.raises(KeyboardInterrupt, match="nothing was left behind"):
        run_job(job)
    assert jobs.names(tmp_path) == set()


def test_a_named_output_beside_a_damaged_one(tmp_path):
    """Killed between the two names, and what was left then damaged: nothing can be gone on with."""
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37, lse_out=str(tmp_path / "lse.npy"))
    broken_off(job, 12)
    os.rename(job.lse_out + ".part", job.lse_out)
    with open(job.out + ".part", "r+b") as file:
        file.seek(1000)
        file.write(b"????")
    with pytest.raises(
        JobError, match="is damaged, while the other output has its name"
    ) as refusal:
        run_job(dataclasses.replace(job, resume=True))
    assert "kept" not in str(refusal.value)
    run_job(dataclasses.replace(job, overwrite=True))  # the way out
    assert jobs.same_bits(np.load(job.out), fastattn.attention(**jobs.arrays()))
