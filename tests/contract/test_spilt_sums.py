"""Sums that overflow under a scale above 1, and not without it: the score is right all the same.

In every operation, whichever way its keys are read. So far as powers of two go, such a score is
that of scale 1 times the power, to the bit. Zeros too have one sign, whichever row is the query.
"""

import itertools

import numpy as np
import oracle
import pytest
import strategies
import tolerances

import fastattn
from fastattn import reference

# Rows, keys and features around tiles, panels, chains and runs.
SIZES = [(1, 7, 2), (7, 64, 3), (30, 130, 17), (6, 70, 100), (5, 64, 1030), (13, 65, 2100)]


def computed(dtype):
    return np.float64 if dtype == "float64" else np.float32


def bits(scores):
    return np.ascontiguousarray(scores).view(f"u{scores.itemsize}")


def spilling(rng, rows, keys, features, dtype, scale):
    """Queries and keys; with every other key the products of two features nearly cancel.

    They stay in range, and so does the score; but under the power of two of the scale each product
    is up to half as large again as the largest number. Such keys have the largest scores.
    """
    info, power = np.finfo(computed(dtype)), int(np.frexp(scale)[1]) - 1
    query, key = rng.standard_normal((rows, features)) / 256, rng.standard_normal((keys, features))
    pair = np.sort(rng.choice(features, 2, replace=False))
    query[:, pair], key[:, pair] = 1, 0
    sign = rng.choice([1, -1], (keys + 1) // 2)
    key[::2, pair] = np.stack([6 * sign, -6 * sign * (1 - sign / 64)], axis=-1)
    query = query.astype(strategies.dtype_of(dtype))
    return np.ldexp(query.astype(float), info.maxexp - 2 - power).astype(query.dtype), key


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("scale", [2.0, 3.0, np.array(2.0)])
def test_a_sum_that_overflows_on_the_way_does_not_make_a_score_nan(backend, dtype, scale):
    large = np.ldexp(np.dtype(dtype).type(1), np.finfo(dtype).maxexp - 2)
    query = np.array([[large, large]], dtype)
    key = np.array([[2, -1.75], [1, -1], [-2, 2.25]], dtype)
    expected = float(scale) * np.array([[0.25, 0, 0.25]]) * large
    found = fastattn.similarity(query, key, metric="dot", scale=scale)
    oracle.assert_same_bits(found, expected.astype(dtype))
    how = {"similarity": "dot", "scale": scale, "return_lse": True}
    for attention in (fastattn.attention, reference.tiled.attention):
        lse = attention(query, key, key, **how)[1]
        oracle.assert_close(lse, expected.max(axis=1), tolerances.score_error(dtype, 2, lse[0]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_similarities_are_those_of_scale_1_times_the_power(exact_backend, dtype, seed):
    rng = np.random.default_rng(seed)
    for size, power in itertools.product(SIZES, (1, 10, 90)):
        query, key = spilling(rng, *size, dtype, 2.0**power)
        # One more feature, with which some rows cannot take the power.
        more = np.where(np.arange(size[0]) % 3 == 1, np.ldexp(1.0, np.finfo(dtype).maxexp - 1), 0)
        query = np.column_stack([query, more]).astype(dtype)
        key = np.column_stack([key, np.full(size[1], 2.0 ** (-40 - power))]).astype(dtype)
        plain = fastattn.similarity(query, key, metric="dot", scale=1.0)
        with np.errstate(over="ignore"):
            expected = np.ldexp(plain, power)
        known = np.isfinite(expected)
        assert known[:, ::2].any(), "nothing spills"
        out = np.empty((size[1], size[0]), dtype).T
        for sign, given in itertools.product((1, -1), (None, out)):
            scale = sign * 2.0**power
            found = fastattn.similarity(query, key, metric="dot", scale=scale, out=given)
            oracle.assert_same_bits(found[known], sign * expected[known], about=(size, power))
        # The rest of a scale is done last.
        found = fastattn.similarity(query, key, metric="dot", scale=1.5 * 2.0**power)
        with np.errstate(over="ignore"):
            expected = expected * np.dtype(dtype).type(1.5)
        known = np.isfinite(expected)
        oracle.assert_same_bits(found[known], expected[known], about=(size, power))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_spilt_sums_are_symmetric(exact_backend, dtype, seed):
    rng = np.random.default_rng(seed)
    half = np.finfo(dtype).maxexp // 2
    for features, power in itertools.product((64, 260, 1100), (1, 7)):
        x = rng.choice([-1.0, 1.0], (90, features)) * rng.uniform(0.9, 1, (90, features))
        x = np.ldexp(x, half - 2 - power // 2)
        # Some rows cannot take the power.
        x[:, 0] = np.where(rng.random(90) < 0.3, np.ldexp(1.5, 2 * half - 1), 2.0**-9)
        x = x.astype(dtype)
        found = fastattn.similarity(x, x, metric="dot", scale=2.0**power)
        plain = fastattn.similarity(x, x, metric="dot", scale=1.0)
        with np.errstate(over="ignore"):
            expected = np.ldexp(plain, power)
        known = np.isfinite(expected)
        oracle.assert_same_bits(found[known], expected[known], about=(features, power))
        same = (bits(found) == bits(found.T)) | (np.isnan(found) & np.isnan(found.T))
        assert same.all(), (features, power, np.argwhere(~same)[0])


@pytest.mark.parametrize("stored", ["float32", "float64", "float16", "bfloat16", "int8", "listed"])
def test_every_way_to_score_finds_them(exact_backend, stored, seed):
    """Few rows and many, keys packed, unpacked, halves, int8 or listed: a row is as it is alone."""
    rng = np.random.default_rng(seed)
    dtype = {"float64": "float64", "bfloat16": "bfloat16"}.get(stored, "float32")
    for keys, features, scale in itertools.product((1, 70, 600), (8, 19), (2.0, 3.0, 2.0**40)):
        many, key = spilling(rng, 61, keys, features, dtype, scale)
        many[1::4] = rng.standard_normal((15, features)).astype(many.dtype)
        value = strategies.draw(rng, (keys, 64), "float32")
        kind = computed(dtype) if stored in ("int8", "listed") else strategies.dtype_of(stored)
        key = key.astype(kind)
        cache = fastattn.KVCache((), 1, features, dtype="int8", value_dim=64)
        if stored == "int8":
            cache.append(key[None], value[None])
            key, value = (held[0] for held in cache.dense())
        order = rng.permutation(keys).astype(np.int32)
        table = np.empty_like(key), np.empty_like(value)
        table[0][order], table[1][order] = key, value
        options = {"similarity": "dot", "scale": scale, "return_lse": True, "threads": 1}

        def call(
            query, key=key, value=value, cache=cache, table=table, order=order, options=options
        ):
            if stored == "int8":
                found = cache.attend(query[None], causal=False, **options)
                return found[0][0], found[1][0]
            if stored == "listed":
                splits = [0, len(query)], [0, len(key)]
                return fastattn.attention_varlen(
                    query, *table, *splits, key_indices=order, **options
                )
            return fastattn.attention(query, key, value.astype(key.dtype), **options)

        whole, about = call(many), (keys, features, scale)
        for first, stop in ((0, 1), (1, 2), (2, 6), (6, 9), (12, 40)):
            for part, all_of_it in zip(call(many[first:stop]), whole, strict=True):
                oracle.assert_same_bits(part, all_of_it[first:stop], about=(*about, first))
        assert all(np.isfinite(x.astype(float)).all() for x in whole), about
        spilt = np.arange(61) % 4 != 1
        exact = many[spilt].astype(np.longdouble) @ key.T.astype(np.longdouble) * scale
        size = abs(many[spilt].astype(np.longdouble)) @ abs(key.T.astype(np.longdouble)) * scale
        # Relative to the largest: what is as large as numbers can be is not summed up in float64.
        unit = exact.max()
        error = tolerances.score_error(computed(dtype), features, float(size.max() / unit))
        lse = whole[1][spilt].astype(np.longdouble) / unit
        oracle.assert_close(
            lse.astype(float), (exact.max(axis=1) / unit).astype(float), error, about=about
        )
        best = value.astype(key.dtype)[exact.argmax(axis=1)]
        alike = np.sort(exact, axis=1)
        clear = keys == 1 or alike[:, -1] - alike[:, -2] > 8 * error * unit
        output = whole[0][spilt]
        oracle.assert_same_bits(output[clear], best.astype(output.dtype)[clear], about=about)


def test_heads_of_scales_above_and_below_1(exact_backend, seed):
    """A row is scored as with its own scale alone."""
    rng = np.random.default_rng(seed)
    scales = (2.0, 0.5, 1024.0, 3.0)
    for rows in (1, 30):
        drawn = [spilling(rng, rows, 70, 8, "float32", max(scale, 2.0)) for scale in scales]
        query, key = (np.float32([one[i] for one in drawn]) for i in range(2))
        found = fastattn.attention(query, key, key, similarity="dot", scale=scales, return_lse=True)
        scores = fastattn.similarity(query, key, metric="dot", scale=scales)
        for h, scale in enumerate(scales):
            how = {"similarity": "dot", "scale": scale, "return_lse": True}
            alone = fastattn.attention(query[h], key[h], key[h], **how)
            for ours, theirs in zip(found, alone, strict=True):
                assert np.isfinite(ours[h]).all()
                oracle.assert_same_bits(ours[h], theirs, about=(rows, scale))
            alone = fastattn.similarity(query[h], key[h], metric="dot", scale=scale)
            oracle.assert_same_bits(scores[h], alone, about=(rows, scale))


def test_under_a_cap_they_have_their_sign(backend, seed):
    """The keys are the large ones: large queries do not take the power there."""
    key, query = spilling(np.random.default_rng(seed), 30, 70, 8, "float32", 2.0)
    key[::2] *= -1
    arrays = query.astype(np.float32), key, np.eye(30, dtype=np.float32)
    options = {"similarity": "dot", "scale": 2.0, "softcap": 3.0, "return_weights": True}
    weights = fastattn.attention(*arrays, **options)[1]
    expected = reference.attention(*arrays, **options)[1]
    oracle.assert_close(weights, expected, tolerances.weight_error(np.float32, 8, 3.0))


def test_under_a_cap_an_infinite_sum_is_as_good(backend):
    """Whose sums with the power come to NaN."""
    query = np.full((1, 3), 2.0**511)
    key = np.array([[1.2e308, -1.7e308, -1.7e308], [0, 0, 0]]) / 2.0**511
    options = {"similarity": "dot", "scale": 2.0, "softcap": 3.0, "return_lse": True}
    lse = fastattn.attention(query, key, key, **options)[1]
    expected = np.log(np.exp([-3.0]) + 1.0)
    tiled = reference.tiled.attention(query, key, key, **options)[1]
    for found in (lse, tiled):
        oracle.assert_close(found, expected, tolerances.score_error("float64", 3, 3.0))


def test_nan_hides_no_size(exact_backend, seed):
    """One query or one key is large, and another one NaN."""
    query, key = spilling(np.random.default_rng(seed), 40, 70, 8, "float32", 2.0)
    query, key = query.astype(np.float32), key.astype(np.float32)
    key[1::2], query[1::2] = key[1::2] / 64, query[1::2] / 2.0**90
    how = {"metric": "dot", "scale": 2.0}
    seen = np.ones((40, 70), bool)
    clean = fastattn.similarity(query, key, **how)
    assert np.isfinite(clean).all()
    for row, column in ((0, 8), (2, 6)):
        spoilt = query.copy() if row else query, key.copy()
        few = np.arange(70) % 2 + (np.arange(70) == column) > 0
        spoilt[1][~few] = 0
        spoilt[1][[24, 40]] = np.nan
        if row:
            spoilt[0][np.arange(40) % 2 == 0] = 0
            spoilt[0][row] = query[row]
            spoilt[0][[4, 6]] = np.nan
        found = fastattn.similarity(*spoilt, **how)
        oracle.assert_same_bits(found[row, column], clean[row, column], about=(row, column))
        seen[:, [24, 40]] = False
        lse = fastattn.attention(
            *spoilt, key, similarity="dot", scale=2.0, mask=seen, return_lse=True
        )[1]
        oracle.assert_same_bits(lse[row], clean[row, column], about=(row, column))


def test_options_meet_scores_that_were_scored_again(exact_backend, seed):
    """Also where a block sees a part of a panel, and what it does not see is not finite."""
    rng = np.random.default_rng(seed)
    query, key = spilling(rng, 40, 600, 8, "float32", 2.0)
    key = key.astype(np.float32)
    value = rng.standard_normal((600, 5)).astype(np.float32)
    how = {"similarity": "dot", "scale": 2.0, "return_lse": True}
    seen = rng.random((40, 600)) < 0.2
    clean = fastattn.attention(query, key, value, mask=seen & (np.arange(600) != 9), **how)
    spoilt = key.copy()
    spoilt[9] = np.nan
    found = fastattn.attention(query, spoilt, value, mask=seen & (np.arange(600) != 9), **how)
    for ours, theirs in zip(found, clean, strict=True):
        assert np.isfinite(ours).all()
        oracle.assert_same_bits(ours, theirs)
    ranged = fastattn.attention(query, key, value, causal=True, query_offset=530, **how)
    for i in (0, 23, 39):
        alone = fastattn.attention(query[i : i + 1], key[: i + 531], value[: i + 531], **how)
        for ours, theirs in zip(ranged, alone, strict=True):
            oracle.assert_same_bits(ours[i : i + 1], theirs, about=i)
    parts = [
        fastattn.attention_state(
            query, key[begin:stop], value[begin:stop], key_start=begin, similarity="dot", scale=2.0
        )
        for begin, stop in ((0, 512), (512, 600))
    ]
    merged = parts[0].merge(parts[1]).finish(return_lse=True)
    for ours, theirs in zip(merged, fastattn.attention(query, key, value, **how), strict=True):
        oracle.assert_same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cosines_under_the_largest_scales(backend, dtype):
    """One with itself is beyond the range of float32, others are 0."""
    x = np.ones((2, 64), dtype)
    x[1, 32:] = -1
    scale = 2.0 ** (129 if dtype == "float32" else 1023)
    found = fastattn.similarity(x, np.repeat(x, 40, axis=0), metric="cosine", scale=scale)
    assert (found[0, 40:] == 0).all()
    assert (found[1, :40] == 0).all()
    lse = fastattn.attention(
        x[:1], x[1:], x[1:], similarity="cosine", scale=scale, return_lse=True
    )[1]
    assert lse == 0


def test_sums_that_overflow_either_way_are_not_finite(backend):
    """As NumPy's, although the score is a number."""
    query, key = np.float64([[1.5e308, 1.5e308]]), np.float64([[2, -2]])
    for scale in (1.0, 1.5, 2.0):
        found = fastattn.similarity(query, key, metric="dot", scale=scale)
        assert not np.isfinite(found).any(), scale
    # Unless the scale keeps them in range.
    assert fastattn.similarity(query, key, metric="dot", scale=0.125) == 0


@pytest.mark.parametrize("metric", ["dot", "scaled_dot", "cosine", "euclidean"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zeros_have_one_sign_whichever_row_is_the_query(exact_backend, metric, dtype, seed):
    """Products of subnormal numbers round to zeros of either sign."""
    rng = np.random.default_rng(seed)
    least = np.finfo(dtype).smallest_subnormal
    scales = (0.5, -0.5, 0.3, 2.0**-20, 1.0, -3.0, 2.0**60)
    for features, scale in itertools.product((1, 2, 3, 17, 70, 1030), scales):
        tiny = (rng.integers(-5, 6, (40, features)) * least).astype(dtype)
        for x in (tiny, np.ldexp(tiny, rng.integers(0, 60, tiny.shape))):
            found = fastattn.similarity(x, x, metric=metric, scale=scale)
            same = bits(found) == bits(found.T)
            assert same.all(), (features, scale, np.argwhere(~same)[0])
