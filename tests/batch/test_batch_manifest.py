"""What is recorded beside an output: torn, damaged, foreign, forged, and of another version."""

import copy
import dataclasses
import hashlib
import json
import os
from pathlib import Path

import jobs
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastattn.batch import Interrupted, JobError, run_job
from fastattn.batch.folders import Folder
from fastattn.batch.manifest import FORMAT, Manifest, difference
from fastattn.batch.progress import Notes


class opened(Manifest):
    """The manifest beside out.npy in a folder, read as a resumed job reads it."""

    def __init__(self, place):
        super().__init__(Folder(str(place)), "out.npy")
        if self.job is not None:
            self.read_records(99)

    def close(self):
        super().close()
        self.folder.close()


def digest(number):
    return {"out": hashlib.sha256(bytes([number])).hexdigest()}


INPUT = {
    "bytes": 248,
    "mtime_ns": 1,
    "dtype": "<f4",
    "shape": [5, 6],
    "fortran_order": False,
    "data_offset": 128,
    "content": digest(0)["out"],
}
JOB = {
    "format": FORMAT,
    "numerics_version": 3,
    "backend": "reference",
    "bfloat16_dot": False,
    "inputs": {"query": INPUT, "key": INPUT, "value": INPUT},
    "options": {
        "similarity": "dot",
        "scale": 0.1,
        "causal": False,
        "window": [1, None],
        "softcap": None,
        "enable_gqa": False,
        "query_offset": None,
        "key_lengths": 3,
        "alibi_slopes": None,
        "sinks": [0.5, "-inf"],
    },
    "outputs": {"out": {"file": "out.npy", "bytes": 248}},
    "borders": {"axis": 0, "size": 3, "part_keys": None},
}


def recorded(place, entries=3):
    manifest = opened(place)
    manifest.start(JOB)
    for index in range(entries):
        manifest.record(digest(index))
    manifest.close()


def test_a_torn_manifest_keeps_its_whole_lines(tmp_path):
    recorded(tmp_path)
    data = (tmp_path / "out.npy.part.manifest").read_bytes()
    lines = data.splitlines(keepends=True)
    assert len(lines) == 4
    borders = np.cumsum([len(line) for line in lines])
    near = {border + step for border in (0, *borders) for step in range(-3, 4)}
    for length in sorted({*near, *range(0, len(data), 23)} & {*range(len(data) + 1)}):
        for tail in (b"", bytes(40), bytes(40) + b"\n"):  # cut, or with pages never written
            (tmp_path / "out.npy.part.manifest").write_bytes(data[:length] + tail)
            manifest = opened(tmp_path)
            whole = int(np.count_nonzero(borders <= length))
            assert len(manifest.records) == max(whole - 1, 0)
            assert (manifest.job is not None) == (whole > 0)
            manifest.close()


def test_a_damaged_record_ends_what_is_believed(tmp_path):
    recorded(tmp_path)
    data = bytearray((tmp_path / "out.npy.part.manifest").read_bytes())
    data[data.index(digest(1)["out"].encode()) + 7] ^= 4
    (tmp_path / "out.npy.part.manifest").write_bytes(data)
    manifest = opened(tmp_path)
    assert manifest.records == [digest(0)]
    manifest.forget(1)  # else the last one, which is whole, would follow the new one
    manifest.record(digest(7))
    manifest.close()
    manifest = opened(tmp_path)
    assert manifest.records == [digest(0), digest(7)]
    manifest.forget(1)
    manifest.record(digest(8))
    manifest.close()
    manifest = opened(tmp_path)
    assert manifest.records == [digest(0), digest(8)]
    manifest.close()


def test_a_foreign_file_is_no_manifest(tmp_path):
    (tmp_path / "out.npy.part.manifest").write_text("my notes\n")
    with pytest.raises(JobError, match="is no manifest of a job; if nothing else"):
        opened(tmp_path)
    assert (tmp_path / "out.npy.part.manifest").read_text() == "my notes\n"


def test_the_first_difference_is_named():
    was = {"options": {"scale": 0.1, "window": [1, None]}, "inputs": {"key": {"bytes": 5}}}
    assert difference(was, was) is None
    now = {"options": {"scale": 0.2, "window": [1, None]}, "inputs": {"key": {"bytes": 5}}}
    assert difference(now, was) == "options scale is 0.2 now and was 0.1 when the job began"
    now = {"options": was["options"], "inputs": {"key": {"bytes": 5}, "mask": {"bytes": 1}}}
    assert "inputs mask is" in str(difference(now, was))
    assert "was absent" in str(difference(now, was))


class Stop(Notes):
    """Interrupts a job when two chunks are done."""

    left = 2

    def advance(self, rows):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory):
    """A job that was broken off after two chunks, its manifest, and the lines of that."""
    place = tmp_path_factory.mktemp("unfinished")
    inputs = jobs.arrays((2, 2, 9, 4), (2, 2, 7, 4), value_features=3)
    lse_out = str(place / "lse.npy")
    job = jobs.save(place, inputs, backend="reference", chunk_rows=9, lse_out=lse_out, scale=0.5)
    with pytest.raises(Interrupted):
        run_job(job, Stop())
    path = place / "out.npy.part.manifest"
    return job, path, path.read_bytes().splitlines(keepends=True)


def refusal_of(unfinished, data):
    """What is said to a job that finds this manifest, and leaves as it is."""
    job, path, _ = unfinished
    if os.path.lexists(path):
        os.unlink(path)
    path.write_bytes(data)
    with pytest.raises(JobError) as refusal:
        run_job(dataclasses.replace(job, resume=True))
    assert refusal.value.exit_code in (1, 2)
    assert path.read_bytes() == data
    text = str(refusal.value)
    assert len(text) < 2000
    assert text.isprintable()
    assert "are kept" not in text
    return text


def forged(unfinished, *path, value="absent"):
    """The lines of the manifest with one field of the job changed, or removed."""
    _, _, lines = unfinished
    job = copy.deepcopy(json.loads(lines[0][9:]))
    place = job
    for name in path[:-1]:
        place = place[name]
    if value == "absent":
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return jobs.line_of(job) + b"".join(lines[1:])


FIELDS = [
    ("format",),
    ("numerics_version",),
    ("backend",),
    ("bfloat16_dot",),
    ("inputs",),
    ("inputs", "query"),
    *(("inputs", "key", name) for name in INPUT),
    ("options",),
    *(("options", name) for name in JOB["options"]),
    ("outputs",),
    ("outputs", "out"),
    ("outputs", "lse"),
    ("outputs", "out", "file"),
    ("outputs", "out", "bytes"),
    ("borders",),
    *(("borders", name) for name in JOB["borders"]),
]
WRONG = ["absent", 3.5, float("nan"), 10**400, "x" * 100_000, "\x1b[2J", [[[]]] * 2000, {"a": {}}]


@pytest.mark.parametrize("field", FIELDS, ids=" ".join)
def test_each_field_is_checked(field, unfinished):
    """A right checksum says nothing about what a line holds."""
    for value in WRONG:
        if field == ("options", "scale") and value == 3.5:
            continue  # a job it could be, and another one
        text = refusal_of(unfinished, forged(unfinished, *field, value=value))
        assert " ".join(field) in text, (value, text)
        assert "--overwrite instead of --resume" in text


CONTENTS = {
    "an unknown key": (("more",), 1, "its more should be absent"),
    "a key that moves the cursor": (("\x1b[2J",), 1, r"its \x1b[2J should be absent"),
    "an unknown input": (("inputs", "guess"), INPUT, "inputs guess should be absent"),
    "true for 1": (("numerics_version",), True, "numerics_version should be a whole number"),
    "a negative size": (("inputs", "query", "bytes"), -1, "inputs query bytes"),
    "a shape of 65 dims": (("inputs", "key", "shape"), [1] * 65, "inputs key shape"),
    "an infinite scale": (("options", "scale"), float("inf"), "options scale"),
    "half a window": (("options", "window"), [1], "options window"),
    "no such axis": (("borders", "axis"), 7, "borders make no sense: axis 7"),
    "a size beyond the axis": (("borders", "size"), 5, "borders make no sense: size 5"),
    "size 0": (("borders", "size"), 0, "borders size should be a whole number from 1"),
    "odd parts": (("borders", "part_keys"), 511, "part_keys 511, no multiple of 512"),
    "another scale": (("options", "scale"), 0.25, "options scale is 0.5 now and was 0.25"),
    "a file elsewhere": (("outputs", "lse", "file"), "../lse.npy", "outputs lse file"),
}


@pytest.mark.parametrize("case", CONTENTS)
def test_what_makes_no_sense_is_named(case, unfinished):
    field, value, text = CONTENTS[case]
    assert text in refusal_of(unfinished, forged(unfinished, *field, value=value))


DEEP = b"[" * 200_000 + b"]" * 200_000
LINES = {
    "no table": (jobs.line_of([1, 2]), "should be a table"),
    "no JSON": (jobs.line_of(b"{"), "should be JSON"),
    "a number": (jobs.line_of(b"7"), "should be a table"),
    "no ASCII": (jobs.line_of('{"é": 1}'.encode()), "should be JSON"),
    "a number of 9000 digits": (jobs.line_of(b"9" * 9000), "should be JSON"),
    "nested deeply": (jobs.line_of(DEEP), "nested too deeply"),
    "an inner part nested deeply": (jobs.line_of(b'{"format": %s}' % DEEP), "nested too deeply"),
    "the old format": (
        jobs.line_of({**JOB, "format": "fastattn job manifest 1"}),
        "another version",
    ),
    "a later format": (jobs.line_of({"format": "fastattn job manifest 30"}), "another version"),
}


@pytest.mark.parametrize("case", LINES)
def test_first_lines_that_no_job_writes(case, unfinished):
    line, text = LINES[case]
    said = refusal_of(unfinished, line)
    assert text in said
    assert "--overwrite instead of --resume to start again" in said


def test_another_spelling_of_the_same_is_not_what_was_written(unfinished):
    _, _, lines = unfinished
    text = lines[0][9:-1]
    for other in (text.replace(b": ", b":"), text.replace(b"{", b'{"backend": "numba", ', 1)):
        said = refusal_of(unfinished, jobs.line_of(other) + b"".join(lines[1:]))
        assert "should be spelled as JSON is written here" in said


RECORDS = {
    "no digest": ({"out": "abc", "lse": "abc"}, "record 1 out should be 64 hexadecimal digits"),
    "a number": ({"out": 1, "lse": "0" * 64}, "record 1 out"),
    "one output missing": ({"out": "0" * 64}, "record 1 lse should be there"),
    "an output more": ({"out": "0" * 64, "lse": "0" * 64, "x": 1}, "record 1 x should be absent"),
}


@pytest.mark.parametrize("case", RECORDS)
def test_records_that_no_job_writes(case, unfinished):
    entry, text = RECORDS[case]
    _, _, lines = unfinished
    assert text in refusal_of(unfinished, lines[0] + lines[1] + jobs.line_of(entry))


def test_more_records_than_chunks(unfinished):
    _, _, lines = unfinished
    text = refusal_of(unfinished, lines[0] + lines[1] * 5)
    assert "record 4 should be absent, of a job of 4 chunks" in text


def test_the_way_out_of_a_forged_manifest(unfinished):
    job, path, lines = unfinished
    parts = [Path(f"{job.out}.part"), Path(f"{job.lse_out}.part")]
    kept = {part: part.read_bytes() for part in parts}
    for data in (forged(unfinished, "borders", "axis", value="x"), LINES["the old format"][0]):
        refusal_of(unfinished, data)
        old = jobs.line_of(json.loads(lines[0][9:]) | {"format": "fastattn job manifest 1"})
        path.write_bytes(old if data is LINES["the old format"][0] else data)
        run_job(dataclasses.replace(job, overwrite=True))
        assert jobs.names(path.parent) == {"out.npy", "lse.npy"}
        assert np.load(job.out).shape == (2, 2, 9, 3)
        for part, contents in kept.items():
            part.with_suffix("").unlink()
            part.write_bytes(contents)


VALUES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=8),
        st.sampled_from([10**4000, "0" * 64, "out", 2**63, -1]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.sampled_from(FIELDS), VALUES, st.booleans(), st.binary(max_size=20))
def test_no_manifest_gets_more_than_a_refusal(unfinished, field, value, in_record, tail):
    job, path, lines = unfinished
    if in_record:
        data = lines[0] + jobs.line_of({"out": value, "lse": "0" * 64}) + tail
    else:
        data = forged(unfinished, *field, value=value) + tail
    place = Folder(str(path.parent))
    path.write_bytes(data)
    said = ""
    try:
        manifest = Manifest(place, "out.npy")
        said = manifest.fault or ""
        if manifest.job is not None:
            manifest.read_records(4)
        manifest.close()
    except JobError as refusal:
        said = str(refusal)
        if "manifest" in locals():
            manifest.close()
    place.close()
    assert len(said) < 2000
    assert said.isprintable()


@pytest.mark.parametrize("start", ["nothing", "a job"])
def test_a_huge_manifest_is_not_read_whole(start, unfinished, monkeypatch):
    job, path, lines = unfinished
    data = {"nothing": b"", "a job": b"".join(lines)}[start]
    path.write_bytes(data)
    os.truncate(path, 1 << 43)  # 8 TiB, sparse
    read = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda *given: read.append(given[1]) or pread(*given))
    if start == "nothing":
        with pytest.raises(JobError, match="is no manifest of a job"):
            run_job(dataclasses.replace(job, resume=True))
    else:
        manifest = opened(path.parent)
        assert len(manifest.records) == 2  # the rest was torn
        manifest.close()
    assert max(read) <= 1 << 20
    assert sum(read) < 1 << 23


def test_options_that_json_has_no_words_for(tmp_path):
    """Infinite sinks and numbers of NumPy's are recorded, and known again."""
    job = jobs.save(
        tmp_path,
        jobs.arrays((4, 9, 4), (4, 7, 4)),
        sinks=(-np.inf, np.float32(0.5), 1, 2.0),
        scale=np.float64(0.25),
        window=(np.int64(3), None),
        causal=True,
        query_offset=np.int32(2),
        chunk_rows=9,
    )
    with pytest.raises(Interrupted):
        run_job(job, Stop())
    plain = dataclasses.replace(job, sinks=(-np.inf, 0.5, 1.0, 2), scale=0.25, resume=True)
    assert run_job(plain).resumed_chunks == 2
