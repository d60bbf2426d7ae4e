"""Few queries against halves and int8, which are read where they lie: bits of float32, no others.

Every call is held against the same call on the widened keys and values, which is computed by other
tiles; where bfloat16 is multiplied as it is, against the same rows among many, which then are. Rows
on both sides of what counts as few; sizes that can and cannot be read in place.
"""

import itertools

import numpy as np
import oracle
import pytest
import strategies
from pairs import takes_pairs

import fastattn

SMALL = ("float16", "bfloat16")
ROWS = (1, 2, 4, 5)
# Bytes of a key in halves: 14, 16, 48, 128, 160; the tiles take sixteen at a time.
FEATURES = (7, 8, 24, 64, 80)
VALUE_FEATURES = (64, 80, 192)
# A step of the tiles has 32 keys, a chain of the output 128, a segment 512.
KEYS = (1, 15, 16, 31, 32, 33, 127, 129, 512, 530, 1100)


def widened(arrays):
    return [x.astype(np.float32) for x in arrays]


def among_many(arrays, mask=None, **options):
    """The rows of a call, computed among forty more."""
    query, key, value = arrays
    rows = query.shape[-2]
    more = np.zeros((len(query), 40, query.shape[-1]), query.dtype)
    if mask is not None:
        options["mask"] = np.concatenate([mask, np.ones((40, mask.shape[-1]), bool)])
    many = np.concatenate([query, more], 1)
    output, lse = fastattn.attention(many, key, value, return_lse=True, **options)
    return output[:, :rows], lse[:, :rows]


def check(arrays, about, **options):
    ours, ours_lse = fastattn.attention(*arrays, return_lse=True, **options)
    if takes_pairs(*arrays):
        theirs, theirs_lse = among_many(arrays, **options)
    else:
        theirs, theirs_lse = fastattn.attention(*widened(arrays), return_lse=True, **options)
    oracle.assert_same_bits(ours, theirs.astype(ours.dtype), about=about)
    oracle.assert_same_bits(ours_lse, theirs_lse, about=about)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", SMALL)
def test_sizes(exact_backend, dtype, rows, seed):
    rng = np.random.default_rng(seed)
    dtype = strategies.dtype_of(dtype)
    # Each of a kind meets each of the others; which three meet is the seed's choice.
    for (i, features), (k, keys) in itertools.product(enumerate(FEATURES), enumerate(KEYS)):
        value_features = VALUE_FEATURES[(i + k + seed) % len(VALUE_FEATURES)]
        sizes = (rows, features), (keys, features), (keys, value_features)
        arrays = [rng.standard_normal((2, *size)).astype(dtype) for size in sizes]
        check(arrays, (features, value_features, keys))


@pytest.mark.parametrize("window", [(16, 0), (40, 3), (300, 0), (700, 100)])
@pytest.mark.parametrize("dtype", SMALL)
def test_windows_and_heads_side_by_side(exact_backend, dtype, window, seed):
    """Ranges begin at any key; the rows of a key head lie apart."""
    rng = np.random.default_rng(seed)
    sizes = (3, 64), (1000, 64), (1000, 128)
    arrays = [
        np.swapaxes(rng.standard_normal((n, 2, e)).astype(strategies.dtype_of(dtype)), 0, 1)
        for n, e in sizes
    ]
    for offset in (0, 5, 130, 511, 990):
        check(arrays, offset, causal=True, query_offset=offset, window=window)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", SMALL)
def test_hidden_numbers_that_are_not_finite(exact_backend, dtype, number, seed):
    rng = np.random.default_rng(seed)
    sizes = (2, 64), (300, 64), (300, 64)
    arrays = [rng.standard_normal((1, *n)).astype(strategies.dtype_of(dtype)) for n in sizes]
    arrays[1][0, 200:] = arrays[2][0, 200:] = number
    check(arrays, "hidden", key_lengths=200)
    mask = rng.random((2, 300)) < 0.7
    mask[:, 100] = False
    arrays[1][0, 100] = arrays[2][0, 100] = number
    check(arrays, "masked", key_lengths=200, mask=mask)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("storage", ["float16", "bfloat16", "int8"])
def test_caches(exact_backend, storage, rows, seed):
    """Pages, scales, entries of different lengths, and borders within a step."""
    rng = np.random.default_rng(seed)
    for features, value_features in ((16, 64), (64, 64), (128, 192)):
        cache = fastattn.KVCache(
            3, 2, features, dtype=strategies.dtype_of(storage), value_dim=value_features
        )
        new = [rng.standard_normal((3, 2, 700, n), np.float32) for n in (features, value_features)]
        cache.append(*new, lengths=np.array([700, 531, 130]))
        key, value = cache.dense()
        query = rng.standard_normal((3, 2, rows, features), np.float32)
        asked = {"causal": True, "query_offset": (cache.lengths - rows)[:, None]}
        wide = fastattn.attention(
            query, *widened((key, value)), key_lengths=cache.lengths[:, None], **asked
        )
        oracle.assert_same_bits(cache.attend(query), wide, about=(features, value_features))


@pytest.mark.parametrize("rows", [1, 4])
def test_tiny_scales(exact_backend, rows, seed):
    """Scales of int8 near the smallest numbers lose no bit, alone or among ordinary ones."""
    rng = np.random.default_rng(seed)
    cache = fastattn.KVCache(1, 1, 64, dtype=np.int8)
    key, value = rng.standard_normal((2, 1, 1, 128, 64), np.float32)
    key *= np.float32(2.0**-110)
    key[..., 64:, :] *= np.float32(2.0**15)
    query = rng.standard_normal((1, 1, rows, 64), np.float32) * np.float32(2.0**110)
    # Later keys and one of ordinary size say nothing that would drown the others.
    query[..., 32:], key[..., 64:, :32] = 0, 0
    key[..., 40, :], key[..., 40, 63], key[..., 50, :] = 0, 1, 0
    cache.append(key, value)
    dense, values = cache.dense()
    wide = fastattn.attention(query, dense, values, causal=True, query_offset=128 - rows)
    oracle.assert_same_bits(cache.attend(query), wide, about=rows)
    assert len(np.unique(wide)) > 32
