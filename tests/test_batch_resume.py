"""Going on with a job that was broken off, and refusing to when it is another job."""

import dataclasses
import os

import jobs
import numpy as np
import pytest

import fastattn
from fastattn.batch import JobError, UsageError, run_job, runner
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
    text = {"content": "inputs key mtime_ns", "shape": "inputs key", "numerics_version": what}
    if what == "content":
        np.save(job.key, inputs["key"] + 1)
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
        execution.problem = execution.problem._replace(in_pairs=True)
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
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    broken_off(job)
    os.truncate(job.out + ".part", 300)
    with pytest.raises(JobError, match=r"expected \d+ bytes, found 300.*--overwrite"):
        run_job(dataclasses.replace(job, resume=True))
    os.unlink(job.out + ".part")
    with pytest.raises(JobError, match=r"out\.npy\.part: cannot be opened"):
        run_job(dataclasses.replace(job, resume=True))
    run_job(dataclasses.replace(job, overwrite=True))
    assert jobs.names(tmp_path) == {"out.npy"}


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
