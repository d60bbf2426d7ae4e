"""ALiBi, sinks and documents at the face: shapes, edges, calls in a row, what is refused."""

import inspect
import itertools

import numpy as np
import oracle
import pytest
import strategies
from numpy.lib.stride_tricks import sliding_window_view

import fastattn
from fastattn import reference

NAN = float("nan")


def operands(rng, *, rows=7, keys=130, batch=(2, 4), features=16, dtype="f4"):
    return [strategies.draw(rng, (*batch, n, features), dtype) for n in (rows, keys, keys)]


def check(*arrays, **options):
    results = fastattn.attention(*arrays, **options, return_lse=True, return_weights=True)
    oracle.attention(*arrays, **options).check(*results, about=options)
    return results


# --- relative biases -----------------------------------------------------------------------------


def windows(table, position, rows, keys):
    """The recipe in the docstring of `attention`."""
    longest = (table.shape[-1] + 1) // 2
    return sliding_window_view(table, keys, axis=-1)[:, longest - 1 - position :: -1][:, :rows]


def relative_biases(rng, dtype, backwards):
    """A table of 4 heads that hides far distances, and ordinary distances of one head from 0 on."""
    table = rng.standard_normal((4, 1399)).astype(dtype)
    table[:, :180], table[:, 900:], table[0, 600:680] = -np.inf, -np.inf, 0
    return np.ascontiguousarray(table[:, ::-1])[:, ::-1] if backwards else table


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2"])
def test_a_relative_bias_is_windows_of_a_table(exact_backend, dtype, backwards, seed):
    rng = np.random.default_rng(seed)
    table = relative_biases(rng, dtype, backwards)
    for position, rows, keys in ((0, 70, 70), (0, 30, 650), (513, 7, 520), (649, 1, 650)):
        arrays = operands(rng, rows=rows, keys=keys, dtype="f4" if dtype == "f2" else dtype)
        bias = windows(table, position, rows, keys)
        assert np.shares_memory(bias, table)
        distance = np.arange(keys) - np.arange(rows)[:, None] - position
        dense = np.ascontiguousarray(table[:, distance + 699])
        for options in ({}, {"causal": True, "query_offset": position}):
            here, there = (
                fastattn.attention(*arrays, mask=mask, return_lse=True, **options)
                for mask in (bias, dense)
            )
            for result, expected in zip(here, there, strict=True):
                oracle.assert_same_bits(result, expected, about=(position, rows, options))
        oracle.attention(*arrays, mask=dense).check(fastattn.attention(*arrays, mask=bias))


def test_decoding_with_a_relative_bias_step_by_step(exact_backend, seed):
    """Each token has the bits that it has among all, in one causal call."""
    rng = np.random.default_rng(seed)
    table = relative_biases(rng, "f4", backwards=False)
    query, key, value = operands(rng, rows=550, keys=550)
    bias = windows(table, 0, 550, 550)
    expected = fastattn.attention(query, key, value, mask=bias, causal=True)
    cache = fastattn.KVCache(2, 4, 16)
    cache.append(key[..., :500, :], value[..., :500, :])
    for position, rows in ((500, 3), (503, 1), (504, 30), (534, 1), (535, 15)):
        now = slice(position, position + rows)
        cache.append(key[..., now, :], value[..., now, :])
        step = cache.attend(query[..., now, :], mask=windows(table, position, rows, now.stop))
        oracle.assert_same_bits(step, expected[..., now, :], about=(position, rows))


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (1,), (4,), (1, 1), (2, 1), (1, 4), (2, 4)], ids=str)
@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
def test_numbers_of_any_shape_over_the_batch(backend, name, shape, seed):
    rng = np.random.default_rng(seed)
    numbers = rng.random(shape)
    arrays = operands(rng)
    for given in (numbers, numbers.astype(np.float32), numbers.tolist()):
        check(*arrays, **{name: given})
    laid = strategies.lay_out(np.broadcast_to(numbers, (2, 4)), "negative")
    check(*arrays, **{name: laid})


@pytest.mark.parametrize("name", ["alibi_slopes", "sinks"])
def test_numbers_without_a_heads_axis(backend, name, seed):
    rng = np.random.default_rng(seed)
    arrays = operands(rng, batch=())
    for given in (0.3, [0.3], np.float64(0.3), np.array(0.3, np.float32)):
        check(*arrays, **{name: given})
    one_row = fastattn.attention(arrays[0][0], *arrays[1:], **{name: 0.3})
    assert one_row.shape == (16,)
    check(arrays[0][0], *arrays[1:], **{name: 0.3})


@pytest.mark.parametrize("query_shape", [(), (1,), (4,), (2, 1), (1, 4), (2, 4)], ids=str)
@pytest.mark.parametrize("key_shape", [(), (2, 1), (2, 4)], ids=str)
def test_documents_of_any_shape_over_the_batch(backend, query_shape, key_shape, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 3, (*query_shape, 7)), rng.integers(0, 3, (*key_shape, 130))
    arrays = operands(rng)
    for dtype in ("i8", "i4", "u1", ">i2"):
        check(*arrays, query_segments=ids[0].astype(dtype), key_segments=ids[1].astype(dtype))
    laid = [strategies.lay_out(np.broadcast_to(x, (2, 4, x.shape[-1])), "strided") for x in ids]
    check(*arrays, query_segments=laid[0], key_segments=laid[1])


def test_documents_of_one_query(backend, seed):
    rng = np.random.default_rng(seed)
    query, key, value = operands(rng, rows=1, batch=())
    ids = rng.integers(0, 3, 130)
    for given in (1, [1]):
        check(query[0], key, value, query_segments=given, key_segments=ids)


def test_grouped_heads_have_numbers_of_their_own(backend, seed):
    rng = np.random.default_rng(seed)
    query, _, _ = operands(rng, batch=(2, 6))
    _, key, value = operands(rng, batch=(2, 2))
    for name in ("alibi_slopes", "sinks"):
        check(query, key, value, enable_gqa=True, **{name: rng.random(6)})
    ids = rng.integers(0, 3, (2, 6, 7)), rng.integers(0, 3, (2, 6, 130))
    check(query, key, value, enable_gqa=True, query_segments=ids[0], key_segments=ids[1])


# --- meaning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 123, -50, 4000, -(2**30)])
@pytest.mark.parametrize("keys", [1, 64, 65, 600])
def test_alibi_counts_from_the_position_of_the_query(backend, offset, keys, seed):
    """Far away every distance is large, and only their differences count."""
    rng = np.random.default_rng(seed)
    arrays = operands(rng, keys=keys)
    slopes = np.array([2.0**-2, 2.0**-5, 0.0, -(2.0**-7)])
    for more in ({}, {"causal": True}, {"window": (None, 5)}):
        check(*arrays, alibi_slopes=slopes, query_offset=offset, **more)


@pytest.mark.parametrize("word", ["top_left", "bottom_right"])
def test_alibi_follows_the_words(backend, word, seed):
    rng = np.random.default_rng(seed)
    lengths = np.array([[130], [77]])
    check(*operands(rng), alibi_slopes=[0.5, 0.1, 0.0, -0.1], causal=word, key_lengths=lengths)


def test_alibi_alone_stands_at_zero(backend, seed):
    arrays = operands(np.random.default_rng(seed))
    here = fastattn.attention(*arrays, alibi_slopes=0.2)
    oracle.assert_same_bits(here, fastattn.attention(*arrays, alibi_slopes=0.2, query_offset=0))


@pytest.mark.parametrize("sink", [-1e30, -104.0, 0.0, 88.0, 1e30])
def test_sinks_of_any_size(backend, sink, seed):
    rng = np.random.default_rng(seed)
    for scale in (None, 0.0, -1.0, 30.0):
        check(*operands(rng, keys=600), sinks=sink, scale=scale)
        check(*operands(rng, rows=1, keys=600), sinks=[sink, -np.inf, 0.5, -sink], scale=scale)


def test_sinks_keep_the_weights_below_one(backend, seed):
    arrays = operands(np.random.default_rng(seed), keys=600)
    output, lse, weights = check(*arrays, sinks=[3.0, 0.0, -np.inf, 9.0])
    expected = -np.expm1(np.array([3.0, 0.0, -np.inf, 9.0])[:, None] - lse)
    np.testing.assert_allclose(weights.sum(axis=-1), expected, rtol=1e-5, atol=1e-5)
    assert (abs(output) <= abs(arrays[2]).max()).all()


@pytest.mark.parametrize(("rows", "keys"), [(1, 3), (7, 65), (26, 600), (26, 0)])
@pytest.mark.parametrize("poison", [None, np.nan, np.inf])
def test_empty_rows_give_the_sink(backend, rows, keys, poison, seed):
    arrays = operands(np.random.default_rng(seed), rows=rows, keys=keys)
    if poison is not None:
        arrays[1][...], arrays[2][...] = poison, poison
    sinks = np.array([0.25, -300.0, 1e30, -np.inf], np.float32)
    for options in ({"key_lengths": 0}, {"causal": True, "query_offset": -rows}):
        output, lse, weights = fastattn.attention(
            *arrays, sinks=sinks, return_lse=True, return_weights=True, **options
        )
        assert not output.any()
        assert not weights.any()
        np.testing.assert_array_equal(lse, np.broadcast_to(sinks[:, None], (2, 4, rows)))


def test_infinities_and_nan_beside_sinks_and_slopes(backend, seed):
    rng = np.random.default_rng(seed)
    for poison in (np.nan, np.inf, -np.inf):
        arrays = operands(rng, rows=26, keys=600)
        arrays[1][0, 1, 40, 0] = poison
        arrays[2][1, 2, 50, 3] = poison
        check(*arrays, sinks=0.5, alibi_slopes=0.01)


@pytest.mark.parametrize(
    "borders", [(0, 64, 128, 130), (0, 1, 63, 130), (0, 65, 66, 130), (0, 130)]
)
def test_documents_with_borders_at_tiles(backend, borders, seed):
    """Packed documents are so many calls; what lies in the others never matters."""
    rng = np.random.default_rng(seed)
    query, key, value = operands(rng, rows=130)
    for order in (1, -1):
        ids = np.repeat(np.arange(len(borders) - 1)[::order], np.diff(borders))
        output = fastattn.attention(query, key, value, query_segments=ids, key_segments=ids)
        for first, stop in itertools.pairwise(borders):
            part = slice(first, stop)
            own = [x[..., part, :] for x in (query, key, value)]
            truth = oracle.attention(*own)
            oracle.assert_close(output[..., part, :], truth.output, truth.output_tolerance)
            foreign = [np.full_like(x, np.nan) for x in (key, value)]
            for poisoned, x in zip(foreign, (key, value), strict=True):
                poisoned[..., part, :] = x[..., part, :]
            again = fastattn.attention(query, *foreign, query_segments=ids, key_segments=ids)
            oracle.assert_close(again[..., part, :], output[..., part, :].astype(float), 0.0)


def test_ids_that_agree_in_their_low_bits_differ(backend, seed):
    rng = np.random.default_rng(seed)
    ids = np.array([0, 2**32, 2**62, -(2**62), 2**31, -(2**31)])
    check(
        *operands(rng), query_segments=rng.choice(ids, 7), key_segments=rng.choice(ids, (2, 1, 130))
    )


def test_calls_of_one_signature_read_their_own_numbers(backend, seed):
    """The second and third call of a signature take a shorter way; the numbers are still new."""
    rng = np.random.default_rng(seed)
    arrays = operands(rng)
    for _ in range(3):
        options = {
            "alibi_slopes": rng.random(4),
            "sinks": rng.normal(size=4),
            "query_segments": rng.integers(0, 2, 7),
            "key_segments": rng.integers(0, 2, 130),
        }
        check(*arrays, **options)
        for name in ("alibi_slopes", "sinks"):
            check(*arrays, **{name: options[name]})
        check(*arrays)


def test_shared_bias_is_read_where_it_lies(exact_backend, seed):
    """(H, L, S) for a batch of many is never expanded: there would be no memory for it."""
    rng = np.random.default_rng(seed)
    bias = rng.normal(size=(4, 7, 130)).astype(np.float32)
    batch = 3000
    query, key, value = (
        np.broadcast_to(x, (batch, *x.shape[1:])) for x in operands(rng, batch=(1, 4))
    )
    execution = fastattn.explain(query, key, value, mask=bias)
    assert execution.scratch_bytes < batch * bias.nbytes / 10
    output = fastattn.attention(query, key, value, mask=bias)
    truth = oracle.attention(query[:1], key[:1], value[:1], mask=bias)
    oracle.assert_close(output[:1], truth.output, truth.output_tolerance)
    oracle.assert_same_bits(output[-1], output[0])


def test_states_take_sinks_at_the_end(backend, seed):
    rng = np.random.default_rng(seed)
    query, key, value = operands(rng, keys=1100)
    options = {"alibi_slopes": [0.1, 0.0, 0.2, -0.001], "causal": True, "query_offset": 1000}
    ids = rng.integers(0, 2, 7), rng.integers(0, 2, 1100)
    sinks = [0.5, -np.inf, 3.0, -8.0]
    parts = [
        fastattn.attention_state(
            query,
            key[..., a:b, :],
            value[..., a:b, :],
            key_start=a,
            query_segments=ids[0],
            key_segments=ids[1][a:b],
            **options,
        )
        for a, b in ((0, 512), (512, 1100))
    ]
    merged = parts[0].merge(parts[1])
    whole = {**options, "query_segments": ids[0], "key_segments": ids[1]}
    truth = oracle.attention(query, key, value, sinks=sinks, **whole)
    truth.check(*merged.finish(sinks=sinks, return_lse=True))
    truth = oracle.attention(query, key, value, **whole)
    truth.check(*merged.finish(return_lse=True))  # finishing changed nothing


# --- refused -------------------------------------------------------------------------------------

IDS = np.zeros(7, int), np.zeros(130, int)
REFUSED = {
    "slope that is NaN": ({"alibi_slopes": [0.1, NAN, 0.1, 0.1]}, ValueError, "alibi_slopes"),
    "slope that is infinite": ({"alibi_slopes": -np.inf}, ValueError, "alibi_slopes"),
    "slopes of too many heads": ({"alibi_slopes": np.ones(5)}, ValueError, r"\(5,\)"),
    "slopes of another batch": ({"alibi_slopes": np.ones((3, 4))}, ValueError, r"\(3, 4\)"),
    "slopes with a row each": ({"alibi_slopes": np.ones((2, 4, 7))}, ValueError, r"\(2, 4, 7\)"),
    "complex slopes": ({"alibi_slopes": 1j}, TypeError, "complex"),
    "slopes in words": ({"alibi_slopes": "steep"}, TypeError, "alibi_slopes"),
    "sink that is NaN": ({"sinks": [0.1, NAN, 0.1, 0.1]}, ValueError, "sinks"),
    "sink of plus infinity": ({"sinks": np.inf}, ValueError, "sinks"),
    "sinks of too many heads": ({"sinks": np.ones(5)}, ValueError, r"\(5,\)"),
    "one side of the documents": ({"query_segments": IDS[0]}, ValueError, "key_segments"),
    "other side of the documents": ({"key_segments": IDS[1]}, ValueError, "query_segments"),
    "too few query ids": (
        {"query_segments": IDS[0][:6], "key_segments": IDS[1]},
        ValueError,
        r"query_segments.*\(6,\)",
    ),
    "too many key ids": (
        {"query_segments": IDS[0], "key_segments": np.zeros(131, int)},
        ValueError,
        r"key_segments.*\(131,\)",
    ),
    "ids of another batch": (
        {"query_segments": np.zeros((3, 1, 7), int), "key_segments": IDS[1]},
        ValueError,
        r"\(3, 1, 7\)",
    ),
    "ids of floats": (
        {"query_segments": IDS[0] + 0.5, "key_segments": IDS[1]},
        TypeError,
        "float64.*integers",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(backend, name):
    options, error, text = REFUSED[name]
    arrays = operands(np.random.default_rng(0))
    out = np.full((2, 4, 7, 16), 7, np.float32)
    for function in (fastattn.attention, fastattn.explain):
        with pytest.raises(error, match=text):
            function(*arrays, **options, out=out)
    assert (out == 7).all()


def test_the_reference_and_the_face_name_the_same_options():
    """Whatever the face takes that says what to compute, the reference takes under that name."""
    how = {"out", "backend", "threads"}
    face = set(inspect.signature(fastattn.attention).parameters) - how
    assert face == set(inspect.signature(reference.attention).parameters)
    # What `partial` allows changes nothing that is computed.
    ragged = set(inspect.signature(fastattn.attention_varlen).parameters) - how - {"partial"}
    assert ragged == set(inspect.signature(reference.attention_varlen).parameters)
