"""Runs setup.py on a copy of the sources, with a compiler that compiles nothing: in seconds."""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import zipfile

import pytest
from places import ROOT

COMPILER = shutil.which("gcc") or shutil.which("clang")
needs_compiler = pytest.mark.skipif(
    COMPILER is None or not all(map(importlib.util.find_spec, ("Cython", "setuptools"))),
    reason="needs a C compiler, Cython and setuptools",
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

# Stands in for `_numba.objects`, which takes a minute: two kernels of nothing.
_FAKE_OBJECTS = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
kernels = []
for kind, level in (("v4", "x86-64-v4"), ("v3", "x86-64-v3")):
    kernel = {"kind": kind, "level": level, "name": "toy", "symbol": f"fastattn_{kind}_toy"}
    kernel["features"] = "+avx2,+sse4.1"
    kernels.append({**kernel, "object": f"{kind}.o"})
    (folder / f"{kind}.o").write_bytes(b"")
(folder / "kernels.json").write_text(json.dumps(kernels))
"""


def copy_tree(tmp_path):
    """Make a copy of what a clone has, never built; return where."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "_native.c", "results")
    for room in ("fastattn", "tests", "bench"):
        shutil.copytree(ROOT / room, tmp_path / "tree" / room, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    objects = tmp_path / "tree" / "fastattn" / "_numba" / "objects.py"
    objects.write_text(_FAKE_OBJECTS, encoding="utf-8")
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


def requirements(text):
    """What a METADATA or PKG-INFO says the package depends on, without extras."""
    lines = [line.partition(": ") for line in text.splitlines()]
    return [
        words[2] for words in lines if words[0] == "Requires-Dist" and "extra ==" not in words[2]
    ]


def wheel(tree):
    """Name, files and dependencies of the wheel that was made last."""
    path = max((tree / "dist").glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)
    with zipfile.ZipFile(path) as opened:
        names = opened.namelist()
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        return path.name, set(names), requirements(opened.read(metadata).decode())


def sources():
    """The files that their drivers are made of."""
    place = ROOT / "fastattn" / "_cython"
    names = {path.name for path in place.glob("*.h")} | {"_native.pyx"}
    assert len(names) > 2
    return {f"fastattn/_cython/{name}" for name in names}
