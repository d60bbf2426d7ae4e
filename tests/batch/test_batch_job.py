"""What a job computes does not depend on how it was cut, and is what one call gives."""

import jobs
import numpy as np
import pytest

import fastattn
from fastattn.batch import unfinished
from fastattn.batch.borders import Borders, _allowed_sizes
from fastattn.batch.readers import NpyFile

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
    "scales": (
        jobs.arrays((3, 4, 37, 8), (3, 2, 45, 8)) | {"scale": RANDOM.standard_normal((3, 4))},
        {"enable_gqa": True, "similarity": "euclidean"},
    ),
    "scales of heads": (
        jobs.arrays((4, 37, 8), (4, 45, 8)),
        {"scale": (0.5, -0.25, 0.0, 3.0), "sinks": (0.5,)},
    ),
    "more dims than NumPy broadcasts": (
        jobs.arrays((*(1,) * 31, 2, 1, 9, 8), (*(1,) * 32, 3, 20, 8)),
        {"causal": "top_left"},
    ),
    "slopes": (
        jobs.arrays() | {"alibi_slopes": RANDOM.random((3, 1)).astype(np.float32)},
        {"window": (30, None)},
    ),
    "slopes at offsets": (
        jobs.arrays() | {"query_offset": RANDOM.integers(-40, 40, (3, 4))},
        {"alibi_slopes": (0.5, -0.25, 0.125, 0.0)},
    ),
    "sinks": (
        jobs.arrays((2, 12, 9, 8), (2, 3, 20, 8)) | {"sinks": RANDOM.standard_normal(12)},
        {"enable_gqa": True, "causal": "top_left"},
    ),
    "sinks and slopes of all": (
        jobs.arrays((70, 8), (600, 8)),
        {"sinks": (-1.5,), "alibi_slopes": (0.01,), "causal": "bottom_right"},
    ),
    "segments": (
        jobs.arrays()
        | {
            "query_segments": np.sort(RANDOM.integers(0, 4, (3, 1, 37))).astype(np.int16),
            "key_segments": np.sort(RANDOM.integers(0, 4, (3, 1, 45))),
        },
        {"key_lengths": 40},
    ),
    "segments of one query": (
        jobs.arrays((8,), (3, 45, 8))
        | {
            "query_segments": np.array(2, np.uint8),
            "key_segments": RANDOM.integers(0, 4, 45),
        },
        {},
    ),
    "halves": (
        jobs.arrays(dtype=np.float16) | {"mask": RANDOM.random((4, 37, 45)).astype(np.float16)},
        {"causal": "bottom_right", "sinks": (0.5, -np.inf, 1.0, 2.0)},
    ),
    "halves and singles": (
        jobs.arrays() | {"key": jobs.arrays(dtype=np.float16)["key"]},
        {},
    ),
    "no keys": (jobs.arrays(key=(3, 4, 0, 8)), {"sinks": (1.0,)}),
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

    monkeypatch.setattr(unfinished, "choose_borders", first)
    borders = [None]
    checked = 0
    while borders:
        chosen = borders.pop()
        if chosen is not None:
            monkeypatch.setattr(unfinished, "choose_borders", lambda *_, chosen=chosen: chosen)
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
    "segments": (
        jobs.arrays((2, 70, 8), (2, 1700, 8))
        | {
            "query_segments": np.sort(RANDOM.integers(0, 5, (2, 70))),
            "key_segments": np.sort(RANDOM.integers(0, 5, 1700)).astype(np.uint32),
        },
        {"window": (1500, None), "query_offset": 1400},
    ),
    "slopes and sinks": (
        jobs.arrays((3, 30, 8), (3, 1700, 8))
        | {"sinks": np.array([0.5, -np.inf, 3.0]), "key_lengths": np.array([0, 511, 1030])},
        {"alibi_slopes": (0.5, 0.01, -0.001), "causal": "bottom_right", "scale": (0.3, 0.7, -2.0)},
    ),
    "halves": (jobs.arrays((2, 70, 8), (2, 1700, 8), dtype=np.float16), {"causal": "top_left"}),
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
            if len(layout.extents) == 1:
                size = 151 * size
            return Borders(axis % len(layout.extents), size, part)

        monkeypatch.setattr(unfinished, "choose_borders", chosen)
        summary, results = jobs.finished(job)
        parts_seen.add(summary.part_keys)
        for result, one in zip(results, expected, strict=True):
            assert jobs.same_bits(result, one), (axis, size, part)
    assert parts_seen == {512, 1024, 2048}


def test_streaming_reads_only_the_parts_that_are_seen(tmp_path, monkeypatch):
    inputs = jobs.arrays((1600, 8), (1600, 8))
    job = jobs.save(tmp_path, inputs, causal=True, window=(100, 0))
    monkeypatch.setattr(unfinished, "choose_borders", lambda *_: Borders(0, 400, 512))
    boxes = []
    read = NpyFile.read

    def watched(file, box):
        if file.role == "key":
            boxes.append(tuple(box[0]))
        return read(file, box)

    monkeypatch.setattr(NpyFile, "read", watched)
    _, (result,) = jobs.finished(job)
    # Rows 0..399 see keys 0..399, rows 400..799 see 300..799, and so on.
    assert boxes == [
        (0, 400),
        (0, 512),
        (512, 800),
        (512, 1024),
        (1024, 1200),
        (1024, 1536),
        (1536, 1600),
    ]
    assert jobs.same_bits(result, at_once(inputs, {"causal": True, "window": (100, 0)}, None)[0])


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


@pytest.mark.parametrize("part", [None, 512])
def test_bfloat16_is_what_numpy_saves_of_it(part, exact_backend, tmp_path, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    inputs = jobs.arrays((2, 70, 8), (2, 1700, 8), dtype=ml_dtypes.bfloat16)
    expected = at_once(inputs, {}, exact_backend)
    assert expected[0].dtype == ml_dtypes.bfloat16
    job = jobs.save(tmp_path, inputs, lse_out=str(tmp_path / "lse.npy"), bfloat16=True)
    monkeypatch.setattr(unfinished, "choose_borders", lambda *_: Borders(1, 33, part))
    summary, (output, lse) = jobs.finished(job)
    assert summary.dtype == "bfloat16"
    assert summary.chunks == 6
    assert jobs.same_bits(output.view(ml_dtypes.bfloat16), expected[0])
    assert jobs.same_bits(lse, expected[1])
    np.save(tmp_path / "query.npy", expected[0])
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "query.npy").read_bytes()


@pytest.mark.parametrize("case", STREAMED)
def test_the_reference_streams_too(case, tmp_path, monkeypatch):
    inputs, options = STREAMED[case]
    expected = at_once(inputs, options, "reference")
    job = jobs.save(
        tmp_path, inputs, **options, lse_out=str(tmp_path / "lse.npy"), backend="reference"
    )
    monkeypatch.setattr(unfinished, "choose_borders", lambda *_: Borders(0, 300, 512))
    _, results = jobs.finished(job)
    for result, one in zip(results, expected, strict=True):
        # A sum in another order may fall on the other side of a half's rounding.
        rtol = 1e-3 if result.dtype == np.float16 else 1e-5
        np.testing.assert_allclose(result, one, rtol=rtol, atol=1e-6)


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
