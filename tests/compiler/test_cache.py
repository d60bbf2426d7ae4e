"""The disk cache: hits across processes, sees every change, and is never the cause of an error."""

import json
import os
import shutil
import textwrap
from pathlib import Path

import children
import numba
import pytest
from cached import HIT, MISS, REPORT, report
from places import SUPPORT, TESTS

from fastattn._numba.compiler import compile, launch
from fastattn._numba.compiler import disk as cache


def cells(folder):
    return sorted(Path(folder).rglob("*.cell"))


@pytest.fixture
def place(tmp_path):
    """A place for a cache that does not exist yet."""
    return tmp_path / "compiled"


@pytest.fixture(scope="module")
def filled_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filled") / "compiled"
    assert report(folder) == MISS
    return folder


@pytest.fixture
def filled(filled_once, place):
    """A place filled by another process."""
    shutil.copytree(filled_once, place)
    return place


def test_a_second_process_compiles_nothing(filled):
    before = {path: path.read_bytes() for path in cells(filled)}
    assert len(before) == 2
    assert report(filled) == HIT
    assert {path: path.read_bytes() for path in cells(filled)} == before


def test_folders_are_private(filled):
    for folder in (filled, *(path.parent for path in cells(filled))):
        assert folder.stat().st_mode & 0o777 == 0o700
    for cell in cells(filled):
        assert cell.stat().st_mode & 0o777 == 0o600


def test_it_can_be_switched_off(filled):
    before = cells(filled)
    assert report(filled, FASTATTN_CACHE="0") == MISS
    assert cells(filled) == before


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _replace_by_a_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [_truncate, _replace_by_a_folder])
def test_a_damaged_cell_is_compiled_anew(filled, damage):
    for cell in cells(filled):
        damage(cell)
    assert report(filled) == MISS
    assert report(filled) == (HIT if damage is _truncate else MISS)


def test_a_swapped_cell_is_not_taken_for_another(filled):
    first, second = cells(filled)
    first.write_bytes(second.read_bytes())
    assert report(filled) == [True, False]
    assert report(filled) == HIT


def test_a_whole_cell_with_nonsense_inside_is_compiled_anew(filled):
    """It passes every check of the store, but Numba cannot make sense of it."""
    code = """
from fastattn._numba.compiler import store
real_fetch = store.Store.fetch
def fetch(self, name):
    files = real_fetch(self, name)
    return files and {member: b"no pickle" for member in files}
store.Store.fetch = fetch
"""
    assert report(filled) == HIT
    assert report(filled, code) == MISS


needs_user = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)


def test_an_unusable_place_is_no_error(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    assert report(in_the_way / "below") == MISS
    assert report(in_the_way) == MISS
    assert in_the_way.read_text() == "not a folder"
    assert report("/proc/none/fastattn") == MISS


def test_a_missing_home_is_no_error(tmp_path):
    code = 'import os\nos.environ.pop("FASTATTN_CACHE_DIR")\n'
    homes = {"HOME": "/nonexistent/home", "XDG_CACHE_HOME": ""}
    assert report("unused", code, **homes) == MISS
    assert not Path("/nonexistent").exists()
    homes = {"HOME": tmp_path, "XDG_CACHE_HOME": ""}
    assert report("unused", code, **homes) == MISS
    assert report("unused", code, **homes) == HIT
    homes["XDG_CACHE_HOME"] = tmp_path / "elsewhere"
    assert report("unused", code, **homes) == MISS
    assert cells(tmp_path / "elsewhere" / "fastattn")


# The file system says no, as a read-only or full disk would (modes do not stop root).
_NO_WRITES = """
import builtins, errno, os, tempfile
def refuse(*arguments, **options):
    raise OSError(errno.{error}, os.strerror(errno.{error}))
real_open = os.open
def open_to_read(path, flags, *arguments, **options):
    if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and "{place}" in str(path):
        refuse()
    return real_open(path, flags, *arguments, **options)
os.open = open_to_read
real_mkstemp = tempfile.mkstemp
def mkstemp(*arguments, dir=None, **options):
    return refuse() if "{place}" in str(dir) else real_mkstemp(*arguments, dir=dir, **options)
tempfile.mkstemp = mkstemp
os.utime = refuse
"""


@pytest.mark.parametrize("error", ["EROFS", "ENOSPC"])
def test_a_disk_that_takes_nothing_is_still_read(filled, error):
    no_writes = _NO_WRITES.format(error=error, place=filled)
    assert report(filled, no_writes) == HIT
    for cell in cells(filled):
        cell.unlink()
    assert report(filled, no_writes) == MISS
    assert not cells(filled)


@needs_user
def test_a_read_only_folder_is_still_read(filled):
    folder = cells(filled)[0].parent
    folder.chmod(0o500)
    try:
        assert report(filled) == HIT
    finally:
        folder.chmod(0o700)


def test_no_room_for_temporary_files_is_no_error(place):
    code = """
import errno, tempfile
def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "no space left")
tempfile.mkdtemp = full
"""
    assert report(place, code) == MISS


def test_a_disk_that_fills_while_numba_writes_is_no_error(place):
    code = """
import errno
from numba.core.caching import IndexDataCacheFile
def full(*arguments, **options):
    raise OSError(errno.ENOSPC, "no space left")
IndexDataCacheFile.save = full
"""
    assert report(place, code) == MISS


def test_a_refused_folder_is_not_used(filled):
    filled.chmod(0o777)
    assert report(filled) == MISS
    filled.chmod(0o700)
    assert report(filled) == HIT


def test_a_cell_others_can_write_is_refused(filled):
    for cell in cells(filled):
        cell.chmod(0o666)
    assert report(filled) == MISS


def test_a_version_folder_that_is_a_link_is_refused(filled, tmp_path):
    folder = cells(filled)[0].parent
    folder.rename(tmp_path / "away")
    folder.symlink_to(tmp_path / "away")
    assert report(filled) == MISS


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away"
)
def test_what_others_own_is_refused(filled):
    for path in (filled, cells(filled)[0].parent):
        os.chown(path, 12345, -1)
        assert report(filled) == MISS
        os.chown(path, os.geteuid(), -1)
    assert report(filled) == HIT
    os.chown(cells(filled)[0], 12345, -1)
    assert report(filled) == [True, False]


def test_racing_processes_compile_once(place):
    racers = [children.start(REPORT, FASTATTN_CACHE_DIR=place) for _ in range(4)]
    reports = [json.loads(children.finish(racer)) for racer in racers]
    for one in range(2):
        assert sorted(found[one] for found in reports) == [False, True, True, True]
    assert report(place) == HIT


def test_a_lock_held_for_ever_only_costs_time(place):
    code = "from fastattn._numba.compiler import store\nstore._LOCK_SECONDS = 0.2\n"
    assert report(place) == MISS
    held = []
    import fcntl

    for lock in place.rglob("*.lock"):
        held.append(lock.open("w"))
        fcntl.flock(held[-1], fcntl.LOCK_EX)
    assert len(held) == 2
    assert report(place) == HIT  # reading needs no lock
    for cell in cells(place):
        cell.unlink()
    assert report(place, code) == MISS
    for lock in held:
        lock.close()


def test_threads_compile_once(place):
    code = """
import threading
import toy_kernels as toy
found = []
threads = [threading.Thread(target=lambda: found.append(toy.count.address)) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(set(found)) == 1 and found[0] > 0
"""
    assert report(place, code) == MISS


def test_the_users_numba_cache_is_left_alone(tmp_path, place):
    theirs = tmp_path / "numba"
    code = """
import numba, os
from fastattn._numba.compiler import compile
names = "CACHE_DIR", "CACHE_LOCATOR_CLASSES"  # the second came with numba 0.62
before = [getattr(numba.config, name, None) for name in names]
"""
    after = """
assert [getattr(numba.config, name, None) for name in names] == before, before
assert os.environ["NUMBA_CACHE_DIR"] == before[0]
"""
    for expected in ("[false, false]", "[true, true]"):
        output = children.run(
            code + REPORT + after, FASTATTN_CACHE_DIR=place, NUMBA_CACHE_DIR=theirs
        )
        assert output.strip() == expected
    assert not theirs.exists()
    assert not (SUPPORT / "__pycache__").joinpath("toy_kernels.nbi").exists()
    assert not list(TESTS.rglob("*.nbi"))
    assert not list(children.PACKAGES.joinpath("fastattn").rglob("*.nbi"))


def test_a_users_choice_of_locators_is_no_matter(place):
    variables = {"NUMBA_CACHE_LOCATOR_CLASSES": "InTreeCacheLocator"}
    assert report(place, **variables) == MISS
    assert report(place, **variables) == HIT
    assert not list(TESTS.rglob("*.nbi"))


@pytest.mark.parametrize(
    ("name", "value"), [("OPT", 2), ("LOOP_VECTORIZE", 0), ("BOUNDSCHECK", 1), ("ENABLE_AVX", 7)]
)
def test_settings_of_the_compiler_are_kept_apart(monkeypatch, name, value):
    before = cache.version_name()
    monkeypatch.setattr(numba.config, name, value)
    assert cache.version_name() != before


def test_processors_are_kept_apart(filled):
    other = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    assert report(filled, **other) == MISS
    assert report(filled) == HIT


def test_entries_of_a_shell_work_without_a_cache(tmp_path):
    code = textwrap.dedent(
        """
        import numpy as np
        from fastattn._engine.launcher import Launcher
        from fastattn._numba.compiler import compile, native, launch
        @compile.entry
        def entry(call, worker):
            native.store_int64(call, 3, 42)
        record = np.zeros(8, np.int64)
        Launcher(launch.layer).run(entry, record, 1, 1e-9, 1)
        print(record[3], entry.from_cache)
        """
    )
    assert children.run(code).split() == ["42", "False"]


def test_warm_compiles_what_is_listed():
    import toy_kernels as toy

    compile.warm([toy.count, toy.arithmetic, launch._serial])
    assert all(one.seconds is not None for one in (toy.count, toy.arithmetic, launch._serial))


def test_describe_says_where_or_why_not(place, monkeypatch):
    monkeypatch.setenv("FASTATTN_CACHE_DIR", str(place))
    assert cache.describe()["folder"].startswith(str(place))
    monkeypatch.setenv("FASTATTN_CACHE", "0")
    assert cache.describe()["folder"] is None
    assert "FASTATTN_CACHE" in cache.describe()["refusal"]


def test_errors_of_a_kernel_are_told_at_once(tmp_path, monkeypatch):
    from numba.core.errors import NumbaError

    monkeypatch.setenv("FASTATTN_CACHE_DIR", str(tmp_path / "compiled"))
    made = []

    def wrong(call, worker):
        return call.no_such_thing

    entry = compile.entry(wrong)
    make = entry._make
    entry._make = lambda: made.append(1) or make()
    with pytest.raises(NumbaError, match="no_such_thing"):
        _ = entry.address
    assert len(made) == 1  # compiled once, not once more without the cache
