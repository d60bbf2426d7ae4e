"""The store of compiled code: what it trusts, what it refuses, and how it stays small."""

import os
from pathlib import Path

import pytest

from fastattn._numba.compiler import store


@pytest.fixture
def place(tmp_path):
    """A place for a cache that does not exist yet."""
    return tmp_path / "compiled"


def cells(folder):
    return sorted(Path(folder).rglob("*.cell"))


@pytest.mark.parametrize("off", ["0", "off", "No", "FALSE"])
def test_words_that_switch_it_off(monkeypatch, off):
    monkeypatch.setenv("FASTATTN_CACHE_DIR", "/somewhere")
    assert str(store.root()) == "/somewhere"
    monkeypatch.setenv("FASTATTN_CACHE", off)
    assert store.root() is None


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _another_version(path):
    path.write_bytes(b"fastattn compiled 0\n" + path.read_bytes()[20:])


DAMAGES = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "one bit flipped": _flip,
    "of another version": _another_version,
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cell_is_a_miss(place, damage):
    kept = store.Store(place, "version")
    kept.put("name", {"index": b"content" * 100, "data": b"more" * 1000})
    assert kept.fetch("name") == {"index": b"content" * 100, "data": b"more" * 1000}
    DAMAGES[damage](kept._path("name"))
    assert kept.fetch("name") is None
    kept.put("name", {"index": b"new"})
    if damage != "a folder":  # nothing that we did not write is removed
        assert kept.fetch("name") == {"index": b"new"}


@pytest.mark.parametrize("which", ["place", "place/version"])
@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o777])
def test_a_folder_others_can_write_is_refused(tmp_path, which, mode):
    def opened():
        return store.Store(tmp_path / "place", "version")

    assert opened().refusal is None
    (tmp_path / which).chmod(mode)
    assert "can be written by others" in opened().refusal
    (tmp_path / which).chmod(0o755)  # others may read
    assert opened().refusal is None


def test_a_refused_folder_is_named(place, caplog):
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    opened = store.Store(place, "version")
    assert str(place) in opened.refusal
    assert "chmod 700" in opened.refusal
    assert str(place) in caplog.text
    assert not list(place.iterdir())


def _fill(place, version, sizes, age):
    folder = store.Store(place, version).folder
    for number, size in enumerate(sizes):
        path = folder / f"c{number}.cell"
        path.write_bytes(b"x" * size)
        os.utime(path, (age + number, age + number))
    os.utime(folder, (age, age))
    return folder


def test_old_versions_are_dropped(place):
    folders = [_fill(place, f"v{number}", [10], age=1000 + number) for number in range(6)]
    stranger = place / "v0" / "notes.txt"
    stranger.write_text("not ours")
    os.utime(place / "v0", (1000, 1000))
    store.prune(place, folders[1], most_folders=3)
    assert sorted(path.name for path in place.iterdir()) == ["v0", "v1", "v4", "v5"]  # v1 is in use
    assert [path.name for path in (place / "v0").iterdir()] == ["notes.txt"]


def test_the_size_is_bounded(place):
    old = _fill(place, "old", [400, 400], age=1000)
    new = _fill(place, "new", [400, 400], age=2000)
    store.prune(place, new, most_bytes=1300)
    assert [path.name for path in cells(place)] == ["c0.cell", "c1.cell", "c1.cell"]
    assert [path.name for path in old.iterdir()] == ["c1.cell"]
    store.prune(place, new, most_bytes=500)
    assert cells(place) == [new / "c1.cell"]


def test_every_filling_prunes(place, monkeypatch):
    pruned = []
    monkeypatch.setattr(store, "prune", lambda *arguments: pruned.append(arguments))
    kept = store.Store(place, "version")
    kept.put("name", {"a": b"content"})
    assert pruned == [(place, kept.folder)]
    assert kept.fetch("name") == {"a": b"content"}
    assert store.MOST_BYTES <= 2**30


def test_use_keeps_a_cell_young(place):
    kept = store.Store(place, "version")
    kept.put("name", {"a": b"content"})
    path = kept._path("name")
    os.utime(path, (1000, 1000))
    kept.fetch("name")
    assert path.stat().st_mtime > 1000


def test_what_a_killed_process_left_is_tidied(place):
    kept = store.Store(place, "version")
    old, young = kept.folder / "a.tmp", kept.folder / "b.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1000, 1000))
    kept.put("name", {"a": b"content"})
    assert not old.exists()
    assert young.exists()  # somebody may be writing it


def test_a_cell_answers_to_its_own_name_only(place):
    kept = store.Store(place, "version")
    kept.put("name", {"a": b"content"})
    os.replace(kept._path("name"), kept._path("other name"))
    assert kept.fetch("other name") is None
    os.replace(kept._path("other name"), kept._path("name"))
    assert kept.fetch("name") == {"a": b"content"}
