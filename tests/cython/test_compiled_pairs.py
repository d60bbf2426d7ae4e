"""bfloat16 multiplied as it is by the compiled kernels: at which levels, and in any layout.

Which CPUs do it by themselves is the engine's to say; here they are told to. What comes of it is in
`test_bfloat16_dot`, for all backends.
"""

import children
import pytest
from conftest import available

pytest.importorskip("ml_dtypes")
pytestmark = pytest.mark.skipif(not available("cython"), reason="the kernels were not built")

IN_PAIRS = {"FASTATTN_BACKEND": "cython", "FASTATTN_BFLOAT16_DOT": "1"}

_PREPARED = """
import ml_dtypes
import numpy as np
import fastattn
from fastattn._cython import backend

rng = np.random.default_rng(0)

def random(*shape):
    return rng.standard_normal(shape).astype(ml_dtypes.bfloat16)

def same(found, expected):
    return found.tobytes() == expected.tobytes()
"""


def run(code, **variables):
    return children.run(_PREPARED + code, **{**IN_PAIRS, **variables}).strip()


def widest():
    """The level that has kernels of pairs, if this CPU can run them."""
    from fastattn._cython import _native

    return next(
        (level for level in _native.built_levels() if _has_pairs(level)),
        None,
    )


def _has_pairs(level):
    from fastattn._cython import _native

    return "attend_pairs" in _native.entry_addresses(level)


needs_pairs = pytest.mark.skipif(
    available("cython") and widest() is None, reason="this CPU cannot multiply bfloat16 as it is"
)


@needs_pairs
@pytest.mark.parametrize(
    ("level", "asked", "way"),
    [
        ("x86-64-v4", "1", "multiplied in pairs"),
        ("x86-64-v4", "0", "widened"),
        ("x86-64-v3", "1", "widened"),
    ],
)
def test_who_multiplies_bfloat16_as_it_is(level, asked, way):
    """Widened operands give the bits of float32, rounded; pairs do not."""
    code = """
query, key, value = random(30, 40), random(700, 40), random(700, 40)
found = fastattn.attention(query, key, value)
wide = fastattn.attention(*(x.astype(np.float32) for x in (query, key, value)))
assert abs(found.astype(np.float64) - wide).max() < 0.005
print("widened" if same(found, wide.astype(found.dtype)) else "multiplied in pairs")
print(fastattn.show_config("dicts")["backends"]["cython"])
"""
    said = run(code, FASTATTN_CYTHON_LEVEL=level, FASTATTN_BFLOAT16_DOT=asked).splitlines()
    assert said == [way, f"available, kernels compiled for {level}, bfloat16 {way}"]


def test_no_pairs_of_a_level_that_has_none():
    assert not _has_pairs("x86-64-v3")
    assert not _has_pairs("x86-64-v9")


@needs_pairs
def test_any_layout_and_byte_order_have_the_bits_of_plain_rows():
    code = """
query, key, value = random(9, 31), random(333, 31), random(333, 23)
expected = fastattn.attention(query, key, value)
turned = [np.asfortranarray(x) for x in (query, key, value)]
swapped = [x.view(np.uint16).byteswap().view(x.dtype.newbyteorder()) for x in (query, key, value)]
gaps = [np.repeat(x, 2, axis=-1)[..., ::2] for x in (query, key, value)]
for arrays in (turned, swapped, gaps):
    assert same(fastattn.attention(*arrays).astype(expected.dtype), expected)
"""
    run(code)
