"""Scales: one per head, with the bits of calls with each one alone; and scores of unusual size.

When a final score is representable, so is every sum on the way to it, whatever the sizes of the
scale and of single features.
"""

import itertools
import re
from fractions import Fraction

import numpy as np
import oracle
import pytest
import strategies
import tolerances
from kv import new_cache, tokens

import fastattn
from fastattn import reference
from fastattn import similarity as similar

METRICS = ("dot", "cosine", "euclidean")
SCALES = (0.37, 0.0, -1.7, 8.0)
DTYPES = ("float32", "float64", "float16", "bfloat16")
HEADS = 4
OPTIONS = (
    {},
    {"softcap": 1.5},
    {"sinks": np.array([0.1, 3.0, -0.5, -np.inf])},
    {"alibi_slopes": np.array([0.1, 0.0, -0.01, 0.5]), "causal": "bottom_right"},
    {"key_lengths": np.array([[500], [3]]), "window": (300, 20)},
    {"mask": np.random.default_rng(5).random((HEADS, 1, 700)) < 0.7},
    {"mask": np.random.default_rng(6).normal(size=(2, HEADS, 1, 700))},
)


def head_of(options, b, h):
    """The options of one batch element and head."""
    mine = dict(options)
    for name in ("sinks", "alibi_slopes"):
        if name in mine:
            mine[name] = mine[name][h]
    if "key_lengths" in mine:
        mine["key_lengths"] = int(mine["key_lengths"][b, 0])
    if "mask" in mine:
        mine["mask"] = mine["mask"][..., h, :, :]
        mine["mask"] = mine["mask"][b] if mine["mask"].ndim == 3 else mine["mask"]
    return mine


# --- one per head --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_each_head_has_the_bits_of_its_own_number(exact_backend, metric, dtype, seed):
    rng = np.random.default_rng(seed)
    sizes = itertools.product((1, 5, 70), (HEADS, 2, 1))
    for number, (rows, key_heads) in enumerate(sizes):
        query = strategies.draw(rng, (2, HEADS, rows, 16), dtype)
        key, value = (strategies.draw(rng, (2, key_heads, 700, n), dtype) for n in (16, 64))
        options = OPTIONS[number % len(OPTIONS)]
        scales = np.array([SCALES]), rng.permutation(8).reshape(2, 4) / 3 - 1, [[0.3], [2.5]]
        scale = scales[number % 3]
        how = {"similarity": metric, "return_lse": True, "return_weights": True}
        found = fastattn.attention(
            query, key, value, scale=scale, enable_gqa=True, **how, **options
        )
        each = np.broadcast_to(scale, (2, HEADS))
        for b, h in np.ndindex(2, HEADS):
            theirs = h * key_heads // HEADS
            alone = fastattn.attention(
                query[b, h], key[b, theirs], value[b, theirs], scale=float(each[b, h]),
                **how, **head_of(options, b, h),
            )  # fmt: skip
            for ours, expected in zip(found, alone, strict=True):
                about = (rows, key_heads, list(options), each[b, h])
                oracle.assert_same_bits(ours[b, h], expected, about=about)


@pytest.mark.parametrize("placed", [False, True])
@pytest.mark.parametrize("metric", METRICS)
def test_ragged_heads_have_the_bits_of_their_own_number(exact_backend, metric, placed, seed):
    rng = np.random.default_rng(seed)
    lengths = [(3, 40), (1, 1500), (0, 5), (30, 130), (2, 0)]
    splits = [np.cumsum([0, *axis]) for axis in zip(*lengths, strict=True)]
    query = strategies.draw(rng, (splits[0][-1], HEADS, 16), "float32")
    key, value = (strategies.draw(rng, (splits[1][-1], 2, n), "float32") for n in (16, 24))
    ids = [np.sort(rng.integers(0, 3, axis[-1])) for axis in splits]
    for threads in (1, 2):
        how = {"similarity": metric, "return_lse": True, "threads": threads}
        if placed:
            how |= {"causal": "bottom_right", "query_segments": ids[0], "key_segments": ids[1]}
        found = fastattn.attention_varlen(
            query, key, value, *splits, scale=np.array(SCALES), enable_gqa=True, **how
        )
        for h, scale in enumerate(SCALES):
            alone = fastattn.attention_varlen(
                query[:, h], key[:, h // 2], value[:, h // 2], *splits, scale=scale, **how
            )
            for ours, expected in zip(found, alone, strict=True):
                oracle.assert_same_bits(ours[:, h], expected, about=(h, threads))


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("metric", METRICS)
def test_heads_of_a_cache_have_the_bits_of_their_own_number(exact_backend, metric, storage, seed):
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), storage)
    cache.append(*tokens(rng, (2,), 600))
    for rows in (1, 1, 3, 30):
        cache.append(*tokens(rng, (2,), 1))
        query = strategies.draw(rng, (2, HEADS, rows, 24), "float32")
        found = cache.attend(query, similarity=metric, scale=[[*SCALES]], return_lse=True)
        for h, scale in enumerate(SCALES):
            alone = cache.attend(query, similarity=metric, scale=scale, return_lse=True)
            for ours, expected in zip(found, alone, strict=True):
                oracle.assert_same_bits(ours[:, h], expected[:, h], about=(rows, h))


@pytest.mark.parametrize("metric", METRICS)
def test_similarities_have_the_bits_of_their_own_number(exact_backend, metric, seed):
    rng = np.random.default_rng(seed)
    for dtype, rows in itertools.product(DTYPES, (1, 30)):
        query, key = (strategies.draw(rng, (2, HEADS, n, 17), dtype) for n in (rows, 90))
        for scale in (np.array([SCALES]), rng.normal(size=(2, HEADS)), [[-1.0], [4.0]]):
            for _ in range(2):  # once more, as what was kept does it
                found = fastattn.similarity(query, key, metric=metric, scale=scale)
                each = np.broadcast_to(scale, (2, HEADS))
                for b, h in np.ndindex(2, HEADS):
                    factor = float(each[b, h])
                    alone = fastattn.similarity(query[b, h], key[b, h], metric=metric, scale=factor)
                    oracle.assert_same_bits(found[b, h], alone, about=(dtype, rows, b, h))
    x = rng.normal(size=(3, 5))
    one = fastattn.similarity(x, x, metric=metric, scale=np.array(0.3))
    oracle.assert_same_bits(one, fastattn.similarity(x, x, metric=metric, scale=0.3))
    with pytest.raises(ValueError, match=r"scale of shape \(3,\).*\(2, 4\)"):
        fastattn.similarity(query, key, scale=[1.0, 2.0, 3.0])


@pytest.mark.parametrize("scale", [[1, 2, 3], np.ones((3, 1, 1)), [1, 2], [[[0.5]]]])
def test_refusals_say_what_works(backend, scale):
    x = np.zeros((2, 3, 4, 8), np.float32)
    for call in (lambda s: fastattn.attention(x, x, x, scale=s), lambda s: similar(x, x, scale=s)):
        with pytest.raises(ValueError, match=r"batch \(2, 3\).*np\.reshape") as refusal:
            call(scale)
        advice = re.search(r"np\.reshape\(scale, [^`]*\)", str(refusal.value))[0]
        assert call(eval(advice, {"np": np, "scale": scale})).shape[:2] == (2, 3)


def test_many_scales_are_not_kept(exact_backend, seed):
    """Calls that are not kept for a signature, or not repeated, have the same bits."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(6000, 1, 2, 4)).astype(np.float32)
    scale = rng.normal(size=(6000, 1))
    for _ in range(2):
        found = fastattn.attention(x, x, x, scale=scale)
        scores = fastattn.similarity(x, x, scale=scale)
    for b in (0, 17, 5999):
        factor = float(scale[b, 0])
        alone = fastattn.attention(x[b, 0], x[b, 0], x[b, 0], scale=factor)
        oracle.assert_same_bits(found[b, 0], alone)
        oracle.assert_same_bits(scores[b, 0], fastattn.similarity(x[b, 0], x[b, 0], scale=factor))


def test_a_scale_that_is_written_to_afterwards_is_another_one(exact_backend, seed):
    x = np.random.default_rng(seed).normal(size=(2, 8, 4))
    scale = np.array([1.0, 2.0])
    first = [fastattn.attention(x, x, x, scale=scale) for _ in range(2)]
    scale[1] = -3.0
    for h, factor in enumerate((1.0, -3.0)):
        again = fastattn.attention(x, x, x, scale=scale)
        alone = fastattn.attention(x[h], x[h], x[h], scale=factor)
        oracle.assert_same_bits(again[h], alone)
    oracle.assert_same_bits(*first)


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_states_have_one_scale(exact_backend, metric, seed):
    rng = np.random.default_rng(seed)
    query, key = rng.normal(size=(HEADS, 3, 8)), rng.normal(size=(2, 1030, 8))
    how = {"similarity": metric, "enable_gqa": True}

    def parts(*scales):
        first = fastattn.attention_state(query, key[:, :512], key[:, :512], scale=scales[0], **how)
        rest = fastattn.attention_state(
            query, key[:, 512:], key[:, 512:], key_start=512, scale=scales[1], **how
        )
        return first.merge(rest)

    found = parts(SCALES, np.array(SCALES)).finish(sinks=[0.5, 1, 2, 3], return_lse=True)
    for h, scale in enumerate(SCALES):
        alone = fastattn.attention(
            query[h], key[h // 2], key[h // 2], scale=scale, sinks=[0.5, 1, 2, 3][h],
            return_lse=True, similarity=metric,
        )  # fmt: skip
        for ours, expected in zip(found, alone, strict=True):
            oracle.assert_same_bits(ours[h], expected, about=h)
    with pytest.raises(ValueError, match=r"must agree, but scale is \[.*\] on the left and \[.*"):
        parts(SCALES, [1.0, 2.0, 3.0, 4.0])
    # As many equal ones as one of all.
    one = fastattn.attention(query, key, key, scale=0.5, **how)
    oracle.assert_same_bits(parts([0.5] * HEADS, 0.5).finish(), one)


def test_allocation_by_heads(backend, seed):
    rng = np.random.default_rng(seed)
    query, key = rng.normal(size=(2, 3, 5)), rng.normal(size=(2, 6, 5))
    found = fastattn.attention_allocation(query, key, budget=10.0, upper=4.0, scale=[2.0, 30.0])
    for h, scale in enumerate((2.0, 30.0)):
        alone = fastattn.attention_allocation(query[h], key[h], budget=10.0, upper=4.0, scale=scale)
        oracle.assert_same_bits(found.allocation[h], alone.allocation)


# --- scores of unusual size ----------------------------------------------------------------------


def test_a_small_feature_does_not_make_a_large_score_nan(backend):
    query = np.array([[3e38, 1e-45]], np.float32)
    key = np.array([[2, 1], [1.9, 1]], np.float32)
    value = np.array([[1], [2]], np.float32)
    output, lse = fastattn.attention(query, key, value, scale=0.125, return_lse=True)
    assert (output[0, 0], lse[0]) == (1, np.float32(7.5e37))
    scores = fastattn.similarity(query, key, metric="dot", scale=0.125)
    expected = reference.similarity(query, key, metric="dot", scale=0.125)
    error = tolerances.score_error(np.float32, 2, 7.5e37)
    oracle.assert_close(scores, expected, error)


def sizes(rng, rows, features, dtype):
    """Rows of numbers of every size, zeros among them; half of the rows are ordinary."""
    least, most = (-149, 127) if dtype == np.float32 else (-1074, 1023)
    exponents = rng.integers(least, most + 1, (rows, features))
    exponents = np.where(rng.random((rows, 1)) < 0.5, exponents, rng.integers(-3, 3, (features,)))
    mantissas = rng.uniform(1, 2, (rows, features)) * rng.choice([-1, 1], (rows, features))
    mantissas *= rng.random((rows, features)) < 0.8
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(mantissas, exponents).astype(dtype)


POWERS = (0, -3, 3, -30, 30, -100, 100, -130, 130, -200, 200, -300, 300, -1000, 900)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_scores_of_any_size_by_exact_arithmetic(exact_backend, metric, dtype, seed):
    """Also equal to the score of the mirrored pair, where a sum of either stays in range."""
    rng = np.random.default_rng(seed)
    info = np.finfo(dtype)
    for power, features in itertools.product(POWERS, (1, 3, 17)):
        x = sizes(rng, 9, features, dtype)
        scale = float(np.ldexp(rng.choice([1.0, 1.3, -1.7]), power))
        found = fastattn.similarity(x, x, metric=metric, scale=scale)
        exact = [[Fraction(float(n)) for n in row] for row in x]
        for i, j in np.ndindex(found.shape):
            pairs = list(zip(exact[i], exact[j], strict=True))
            if metric == "dot":
                terms = [Fraction(scale) * a * b for a, b in pairs]
                size = sum(map(abs, terms))
            else:
                terms = [-Fraction(scale) * (a - b) ** 2 for a, b in pairs]
                # A square has the rounding of its difference twice.
                size = 2 * abs(Fraction(scale)) * sum((abs(a) + abs(b)) ** 2 for a, b in pairs)
            about = (power, scale, x[i], x[j], found[i, j], float(sum(terms)) if size < 1 else 0)
            if size > Fraction(float(info.max)) / 2:
                continue
            assert found[i, j] == found[j, i], about
            error = abs(Fraction(float(found[i, j])) - sum(terms))
            most = tolerances.score_error(dtype, features, float(size))
            assert error <= Fraction(most) + Fraction(tolerances.lost_below(dtype)), about


def lossy(rng, rows, features, dtype):
    """Queries of which every other one loses bits under a scale below 1, in one feature."""
    query = strategies.draw(rng, (rows, features), dtype)
    small = 3 * 2.0**-125 if dtype == "bfloat16" else 3 * np.finfo(dtype).smallest_subnormal
    largest = np.finfo(np.float64 if dtype == "float64" else np.float32).max
    query[::2, 0], query[::2, -1] = small, largest / 4
    return query


@pytest.mark.parametrize("stored", ["float32", "float64", "float16", "bfloat16", "int8", "listed"])
def test_every_way_to_score_does_it_again(exact_backend, stored, seed):
    """Few rows and many, keys packed, unpacked, halves, int8 or listed: a row is as it is alone."""
    rng = np.random.default_rng(seed)
    dtype = {"float64": "float64", "bfloat16": "bfloat16"}.get(stored, "float32")
    for keys, features in itertools.product((1, 70, 600), (8, 19)):
        key = strategies.draw(rng, (keys, features), "float32")
        key[:, -1] = rng.uniform(5, 9, keys)  # only with the scale is the product in range
        value = strategies.draw(rng, (keys, 64), "float32")
        many = lossy(rng, 61, features, dtype)
        options = {"scale": 0.7 / 16, "return_lse": True, "threads": 1}  # many blocks a task

        def call(query, key=key, value=value, options=options):
            if stored == "int8":
                cache = fastattn.KVCache((), 1, key.shape[1], dtype="int8", value_dim=64)
                cache.append(key[None], value[None])
                found = cache.attend(query[None], causal=False, **options)
                return found[0][0], found[1][0]
            if stored == "listed":
                order = rng.permutation(len(key)).astype(np.int32)
                table = np.empty_like(key), np.empty_like(value)
                table[0][order], table[1][order] = key, value
                splits = [0, len(query)], [0, len(key)]
                return fastattn.attention_varlen(
                    query, *table, *splits, key_indices=order, **options
                )
            kind = strategies.dtype_of(stored)
            return fastattn.attention(query, key.astype(kind), value.astype(kind), **options)

        whole = call(many)
        for first, stop in ((0, 1), (1, 2), (2, 6), (6, 9), (12, 40)):
            for part, all_of_it in zip(call(many[first:stop]), whole, strict=True):
                oracle.assert_same_bits(part, all_of_it[first:stop], about=(keys, features, first))
        assert all(np.isfinite(x.astype(float)).all() for x in whole)
        if stored in ("float32", "float64"):
            oracle.attention(many, key, value, scale=0.7 / 16).check(*whole, about=keys)


@pytest.mark.parametrize("features", [100, 129, 1025, 2100])
def test_wide_vectors_scored_again_are_summed_in_the_same_order(exact_backend, features, seed):
    """A feature too small to count makes rows that are scored again, with the bits of others."""
    x = np.random.default_rng(seed).normal(size=(30, features)).astype(np.float32)
    x[:, 0] = 0
    for scale in (0.7 / 16, 3.0):
        plain = fastattn.similarity(x, x, metric="dot", scale=scale)
        small = x.copy()
        small[::2, 0] = 3e-45
        again = fastattn.similarity(small, small, metric="dot", scale=scale)
        oracle.assert_same_bits(again, plain, about=scale)


def test_a_score_is_that_of_similarity(exact_backend, seed):
    """Of one key, with a scale that is a power of two, it is the log-sum-exp."""
    rng = np.random.default_rng(seed)
    for dtype, power in itertools.product((np.float32, np.float64), (-3, 3, -100, 100)):
        query, key = sizes(rng, 40, 8, dtype), sizes(rng, 1, 8, dtype)
        scale = 2.0**power
        score = fastattn.similarity(query, key, metric="dot", scale=scale)[:, 0]
        lse = fastattn.attention(query, key, key, similarity="dot", scale=scale, return_lse=True)[1]
        finite = np.isfinite(score)
        assert finite.any()
        oracle.assert_same_bits(lse[finite], score[finite], about=(dtype, power))


def test_scores_below_a_cap_keep_their_sign(backend):
    """Sums beyond the largest number that cancel, or not: under a cap every score is one."""
    query = np.array([[1e38, 1e38, 1e-45], [3e38, 1e-45, 0]], np.float32)
    key = np.array([[1e5, -1e5, 1], [-2e5, 1e5, 1]], np.float32)
    options = {"scale": 2.0**30, "softcap": 2.0, "return_weights": True}
    weights = fastattn.attention(query, key, np.eye(2), **options)[1]
    expected = reference.attention(query, key, np.eye(2), **options)[1]
    oracle.assert_close(weights, expected, tolerances.weight_error(np.float32, 3, 2.0))


def test_a_scale_of_0_meets_no_product_that_overflows(backend):
    large = np.array([[3e38, 3e38], [-3e38, -3e38]], np.float32)
    for metric in METRICS:
        assert (fastattn.similarity(large, large, metric=metric, scale=0.0) == 0).all()
        output = fastattn.attention(large, large, np.eye(2), similarity=metric, scale=0.0)
        assert (output == 0.5).all()
