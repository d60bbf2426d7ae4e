"""Caches that serve: sequences come and go, and what no query sees any more is given back."""

import copy
import pickle
import tracemalloc

import numpy as np
import oracle
import pytest
import strategies
from kv import STORAGE, Model, new_cache, tokens

import fastattn

GIVEN_BACK = "given back"


def draw_query(rng, cache, rows=1, heads=4):
    dtype = "float32" if cache.dtype == np.int8 else cache.dtype
    return strategies.draw(rng, (*cache.batch_shape, heads, rows, cache.head_dim), dtype)


def begin(batch, storage="float32", window=None):
    cache = fastattn.KVCache(
        batch, 2, 24, dtype=strategies.dtype_of(storage), value_dim=17, window=window
    )
    return cache, Model(batch, storage)


def grow(rng, cache, model, count, lengths=None):
    new = tokens(rng, cache.batch_shape, count)
    cache.append(*new, lengths=lengths)
    model.append(*new, lengths=lengths)


def check(cache, model, rng, first, window, rows=1):
    """Attend, as over all keys ever appended; refused only where a key before `first` is seen."""
    sees = np.maximum(model.lengths - rows - window[0], 0)
    try:
        # As a step that is planned once a page, and with weights.
        model.check_step(cache, rng, rows, window=window, softcap=1.5)
        model.check(cache, rng, rows, window=window)
    except ValueError as error:
        if GIVEN_BACK not in str(error) or not (sees < first).any():
            raise


# --- sequences that come and go ------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGE)
def test_sequences_come_and_go(backend, storage, seed):
    rng = np.random.default_rng(seed)
    cache, model = begin((3,), storage)
    grow(rng, cache, model, 200, [200, 128, 5])
    for chosen in ([0, 2], [1, -1, 0, 1], [-1], [-1, 0, -1], [2, 1, 0, 0, -1]):
        cache.select(chosen)
        model.select(chosen)
        assert cache.batch_shape == (len(chosen),)
        model.check(cache, rng)
        for count in (1, 150, 1):
            grow(rng, cache, model, count, rng.integers(0, count + 1, len(chosen)))
            model.check_step(cache, rng)
            model.check(cache, rng)


@pytest.mark.parametrize("indices", [[[0, -1], [5, 5], [3, 0]], 4, [], np.zeros((2, 0), int)])
def test_the_shape_of_what_is_selected_is_the_batch(backend, indices, seed):
    rng = np.random.default_rng(seed)
    cache, model = begin((2, 3))
    grow(rng, cache, model, 130, rng.integers(0, 131, (2, 3)))
    indices = np.asarray(indices, int)
    cache.select(indices.tolist() if indices.ndim == 1 else indices)
    model.select(indices)
    assert cache.batch_shape == cache.lengths.shape == indices.shape
    if indices.size:
        model.check(cache, rng)
    cache.select(np.full(2, -1))
    model.select(np.full(2, -1))
    grow(rng, cache, model, 3)
    model.check(cache, rng)


def test_finished_sequences_leave_their_memory_to_others(backend, seed):
    rng = np.random.default_rng(seed)
    cache, model = begin((2,))
    grow(rng, cache, model, 128 * 6)
    held = cache.nbytes
    cache.select([1, -1])
    model.select([1, -1])
    grow(rng, cache, model, 128 * 6, [0, 128 * 6])
    assert cache.nbytes == held
    model.check(cache, rng)
    cache.select([-1, -1])
    assert cache.nbytes == 0
    cache.select([])
    assert (cache.nbytes, cache.batch_shape) == (0, (0,))


def test_begin_again(backend, seed):
    rng = np.random.default_rng(seed)
    cache, model = begin((2,), window=(100, 0))
    grow(rng, cache, model, 700)
    grow(rng, cache, model, 1)
    cache.reset()
    assert cache.nbytes == 0
    np.testing.assert_array_equal(cache.lengths, [0, 0])
    model = Model((2,), "float32")
    grow(rng, cache, model, 50)
    model.check(cache, rng, rows=50, window=(None, None))


def test_nbytes_are_those_of_pages(backend, seed):
    cache = fastattn.KVCache(2, 3, 8, value_dim=4, dtype="int8")
    assert cache.nbytes == 0
    cache.append(np.zeros((2, 3, 1, 8)), np.zeros((2, 3, 1, 4)))
    assert cache.nbytes == 2 * 128 * 3 * (8 + 4 + 2 * 4)


# --- what no query sees any more -----------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGE)
def test_what_a_window_hides_is_given_back(backend, storage, seed):
    """Portions of any size, one token among them: queries at the new positions see their window."""
    rng = np.random.default_rng(seed)
    window = (200, 0)
    cache, model = begin((2,), storage, window)
    for count in (1, 300, 1, 1, 260, 129, 1, 0, 128, 1):
        grow(rng, cache, model, count, [count, min(count, 150)])
        model.check_step(cache, rng, max(count, 1), alibi_slopes=0.1)  # the window of the cache
        model.check(cache, rng, min(count, 2), window=(150, 0), softcap=1.5)


@pytest.mark.parametrize("storage", STORAGE)
def test_any_history_of_a_server(backend, storage, seed):
    """Sixty random operations, compared after each with all keys there ever were."""
    rng = np.random.default_rng([seed, 11])
    window = (int(rng.integers(0, 300)), 0) if seed % 2 else None
    cache, model = begin((3,), storage, window)
    first = np.zeros(3, int)  # of each sequence, what may be gone stands before it
    refused = 0
    for _ in range(60):
        choices = ["append"] * 3 + ["token"] * 3 + ["truncate", "select"] + ["drop"] * 2
        operation = rng.choice(choices)
        lengths = model.lengths
        if operation in ("append", "token"):
            count = 1 if operation == "token" else int(rng.integers(0, 400))
            taken = rng.integers(0, count + 1, len(lengths)) if rng.random() < 0.5 else None
            grow(rng, cache, model, count, taken)
            if window is not None:
                edge = model.lengths - max(count, 1) - window[0]
                first = np.maximum(first, np.minimum(edge, lengths))
        elif operation == "truncate":
            kept = rng.integers(np.minimum(first, lengths), lengths + 1)
            kept = np.where(rng.random(len(kept)) < 0.1, 0, kept)
            cache.truncate(kept)
            model.truncate(kept)
            first = np.where(kept > 0, first, 0)
        elif operation == "select":
            chosen = rng.integers(-1, len(lengths), rng.integers(1, 5))
            cache.select(chosen)
            model.select(chosen)
            first = np.where(chosen < 0, 0, first[chosen])
        else:
            edge = rng.integers(0, lengths + 1)
            cache.drop_before(edge)
            first = np.maximum(first, edge)
        for rows, left in ((1, 0), (2, 90), (3, int(rng.integers(0, 600)))):
            check(cache, model, rng, first, (left, 0), rows)
        refused += bool((first >= 128).any())
    assert refused


@pytest.mark.parametrize("options", [
    {"causal": False, "window": (30, 5), "query_offset": 290},
    {"causal": True, "query_offset": [[290], [298]], "window": (30, None)},
    {"causal": False, "window": (20, 20), "query_offset": [[290, 276, 280, 299], [300, 0, 0, 0]]},
    {"causal": True, "query_offset": -9},
    {"window": (40, 0), "alibi_slopes": 0.1, "sinks": [0.5, 0.1, 0.2, 0.3]},
])  # fmt: skip
def test_positions_tell_what_is_seen(backend, options, seed):
    """Of the first sequence 256 keys are gone, of the second none."""
    rng = np.random.default_rng(seed)
    cache, model = begin((2,))
    grow(rng, cache, model, 301)
    cache.drop_before([300, 0])
    if np.ndim(options.get("query_offset")) == 2:
        offset = np.broadcast_to(options["query_offset"], (2, 4))
        options = {**options, "query_offset": offset}
    model.check(cache, rng, 2, **options)


@pytest.mark.parametrize("options", [
    {},
    {"causal": False},
    {"causal": False, "window": (30, 5)},
    {"window": (None, 0)},
    {"window": (44, 0)},
    {"causal": "top_left", "window": (2, 0)},
    {"causal": True, "query_offset": [[285], [0]], "window": (30, 0)},
    {"causal": True, "query_offset": [[300, 300, 285, 300]], "window": (30, 0)},
    {"causal": True, "query_offset": 284, "window": (29, 0)},
    {"causal": False, "query_offset": 284, "window": (29, 0)},
    {"causal": False, "query_offset": -6, "window": (0, 5)},
    {"window": (44, 0), "mask": np.arange(301) > 256},
])  # fmt: skip
def test_what_was_given_back_is_not_attended_to(backend, options, seed):
    """The first row sees key 255 or an earlier one; and the window as it says can."""
    rng = np.random.default_rng(seed)
    cache, _ = begin((2,))
    cache.append(*tokens(rng, (2,), 301))
    cache.drop_before([300, 0])
    query = draw_query(rng, cache, 2)
    if np.ndim(options.get("query_offset")) == 2:
        shape = np.broadcast_shapes(np.shape(options["query_offset"]), (2, 1))
        options = {**options, "query_offset": np.broadcast_to(options["query_offset"], shape)}
    with pytest.raises(ValueError, match=GIVEN_BACK):
        cache.attend(query, **options)
    cache.attend(query, window=(43, 0))


@pytest.mark.parametrize("portion", [1, 37, 512])
def test_memory_under_a_window_is_that_of_the_window(backend, portion, seed):
    """80 000 tokens of 8 heads of 64 under a window of 255: below 5 MB at any time."""
    portions = 3000 if portion == 1 else 80_000 // portion
    cache = fastattn.KVCache(1, 8, 64, window=(255, 0))
    block = np.ones((1, 8, portion, 64), np.float32)
    tracemalloc.start()
    try:
        for _ in range(portions):
            cache.append(block, block)
            assert cache.nbytes < 5e6
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5e6 + 4 * block.nbytes
    np.testing.assert_array_equal(cache.lengths, [portions * portion])


def test_a_long_text_is_freed_by_the_first_token_behind_it(backend, seed):
    rng = np.random.default_rng(seed)
    cache = fastattn.KVCache(1, 1, 16, window=(255, 0))
    key, value = tokens(rng, (1,), 80_007, 1, 16, 16)
    cache.append(key[:, :, :80_005], value[:, :, :80_005])
    query = strategies.draw(rng, (1, 1, 80_005, 16), "float32")
    if fastattn.explain(query, key, value).backend != "reference":
        whole = cache.attend(query)
        expected = fastattn.attention(
            query, key[:, :, :80_005], value[:, :, :80_005], causal=True, window=(255, 0)
        )
        oracle.assert_same_bits(whole, expected)
    for last in (80_006, 80_007):
        cache.append(key[:, :, last - 1 : last], value[:, :, last - 1 : last])
        assert cache.nbytes <= 4 * 128 * 32 * 4
        expected = fastattn.attention(
            query[:, :, :1], key[:, :, :last], value[:, :, :last],
            causal="bottom_right", window=(255, 0), return_lse=True,
        )  # fmt: skip
        actual = cache.attend(query[:, :, :1], return_lse=True)
        for ours, theirs in zip(actual, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=1e-5)
    np.testing.assert_array_equal(cache.lengths, [80_007])


def test_dense_shows_zeros_where_pages_were_given_back(backend, seed):
    rng = np.random.default_rng(seed)
    cache, model = begin((2,))
    grow(rng, cache, model, 300)
    cache.drop_before([300, 127])
    expected = model.dense()
    for x in expected:
        x[0, :, :256] = 0
    for ours, theirs in zip(cache.dense(), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
def test_copies_of_what_is_left_go_on(backend, copied, seed):
    rng = np.random.default_rng(seed)
    cache, model = begin((2,), window=(50, 0))
    for count in (700, 1, 1):
        grow(rng, cache, model, count)
        model.check_step(cache, rng)
    other, theirs = copied(cache), copy.deepcopy(model)
    for one, beside in ((other, theirs), (cache, model), (other, theirs)):
        grow(rng, one, beside, 1)
        beside.check_step(one, rng)
        beside.check(one, rng, window=(50, 0))


def test_no_memory_leaves_the_sequences_as_they_were(backend, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    cache, model = begin((1,), window=(5, 0))
    grow(rng, cache, model, 300)

    def none_left(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(cache._table), "_new_chunk", none_left)
        with pytest.raises(MemoryError):
            cache.append(*tokens(rng, (1,), 1000))
    model.check(cache, rng, rows=300, window=(None, None))


REFUSED = {
    "select beyond": (lambda c: c.select([0, 2]), "2.*-1 is a new one"),
    "select before": (lambda c: c.select([0, -2]), "-2"),
    "drop beyond": (lambda c: c.drop_before([300, 5]), "3"),
    "drop far beyond": (lambda c: c.drop_before(301), "301"),
    "drop negative": (lambda c: c.drop_before(-1), "-1"),
    "truncate within": (lambda c: c.truncate([100, 3]), "first 128 tokens of sequence 0"),
    "window": (lambda c: fastattn.KVCache(1, 1, 4, window=3), "pair"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_and_changes_nothing(backend, name, seed):
    rng = np.random.default_rng(seed)
    cache, model = begin((2,))
    grow(rng, cache, model, 300, [300, 3])
    cache.drop_before([140, 0])
    call, text = REFUSED[name]
    with pytest.raises(ValueError, match=text):
        call(cache)
    model.check(cache, rng, window=(140, 0))


def test_numbers_of_sequences_are_integers(backend):
    cache = new_cache((2,), "float32")
    for wrong in ([0.0, 1.0], [True, False]):
        with pytest.raises(TypeError, match="integers"):
            cache.select(wrong)
    assert cache.batch_shape == (2,)
