"""What the package depends on is decided by what was built: NumPy alone, or Numba too."""

import tarfile

import pytest
from building import copy_tree, modules, needs_compiler, requirements, run_setup, wheel

pytestmark = needs_compiler

WITH_KERNELS = ["numpy>=2.1"]
WITHOUT_KERNELS = ["numpy>=2.1", "numba>=0.62"]


@pytest.fixture
def tree(tmp_path):
    """A copy of what a clone has, never built."""
    return copy_tree(tmp_path)


def describe(tree, command, fails="nothing"):
    """What pip installs beside the package; the command that builds it as pip does it then."""
    place = tree.parent / f"described when {fails} fails"
    place.mkdir()
    made = run_setup(tree, "dist_info", "--output-dir", str(place), fails=fails)
    assert made.returncode == 0, made.stderr
    (folder,) = place.glob("*.dist-info")
    text = (folder / "METADATA").read_text(encoding="utf-8")
    return requirements(text), (command, "--dist-info-dir", str(folder))


def test_a_source_distribution_leaves_open_what_it_depends_on(tree):
    made = run_setup(tree, "sdist")
    assert made.returncode == 0, made.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        (name,) = (name for name in opened.getnames() if name.count("/") == 1 and "PKG" in name)
        text = opened.extractfile(name).read().decode()
    assert "Dynamic: requires-dist" in text
    assert requirements(text) == WITHOUT_KERNELS


@pytest.mark.parametrize("why", ["asked", "no compiler", "fails"])
def test_a_wheel_without_kernels_depends_on_numba(tree, why):
    """Kernels of an earlier build are not taken along either."""
    assert run_setup(tree, "bdist_wheel").returncode == 0
    (tree / "fastattn" / "_cython" / "pool.h").touch()  # what was built is older
    variables = {"asked": {"FASTATTN_CYTHON": "0"}, "no compiler": {"CC": "/nowhere/cc"}}
    made = run_setup(tree, "bdist_wheel", fails="-shared", **variables.get(why, {}))
    assert made.returncode == 0, made.stderr
    assert "are left out: " in made.stderr
    name, names, depends = wheel(tree)
    assert name.endswith("-py3-none-any.whl")
    assert not [name for name in names if name.endswith(".so")]
    assert depends == WITHOUT_KERNELS


@pytest.mark.parametrize("command", ["bdist_wheel", "editable_wheel"])
def test_what_pip_is_told_before_is_what_is_built(tree, command):
    """As pip goes on: it has the package described, installs what that names, and has it built."""
    described, build = describe(tree, command, fails="-shared")
    assert described == WITHOUT_KERNELS
    made = run_setup(tree, *build, fails="-shared")
    assert made.returncode == 0, made.stderr
    assert wheel(tree)[2] == WITHOUT_KERNELS

    described, build = describe(tree, command)
    assert described == WITH_KERNELS
    made = run_setup(tree, *build)
    assert made.returncode == 0, made.stderr
    assert wheel(tree)[2] == WITH_KERNELS
    assert len(modules(tree)) == (command == "editable_wheel")

    (tree / "fastattn" / "_cython" / "pool.h").touch()
    made = run_setup(tree, *build, fails="-shared")
    assert made.returncode != 0, "NumPy alone is installed by now"
    assert "cannot be built now: " in made.stderr
    assert "FASTATTN_CYTHON=0" in made.stderr


@pytest.mark.parametrize("fails", ["nothing", "-shared"])
def test_an_editable_wheel_depends_on_what_was_built(tree, fails):
    made = run_setup(tree, "editable_wheel", fails=fails)
    assert made.returncode == 0, made.stderr
    assert wheel(tree)[2] == (WITH_KERNELS if fails == "nothing" else WITHOUT_KERNELS)
    assert len(modules(tree)) == (fails == "nothing")
    linked = [
        line for line in (tree.parent / "commands").read_text().splitlines() if "-shared" in line
    ]
    assert [line.count("/v4.o ") for line in linked] == [1] * len(linked)


@pytest.mark.parametrize("command", ["bdist_wheel", "editable_wheel"])
def test_what_pip_was_told_is_held_also_where_nothing_is_tried(tree, command):
    described, build = describe(tree, command)
    assert described == WITH_KERNELS
    made = run_setup(tree, *build, FASTATTN_CYTHON="0")
    assert made.returncode != 0, "NumPy alone is installed by now"
    assert "cannot be built now: they are left out" in made.stderr


def test_an_editable_install_without_kernels_removes_those_of_an_earlier_one(tree):
    assert run_setup(tree, "editable_wheel").returncode == 0
    assert len(modules(tree)) == 1
    made = run_setup(tree, "editable_wheel", FASTATTN_CYTHON="0")
    assert made.returncode == 0, made.stderr
    assert not modules(tree)
    assert wheel(tree)[2] == WITHOUT_KERNELS
