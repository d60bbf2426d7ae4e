"""The reference's biases, documents, sinks, ragged batches, small dtypes, said in another way."""

import itertools

import numpy as np
import oracle
import pytest
import scipy.special
import strategies

from fastattn import reference
from fastattn.reference.backend import store

CLOSE = 1e-12


# --- biases, documents, sinks --------------------------------------------------------------------


def operands(rng, *, rows=5, keys=9, features=3, value_features=2, batch=(2, 4)):
    shapes = ((rows, features), (keys, features), (keys, value_features))
    return tuple(rng.normal(size=(*batch, *shape)) for shape in shapes)


def same(results, expected):
    for actual, wanted in zip(results, expected, strict=True):
        oracle.assert_close(actual, wanted, CLOSE)


def test_alibi_is_the_float_mask_that_says_the_same(seed):
    rng = np.random.default_rng(seed)
    arrays = operands(rng)
    slopes = 2.0 ** -np.arange(1, 5)
    for offset in (0, 4, -3, np.array([[2], [-6]])):
        position = np.asarray(offset)[..., None] + np.arange(5)
        bias = -slopes[:, None, None] * abs(position[..., None] - np.arange(9))
        for more in ({}, {"softcap": 0.4}, {"causal": True}, {"window": (2, 1), "scale": -2.0}):
            asked = {"return_lse": True, "return_weights": True, "query_offset": offset, **more}
            same(
                reference.attention(*arrays, alibi_slopes=slopes, **asked),
                reference.attention(*arrays, mask=bias, **asked),
            )


def test_alibi_counts_from_where_the_words_put_the_queries(seed):
    arrays = operands(np.random.default_rng(seed), batch=())
    lengths = 7
    for word, offset in (("bottom_right", lengths - 5), ("top_left", 0)):
        options = {"alibi_slopes": 0.8, "key_lengths": lengths, "return_lse": True}
        same(
            reference.attention(*arrays, causal=word, **options),
            reference.attention(*arrays, causal=True, query_offset=offset, **options),
        )


def test_slopes_and_sinks_of_one_number_are_those_of_every_head(seed):
    arrays = operands(np.random.default_rng(seed))
    for shape in ((1,), (4,), (2, 4), (1, 4), (2, 1)):
        for name in ("alibi_slopes", "sinks"):
            same(
                [reference.attention(*arrays, **{name: np.full(shape, 0.3)})],
                [reference.attention(*arrays, **{name: 0.3})],
            )
    alone = [array[0, 0] for array in arrays]
    for name in ("alibi_slopes", "sinks"):
        assert reference.attention(*alone, **{name: [0.3]}).shape == (5, 2)


def test_a_sink_is_one_more_key_without_a_value(seed):
    """Its score stands alone: neither scaled, capped, masked nor biased by distance."""
    rng = np.random.default_rng(seed)
    query, key, value = operands(rng)
    sinks = np.array([0.5, -3.0, 40.0, -800.0])
    mask = rng.random((2, 4, 5, 9)) < 0.6
    mask[0, :, 2] = False
    options = {"softcap": 0.8, "alibi_slopes": 0.1, "query_offset": 3}
    final = reference.scores(query, key, mask=mask, **options)
    wide = np.concatenate([final, np.broadcast_to(sinks[:, None, None], (2, 4, 5, 1))], axis=-1)
    weights = scipy.special.softmax(wide, axis=-1)[..., :9]
    expected = weights @ value, scipy.special.logsumexp(wide, axis=-1), weights
    asked = {"return_lse": True, "return_weights": True}
    same(
        reference.attention(query, key, value, mask=mask, sinks=sinks, **options, **asked), expected
    )


def test_a_sink_takes_the_whole_weight_of_an_empty_row(seed):
    arrays = operands(np.random.default_rng(seed))
    sinks = np.array([0.5, -3.0, 0.0, -np.inf])
    for options in ({"key_lengths": 0}, {"causal": True, "query_offset": -9}):
        output, lse, weights = reference.attention(
            *arrays, sinks=sinks, return_lse=True, return_weights=True, **options
        )
        assert not output.any()
        assert not weights.any()
        np.testing.assert_array_equal(lse, np.broadcast_to(sinks[:, None], (2, 4, 5)))


def test_a_sink_of_minus_infinity_changes_nothing(seed):
    arrays = operands(np.random.default_rng(seed))
    asked = {"return_lse": True, "return_weights": True, "causal": True, "query_offset": -2}
    here = reference.attention(*arrays, sinks=-np.inf, **asked)
    for actual, wanted in zip(here, reference.attention(*arrays, **asked), strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_a_sink_joins_as_a_part_of_its_own(seed):
    """Equal to merging with a part whose lse is the sink and whose output is zero."""
    arrays = operands(np.random.default_rng(seed))
    sinks = np.array([0.5, -3.0, 2.0, -np.inf])
    output, lse = reference.attention(*arrays, return_lse=True)
    lone = np.broadcast_to(sinks[:, None], lse.shape)
    expected = reference.merge_states((output, np.zeros_like(output)), (lse, lone))
    same(reference.attention(*arrays, sinks=sinks, return_lse=True), expected)


def test_segments_are_the_bool_mask_that_says_the_same(seed):
    rng = np.random.default_rng(seed)
    arrays = operands(rng)
    for shape in ((), (1,), (4,), (2, 1), (2, 4)):
        ids = rng.integers(-2, 3, (*shape, 5)), rng.integers(-2, 3, (*shape, 9))
        mask = ids[0][..., :, None] == ids[1][..., None, :]
        for more in ({}, {"causal": True, "query_offset": 2}, {"sinks": 0.3, "alibi_slopes": 1.0}):
            asked = {"return_lse": True, "return_weights": True, **more}
            here = reference.attention(*arrays, query_segments=ids[0], key_segments=ids[1], **asked)
            there = reference.attention(*arrays, mask=mask, **asked)
            for actual, wanted in zip(here, there, strict=True):
                np.testing.assert_array_equal(actual, wanted)


def test_packed_documents_are_so_many_calls(seed):
    rng = np.random.default_rng(seed)
    query, key, value = operands(rng, rows=12, keys=12, batch=(3,))
    borders = (0, 3, 4, 9, 12)
    ids = np.repeat([7, -1, 2**40, 0], np.diff(borders))
    options = {"causal": True, "alibi_slopes": [0.5, 0.25, 0.1]}
    packed = reference.attention(query, key, value, query_segments=ids, key_segments=ids, **options)
    for a, b in itertools.pairwise(borders):
        part = slice(a, b)
        alone = reference.attention(query[:, part], key[:, part], value[:, part], **options)
        oracle.assert_close(packed[:, part], alone, CLOSE)


def test_one_query_has_one_segment(seed):
    rng = np.random.default_rng(seed)
    key, value = rng.normal(size=(9, 3)), rng.normal(size=(9, 2))
    ids = rng.integers(0, 2, 9)
    output = reference.attention(rng.normal(size=3), key, value, query_segments=1, key_segments=ids)
    assert output.shape == (2,)
    zero = reference.attention(
        np.zeros(3), key, value, query_segments=1, key_segments=ids, return_weights=True
    )[1]
    np.testing.assert_allclose(zero, (ids == 1) / np.sum(ids == 1))


# --- sequences of different lengths --------------------------------------------------------------


def ragged(rng, lengths=((3, 4), (0, 5), (2, 0), (1, 1), (6, 6)), before=2, after=1):
    """Packed arrays with rows that belong to nobody before and after; splits of both axes."""
    query_lengths, key_lengths = zip(*lengths, strict=True)
    splits = [np.cumsum([before, *ours]) for ours in (query_lengths, key_lengths)]
    rows, keys = (int(ours[-1]) + after for ours in splits)
    query = rng.normal(size=(rows, 4, 3))
    key, value = rng.normal(size=(keys, 2, 3)), rng.normal(size=(keys, 2, 5))
    return query, key, value, *splits


@pytest.mark.parametrize("word", ["bottom_right", "top_left", False])
def test_ragged_is_a_loop_of_calls(word, seed):
    rng = np.random.default_rng(seed)
    query, key, value, query_splits, key_splits = ragged(rng)
    ids = rng.integers(0, 2, len(query)), rng.integers(0, 2, len(key))
    options = {"causal": word, "alibi_slopes": [0.1, 0.2, 0.0, 1.0], "sinks": -1.0, "softcap": 2.0}
    options.update(window=(4, None), similarity="cosine", scale=3.0, enable_gqa=True)
    output, lse = reference.attention_varlen(
        query,
        key,
        value,
        query_splits,
        key_splits,
        query_segments=ids[0],
        key_segments=ids[1],
        return_lse=True,
        **options,
    )
    assert output.shape == (len(query), 4, 5)
    assert lse.shape == (len(query), 4)
    for (a, b), (c, d) in zip(
        itertools.pairwise(query_splits), itertools.pairwise(key_splits), strict=True
    ):
        alone, alone_lse = reference.attention(
            query[a:b].swapaxes(0, 1),
            key[c:d].swapaxes(0, 1),
            value[c:d].swapaxes(0, 1),
            query_segments=ids[0][a:b],
            key_segments=ids[1][c:d],
            return_lse=True,
            **options,
        )
        np.testing.assert_array_equal(output[a:b].swapaxes(0, 1), alone)
        np.testing.assert_array_equal(lse[a:b].T, alone_lse)
    outside = np.r_[0 : query_splits[0], query_splits[-1] : len(query)]
    assert not output[outside].any()
    assert (lse[outside] == -np.inf).all()


def test_ragged_offsets_are_per_sequence(seed):
    rng = np.random.default_rng(seed)
    query, key, value, query_splits, key_splits = ragged(rng)
    offsets = np.diff(key_splits) - np.diff(query_splits)
    given = reference.attention_varlen(
        query[:, 0],
        key[:, 0],
        value[:, 0],
        query_splits,
        key_splits,
        causal=True,
        query_offset=offsets,
    )
    word = reference.attention_varlen(
        query[:, 0], key[:, 0], value[:, 0], query_splits, key_splits, causal="bottom_right"
    )
    assert given.shape == (len(query), 5)
    np.testing.assert_array_equal(given, word)


def test_ragged_rows_of_a_table_are_gathered(seed):
    rng = np.random.default_rng(seed)
    query, _, _, query_splits, key_splits = ragged(rng)
    table, values = rng.normal(size=(7, 4, 3)), rng.normal(size=(7, 4, 5))
    indices = rng.integers(0, 7, key_splits[-1])
    ids = rng.integers(0, 2, len(query)), rng.integers(0, 2, len(indices))
    options = {"query_segments": ids[0], "key_segments": ids[1], "return_lse": True}
    gathered = reference.attention_varlen(
        query, table, values, query_splits, key_splits, key_indices=indices, **options
    )
    packed = reference.attention_varlen(
        query, table[indices], values[indices], query_splits, key_splits, **options
    )
    for actual, wanted in zip(gathered, packed, strict=True):
        np.testing.assert_array_equal(actual, wanted)


def test_ragged_batches_may_hold_nothing(seed):
    query, key, value, _, _ = ragged(np.random.default_rng(seed))
    for splits in ([0], [3], [2, 2], [0, 0, 0]):
        output, lse = reference.attention_varlen(
            query, key[:, :1], value[:, :1], splits, splits, return_lse=True
        )
        assert not output.any()
        assert (lse == -np.inf).all()


# --- small dtypes --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_small_floats_are_read_as_what_they_hold(name, seed):
    dtype = strategies.dtype_of(name)
    arrays = [array.astype(dtype) for array in operands(np.random.default_rng(seed))]
    wide = [array.astype(np.float64) for array in arrays]
    mask = np.random.default_rng(seed).normal(size=(5, 9)).astype(dtype)
    for options in ({}, {"similarity": "cosine"}, {"mask": mask, "sinks": np.ones(4, dtype)}):
        other = {name: np.asarray(x, float) for name, x in options.items() if name != "similarity"}
        here = reference.attention(*arrays, **options)
        assert here.dtype == np.float64
        np.testing.assert_array_equal(here, reference.attention(*wide, **{**options, **other}))


def test_results_are_rounded_to_bfloat16_once():
    """A number just above the middle between two goes up, though float32 takes it for the tie."""
    bfloat16 = strategies.dtype_of("bfloat16")
    steps = np.arange(-6, 7)[:, None] * 2.0**-40
    numbers = (1 + 2.0**-8 * np.arange(1, 8, 2) + steps).ravel()
    numbers = np.concatenate([numbers, -numbers, [0, np.inf, -np.inf, np.nan, 3e38, 3.4e38, 1e300]])
    numbers = np.concatenate([numbers, np.array([0.5, 0.75, 1.0, 1.5, 2.5]) * 2.0**-133])
    target = np.empty(len(numbers), bfloat16)
    store(target, numbers)
    every = np.arange(0x7F80, dtype=np.uint16).view(bfloat16).astype(np.float64)
    every = np.concatenate([-every[1:], every])
    for number, rounded in zip(numbers, target.astype(np.float64), strict=True):
        if np.isnan(number):
            assert np.isnan(rounded)
        elif abs(number) > (2 - 2.0**-8) * 2.0**127:  # beyond the middle to the next power
            assert rounded == np.copysign(np.inf, number)
        else:
            distance = abs(every - number)
            assert abs(rounded - number) == distance.min()
            if (distance == distance.min()).sum() == 2:  # a tie goes to the even one
                assert np.array(rounded).astype(bfloat16).view(np.uint16) % 2 == 0
