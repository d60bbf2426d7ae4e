"""Building the compiled kernels: flags of the environment, failures, stale and shipped files.

Where only the building is looked at, a compiler that compiles nothing makes it a matter of seconds.
"""

import importlib.util
import os
import runpy
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import children
import pytest

ROOT = Path(__file__).resolve().parent.parent
COMPILER = shutil.which("gcc") or shutil.which("clang")

pytestmark = pytest.mark.skipif(
    COMPILER is None or not all(map(importlib.util.find_spec, ("Cython", "setuptools"))),
    reason="needs a C compiler, Cython and setuptools",
)

# What people and distributions put into CFLAGS, and what would change bits.
HOSTILE = (
    "-ffast-math",
    "-Ofast -march=native",
    "-funsafe-math-optimizations -O0",
    "-fassociative-math -fno-signed-zeros -fno-trapping-math -freciprocal-math",
    "-ffp-contract=fast -ffinite-math-only -mfma",
)

_FAKE_COMPILER = """#!/bin/sh
# Compiles nothing, and links into the module what the kernels were told about their records.
echo "$*" >>../commands
case "$*" in *{fails}*) echo "too hard" >&2; exit 1;; esac
for word; do
    [ "$before" = -o ] && out=$word
    before=$word
done
case "$*" in *-shared*) cat build/temp*/words.h >"$out";; *) : >"$out";; esac
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what a clone has, never built."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_native.c", "results")
    for room in ("fastattn", "tests", "bench"):
        shutil.copytree(ROOT / room, tmp_path / "tree" / room, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    return tmp_path / "tree"


def run_setup(tree, *command, fails="nothing", before="", **variables):
    """Run setup.py with the fake compiler, which `fails` at commands that name this."""
    compiler = tree.parent / "my compiler"
    compiler.write_text(_FAKE_COMPILER.format(fails=fails), encoding="utf-8")
    compiler.chmod(0o755)
    quoted = shlex.quote(str(compiler))
    kept = {name: text for name, text in os.environ.items() if not name.startswith("FASTATTN_")}
    code = f"import runpy, sys\n{before}\nsys.argv[0] = 'setup.py'\n"
    code += "runpy.run_path('setup.py', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code, "--quiet", *command],
        cwd=tree,
        env={**kept, "CC": f"{quoted} -pipe", "LDSHARED": f"{quoted} -shared", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def modules(tree):
    """What stands in the modules that were built, which is what the fake compiler put there."""
    return [path.read_text() for path in (tree / "fastattn" / "_cython").glob("*.so")]


def sources():
    """The files that kernels are made of."""
    place = ROOT / "fastattn" / "_cython"
    names = {path.name for path in place.glob("*.h")} | {"kernels.c", "_native.pyx"}
    assert len(names) > 20
    return {f"fastattn/_cython/{name}" for name in names}


@pytest.mark.parametrize("flags", HOSTILE)
def test_flags_of_the_environment_take_no_liberties(flags, tmp_path):
    """Neither with the arithmetic, nor with the float environment of whoever loads the module."""
    ours = runpy.run_path(str(ROOT / "setup.py"))
    source, target, library = (tmp_path / name for name in ("tiny.c", "tiny.o", "tiny.so"))
    source.write_text("""
        #pragma GCC visibility push(default)
        double lost(double a, double b, double c) { return (a + b) - a; }
        double contracted(double a, double b, double c) { return a * b + c; }
        double is_number(double a, double b, double c) { return a == a; }
        double divided(double a, double b, double c) { return a / 49; }
    """)
    hostile = shlex.split(flags)
    compiling = [COMPILER, "-fPIC", *hostile, "-c", source, "-o", target, *ours["FLAGS"]]
    linking = [COMPILER, "-shared", *hostile, target, "-o", library, *ours["LINK"]]
    for command in (compiling, linking):
        subprocess.run(command, check=True)
    children.run(f"""
        import ctypes
        import numpy as np
        tiny = ctypes.CDLL({str(library)!r})
        def call(name, *numbers):
            function = getattr(tiny, name)
            function.restype = ctypes.c_double
            return function(*map(ctypes.c_double, numbers))
        assert np.float64(5e-310) * np.ones(1) != 0, "subnormals are switched off"
        assert call("lost", 1e20, 1, 0) == 0
        assert call("contracted", 1 + 2**-30, 1 - 2**-30, -1) == 0
        assert call("is_number", float("nan"), 0, 0) == 0
        assert call("divided", 5, 0, 0) == 5 / 49
    """)


def test_flags_of_the_environment_come_before_ours(tree):
    made = run_setup(tree, "build_ext", "--inplace", CFLAGS="-Ofast", LDFLAGS="-ffast-math")
    assert made.returncode == 0, made.stderr
    commands = [line.split() for line in (tree.parent / "commands").read_text().splitlines()]
    commands = [words for words in commands if "-Ofast" in words]
    assert len(commands) >= 4, "kernels of two types, their driver, and the link"
    for words in commands:
        theirs = [i for i, word in enumerate(words) if word in ("-Ofast", "-ffast-math")]
        assert max(theirs) < min(words.index("-fno-fast-math"), words.index("-O3", theirs[-1]))


def test_other_records_are_linked_anew(tree):
    """Not only other C: tables in Python say where the kernels find their words."""
    assert run_setup(tree, "build_ext", "--inplace").returncode == 0
    (before,) = modules(tree)
    layouts = tree / "fastattn" / "_engine" / "layouts.py"
    text = layouts.read_text(encoding="utf-8")
    layouts.write_text(text.replace("\nSWAPPED = 16", "\nSWAPPED = 32"), encoding="utf-8")
    assert run_setup(tree, "build_ext", "--inplace").returncode == 0
    (after,) = modules(tree)
    assert "#define SWAPPED INT64_C(16)" in before
    assert "#define SWAPPED INT64_C(32)" in after


@pytest.mark.parametrize("what", ["kernels.c", "-shared"])
def test_a_compiler_that_fails_leaves_the_kernels_out(tree, what):
    made = run_setup(tree, "build_ext", "--inplace", fails=what)
    assert made.returncode == 0, made.stderr
    assert "(backend 'cython') are left out: building them failed: " in made.stderr
    assert not modules(tree)
    made = run_setup(tree, "build_ext", "--inplace", fails=what, FASTATTN_REQUIRE_CYTHON="1")
    assert made.returncode != 0
    assert "FASTATTN_REQUIRE_CYTHON=1 makes that an error" in made.stderr


@pytest.mark.parametrize("knows", [False, True])
def test_a_compiler_that_knows_no_bfloat16_leaves_only_those_kernels_out(tree, knows):
    fails = "nothing" if knows else "-mavx512bf16"
    made = run_setup(tree, "build_ext", "--inplace", fails=fails, FASTATTN_REQUIRE_CYTHON="1")
    assert made.returncode == 0, made.stderr
    assert len(modules(tree)) == 1
    x86 = runpy.run_path(str(ROOT / "setup.py"))["X86"]
    assert ("widen bfloat16 on every CPU" in made.stderr) == (x86 and not knows)
    commands = (tree.parent / "commands").read_text().splitlines()
    for word in ("fastattn_v4_pairs", " -DPAIRS "):
        assert any(word in line for line in commands) == (x86 and knows), word


def test_without_cython_the_kernels_are_left_out(tree):
    made = run_setup(tree, "build_ext", "--inplace", before="sys.modules['Cython'] = None")
    assert made.returncode == 0, made.stderr
    assert "left out: Cython is not installed" in made.stderr


def test_the_source_distribution_is_whole_also_without_a_compiler(tree):
    made = run_setup(tree, "sdist", FASTATTN_CYTHON="0")
    assert made.returncode == 0, made.stderr
    (archive,) = (tree / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    tests = {f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py")}
    assert sources() | tests | {"setup.py", "README.md", "LICENSE", "bench/cases.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_native.c"))]


def test_a_wheel_has_the_kernels_and_not_their_sources(tree):
    made = run_setup(tree, "bdist_wheel")
    assert made.returncode == 0, made.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    version = f"cp{sys.version_info.major}{sys.version_info.minor}"
    assert f"-{version}-{version}-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert [name for name in names if name.endswith(".so")]
    assert "fastattn/_cython/words.py" in names
    assert not names & sources()
