"""`scaled_dot_product_attention` with torch's signature, by torch's rules."""

from __future__ import annotations

import torch

from fastattn.bridges.torch import operators
from fastattn.bridges.torch.maps import refusal
from fastattn.bridges.torch.tensors import (
    FLOATS,
    broadcast,
    is_readable,
    records_gradient,
    why_unreadable,
)

__all__ = ["scaled_dot_product_attention", "why_not_attention"]


def why_not_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[str, str] | None:
    """Say why a call is left to torch, in a word and in a sentence; None: it is not."""
    if dropout_p != 0.0:
        return "dropout", f"dropout_p is {dropout_p}, and nothing is dropped here: pass 0.0"
    if not (is_readable(query) and is_readable(key) and is_readable(value)):
        named = (("query", query), ("key", key), ("value", value))
        return next(why_unreadable(*one) for one in named if not is_readable(one[1]))
    if not (query.dtype is key.dtype is value.dtype and query.dtype in FLOATS):
        return "dtype", (
            f"query, key and value have dtypes {query.dtype}, {key.dtype}, {value.dtype}: one of "
            f"{FLOATS} is needed, the same for all"
        )
    if records_gradient(query, key, value, attn_mask):
        return "gradient", operators.GRADIENT
    if scale is not None and not abs(scale) < float("inf"):
        return "scale", f"scale is {scale}, and must be finite"
    if attn_mask is not None:
        if not is_readable(attn_mask):
            return why_unreadable("attn_mask", attn_mask)
        if is_causal:
            return "mask with is_causal", (
                "attn_mask and is_causal are given, and torch takes one of them: pass "
                "`attn_mask.tril()` of a bool mask alone"
            )
        if attn_mask.dtype not in (torch.bool, torch.float32, query.dtype):
            return "dtype", (
                f"attn_mask has dtype {attn_mask.dtype}: bool, float32 or {query.dtype} is needed"
            )
    return _why_not_shapes(query, key, value, attn_mask, enable_gqa)


def _why_not_shapes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    enable_gqa: bool,
) -> tuple[str, str] | None:
    alike = query.shape == key.shape == value.shape
    if alike and mask is None and query.dim() >= 2 + enable_gqa:
        return None
    shown = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if min(query.dim(), key.dim(), value.dim()) < 2 + enable_gqa:
        return "shapes", f"too few dims: {shown}"
    if query.shape[-1] != key.shape[-1]:
        return "shapes", f"query and key differ in features: {shown}"
    if key.shape[-2] != value.shape[-2]:
        return "shapes", f"there is one value for each key: {shown}"
    batch = query.shape[:-2]
    for given in (key.shape[:-2], value.shape[:-2]):
        if enable_gqa:
            if given[-1] == 0 or query.shape[-3] % given[-1] != 0:
                return "shapes", f"query heads are no multiple of key heads: {shown}"
            if key.shape[-3] != value.shape[-3]:
                return "shapes", f"key and value differ in heads: {shown}"
            given = (*given[:-1], 1)
        batch = broadcast(batch, given)
        if batch is None:
            return "shapes", f"batch dims do not broadcast: {shown}"
    if mask is not None:
        scores = (*batch, query.shape[-2], key.shape[-2])
        if mask.dim() < 2:
            return "shapes", (
                f"attn_mask of shape {tuple(mask.shape)} has not both axes, queries and keys: pass "
                "`attn_mask.expand(query.shape[-2], -1)`"
            )
        if broadcast(scores, mask.shape) != scores:
            return "shapes", (
                f"attn_mask of shape {tuple(mask.shape)} does not broadcast to the scores {scores}"
            )
    return None


def scaled_dot_product_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attend, as `torch.nn.functional.scaled_dot_product_attention` does.

    Parameters
    ----------
    query : Tensor, (..., H, L, E)
        float32, float64, float16 or bfloat16, on the CPU, any strides.
    key : Tensor, (..., Hkv, S, E)
        Of the dtype of query.
    value : Tensor, (..., Hkv, S, Ev)
        Of the dtype of query.
    attn_mask : Tensor, broadcasts to (..., H, L, S), optional
        bool: True where a query may attend; float: added to the scores.
    dropout_p : float
        0.0: nothing is dropped here.
    is_causal : bool
        Key j is visible to query i iff ``j <= i``, also where L and S differ. Not with `attn_mask`.
    scale : float, optional
        None: ``1 / sqrt(E)``.
    enable_gqa : bool
        H is a multiple of Hkv, and query head h reads key head ``h // (H // Hkv)``.

    Returns
    -------
    output : Tensor, (..., H, L, Ev)
        Of the dtype of query, laid out in memory as query is. A row that may attend to nothing is
        0, as torch's is.

    Raises
    ------
    RuntimeError
        If a gradient would be recorded.
    TypeError
        If a tensor is on another device, or its dtype or layout is another.
    ValueError
        If shapes do not fit, something would be dropped, or a mask comes with `is_causal`.
    """
    why = why_not_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if why is not None:
        raise refusal(*why)
    return operators.attention(query, key, value, attn_mask, is_causal, scale, enable_gqa)
