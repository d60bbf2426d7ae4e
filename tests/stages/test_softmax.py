"""The softmax kernels: every way through them gives the same bits, and SciPy's numbers."""

import numpy as np
import oracle
import pytest
import scipy.special
import tolerances

import fastattn
from fastattn import reference
from fastattn._core import kept
from fastattn._engine import normalize

FAMILY = ("softmax", "log_softmax", "logsumexp")
DTYPES = ("float32", "float64")
# Around the sixteen lanes, the rows that lie side by side, and a segment.
LENGTHS = (1, 2, 3, 4, 15, 16, 17, 31, 32, 33, 63, 65, 511, 512, 513, 1025, 1600)


@pytest.fixture
def in_chunks(monkeypatch):
    """Cut every longer row into chunks of one segment, as only huge rows are."""
    kept.clear()
    monkeypatch.setattr(normalize, "_BLOCK_BYTES", 1 << 11)
    monkeypatch.setattr(normalize, "_CHUNK_BYTES", 1 << 11)


def draw(rng, shape, dtype, size=3.0):
    return (rng.standard_normal(shape) * size).astype(dtype)


def family(x, axis=-1, **options):
    return [getattr(fastattn, name)(x, axis, **options) for name in FAMILY]


@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths_around_lanes_and_segments(dtype, seed):
    rng = np.random.default_rng(seed)
    for keys in LENGTHS:
        for rows in (1, 5, 70):
            x = draw(rng, (rows, keys), dtype)
            tolerance = tolerances.softmax_error(dtype, oracle.finite_max(x))
            for name, actual in zip(FAMILY, family(x), strict=True):
                expected = getattr(scipy.special, name)(x.astype(np.float64), axis=-1)
                oracle.assert_close(actual, expected, tolerance, about=(name, rows, keys))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_within_a_few_units_of_their_own_size(dtype, seed):
    """The tolerances above are absolute: a small weight must be right too."""
    x = draw(np.random.default_rng(seed), (40, 700), dtype, 10)
    expected = reference.softmax(x)
    error = np.abs(fastattn.softmax(x) - expected) / expected
    # A score's distance to the maximum rounds once; that is a relative error of the weight.
    distance = (x.max(axis=-1, keepdims=True) - x).astype(np.float64)
    assert (error <= np.finfo(dtype).eps * (4 + distance)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_on_the_row_alone(dtype, seed):
    """Layout, position of the axis, neighbours, threads and result layout change no bit."""
    rng = np.random.default_rng(seed)
    for keys in LENGTHS:
        x = draw(rng, (37, keys), dtype)
        for name in FAMILY:
            function = getattr(fastattn, name)
            expected = function(x, threads=1)
            about = (name, keys)
            oracle.assert_same_bits(function(x, threads=2), expected, about=about)
            for r in (0, 17, 36):
                oracle.assert_same_bits(function(x[r]), expected[r], about=about)
            sideways = function(np.ascontiguousarray(x.T), 0)
            oracle.assert_same_bits(sideways.T, expected, about=about)
            oracle.assert_same_bits(function(np.asfortranarray(x)), expected, about=about)
            oracle.assert_same_bits(function(x[::-1, ::-1][::-1, ::-1]), expected, about=about)
            deep = np.ascontiguousarray(np.broadcast_to(x[:, :, None], (37, keys, 3)))
            oracle.assert_same_bits(function(deep, 1)[..., 2], expected, about=about)
            apart = np.zeros((37, keys, 2), dtype)
            apart[..., 0] = x
            oracle.assert_same_bits(function(apart[..., 0]), expected, about=about)
            out = np.empty((*expected.shape, 3), dtype)[..., 1]
            oracle.assert_same_bits(function(x, out=out), expected, about=about)


@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_of_huge_rows_give_the_same_bits(dtype, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    x = draw(rng, (19, 3000), dtype)
    turned = np.ascontiguousarray(x.T)
    mask = rng.random(x.shape) < 0.7
    whole = [*family(x), *family(turned, 0), *family(x, mask=mask)]
    kept.clear()
    monkeypatch.setattr(normalize, "_BLOCK_BYTES", 1 << 11)
    monkeypatch.setattr(normalize, "_CHUNK_BYTES", 1 << 11)
    launches = []
    phase = normalize._phase
    monkeypatch.setattr(
        normalize, "_phase", lambda *call: (launches.append(call[2]), phase(*call))[1]
    )
    for threads in (1, 2):
        chunks = [
            *family(x, threads=threads),
            *family(turned, 0, threads=threads),
            *family(x, mask=mask, threads=threads),
        ]
        for one, other in zip(chunks, whole, strict=True):
            oracle.assert_same_bits(one, other)
    assert set(launches) == {1, 2, 3}, "rows were not cut"


@pytest.mark.parametrize("axis", [0, 1])
def test_stores_past_the_caches_give_the_same_bits(axis, seed, monkeypatch):
    x = draw(np.random.default_rng(seed), (130, 1000), "float32")
    expected = fastattn.softmax(x, axis)
    monkeypatch.setattr(normalize, "_STREAM_BYTES", 0)
    for shift in range(17):
        memory = np.zeros(x.size + 64, np.float32)
        out = memory[shift : shift + x.size].reshape(x.shape)
        fastattn.softmax(x, axis, out=out)
        oracle.assert_same_bits(out, expected, about=shift)
        assert not memory[:shift].any()
        assert not memory[shift + x.size :].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_finished_while_the_next_is_weighed_give_the_same_bits(dtype, seed, monkeypatch):
    """Rows of a large result share one row of scratch: what one left must not reach the next."""
    rng = np.random.default_rng(seed)
    item = np.dtype(dtype).itemsize
    for keys in (length for length in LENGTHS if length > 32):
        x = draw(rng, (40, keys), dtype)
        x[[0, 7, 8, 39], rng.integers(keys, size=4)] = [np.nan, np.inf, -np.inf, np.nan]
        x[20] = -np.inf
        expected = fastattn.softmax(x)
        for shift in (0, 64 // item - 1, int(rng.integers(1, 64 // item - 1))):
            rows = np.full((41, keys + 3), -1, dtype)
            out = rows.reshape(-1)[shift : shift + 40 * (keys + 3)].reshape(40, -1)[:, :keys]
            with monkeypatch.context() as patch:
                patch.setattr(normalize, "_STREAM_BYTES", 0)
                for threads in (1, 2):
                    oracle.assert_same_bits(
                        fastattn.softmax(x, out=out, threads=threads), expected, about=(keys, shift)
                    )
            out[...] = -1
            assert (rows == -1).all()


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_special_numbers(name, chunked, masked, seed, request):
    if chunked:
        request.getfixturevalue("in_chunks")
    rng = np.random.default_rng(seed)
    specials = [(), (np.inf,), (-np.inf,), (np.nan,), (np.inf, np.nan), (-np.inf, np.nan)]
    specials += [(np.inf, -np.inf), "all"]
    for keys in (5, 40, 1100):
        for axis in (0, 1):
            x = draw(rng, (20, keys), "float32")
            for row, special in enumerate(specials):
                if special == "all":
                    x[row] = -np.inf
                else:
                    for i, value in enumerate(special):
                        x[row, (keys - 1 - 3 * i) % keys] = value
            mask = None
            if masked:
                mask = rng.random(x.shape) < 0.6
                mask[[7, 1, 3]] = [[False], [True], [False]]
                if masked == "float":
                    mask = np.where(mask, draw(rng, x.shape, "float32"), -np.inf).astype("f4")
            expected = getattr(reference, name)(x, mask=mask)
            tolerance = tolerances.softmax_error("float32", oracle.finite_max(x) + 4)
            if axis == 0:
                x = np.ascontiguousarray(x.T)
                mask = None if mask is None else np.ascontiguousarray(mask.T)
                expected = expected.T if expected.ndim > 1 else expected
            actual = getattr(fastattn, name)(x, axis, mask=mask)
            oracle.assert_close(actual, expected, tolerance, about=(keys, axis))


@pytest.mark.parametrize(
    ("dtype", "size", "scale"),
    [("float32", 1e-37, 1e39), ("float32", 1e30, 1e-30), ("float64", 1e-300, 1e300)],
)
def test_scales_whose_factors_leave_the_range(dtype, size, scale, seed):
    """A score within range is reached though the scale alone is not."""
    x = (draw(np.random.default_rng(seed), (3, 50), np.float64) * size).astype(dtype)
    expected = reference.softmax(x, scale=scale)
    tolerance = tolerances.softmax_error(dtype, oracle.finite_max(x) * scale)
    oracle.assert_close(fastattn.softmax(x, scale=scale), expected, tolerance)


def test_in_place(seed):
    rng = np.random.default_rng(seed)
    for shape, axis in (((30, 700), 1), ((30, 700), 0), ((300, 8), 1), ((2, 70, 40), 1)):
        x = draw(rng, shape, "float32")
        x[0, 3] = np.nan
        expected = fastattn.softmax(x, axis)
        assert fastattn.softmax(x, axis, out=x) is x
        oracle.assert_same_bits(x, expected, about=(shape, axis))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("scale", [1e77, 1e300, 1e-100, 1e-300])
def test_scales_far_beyond_the_range_of_the_dtype(backend, scale, dtype):
    """Neither 0 times inf nor inf times 0 on the way to a score that is there."""
    low = float(np.finfo(dtype).min)
    rows = {(0.0, 0.0): (0.5, 0.5), (0.0, -np.inf): (1.0, 0.0)}
    rows[(0.0, low)] = (1.0, 0.0) if scale > 1 or -low * scale > 1e3 else (0.5, 0.5)
    for row, expected in rows.items():
        x = np.array([row] * 3, dtype)
        np.testing.assert_array_equal(fastattn.softmax(x, scale=scale), [expected] * 3)
        lse = np.log(1 / max(expected))
        np.testing.assert_array_equal(fastattn.logsumexp(x, scale=scale), np.full(3, lse, dtype))


def test_axes_of_any_size_are_refused_in_words():
    for axis in (7, 2**70, -(2**70)):
        for function in (fastattn.softmax, fastattn.log_softmax, fastattn.logsumexp):
            with pytest.raises(ValueError, match="does not exist in x of shape"):
                function(np.ones((2, 3)), axis=axis)
