"""Whatever takes an array takes one of any library that speaks DLPack, with the same bits."""

import inspect

import numpy as np
import pytest
from foreign import Exported

import fastattn
from fastattn import KVCache, MultiHeadAttention

RNG = np.random.default_rng(3)


def draw(*shape):
    return RNG.standard_normal(shape, dtype=np.float32)


QUERY, KEY, VALUE = draw(2, 4, 5, 8), draw(2, 2, 7, 8), draw(2, 2, 7, 4)
ROWS, SPLITS = draw(7, 8), np.array([0, 3, 7])
X, WEIGHT = draw(3, 5, 8), draw(6, 8)
SHARES = np.abs(draw(3, 4))
MODULE = MultiHeadAttention(8, 2, seed=0)


def filled():
    cache = KVCache(2, 2, 8, value_dim=4)
    cache.append(KEY, VALUE)
    return cache


def appended(**arrays):
    cache = filled()
    cache.append(**arrays)
    return cache.dense()


def changed(lengths, indices):
    cache = filled()
    cache.truncate(lengths)
    cache.reorder(indices)
    return cache.dense()


OPERANDS = {"query": QUERY, "key": KEY, "value": VALUE}
VISIBLE = {
    "mask": RNG.random((5, 7)) < 0.8,
    "key_lengths": np.array([[7], [4]]),
    "query_offset": np.array([[2], [1]]),
    "query_segments": np.array([0, 0, 0, 1, 1]),
    "key_segments": np.array([0, 0, 0, 0, 1, 1, 1]),
}
PER_HEAD = {"scale": np.full((1, 4), 0.3), "alibi_slopes": np.ones(4) / 8}
SINKS = {"sinks": np.zeros(4)}
# Calls by name, and the arrays that each gets.
CALLS = {
    "attention": (
        lambda **a: fastattn.attention(**a, causal=True, enable_gqa=True, return_weights=True),
        OPERANDS | VISIBLE | PER_HEAD | SINKS,
    ),
    "explain": (
        lambda **a: fastattn.explain(**a, enable_gqa=True).problem.query,
        OPERANDS | PER_HEAD,
    ),
    "attention_state": (
        lambda sinks, **a: fastattn.attention_state(**a, causal=True, enable_gqa=True).finish(
            sinks
        ),
        OPERANDS | VISIBLE | PER_HEAD | SINKS,
    ),
    "attention_varlen": (
        fastattn.attention_varlen,
        {
            "query": ROWS,
            "key": ROWS,
            "value": ROWS,
            "query_splits": SPLITS,
            "key_splits": SPLITS,
            "key_indices": np.arange(7)[::-1].copy(),
            "query_offset": np.array([0, 1]),
            "query_segments": np.arange(7) // 5,
            "key_segments": np.arange(7) // 5,
        },
    ),
    "merge_states": (fastattn.merge_states, {"outputs": X, "lses": X[..., 0]}),
    "KVCache.append": (appended, {"key": KEY, "value": VALUE, "lengths": np.array([7, 2])}),
    "KVCache.attend": (
        lambda **a: filled().attend(**a, causal=True),
        {k: x for k, x in (VISIBLE | PER_HEAD | SINKS).items() if k != "key_lengths"}
        | {"query": QUERY},
    ),
    "KVCache.truncate": (changed, {"lengths": np.array([3, 5]), "indices": np.array([1, 0])}),
    "similarity": (
        lambda **a: fastattn.similarity(**a, metric="euclidean"),
        {"query": X, "key": X, "scale": np.array([0.5, 1.0, 2.0])},
    ),
    "softmax": (fastattn.softmax, {"x": X, "mask": X[0] > -1}),
    "log_softmax": (fastattn.log_softmax, {"x": X, "mask": X[0] > -1}),
    "logsumexp": (fastattn.logsumexp, {"x": X, "mask": X[0] > -1, "b": X[1]}),
    "fuse": (fastattn.fuse, {"weights": X, "value": draw(3, 8, 4)}),
    "linear": (fastattn.linear, {"x": X, "weight": WEIGHT, "bias": WEIGHT[:, 0].copy()}),
    "pack_linear": (
        lambda weight: fastattn.linear(X, fastattn.pack_linear(weight)),
        {"weight": WEIGHT},
    ),
    "allocate": (
        fastattn.allocate,
        {
            "weights": SHARES,
            "budget": np.array([4.0, 5.0, 6.0]),
            "lower": SHARES / 9,
            "upper": SHARES + 5,
            "where": SHARES > 0.01,
        },
    ),
    "allocate_shared": (
        lambda **a: fastattn.allocate_shared(**a).allocation,
        {"weights": SHARES, "budgets": np.ones(3), "capacities": np.full(4, 0.8)},
    ),
    "attention_allocation": (
        lambda **a: fastattn.attention_allocation(**a).output,
        {"query": X[0], "key": ROWS, "value": ROWS, "budget": np.full(5, 3.0)}
        | {k: VISIBLE[k] for k in ("mask", "query_segments", "key_segments")}
        | {"upper": np.full((5, 7), 2.0), "lower": np.zeros((5, 7))},
    ),
    "MultiHeadAttention": (
        MODULE,
        {
            "query": X,
            "key": X,
            "value": X,
            "mask": X[0, :, :5] > -1,
            "key_lengths": np.array([5, 4, 3]),
        },
    ),
    "MultiHeadAttention.from_state_dict": (
        lambda **state: MultiHeadAttention.from_state_dict(
            {name.replace("__", "."): x for name, x in state.items()}, 2
        )(X),
        {name.replace(".", "__"): x.copy() for name, x in MODULE.state_dict().items()},
    ),
    "MultiHeadAttention.from_arrays": (
        lambda **a: MultiHeadAttention.from_arrays(2, **a)(X),
        {f"{name}_weight": draw(8, 8) for name in ("query", "key", "value", "output")}
        | {f"{name}_bias": draw(8) for name in ("query", "key", "value", "output")},
    ),
}


def same(one, other):
    if isinstance(one, tuple):
        return all(same(*pair) for pair in zip(one, other, strict=True))
    return np.array_equal(one, other, equal_nan=True) and one.dtype == other.dtype


@pytest.mark.parametrize("name", CALLS)
def test_every_array_may_be_one_of_another_library(name):
    call, arrays = CALLS[name]
    expected = call(**arrays)
    assert same(call(**{key: Exported(x) for key, x in arrays.items()}), expected)


def test_every_argument_that_may_be_an_array_is_among_them():
    for name in fastattn.__all__:
        function = getattr(fastattn, name)
        if not callable(function) or inspect.isclass(function):
            continue
        wanted = {
            argument
            for argument, x in inspect.signature(function).parameters.items()
            if "ArrayLike" in str(x.annotation)
        }
        given = set(CALLS[name][1]) if name in CALLS else set()
        if name in ("explain", "attention_allocation", "attention_varlen"):
            # What they share with attention goes the same way.
            given |= set(CALLS["attention"][1])
        assert wanted <= given, (name, wanted - given)
