"""The compiled kernels; everything else is declared in pyproject.toml.

They are built where a C compiler for this machine is found, and left out with a word where none is.
``FASTATTN_REQUIRE_CYTHON=1`` makes that an error, ``FASTATTN_CYTHON=0`` leaves them out unasked.
"""

import os
import platform
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PLACE = "fastattn/_cython"
X86 = platform.machine().lower() in ("x86_64", "amd64") and sys.maxsize > 2**32
# What the kernels are compiled for; on other machines once, for what the compiler assumes.
LEVELS = {"v4": ["-march=x86-64-v4"], "v3": ["-march=x86-64-v3"]} if X86 else {"base": []}
# No flag here may change a bit: products and sums are fused where the source says so, nowhere else.
FLAGS = [
    "-std=gnu11",
    "-O3",
    "-g0",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-Wno-unused-function",
]
PROBE = """
#include <Python.h>
#include <pthread.h>
#include <stdatomic.h>
typedef float part __attribute__((vector_size(32)));
int main(void) { part a = {0}; return (int)(a + a)[0]; }
"""


def words() -> str:
    """Write the records and constants of the engine as C."""
    tables = runpy.run_path("fastattn/_engine/layouts.py")
    plan = runpy.run_path("fastattn/_core/plan.py")
    return runpy.run_path(f"{PLACE}/words.py")["header"](tables, plan)


class BuildKernels(build_ext):
    """Compiles the kernels once for each kind of machine and element type."""

    def build_extension(self, extension):
        """Compile the kernels, then the module that holds them."""
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "words.h").write_text(words(), encoding="utf-8")
        include = [str(folder), PLACE]
        extension.include_dirs += include
        for level, march in LEVELS.items():
            for bits in (32, 64):
                table = f"fastattn_{level}_{bits}"
                extension.extra_objects += self.compiler.compile(
                    [f"{PLACE}/kernels.c"],
                    output_dir=str(folder / table),
                    macros=[("REAL_BITS", str(bits)), ("TABLE", table)],
                    include_dirs=include,
                    extra_postargs=[*FLAGS, *march],
                    depends=extension.depends,
                )
        super().build_extension(extension)


def find_compiler() -> str | None:
    """Try the compiler; return why there are to be no compiled kernels, or None."""
    if os.environ.get("FASTATTN_CYTHON", "").strip() == "0":
        return "FASTATTN_CYTHON=0 says so"
    import sysconfig

    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(PROBE, encoding="utf-8")
        for march in LEVELS.values():
            include = f"-I{sysconfig.get_paths()['include']}"
            command = [*compiler, *FLAGS, *march, include, "-c", str(source), "-o", f"{source}.o"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
            except OSError as error:
                return f"the C compiler {compiler[0]!r} cannot be run: {error.strerror}"
            if done.returncode != 0:
                told = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
                return f"{' '.join(command[: len(compiler)])} cannot compile them: {told}"
    return None


def extensions() -> list[Extension]:
    """Describe what to build: the compiled kernels, or nothing."""
    reason = find_compiler()
    if reason is not None:
        text = f"fastattn: the compiled kernels (backend 'cython') are left out: {reason}"
        if os.environ.get("FASTATTN_REQUIRE_CYTHON", "").strip() == "1":
            raise SystemExit(f"{text}; FASTATTN_REQUIRE_CYTHON=1 makes that an error")
        print(f"{text}. Everything works, compiled by Numba when it is needed.", file=sys.stderr)
        return []
    return [
        Extension(
            "fastattn._cython._native",
            [f"{PLACE}/_native.pyx"],
            depends=[
                str(path) for path in sorted(Path(PLACE).glob("*.[ch]")) if path.stem[0] != "_"
            ],
            extra_compile_args=[*FLAGS, "-pthread"],
            extra_link_args=["-pthread"],
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
