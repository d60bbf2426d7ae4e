"""Arguments by the names that other libraries give them: refused in one sentence each.

A public function takes ``**unknown: Never`` and hands what it finds to `refuse`; `closed` keeps it
out of the signature that `help` shows, and ``__init__.pyi`` from what checkers of types see. Who
writes ``q=`` passes no ``query``, and Python would complain of that first: what a function needs is
`MISSING` by default, which whoever reads it refuses (`refuse_missing`). A good call pays for an
empty dict.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

__all__ = ["LACKING", "MISSING", "closed", "refuse", "refuse_missing"]

Function = TypeVar("Function", bound=Callable[..., Any])


class _Missing:
    """What an argument is that a function needs and a call does not pass."""

    def __repr__(self) -> str:
        return "<not passed>"


MISSING: Final = _Missing()

_SCALE = "write `scale={name}`"
_LENGTHS = "write `key_lengths={name}`, over the batch dims"
_NONE_BELOW_0 = "write `window=tuple(None if n < 0 else n for n in {name})`: None is unbounded"
_PACKED = (
    "write `attention_varlen(query, key, value, query_splits, key_splits)`, whose splits are "
    "PyTorch's and FlashAttention's cu_seqlens"
)
_SPLITS = "write `query_splits={}, key_splits={}`"
_AT_INFERENCE = "nothing is dropped at inference: leave it out"
_UNNEEDED = "it is not needed here: leave it out"

# name: (the arguments of which a function must have one for the sentence, or None; the sentence).
# Code in backticks can be pasted; what was passed is there under the name it was passed as.
_ELSEWHERE: dict[str, tuple[tuple[str, ...] | None, str]] = {
    "q": (("query",), "write `query=q`"),
    "k": (("key",), "write `key=k`"),
    "v": (("value",), "write `value=v`"),
    "input": (("x",), "write `x=input`"),
    "is_causal": (
        ("causal",),
        'write `causal="top_left"`, which is what PyTorch means: query row 0 sees key 0 alone',
    ),
    "attn_mask": (
        ("mask",),
        "write `mask=attn_mask`, which means the same: True may attend, floats are added",
    ),
    "attention_mask": (
        ("mask",),
        "of 1 for tokens and 0 for padding, (batch, S), write "
        "`mask=np.asarray(attention_mask)[:, None, None, :].astype(bool)`; floats that "
        "are added, as they are",
    ),
    "attn_bias": (("mask",), "write `mask=attn_bias`: floats are added to the scores"),
    "bias": (("mask",), "write `mask=bias`: floats are added to the scores"),
    "key_padding_mask": (
        ("mask",),
        "write `mask=~np.asarray(key_padding_mask, bool)[:, None, None, :]`: here True may "
        "attend, there it is padding",
    ),
    "need_weights": (("return_weights",), "write `return_weights=need_weights`"),
    "return_attn_probs": (("return_weights",), "write `return_weights=return_attn_probs`"),
    "average_attn_weights": (
        ("average_weights",),
        "write `return_weights=True, average_weights=average_attn_weights`",
    ),
    "dropout_p": (None, _AT_INFERENCE),
    "dropout": (None, _AT_INFERENCE),
    "deterministic": (None, "bits never depend on the run: leave it out"),
    "device": (None, "everything is computed on the CPU: leave it out"),
    "batch_first": (None, "batch dims come first always: leave it out"),
    "softmax_scale": (("scale",), _SCALE),
    "scale_factor": (("scale",), _SCALE),
    "sm_scale": (("scale",), _SCALE),
    "temperature": (("scale",), "write `scale=1 / temperature`"),
    "logits_soft_cap": (("softcap",), "write `softcap=logits_soft_cap`"),
    "window_size": (("window",), _NONE_BELOW_0),
    "local_window_size": (
        ("window",),
        "write `window=tuple(np.broadcast_to(local_window_size, 2).tolist())`, (left, right)",
    ),
    "cache_seqlens": (("key_lengths",), _LENGTHS),
    "key_value_seq_lengths": (("key_lengths",), _LENGTHS),
    "max_seqlen_q": (("query_splits",), _UNNEEDED),
    "max_seqlen_k": (("query_splits",), _UNNEEDED),
    "max_q": (("query_splits",), _UNNEEDED),
    "max_k": (("query_splits",), _UNNEEDED),
    "num_heads": (("heads",), "write `heads=num_heads`"),
    "s_aux": (("sinks",), "write `sinks=s_aux`"),
    "metric": (("similarity",), "write `similarity=metric`"),
    "similarity": (("metric",), "write `metric=similarity`"),
    "eps": (("metric", "similarity"), "a zero vector has cosine 0 by itself: leave it out"),
    "dim": (("axis",), "write `axis=dim`"),
    "keepdim": (("keepdims",), "write `keepdims=keepdim`"),
    "where": (("mask",), "write `mask=where`"),
    "dtype": (
        ("x", "query", "weights"),
        "results have the dtype of the operands: convert these first, `np.asarray({first}, dtype)`",
    ),
}
# Of functions that lack the argument on purpose, by name and argument; `options` adds its own.
LACKING = {
    ("attention_varlen", "attn_mask"): "a mask of one sequence goes into a call of attention",
    ("MultiHeadAttention.__call__", "attn_mask"): "write `mask=~attn_mask`: here True may attend, "
    "in PyTorch's module it may not; floats stay as they are",
    ("attention_varlen", "cu_seqlens"): "write `query_splits=cu_seqlens, key_splits=cu_seqlens`",
    ("attention_varlen", "cu_seqlens_q"): _SPLITS.format("cu_seqlens_q", "cu_seqlens_k"),
    ("attention_varlen", "cu_seqlens_k"): _SPLITS.format("cu_seqlens_q", "cu_seqlens_k"),
    ("attention_varlen", "cu_seq_q"): _SPLITS.format("cu_seq_q", "cu_seq_k"),
    ("attention_varlen", "cu_seq_k"): _SPLITS.format("cu_seq_q", "cu_seq_k"),
}


def closed(function: Function) -> Function:
    """Take ``**unknown`` out of the signature that is shown, and let what is needed be missing.

    The signature shows it as needed. A wrapper that looks at Python's own error would cost a small
    call 0.1 µs.
    """
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    needed = [
        p
        for p in parameters
        if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty and p.name != "self"
    ]
    written: Any = inspect.unwrap(function)
    written.__defaults__ = (*[MISSING] * len(needed), *(written.__defaults__ or ()))
    return function


def refuse_missing(**arguments: Any) -> None:
    """Raise TypeError for the first argument that was not passed."""
    for name, x in arguments.items():
        if x is MISSING:
            raise TypeError(f"{name} is missing: the call needs it")


def refuse(function: Callable[..., Any], unknown: Mapping[str, Any]) -> None:
    """Raise TypeError for the first argument that a function does not have."""
    name = next(iter(unknown))
    known = list(inspect.signature(function).parameters)
    asked = f"{function.__qualname__}() got an unexpected keyword argument {name!r}"
    reason = LACKING.get((function.__qualname__, name))
    if reason is None and name.startswith("cu_seq") and "query_splits" not in known:
        reason = _PACKED
    if reason is None and name in _ELSEWHERE:
        needed, text = _ELSEWHERE[name]
        if needed is None or any(one in known for one in needed):
            first = next(one for one in known if one != "self")
            reason = text.format(name=name, first=first)
    if reason is None:
        from difflib import get_close_matches  # takes a millisecond, which no import should pay

        near = get_close_matches(name, known, 1, 0.75)
        reason = f"is `{near[0]}={name}` meant?" if near else f"it has {', '.join(known)}"
    raise TypeError(f"{asked}: {reason}")
