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
    import hashlib, re
    import numpy as np
    import fastattn
    from fastattn._numba import attention

    rng = np.random.default_rng(0)
    digest = hashlib.sha256()
    options = (
        dict(),
        dict(causal=True, query_offset=600),
        dict(similarity="cosine", scale=9.0),
        dict(similarity="euclidean", scale=0.3),
        dict(softcap=3.0),
        dict(window=(50, 9), query_offset=300),
        dict(mask=True),
        dict(return_lse=True, return_weights=True),
    )
    for dtype in ("float32", "float64"):
        def draw(*shape):
            return rng.standard_normal(shape).astype(dtype)
        for option in options:
            if "mask" in option:
                option = dict(mask=draw(70, 1100))
            for features, value_features in ((64, 64), (33, 17)):
                results = fastattn.attention(
                    draw(2, 2, 70, features), draw(2, 2, 1100, features),
                    draw(2, 2, 1100, value_features), **option,
                )
                for result in results if isinstance(results, tuple) else (results,):
                    digest.update(np.ascontiguousarray(result).tobytes())
        one = fastattn.attention(draw(1, 4, 1, 64), draw(1, 4, 5000, 64), draw(1, 4, 5000, 64))
        digest.update(one.tobytes())
        digest.update(fastattn.softmax(draw(300, 700), axis=0).tobytes())
        digest.update(fastattn.logsumexp(draw(300, 700)).tobytes())
        digest.update(fastattn.fuse(draw(30, 700), draw(700, 20)).tobytes())
        digest.update(fastattn.similarity(draw(30, 70), draw(90, 70)).tobytes())
    entries = attention.attend_float32, attention.attend_float64
    assembly = "".join(entry._owner._library.get_asm_str() for entry in entries)
    print(digest.hexdigest(), len(re.findall("zmm", assembly)), len(re.findall("ymm", assembly)))
"""


def test_one_digest_for_avx2_and_this_machine():
    narrow = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": ""}
    here, wide_here, _ = children.run(CALLS, timeout=300, FASTATTN_CACHE=0).split()
    there, wide_there, any_there = children.run(
        CALLS, timeout=300, FASTATTN_CACHE=0, **narrow
    ).split()
    assert int(wide_there) == 0 < int(any_there), "the child did not compile for AVX2"
    print(f"digest {here}; zmm here {wide_here}, in the child {wide_there}")
    assert here == there
