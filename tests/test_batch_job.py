"""What a job computes does not depend on how it was cut, and is what one call gives."""

import dataclasses
import os

import jobs
import numpy as np
import pytest

import fastattn
from fastattn.batch import Job, JobError, UsageError, run_job, runner
from fastattn.batch.borders import Borders, _allowed_sizes
from fastattn.batch.progress import Notes

RANDOM = np.random.default_rng(7)
CASES = {
    "plain": (jobs.arrays(), {}),
    "float64": (jobs.arrays(dtype=np.float64), {"similarity": "cosine", "scale": 3.5}),
    "one batch": (jobs.arrays((70, 8), (600, 8)), {"causal": "bottom_right"}),
    "one query": (jobs.arrays((8,), (3, 45, 8)), {"similarity": "euclidean"}),
    "grouped heads": (
        jobs.arrays((2, 12, 9, 8), (2, 3, 20, 8)),
        {"enable_gqa": True, "causal": "top_left"},
    ),
    "broadcast": (jobs.arrays((3, 1, 21, 8), (4, 45, 8)), {"window": (5, None)}),
    "keys shared by all": (jobs.arrays((3, 4, 21, 8), (45, 8)), {"softcap": 2.0}),
    "mask": (
        jobs.arrays() | {"mask": RANDOM.random((4, 37, 45)) < 0.3},
        {"causal": "bottom_right", "window": (20, 20)},
    ),
    "mask of keys": (
        jobs.arrays() | {"mask": RANDOM.standard_normal((3, 1, 1, 45)).astype(np.float32)},
        {"causal": True, "query_offset": 4},
    ),
    "lengths": (
        jobs.arrays() | {"key_lengths": RANDOM.integers(0, 46, (3, 1)).astype(np.uint16)},
        {"causal": "bottom_right"},
    ),
    "offsets": (
        jobs.arrays() | {"query_offset": RANDOM.integers(-40, 40, (3, 4))},
        {"causal": True, "key_lengths": 30, "window": (7, 2)},
    ),
    "integers": (
        {role: (8 * array).astype(np.int16) for role, array in jobs.arrays().items()},
        {"scale": 0.01},
    ),
    "no keys": (jobs.arrays(key=(3, 4, 0, 8)), {}),
    "no queries": (jobs.arrays(query=(3, 4, 0, 8)), {}),
    "empty batch": (jobs.arrays((0, 4, 5, 8), (1, 4, 5, 8)), {}),
    "no value features": (jobs.arrays(value_features=0), {}),
}


def at_once(inputs, options, backend):
    """One call in memory."""
    given = {role: value for role, value in inputs.items() if isinstance(value, np.ndarray)}
    return fastattn.attention(**given, **options, return_lse=True, backend=backend)


def all_borders(layout):
    """Every axis, and of every axis sizes at both ends, in the middle and odd."""
    for axis, length in enumerate(layout.extents):
        if length == 0:
            continue
        sizes = list(_allowed_sizes(layout, axis, length))
        for size in sorted({*sizes[:3], sizes[len(sizes) // 2], sizes[-1]}):
            yield Borders(axis, size, None)


@pytest.mark.parametrize("case", CASES)
def test_any_borders_give_the_bits_of_one_call(case, exact_backend, tmp_path, monkeypatch):
    inputs, options = CASES[case]
    expected = at_once(inputs, options, exact_backend)
    extra = {"lse_out": str(tmp_path / "lse.npy"), "overwrite": True, "backend": exact_backend}
    job = jobs.save(tmp_path, inputs, **options, **extra)
    layouts = []

    def first(layout, *_):
        layouts.append(layout)
        return Borders(0, max(layout.extents[0], 1), None)

    monkeypatch.setattr(runner, "choose_borders", first)
    borders = [None]
    checked = 0
    while borders:
        chosen = borders.pop()
        if chosen is not None:
            monkeypatch.setattr(runner, "choose_borders", lambda *_, chosen=chosen: chosen)
        summary, results = jobs.finished(job)
        for result, one in zip(results, expected, strict=True):
            assert jobs.same_bits(result, one), chosen
        if chosen is None:
            assert summary.chunks == 1
            borders = list(all_borders(layouts[0]))
        else:
            assert summary.chunks == chosen.count(layouts[0].extents)
        checked += 1
    assert checked > (1 if 0 in layouts[0].extents else 4)


STREAMED = {
    "plain": (jobs.arrays((2, 70, 8), (2, 1700, 8)), {}),
    "causal": (jobs.arrays((2, 70, 8), (2, 1700, 8)), {"causal": "bottom_right"}),
    "window": (jobs.arrays((1700, 8), (1700, 8)), {"causal": True, "window": (600, 0)}),
    "before the first key": (
        jobs.arrays((2, 70, 8), (2, 1700, 8)),
        {"causal": True, "query_offset": -40},
    ),
    "mask": (
        jobs.arrays((2, 70, 8), (2, 1700, 8)) | {"mask": RANDOM.random((70, 1700)) < 0.01},
        {"similarity": "euclidean"},
    ),
    "lengths": (
        jobs.arrays((3, 30, 8), (3, 1700, 8)) | {"key_lengths": np.array([0, 511, 1030])},
        {"causal": "bottom_right"},
    ),
    "grouped heads": (
        jobs.arrays((4, 30, 8), (2, 1700, 8), dtype=np.float64),
        {"enable_gqa": True, "softcap": 3.0},
    ),
    "no keys": (jobs.arrays((4, 30, 8), (4, 0, 8)), {}),
}


@pytest.mark.parametrize("case", STREAMED)
def test_streamed_keys_give_the_bits_of_one_call(case, exact_backend, tmp_path, monkeypatch):
    inputs, options = STREAMED[case]
    expected = at_once(inputs, options, exact_backend)
    extra = {"lse_out": str(tmp_path / "lse.npy"), "overwrite": True, "backend": exact_backend}
    job = jobs.save(tmp_path, inputs, **options, **extra)
    parts_seen = set()
    for axis, size, part in ((0, 1, 512), (0, 2, 1024), (0, 1, 2048), (-1, 13, 512)):

        def chosen(layout, *_, axis=axis, size=size, part=part):
            return Borders(axis % len(layout.extents), size, part)

        monkeypatch.setattr(runner, "choose_borders", chosen)
        summary, results = jobs.finished(job)
        parts_seen.add(summary.part_keys)
        for result, one in zip(results, expected, strict=True):
            assert jobs.same_bits(result, one), (axis, size, part)
    assert parts_seen == {512, 1024, 2048}


def test_streaming_reads_only_the_parts_that_are_seen(tmp_path, monkeypatch):
    inputs = jobs.arrays((1000, 8), (1000, 8))
    job = jobs.save(tmp_path, inputs, causal=True, window=(100, 0), overwrite=True)
    monkeypatch.setattr(runner, "choose_borders", lambda *_: Borders(0, 100, 512))
    asked = []
    attend = fastattn.attention_state

    def watched(query, key, value, *, key_start, **options):
        asked.append((key_start, len(key)))
        return attend(query, key, value, key_start=key_start, **options)

    monkeypatch.setattr(fastattn, "attention_state", watched)
    run_job(job)
    # Rows 500..599 see keys 400..599: two parts. All other chunks see one.
    assert len(asked) == 11 + 1 - 1
    assert (512, 488) in asked
    assert (0, 100) in asked


@pytest.mark.parametrize("limit", ["whole", "cut", "streamed"])
def test_borders_from_the_memory_limit(limit, exact_backend, tmp_path):
    inputs = jobs.arrays((2, 3000, 16), (2, 9000, 16), value_features=16)
    expected = at_once(inputs, {}, exact_backend)
    bytes_needed = {"whole": 1 << 30, "cut": 3 << 20, "streamed": 7 << 18}[limit]
    job = jobs.save(tmp_path, inputs, max_memory=bytes_needed, backend=exact_backend, threads=1)
    summary, (result,) = jobs.finished(job)
    assert jobs.same_bits(result, expected[0])
    assert (summary.chunks > 1) == (limit != "whole")
    assert (summary.part_keys is not None) == (limit == "streamed")


def test_fortran_order_and_byte_order_change_no_bit(exact_backend, tmp_path):
    inputs = jobs.arrays()
    expected = at_once(inputs, {}, exact_backend)[0]
    stored = {
        "query": np.asfortranarray(inputs["query"]),
        "key": inputs["key"].astype(">f4"),
        "value": np.asfortranarray(inputs["value"].astype(">f4")),
    }
    job = jobs.save(tmp_path, stored, backend=exact_backend, chunk_rows=20)
    summary, (result,) = jobs.finished(job)
    assert summary.chunks == 24
    assert jobs.same_bits(result, expected)


@pytest.mark.parametrize("case", STREAMED)
def test_the_reference_streams_too(case, tmp_path, monkeypatch):
    inputs, options = STREAMED[case]
    expected = at_once(inputs, options, "reference")
    job = jobs.save(
        tmp_path, inputs, **options, lse_out=str(tmp_path / "lse.npy"), backend="reference"
    )
    monkeypatch.setattr(runner, "choose_borders", lambda *_: Borders(0, 2, 512))
    _, results = jobs.finished(job)
    for result, one in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, one, rtol=1e-5, atol=1e-6)


def test_the_reference_runs_as_a_job_too(tmp_path):
    inputs = jobs.arrays()
    job = jobs.save(tmp_path, inputs, backend="reference", chunk_rows=30)
    summary, (result,) = jobs.finished(job)
    expected = fastattn.attention(**inputs, backend="reference")
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-6)
    assert summary.backend == "reference"
    assert summary.chunks == 24


def test_summary_tells_what_was_done(tmp_path):
    import hashlib

    inputs = jobs.arrays()
    job = jobs.save(tmp_path, inputs, lse_out=str(tmp_path / "lse.npy"), chunk_rows=37, threads=1)
    summary, _ = jobs.finished(job)
    assert summary.shapes == {
        "query": [3, 4, 37, 8],
        "key": [3, 4, 45, 8],
        "value": [3, 4, 45, 5],
        "out": [3, 4, 37, 5],
        "lse": [3, 4, 37],
    }
    assert (summary.dtype, summary.chunks, summary.resumed_chunks) == ("float32", 12, 0)
    assert summary.threads == 1
    assert summary.numerics_version == fastattn.numerics_version
    assert summary.rows_per_second > 0
    assert summary.checksum == hashlib.sha256((tmp_path / "out.npy").read_bytes()).hexdigest()
    assert summary.lse_checksum == hashlib.sha256((tmp_path / "lse.npy").read_bytes()).hexdigest()
    assert jobs.names(tmp_path) == {"out.npy", "lse.npy"}


def test_the_output_file_is_what_numpy_would_save(tmp_path):
    inputs = jobs.arrays()
    jobs.finished(jobs.save(tmp_path, inputs))
    np.save(tmp_path / "query.npy", fastattn.attention(**inputs))
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "query.npy").read_bytes()


REFUSED = {
    "features differ": (jobs.arrays(key=(3, 4, 45, 9)), {}, r"E = 8.*E = 9.*query\.npy"),
    "batch dims differ": (jobs.arrays(key=(2, 4, 45, 8)), {}, "broadcast"),
    "heads no multiple": (jobs.arrays((5, 9, 8), (2, 9, 8)), {"enable_gqa": True}, "multiple"),
    "causal and L != S": (jobs.arrays(), {"causal": True}, "bottom_right"),
    "two offsets": (jobs.arrays(), {"causal": "top_left", "query_offset": 1}, "query_offset"),
    "length beyond S": (jobs.arrays(), {"key_lengths": 46}, "46"),
    "huge offset": (jobs.arrays(), {"causal": True, "query_offset": 2**70}, "outside"),
    "infinite scale": (jobs.arrays(), {"scale": float("inf")}, "scale"),
    "unknown similarity": (jobs.arrays(), {"similarity": "manhattan"}, "manhattan"),
    "unknown backend": (jobs.arrays(), {"backend": "fortran"}, "fortran"),
    "complex": (jobs.arrays(dtype=np.complex64), {}, "complex"),
    "half": (jobs.arrays(dtype=np.float16), {}, "float32"),
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


def test_lengths_must_be_integers(tmp_path):
    inputs = jobs.arrays() | {"key_lengths": np.full((3, 1), np.nan)}
    with pytest.raises(JobError, match=r"key-lengths.*expected integers.*float64 \(3, 1\)"):
        run_job(jobs.save(tmp_path, inputs))


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
    with pytest.raises(JobError, match=r"value.*was changed"):
        run_job(job, Meddler(lambda: os.utime(job.value, (1, 1))))
    assert "out.npy" not in jobs.names(tmp_path)


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
