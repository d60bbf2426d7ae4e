"""The disk cache sees every change of the sources that kernels are made of, and of nothing else."""

import ast
import os
import shutil
from pathlib import Path

import children
import pytest
from cached import HIT, MISS, report
from places import SUPPORT, TESTS

from fastattn._numba.compiler import disk as cache


@pytest.fixture
def place(tmp_path):
    """A place for a cache that does not exist yet."""
    return tmp_path / "compiled"


@pytest.fixture
def copied_package(tmp_path):
    """A copy of the package, so that its sources can be changed."""
    shutil.copytree(
        children.PACKAGES / "fastattn",
        tmp_path / "packages" / "fastattn",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return tmp_path / "packages"


def _report_of(packages, place, before=""):
    paths = os.pathsep.join(map(str, (packages, TESTS, SUPPORT)))
    return report(place, before, PYTHONPATH=paths)


def test_a_change_in_any_kernel_source_is_seen(copied_package, place):
    assert _report_of(copied_package, place) == MISS
    assert _report_of(copied_package, place) == HIT
    kernels = "_numba/machine/tile.py", "_numba/machine/simd.py"
    for changed in (*kernels, "_core/constants.py", "_engine/layouts.py"):
        callee = copied_package / "fastattn" / changed
        original = callee.read_text()
        callee.write_text(original + "\n# changed\n")
        assert _report_of(copied_package, place) == MISS
        callee.write_text(original)
    assert _report_of(copied_package, place) == HIT


def test_moved_sources_still_hit(copied_package, tmp_path, place):
    assert _report_of(copied_package, place) == MISS
    copied_package.rename(tmp_path / "moved")
    assert _report_of(tmp_path / "moved", place) == HIT


def test_sources_changed_under_a_running_process_are_not_mixed(copied_package, place):
    """Old code in memory must not be kept under the name of the new."""
    tile = copied_package / "fastattn" / "_numba" / "machine" / "tile.py"
    original = tile.read_text()
    change = f"""
from fastattn._numba.compiler import compile
from pathlib import Path
Path({str(tile)!r}).write_text({original!r} + "# changed")
"""
    assert _report_of(copied_package, place, change) == MISS
    assert not place.exists()


def test_all_sources_of_kernels_are_hashed():
    """Constants of other files are frozen into kernels: no kernel may take one from elsewhere."""
    hashed = {path.resolve() for path in cache.source_files()}
    package = Path(cache.__file__).resolve().parents[2]
    kernels = 0
    for path in hashed:
        tree = ast.parse(path.read_text())
        if not _has_compiled_functions(tree):
            continue
        kernels += 1
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastattn"):
                folder = package.joinpath(*node.module.split(".")[1:])
                files = [folder.with_suffix(".py")]
                if folder.is_dir():
                    files = [folder / f"{alias.name}.py" for alias in node.names]
                assert set(files) <= hashed, f"{path.name} imports {node.module}"
    assert kernels > 5


def _has_compiled_functions(tree):
    decorators = [
        ast.unparse(decorator)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for decorator in node.decorator_list
    ]
    words = ("device", "entry", "driver", "intrinsic")
    return any(word in decorator for decorator in decorators for word in words)
