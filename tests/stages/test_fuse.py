"""The fuse kernel: one chain per segment, segments from left to right, whatever the task."""

import numpy as np
import oracle
import pytest
import tolerances

import fastattn
from fastattn import reference

DTYPES = ("float32", "float64")
# Rows around tile and task, keys around blocks and segments, features around vectors and tasks.
SHAPES = [
    (1, 1, 1),
    (5, 127, 15),
    (6, 128, 16),
    (7, 129, 17),
    (13, 512, 63),
    (25, 513, 64),
    (199, 700, 65),
    (1, 1537, 130),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_shapes_around_tiles_segments_and_tasks(dtype, seed):
    rng = np.random.default_rng(seed)
    for rows, keys, features in SHAPES:
        weights = rng.standard_normal((rows, keys)).astype(dtype)
        value = rng.standard_normal((keys, features)).astype(dtype)
        for reduce in (True, False):
            if not reduce and rows * keys * features > 10**6:
                continue
            size = oracle.finite_max(reference.fuse(abs(weights), abs(value)))
            tolerance = tolerances.fuse_error(dtype, keys, size)
            actual = fastattn.fuse(weights, value, reduce=reduce)
            expected = reference.fuse(weights, value, reduce=reduce)
            if not reduce:  # one product: rounded once
                expected, tolerance = weights[..., None] * value, 0.0
            oracle.assert_close(actual, expected, tolerance, about=(rows, keys, features))


def test_the_sum_is_one_of_chains_over_128_keys():
    """Integers beyond 2^24 show the order: the first chain loses each, the others keep theirs."""
    value = np.ones((1024, 16), np.float32)
    value[0] = 2.0**24
    assert (fastattn.fuse(np.ones((1, 1024), np.float32), value) == 2.0**24 + 7 * 128).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduce", [True, False])
def test_bits_depend_on_one_row_and_the_values(dtype, reduce, seed):
    rng = np.random.default_rng(seed)
    keys = 1100 if reduce else 130
    weights = rng.standard_normal((2, 205, keys)).astype(dtype)
    value = rng.standard_normal((2, keys, 70)).astype(dtype)

    def fuse(weights, value, **options):
        return fastattn.fuse(weights, value, reduce=reduce, **options)

    expected = fuse(weights, value, threads=1)
    oracle.assert_same_bits(fuse(weights, value, threads=2), expected)
    oracle.assert_same_bits(fuse(weights[:, 3:4], value), expected[:, 3:4])
    oracle.assert_same_bits(fuse(weights[1, 198:], value[1]), expected[1, 198:])
    oracle.assert_same_bits(fuse(weights, value[..., 5:26]), expected[..., 5:26])
    turned = fuse(np.asfortranarray(weights), np.asfortranarray(value))
    oracle.assert_same_bits(turned, expected)
    back = fuse(weights[:, ::-1, ::-1], value[:, ::-1])[:, ::-1]
    if not reduce:
        oracle.assert_same_bits(back[..., ::-1, :], expected)
    out = np.empty((*expected.shape[1:], 2), dtype)
    out = np.moveaxis(out, -1, 0)
    oracle.assert_same_bits(fuse(weights, value, out=out), expected)


def test_a_weight_of_zero_does_not_hide():
    value = np.array([[np.inf, 1.0], [np.nan, 2.0]])
    assert np.isnan(fastattn.fuse([0.0, 1.0], value)[0])
    assert np.isnan(fastattn.fuse([1.0, 0.0], value)[0])
    assert fastattn.fuse([0.0, 1.0], value)[1] == 2.0


def test_nothing_between_the_rows_of_a_result_is_written(seed):
    rng = np.random.default_rng(seed)
    for rows, keys, features in SHAPES:
        memory = np.full((rows + 2, features + 20), 7.0)
        out = memory[1:-1, 3 : features + 3]
        fastattn.fuse(rng.random((rows, keys)), rng.random((keys, features)), out=out)
        out[...] = 7.0
        assert (memory == 7.0).all()
