"""The compiled kernels; everything else is declared in pyproject.toml.

Numba compiles them to object files (`fastattn._numba.objects`), and a C compiler the module that
holds and drives them. They are left out with a word where one of both is missing.
``FASTATTN_REQUIRE_CYTHON=1`` makes that an error, ``FASTATTN_CYTHON=0`` leaves them out unasked.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

PLACE = "fastattn/_cython"
# Python's own flags come first, then CFLAGS; the last word is ours. What would change the float
# environment of whoever imports the module is taken back here.
EXACT = ["-fno-fast-math", "-fno-unsafe-math-optimizations"]
FLAGS = ["-std=gnu11", "-O3", "-g0", *EXACT, "-fvisibility=hidden"]
# Linked with -Ofast or -ffast-math, which CFLAGS bring here too, the module would switch subnormals
# off in whoever imports it.
LINK = ["-pthread", "-O3", *EXACT, "-lm"]
# What the built module depends on, beside the kernels' own room.
TABLES = ["fastattn/_engine/layouts.py", "fastattn/_core/plan.py", f"{PLACE}/words.py"]
# Compiling the kernels takes a minute: what was made of the same sources in the same way is kept,
# the newest folders of it.
KEPT = Path("build/kernels")
KEPT_FOLDERS = 3
NEEDS = ("Cython", "numba")
REQUIRED = os.environ.get("FASTATTN_REQUIRE_CYTHON", "").strip() == "1"
PROBE = """
#include <Python.h>
#include <pthread.h>
#include <stdatomic.h>
int main(void) { return 0; }
"""


class BuildKernels(build_ext):
    """Compiles the kernels for each kind of machine, then the module that holds them."""

    def build_extension(self, extension):
        """Build the kernels; where that fails they are left out, unless they are required."""
        from Cython.Compiler.Errors import CompileError as CythonError

        try:
            self.build_kernels(extension)
        except (
            *(BaseError, CCompilerError, CompileError, CythonError, KernelError),
            importlib.metadata.PackageNotFoundError,  # numba or llvmlite, of unknown version
        ) as error:
            leave_out(f"building them failed: {error}")

    def build_kernels(self, extension):
        """Make objects of the kernels, the header that lists them, and the module."""
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        tables, plan, words = (runpy.run_path(path) for path in TABLES)
        package = Path("fastattn")
        objects = KEPT / name_objects(words["kernel_sources"](package))
        kernels = compile_kernels(objects)
        header = words["header"](tables, plan, words["sources"](package), kernels)
        (folder / "words.h").write_text(header, encoding="utf-8")
        extension.include_dirs += [str(folder), PLACE]
        paths = [objects / kernel["object"] for kernel in kernels]
        extension.extra_objects += [str(path.resolve()) for path in paths]
        super().build_extension(extension)


class KernelError(Exception):
    """The kernels could not be compiled."""


def name_objects(sources: int) -> str:
    """Name all that decides what the compiled kernels are."""
    versions = [f"{name}-{importlib.metadata.version(name)}" for name in ("numba", "llvmlite")]
    return "-".join([sys.implementation.cache_tag, platform.machine(), *versions, f"{sources:08x}"])


def compile_kernels(folder: Path) -> list[dict[str, str]]:
    """Let Numba compile them into a folder, unless it holds them already; list what is there.

    The folder appears whole: another build at the same time, or one that is interrupted, leaves
    none that lacks something.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as place:
            made = Path(place, "objects")
            made.mkdir()
            run_numba(made)
            try:
                made.rename(folder)
            except OSError:  # another build was faster
                if not folder.exists():
                    raise
    os.utime(folder)
    remove_old(folder.parent)
    return json.loads((folder / "kernels.json").read_text(encoding="utf-8"))


def remove_old(kept: Path) -> None:
    """Remove all but the folders that were made or used last, interrupted ones too."""
    with contextlib.suppress(FileNotFoundError):  # another build removes them now
        folders = sorted(kept.iterdir(), key=lambda path: path.stat().st_mtime)
        for old in folders[:-KEPT_FOLDERS]:
            shutil.rmtree(old, ignore_errors=True)


def run_numba(folder: Path) -> None:
    """Compile the kernels into a folder."""
    command = [sys.executable, "-m", "fastattn._numba.objects", str(folder)]
    paths = [os.getcwd(), *filter(None, [os.environ.get("PYTHONPATH")])]
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, capture_output=True, text=True, env=here, check=False)
    if done.returncode != 0:
        told = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise KernelError(told[0])


def leave_out(reason: str) -> None:
    """Say that there are to be no compiled kernels, and why; an error where they are required."""
    text = f"fastattn: the compiled kernels (backend 'cython') are left out: {reason}"
    if REQUIRED:
        raise SystemExit(f"{text}; FASTATTN_REQUIRE_CYTHON=1 makes that an error")
    print(f"{text}. Everything works, compiled by Numba when it is needed.", file=sys.stderr)


def find_compiler() -> str | None:
    """Try what the build needs; return why there are to be no compiled kernels, or None."""
    if os.environ.get("FASTATTN_CYTHON", "").strip() == "0":
        return "FASTATTN_CYTHON=0 says so"
    for package in NEEDS:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    return try_compiler(PROBE)


def try_compiler(probe: str) -> str | None:
    """Compile a few lines; return why that cannot be done, or None."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(probe, encoding="utf-8")
        include = f"-I{sysconfig.get_paths()['include']}"
        command = [*compiler, *FLAGS, include, "-c", str(source), "-o", f"{source}.o"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"the C compiler {compiler[0]!r} cannot be run: {error.strerror}"
    if done.returncode == 0:
        return None
    told = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
    return f"{' '.join(command[: len(compiler)])} cannot compile them: {told}"


def extensions() -> list[Extension]:
    """Describe what to build: the compiled kernels, or nothing."""
    reason = find_compiler()
    if reason is not None:
        leave_out(reason)
        return []
    room = [str(path) for path in sorted(Path(PLACE).glob("*.h"))]
    kernels = [str(path) for path in sorted(Path("fastattn/_numba").glob("*.py"))]
    return [
        Extension(
            "fastattn._cython._native",
            [f"{PLACE}/_native.pyx"],
            depends=["setup.py", *TABLES, *room, *kernels],
            extra_compile_args=[*FLAGS, "-pthread"],
            extra_link_args=LINK,
            optional=not REQUIRED,
        )
    ]


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
