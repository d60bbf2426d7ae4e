"""bfloat16 multiplied as it is by the compiled kernels: which of them do, and all their paths.

Which CPUs do it by themselves is the engine's to say; here they are told to.
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

    return next((name for name in _native.built_levels() if _native.pairs_address(name)), None)


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
    from fastattn._cython import _native

    assert _native.pairs_address("x86-64-v3") is None
    assert _native.pairs_address("x86-64-v9") is None


@needs_pairs
def test_few_rows_have_the_bits_of_many():
    """Tiles that read keys and values where they lie, and those that read panels of pairs."""
    code = """
for features, value_features, keys in ((64, 128, 700), (8, 64, 129), (40, 64, 33), (7, 64, 515)):
    shapes = (30, features), (keys, features), (keys, value_features)
    query, key, value = (random(2, *shape) for shape in shapes)
    for options in ({}, {"window": (keys // 2, 0), "query_offset": keys - 30}):
        whole = fastattn.attention(query, key, value, **options)
        for rows in (1, 3, 4):
            more = dict(options)
            if options:
                more["query_offset"] = keys - rows
            few = fastattn.attention(query[:, -rows:], key, value, **more)
            assert same(few, whole[:, -rows:]), (features, keys, rows, options)
"""
    run(code)


@needs_pairs
def test_hidden_keys_that_are_not_finite_leave_the_bits_as_they_are():
    """First and second keys of a pair, and the last one, which is alone in its pair."""
    code = """
for features, rows in ((64, 1), (64, 30), (24, 30)):
    query, key, value = random(rows, features), random(301, features), random(301, features)
    for hidden in ([0], [7], [300], [10, 11], [128, 300]):
        mask = np.ones((rows, 301), bool)
        mask[0, hidden] = False
        if rows > 1:
            mask[1] = False
        key[hidden] = value[hidden] = 0
        expected = fastattn.attention(query, key, value, mask=mask, return_lse=True)
        key[hidden] = value[hidden] = np.nan
        value[hidden, ::2] = np.inf
        found = fastattn.attention(query, key, value, mask=mask, return_lse=True)
        assert all(same(a[:2], b[:2]) for a, b in zip(found, expected)), (features, rows, hidden)
        assert rows == 1 or np.isnan(found[0][2:]).any()
        key[hidden], value[hidden] = random(2, len(hidden), features)
"""
    run(code)


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


@pytest.mark.long
@needs_pairs
@pytest.mark.skipif(not available("numba"), reason="numba is not there")
def test_both_compilers_give_the_same_bits():
    code = """
options = (
    {},
    {"causal": "bottom_right", "return_lse": True},
    {"scale": -0.3, "softcap": 2.0, "return_weights": True},
    {"mask": "some", "return_lse": True},
)
for shape in ((1, 901, 64, 128), (4, 130, 40, 64), (70, 1100, 31, 20), (3, 1, 1, 1)):
    rows, keys, features, value_features = shape
    query, key = random(2, rows, features), random(keys, features)
    value = random(keys, value_features)
    for chosen in options:
        if "mask" in chosen:
            value[keys // 2] = np.inf
            chosen = chosen | {"mask": rng.random((rows, keys)) < 0.8}
        found, expected = (
            fastattn.attention(query, key, value, **chosen, backend=name)
            for name in ("cython", "numba")
        )
        pairs = zip(found, expected) if isinstance(found, tuple) else [(found, expected)]
        assert all(same(*pair) for pair in pairs), (shape, chosen)
from fastattn._numba import backend
assert backend.engine.kernels.attend_pairs is not None
"""
    run(code, **children.WITH_KERNELS)
