"""Calls of the stages, of states and of the engine's settings that cannot work."""

import sys
import types

import numpy as np
import pytest
from conftest import AUTOMATIC
from refusals import Call, K, Q, V, call, check, zeros

import fastattn
from fastattn import (
    attention,
    attention_state,
    fuse,
    linear,
    logsumexp,
    merge_states,
    pack_linear,
    similarity,
    softmax,
)

NAN = float("nan")

# name: (call, error, what its text must hold)
CASES = {
    # --- states
    "part unaligned": (
        call(function=attention_state, key_start=1000),
        ValueError,
        ["1000", "multiple of 512", "at 512"],
    ),
    "part negative": (call(function=attention_state, key_start=-512), ValueError, ["-512"]),
    "part fraction": (
        call(function=attention_state, key_start=0.0),
        TypeError,
        ["key_start", "0.0"],
    ),
    "part causal": (
        call(zeros(5, 8), zeros(5, 8), zeros(5, 4), function=attention_state, causal=True),
        ValueError,
        ["L = 5", "S unknown", "query_offset="],
    ),
    "part bottom_right": (
        call(function=attention_state, causal="bottom_right"),
        ValueError,
        ["total number of keys", "key_lengths="],
    ),
    "merge shapes": (
        call(zeros(2, 5, 4), zeros(2, 4), function=merge_states),
        ValueError,
        ["(2, 5, 4)", "(2, 4)", "the same axis"],
    ),
    "merge axis": (
        call(zeros(2, 5, 4), zeros(2, 5), function=merge_states, axis=2),
        ValueError,
        ["axis 2", "(2, 5)"],
    ),
    "merge complex": (
        call(zeros(2, 5, 4, dtype=complex), zeros(2, 5), function=merge_states),
        TypeError,
        ["outputs", "complex128"],
    ),
    # --- the stages
    "similarity metric": (
        call(Q, K, function=similarity, metric="angle"),
        ValueError,
        ["metric 'angle'", "'cosine'"],
    ),
    "similarity E": (
        call(Q, V, function=similarity),
        ValueError,
        ["E = 8", "E = 4", "(2, 3, 7, 4)"],
    ),
    "similarity rank": (
        call(Q, zeros(8), function=similarity),
        ValueError,
        ["too few dims", "(8,)"],
    ),
    "similarity batch": (
        call(Q, zeros(5, 7, 8), function=similarity),
        ValueError,
        ["(2, 3, 5, 8)", "(5, 7, 8)"],
    ),
    "similarity scale": (call(Q, K, function=similarity, scale=NAN), ValueError, ["scale", "nan"]),
    "similarity out": (
        call(Q, K, function=similarity, out=zeros(5, 7)),
        ValueError,
        ["(5, 7)", "(2, 3, 5, 7)"],
    ),
    "softmax axis": (
        call(V, function=softmax, axis=4),
        ValueError,
        ["axis 4", "(2, 3, 7, 4)", "-4"],
    ),
    "softmax axis twice": (
        call(V, function=softmax, axis=(0, -4)),
        ValueError,
        ["twice", "(0, -4)"],
    ),
    "softmax axis kind": (call(V, function=softmax, axis="last"), TypeError, ["'last'"]),
    "softmax axis fraction": (call(V, function=softmax, axis=1.0), TypeError, ["1.0"]),
    "softmax mask": (
        call(V, function=softmax, mask=zeros(3)),
        ValueError,
        ["(3,)", "(2, 3, 7, 4)"],
    ),
    "softmax mask larger": (
        call(zeros(4), function=softmax, mask=zeros(2, 4)),
        ValueError,
        ["(2, 4)", "(4,)"],
    ),
    "softmax scale": (call(V, function=softmax, scale=np.inf), ValueError, ["scale", "inf"]),
    "softmax scale None": (call(V, function=softmax, scale=None), TypeError, ["scale", "None"]),
    "softmax complex": (call(V.astype(complex), function=softmax), TypeError, ["x", "complex128"]),
    "logsumexp out": (
        call(V, function=logsumexp, out=zeros(2, 3, 7, 1)),
        ValueError,
        ["(2, 3, 7, 1)", "(2, 3, 7)"],
    ),
    "linear K": (
        call(zeros(5, 6), zeros(3, 7), function=linear),
        ValueError,
        ["K = 6", "K = 7", "x (5, 6)", "weight (3, 7)", "(N, K)"],
    ),
    "linear turned": (
        call(zeros(5, 6), zeros(6, 7), function=linear),
        ValueError,
        ["K = 6", "K = 7", "`weight.T`"],
    ),
    "linear packed": (
        call(zeros(5, 6), pack_linear(zeros(6, 7)), function=linear),
        ValueError,
        ["K = 6", "K = 7", "weight (6, 7)"],
    ),
    "linear rank": (call(zeros(), zeros(6, 1), function=linear), ValueError, ["too few dims"]),
    "linear weight": (
        call(zeros(5, 6), zeros(6), function=linear),
        ValueError,
        ["weight of shape (6,)", "(N, K)", "`weight[None]`"],
    ),
    "linear weights": (
        call(zeros(5, 6), zeros(2, 3, 6), function=linear),
        ValueError,
        ["weight of shape (2, 3, 6)", "two dims"],
    ),
    "linear bias": (
        call(zeros(5, 6), zeros(3, 6), zeros(5), function=linear),
        ValueError,
        ["(5,)", "(3,)", "per row of weight", "weight (3, 6)"],
    ),
    "linear bias number": (
        call(zeros(5, 6), zeros(3, 6), 1.0, function=linear),
        ValueError,
        ["()", "`np.full(3, bias)`"],
    ),
    "linear bias dims": (
        call(zeros(5, 6), zeros(3, 6), zeros(1, 3), function=linear),
        ValueError,
        ["(1, 3)", "`np.ravel(bias)`"],
    ),
    "linear out": (
        call(zeros(5, 6), zeros(3, 6), function=linear, out=zeros(5, 6)),
        ValueError,
        ["(5, 6)", "(5, 3)"],
    ),
    "linear complex": (
        call(zeros(5, 6), zeros(3, 6, dtype=complex), function=linear),
        TypeError,
        ["weight", "complex128"],
    ),
    "linear objects": (
        call(zeros(5, 6), zeros(3, 6), np.array([None] * 3), function=linear),
        TypeError,
        ["bias", "objects"],
    ),
    "linear input": (
        call(zeros(5, 6), zeros(3, 6), function=linear, input=1),
        TypeError,
        ["'input'", "`x=input`"],
    ),
    "pack rank": (
        call(zeros(6), function=pack_linear),
        ValueError,
        ["(6,)", "`weight[None]`"],
    ),
    "pack complex": (
        call(zeros(3, 6, dtype=complex), function=pack_linear),
        TypeError,
        ["weight", "complex128"],
    ),
    "pack axis": (call(zeros(3, 6), function=pack_linear, axis=1), TypeError, ["'axis'", "weight"]),
    "fuse S": (call(zeros(5, 6), V, function=fuse), ValueError, ["S = 6", "S = 7", "(5, 6)"]),
    "fuse rank": (
        call(zeros(7), zeros(7), function=fuse),
        ValueError,
        ["too few dims", "np.asarray(value)[:, None]"],
    ),
    "fuse batch": (
        call(zeros(5, 3, 9, 7), V, function=fuse),
        ValueError,
        ["(5, 3, 9, 7)", "(2, 3, 7, 4)"],
    ),
    "fuse out": (
        call(zeros(5, 7), zeros(7, 4), function=fuse, reduce=False, out=zeros(5, 4)),
        ValueError,
        ["(5, 4)", "(5, 7, 4)"],
    ),
    # --- the machine
    "use_backend": (
        Call(lambda: fastattn.use_backend("opencl").__enter__(), (), {}),
        ValueError,
        ["use_backend", "'opencl'"],
    ),
    "set_threads": (Call(fastattn.set_threads, (0,), {}), ValueError, ["threads", "0"]),
    "threads": (
        Call(lambda: fastattn.threads(0).__enter__(), (), {}),
        ValueError,
        ["threads", "0"],
    ),
    "share_threads": (Call(fastattn.share_threads, (2,), {}), TypeError, ["share", "2"]),
    "show_config": (Call(fastattn.show_config, ("xml",), {}), ValueError, ["'xml'", '"dicts"']),
}


@pytest.mark.parametrize("name", CASES)
def test_error_says_what_and_the_way_out(name):
    check(*CASES[name])


def test_states_that_do_not_belong_together():
    def state(stop, start=0, **options):
        part = zeros(stop - start, 8), zeros(stop - start, options.pop("values", 4))
        return attention_state(zeros(5, 8), *part, key_start=start, **options)

    left = state(512)
    for right, fragments in (
        (state(1536, 1024), ["1024..1536", "0..512", "in order"]),
        (left, ["0..512"]),
        (state(1024, 512, values=3), ["output_shape", "(5, 4)", "(5, 3)"]),
        (state(1024, 512, scale=2.0), ["scale", "2.0"]),
        (state(1024, 512, softcap=2.0), ["softcap", "None"]),
        (state(1024, 512, causal="top_left"), ["causal", "False", "True"]),
        (state(1024, 512, window=(3, None)), ["window", "(None, None)", "(3, None)"]),
        (
            state(1024, 512, similarity="dot", scale=left._recipe.options.scale),
            ["similarity", "scaled_dot"],
        ),
        (state(1024, 512, backend="reference"), [f"'{AUTOMATIC}'", "'reference'", "same backend"]),
    ):
        with pytest.raises(ValueError, match=r"keys|states") as caught:
            left.merge(right)
        assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)
    with pytest.raises(TypeError, match="State"):
        left.merge(left.finish())


def test_states_of_other_slopes_do_not_merge():
    def state(start, slopes):
        part = zeros(4, 512, 8), zeros(4, 512, 4)
        return attention_state(zeros(4, 5, 8), *part, key_start=start, alibi_slopes=slopes)

    slopes = np.array([0.5, 0.25, 0.125, 0.0625])
    left = state(0, slopes)
    for other in (None, slopes[::-1], 0.5, slopes.astype(np.float32) + 1):
        with pytest.raises(ValueError, match=r"alibi_slopes.*0\.0625.*right"):
            left.merge(state(512, other))
        with pytest.raises(ValueError, match=r"alibi_slopes.*0\.0625.*right"):
            state(0, other).merge(state(512, slopes))
    left.merge(state(512, slopes.tolist()))
    slopes *= 2  # those of the left part stay what they were
    with pytest.raises(ValueError, match="alibi_slopes"):
        left.merge(state(512, slopes))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"causal": True, "query_offset": 3}, {"causal": True, "query_offset": 4}),
        ({"causal": True, "query_offset": [[3], [4]]}, {"causal": True, "query_offset": 3}),
        (
            {"causal": "bottom_right", "key_lengths": 600},
            {"causal": "bottom_right", "key_lengths": [[600], [604]]},
        ),
        ({"causal": "top_left"}, {"causal": True, "query_offset": 1}),
        ({"window": (3, 3)}, {"window": (3, 3), "query_offset": -1}),
    ],
)
def test_states_of_queries_that_stand_elsewhere_do_not_merge(ours, theirs):
    def state(start, options):
        part = zeros(2, 2, 512, 8), zeros(2, 2, 512, 4)
        return attention_state(
            zeros(2, 4, 5, 8), *part, key_start=start, enable_gqa=True, **options
        )

    left, right = state(0, ours), state(512, theirs)
    with pytest.raises(ValueError, match=r"query_offset.*left and.*right"):
        left.merge(right)
    left.merge(state(512, ours)).merge(state(1024, ours))
    # Spelled otherwise they are the same; without causal or a window nobody asks.
    same = {"causal": True, "query_offset": np.full((2, 1), 3)}
    state(0, {"causal": True, "query_offset": 3}).merge(state(512, same))
    state(0, {"query_offset": 3}).merge(state(512, {"query_offset": 4}))


def test_states_of_other_dtypes_do_not_merge():
    half = zeros(5, 8, dtype=np.float16)
    left, right = (
        attention_state(half, *[zeros(512, 8, dtype=dtype)] * 2, key_start=start)
        for start, dtype in ((0, np.float16), (512, np.float32))
    )
    with pytest.raises(ValueError, match=r"output_dtype is float16 on the left and float32"):
        left.merge(right)


def test_a_named_backend_that_cannot_is_an_error(monkeypatch):
    backend = types.SimpleNamespace(name="numba", refusal=lambda problem: "the moon is full")
    backends = sys.modules["fastattn._core.backends"]
    monkeypatch.setitem(backends._loaded, "numba", backend)
    monkeypatch.setattr(backends, "_AUTOMATIC", ("numba",))
    for name in (None, "numba"):
        with pytest.raises(ValueError, match=r"numba: the moon is full.*\(2, 3, 1, 5, 8\)"):
            # A scale of its own: calls of a known signature are repeated without being asked again.
            attention(Q, K, V, scale=0.71828, backend=name)
    assert attention(Q, K, V, backend="reference").shape == (2, 3, 5, 4)
