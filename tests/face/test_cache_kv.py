"""The key-value cache: whatever was done to it, it attends like `attention` over the same keys."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import oracle
import pytest
import strategies
import tolerances
from kv import BORDERS, OPTIONS, STORAGE, Model, new_cache, tokens

import fastattn

# --- growing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("length", BORDERS)
def test_lengths_around_pages_and_segments(backend, length, storage, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache((1,), storage), Model((1,), storage)
    for step in (length, 1, 1):
        new = tokens(rng, (1,), step)
        cache.append(*new)
        model.append(*new)
        model.check(cache, rng, rows=1)
        model.check(cache, rng, rows=7)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("batch", [(1,), (3,), (2, 3), ()], ids=str)
def test_entries_grow_by_different_lengths(backend, batch, storage, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache(batch, storage), Model(batch, storage)
    model.check(cache, rng)
    for step in (1, 130, 7, 0, 300, 90):
        new = tokens(rng, batch, step)
        lengths = rng.integers(0, step + 1, batch)
        cache.append(*new, lengths=lengths)
        model.append(*new, lengths=lengths)
        model.check(cache, rng)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("options", OPTIONS)
def test_options(backend, options, storage, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache((3,), storage), Model((3,), storage)
    new = tokens(rng, (3,), 600)
    cache.append(*new, lengths=[600, 64, 129])
    model.append(*new, lengths=[600, 64, 129])
    for rows in (1, 5, 40):
        model.check(cache, rng, rows=rows, **OPTIONS[options])


@pytest.mark.parametrize("storage", STORAGE)
def test_masks_and_documents(backend, storage, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache((2,), storage), Model((2,), storage)
    new = tokens(rng, (2,), 300)
    cache.append(*new, lengths=[300, 170])
    model.append(*new, lengths=[300, 170])
    mask = rng.random((2, 1, 6, 300)) < 0.6
    model.check(cache, rng, rows=6, mask=mask)
    bias = np.where(mask, rng.normal(size=mask.shape), -np.inf).astype(np.float32)
    model.check(cache, rng, rows=6, mask=bias)
    ids = rng.integers(0, 3, (2, 1, 6)), np.sort(rng.integers(0, 3, (2, 1, 300)))
    model.check(cache, rng, rows=6, query_segments=ids[0], key_segments=ids[1])


@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("features", [(1, 1), (16, 16), (33, 65), (64, 64), (128, 128)], ids=str)
def test_heads_and_sizes(backend, features, group, seed):
    rng = np.random.default_rng(seed)
    for storage in STORAGE:
        sizes = {"heads": 3, "features": features[0], "value_features": features[1]}
        cache, model = new_cache((2,), storage, **sizes), Model((2,), storage, **sizes)
        new = tokens(rng, (2,), 200, **sizes)
        cache.append(*new)
        model.append(*new)
        model.check(cache, rng, heads=3 * group)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads(backend, threads, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache((2,), "float32"), Model((2,), "float32")
    new = tokens(rng, (2,), 2000)
    cache.append(*new, lengths=[2000, 3])
    model.append(*new, lengths=[2000, 3])
    model.check(cache, rng, threads=threads, rows=1)
    model.check(cache, rng, threads=threads, rows=30)


def test_many_attend_at_once(backend, seed):
    """What the first of them looks up is kept, whoever that is, until the cache changes."""
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), "int8")
    query = strategies.draw(rng, (2, 4, 1, 24), "float32")
    attend = partial(cache.attend, backend=backend)  # other threads do not see the fixture
    with ThreadPoolExecutor(8) as pool:
        for step in (130, 1, 300):
            cache.append(*tokens(rng, (2,), step))
            results = [pool.submit(attend, query) for _ in range(8)]
            expected = cache.attend(query)
            for result in results:
                oracle.assert_same_bits(result.result(), expected, about=step)
        cache.reorder([1, 0])
        swapped = list(pool.map(attend, [query[::-1]] * 8))
        for result in swapped:
            oracle.assert_same_bits(result[::-1], expected, about="reordered")


@pytest.mark.parametrize("layout", strategies.LAYOUTS)
@pytest.mark.parametrize("storage", STORAGE)
def test_new_tokens_of_any_layout_and_dtype(backend, storage, layout, seed):
    rng = np.random.default_rng(seed)
    for dtype in ("float16", "float32", "float64", "bfloat16"):
        cache, model = new_cache((2,), storage), Model((2,), storage)
        laid = [
            strategies.lay_out(x, layout)
            for x in tokens(rng, (2,), 140, dtype=strategies.dtype_of(dtype))
        ]
        cache.append(*laid, lengths=[140, 77])
        if dtype == "float64" and storage in ("float16", "bfloat16", "int8"):
            # Rounded once from float64, which float32 on the way is not: only near.
            _near(cache, laid, [140, 77], storage)
            continue
        model.append(*laid, lengths=[140, 77])
        model.check(cache, rng)


def _near(cache, laid, lengths, storage):
    for stored, given in zip(cache.dense(), laid, strict=True):
        for entry, length in enumerate(lengths):
            kept = given[entry, :, :length].astype(float)
            error = abs(stored[entry, :, :length].astype(float) - kept)
            if storage == "int8":
                largest = abs(kept).max(axis=-1, keepdims=True)
                bound = 1.01 * tolerances.INT8_ERROR * largest
            else:
                bound = 1.01 * tolerances.rounding(storage, kept)
            assert (error <= bound).all()


# --- taking back and reordering ------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("kept", [0, 1, 127, 128, 129, 300])
def test_rejected_tokens_are_gone(backend, kept, storage, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache((2,), storage), Model((2,), storage)
    new = tokens(rng, (2,), 300)
    cache.append(*new)
    lengths = np.array([kept, 300])
    cache.truncate(lengths)
    model.append(*new, lengths=lengths)
    model.check(cache, rng)
    new = tokens(rng, (2,), 70)
    cache.append(*new, lengths=[70, 2])
    model.append(*new, lengths=[70, 2])
    model.check(cache, rng)


@pytest.mark.parametrize("storage", ["float32", "float16", "bfloat16"])
def test_rejected_nan_does_not_come_back(backend, storage, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache((2,), storage), Model((2,), storage)
    new = tokens(rng, (2,), 100)
    cache.append(*new)
    model.append(*new)
    cache.append(*(np.full_like(x, np.nan) for x in new))
    cache.truncate(100)
    model.check(cache, rng)
    model.check(cache, rng, causal=False, rows=9)


@pytest.mark.parametrize("storage", STORAGE)
def test_beams(backend, storage, seed):
    """Sequences that go on from the same one do not see what the others add."""
    rng = np.random.default_rng(seed)
    cache, model = new_cache((4,), storage), Model((4,), storage)
    new = tokens(rng, (4,), 200)
    lengths = [200, 128, 5, 129]
    cache.append(*new, lengths=lengths)
    model.append(*new, lengths=lengths)
    for order in ([1, 1, 0, 3], [3, 2, 1, 0], [2, 2, 2, 2], [0, 1, 2, 3]):
        cache.reorder(order)
        model.held = [list(model.held[source]) for source in order]
        model.check(cache, rng)
        for step, lengths in ((1, [1, 1, 1, 1]), (150, [150, 0, 3, 90])):
            new = tokens(rng, (4,), step)
            cache.append(*new, lengths=lengths)
            model.append(*new, lengths=lengths)
            model.check(cache, rng)
    cache.truncate([1, 130, 0, 200])
    for sequence, length in enumerate((1, 130, 0, 200)):
        model.held[sequence] = [x[:, :length] for x in model.held[sequence]]
    cache.reorder([3, 3, 1, 0])
    model.held = [list(model.held[source]) for source in (3, 3, 1, 0)]
    new = tokens(rng, (4,), 1)
    cache.append(*new)
    model.append(*new)
    model.check(cache, rng)


@pytest.mark.parametrize("storage", STORAGE)
def test_any_history(backend, storage, seed):
    """Sixty random operations, compared after each."""
    rng = np.random.default_rng([seed, 5])
    cache, model = new_cache((3,), storage), Model((3,), storage)
    for _ in range(60):
        operation = rng.choice(["append", "append", "token", "truncate", "reorder"])
        if operation in ("append", "token"):
            count = 1 if operation == "token" else int(rng.integers(0, 260))
            new, lengths = tokens(rng, (3,), count), rng.integers(0, count + 1, 3)
            lengths = None if rng.random() < 0.5 else lengths
            cache.append(*new, lengths=lengths)
            model.append(*new, lengths=lengths)
        elif operation == "truncate":
            lengths = rng.integers(0, model.lengths + 1)
            cache.truncate(lengths)
            model.held = [
                [x[:, :length] for x in held]
                for held, length in zip(model.held, lengths, strict=True)
            ]
        else:
            order = rng.integers(0, 3, 3)
            cache.reorder(order)
            model.held = [list(model.held[source]) for source in order]
        model.check(cache, rng, rows=int(rng.integers(1, 4)))


# --- what is kept --------------------------------------------------------------------------------


def test_int8_error_is_the_stated_one(backend, seed):
    """At most half a scale, the largest of the row / 254; rows of any size, zeros among them."""
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), "int8")
    new = tokens(rng, (2,), 300)
    for x in new:
        x *= 10.0 ** rng.integers(-30, 30, (*x.shape[:-1], 1)).astype(np.float32)
        x[:, :, ::7] = 0
    cache.append(*new)
    for stored, given in zip(cache.dense(), new, strict=True):
        largest = abs(given).max(axis=-1, keepdims=True)
        error = abs(stored.astype(float) - given)
        assert (error <= 1.0001 * tolerances.INT8_ERROR * largest).all()
        assert error.max() > 0
        assert (stored[:, :, ::7] == 0).all()


@pytest.mark.parametrize("query_dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("storage", [*STORAGE, "float64"])
def test_queries_of_any_dtype_see_what_dense_shows(backend, storage, query_dtype, seed):
    """What is stored is one number for every query, whatever dtype the call computes in."""
    rng = np.random.default_rng(seed)
    for features, value_features in ((24, 17), (5, 3)):
        cache = new_cache((2,), storage, features=features, value_features=value_features)
        cache.append(*tokens(rng, (2,), 150, features=features, value_features=value_features))
        key, value = cache.dense()
        for rows in (1, 4, 30):
            query = strategies.draw(rng, (2, 4, rows, features), query_dtype)
            for similarity in ("scaled_dot", "cosine"):
                options = {"similarity": similarity, "causal": "bottom_right", "return_lse": True}
                expected = fastattn.attention(query, key, value, enable_gqa=True, **options)
                for ours, theirs in zip(cache.attend(query, **options), expected, strict=True):
                    oracle.assert_same_bits(ours, theirs, about=(features, rows, similarity))


def test_lengths_are_a_copy(backend, seed):
    cache = new_cache((2,), "float32")
    cache.append(*tokens(np.random.default_rng(seed), (2,), 5))
    cache.lengths[...] = 0
    np.testing.assert_array_equal(cache.lengths, [5, 5])
    assert cache.lengths.dtype == np.int64


def test_new_tokens_are_copied(backend, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache((1,), "float32"), Model((1,), "float32")
    new = tokens(rng, (1,), 5)
    model.append(*(x.copy() for x in new))
    cache.append(*new)
    for x in new:
        x[...] = np.nan
    model.check(cache, rng)


def test_growing_copies_nothing_that_is_there(backend, seed):
    """One token onto sixty megabytes allocates no more than the largest chunk of pages."""
    cache = fastattn.KVCache(1, 8, 64)
    block = np.zeros((1, 8, 4096, 64), np.float32)
    for _ in range(4):
        cache.append(block, block)
    tracemalloc.start()
    try:
        for _ in range(1000):
            cache.append(block[:, :, :1], block[:, :, :1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    held = 2 * 4 * block.nbytes
    assert peak <= held + (8 << 20)  # room for as much again, and no copy on top of it
    np.testing.assert_array_equal(cache.lengths, [4 * 4096 + 1000])


@pytest.mark.parametrize("lengths", [(256, 0), (200, 5)])
def test_pages_of_rejected_tokens_are_used_again(backend, lengths, seed):
    """Also where a sequence is cut at the very end of a page; what it keeps stays its own."""
    rng = np.random.default_rng(seed)
    sizes = {"heads": 4, "features": 64, "value_features": 64}
    cache, model = new_cache((2,), "float32", **sizes), Model((2,), "float32", **sizes)
    new, more = tokens(rng, (2,), 256, **sizes), tokens(rng, (2,), 128, **sizes)
    cache.append(*new, lengths=lengths)
    cache.truncate([128, lengths[1]])
    model.append(*new, lengths=[128, lengths[1]])
    page = 128 * 4 * 128 * 4
    tracemalloc.start()
    try:
        cache.append(*more, lengths=[0, 128])
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    model.append(*more, lengths=[0, 128])
    assert grown < page / 2
    model.check(cache, rng)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_beyond_float16_are_stored_as_infinity(backend, dtype):
    """As NumPy rounds them, and without its warning; 65519 is the last that does not."""
    numbers = np.array([65504, 65519, 65520, 7e4, -1e30, 1e-30], dtype)
    cache = fastattn.KVCache(1, 1, 6, dtype="float16")
    numbers = numbers.reshape(1, 1, 1, 6)
    cache.append(numbers, numbers)
    rounded = [65504, 65504, np.inf, np.inf, -np.inf, 0]
    for stored in cache.dense():
        np.testing.assert_array_equal(stored.ravel(), rounded)
    cache.truncate(0)
    cache.append(np.zeros_like(numbers), numbers)
    output = cache.attend(np.zeros((1, 1, 1, 6), np.float16))
    np.testing.assert_array_equal(output.ravel(), rounded)


# --- refused -------------------------------------------------------------------------------------


def zeros(*shape):
    return np.zeros(shape, np.float32)


REFUSED = {
    "heads": (lambda c: c.append(zeros(2, 3, 1, 24), zeros(2, 3, 1, 17)), r"\(2, 3, 1, 24\)"),
    "features": (lambda c: c.append(zeros(2, 2, 1, 25), zeros(2, 2, 1, 17)), r"25"),
    "batch": (lambda c: c.append(zeros(3, 2, 1, 24), zeros(3, 2, 1, 17)), r"\(3, 2, 1, 24\)"),
    "tokens": (lambda c: c.append(zeros(2, 2, 2, 24), zeros(2, 2, 1, 17)), "2 new tokens"),
    "too many": (lambda c: c.append(zeros(2, 2, 2, 24), zeros(2, 2, 2, 17), [1, 3]), "3"),
    "negative": (lambda c: c.append(zeros(2, 2, 2, 24), zeros(2, 2, 2, 17), -1), "-1"),
    "truncate beyond": (lambda c: c.truncate([5, 4]), "3.*4|4.*3"),
    "truncate negative": (lambda c: c.truncate(-1), "-1"),
    "reorder beyond": (lambda c: c.reorder([0, 2]), "2"),
    "reorder negative": (lambda c: c.reorder([0, -1]), "-1"),
    "reorder count": (lambda c: c.reorder([0, 1, 1]), r"\(3,\)"),
    "query batch": (lambda c: c.attend(zeros(3, 4, 1, 24)), r"\(3, 4, 1, 24\)"),
    "query heads": (lambda c: c.attend(zeros(2, 3, 1, 24)), r"\(2, 3, 1, 24\)|3.*2"),
    "query features": (lambda c: c.attend(zeros(2, 4, 1, 25)), "25"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_and_changes_nothing(backend, name, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache((2,), "float32"), Model((2,), "float32")
    new = tokens(rng, (2,), 5)
    cache.append(*new, lengths=[5, 3])
    model.append(*new, lengths=[5, 3])
    call, text = REFUSED[name]
    with pytest.raises(ValueError, match=text):
        call(cache)
    model.check(cache, rng)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_int8_refuses_what_it_cannot_hold(backend, poison, seed):
    rng = np.random.default_rng(seed)
    cache, model = new_cache((2,), "int8"), Model((2,), "int8")
    new = tokens(rng, (2,), 5)
    cache.append(*new)
    model.append(*new)
    new[1][1, 0, 2, 3] = poison
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        with pytest.raises(ValueError, match="float16"):
            cache.append(*(x.astype(strategies.dtype_of(dtype)) for x in new))
    model.check(cache, rng)


def test_int8_refuses_what_its_scales_cannot_hold(backend):
    cache = fastattn.KVCache(1, 1, 2, dtype=np.int8)
    for beyond in (np.full((1, 1, 1, 2), 1e39), np.full((1, 1, 1, 2), np.finfo("f4").max, "f4")):
        with pytest.raises(ValueError, match="float64"):
            cache.append(beyond, beyond)
    largest = np.full((1, 1, 1, 2), 3.4e38, np.float32)
    cache.append(largest, -largest)
    assert np.isfinite(cache.dense()).all()


@pytest.mark.parametrize("dtype", ["int16", "complex64", "U3", object])
def test_storage_that_does_not_exist(backend, dtype):
    with pytest.raises(ValueError, match="int8"):
        fastattn.KVCache(1, 2, 4, dtype=dtype)
