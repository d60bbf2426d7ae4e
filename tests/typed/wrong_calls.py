# ruff: noqa: B018
"""Calls that mypy must refuse, each for the reason named: an ignore of nothing is an error too."""

import numpy as np

import fastattn

x = np.zeros((2, 6, 8), np.float32)

# Words that an option has not.
fastattn.attention(x, x, x, similarity="cosin")  # type: ignore[call-overload]
fastattn.attention(x, x, x, causal="left")  # type: ignore[call-overload]
fastattn.attention(x, x, x, backend="cuda")  # type: ignore[call-overload]
fastattn.attention_varlen(x[0], x[0], x[0], [0, 6], [0, 6], similarity="l2")  # type: ignore[call-overload]
fastattn.attention_state(x, x, x, similarity="l2")  # type: ignore[arg-type]
fastattn.attention_allocation(x, x, method="dhont", unit=1)  # type: ignore[arg-type]
fastattn.similarity(x, x, metric="l2")  # type: ignore[arg-type]
fastattn.allocate([1, 2], 3, on_unspent="drop")  # type: ignore[call-overload]
fastattn.allocate([1, 2], 3, unit=1, method="hare")  # type: ignore[call-overload]
fastattn.show_config("json")  # type: ignore[call-overload]
with fastattn.use_backend("torch"):  # type: ignore[arg-type]
    pass

# Arguments by the names of other libraries, or misspelt.
fastattn.attention(x, x, x, is_causal=True)  # type: ignore[call-overload]
fastattn.attention(q=x, k=x, v=x)  # type: ignore[call-overload]
fastattn.explain(x, x, x, attn_mask=None)  # type: ignore[call-arg]
fastattn.softmax(x, dim=-1)  # type: ignore[call-arg]
fastattn.log_softmax(x, thread=1)  # type: ignore[call-arg]
fastattn.logsumexp(x, keepdim=True)  # type: ignore[call-overload]
fastattn.fuse(x, x, dtype=float)  # type: ignore[call-arg]
fastattn.linear(input=x, weight=x)  # type: ignore[call-arg]
fastattn.pack_linear(x[0], dtype=float)  # type: ignore[call-arg]
fastattn.merge_states([x], [x[..., 0]], dim=0)  # type: ignore[call-arg]
fastattn.allocate_shared(x[0], 1, 1, iterations=3)  # type: ignore[call-arg]
fastattn.KVCache(2, 4, 8, num_heads=4)  # type: ignore[call-arg]
fastattn.KVCache(2, 4, 8).append(x, x, length=1)  # type: ignore[call-arg]
fastattn.KVCache(2, 4, 8).attend(x, key_lengths=1)  # type: ignore[call-overload]
fastattn.MultiHeadAttention(8, 2, batch_first=True)  # type: ignore[call-arg]
fastattn.MultiHeadAttention(8, 2)(x, attn_mask=None)  # type: ignore[call-overload]

# What is missing, or of another type.
fastattn.attention(x, x)  # type: ignore[call-overload]
fastattn.attention(x, x, x, threads="all")  # type: ignore[call-overload]
fastattn.attention(x, x, x, window=3)  # type: ignore[call-overload]
fastattn.attention(x, x, x, out=[[0.0]])  # type: ignore[call-overload]
fastattn.attention(x, x, x, scale=lambda score: score)  # type: ignore[call-overload]
fastattn.attention({1: 2}, x, x)  # type: ignore[call-overload]
fastattn.attention(x, fastattn.pack_linear(x[0]), x)  # type: ignore[call-overload]
fastattn.softmax(x, axis=0.5)  # type: ignore[arg-type]
fastattn.KVCache(2, heads="4", head_dim=8)  # type: ignore[arg-type]
fastattn.attention_state(x, x, x, return_lse=True)  # type: ignore[call-arg]
fastattn.set_threads("2")  # type: ignore[arg-type]
fastattn.threads("2")  # type: ignore[arg-type]

# Results that are not what was asked for.
fastattn.attention(x, x, x, return_lse=True).shape  # type: ignore[attr-defined]
first, second, third = fastattn.attention(x, x, x, return_weights=True)  # type: ignore[misc]
fastattn.KVCache(2, 4, 8).attend(x, return_lse=True).sum()  # type: ignore[attr-defined]
fastattn.MultiHeadAttention(8, 2)(x, average_weights=True)  # type: ignore[call-overload]
fastattn.MultiHeadAttention(8, 2)(x, return_weights=True).shape  # type: ignore[attr-defined]
fastattn.allocate([1, 2], 3, on_unspent="keep").sum()  # type: ignore[attr-defined]
fastattn.logsumexp(x, return_sign=True).shape  # type: ignore[attr-defined]
fastattn.show_config()["versions"]  # type: ignore[index]
number: int = fastattn.__version__  # type: ignore[assignment]

# What others make, what is not there, and what cannot be changed.
fastattn.PackedWeight()  # type: ignore[call-arg]
fastattn.State()  # type: ignore[call-arg]
fastattn.atention(x, x, x)  # type: ignore[attr-defined]
fastattn.bridges.torch.pach()  # type: ignore[attr-defined]
fastattn.bridges.transformers.pack(x, batch_tokens="all")  # type: ignore[arg-type]
fastattn.numerics_version = 3  # type: ignore[misc]
fastattn.allocate_shared(x[0], 1, 1).converged = True  # type: ignore[misc]
