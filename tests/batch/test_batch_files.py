"""Reading and cutting: boxes of `.npy` files, files that lie, chunks within a limit."""

import os
import stat
import tempfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastattn.batch import JobError, parse_size, readers
from fastattn.batch.borders import Borders, Layout, Operand, choose_borders, memory_needed
from fastattn.batch.errors import UsageError
from fastattn.batch.readers import NpyFile


@pytest.mark.parametrize("buffers", [(1 << 16, 1 << 20), (1, 1), (64, 1 << 20), (1 << 16, 100)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_any_box_is_what_slicing_gives(order, buffers, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "_GAP_BYTES", buffers[0])
    monkeypatch.setattr(readers, "SPAN_BYTES", buffers[1])
    monkeypatch.setattr(readers, "_READ_BYTES", 56)
    random = np.random.default_rng(3)
    for shape in ((), (7,), (5, 6), (3, 4, 5), (2, 1, 3, 4)):
        array = np.asarray(random.standard_normal(shape), order=order)
        np.save(tmp_path / "a.npy", array)
        file = NpyFile("query", str(tmp_path / "a.npy"))
        for _ in range(12):
            box = [sorted(random.integers(0, n + 1, 2).tolist()) for n in shape]
            found = file.read(box)
            expected = array[tuple(slice(*span) for span in box)]
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
        file.close()


def test_scattered_reads_are_gathered(tmp_path, monkeypatch):
    array = np.asfortranarray(np.arange(200_000, dtype=np.float32).reshape(1000, 200))
    np.save(tmp_path / "a.npy", array)
    calls = []
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda *given: calls.append(given) or preadv(*given))
    file = NpyFile("query", str(tmp_path / "a.npy"))
    np.testing.assert_array_equal(file.read([(10, 20), (0, 200)]), array[10:20])
    assert len(calls) == 1  # and not one for each of 200 columns
    file.close()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_format_versions_are_read(version, tmp_path):
    with open(tmp_path / "a.npy", "wb") as file:
        np.lib.format.write_array(file, np.arange(6.0).reshape(2, 3), version=version)
    found = NpyFile("query", str(tmp_path / "a.npy"))
    np.testing.assert_array_equal(found.read([(1, 2), (0, 3)]), [[3.0, 4.0, 5.0]])
    found.close()


def npy(header: str, data: bytes = b"", version=(1, 0)) -> bytes:
    text = header.encode() + b"\n"
    size = len(text).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + text + data


GOOD = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}"
DAMAGED = {
    "empty": (b"", "an empty file"),
    "text": (b"1.0,2.0\n3.0,4.0\n", "begins with b'1.0,2.0"),
    "archive": (b"PK\x03\x04" + bytes(100), r"\.npz"),
    "pickle": (b"\x80\x04\x95" + bytes(100), "pickle"),
    "first bytes only": (b"\x93NUMPY\x01", "only the first bytes"),
    "version 9": (npy(GOOD, bytes(24), (9, 0)), r"format 9\.0"),
    "header cut": (npy(GOOD)[:40], "header claims to be"),
    "header too long": (b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + bytes(100), "header claims to be"),
    "header no dict": (npy("[1, 2]", bytes(24)), "cannot be read"),
    "header no literal": (npy("__import__('os')", bytes(24)), "cannot be read"),
    "header nested": (npy("(" * 500 + ")" * 500, bytes(24)), "cannot be read"),
    "header of signs": (npy("-" * 60_000 + "1", bytes(24)), "cannot be read"),
    "header of sums": (npy("1+" * 20_000 + "1", bytes(24)), "cannot be read"),
    "header with a warning": (npy(r"{'descr': '\d'}", bytes(24)), "cannot be read"),
    "no shape": (npy("{'descr': '<f4', 'fortran_order': False}", bytes(24)), "cannot be read"),
    "negative": (npy(GOOD.replace("2, 3", "-2, -3"), bytes(24)), "cannot be read"),
    "fractions": (npy(GOOD.replace("2, 3", "2.0, 3"), bytes(24)), "cannot be read"),
    "unknown dtype": (npy(GOOD.replace("<f4", "<z9"), bytes(24)), "cannot be read"),
    "objects": (npy(GOOD.replace("<f4", "|O"), bytes(48)), "pickled Python objects"),
    "records": (npy(GOOD.replace("'<f4'", "[('x', '<f4')]"), bytes(24)), "expected numbers"),
    "data cut": (npy(GOOD, bytes(23)), r"\(2, 3\), which is 24 bytes.*only 23"),
    "claims 4 TiB": (npy(GOOD.replace("2, 3", "1048576, 1048576")), r"4 TiB"),
    "claims 2**122": (npy(GOOD.replace("2, 3", f"{2**62}, {2**58}")), "more than any file holds"),
    "a length of 2**100": (npy(GOOD.replace("2, 3", f"{2**100}, 0")), "cannot be read"),
    "a length of 9000 digits": (npy(GOOD.replace("2, 3", "9" * 9000 + ",")), "cannot be read"),
    "65 dims": (npy(GOOD.replace("2, 3", "1, " * 65), bytes(4)), "cannot be read"),
    "a thousand names": (npy(GOOD.replace("'<f4'", str([("x" * 50, "<f4")] * 1000))), "numbers"),
    "a long name": (npy(GOOD.replace("<f4", "z" * 60_000)), "cannot be read"),
    "a name that moves the cursor": (npy(GOOD.replace("<f4", r"\x1b[2J\r")), r"\\x1b\[2J"),
    "a dtype of a shape": (npy(GOOD.replace("<f4", "(2,)f4")), "expected numbers"),
    "two arrays": (npy(GOOD, bytes(48)), "48 follow"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_are_refused_by_name(case, tmp_path):
    data, text = DAMAGED[case]
    path = tmp_path / "q.npy"
    path.write_bytes(data)
    opened = len(os.listdir("/proc/self/fd"))
    with pytest.raises(JobError, match=text) as refusal:
        NpyFile("query", str(path))
    assert f"query file {path}: " in str(refusal.value)
    assert len(str(refusal.value)) < 1000
    assert str(refusal.value).isprintable()
    assert refusal.value.exit_code == 1
    assert len(os.listdir("/proc/self/fd")) == opened


WORDS = st.one_of(
    st.sampled_from(["<f4", "|O", "V2", "f4,f4", "M8[ns]", "(3,)f4", "", "U9", "0", "<f4 "]),
    st.text(max_size=20),
)
LITERALS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=5), WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.dictionaries(WORDS, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=150)
@given(
    st.one_of(
        st.fixed_dictionaries(
            {
                "descr": st.one_of(WORDS, LITERALS),
                "fortran_order": st.one_of(st.booleans(), LITERALS),
                "shape": st.one_of(st.lists(st.integers(-2, 2**70)).map(tuple), LITERALS),
            }
        ).map(repr),
        LITERALS.map(repr),
        st.text(max_size=60),
    ),
    st.binary(max_size=30),
)
def test_no_header_gets_more_than_a_refusal(header, data):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "q.npy")
        with open(path, "wb") as file:
            file.write(npy(header, data, (2, 0)))
        said = ""
        try:
            NpyFile("query", path).close()
        except JobError as refusal:
            said = str(refusal)
        assert len(said) < 1000
        assert said.isprintable()


def test_endless_labels_are_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(readers, "_TEXT_BYTES", 100)
    (tmp_path / "long").write_text("x" * 101)
    (tmp_path / "good").write_text("é")
    for path, text in (
        ("/dev/zero", "a character device"),
        (tmp_path / "pipe", "a named pipe"),
        (tmp_path, "a folder"),
        (tmp_path / "long", "larger than 100 bytes"),
    ):
        with pytest.raises(JobError, match=text):
            readers.read_text("labels", str(path))
    assert readers.read_text("labels", str(tmp_path / "good")) == "é"


def test_what_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, text in (
        (tmp_path / "absent", "No such file.*check the path"),
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "a named pipe"),
        ("/dev/zero", "a character device"),
    ):
        with pytest.raises(JobError, match=text):
            NpyFile("query", str(path))
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)


def test_an_unreadable_file(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(JobError, match=r"Permission denied; change its permissions"):
        NpyFile("query", str(tmp_path / "a.npy"))


@pytest.mark.parametrize(
    ("text", "size"),
    [("700", 700), ("512M", 1 << 29), ("2G", 1 << 31), ("1.5k", 1536), ("3 MiB", 3 << 20)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1G", "1X", "nan", "0", "1e9", "9" * 400])
def test_what_is_no_size(text):
    with pytest.raises(ValueError, match="512M"):
        parse_size(text)


@st.composite
def layouts(draw):
    size = st.integers(1, 6)
    batch = tuple(draw(st.lists(size, max_size=3)))
    group = draw(st.sampled_from([1, 2, 3, 4])) if batch else 1
    heads = (*batch[:-1], batch[-1] * group) if batch else ()
    rows, keys, features, values = (draw(st.integers(1, n)) for n in (3000, 5000, 70, 70))
    shared = draw(st.booleans())
    key_batch = () if shared else batch
    return Layout(
        batch=heads,
        rows=rows,
        keys=keys,
        features=features,
        value_features=values,
        group=group,
        operands={
            "query": Operand((*heads, rows, features), 4, ("rows", "features")),
            "key": Operand((*key_batch, keys, features), 4, ("keys", "features"), group > 1),
            "value": Operand((*key_batch, keys, values), 4, ("keys", "features"), group > 1),
            "mask": Operand((rows, keys), 1, ("rows", "keys")),
        },
        row_bytes=4 * values,
        compute_itemsize=4,
    )


@settings(max_examples=150)
@given(layouts(), st.integers(20, 28), st.one_of(st.none(), st.integers(1, 5000)))
def test_chunks_tile_the_output_within_the_limit(layout, exponent, chunk_rows):
    def scratch(borders):
        return 1000

    limit = 1 << exponent
    try:
        borders = choose_borders(layout, limit, scratch, chunk_rows)
    except UsageError:
        least = Borders(len(layout.batch), 1, 512)
        assert memory_needed(layout, least, scratch) > limit
        return
    assert memory_needed(layout, borders, scratch) <= limit
    next_row = 0
    count = borders.count(layout.extents)
    for index in range(count):
        chunk = borders.chunk(layout.extents, index)
        assert chunk.first_row == next_row
        next_row += chunk.row_count
        assert chunk.row_count > 0
        if chunk_rows is not None:
            assert chunk.row_count <= chunk_rows
        if layout.group > 1:
            start, stop = chunk.batch[-1]
            whole_groups = start % layout.group == 0 and stop % layout.group == 0
            assert whole_groups or start // layout.group == (stop - 1) // layout.group
    assert next_row == layout.total_rows
    if borders.part_keys:
        assert borders.part_keys % 512 == 0
        parts = list(borders.parts((700, min(3000, layout.keys))))
        assert parts[0][0] <= 700
        assert all(start % 512 == 0 for start, _ in parts)
