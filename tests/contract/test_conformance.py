"""Every option, dtype and layout against the reference, alone and in all pairs."""

import functools
import itertools

import numpy as np
import oracle
import pytest
import scipy.special
import strategies
import tolerances

import fastattn
from fastattn import reference

PAIRS = strategies.feature_pairs()
PAIR_BLOCKS = 16
NATIVE = ("float32", "float64")


def check(case, truth=None):
    """Compare all three results of a case with the oracle."""
    results = fastattn.attention(*case.arrays, **case.options, return_lse=True, return_weights=True)
    truth = truth or oracle.attention(*case.arrays, **case.options)
    truth.check(*results, about=case)
    if case.keys <= 200 and case.value.shape[:-2] == case.key.shape[:-2]:
        query, key, _ = case.arrays
        oracle.assert_weights_are_outputs(results[2], query, key, about=case, **case.options)


@pytest.mark.parametrize("feature", strategies.FEATURES)
def test_single_option(backend, feature, seed):
    for number in range(3):
        check(strategies.case([feature], seed=seed + number))
    if strategies.compatible(feature, "float64"):
        check(strategies.case([feature, "float64"], seed=seed))


@functools.lru_cache(maxsize=1)
def judged_pairs(block, seed):
    """The cases of a block with their truths, which take longer than the calls."""
    cases = [strategies.case(pair, seed=seed) for pair in PAIRS[block::PAIR_BLOCKS]]
    return [(case, oracle.attention(*case.arrays, **case.options)) for case in cases]


# In the scope of the module, so that all backends do one block before any does the next.
@pytest.mark.parametrize("block", range(PAIR_BLOCKS), scope="module")
def test_pairs_of_options(backend, block, seed):
    for case, truth in judged_pairs(block, seed):
        check(case, truth)


@pytest.mark.parametrize("block", range(4))
def test_many_options_at_once(backend, block, seed):
    for number in range(25):
        rng = np.random.default_rng([seed, block, number])
        count = int(rng.integers(3, 8))
        features = strategies.random_features(rng, count)
        check(strategies.case(features, seed=seed + number, batch=(2, 2)))


@pytest.mark.parametrize("layout", strategies.LAYOUTS)
@pytest.mark.parametrize("operand", ["query", "key", "value", "mask", "bool_mask", "out"])
@pytest.mark.parametrize("dtype", NATIVE)
def test_layout_of_each_operand(backend, operand, layout, dtype, seed):
    sizes = {"rows": 26, "keys": 67, "features": 19, "value_features": 21}
    mask = "bool_mask" if operand == "bool_mask" else "float_mask"
    case = strategies.case([mask], seed=seed, dtypes=(dtype,) * 3, **sizes)
    if operand in ("mask", "bool_mask"):
        case.options["mask"] = strategies.lay_out(case.options["mask"], layout)
    elif operand != "out":
        setattr(case, operand, strategies.lay_out(getattr(case, operand), layout))
    elif layout in ("read_only", "broadcast_first", "broadcast_rows", "broadcast_columns"):
        pytest.skip("no array that a result can be written into")
    else:
        shape = (*case.batch, case.rows, case.value_features)
        out = strategies.lay_out(np.full(shape, np.nan, dtype), layout)
        result = fastattn.attention(*case.arrays, **case.options, out=out)
        assert result is out
        truth = oracle.attention(*case.arrays, **case.options)
        oracle.assert_close(out, truth.output, truth.output_tolerance, about=case)
        return
    check(case)


@pytest.mark.parametrize(
    "dtypes", list(itertools.product(("f4", "f8", "i1", "i8", "u2", "?"), repeat=3)), ids="-".join
)
def test_dtypes_mix_as_numpy_says(backend, dtypes, seed):
    check(strategies.case(seed=seed, dtypes=dtypes, batch=(2,), rows=5, keys=20))


@pytest.mark.parametrize("mask_dtype", ["f4", "f8", ">f4", ">f8", "?"])
@pytest.mark.parametrize("dtype", NATIVE)
def test_masks_never_promote(backend, dtype, mask_dtype, seed):
    case = strategies.case(seed=seed, dtypes=(dtype,) * 3, rows=8, keys=70)
    case.options["mask"] = strategies.draw(case.rng, (8, 70), "f8").astype(mask_dtype)
    check(case)


@pytest.mark.parametrize("dims", range(5))
def test_batch_dims_of_any_number(backend, dims, seed):
    check(strategies.case(seed=seed, batch=(2, 3, 1, 2)[:dims], rows=9, keys=40))


@pytest.mark.parametrize(
    ("query_batch", "key_batch", "value_batch"),
    [
        ((3, 2), (2,), ()),
        ((), (3, 2), (1, 2)),
        ((1, 4), (5, 1), (5, 4)),
        ((2, 1, 3), (4, 1), (1, 1, 3)),
        ((2, 1), (1, 1), (2, 3)),
    ],
)
def test_batch_dims_broadcast(backend, query_batch, key_batch, value_batch, seed):
    rng = np.random.default_rng(seed)
    query = strategies.draw(rng, (*query_batch, 7, 5), "f4")
    key = strategies.draw(rng, (*key_batch, 70, 5), "f4")
    value = strategies.draw(rng, (*value_batch, 70, 6), "f4")
    mask = rng.random((7, 70)) < 0.5
    results = fastattn.attention(query, key, value, mask=mask, return_lse=True, return_weights=True)
    batch = np.broadcast_shapes(query_batch, key_batch, value_batch)
    full = [np.broadcast_to(x, (*batch, *x.shape[-2:])) for x in (query, key, value)]
    oracle.attention(*full, mask=mask).check(*results)


def test_one_query_of_one_dimension(backend, seed):
    rng = np.random.default_rng(seed)
    query, key, value = (strategies.draw(rng, shape, "f4") for shape in ((5,), (90, 5), (90, 3)))
    for mask in (None, rng.random(90) < 0.5, rng.random((1, 90)) < 0.5):
        results = fastattn.attention(
            query, key, value, mask=mask, return_lse=True, return_weights=True
        )
        assert [result.shape for result in results] == [(3,), (), (90,)]
        oracle.attention(query, key, value, mask=mask).check(*results)


def test_array_likes_are_accepted(backend):
    output = fastattn.attention([[1, 0]], [[1, 0], [0, 1]], [[1.0], [0.0]])
    expected = reference.attention([[1, 0]], [[1, 0], [0, 1]], [[1.0], [0.0]])
    np.testing.assert_allclose(output, expected, rtol=1e-14)


@pytest.mark.parametrize("groups", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_grouped_query_heads(backend, groups, rows, seed):
    case = strategies.case(["causal_bottom_right"], seed=seed, rows=rows, keys=600)
    case.batch, case.key_heads = (2, 2 * groups), 2
    case.options["enable_gqa"] = True
    check(case.build())


# --- the stages on their own -----------------------------------------------------------------


@pytest.mark.parametrize("metric", ["dot", "scaled_dot", "cosine", "euclidean"])
@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("scale", [None, 0.3, -2.0, 0.0])
def test_similarity(backend, metric, dtype, scale, seed):
    for number, batch in enumerate([(), (3,), (2, 2)]):
        case = strategies.case(seed=seed + number, batch=batch, dtypes=(dtype,) * 3)
        for layout in ("contiguous", "transposed", "negative", "unaligned", "byteswapped"):
            query, key = (strategies.lay_out(x, layout) for x in (case.query, case.key))
            actual = fastattn.similarity(query, key, metric=metric, scale=scale)
            expected = reference.similarity(query, key, metric=metric, scale=scale)
            size = oracle.score_size(
                *map(oracle.as_float64, (query, key)), similarity=metric, scale=scale
            )
            assert actual.dtype == dtype
            tolerance = tolerances.score_error(dtype, case.features, size)
            oracle.assert_close(actual, expected, tolerance, about=(case, layout))
        out = np.empty((case.keys, *batch, case.rows), dtype)
        out = np.moveaxis(out, 0, -1)
        assert fastattn.similarity(query, key, metric=metric, scale=scale, out=out) is out
        oracle.assert_same_bits(out, actual)


SOFTMAX_SHAPES = [(), (1,), (17,), (600,), (3, 65), (2, 3, 700), (70, 5), (0, 4), (4, 0)]


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4", "?"])
@pytest.mark.parametrize("shape", SOFTMAX_SHAPES, ids=str)
def test_softmax_family_agrees_with_scipy(backend, dtype, shape, seed):
    rng = np.random.default_rng(seed)
    x = strategies.draw(rng, shape, dtype)
    if x.dtype.kind == "f":
        x *= 30
    result_dtype = oracle.compute_dtype(x)
    axes = [None, *range(-len(shape), len(shape))]
    axes += [tuple(range(len(shape)))] if len(shape) > 1 else []
    size = oracle.finite_max(x)
    error = tolerances.softmax_error(result_dtype, size)
    for axis in axes:
        if x.size:
            expected = scipy.special.softmax(oracle.as_float64(x), axis)
            logarithms = scipy.special.log_softmax(oracle.as_float64(x), axis)
            sums = scipy.special.logsumexp(oracle.as_float64(x), axis)
        else:
            expected, logarithms = reference.softmax(x, axis), reference.log_softmax(x, axis)
            sums = reference.logsumexp(x, axis)
        results = [fastattn.softmax(x, axis), fastattn.log_softmax(x, axis)]
        results += [np.asarray(fastattn.logsumexp(x, axis))]
        assert [result.dtype for result in results] == [result_dtype] * 3
        for actual, wanted in zip(results, (expected, logarithms, np.asarray(sums)), strict=True):
            oracle.assert_close(actual, wanted, error, about=(dtype, shape, axis))
        kept = fastattn.logsumexp(x, axis, keepdims=True)
        assert kept.shape == reference.logsumexp(x, axis, keepdims=True).shape


@pytest.mark.parametrize("layout", strategies.LAYOUTS)
@pytest.mark.parametrize("dtype", NATIVE)
def test_softmax_family_of_any_layout(backend, dtype, layout, seed):
    rng = np.random.default_rng(seed)
    x = strategies.lay_out(strategies.draw(rng, (3, 70, 33), dtype), layout)
    error = tolerances.softmax_error(dtype, oracle.finite_max(x))
    for axis in (0, 1, 2, (0, 2)):
        for name in ("softmax", "log_softmax", "logsumexp"):
            actual = getattr(fastattn, name)(x, axis)
            expected = getattr(reference, name)(x, axis)
            oracle.assert_close(actual, expected, error, about=(name, axis, layout))
            out = strategies.lay_out(np.empty(expected.shape[::-1], dtype).T, "fortran")
            assert getattr(fastattn, name)(x, axis, out=out) is out
            oracle.assert_same_bits(out, actual, about=(name, axis, layout))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp"])
@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("kind", ["bool", "float", "hiding"])
def test_softmax_family_with_scale_and_mask(backend, name, dtype, kind, seed):
    rng = np.random.default_rng(seed)
    x = strategies.draw(rng, (4, 6, 130), dtype)
    mask = rng.random((6, 130)) < 0.4
    mask[3] = False
    if kind != "bool":
        low = -np.inf if kind == "hiding" else -1.5
        mask = np.where(mask, rng.normal(size=mask.shape), low).astype(dtype)
    for scale in (1.0, 2.5, -0.75, 0.0):
        actual = getattr(fastattn, name)(x, scale=scale, mask=mask)
        expected = getattr(reference, name)(x, scale=scale, mask=mask)
        error = tolerances.softmax_error(dtype, oracle.finite_max(x) * abs(scale) + 4)
        oracle.assert_close(actual, expected, error, about=(name, kind, scale))


@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("reduce", [True, False])
def test_fuse(backend, dtype, reduce, seed):
    for number, batch in enumerate([(), (3,), (2, 2)]):
        case = strategies.case(seed=seed + number, batch=batch, dtypes=(dtype,) * 3)
        weights = strategies.draw(case.rng, (*batch, case.rows, case.keys), dtype)
        for layout in ("contiguous", "transposed", "negative", "unaligned", "byteswapped"):
            weights, value = (strategies.lay_out(x, layout) for x in (weights, case.value))
            actual = fastattn.fuse(weights, value, reduce=reduce)
            expected = reference.fuse(weights, value, reduce=reduce)
            size = oracle.finite_max(reference.fuse(abs(weights), abs(value)))
            error = tolerances.fuse_error(dtype, case.keys, size)
            oracle.assert_close(actual, expected, error, about=(case, layout))
            assert actual.dtype == dtype


def test_three_stages_in_a_row_are_attention(backend, seed):
    case = strategies.case(["float64"], seed=seed, rows=25, keys=600)
    weights = fastattn.softmax(fastattn.similarity(case.query, case.key, metric="scaled_dot"))
    truth = oracle.attention(*case.arrays)
    truth.check(fastattn.fuse(weights, case.value), weights=weights, about=case)


# --- states -----------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [(), ("float64",), ("key_lengths",), ("grouped", "cosine")])
def test_states_and_merged_results(backend, features, seed):
    case = strategies.case(features, seed=seed, rows=25, keys=1300)
    truth = oracle.attention(*case.arrays, **case.options)
    parts = [
        fastattn.attention_state(
            case.query,
            case.key[..., a:b, :],
            case.value[..., a:b, :],
            key_start=a,
            **case.options,
        )
        for a, b in ((0, 512), (512, 1024), (1024, 1300))
    ]
    merged = parts[0].merge(parts[1]).merge(parts[2])
    truth.check(*merged.finish(return_lse=True), about=case)
    results = [part.finish(return_lse=True) for part in parts]
    output, lse = fastattn.merge_states(*zip(*results, strict=True))
    truth.check(output, lse, about=case)
