"""Ragged calls: every option against the reference, alone and in pairs; edges; what is refused."""

import numpy as np
import oracle
import pytest
import strategies
from ragged import RAGGED_FEATURES, feature_pairs, ragged, random_features

import fastattn

PAIRS = feature_pairs()
PAIR_BLOCKS = 8


def check(case):
    """Compare output and lse of a case with the oracle."""
    results = fastattn.attention_varlen(*case.arguments, **case.options, return_lse=True)
    oracle.attention_varlen(*case.arguments, **case.options).check(*results, about=case)
    return results


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", RAGGED_FEATURES)
def test_single_option(backend, feature, seed):
    for number in range(3):
        check(ragged([feature], seed=seed + number))


@pytest.mark.parametrize("block", range(PAIR_BLOCKS))
def test_pairs_of_options(backend, block, seed):
    for pair in PAIRS[block::PAIR_BLOCKS]:
        check(ragged(pair, seed=seed))


@pytest.mark.parametrize("block", range(4))
def test_many_options_at_once(backend, block, seed):
    for number in range(20):
        rng = np.random.default_rng([seed, block, number])
        check(ragged(random_features(rng, int(rng.integers(3, 8))), seed=seed + number))


def test_output_alone_and_into_an_array(backend, seed):
    case = ragged(["rows_of_nobody", "gathered", "causal_offsets"], seed=seed)
    output, _ = check(case)
    for alone in (
        fastattn.attention_varlen(*case.arguments, **case.options),
        fastattn.attention_varlen(*case.arguments, **case.options, out=np.full_like(output, 7)),
    ):
        oracle.assert_same_bits(alone, output)
    for layout in ("strided", "negative", "byteswapped", "unaligned", "fortran"):
        out = strategies.lay_out(np.full_like(output, np.nan), layout)
        assert fastattn.attention_varlen(*case.arguments, **case.options, out=out) is out
        oracle.assert_close(out, output.astype(float), 0.0, about=layout)


@pytest.mark.parametrize("operand", ["query", "value"])
def test_out_may_overlap_an_input(backend, operand, seed):
    """Every row sees every key of its sequence, which is several tasks: none may write in place."""
    lengths = [(5, 5), (0, 0), (300, 300), (3, 3)]
    case = ragged(seed=seed, lengths=lengths, features=8, value_features=8)
    expected = fastattn.attention_varlen(*case.arguments, **case.options)
    out = case.arrays[("query", "key", "value").index(operand)]
    assert fastattn.attention_varlen(*case.arguments, **case.options, out=out) is out
    oracle.assert_same_bits(out, expected)


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("splits", [[0], [3], [0, 0], [2, 2, 2]])
def test_batches_that_hold_nothing(backend, splits):
    query, key, value = (np.ones((4, 2, n), np.float32) for n in (3, 3, 5))
    output, lse = fastattn.attention_varlen(
        query, key, value, splits, splits, partial=True, return_lse=True
    )
    assert output.shape == (4, 2, 5)
    assert lse.shape == (4, 2)
    assert not output.any()
    assert (lse == -np.inf).all()


@pytest.mark.parametrize("shape", [(0, 2, 3), (0, 3)])
def test_arrays_of_no_rows(backend, shape):
    empty = np.ones(shape, np.float32)
    output, lse = fastattn.attention_varlen(empty, empty, empty, [0, 0], [0, 0], return_lse=True)
    assert output.shape == shape
    assert lse.shape == shape[:-1]


def test_one_key_is_its_value(backend, seed):
    case = ragged(seed=seed, lengths=[(2, 1), (1, 1), (7, 1)])
    output = fastattn.attention_varlen(*case.arguments)
    expected = np.repeat(case.arrays[2], case.axes[0], axis=0)
    np.testing.assert_array_equal(output, expected)


def test_no_features_give_the_mean_of_each_sequence(backend, seed):
    case = ragged(seed=seed, lengths=[(2, 5), (1, 130), (3, 0)], features=0)
    output = fastattn.attention_varlen(*case.arguments)
    for sequence, (_, keys) in enumerate(case.lengths):
        value = case.alone(sequence)[0][2]
        mean = value.mean(axis=1, keepdims=True) if keys else np.zeros((4, 1, value.shape[2]))
        rows = output[case.rows(sequence)].swapaxes(0, 1)
        np.testing.assert_allclose(rows, np.broadcast_to(mean, rows.shape), atol=1e-6)


@pytest.mark.parametrize("poison", [None, np.nan, np.inf])
@pytest.mark.parametrize(
    "options",
    [
        {"causal": True, "query_offset": -2000},
        {"window": (0, 0), "query_offset": 5000},
        {"query_segments": 1, "key_segments": 2},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("sink", [None, 0.75])
def test_rows_that_see_nothing(backend, options, poison, sink, seed):
    case = ragged(seed=seed, lengths=[(1, 3), (30, 600), (2, 0), (0, 9)])
    query, key, value = case.arrays
    if poison is not None:
        key[...], value[...] = poison, poison
    options = dict(options)
    if "query_segments" in options:
        options["query_segments"] = np.full(len(query), options["query_segments"])
        options["key_segments"] = np.full(len(key), options["key_segments"])
    if sink is not None:
        options["sinks"] = sink
    output, lse = fastattn.attention_varlen(*case.arguments, **options, return_lse=True)
    assert not output.any()
    assert (lse == (-np.inf if sink is None else sink)).all()


def test_nan_reaches_the_rows_of_its_own_sequence_alone(backend, seed):
    case = ragged(seed=seed, lengths=[(3, 65), (2, 70), (0, 4), (30, 513)])
    clean = fastattn.attention_varlen(*case.arguments)
    first, stop = case.splits[1][1:3]
    for operand in case.arrays[1:]:
        operand[int(first) + 3] = np.nan
    actual = fastattn.attention_varlen(*case.arguments)
    rows = case.rows(1)
    assert np.isnan(actual[rows]).all()
    oracle.assert_same_bits(np.delete(actual, rows, 0), np.delete(clean, rows, 0))
    assert stop - first == 70


def test_rows_that_nobody_names_never_matter(backend, seed):
    """NaN before the first and behind the last split, and in rows of a table without an index."""
    case = ragged(["rows_of_nobody"], seed=seed, lengths=[(3, 20), (1, 7)])
    clean = fastattn.attention_varlen(*case.arguments, **case.options)
    first, last = int(case.splits[1][0]), int(case.splits[1][-1])
    for operand in case.arrays[1:]:
        operand[:first], operand[last:] = np.nan, np.nan
    oracle.assert_same_bits(fastattn.attention_varlen(*case.arguments, **case.options), clean)
    case = ragged(["gathered", "rows_of_nobody"], seed=seed, lengths=[(3, 20), (1, 7)])
    clean = fastattn.attention_varlen(*case.arguments, **case.options)
    first, last = int(case.splits[1][0]), int(case.splits[1][-1])
    unused = np.ones(len(case.arrays[1]), bool)
    unused[case.options["key_indices"][first:last]] = False
    assert unused.any()
    for operand in case.arrays[1:]:
        operand[unused] = np.nan
    oracle.assert_same_bits(fastattn.attention_varlen(*case.arguments, **case.options), clean)


@pytest.mark.parametrize("layout", ["strided", "negative", "unaligned", "byteswapped", "read_only"])
@pytest.mark.parametrize("dtype", ["i1", "u1", "i4", "u4", "i8", "u8"])
def test_splits_and_indices_of_any_integer_dtype_and_layout(backend, dtype, layout, seed):
    case = ragged(["gathered"], seed=seed, lengths=[(2, 20), (0, 3), (4, 60)])
    expected = fastattn.attention_varlen(*case.arguments, **case.options)
    splits = [strategies.lay_out(x.astype(dtype), layout) for x in case.splits]
    indices = strategies.lay_out(case.options["key_indices"].astype(dtype), layout)
    actual = fastattn.attention_varlen(*case.arrays, *splits, key_indices=indices)
    oracle.assert_same_bits(actual, expected)
    listed = [x.tolist() for x in (*splits, indices)]
    actual = fastattn.attention_varlen(*case.arrays, *listed[:2], key_indices=listed[2])
    oracle.assert_same_bits(actual, expected)


def test_more_sequences_than_rows_of_a_plan(backend, seed):
    """Two hundred thousand sequences, most of them empty, on arrays of a few thousand rows."""
    rng = np.random.default_rng(seed)
    count, filled = 200_000, 1500
    if backend == "reference":
        count, filled = 3000, 300
    places = rng.choice(count, filled, replace=False)
    lengths = np.zeros((2, count), np.int64)
    lengths[0, places], lengths[1, places] = 1, 2
    splits = [np.r_[0, np.cumsum(each)] for each in lengths]
    arrays = [strategies.draw(rng, (n * filled, 2, 8), "f4") for n in (1, 2, 2)]
    output = fastattn.attention_varlen(*arrays, *splits)
    dense = [x.reshape(filled, -1, 2, 8).swapaxes(1, 2) for x in arrays]
    truth = oracle.attention(*dense)
    oracle.assert_close(output, truth.output[:, :, 0], truth.output_tolerance)


# --- refused -------------------------------------------------------------------------------------

REFUSED = {
    "decreasing splits": (
        {"key_splits": [0, 9, 4]},
        ValueError,
        "key_splits decreases from 9 to 4",
    ),
    "decreasing queries": ({"query_splits": [0, 6, 5]}, ValueError, "query_splits decreases"),
    "splits below zero": ({"key_splits": [-1, 4, 9]}, ValueError, "-1"),
    "keys beyond the end": ({"key_splits": [0, 4, 10]}, ValueError, "10.*9"),
    "queries beyond the end": ({"query_splits": [0, 4, 7]}, ValueError, "7.*6"),
    "another number of sequences": ({"key_splits": [0, 9]}, ValueError, r"\(3,\).*\(2,\)"),
    "no offset at all": ({"key_splits": []}, ValueError, "batch . 1"),
    "splits of two dims": ({"query_splits": [[0, 3, 6]]}, ValueError, r"\(1, 3\)"),
    "splits of floats": ({"query_splits": [0.0, 3.0, 6.0]}, TypeError, "float64.*integers"),
    "index too large": ({"key_indices": [0] * 8 + [9]}, ValueError, r"key_indices\[8\] is 9"),
    "index below zero": ({"key_indices": [0] * 3 + [-1] + [0] * 5}, ValueError, "is -1"),
    "index beyond int64": (
        {"key_indices": np.array([0] * 8 + [2**64 - 1], np.uint64)},
        ValueError,
        r"key_indices\[8\] is 18446744073709551615",
    ),
    "indices of floats": ({"key_indices": [0.5] * 9}, TypeError, "integers"),
    "indices of two dims": ({"key_indices": [[0] * 9]}, TypeError, r"\(1, 9\)"),
    "fewer indices than splits": ({"key_indices": [0] * 8}, ValueError, "8"),
    "a mask": ({"mask": np.ones((6, 9), bool)}, TypeError, "query_segments"),
    "lengths": ({"key_lengths": [3, 3]}, TypeError, "key_splits"),
    "weights": ({"return_weights": True}, TypeError, "call attention"),
    "lengths for splits": (
        {"query_splits": [3, 3]},
        ValueError,
        r"from 3 to 3 .* 6 query rows.*`np.r_\[0, np.cumsum\(query_splits\)\]`.*`partial=True`",
    ),
    "lengths for splits of keys": (
        {"key_splits": [4, 5]},
        ValueError,
        r"from 4 to 5 .* 9 packed keys.*`np.r_\[0, np.cumsum\(key_splits\)\]`",
    ),
    "splits that begin late": (
        {"key_splits": [1, 4, 9]},
        ValueError,
        r"from 1 to 9 .*`np.r_\[0, np.cumsum\(lengths\)\]`",
    ),
    "splits that end early": ({"query_splits": [0, 3, 5]}, ValueError, "from 0 to 5"),
    "indices in no list": ({"key_indices": [0] * 10}, ValueError, "10 key_indices"),
    "a part that is no flag": ({"partial": 1}, TypeError, "partial must be True or False"),
    "causal of unequal lengths": ({"causal": True}, ValueError, "bottom_right"),
    "offset beside a word": ({"causal": "top_left", "query_offset": 1}, ValueError, "query_offset"),
    "offsets of another count": ({"causal": True, "query_offset": [1, 2, 3]}, ValueError, "offset"),
    "one side of the segments": ({"query_segments": [0] * 6}, ValueError, "key_segments"),
    "segments too short": (
        {"query_segments": [0] * 6, "key_segments": [0] * 8},
        ValueError,
        r"key_segments.*\(8,\)",
    ),
    "a slope too many": ({"alibi_slopes": [0.1, 0.2, 0.3]}, ValueError, r"alibi_slopes.*\(3,\)"),
    "a slope that is infinite": ({"alibi_slopes": [0.1, np.inf]}, ValueError, "alibi_slopes"),
    "a sink that is NaN": ({"sinks": [np.nan, 1.0]}, ValueError, "sinks"),
    "a sink of plus infinity": ({"sinks": np.inf}, ValueError, "sinks"),
    "unknown option": ({"dropout": 0.1}, TypeError, "dropout"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused_before_anything_is_written(backend, name):
    change, error, text = REFUSED[name]
    rng = np.random.default_rng(0)
    query, key, value = (strategies.draw(rng, (n, 2, 4), "f4") for n in (6, 9, 9))
    arguments = {"query_splits": [0, 3, 6], "key_splits": [0, 4, 9], **change}
    splits = [arguments.pop(side) for side in ("query_splits", "key_splits")]
    out = np.full((6, 2, 4), 7, np.float32)
    with pytest.raises(error, match=text):
        fastattn.attention_varlen(query, key, value, *splits, out=out, **arguments)
    assert (out == 7).all()


@pytest.mark.parametrize("shapes", [((6, 4), (9, 3)), ((6,), (9,)), ((6, 2, 4), (9, 3, 4))])
def test_packed_arrays_that_do_not_fit_are_refused(backend, shapes):
    query, key = (np.zeros(shape, np.float32) for shape in shapes)
    with pytest.raises(ValueError, match="query") as error:
        fastattn.attention_varlen(query, key, key, [0, 6], [0, 9])
    for shape in shapes:
        assert str(shape) in str(error.value)


def test_indices_that_no_sequence_uses_may_hold_anything(backend):
    query, table = np.ones((1, 2), np.float32), np.ones((3, 2), np.float32)
    indices = np.array([-5, 0, 2, 99])
    output = fastattn.attention_varlen(
        query, table, table, [0, 1], [1, 3], key_indices=indices, partial=True
    )
    np.testing.assert_allclose(output, 1)
