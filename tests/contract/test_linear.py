"""Linear maps: values, and bits that depend on one row of x, on weight and bias alone."""

import copy
import pickle

import numpy as np
import oracle
import pytest
import strategies
import tolerances
from conftest import EXACT

import fastattn
from fastattn import reference
from fastattn._core.constants import LINEAR_RUN

DTYPES = ("float32", "float64", "float16", "bfloat16")
# (rows, features, outputs): around tiles, panels, chains, stretches and tasks.
SHAPES = [
    (1, 1, 1), (1, 64, 64), (1, 70, 130), (2, 9, 16), (4, 128, 200), (5, 63, 65), (7, 513, 64),
    (13, 30, 1100), (100, 65, 67), (400, 33, 96), (3, 0, 5), (6, 5, 0), (0, 5, 6),
]  # fmt: skip
WIDE = [(1, LINEAR_RUN + 3, 70), (4, 2 * LINEAR_RUN + 4, 64), (9, 2 * LINEAR_RUN + 1, 5)]


def draw(seed, rows, features, outputs, dtype="float32"):
    rng = np.random.default_rng([seed, rows, features, outputs])
    shapes = (rows, features), (outputs, features), (outputs,)
    return [strategies.draw(rng, shape, dtype) for shape in shapes]


def check(result, x, weight, bias=None):
    """Compare with the float64 reference on the very numbers of the call."""
    wide = [None if one is None else oracle.as_float64(one) for one in (x, weight, bias)]
    expected = reference.linear(*wide)
    size = reference.linear(*(None if one is None else abs(one) for one in wide))
    named = [one for one in (x, weight, bias) if one is not None]
    error = tolerances.linear_error(oracle.compute_dtype(*named), oracle.finite_max(size))
    dtype = oracle.result_dtype(*named)
    if tolerances.is_small(dtype):
        error = error + tolerances.small_error(dtype, expected)
    assert result.dtype == dtype
    oracle.assert_close(result, expected, error, about=(x.shape, weight.shape))


@pytest.mark.parametrize("dtype", DTYPES)
def test_values(backend, dtype, seed):
    for shape in SHAPES + WIDE:
        x, weight, bias = draw(seed, *shape, dtype)
        packed = fastattn.pack_linear(weight)
        check(fastattn.linear(x, weight), x, weight)
        check(fastattn.linear(x, packed, bias), x, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_depends_on_itself_alone(exact_backend, dtype, seed):
    """Alone, among others, in any part, on any threads; weights packed or not, a bias or none."""
    for shape in SHAPES + WIDE:
        x, weight, bias = draw(seed, *shape, dtype)
        packed = fastattn.pack_linear(weight)
        for added in (None, bias):
            expected = fastattn.linear(x, weight, added, threads=1)
            for held in (weight, packed):
                about = (shape, held is packed, added is bias)
                for threads in (1, 2, 3):
                    found = fastattn.linear(x, held, added, threads=threads)
                    oracle.assert_same_bits(found, expected, about=about)
                for row in {0, len(x) // 2, len(x) - 1} & set(range(len(x))):
                    alone = fastattn.linear(x[row], held, added)
                    oracle.assert_same_bits(alone, expected[row], about=about)
                for first, stop in ((0, 2), (1, 4), (1, 6), (2, 300)):
                    part = fastattn.linear(x[first:stop], held, added)
                    oracle.assert_same_bits(part, expected[first:stop], about=about)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_output_depends_on_its_own_weights_alone(exact_backend, dtype, seed):
    for rows in (1, 3, 7):
        x, weight, bias = draw(seed, rows, 300, 200, dtype)
        expected = fastattn.linear(x, weight, bias)
        for chosen in (slice(3, 140), slice(199, None, -1), slice(5, 6)):
            part = fastattn.linear(x, weight[chosen], bias[chosen])
            oracle.assert_same_bits(part, expected[:, chosen], about=(rows, chosen))


@pytest.mark.parametrize("dtype", DTYPES)
def test_backends_agree(dtype, seed):
    for shape in SHAPES + WIDE:
        x, weight, bias = draw(seed, *shape, dtype)
        found = [
            fastattn.linear(x, held, bias, backend=backend)
            for backend in EXACT
            for held in (weight, fastattn.pack_linear(weight))
        ]
        for one in found[1:]:
            oracle.assert_same_bits(one, found[0], about=shape)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "bfloat16"])
@pytest.mark.parametrize("layout", strategies.LAYOUTS)
def test_any_layout(exact_backend, layout, dtype, seed):
    rng = np.random.default_rng(seed)
    for rows in (3, 70):
        x, weight, bias = (
            strategies.draw(rng, shape, dtype) for shape in ((2, 3, rows, 36), (1, 1, 130, 36), 130)
        )
        x, weight = (strategies.lay_out(array, layout) for array in (x, weight))
        bias = np.repeat(bias, 2)[::2]
        weight = weight[0, 0]
        expected = fastattn.linear(*map(strategies.plain, (x, weight, bias)))
        for held in (weight, fastattn.pack_linear(weight)):
            oracle.assert_same_bits(fastattn.linear(x, held, bias), expected)
            out = np.empty((130, rows, 2, 3), expected.dtype).transpose(2, 3, 1, 0)
            assert fastattn.linear(x, held, bias, out=out) is out
            oracle.assert_same_bits(out, expected)


def test_batches_are_rows(exact_backend, seed):
    """However their rows lie: those that cannot be walked as one are entries of their own."""
    x, weight, bias = draw(seed, 60, 20, 70)
    expected = fastattn.linear(x, weight, bias)
    batch = x.reshape(3, 4, 5, 20)
    shown = expected.reshape(3, 4, 5, 70)
    for axes in ((0, 1, 2), (2, 0, 1), (1, 0, 2)):
        found = fastattn.linear(batch.transpose(*axes, 3), weight, bias)
        oracle.assert_same_bits(found, shown.transpose(*axes, 3), about=axes)
    same = fastattn.linear(np.broadcast_to(x[7], (2, 3, 20)), weight, bias)
    oracle.assert_same_bits(same, np.broadcast_to(expected[7], (2, 3, 70)))
    assert fastattn.linear(x[:0].reshape(2, 0, 20), weight).shape == (2, 0, 70)


def test_nothing_beside_a_result_is_written(exact_backend, seed):
    for rows, features, outputs in SHAPES:
        x, weight, bias = draw(seed, rows, features, outputs)
        memory = np.full((rows + 2, outputs + 20), 7.0, np.float32)
        out = memory[1:-1, 3 : outputs + 3]
        for held in (weight, fastattn.pack_linear(weight)):
            fastattn.linear(x, held, bias, out=out)
            oracle.assert_same_bits(out, fastattn.linear(x, weight, bias))
            out[...] = 7.0
            assert (memory == 7.0).all()


@pytest.mark.parametrize("shift", [0, 1, -1, 3])
def test_out_may_overlap_what_is_read(exact_backend, shift, seed):
    rng = np.random.default_rng(seed)
    for name in ("x", "weight", "bias"):
        memory = np.zeros((18, 6))
        operands = {"x": rng.random((6, 6)), "weight": rng.random((6, 6)), "bias": rng.random(6)}
        place = memory[5:11] if name != "bias" else memory[5]
        place[...] = operands[name]
        expected = fastattn.linear(**operands)
        out = memory[5 + shift : 11 + shift]
        for _ in range(2):
            place[...] = operands[name]
            assert fastattn.linear(**{**operands, name: place}, out=out) is out
            oracle.assert_same_bits(out, expected, about=name)


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 4, 7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite_reaches_what_reads_it(exact_backend, rows, dtype, seed):
    x, weight, bias = draw(seed, rows, 36, 70, dtype)
    plain = fastattn.linear(x, weight, bias)
    x[-1, 3], weight[5, 7], weight[69, 2], bias[9] = np.nan, np.inf, np.nan, -np.inf
    for held in (weight, fastattn.pack_linear(weight)):
        found = fastattn.linear(x, held, bias).astype(np.float64)
        assert np.isnan(found[-1]).all()
        rest = found[:-1]
        assert np.isnan(rest[:, 69]).all()
        assert np.array_equal(rest[:, 5], np.where(x[:-1, 7] > 0, np.inf, -np.inf))
        assert (rest[:, 9] == -np.inf).all()
        others = [i for i in range(70) if i not in (5, 9, 69)]
        oracle.assert_same_bits(rest[:, others], plain[:-1, others].astype(np.float64))
    assert np.isnan(fastattn.linear([[0.0]], [[np.inf]])).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_once(exact_backend, dtype, seed):
    """After the bias, and from what float32 gives."""
    for rows in (1, 4, 50):
        halves = draw(seed, rows, 150, 70, dtype)
        wide = fastattn.linear(*(one.astype(np.float32) for one in halves))
        expected = wide.astype(strategies.dtype_of(dtype))
        oracle.assert_same_bits(fastattn.linear(*halves), expected)
        packed = fastattn.pack_linear(halves[1])
        oracle.assert_same_bits(fastattn.linear(halves[0], packed, halves[2]), expected)


def test_dtypes_promote_as_numpy_says(exact_backend, seed):
    names = ("float64", "float32", "float16", "int8", "bool")
    for one in names:
        for other in names:
            for rows in (1, 7):
                x, weight, bias = (
                    (8 * array).astype(dtype)
                    for array, dtype in zip(
                        draw(seed, rows, 40, 70), (one, other, "int16"), strict=True
                    )
                )
                packed = fastattn.pack_linear(weight)
                check(fastattn.linear(x, weight), x, weight)
                oracle.assert_same_bits(
                    fastattn.linear(x, packed), fastattn.linear(x, weight), about=(one, other)
                )
                assert fastattn.linear(x, weight, bias).dtype == np.float64
                check(fastattn.linear(x, packed, bias), x, weight, bias)


def test_equal_terms_and_powers_of_two_are_exact(exact_backend):
    for features in (1, 64, 65, 1000, LINEAR_RUN + 1):
        x, weight = np.ones((5, features), np.float32), np.full((70, features), 0.5, np.float32)
        assert (fastattn.linear(x, weight) == features / 2).all()
        assert (fastattn.linear(x, weight, np.full(70, 0.25)) == features / 2 + 0.25).all()


def drawn(rng, kind, shape, dtype):
    """Features that are normal, or positive."""
    numbers = rng.standard_normal(shape, np.float32)
    return (numbers if kind == "signed" else abs(numbers)).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["signed", "positive"])
def test_errors_do_not_grow_beyond_those_of_numpy(exact_backend, dtype, kind, seed):
    """For one row, which NumPy adds up on many lanes, and for several, to a million features."""
    rng = np.random.default_rng(seed)
    wide = np.float64 if dtype == "float32" else np.longdouble
    for features in (1, 16, 100, 768, 4096, 20_000, 1_000_000):
        for rows in (1, 8):
            errors = [], []
            for _ in range(4):
                # Few of them where the truth takes long.
                outputs = min(256, max(8, 4_000_000 // features))
                x = drawn(rng, kind, (rows, features), dtype)
                weight = drawn(rng, kind, (outputs, features), dtype)
                truth = x.astype(wide) @ weight.T.astype(wide)
                ulp = float(abs(truth).max()) * tolerances.epsilon(dtype)
                for found, result in zip(
                    errors, (fastattn.linear(x, weight), x @ weight.T), strict=True
                ):
                    found.append(np.ravel((result - truth) / ulp).astype(float))
            ours, numpys = (float(np.sqrt(np.mean(np.square(one)))) for one in errors)
            allowed = tolerances.ACCURACY_LARGEST_RATIO * numpys + tolerances.ACCURACY_ULPS
            assert ours <= allowed, (features, rows, ours, numpys)


@pytest.mark.parametrize("features", [16, 64, 100, 256, 768, 3072])
@pytest.mark.parametrize("kind", ["signed", "positive"])
def test_errors_are_small(exact_backend, kind, features, seed):
    """Of many rows and features half of NumPy's; of few, small as they are."""
    rng = np.random.default_rng(seed)
    for rows, outputs in ((1, 256), (8, 96), (64, 256)):
        x, weight = (drawn(rng, kind, (n, features), "float32") for n in (rows, outputs))
        truth = x.astype(np.float64) @ weight.T.astype(np.float64)
        ulp = float(abs(truth).max()) * tolerances.epsilon("float32")
        results = fastattn.linear(x, weight), x @ weight.T
        ours, numpys = (float(np.sqrt(np.mean(np.square((y - truth) / ulp)))) for y in results)
        assert ours <= tolerances.LINEAR_ULPS, (rows, ours)
        if rows >= 64 and features >= 256:
            assert ours <= tolerances.LINEAR_RATIO * numpys, (ours, numpys)


# --- packed weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_weight_says_what_it_is(dtype, seed):
    _, weight, _ = draw(seed, 1, 30, 100, dtype)
    packed = fastattn.pack_linear(weight)
    assert packed.shape == (100, 30)
    assert packed.dtype == weight.dtype
    assert packed.nbytes == 128 * 30 * weight.itemsize
    assert repr(packed) == f"PackedWeight(shape=(100, 30), dtype={dtype})"
    assert fastattn.pack_linear(weight[:, :3].astype(int)).dtype == np.float64
    swapped = weight.astype(weight.dtype.newbyteorder("S")) if dtype != "bfloat16" else weight
    assert fastattn.pack_linear(swapped).dtype == weight.dtype


def test_a_packed_weight_is_a_copy_and_stays_as_it_is(exact_backend, seed):
    x, weight, _ = draw(seed, 3, 30, 100)
    expected = fastattn.linear(x, weight)
    packed = fastattn.pack_linear(weight)
    weight[...] = 7
    oracle.assert_same_bits(fastattn.linear(x, packed), expected)
    with pytest.raises(AttributeError, match="shape of a PackedWeight"):
        packed.shape = (3, 4)
    with pytest.raises(AttributeError):
        packed.dtype = np.float64
    with pytest.raises(AttributeError, match="shape of a PackedWeight"):
        del packed.shape
    for wrong in (np.asarray, lambda w: fastattn.linear(w, weight), lambda w: packed_bias(x, w)):
        with pytest.raises(TypeError, match="a PackedWeight is no array"):
            wrong(packed)
    with pytest.raises(TypeError, match="pack_linear"):
        fastattn.PackedWeight()
    with pytest.raises(ValueError, match="read-only"):
        packed._panels[...] = 0
    assert packed._panels.ctypes.data % 64 == 0


def packed_bias(x, packed):
    return fastattn.linear(x, np.ones((3, 30), np.float32), packed)


@pytest.mark.parametrize("outputs", [1, 3, 16, 17, 40, 64, 65])
@pytest.mark.parametrize("rows", [1, 3, 4, 7, 25])
def test_few_outputs_have_the_bits_of_many(exact_backend, rows, outputs, seed):
    x, weight, bias = draw(seed, rows, 70, 130)
    expected = fastattn.linear(x, weight, bias)[:, :outputs]
    for some in (weight[:outputs], fastattn.pack_linear(weight[:outputs])):
        oracle.assert_same_bits(fastattn.linear(x, some, bias[:outputs]), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_packed_weight_pickles(exact_backend, dtype, seed):
    x, weight, bias = draw(seed, 3, 30, 100, dtype)
    packed = fastattn.pack_linear(weight)
    for other in (pickle.loads(pickle.dumps(packed)), copy.deepcopy(packed), copy.copy(packed)):
        assert (other.shape, other.dtype, other.nbytes) == ((100, 30), packed.dtype, packed.nbytes)
        assert other._panels.ctypes.data % 64 == 0
        assert not other._panels.flags.writeable
        found = fastattn.linear(x, other, bias)
        oracle.assert_same_bits(found, fastattn.linear(x, weight, bias))


def test_widths_of_packed_weights_are_told_apart(exact_backend, seed):
    """Weights whose panels look alike, and differ in how many outputs they have."""
    x, weight, _ = draw(seed, 3, 30, 100)
    for outputs in (100, 65, 128, 100):
        more = np.vstack([weight, weight])[:outputs]
        found = fastattn.linear(x, fastattn.pack_linear(more))
        oracle.assert_same_bits(found, fastattn.linear(x, more), about=outputs)


def test_lists_are_taken():
    assert fastattn.linear([1, 2], [[3, 4]], [5]).tolist() == [16.0]
    assert fastattn.linear([1, 2], fastattn.pack_linear([[3, 4]]), [5]).tolist() == [16.0]
