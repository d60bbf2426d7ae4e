"""The bits of every kernel are the same for a CPU of AVX2 and FMA as for this one."""

import platform

import children
import pytest

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        platform.machine().lower() not in ("x86_64", "amd64"), reason="bits are promised for x86-64"
    ),
]

CALLS = """
    import re
    import digests
    from fastattn._numba.stages import attention

    digest = digests.everything()
    entries = attention.attend_float32, attention.attend_float64
    assembly = "".join(entry._owner._library.get_asm_str() for entry in entries)
    print(digest, len(re.findall("zmm", assembly)), len(re.findall("ymm", assembly)))
"""


def test_one_digest_for_avx2_and_this_machine():
    numba = {"FASTATTN_BACKEND": "numba", "FASTATTN_CACHE": 0}
    narrow = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
    here, wide_here, _ = children.run(CALLS, timeout=300, **numba).split()
    there, wide_there, any_there = children.run(CALLS, timeout=300, **numba, **narrow).split()
    assert int(wide_there) == 0 < int(any_there), "the child did not compile for AVX2"
    print(f"digest {here}; zmm here {wide_here}, in the child {wide_there}")
    assert here == there
