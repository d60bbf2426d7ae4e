"""Steps of decoding: planned once a page, and to the bit what a call planned anew gives."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import oracle
import pytest
import strategies
from kv import OPTIONS, STORAGE, Model, new_cache, tokens

import fastattn
from fastattn._core import backends, steps
from fastattn._core.kept import Bounded
from fastattn._core.pages import PageTable


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    monkeypatch.setattr(steps, "_steps", Bounded())
    return steps._steps


@pytest.fixture
def plans(monkeypatch):
    """The problems that were planned."""
    seen, prepare = [], backends.prepare

    def noted(problem, *arguments):
        seen.append(problem)
        return prepare(problem, *arguments)

    monkeypatch.setattr(backends, "prepare", noted)
    return seen


def draw_query(rng, cache, rows=1, heads=4):
    dtype = "float32" if cache.dtype == np.int8 else cache.dtype
    return strategies.draw(rng, (*cache.batch_shape, heads, rows, cache.head_dim), dtype)


def check(cache, query, **options):
    """Attend, and compare with `attention` over the same keys; returns the results."""
    step = cache.attend(query, **options)
    lengths = {"causal": "bottom_right", "key_lengths": cache.lengths[..., None]}
    plain = fastattn.attention(query, *cache.dense(), enable_gqa=True, **{**lengths, **options})
    pairs = zip(step, plain, strict=True) if isinstance(step, tuple) else [(step, plain)]
    for ours, theirs in pairs:
        oracle.assert_same_bits(ours, theirs, about=(cache, query.shape, options))
    return step


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("name", OPTIONS)
def test_growing(exact_backend, name, storage, seed, kept):
    """Around the borders of pages and segments, entries of different lengths."""
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), storage)
    for count in (0, 1, 126, 1, 1, 383, 1, 1):
        cache.append(*tokens(rng, (2,), count), lengths=[count, min(count, 90)])
        for rows in (1, 5):
            query = draw_query(rng, cache, rows)
            check(cache, query, **OPTIONS[name], return_lse=rows == 5)
    assert bool(kept) == ("query_offset" not in OPTIONS[name])


def test_a_step_is_planned_once_a_page(exact_backend, seed, plans):
    rng = np.random.default_rng(seed)
    caches = [new_cache((1,), "float32") for _ in range(3)]
    for _ in range(300):
        for cache in caches:
            cache.append(*tokens(rng, (1,), 1))
            cache.attend(draw_query(rng, cache))
    # Each for the step itself, and for the pages it ends in.
    assert [problem.key.shape[-2] for problem in plans] == [1, 128, 129, 256, 257, 384]


@pytest.mark.parametrize("storage", ["float32", "int8"])
@pytest.mark.parametrize(
    ("batch", "sizes"),
    [
        ((0,), (2, 8, 4)),
        ((2, 0), (1, 4, 4)),
        ((2,), (0, 8, 4)),
        ((2,), (2, 0, 4)),
        ((2,), (2, 8, 0)),
        ((), (1, 1, 1)),
    ],
    ids=str,
)
def test_sizes_of_nothing(exact_backend, batch, sizes, storage, seed):
    rng = np.random.default_rng(seed)
    cache = new_cache(batch, storage, *sizes)
    for count in (0, 1, 1, 130, 1, 2):
        cache.append(*tokens(rng, batch, count, *sizes))
        for rows in (0, 1, 3):
            query = draw_query(rng, cache, rows, 2 * sizes[0])
            for _ in range(2):
                check(cache, query, return_lse=True)
        cache.truncate(np.maximum(cache.lengths - 1, 0))
        cache.reorder(np.arange(cache.lengths.size))
        check(cache, query)


@pytest.mark.parametrize("threads", [1, 3])
def test_few_long_sequences(exact_backend, threads, seed):
    """Segments shared among threads are folded from partial states."""
    rng = np.random.default_rng(seed)
    cache = new_cache((1,), "bfloat16", heads=1)
    cache.append(*tokens(rng, (1,), 2047, heads=1))
    for count in (0, 1, 1, 600):
        cache.append(*tokens(rng, (1,), count, heads=1))
        for rows in (1, 7):
            check(cache, draw_query(rng, cache, rows), threads=threads, return_lse=True)


def test_any_history_of_several_caches(exact_backend, seed):
    """Caches of equal and other sizes grow, shrink and are reordered; options change each time."""
    rng = np.random.default_rng([seed, 7])
    places = [
        ((3,), "float32"),
        ((3,), "float32"),
        ((3,), "int8"),
        ((2, 1), "float32"),
        ((), "float16"),
    ]
    caches = [new_cache(*place) for place in places]
    choices = [options for name, options in OPTIONS.items() if name != "offset"]
    for turn in range(120):
        cache = caches[rng.integers(len(caches))]
        lengths = cache.lengths
        operation = rng.choice(["token", "token", "append", "truncate", "reorder", "nothing"])
        if operation in ("token", "append"):
            count = 1 if operation == "token" else int(rng.integers(0, 200))
            cache.append(*tokens(rng, cache.batch_shape, count))
        elif operation == "truncate":
            cache.truncate(rng.integers(lengths // 2, lengths + 1))
        elif operation == "reorder":
            cache.reorder(rng.integers(0, lengths.size, lengths.size))
        options = dict(choices[rng.integers(len(choices))])
        rows, heads = int(rng.integers(1, 4)), int(rng.choice([2, 4]))
        if "alibi_slopes" in options or np.ndim(options.get("scale", 0)):
            heads = 4
        if np.ndim(options.get("scale", 0)):
            options["scale"] = np.reshape(options["scale"], (*(1,) * len(cache.batch_shape), 4))
        query = draw_query(rng, cache, rows, heads)
        check(cache, query, **options, return_lse=bool(turn % 2), threads=turn % 3 + 1)


def test_slopes_and_sinks_are_those_of_the_step(exact_backend, seed):
    """Of any shape that broadcasts, list or array, written to or replaced between the steps."""
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), "float32")
    cache.append(*tokens(rng, (2,), 50))
    query = draw_query(rng, cache)
    numbers = rng.random(4)
    for _ in range(2):
        for shape in ((4,), (1,), (2, 4), (2, 1), ()):
            for dtype in (np.float64, np.float16):
                x = np.resize(numbers, shape).astype(dtype)
                check(cache, query, sinks=x)
                check(cache, query, alibi_slopes=x.tolist(), sinks=x)
        numbers[:] = rng.random(4)


def test_scales_are_those_of_the_step(exact_backend, seed):
    """By value: an array that is written to between the steps is another scale."""
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), "float32")
    cache.append(*tokens(rng, (2,), 50))
    query = draw_query(rng, cache)
    numbers = rng.normal(size=4)
    for similarity in ("dot", "euclidean"):
        for _ in range(2):
            for shape in ((1, 4), (2, 4), (2, 1), ()):
                x = np.resize(numbers, shape).astype(np.float32)
                check(cache, query, scale=x, similarity=similarity)
                check(cache, query, scale=x.tolist(), similarity=similarity)
            numbers[:] = rng.normal(size=4)


@pytest.mark.parametrize("storage", ["float32", "int8"])
def test_from_many_threads(exact_backend, storage, seed):
    rng = np.random.default_rng(seed)
    caches = [new_cache((2,), storage) for _ in range(4)]
    for cache in caches:
        cache.append(*tokens(rng, (2,), 100))
    queries = [draw_query(rng, cache) for cache in caches]
    for count in (1, 27, 1):
        for cache in caches:
            cache.append(*tokens(rng, (2,), count))
        expected = [check(*pair) for pair in zip(caches, queries, strict=True)]
        with ThreadPoolExecutor(8) as pool:
            futures = [
                [
                    pool.submit(partial(cache.attend, backend=exact_backend), query)
                    for cache, query in zip(caches, queries, strict=True)
                ]
                for _ in range(30)
            ]
            for turn in futures:
                for future, one in zip(turn, expected, strict=True):
                    oracle.assert_same_bits(future.result(), one)


def test_queries_and_results_of_any_layout(exact_backend, seed):
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), "float32")
    cache.append(*tokens(rng, (2,), 40))
    for layout in strategies.LAYOUTS:
        query = strategies.lay_out(draw_query(rng, cache, 3), layout)
        plain = check(cache, np.ascontiguousarray(query))
        for _ in range(2):
            oracle.assert_same_bits(cache.attend(query), plain, about=layout)
    memory = np.full((*plain.shape, 2), 7, np.float32)
    for out in (memory[..., 0], memory[..., 0].copy(), plain.astype(">f4")):
        for _ in range(2):
            out[...] = 0
            assert cache.attend(query, out=out) is out
            oracle.assert_same_bits(out.astype(np.float32), plain)
    assert (memory[..., 1] == 7).all()
    square = fastattn.KVCache(1, 1, 8)
    square.append(*tokens(rng, (1,), 9, 1, 8, 8))
    for _ in range(2):
        query = draw_query(np.random.default_rng(seed), square, 2, 1)
        apart = square.attend(query)
        assert square.attend(query, out=query) is query
        oracle.assert_same_bits(query, apart)


def test_what_is_as_long_as_the_keys_is_planned_each_time(exact_backend, seed, kept):
    rng = np.random.default_rng(seed)
    cache = new_cache((1,), "float32")
    cache.append(*tokens(rng, (1,), 4))
    query = draw_query(rng, cache, 4)
    for options in (
        {"mask": np.ones((4, 4), bool)},
        {"query_segments": np.arange(4), "key_segments": np.arange(4)},
        {"causal": True, "query_offset": 3},
        {"causal": True},
        {"causal": np.True_},
        {"return_weights": True},
        {"return_weights": np.True_},
    ):
        cache.attend(query, **options)
        assert not kept, options
    cache.append(*tokens(rng, (1,), 1))
    for causal in (True, np.True_):
        with pytest.raises(ValueError, match="ambiguous"):
            cache.attend(query, causal=causal)


def refused(query, array):
    """Calls that are errors, each beside a legal one that differs by one argument."""
    zeros = np.zeros
    read_only = zeros((2, 4, 1, 17), np.float32)
    read_only.flags.writeable = False
    return {
        "batch": (ValueError, {"query": zeros((3, 4, 1, 24), np.float32)}),
        "heads": (ValueError, {"query": zeros((2, 3, 1, 24), np.float32)}),
        "features": (ValueError, {"query": zeros((2, 4, 1, 25), np.float32)}),
        "masked": (TypeError, {"query": np.ma.array(query)}),
        "complex": (TypeError, {"query": query.astype(complex)}),
        "scale": (ValueError, {"scale": np.nan}),
        "scale, a flag": (TypeError, {"scale": True}),
        "similarity": (ValueError, {"similarity": "cos"}),
        "causal": (ValueError, {"causal": "right"}),
        "causal, a number": (ValueError, {"causal": 0}),
        "window": (ValueError, {"window": (-1, 0)}),
        "softcap": (ValueError, {"softcap": 0.0}),
        "flag": (TypeError, {"return_lse": 1}),
        "threads": (ValueError, {"threads": 0}),
        "backend": (ValueError, {"backend": "none"}),
        "out": (ValueError, {"out": zeros((2, 4, 1, 18), np.float32)}),
        "out, dtype": (TypeError, {"out": zeros((2, 4, 1, 17))}),
        "out, read-only": (ValueError, {"out": read_only}),
        "sinks": (ValueError, {"sinks": array + np.nan}),
        "sinks, shape": (ValueError, {"sinks": zeros(3)}),
        "slopes": (ValueError, {"alibi_slopes": array - np.inf}),
        "slopes, masked": (TypeError, {"alibi_slopes": np.ma.array(array)}),
        "ids": (ValueError, {"query_segments": zeros(1, int)}),
    }


@pytest.mark.parametrize("name", refused(np.zeros(1), np.zeros(1)))
def test_what_is_refused_first_is_refused_again(exact_backend, name, seed, kept):
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), "float32")
    cache.append(*tokens(rng, (2,), 5))
    query, array = draw_query(rng, cache), rng.random(4)
    error, wrong = refused(query, array)[name]
    texts = []
    for _ in range(2):
        with pytest.raises(error) as caught:
            cache.attend(**{"query": query, **wrong})
        texts.append(str(caught.value))
        cache.attend(query)
        cache.attend(query, alibi_slopes=array, sinks=array)
    assert texts[0] == texts[1]
    assert len(kept) == 2


def test_no_array_is_kept(exact_backend, seed, kept):
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), "int8")
    cache.append(*tokens(rng, (2,), 5))
    arrays = [draw_query(rng, cache), rng.random(4), *cache._table._chunks[0]]
    cache.attend(arrays[0], sinks=arrays[1])
    assert kept
    seen = [weakref.ref(array) for array in arrays]
    del arrays, cache
    gc.collect()
    assert not any(array() is not None for array in seen)


def test_as_many_are_kept_as_said(exact_backend, seed, kept, monkeypatch):
    kept.most = 3
    rng = np.random.default_rng(seed)
    cache = new_cache((1,), "float32")
    cache.append(*tokens(rng, (1,), 5))
    for rows in (*range(1, 8), *range(1, 8)):
        check(cache, draw_query(rng, cache, rows))
        assert len(kept) <= 3


@pytest.mark.parametrize("nothing", [0, 1])
def test_writing_nothing_does_not_end_sharing(exact_backend, nothing, seed):
    """Neither no tokens, nor one of which none is taken."""
    rng = np.random.default_rng(seed)
    cache, model = new_cache((2,), "float32"), Model((2,), "float32")
    for step in (5, 1, 1):
        new = tokens(rng, (2,), step)
        cache.append(*new)
        model.append(*new)
        cache.reorder([1, 1])
        model.held = [list(model.held[1]) for _ in range(2)]
        cache.append(*tokens(rng, (2,), nothing), lengths=0 if nothing else None)
        for _ in range(2):
            new = tokens(rng, (2,), 1)
            cache.append(*new)
            model.append(*new)
            model.check(cache, rng)


@pytest.mark.parametrize("change", ["append", "truncate", "reorder"])
def test_an_interrupted_change_leaves_no_room_that_is_not_there(change, seed, monkeypatch):
    """Where Ctrl-C comes just when the lengths are known, what follows finds its own pages."""
    rng = np.random.default_rng(seed)
    cache = new_cache((2,), "float32")
    key, value = tokens(rng, (2,), 200)
    cache.append(key[:, :, :100], value[:, :, :100])
    changes = {
        "append": lambda: cache.append(key[:, :, 100:105], value[:, :, 100:105]),
        "truncate": lambda: cache.truncate(95),
        "reorder": lambda: cache.reorder(np.array([1, 1])),
    }
    setter = PageTable.lengths.fset

    def interrupted(table, lengths):
        setter(table, lengths)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PageTable, "lengths", PageTable.lengths.setter(interrupted))
        with pytest.raises(KeyboardInterrupt):
            changes[change]()
    held = int(cache.lengths[0])
    assert held == {"append": 105, "truncate": 95, "reorder": 100}[change]
    beams = [1, 1] if change == "reorder" else [0, 1]
    # As many as would fit without what was interrupted, then past the page.
    for stop in (held + 28, 190):
        start = int(cache.lengths[0])
        cache.append(key[:, :, start:stop], value[:, :, start:stop])
    for ours, theirs in zip(cache.dense(), (key, value), strict=True):
        np.testing.assert_array_equal(ours[:, :, :held], theirs[beams, :, :held])
        np.testing.assert_array_equal(ours[:, :, held:], theirs[:, :, held:190])
