"""The ends of the number range and of addresses, on every backend."""

import gc
import mmap
import weakref

import numpy as np
import pytest
from edges import DTYPES, arrays, attend, check

import fastattn
from fastattn import reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("options", [{}, {"scale": 3.7}, {"softcap": 2.0}, {"scale": -0.3}])
def test_finite_mask_of_the_smallest_number_survives(backend, dtype, options):
    """A row masked by finfo.min alone is the uniform mean; beside an open key it counts nothing."""
    query, key, value = arrays(dtype, 26, 600)
    mask = np.full((26, 600), np.finfo(dtype).min, dtype)
    mask[5:, :] = np.finfo(dtype).min / 2
    mask[1, 7] = 0
    output = fastattn.attention(query, key, value, mask=mask, **options)
    tolerance = 40 * np.finfo(dtype).eps * np.abs(value).max()
    np.testing.assert_allclose(output[:, 1], value[:, 7], atol=tolerance)
    mean = np.broadcast_to(value.mean(axis=1, keepdims=True), (2, 21, 5))
    np.testing.assert_allclose(output[:, 5:], mean, atol=tolerance)
    np.testing.assert_allclose(output[:, 0], mean[:, 0], atol=tolerance)


def test_finite_float64_mask_stays_finite_in_float32(backend):
    """Beyond float32's range it becomes the smallest float32, not −inf: it does not hide."""
    query, key, value = arrays("float32", 26, 600)
    for masked in (np.full((26, 600), np.finfo(np.float64).min), np.full((600, 1), -1e300).T):
        output, lse = fastattn.attention(query, key, value, mask=masked, return_lse=True)
        mean = np.broadcast_to(value.mean(axis=1, keepdims=True), output.shape)
        np.testing.assert_allclose(output, mean, atol=1e-5)
        assert np.isfinite(lse).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("power", [-100, -60, 60, 100])
def test_scale_keeps_products_in_range(backend, dtype, power):
    """Tiny queries and huge scales, or the other way round, are the same attention."""
    power *= 1 if dtype == "float32" else 8
    query, key, value = arrays(dtype, 26, 130)
    expected = attend(query, key, value, scale=0.3)
    scaled = np.ldexp(query, -power)
    for actual, plain in zip(
        attend(scaled, key, value, scale=float(np.ldexp(0.3, power))), expected, strict=True
    ):
        np.testing.assert_array_equal(actual, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_beyond_the_range_are_scaled_back(backend, dtype):
    """q·k overflows, scale·(q·k) does not."""
    query, key, value = arrays(dtype, 7, 65)
    expected = attend(query, key, value, scale=10.0)
    query_size, key_size, scale = (
        (1e30, 1e30, 1e-59) if dtype == "float32" else (1e200, 1e108, 1e-307)
    )
    query, key = query * query.dtype.type(query_size), key * key.dtype.type(key_size)
    for actual, plain in zip(attend(query, key, value, scale=scale), expected, strict=True):
        np.testing.assert_allclose(actual, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_cosine_of_any_length(backend, dtype, size):
    query, key, value = arrays(dtype, 26, 130)
    key[:, 5] = query[:, 3] = 0
    expected = attend(query, key, value, similarity="cosine")
    assert not fastattn.similarity(query, key, metric="cosine")[:, :, 5].any()
    factor = np.dtype(dtype).type(size)
    for actual, plain in zip(
        attend(query * factor, key / factor, value, similarity="cosine"), expected, strict=True
    ):
        np.testing.assert_allclose(actual, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_euclidean_distances_come_from_differences(backend, dtype):
    """Far from the origin q·q − 2q·k + k·k would have no digit left."""
    query, key, value = arrays(dtype, 26, 130)
    far = np.dtype(dtype).type(2**12 if dtype == "float32" else 2**30)
    query, key = query.round(1) + far, key.round(1) + far
    check(query, key, value, similarity="euclidean")
    wide = [x.astype(np.float64) for x in (query, key)]
    distances = ((wide[0][:, :, None] - wide[1][:, None]) ** 2).sum(axis=-1)
    actual = fastattn.similarity(query, key, metric="euclidean")
    np.testing.assert_allclose(actual, -distances, rtol=20 * np.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.0, -1.0, -1e-3, 1e-40])
def test_scales_that_are_not_positive_or_tiny(backend, dtype, scale):
    check(*arrays(dtype, 26, 600), scale=scale)


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(backend, dtype):
    query, key, value = arrays(dtype, 26, 600)
    query *= 1000
    output, lse, weights = attend(query, key, value)
    assert np.isfinite(output).all()
    assert np.isfinite(lse).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    check(query, key, value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_values_are_kept(backend, dtype):
    query, key, value = arrays(dtype, 7, 65)
    tiny = np.finfo(dtype).tiny / 8
    value[...] = tiny
    np.testing.assert_allclose(fastattn.attention(query, key, value), tiny, rtol=0.05)


@pytest.fixture(scope="module")
def wide():
    """Six GiB of addresses, of which only touched pages take memory."""
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    try:
        return np.frombuffer(mmap.mmap(-1, 6 << 30, flags=kind), np.uint8)
    except OSError as error:
        pytest.skip(f"no six GiB of addresses here: {error}")


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("operand", ["query", "key", "value", "mask", "out"])
def test_strides_beyond_two_to_the_31(backend, wide, operand, axis):
    """Offsets are 64 bits wide: what a stride reaches lies beyond 4 GiB."""
    rng = np.random.default_rng(axis)
    operands = {name: rng.standard_normal((3, 3, 3)) for name in ("query", "key", "value", "mask")}
    expected = fastattn.attention(**operands)
    operands["out"] = np.empty((3, 3, 3))
    near = operands[operand]
    strides = [*near.strides]
    strides[axis] = 2**31 + 2**20
    far = np.lib.stride_tricks.as_strided(wide.view(near.dtype), near.shape, strides)
    far[...] = near
    operands[operand] = far
    assert np.array_equal(fastattn.attention(**operands), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "softcap", [5e-324, 1e-300, 1e-45, 1e-40, 1e-38, 1e38, 1e39, 1e300, 1.7e308]
)
def test_softcaps_beyond_the_range_of_the_dtype(backend, dtype, softcap):
    """A cap too small hides all differences, one too large none; neither is NaN."""
    check(*arrays(dtype, 26, 130), softcap=softcap)


@pytest.mark.parametrize("scale", [1e30, 1e38, -1e38, 3e38, 1e300])
def test_capped_scores_do_not_overflow_on_the_way(backend, scale):
    """Each is the cap, up or down; sums of scaled products that cancel overflowed to the wrong."""
    rng = np.random.default_rng(1)
    query, key, value = (rng.standard_normal((2, n, 8), dtype=np.float32) for n in (26, 130, 130))
    query[:, 3] = 0
    options = {"scale": scale, "softcap": 3.0, "similarity": "dot"}
    # The oracle's bound would allow for any score here.
    exact = reference.attention(*(x.astype(float) for x in (query, key, value)), **options)
    np.testing.assert_allclose(
        fastattn.attention(query, key, value, **options), exact, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("similarity", ["dot", "euclidean", "cosine"])
def test_a_scale_of_zero_where_the_product_overflows(backend, similarity):
    query, key, value = arrays("float32", 26, 130)
    query, key = query * np.float32(1e20), key * np.float32(1e20)
    check(query, key, value, similarity=similarity, scale=0.0)
    assert not fastattn.similarity(query, key, metric=similarity, scale=0).any()


@pytest.mark.parametrize("start", [0, 512])
def test_a_state_does_not_keep_its_operands(exact_backend, start):
    def part():
        key = np.ones((512, 8))
        state = fastattn.attention_state(np.ones((3, 8)), key, key, key_start=start)
        return state, weakref.ref(key)

    state, key = part()
    gc.collect()
    assert key() is None
    assert state.finish().shape == (3, 8)


@pytest.mark.parametrize("option", ["mask", "alibi_slopes", "softcap", "sinks"])
def test_a_state_knows_in_which_unit_its_maxima_are(exact_backend, option):
    """With a scale that is no power of two, as scored and final differ, and operands are gone."""
    rng = np.random.default_rng(3)
    query, key, value = (rng.standard_normal((n, 33)).astype(np.float32) for n in (7, 700, 700))
    mask = rng.standard_normal((7, 700)).astype(np.float32)
    options = {"mask": {}, "alibi_slopes": {"alibi_slopes": 0.3}, "softcap": {"softcap": 2.0}}
    options = options.get(option, {})
    sinks = 1.5 if option == "sinks" else None

    def part(keys):
        masked = {"mask": mask[:, keys]} if option == "mask" else {}
        return fastattn.attention_state(
            query, key[keys], value[keys], key_start=keys.start, **options, **masked
        )

    state = part(slice(0, 512)).merge(part(slice(512, 700)))
    if option == "mask":
        options = {"mask": mask}
    expected = fastattn.attention(query, key, value, sinks=sinks, return_lse=True, **options)
    for got, want in zip(state.finish(sinks=sinks, return_lse=True), expected, strict=True):
        assert np.array_equal(got, want)
