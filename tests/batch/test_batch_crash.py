"""A job dies, fails or is interrupted at every single call that changes the disk; then the data."""

import json
import os
import subprocess
import sys
import tempfile

import children
import pytest
from places import SUPPORT

OUTPUTS = ["lse.npy", "out.npy"]


@pytest.fixture
def folder(tmp_path):
    """A folder in memory, where there is one: what a crash loses there is simulated anyway."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=memory, ignore_cleanup_errors=True) as place:
        yield place


def deaths(mode, folder):
    """One report per n, the last of which is of a run that was left alone."""
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "crashes.py"), mode, folder],
        env=children.environment(OPENBLAS_NUM_THREADS=1),
        capture_output=True,
        text=True,
        timeout=children.PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


MODES = ["kill", "overwrite kill", "ENOSPC", "EIO", "overwrite EIO", "interrupt"]
DISCARDING = ["discard kill", "discard interrupt"]


@pytest.mark.parametrize("mode", MODES)
def test_dying_at_the_nth_change_of_the_disk(mode, folder):
    reports = deaths(mode, folder)
    # The manifest made, locked and begun; 2 files made; 4 chunks of 2 writes, 2 syncs and 1 record;
    # 2 names.
    assert len(reports) > 40
    before = "old" if mode.startswith("overwrite") else "absent"
    for report in reports:
        # Under the final names there is never anything but the old output or the new one.
        assert set(report["after"]) <= {before, "complete"}, report
        # The output proper is named last.
        assert report["after"] != ["complete", before], report
        if report["after"] == ["complete", "complete"] and report["left"] == OUTPUTS:
            if before == "absent":
                assert "is there already" in report["resumed"], report
        else:
            assert report["at_last"] == ["complete", "complete"], report
            assert report["rest"] == OUTPUTS, report
    resumed = [report["resumed"] for report in reports if isinstance(report["resumed"], int)]
    assert set(resumed) == {0, 1, 2, 3, 4}  # finished chunks are never computed again
    assert reports[-1]["outcome"] == "finished"


@pytest.mark.parametrize("mode", DISCARDING)
def test_dying_while_an_unfinished_job_is_discarded(mode, folder):
    reports = deaths(mode, folder)
    assert len(reports) > 40
    for report in reports:
        assert set(report["after"]) <= {"absent", "complete"}, report
        assert report["at_last"] == ["complete", "complete"], report
        assert report["rest"] == OUTPUTS, report
    # Before its manifest goes the old job is resumed, or refused as gone; then the new one is.
    assert any("is gone" in str(report["resumed"]) for report in reports)
    assert {0, 1, 2, 3, 4} <= {n for report in reports if (n := report["resumed"]) in range(5)}


@pytest.mark.parametrize("mode", ["ENOSPC", "interrupt"])
def test_what_is_said_is_what_is_left(mode, folder):
    for report in deaths(mode, folder):
        if report["outcome"] == "finished":
            continue
        if "nothing was left behind" in report["outcome"]:
            assert report["left"] == [], report
        elif "the output is complete" in report["outcome"]:
            assert report["left"] == OUTPUTS, report
            assert report["after"] == ["complete", "complete"], report
        elif "kept" in report["outcome"]:
            assert "--resume" in report["outcome"], report
            assert "out.npy.part.manifest" in report["left"], report
        else:  # the manifest itself could not be made
            assert "out.npy.part.manifest" in report["outcome"], report
            assert report["left"] == [], report
        if mode == "ENOSPC":
            assert report["outcome"].startswith("error 1: "), report
            assert "No space left on device; free some space" in report["outcome"], report
            assert folder in report["outcome"], report


def test_a_limit_on_file_sizes(tmp_path):
    code = """
        import resource, sys
        import numpy as np
        from fastattn.cli import main
        folder = sys.argv[1]
        for role in ("query", "key", "value"):
            np.save(f"{folder}/{role}.npy", np.ones((2000, 4), np.float32))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        files = [f"--{role}={folder}/{role}.npy" for role in ("query", "key", "value", "out")]
        sys.exit(main(["run", *files, "--backend=reference", "--json"]))
    """
    import textwrap

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        env=children.environment(),
        capture_output=True,
        text=True,
        timeout=children.PATIENCE,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "File too large; raise the limit on file sizes (ulimit -f)" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["key.npy", "query.npy", "value.npy"]
