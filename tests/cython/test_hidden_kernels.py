"""A tree without compiled kernels, such as a clone, that hides an installed fastattn with them."""

import os
import shutil
from importlib.machinery import EXTENSION_SUFFIXES

import children
import pytest

ASK = """
    import warnings
    import fastattn
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        asked = [fastattn.explain([1.0], [[1.0]], [[1.0]]) for _ in range(2)]
        fastattn.allocate([1.0, 2.0], 3.0, backend="reference")
    print(asked[1].backend, len(seen))
    print(*{warning.category.__name__ for warning in seen})
    print(asked[1].refusals["cython"])
    print(*(warning.message for warning in seen))
"""


@pytest.fixture
def clone(tmp_path):
    """A copy of the sources as a clone has them, never built."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_native.c")
    shutil.copytree(children.PACKAGES / "fastattn", tmp_path / "clone" / "fastattn", ignore=ignored)
    (tmp_path / "clone" / "setup.py").touch()
    return tmp_path / "clone"


@pytest.fixture
def installed(tmp_path):
    """A folder of packages with a fastattn that has kernels; that they work is not asked."""
    room = tmp_path / "site-packages" / "fastattn" / "_cython"
    room.mkdir(parents=True)
    (room / f"_native{EXTENSION_SUFFIXES[0]}").touch()
    return tmp_path / "site-packages"


def ask(*paths):
    """Backend and number of warnings; of which kind; the reason; what they say."""
    path = os.pathsep.join(map(str, paths))
    return children.run(ASK, PYTHONPATH=path, **children.WITH_KERNELS).splitlines()


def test_hidden_kernels_are_told_of_once_with_the_way_out(clone, installed):
    found, kind, reason, said = ask(clone, installed)
    assert (found, kind) == ("numba 1", "RuntimeWarning")
    assert said == f"backend 'cython' is left out: {reason}"
    assert f"imported from {clone / 'fastattn'}" in reason
    assert f"the one installed in {installed / 'fastattn'}, which has" in reason
    assert f"-m pip install -e {clone}` builds them there" in reason
    assert "with -P" in reason
    assert "compiler" not in reason


def test_of_a_tree_that_pip_cannot_install_only_what_works_is_said(clone, installed):
    (clone / "setup.py").unlink()
    reason = ask(clone, installed)[2]
    assert "pip install" not in reason
    assert "with -P" in reason


def test_where_nothing_is_hidden_nobody_is_warned(clone, tmp_path):
    (tmp_path / "empty" / "fastattn" / "_cython").mkdir(parents=True)
    found, _, reason, *_ = ask(clone, tmp_path / "empty")
    assert found == "numba 0"
    assert f"-m pip install -e {clone}` builds them there" in reason
    (clone / "setup.py").unlink()
    assert "installed without its compiled kernels" in ask(clone)[2]
