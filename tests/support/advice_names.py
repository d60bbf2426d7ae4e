"""Arguments by the names that other libraries give them: the answer says what they are here."""

from advice_wrong import OPERANDS, Wrong, X, attend, ragged

from fastattn._core import names

# What somebody passes under the names of other libraries, and where there is such a name.
ELSEWHERE = {
    "is_causal": "True",
    "attn_mask": "np.ones((5, 7), bool)",
    "attention_mask": "[[1] * 7, [1] * 6 + [0]]",
    "attn_bias": "np.full((5, 7), 0.5)",
    "bias": "np.full((5, 7), 0.5)",
    "key_padding_mask": "[[False] * 7, [False] * 6 + [True]]",
    "need_weights": "True",
    "return_attn_probs": "True",
    "average_attn_weights": "True",
    "softmax_scale": "0.5",
    "scale_factor": "0.5",
    "sm_scale": "0.5",
    "temperature": "2.0",
    "logits_soft_cap": "30.0",
    "window_size": "(-1, 0)",
    "local_window_size": "(2, 0)",
    "cache_seqlens": "np.array([[3], [4]])",
    "key_value_seq_lengths": "np.array([[3], [4]])",
    "s_aux": "np.zeros(3)",
    "metric": "'cosine'",
    "similarity": "'cosine'",
    "dim": "-1",
    "keepdim": "True",
    "where": "np.ones((3, 4), bool)",
    "dtype": "np.float64",
}
_CALLS = {
    "mask": ("attention(query, key, value", OPERANDS),
    "return_weights": ("attention(query, key, value", OPERANDS),
    "average_weights": (
        "MultiHeadAttention(4, 2, seed=0)(query",
        {"query": "np.ones((5, 4), np.float32)"},
    ),
    "metric": ("fastattn.similarity(query, key", OPERANDS),
    "axis": ("softmax(x", X),
    "keepdims": ("logsumexp(x", X),
    "x": ("softmax(x", X),
}


def elsewhere(name: str) -> Wrong:
    """A call with an argument by a name that another library gives it."""
    needed, _ = names._ELSEWHERE[name]
    start, variables = _CALLS.get((needed or ("mask",))[0], _CALLS["mask"])
    if name == "where":
        start, variables = _CALLS["x"]
    # Free of a variable of the same name, which the call would not have.
    variables = {key: x for key, x in variables.items() if key != name} | {name: ELSEWHERE[name]}
    return Wrong(f"{start}, {name}={name})", variables)


BY_OTHER_NAMES = {
    **{
        f"as {name}": elsewhere(name)
        for name, (_, text) in names._ELSEWHERE.items()
        if "`" in text and name in ELSEWHERE
    },
    "splits of FlashAttention": ragged(
        ", cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k",
        cu_seqlens_q="[0, 3, 6]",
        cu_seqlens_k="[0, 4, 9]",
        into="",
    ),
    "splits of one call of FlashAttention": ragged(
        ", cu_seqlens=cu_seqlens",
        cu_seqlens="[0, 3, 6]",
        into="",
        key="np.ones((6, 8))",
        value="np.ones((6, 4))",
    ),
    "queries of FlashAttention": Wrong(
        "attention(q=q, key=key, value=value)", OPERANDS | {"q": OPERANDS["query"]}
    ),
    "keys of FlashAttention": Wrong(
        "attention(query, k=k, value=value)", OPERANDS | {"k": OPERANDS["key"]}
    ),
    "values of FlashAttention": Wrong(
        "attention(query, key, v=v)", OPERANDS | {"v": OPERANDS["value"]}
    ),
    "an input of PyTorch": Wrong("softmax(input=input)", {"input": X["x"]}),
    "heads of a cache": Wrong(
        "KVCache(batch, heads, features, num_heads=num_heads)",
        {"batch": "1", "heads": "2", "features": "4", "num_heads": "2"},
        into="",
    ),
    "one window for both sides": attend(
        ", local_window_size=local_window_size", local_window_size="3"
    ),
}
