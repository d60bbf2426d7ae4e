"""The compiled kernels; everything else is declared in pyproject.toml.

Numba compiles them to object files (`fastattn._numba.objects`), and a C compiler the module that
holds and drives them. They are left out with a word where one of both is missing.
``FASTATTN_REQUIRE_CYTHON=1`` makes that an error, ``FASTATTN_CYTHON=0`` leaves them out unasked.

What the package depends on is known when they are built: NumPy alone where they are there, else
Numba too, which then compiles them. Hence whatever describes the package builds them first.
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
import tomllib
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.dist_info import dist_info
from setuptools.command.editable_wheel import editable_wheel
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
TABLES = ["fastattn/_engine/layouts.py", "fastattn/_core/constants.py", f"{PLACE}/words.py"]
# Compiling the kernels takes a minute: what was made of the same sources in the same way is kept,
# the newest folders of it.
KEPT = Path("build/kernels")
KEPT_FOLDERS = 3
NEEDS = ("Cython", "numba")
# What the package depends on with compiled kernels, and what it needs beside that without them.
ALWAYS = ["numpy>=2.1"]
PROJECT = tomllib.loads(Path(__file__).with_name("pyproject.toml").read_text(encoding="utf-8"))
JIT = PROJECT["project"]["optional-dependencies"]["jit"]
REQUIRED = os.environ.get("FASTATTN_REQUIRE_CYTHON", "").strip() == "1"
PROMISED = (
    "fastattn: its compiled kernels were built when pip asked what it depends on, which is NumPy "
    "alone then, and cannot be built now"
)
AGAIN = "Install it again, with FASTATTN_CYTHON=0 to leave them out"
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
            depend_on(self.distribution, ALWAYS)
        except (
            *(BaseError, CCompilerError, CompileError, CythonError, KernelError),
            importlib.metadata.PackageNotFoundError,  # numba or llvmlite, of unknown version
        ) as error:
            hold_promise(self.distribution, str(error))
            leave_out(f"building them failed: {error}")
            # The wheel is of any machine then, and has none of an earlier build.
            self.distribution.ext_modules = []
            Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)

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
        # Not added to what is there: what describes the package builds once, and pip once more.
        extension.include_dirs = [str(folder), PLACE]
        paths = [objects / kernel["object"] for kernel in kernels]
        extension.extra_objects = [str(path.resolve()) for path in paths]
        super().build_extension(extension)


class DescribeBuilt(dist_info):
    """Describes the package when it is known whether there are kernels."""

    def run(self):
        """Build them first."""
        self.run_command("build_ext")
        super().run()


class PackBuilt(bdist_wheel):
    """Packs the wheel when it is known whether there are kernels."""

    def run(self):
        """Build them first."""
        self.run_command("build_ext")
        self.root_is_pure = not self.distribution.has_ext_modules()
        if self.root_is_pure:
            hold_promise(self.distribution, "they are left out")
        super().run()


class LinkBuilt(editable_wheel):
    """Installs in place when it is known whether there are kernels."""

    def run(self):
        """Remove those of an earlier build where there are to be none."""
        if not self.distribution.has_ext_modules():
            hold_promise(self.distribution, "they are left out")
            for module in Path(PLACE).glob("_native.*.so"):
                module.unlink()
        super().run()


class KernelError(Exception):
    """The kernels could not be compiled."""


def depend_on(distribution, requirements: list[str]) -> None:
    """Set what the package depends on, in both places that setuptools reads."""
    distribution.install_requires = distribution.metadata.install_requires = requirements


def hold_promise(distribution, reason: str) -> None:
    """Stop where kernels are promised and cannot be had."""
    if is_promised(distribution):
        raise SystemExit(f"{PROMISED}: {reason}. {AGAIN}")


def is_promised(distribution) -> bool:
    """Whether kernels are promised: what was described before, and is installed, has no Numba.

    pip has the package described, installs what it depends on, and has it built then.
    """
    for name in ("bdist_wheel", "editable_wheel"):
        command = distribution.get_command_obj(name, create=False)
        folder = getattr(command, "dist_info_dir", None)
        if folder is not None:
            lines = Path(folder, "METADATA").read_text(encoding="utf-8").splitlines()
            return not {f"Requires-Dist: {requirement}" for requirement in JIT} <= set(lines)
    return False


def name_objects(sources: int) -> str:
    """Name all that decides what the compiled kernels are.

    Python's version is not in it: they call nothing of Python's, so those that one compiled serve
    another. Its bytecode leads to another order of instructions in some, and to the same bits.
    """
    versions = [f"{name}-{importlib.metadata.version(name)}" for name in ("numba", "llvmlite")]
    return "-".join([platform.machine(), *versions, f"{sources:08x}"])


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
    kernels = [str(path) for path in sorted(Path("fastattn/_numba").rglob("*.py"))]
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
    setup(
        ext_modules=extensions(),
        install_requires=[*ALWAYS, *JIT],  # until there are kernels: a source distribution has none
        cmdclass={
            "build_ext": BuildKernels,
            "dist_info": DescribeBuilt,
            "bdist_wheel": PackBuilt,
            "editable_wheel": LinkBuilt,
        },
    )
