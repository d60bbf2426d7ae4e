"""What a job refuses, before work or during it, and what it leaves then."""

import dataclasses
import os
import sys

import jobs
import numpy as np
import pytest

from fastattn.batch import Job, JobError, UsageError, run_job
from fastattn.batch.progress import Notes

REFUSED = {
    "features differ": (jobs.arrays(key=(3, 4, 45, 9)), {}, r"E = 8.*E = 9.*query\.npy"),
    "batch dims differ": (jobs.arrays(key=(2, 4, 45, 8)), {}, "broadcast"),
    "heads no multiple": (jobs.arrays((5, 9, 8), (2, 9, 8)), {"enable_gqa": True}, "multiple"),
    "causal and L != S": (jobs.arrays(), {"causal": True}, "bottom_right"),
    "two offsets": (jobs.arrays(), {"causal": "top_left", "query_offset": 1}, "query_offset"),
    "length beyond S": (jobs.arrays(), {"key_lengths": 46}, "46"),
    "huge offset": (jobs.arrays(), {"causal": True, "query_offset": 2**70}, "outside"),
    "infinite scale": (jobs.arrays(), {"scale": float("inf")}, "scale"),
    "infinite scale of a head": (jobs.arrays(), {"scale": (1.0, float("inf"))}, "head 1"),
    "too few scales": (jobs.arrays(), {"scale": (1.0, 2.0)}, r"\(1, 2\).*batch \(3, 4\)"),
    "unknown similarity": (jobs.arrays(), {"similarity": "manhattan"}, "manhattan"),
    "unknown backend": (jobs.arrays(), {"backend": "fortran"}, "fortran"),
    "complex": (jobs.arrays(dtype=np.complex64), {}, "complex"),
    "extended": (jobs.arrays(dtype=np.longdouble), {}, "float64"),
    "one kind of ids": (jobs.arrays() | {"key_segments": np.arange(45)}, {}, "query_segments"),
    "ids of another length": (
        jobs.arrays() | {"query_segments": np.arange(37), "key_segments": np.arange(44)},
        {},
        r"\(44,\)",
    ),
    "too few slopes": (jobs.arrays(), {"alibi_slopes": (1.0, 2.0)}, r"batch dims \(3, 4\)"),
    "infinite slope": (jobs.arrays(), {"alibi_slopes": (float("inf"),)}, "finite"),
    "sinks that are no numbers": (jobs.arrays(), {"sinks": (float("nan"),)}, "or -inf"),
    "too many ids for the memory": (
        jobs.arrays((2, 8), (300, 8))
        | {"query_segments": np.arange(2), "key_segments": np.arange(300)},
        {"max_memory": 2000},
        r"key_segments\.npy: its 2400 bytes are more than the memory",
    ),
    "integer mask": (jobs.arrays() | {"mask": np.ones((37, 45), int)}, {}, "mask"),
    "mask too small": (jobs.arrays() | {"mask": np.ones((37, 44), bool)}, {}, r"\(37, 44\)"),
    "one number per key": (jobs.arrays() | {"value": np.zeros(45)}, {}, r"\(45,\)"),
    "too little memory": (jobs.arrays(), {"max_memory": 1000}, "--max-memory"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_requests_that_cannot_work_are_refused_and_leave_nothing(case, tmp_path):
    inputs, options, text = REFUSED[case]
    with pytest.raises(UsageError, match=text) as refusal:
        run_job(jobs.save(tmp_path, inputs, **options))
    assert refusal.value.exit_code == 2
    assert jobs.names(tmp_path) == set()


@pytest.mark.parametrize("name", ["max_memory", "chunk_rows"])
@pytest.mark.parametrize("x", [True, 1.0, "7"])
def test_sizes_are_integers(name, x):
    with pytest.raises(TypeError, match=f"{name} must be an integer, not {x!r}"):
        Job("q.npy", "k.npy", "v.npy", "o.npy", **{name: x})


def test_lengths_must_be_integers(tmp_path):
    inputs = jobs.arrays() | {"key_lengths": np.full((3, 1), np.nan)}
    with pytest.raises(JobError, match=r"key-lengths.*expected integers.*float64 \(3, 1\)"):
        run_job(jobs.save(tmp_path, inputs))


@pytest.mark.parametrize("dtype", [np.float64, np.uint64])
def test_ids_must_be_integers_that_fit(dtype, tmp_path):
    ids = {"query_segments": np.zeros(37, dtype), "key_segments": np.zeros(45, dtype)}
    with pytest.raises(JobError, match=r"query-segments.*expected ids that fit into int64"):
        run_job(jobs.save(tmp_path, jobs.arrays() | ids))


def test_raw_bytes_are_bfloat16_only_when_told_so(tmp_path, monkeypatch):
    raw = {role: array.view("V2") for role, array in jobs.arrays(dtype=np.float16).items()}
    job = jobs.save(tmp_path, raw)
    with pytest.raises(JobError, match=r"query\.npy.*bfloat16: give --bfloat16"):
        run_job(job)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(UsageError, match="pip install ml_dtypes"):
        run_job(dataclasses.replace(job, bfloat16=True))
    assert jobs.names(tmp_path) == set()


class Meddler(Notes):
    """Does something to the files when the first chunk is done."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def advance(self, rows):
        self.act()
        self.act = lambda: None


def test_an_input_cut_short_while_the_job_runs(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    with pytest.raises(JobError, match=r"query.*cut short.*1 finished chunks are kept"):
        run_job(job, Meddler(lambda: os.truncate(job.query, 2000)))
    assert jobs.names(tmp_path) == {"out.npy.part", "out.npy.part.manifest"}


def test_an_input_rewritten_while_the_job_runs(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    status = os.stat(job.value)

    def rewrite():
        np.save(job.value, jobs.arrays(seed=1)["value"])
        os.utime(job.value, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if it had not been

    with pytest.raises(JobError, match=r"value.*was changed"):
        run_job(job, Meddler(rewrite))
    assert "out.npy" not in jobs.names(tmp_path)


def test_an_input_touched_while_the_job_runs_is_what_it_was(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    run_job(job, Meddler(lambda: os.utime(job.value, (1, 1))))
    assert jobs.names(tmp_path) == {"out.npy"}


def test_an_output_that_appears_is_not_replaced(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    (out := tmp_path / "out.npy").unlink(missing_ok=True)
    with pytest.raises(UsageError, match="appeared"):
        run_job(job, Meddler(lambda: out.write_text("mine")))
    assert out.read_text() == "mine"
    with pytest.raises(UsageError, match="--overwrite"):
        run_job(dataclasses.replace(job, resume=True))
    summary = run_job(dataclasses.replace(job, resume=True, overwrite=True))
    assert summary.resumed_chunks == summary.chunks == 12
    assert jobs.names(tmp_path) == {"out.npy"}


def test_two_jobs_on_one_output(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), chunk_rows=37)
    met = []

    def second():
        with pytest.raises(JobError, match="another job") as refusal:
            run_job(dataclasses.replace(job, resume=True))
        met.append(refusal)

    run_job(job, Meddler(second))
    assert met
    assert jobs.names(tmp_path) == {"out.npy"}


def test_existing_outputs(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), lse_out=str(tmp_path / "lse.npy"))
    for name in ("out.npy", "lse.npy"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UsageError, match=rf"{name}: is there already.*--overwrite"):
            run_job(job)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "out.npy").write_text("mine")
    run_job(dataclasses.replace(job, overwrite=True))
    assert np.load(job.out).shape == (3, 4, 37, 5)


def test_a_foreign_file_under_the_temporary_name(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), overwrite=True)
    (tmp_path / "out.npy.part").write_text("mine")
    with pytest.raises(JobError, match=r"out\.npy\.part.*in the way"):
        run_job(job)
    assert (tmp_path / "out.npy.part").read_text() == "mine"


def test_outputs_that_are_inputs_or_no_files(tmp_path):
    job = jobs.save(tmp_path, jobs.arrays(), overwrite=True)
    os.symlink(job.key, tmp_path / "link.npy")
    os.link(job.value, tmp_path / "hard.npy")
    for out in (job.query, str(tmp_path / "link.npy"), str(tmp_path / "hard.npy")):
        with pytest.raises(UsageError, match="would be written to"):
            run_job(dataclasses.replace(job, out=out))
    with pytest.raises(UsageError, match="same file"):
        run_job(dataclasses.replace(job, lse_out=job.out))
    with pytest.raises(UsageError, match="same file"):
        run_job(dataclasses.replace(job, lse_out=job.out + ".part"))
    with pytest.raises(JobError, match="no regular file"):
        run_job(dataclasses.replace(job, out=str(tmp_path)))
    with pytest.raises(JobError, match="does not exist"):
        run_job(dataclasses.replace(job, out=str(tmp_path / "absent" / "out.npy")))
    assert isinstance(job, Job)


def test_an_output_through_a_symbolic_link(tmp_path):
    (tmp_path / "there").mkdir()
    os.symlink(tmp_path / "there" / "out.npy", tmp_path / "out.npy")
    run_job(jobs.save(tmp_path, jobs.arrays()))
    assert (tmp_path / "out.npy").is_symlink()
    assert os.listdir(tmp_path / "there") == ["out.npy"]
