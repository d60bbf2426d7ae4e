"""The compiled kernels; everything else is declared in pyproject.toml.

They are built where a C compiler for this machine is found, and left out with a word where none is.
``FASTATTN_REQUIRE_CYTHON=1`` makes that an error, ``FASTATTN_CYTHON=0`` leaves them out unasked.
"""

import importlib.util
import os
import runpy
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError, CompileError

PLACE = "fastattn/_cython"
# Python's own flags come first, then CFLAGS; the last word is ours. What would change bits, or take
# the kernels for AVX2 to machines with more, is taken back here one by one.
EXACT = [
    "-fno-fast-math",
    "-fno-unsafe-math-optimizations",
    "-fno-associative-math",
    "-fno-reciprocal-math",
    "-fno-finite-math-only",
    "-fsigned-zeros",
    "-fno-rounding-math",
    "-ffp-contract=off",
]
FLAGS = ["-std=gnu11", "-O3", "-g0", *EXACT, "-fno-math-errno", "-fvisibility=hidden"]
FLAGS += ["-Wno-unused-function"]
# Linked with -Ofast or -ffast-math, which CFLAGS bring here too, the module would switch subnormals
# off in whoever imports it.
LINK = ["-pthread", "-O3", *EXACT[:2]]
# What the kernels are compiled for; on other machines once, for what the compiler assumes. Not this
# machine decides, but the one that Python's build is for.
X86 = sysconfig.get_platform().endswith(("x86_64", "amd64")) and sys.maxsize > 2**32
LEVELS = (
    {"v4": ["-march=x86-64-v4"], "v3": ["-march=x86-64-v3", "-mno-avx512f"]}
    if X86
    else {"base": []}
)
# What the built module depends on, beside its C: all that `words` reads.
TABLES = ["fastattn/_engine/layouts.py", "fastattn/_core/plan.py", f"{PLACE}/words.py"]
# bfloat16 multiplied as it is, which not every compiler for x86-64 knows: the flags, and a source
# that takes them.
PAIRS = ["-march=x86-64-v4", "-mavx512bf16"]
PAIRS_PROBE = """
#include <immintrin.h>
int main(void) { return __builtin_cpu_supports("avx512bf16"); }
__m512 dot(__m512 a, __m512 b) { return _mm512_dpbf16_ps(a, (__m512bh)a, (__m512bh)b); }
"""
REQUIRED = os.environ.get("FASTATTN_REQUIRE_CYTHON", "").strip() == "1"
PROBE = """
#include <Python.h>
#include <pthread.h>
#include <stdatomic.h>
typedef float part __attribute__((vector_size(32)));
int main(void) { part a = {0}; return (int)(a + a)[0]; }
"""


def words() -> str:
    """Write the records and constants of the engine as C."""
    tables, plan, made = (runpy.run_path(path) for path in TABLES)
    return made["header"](tables, plan, made["sources"](Path(PLACE)))


class BuildKernels(build_ext):
    """Compiles the kernels once for each kind of machine and element type."""

    def build_extension(self, extension):
        """Build the kernels; where that fails they are left out, unless they are required."""
        from Cython.Compiler.Errors import CompileError as CythonError

        try:
            self.build_kernels(extension)
        except (BaseError, CCompilerError, CompileError, CythonError) as error:
            leave_out(f"building them failed: {error}")

    def build_kernels(self, extension):
        """Compile the kernels, then the module that holds them."""
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "words.h").write_text(words(), encoding="utf-8")
        include = [str(folder), PLACE]
        extension.include_dirs += include
        tables = {
            f"fastattn_{level}_{bits}": ([("REAL_BITS", str(bits))], march)
            for level, march in LEVELS.items()
            for bits in (32, 64)
        }
        if knows_pairs():
            tables["fastattn_v4_pairs"] = ([("REAL_BITS", "32"), ("IN_PAIRS", None)], PAIRS)
            extension.define_macros.append(("PAIRS", None))
        for table, (macros, march) in tables.items():
            extension.extra_objects += self.compiler.compile(
                [f"{PLACE}/kernels.c"],
                output_dir=str(folder / table),
                macros=[*macros, ("TABLE", table)],
                include_dirs=include,
                extra_postargs=[*FLAGS, *march],
                depends=extension.depends,
            )
        super().build_extension(extension)


def leave_out(reason: str) -> None:
    """Say that there are to be no compiled kernels, and why; an error where they are required."""
    text = f"fastattn: the compiled kernels (backend 'cython') are left out: {reason}"
    if REQUIRED:
        raise SystemExit(f"{text}; FASTATTN_REQUIRE_CYTHON=1 makes that an error")
    print(f"{text}. Everything works, compiled by Numba when it is needed.", file=sys.stderr)


def find_compiler() -> str | None:
    """Try the compiler; return why there are to be no compiled kernels, or None."""
    if os.environ.get("FASTATTN_CYTHON", "").strip() == "0":
        return "FASTATTN_CYTHON=0 says so"
    if importlib.util.find_spec("Cython") is None:
        return "Cython is not installed"
    for march in LEVELS.values():
        refusal = try_compiler(PROBE, march)
        if refusal is not None:
            return refusal
    return None


def try_compiler(probe: str, march: list[str]) -> str | None:
    """Compile a few lines; return why that cannot be done, or None."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text(probe, encoding="utf-8")
        include = f"-I{sysconfig.get_paths()['include']}"
        command = [*compiler, *FLAGS, *march, include, "-c", str(source), "-o", f"{source}.o"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            return f"the C compiler {compiler[0]!r} cannot be run: {error.strerror}"
    if done.returncode == 0:
        return None
    told = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
    return f"{' '.join(command[: len(compiler)])} cannot compile them: {told}"


def knows_pairs() -> bool:
    """Whether to compile for CPUs that multiply bfloat16 as it is; says so where not."""
    if not X86:
        return False
    refusal = try_compiler(PAIRS_PROBE, PAIRS)
    if refusal is not None:
        print(
            "fastattn: the compiled kernels widen bfloat16 on every CPU, also where it would be "
            f"multiplied as it is faster: {refusal}",
            file=sys.stderr,
        )
    return refusal is None


def extensions() -> list[Extension]:
    """Describe what to build: the compiled kernels, or nothing."""
    reason = find_compiler()
    if reason is not None:
        leave_out(reason)
        return []
    sources = [str(path) for path in sorted(Path(PLACE).glob("*.[ch]")) if path.stem[0] != "_"]
    return [
        Extension(
            "fastattn._cython._native",
            [f"{PLACE}/_native.pyx"],
            depends=["setup.py", *TABLES, *sources],
            extra_compile_args=[*FLAGS, "-pthread"],
            extra_link_args=LINK,
            optional=not REQUIRED,
        )
    ]


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
