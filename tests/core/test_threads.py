"""How many threads: who is asked first, what is refused, what the machine and containers grant."""

import os
from concurrent.futures import ThreadPoolExecutor

import children
import numpy as np
import pytest

from fastattn._core import threads


@pytest.fixture
def machine(monkeypatch):
    """Eight processors without quota or setting; the returned function changes that."""
    monkeypatch.setattr(threads, "_chosen", None)
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def is_like(existing=8, quota=None, setting=None, openmp=None):
        monkeypatch.setattr(threads, "_affinity", lambda: existing)
        monkeypatch.setattr(threads, "cpu_quota", lambda: quota)
        if setting is not None:
            monkeypatch.setenv("NUMBA_NUM_THREADS", setting)
        if openmp is not None:
            monkeypatch.setenv("OMP_NUM_THREADS", openmp)
        monkeypatch.setattr(threads, "_machine", None)

    is_like()
    return is_like


def test_the_machine_decides_by_default(machine):
    assert threads.resolve() == 8


@pytest.mark.parametrize(
    ("quota", "expected"), [(3.0, 3), (2.5, 3), (0.2, 1), (8.0, 8), (64.0, 8), (None, 8)]
)
def test_a_quota_limits_the_default(machine, quota, expected):
    machine(quota=quota)
    assert threads.resolve() == expected
    assert threads.resolve(8) == 8  # asked for by word


def test_order_of_precedence(machine):
    machine(quota=7.0)
    assert threads.resolve() == 7
    machine(quota=3.0, openmp="6")
    assert threads.resolve() == 6
    machine(quota=7.0, setting="5", openmp="6")
    assert threads.resolve() == 5
    threads.set_threads(4)
    assert threads.resolve() == 4
    with threads.threads(3):
        assert threads.resolve() == 3
        assert threads.resolve(2) == 2
    assert threads.resolve() == 4
    assert threads.resolve(3) == 3
    threads.set_threads(None)
    assert threads.resolve() == 5


def test_a_team_counts_after_what_was_said_to_us(machine):
    """Another library's threads: as many as it has, unless somebody told fastattn."""
    machine(openmp="6")
    with threads.in_company(threads.Team(3, 0)):
        assert threads.resolve() == 3
        assert threads.resolve(4) == 4
        with threads.threads(2):
            assert threads.resolve() == 2
            assert threads.team() == (3, 0)
            with threads.in_company(None):
                assert threads.resolve() == 2
                assert threads.team() is None
        threads.set_threads(5)
        assert threads.resolve() == 5
        threads.set_threads(None)
        machine(setting="7")
        assert threads.resolve() == 7
    with threads.in_company(threads.Team(30, 0)):
        machine()
        assert threads.resolve() == 7
    assert threads.team() is None


def test_blocks_nest_and_end_with_errors(machine):
    with threads.threads(4):
        with pytest.raises(ValueError, match="got 0"), threads.threads(2):
            threads.resolve(0)
        assert threads.resolve() == 4
        with threads.threads(None):
            assert threads.resolve() == 8
        with pytest.raises(ValueError, match="at least 1"), threads.threads(0):
            pass
        assert threads.resolve() == 4
        with ThreadPoolExecutor(1) as other:
            assert other.submit(threads.resolve).result() == 8, "another thread's block"
    assert threads.resolve() == 8


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("4,2", 4), (" 3 , 1", 3), ("1", 1), ("100", 8), *((w, 8) for w in ("", "0", "-2", "x", ","))],
)
def test_the_setting_of_openmp_is_read_as_openmp_reads_it(machine, setting, expected):
    machine(openmp=setting)
    assert threads.resolve() == expected


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_worker_process_of_joblib_has_its_share():
    """Its pools tell their children by `OMP_NUM_THREADS`, and by Numba's variable."""
    code = "from fastattn._core import threads; print(threads.resolve())"
    assert children.run(code, OMP_NUM_THREADS="1").strip() == "1"
    assert children.run(code, OMP_NUM_THREADS="1", NUMBA_NUM_THREADS="2").strip() == "2"


def test_more_than_exist_is_clamped(machine):
    assert threads.resolve(1000) == 8
    threads.set_threads(1000)
    assert threads.resolve() == 8
    threads.set_threads(None)
    machine(setting="1000")
    assert threads.resolve() == 8


def test_numpy_integers_count(machine):
    assert threads.resolve(np.int16(3)) == 3
    assert type(threads.resolve(np.int16(3))) is int


@pytest.mark.parametrize("wrong", [0, -3])
def test_less_than_one_is_refused(machine, wrong):
    for accept in (threads.resolve, threads.set_threads):
        with pytest.raises(ValueError, match=f"threads must be at least 1 .*got {wrong}"):
            accept(wrong)
    assert threads.resolve() == 8


@pytest.mark.parametrize("wrong", [2.0, "2", True, [2], np.float64(2)])
def test_no_integer_is_refused(machine, wrong):
    for accept in (threads.resolve, threads.set_threads):
        with pytest.raises(TypeError, match="threads must be an integer"):
            accept(wrong)
    assert threads.resolve() == 8


@pytest.mark.parametrize("wrong", ["0", "-1", "two", "1.5"])
def test_a_senseless_setting_is_named(machine, wrong):
    machine(setting=wrong)
    with pytest.raises(ValueError, match=f"NUMBA_NUM_THREADS.*'{wrong}'"):
        threads.resolve()


def test_an_empty_setting_is_none(machine):
    machine(setting=" ")
    assert threads.resolve() == 8


def test_a_changed_machine_is_noticed(machine, monkeypatch):
    assert threads.resolve() == 8
    monkeypatch.setattr(threads, "_affinity", lambda: 2)
    assert threads.resolve() == 8  # not read for every call
    monkeypatch.setattr(threads, "_REFRESH_SECONDS", -1.0)
    assert threads.resolve() == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity masks here")
def test_the_affinity_mask_is_honoured():
    code = """
        import os
        from fastattn._core import threads
        before = threads.resolve(1000)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        child = os.fork()
        if child == 0:
            os._exit(threads.resolve(1000))
        print(before, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    assert children.run(code).split() == [str(len(os.sched_getaffinity(0))), "1"]


def test_threads_import_no_compiler():
    code = """
        import sys
        from fastattn._core import threads
        threads.resolve()
        print("numba" in sys.modules)
    """
    assert children.run(code).strip() == "False"


def _groups(tmp_path, lines, files):
    proc = tmp_path / "cgroup"
    proc.write_text("\n".join(lines) + "\n")
    mount = tmp_path / "mount"
    mount.mkdir()
    for name, content in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    return threads.cpu_quota(str(proc), str(mount))


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        (["0::/"], {"cpu.max": "150000 100000"}, 1.5),
        (["0::/"], {"cpu.max": "max 100000"}, None),
        (["0::/"], {}, None),
        # every group above counts, and the smallest of them wins
        (["0::/a/b"], {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000"}, 2.0),
        (["0::/a/b"], {"a/cpu.max": "100000 100000", "a/b/cpu.max": "300000 100000"}, 1.0),
        # in a container the path of the host does not exist below the mount
        (["0::/host/pod"], {"cpu.max": "400000 100000"}, 4.0),
        (["0::/../../up"], {"cpu.max": "400000 100000"}, 4.0),
        # version 1
        (
            ["3:cpu,cpuacct:/x", "2:memory:/x"],
            {"cpu/x/cpu.cfs_quota_us": "50000", "cpu/x/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        (
            ["3:cpu,cpuacct:/"],
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
        ),
        (["4:cpuset:/"], {"cpuset/cpu.cfs_quota_us": "1", "cpuset/cpu.cfs_period_us": "1"}, None),
        # nonsense limits nothing
        (["0::/"], {"cpu.max": "no quota here"}, None),
        (["0::/"], {"cpu.max": "100000 0"}, None),
        (["", "junk", "a:b"], {"cpu.max": ""}, None),
    ],
)
def test_quotas_of_control_groups(tmp_path, lines, files, expected):
    assert _groups(tmp_path, lines, files) == expected


def test_no_control_groups(tmp_path):
    assert threads.cpu_quota(str(tmp_path / "none"), str(tmp_path)) is None
