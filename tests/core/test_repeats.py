"""Repeated calls: the plan of the first, on the arrays of each."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest

import fastattn
from fastattn._core import kept as memory

pytest.importorskip("fastattn._numba.backend")


def _draw(rng, *shape):
    return rng.standard_normal(shape, dtype=np.float32)


def _softmax_mask(rng):
    return (_draw(rng, 5, 33), rng.random((5, 33)) < 0.7), lambda x, mask, **o: fastattn.softmax(
        x, mask=mask, scale=0.3, **o
    )


CALLS = {
    "attention": lambda rng: (
        (_draw(rng, 2, 5, 8), _draw(rng, 2, 7, 8), _draw(rng, 2, 7, 3)),
        fastattn.attention,
    ),
    "softmax": lambda rng: ((_draw(rng, 5, 33),), fastattn.softmax),
    "softmax, axis 0": lambda rng: (
        (_draw(rng, 5, 33)[:, ::-2],),
        lambda x, **o: fastattn.softmax(x, 0, **o),
    ),
    "softmax, all axes": lambda rng: (
        (_draw(rng, 5, 33),),
        lambda x, **o: fastattn.softmax(x, None, **o),
    ),
    "softmax, all axes, copied": lambda rng: (
        (_draw(rng, 5, 33).T,),
        lambda x, **o: fastattn.softmax(x, None, **o),
    ),
    "softmax, mask": _softmax_mask,
    "log_softmax": lambda rng: ((_draw(rng, 2, 3, 7),), fastattn.log_softmax),
    "logsumexp": lambda rng: ((_draw(rng, 40, 7),), fastattn.logsumexp),
    "similarity": lambda rng: ((_draw(rng, 3, 5, 8), _draw(rng, 6, 8)), fastattn.similarity),
    "similarity, one row": lambda rng: ((_draw(rng, 8), _draw(rng, 6, 8)), fastattn.similarity),
    "linear": lambda rng: ((_draw(rng, 5, 9), _draw(rng, 70, 9), _draw(rng, 70)), fastattn.linear),
    "linear, one row": lambda rng: ((_draw(rng, 8), _draw(rng, 64, 8)), fastattn.linear),
    "fuse": lambda rng: ((_draw(rng, 5, 9), _draw(rng, 4, 9, 3)), fastattn.fuse),
    "fuse, apart": lambda rng: (
        (_draw(rng, 9), _draw(rng, 9, 3)),
        lambda w, v, **o: fastattn.fuse(w, v, reduce=False, **o),
    ),
}


def _kinds():
    """What keeps calls: a dict, and the compiled module where it is built."""
    try:
        from fastattn._cython._native import Calls
    except ImportError:
        return {"dict": memory.DictCalls}
    return {"dict": memory.DictCalls, "compiled": Calls}


@pytest.fixture(autouse=True, params=_kinds().items(), ids=lambda kind: kind[0])
def kept(request, monkeypatch):
    monkeypatch.setattr(memory, "calls", memory.calls)
    monkeypatch.setattr(memory, "find", memory.find)
    memory.use(request.param[1]())
    return memory.calls


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("given", ["no out", "out", "strided out"])
def test_a_repeated_call_is_about_its_own_arrays(name, given, seed, kept):
    turns = [CALLS[name](np.random.default_rng([seed, turn])) for turn in range(3)]
    fresh = []
    for arrays, function in turns:
        kept.clear()
        fresh.append(function(*arrays))
    kept.clear()
    for (arrays, function), expected in zip(turns, fresh, strict=True):
        options = {}
        if given != "no out":
            memory = np.full((*expected.shape, 2), 7, np.float32)
            options["out"] = memory[..., 0] if given == "strided out" else memory[..., 0].copy()
        result = function(*arrays, **options)
        oracle.assert_same_bits(result, expected)
        if options:
            assert result is options["out"]
            assert (memory[..., 1] == 7).all()
    # A plan that reads or writes a copy is for one call.
    assert len(kept) == ("copied" not in name)


@pytest.fixture
def planned(monkeypatch):
    """The calls that were planned, and handed over to be kept."""
    planned, keep = [], memory.keep
    monkeypatch.setattr(memory, "keep", lambda *call: (planned.append(call), keep(*call)))
    return planned


@pytest.mark.parametrize("name", [name for name in CALLS if "copied" not in name])
@pytest.mark.parametrize("given", ["no out", "out"])
def test_a_repeated_call_is_not_planned_again(name, given, seed, planned):
    arrays, function = CALLS[name](np.random.default_rng(seed))
    expected = function(*arrays)
    options = {} if given == "no out" else {"out": np.empty_like(expected)}
    function(*arrays, **options)
    del planned[:]
    oracle.assert_same_bits(function(*arrays, **options), expected)
    assert not planned


@pytest.mark.parametrize("name", CALLS)
def test_kept_calls_hold_no_array(name, seed, kept):
    arrays, function = CALLS[name](np.random.default_rng(seed))
    seen = [weakref.ref(array) for array in arrays]
    function(*arrays)
    del arrays
    gc.collect()
    assert not any(array() is not None for array in seen)


def test_an_out_that_overlaps_is_seen_each_time(seed, kept):
    rng = np.random.default_rng(seed)
    # Longer than the rows that are read sixteen at a time before any is written.
    memory = _draw(rng, 12, 300)
    x = memory[:5]
    apart = fastattn.softmax(x)
    for out in (np.empty_like(x), memory[6:11], memory[2:7]):
        memory[:] = _draw(np.random.default_rng(seed), 12, 300)
        assert fastattn.softmax(x, out=out) is out
        oracle.assert_same_bits(out, apart)
    memory[:] = _draw(np.random.default_rng(seed), 12, 300)
    for turn in range(2):
        y = x.copy()
        assert fastattn.softmax(y, out=y) is y
        oracle.assert_same_bits(y, apart, about=turn)
    key = _draw(rng, 5, 5)
    expected = fastattn.similarity(x[:, :5].copy(), key)
    for out in (np.empty((5, 5), np.float32), key):
        oracle.assert_same_bits(fastattn.similarity(x[:, :5].copy(), key, out=out), expected)


def test_what_would_fail_anew_fails_again(seed, kept):
    x = _draw(np.random.default_rng(seed), 5, 7)
    out = np.empty_like(x)
    fastattn.softmax(x, 1)
    fastattn.softmax(x, out=out)
    fastattn.similarity(x, x)
    for call, error in (
        (lambda: fastattn.softmax(x, 1.0), TypeError),
        (lambda: fastattn.softmax(x, scale=True), TypeError),
        (lambda: fastattn.softmax(np.ma.array(x)), TypeError),
        (lambda: fastattn.softmax(x, threads=True), TypeError),
        (lambda: fastattn.softmax(x, backend="none"), ValueError),
        (lambda: fastattn.similarity(x, x, metric=np.str_("cosine")), ValueError),
    ):
        with pytest.raises(error):
            call()
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        fastattn.softmax(x, out=out)


def test_as_many_are_kept_as_said_and_threads_may_share_them(seed, kept):
    kept = type(kept)(4)
    memory.use(kept)
    rng = np.random.default_rng(seed)
    arrays = [_draw(rng, rows, 9) for rows in (*range(1, 9), *range(1, 9))]
    expected = [fastattn.softmax(x) for x in arrays]
    assert len(kept) <= 4
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(fastattn.softmax, arrays * 20), expected * 20, strict=True):
            oracle.assert_same_bits(one, other)


def test_calls_are_found_whatever_object_describes_a_dtype(seed, planned):
    """Of other byte orders every array has an object of its own."""
    x = _draw(np.random.default_rng(seed), 6, 9)
    swapped = [np.frombuffer(x.astype(">f4").tobytes(), ">f4").reshape(x.shape) for _ in range(5)]
    assert swapped[0].dtype is not swapped[1].dtype
    for one in swapped:
        oracle.assert_same_bits(fastattn.softmax(one), fastattn.softmax(x))
    assert len(planned) == 2


def test_many_strides_and_scales_are_told_apart(seed, kept):
    memory = _draw(np.random.default_rng(seed), 5000)
    for step in range(8, 200):
        view = np.lib.stride_tricks.as_strided(memory, (4, 8), (4 * step, 4))
        for scale in (0.5, 0.25):
            expected = fastattn.softmax(view.copy(), scale=scale)
            oracle.assert_same_bits(fastattn.softmax(view, scale=scale), expected)
    query = _draw(np.random.default_rng(seed), 3, 2, 8)
    for turn in range(2):
        for n in range(30):
            scale = np.array([n / 7, 1.0, 2.0])
            one = fastattn.similarity(query, query, scale=scale)
            other = fastattn.similarity(query[0], query[0], scale=n / 7)
            oracle.assert_same_bits(one[0], other, about=(turn, n))


def test_lists_are_repeated_too(planned):
    for _ in range(2):
        fastattn.softmax([1.0, 2.0])
        fastattn.similarity([[1.0, 2.0]], [[1.0, 2.0]])
        fastattn.fuse([0.5, 0.5], [[1.0], [2.0]])
    assert len(planned) == 3


def test_no_more_are_kept_than_there_is_room_for(kept):
    kept = type(kept)(5000)
    memory.use(kept)
    x = np.ones(2200, np.float32)  # more than the compiled module has places for
    for size in range(1, 2200):
        fastattn.logsumexp(x[:size])
    assert 0 < len(kept) <= 5000
