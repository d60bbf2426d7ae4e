"""The attention function that models call, and its registration."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

import fastattn
from fastattn.bridges.torch.operators import GRADIENT
from fastattn.bridges.torch.tensors import FLOATS, array_of, records_gradient
from fastattn.bridges.torch.threads import run
from fastattn.bridges.transformers.biases import describe_biases_of
from fastattn.bridges.transformers.deferred import Deferred
from fastattn.bridges.transformers.masks import Visibility, mask_of

__all__ = ["NAME", "Row", "attend", "register", "row"]

NAME = "fastattn"
# What else changes a result: which keys are seen, and sinks of each token. The others that models
# pass on say again what masks say (windows, positions, lengths), or are not about attention.
_CHANGING = ("indices", "block_indices", "sinks")


@dataclass
class Row:
    """Texts end to end: where they begin and end, and how often a layer attended within them."""

    splits: np.ndarray
    attended: int = 0


# The packed row at hand; None: rows are not packed.
row: ContextVar[Row | None] = ContextVar("row", default=None)


def register() -> None:
    """Make ``attn_implementation="fastattn"`` known to Transformers.

    Examples
    --------
    With Transformers installed::

        fastattn.bridges.transformers.register()
        model = AutoModel.from_pretrained(name, attn_implementation="fastattn")
        model.set_attn_implementation("fastattn")       # or later
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, mask_of)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    output_attentions: bool = False,
    **others: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Attend from (batch, H, L, E) to (batch, Hkv, S, E); returns (batch, L, H, Ev).

    The arguments are those by which Transformers calls its own functions ("sdpa", "eager").
    """
    _refuse(query, key, value, dropout, position_bias)
    unknown = [name for name in _CHANGING if others.get(name) is not None]
    if unknown:
        raise ValueError(
            f"{type(module).__name__} attends by {unknown}, of which nothing is known here: "
            "`model.set_attn_implementation('eager')`"
        )
    if position_bias is not None:
        describe_biases_of(type(module), NAME)
    options: dict[str, Any] = {"scale": scaling, "softcap": softcap}
    if s_aux is not None:
        options["sinks"] = array_of(s_aux)
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    packed = row.get()
    if packed is not None:
        packed.attended += 1
        options |= _within_texts(attention_mask, position_bias, is_causal and query.shape[2] > 1)
        return _attend_packed(query, key, value, packed.splits, options), None
    options |= _seen(query, key, attention_mask, position_bias, is_causal)
    weights = bool(output_attentions)
    output = query.new_empty((query.shape[0], query.shape[2], query.shape[1], value.shape[-1]))
    filled = array_of(output.transpose(1, 2))
    given = {**options, "return_weights": weights}
    if not isinstance(key, Deferred):
        given["enable_gqa"] = query.shape[1] != key.shape[1]
        operands = array_of(query), array_of(key), array_of(value)
        results = run(fastattn.attention, *operands, out=filled, **given)
    elif key.meaning.dtype == filled.dtype:
        results = run(key.meaning.attend, array_of(query), out=filled, **given)
    else:  # stored in another type, to which the result may be promoted
        results = run(key.meaning.attend, array_of(query), **given)
        filled[...] = results[0] if weights else results
    return output, torch.from_numpy(results[1]).to(query.dtype) if weights else None


def _refuse(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    position_bias: torch.Tensor | None,
) -> None:
    if dropout:
        raise ValueError(f"nothing is dropped here, and dropout is {dropout}: call `model.eval()`")
    if not query.is_cpu:
        raise TypeError(f"query is on the device {query.device}: fastattn computes on the CPU")
    if query.dtype not in FLOATS:
        raise TypeError(f"query has dtype {query.dtype}: one of {FLOATS} is needed")
    if records_gradient(query, key, value, position_bias):
        raise RuntimeError(GRADIENT)


def _seen(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    position_bias: torch.Tensor | None,
    is_causal: bool,
) -> dict[str, Any]:
    """Say by options of `fastattn.attention` what a model's mask and bias say."""
    cached = isinstance(key, Deferred)
    rows, keys = query.shape[2], key.shape[2]
    options: dict[str, Any] = {"causal": False}
    if isinstance(mask, Deferred):
        seen: Visibility = mask.meaning
        options = seen.options(lengths_as_ids=cached)
        if cached and options.get("query_offset") == keys - rows and seen.causal:
            # As `KVCache` says it itself, so that a step is planned once a page.
            del options["query_offset"]
            options["causal"] = "bottom_right"
        mask = None
    elif mask is None and is_causal and rows > 1:
        # As "sdpa" has it: keys behind the queries are those of an unfilled static cache.
        options["causal"] = "top_left"
    if mask is not None:
        options["mask"] = mask[..., :keys]
    if mask is None and isinstance(position_bias, Deferred):
        options["mask"] = position_bias.meaning
    elif position_bias is not None:
        bias = position_bias.to(query.dtype)
        if mask is not None:
            own = options["mask"]
            bias = torch.where(own, bias, -torch.inf) if own.dtype is torch.bool else bias + own
        options["mask"] = bias
    if isinstance(options.get("mask"), torch.Tensor):
        options["mask"] = array_of(options["mask"])
    return options


def _within_texts(
    mask: torch.Tensor | None, position_bias: torch.Tensor | None, is_causal: bool
) -> dict[str, Any]:
    """Say what a model's mask says of each text of a packed row."""
    if position_bias is not None:
        raise ValueError("biases by position are not packed: pad these texts")
    if mask is None:
        return {"causal": is_causal}
    seen = mask.meaning if isinstance(mask, Deferred) else None
    if seen is None or seen.lengths is not None or len(seen.ids) != seen.documents:
        raise ValueError(
            "this model's mask is more than causal and a window, and is not packed: pad these texts"
        )
    window = None if (seen.left, seen.right) == (None, None) else (seen.left, seen.right)
    return {"causal": seen.causal, "window": window}


def _attend_packed(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    splits: np.ndarray,
    options: dict[str, Any],
) -> torch.Tensor:
    """Attend within the texts of one row: (1, H, total, E) to (1, total, H, Ev)."""
    output = query.new_empty((1, query.shape[2], query.shape[1], value.shape[-1]))
    operands = (array_of(x)[0].swapaxes(0, 1) for x in (query, key, value))
    if options.get("causal"):
        options["causal"] = "top_left"
    run(
        fastattn.attention_varlen,
        *operands,
        splits,
        splits,
        enable_gqa=query.shape[1] != key.shape[1],
        out=array_of(output)[0],
        **options,
    )
    return output
