"""A bool where a number is meant is refused, alone or in an array; operands may hold bools."""

import numpy as np
import pytest

import fastattn
from fastattn import MultiHeadAttention
from fastattn._core.options import HEAD, OPTIONS, SEQUENCE

X = np.ones((1, 2, 4, 8), np.float32)
PACKED, SPLITS = np.ones((4, 2, 8), np.float32), [0, 2, 4]
W = np.ones((2, 2))
BOUNDS = [1.0, 1.0]


def attention(**options):
    return fastattn.attention(X, X, X, **options)


def varlen(query_splits=SPLITS, key_splits=SPLITS, **options):
    return fastattn.attention_varlen(PACKED, PACKED, PACKED, query_splits, key_splits, **options)


def state(sinks=None, **options):
    return fastattn.attention_state(X, X, X, **options).finish(sinks)


def cached(method, **options):
    new = np.ones((2, 1, 4, 8), np.float32)
    cache = fastattn.KVCache(2, 1, 8)
    cache.append(new, new)
    first = {"append": (new, new), "attend": (new[:, :, :1],)}.get(method, ())
    return getattr(cache, method)(*first, **options)


def made(batch_shape=2, heads=1, head_dim=8, **options):
    return fastattn.KVCache(batch_shape, heads, head_dim, **options)


def module(embed_dim=8, num_heads=2, **options):
    return MultiHeadAttention(embed_dim, num_heads, seed=0, **options)


def attend_module(**options):
    return module()(np.ones((2, 4, 8), np.float32), **options)


def allocation(budget=5.0, **options):
    return fastattn.allocate(W, budget, on_unspent="keep", **options)


def shared(budgets=BOUNDS, capacities=BOUNDS, **options):
    return fastattn.allocate_shared(W, budgets, capacities, **options)


def full_allocation(**options):
    return fastattn.attention_allocation(X[0, 0], X[0, 0], on_unspent="keep", **options)


def of_scores(function, **options):
    return function(np.ones((2, 2)), **options)


def merged(axis):
    return fastattn.merge_states(np.ones((2, 2, 2)), np.ones((2, 2)), axis=axis)


# A call, and its arguments that are numbers: one *, or arrays of such as well; **, arrays alone.
NUMBERS = [
    (attention, "scale* softcap window query_offset* key_lengths* alibi_slopes* sinks* threads"),
    (varlen, "query_splits** key_splits** scale* softcap query_offset* alibi_slopes* sinks*"),
    (state, "key_start sinks* scale* alibi_slopes*"),
    (lambda **x: cached("attend", **x), "scale* softcap alibi_slopes* sinks* threads"),
    (lambda **x: cached("attend", causal=True, **x), "query_offset*"),
    (lambda **x: cached("append", **x), "lengths*"),
    (lambda **x: cached("truncate", **x), "lengths*"),
    (lambda **x: cached("reorder", **x), "indices**"),
    (made, "batch_shape heads head_dim value_dim"),
    (module, "embed_dim num_heads kdim vdim"),
    (attend_module, "key_lengths* query_offset*"),
    (allocation, "budget* lower* upper* unit axis threads"),
    (full_allocation, "budget* lower* upper* unit scale"),
    (shared, "budgets* capacities* tol max_iter"),
    (lambda **x: of_scores(fastattn.softmax, **x), "scale axis threads"),
    (lambda **x: of_scores(fastattn.log_softmax, **x), "scale axis"),
    (lambda **x: of_scores(fastattn.logsumexp, **x), "scale axis"),
    (lambda **x: fastattn.similarity(X, X, **x), "scale* threads"),
    (lambda **x: fastattn.linear(W, W, **x), "threads"),
    (merged, "axis"),
    (lambda threads: fastattn.set_threads(threads), "threads"),
]
EVERY = [(call, name) for call, names in NUMBERS for name in names.split()]


class Foreign:
    """A bool of another library, as a tensor of no dims is one."""

    dtype = "torch.bool"
    shape = ()
    ndim = 0

    def __float__(self):
        return 1.0

    def __index__(self):
        return 1


ONE = {"True": True, "numpy": np.True_, "0-d": np.array(True), "foreign": Foreign()}


@pytest.mark.parametrize("x", ONE.values(), ids=ONE)
@pytest.mark.parametrize(
    ("call", "name"), [(call, name.strip("*")) for call, name in EVERY if name[-2:] != "**"]
)
def test_a_bool_is_no_number(call, name, x):
    with pytest.raises(TypeError, match=name):
        call(**{name: (x, 1) if name == "window" else x})


@pytest.mark.parametrize(
    ("call", "name"), [(call, name.strip("*")) for call, name in EVERY if name[-1] == "*"]
)
def test_nor_are_some(call, name):
    """Of whatever shape they may have there."""
    said = []
    for shape in ((1,), (2,), (3,), (4,), (1, 2), (2, 1)):
        one = np.ones(shape, object)
        one.flat[-1] = True  # among numbers, beside or below each other
        for x in (np.ones(shape, bool), np.zeros(shape, bool).tolist(), one.tolist()):
            with pytest.raises((TypeError, ValueError)) as caught:
                call(**{name: x})
            said.append(str(caught.value))
    assert any(f"{name} of shape" in text and "dtype bool" in text for text in said), said


@pytest.mark.parametrize("axis", [(True,), (0, True), [False]])
def test_nor_is_one_among_axes(axis):
    for function in (fastattn.softmax, fastattn.log_softmax, fastattn.logsumexp):
        with pytest.raises(TypeError, match="axis must be an int, a tuple of ints or None"):
            function(np.ones((2, 2)), axis)
    with pytest.raises(TypeError, match="axis"):
        fastattn.softmax(1.0, False)


def test_every_option_that_is_a_number_is_among_them():
    numbers = {option.name for option in OPTIONS if option.kind in (HEAD, SEQUENCE)}
    numbers |= {"scale", "softcap", "window", "threads"}
    tried = {name.strip("*") for call, name in EVERY if call is attention}
    assert tried == numbers


def test_operands_may_hold_bools():
    """They compute in float64, as 0 and 1, and so do factors of a sum."""
    x = np.random.default_rng(0).random((2, 2)) < 0.5
    for call in (
        lambda x: fastattn.attention(x, x, x),
        lambda x: fastattn.similarity(x, x, metric="dot"),
        fastattn.softmax,
        lambda x: fastattn.logsumexp(np.ones((2, 2)), b=x),
        lambda x: fastattn.fuse(x, x),
        lambda x: fastattn.allocate(x, 1.0),
    ):
        assert np.array_equal(call(x), call(x.astype(np.float64)))
