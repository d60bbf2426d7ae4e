"""No kernel ends the process, whatever CPU Numba is told to compile for: LLVM makes calls to
functions that may not exist of what a CPU cannot do, such as converting halves.

Each CPU is a child of its own, which does small calls of every operation; what it finds has the
bits of this machine's own kernels. Where a CPU has no fused multiply-add the C library does it.
"""

import pickle
import platform

import calls
import children
import conftest
import llvmlite.binding as llvm
import pytest

pytestmark = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="names of x86-64 CPUs"
)

# What runs code for it needs beside SSE2, where that is not all there is.
NAMES = {
    "generic": "",
    "x86-64": "",
    "nehalem": "sse4.2 popcnt",
    "x86-64-v2": "sse4.2 popcnt",
    "sandybridge": "avx",
    "haswell": "avx2 fma f16c bmi2",
    "x86-64-v3": "avx2 fma f16c bmi2",
    "skylake-avx512": "avx512f avx512vl avx512bw avx512dq avx512cd",
    "znver4": "avx512f avx512bf16 avx512vbmi2 avx512vpopcntdq gfni vaes",
}
# What reads and writes halves, as attention does, and is compiled in seconds.
SAMPLE = ("similarity dot, float16",)

PROGRAM = """
    import pickle, sys
    import calls

    chosen = {chosen!r}
    for dtype in calls.DTYPES:
        for name, call in calls.every_call(dtype, "plain", {seed}):
            if name.startswith(chosen):
                print(pickle.dumps((name, calls.results(call))).hex())
"""


def do_calls(chosen, seed, **variables):
    code = PROGRAM.format(chosen=chosen, seed=seed)
    printed = children.run(code, timeout=1800, FASTATTN_BFLOAT16_DOT=0, **variables)
    return dict(pickle.loads(bytes.fromhex(line)) for line in printed.split())


def run_as(name, chosen, seed):
    here = llvm.get_host_cpu_features()
    missing = [one for one in NAMES[name].split() if not here.get(one)]
    if missing:
        pytest.skip(f"this CPU has no {missing[0]}")
    own = {"FASTATTN_BACKEND": conftest.AUTOMATIC, **children.WITH_KERNELS}
    expected = do_calls(chosen, seed, **own)
    found = do_calls(
        chosen,
        seed,
        FASTATTN_BACKEND="numba",
        FASTATTN_CACHE=0,
        NUMBA_CPU_NAME=name,
        NUMBA_CPU_FEATURES="",
    )
    assert found.keys() == expected.keys() != set()
    for call in expected:
        if not call.startswith("explain"):  # which says what the backend is
            calls.assert_same(found[call], expected[call], call)


def test_a_cpu_that_converts_no_halves(seed):
    run_as("generic", SAMPLE, seed)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_every_operation_on_every_cpu(name, seed):
    run_as(name, ("",), seed)
