"""Building the compiled kernels: flags of the environment, failures, stale and shipped files.

Where only the building is looked at, a compiler that compiles nothing makes it a matter of seconds.
"""

import importlib.util
import os
import platform
import runpy
import shlex
import subprocess
import sys
import tarfile

import children
import pytest
from building import COMPILER, ROOT, copy_tree, modules, needs_compiler, run_setup, sources, wheel

pytestmark = needs_compiler

# What people and distributions put into CFLAGS.
HOSTILE = ("-ffast-math", "-Ofast -march=native", "-funsafe-math-optimizations -O0")


@pytest.fixture
def tree(tmp_path):
    """A copy of what a clone has, never built."""
    return copy_tree(tmp_path)


@pytest.mark.parametrize("flags", HOSTILE)
def test_flags_of_the_environment_leave_the_float_environment(flags, tmp_path):
    """Linked with some of them a library switches subnormals off in whoever loads it."""
    ours = runpy.run_path(str(ROOT / "setup.py"))
    source, target, library = (tmp_path / name for name in ("tiny.c", "tiny.o", "tiny.so"))
    source.write_text("int tiny;")
    hostile = shlex.split(flags)
    compiling = [COMPILER, "-fPIC", *hostile, "-c", source, "-o", target, *ours["FLAGS"]]
    linking = [COMPILER, "-shared", *hostile, target, "-o", library, *ours["LINK"]]
    for command in (compiling, linking):
        subprocess.run(command, check=True)
    children.run(f"""
        import ctypes
        import numpy as np
        ctypes.CDLL({str(library)!r})
        assert np.float64(5e-310) * np.ones(1) != 0, "subnormals are switched off"
    """)


def test_flags_of_the_environment_come_before_ours(tree):
    made = run_setup(tree, "build_ext", "--inplace", CFLAGS="-Ofast", LDFLAGS="-ffast-math")
    assert made.returncode == 0, made.stderr
    commands = [line.split() for line in (tree.parent / "commands").read_text().splitlines()]
    commands = [words for words in commands if "-Ofast" in words]
    assert len(commands) >= 2, "the drivers, and the link"
    for words in commands:
        theirs = [i for i, word in enumerate(words) if word in ("-Ofast", "-ffast-math")]
        assert max(theirs) < min(words.index("-fno-fast-math"), words.index("-O3", theirs[-1]))


def test_other_records_are_linked_anew(tree):
    """Tables in Python say where the drivers find their words."""
    assert run_setup(tree, "build_ext", "--inplace").returncode == 0
    (before,) = modules(tree)
    layouts = tree / "fastattn" / "_engine" / "layouts.py"
    text = layouts.read_text(encoding="utf-8")
    words = text.replace('"words scratch_word ', '"more words scratch_word ')
    layouts.write_text(words, encoding="utf-8")
    assert run_setup(tree, "build_ext", "--inplace").returncode == 0
    (after,) = modules(tree)
    assert "#define WORDS_WORD INT64_C(0)" in before
    assert "#define WORDS_WORD INT64_C(1)" in after


def test_the_module_lists_the_kernels_of_every_level(tree):
    assert run_setup(tree, "build_ext", "--inplace").returncode == 0
    (made,) = modules(tree)
    for row in (
        '{"x86-64-v4", "toy", fastattn_v4_toy, NEEDS_v4},',
        '{"x86-64-v3", "toy", fastattn_v3_toy, NEEDS_v3},',
        "extern kernel_entry fastattn_v4_toy;",
        "#define NEEDS_v4 (HAS(avx2) | HAS(sse4_1))",
    ):
        assert row in made, row
    linked = (tree.parent / "commands").read_text().splitlines()[-1]
    assert "/v4.o " in linked
    assert "/v3.o " in linked


@pytest.mark.parametrize("what", ["_native.c", "-shared", "objects"])
def test_what_fails_leaves_the_kernels_out(tree, what):
    """The C compiler in two places, or Numba."""
    if what == "objects":
        objects = tree / "fastattn" / "_numba" / "objects.py"
        objects.write_text("raise SystemExit('compiling for v4 failed: too hard')")
    made = run_setup(tree, "build_ext", "--inplace", fails=what)
    assert made.returncode == 0, made.stderr
    assert "(backend 'cython') are left out: building them failed: " in made.stderr
    assert ("compiling for v4 failed: too hard" in made.stderr) == (what == "objects")
    assert not modules(tree)
    made = run_setup(tree, "build_ext", "--inplace", fails=what, FASTATTN_REQUIRE_CYTHON="1")
    assert made.returncode != 0
    assert "FASTATTN_REQUIRE_CYTHON=1 makes that an error" in made.stderr


def test_kernels_are_compiled_once_for_the_same_sources(tree):
    assert run_setup(tree, "build_ext", "--inplace").returncode == 0
    (first,) = (tree / "build" / "kernels").iterdir()
    objects = tree / "fastattn" / "_numba" / "objects.py"
    kept = objects.read_text()
    assert run_setup(tree, "build_ext", "--inplace", "--force").returncode == 0
    assert [first] == list((tree / "build" / "kernels").iterdir())
    objects.write_text(kept + "# changed\n")
    assert run_setup(tree, "build_ext", "--inplace").returncode == 0
    assert len(list((tree / "build" / "kernels").iterdir())) == 2


@pytest.mark.parametrize("package", ["numba", "llvmlite"])
def test_kernels_are_compiled_again_by_another_version(tree, package):
    assert run_setup(tree, "build_ext", "--inplace").returncode == 0
    older = f"""import importlib.metadata
found = importlib.metadata.version
importlib.metadata.version = lambda name: "0.1" if name == {package!r} else found(name)"""
    assert run_setup(tree, "build_ext", "--inplace", "--force", before=older).returncode == 0
    names = [path.name for path in (tree / "build" / "kernels").iterdir()]
    assert len(names) == 2
    assert sum(f"{package}-0.1-" in name for name in names) == 1


def test_kept_kernels_are_whole_and_few(tree):
    """An interrupted build leaves half a folder, which is never taken for a whole one."""
    kept = tree / "build" / "kernels"
    for age, name in enumerate(("unfinished", "old", "older", "oldest")):
        (kept / name).mkdir(parents=True)
        os.utime(kept / name, (1e9 - age, 1e9 - age))
    objects = tree / "fastattn" / "_numba" / "objects.py"
    whole = objects.read_text()
    objects.write_text(whole.replace('(folder / "kernels.json")', 'raise SystemExit("stop")\n#'))
    assert "failed: stop" in run_setup(tree, "build_ext", "--inplace").stderr
    assert {path.name for path in kept.iterdir()} == {"unfinished", "old", "older", "oldest"}
    objects.write_text(whole)
    assert run_setup(tree, "build_ext", "--inplace").returncode == 0
    assert modules(tree)
    (made,) = kept.glob("*-*")
    assert {path.name for path in made.iterdir()} == {"kernels.json", "v3.o", "v4.o"}
    assert {path.name for path in kept.iterdir()} == {made.name, "unfinished", "old"}


def test_a_build_that_another_overtakes_takes_what_that_made(tree):
    objects = tree / "fastattn" / "_numba" / "objects.py"
    objects.write_text(
        objects.read_text()
        + """
import runpy, shutil
ours = runpy.run_path("setup.py")
sources = runpy.run_path(ours["TABLES"][-1])["kernel_sources"](pathlib.Path("fastattn"))
shutil.copytree(folder, ours["KEPT"] / ours["name_objects"](sources))
"""
    )
    made = run_setup(tree, "build_ext", "--inplace")
    assert made.returncode == 0, made.stderr
    assert modules(tree)
    assert len(list((tree / "build" / "kernels").iterdir())) == 1


@pytest.mark.skipif(not importlib.util.find_spec("llvmlite"), reason="llvmlite knows the CPU too")
def test_every_feature_that_kernels_use_is_looked_for(tmp_path):
    """Kernels for one feature each run where LLVM finds it; those for all need all."""
    import llvmlite.binding as llvm

    from fastattn._numba.objects import KINDS

    ours = runpy.run_path(str(ROOT / "setup.py"))
    tables, plan, words = (runpy.run_path(str(ROOT / path)) for path in ours["TABLES"])
    kinds = {name: kind.features for name, kind in KINDS.items()}
    names = {feature for spelled in kinds.values() for feature in spelled.split(",") if feature}
    kinds |= {f"only_{feature[1:].replace('.', '_')}": feature for feature in names}
    kernels = [
        {"kind": kind, "level": "any", "features": features, "name": kind, "symbol": "toy"}
        for kind, features in kinds.items()
    ]
    header = words["header"](tables, plan, 0, kernels)
    (tmp_path / "words.h").write_text(header)
    asked = [line.count("HAS(") for line in header.splitlines() if "#define NEEDS_" in line]
    assert asked == [features.count("+") for features in kinds.values()]
    source = tmp_path / "toy.c"
    source.write_text("""
#include <stdio.h>
#include "words.h"
void toy(int64_t call_address, int64_t worker) {}
int main(void)
{
    for (int i = 0; i < kernel_count; i++)
        if (runs_with(features_here(), &kernels[i])) puts(kernels[i].name);
}
""")
    room = ROOT / ours["PLACE"]
    program = tmp_path / "toy"
    subprocess.run([COMPILER, f"-I{room}", source, "-o", program], check=True)
    listed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    host = llvm.get_host_cpu_features()
    expected = [
        kind
        for kind, features in kinds.items()
        if all(host.get(feature[1:]) for feature in features.split(",") if feature)
    ]
    assert listed.split() == expected


@pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="features are x86's"
)
def test_a_feature_that_nothing_looks_for_does_not_compile(tmp_path):
    """It would be believed to be everywhere."""
    words = runpy.run_path(str(ROOT / "fastattn" / "_cython" / "words.py"))
    needs = words["_needs"]("+avx2,+telepathy")
    source = tmp_path / "toy.c"
    source.write_text(f'#include "levels.h"\nconst uint64_t needs = {needs};')
    command = [COMPILER, f"-I{ROOT / 'fastattn' / '_cython'}", "-c", source, "-o", tmp_path / "o"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode != 0
    assert "NUMBER_telepathy" in made.stderr


@pytest.mark.parametrize("package", ["Cython", "numba", "llvmlite"])
def test_a_package_without_its_metadata(tree, package):
    """Numba's and LLVM's versions name the kernels: unknown, these are left out."""
    unknown = f"""import importlib.metadata
found = importlib.metadata.version
def version(name):
    if name == {package!r}:
        raise importlib.metadata.PackageNotFoundError(name)
    return found(name)
importlib.metadata.version = version"""
    made = run_setup(tree, "build_ext", "--inplace", "--force", before=unknown)
    assert made.returncode == 0, made.stderr
    if package == "Cython":
        assert modules(tree)
        return
    assert not modules(tree)
    assert "left out: building them failed: No package metadata" in made.stderr
    assert package in made.stderr
    made = run_setup(tree, "build_ext", "--inplace", before=unknown, FASTATTN_REQUIRE_CYTHON="1")
    assert made.returncode != 0


@pytest.mark.parametrize("package", ["Cython", "numba"])
def test_without_what_compiles_them_the_kernels_are_left_out(tree, package):
    hidden = f"""import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name: None if name == {package!r} else found(name)"""
    made = run_setup(tree, "build_ext", "--inplace", before=hidden)
    assert made.returncode == 0, made.stderr
    assert f"left out: {package} is not installed" in made.stderr


def test_the_source_distribution_is_whole_also_without_a_compiler(tree):
    made = run_setup(tree, "sdist", FASTATTN_CYTHON="0")
    assert made.returncode == 0, made.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    tests = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("*.py")}
    assert sources() | tests | {"setup.py", "README.md", "LICENSE", "bench/cases.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_native.c"))]


def test_a_wheel_has_the_kernels_and_not_their_sources(tree):
    made = run_setup(tree, "bdist_wheel")
    assert made.returncode == 0, made.stderr
    name, names, _ = wheel(tree)
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{version}-{version}-" in name
    assert not name.endswith("-any.whl")
    assert [name for name in names if name.endswith(".so")]
    assert "fastattn/_cython/words.py" in names
    assert not names & sources()
