"""The operators that torch knows by name, so that it can trace, compile and profile them.

``torch.ops.fastattn.attention`` and ``torch.ops.fastattn.linear``: kernels for tensors on the CPU,
and for tensors without memory the shapes, dtypes and strides that the kernels give. Every call
goes by way of torch's dispatcher, which shows it to profilers, tracers and modes, and costs 2 µs.
"""

from __future__ import annotations

from typing import Any

import torch

import fastattn
from fastattn.bridges.torch.counting import note_taken
from fastattn.bridges.torch.packs import owner_of, weight_of
from fastattn.bridges.torch.tensors import array_of, broadcast, empty_heads, records_gradient
from fastattn.bridges.torch.threads import run

__all__ = ["GRADIENT", "attention", "linear"]

_library = torch.library.Library("fastattn", "FRAGMENT")
_library.define(
    "attention(Tensor query, Tensor key, Tensor value, Tensor? mask=None, bool causal=False, "
    "float? scale=None, bool enable_gqa=False) -> Tensor"
)
_library.define("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor")

_records = torch.is_grad_enabled
GRADIENT = (
    "a gradient would be recorded here, and fastattn computes none: call within `torch.no_grad()` "
    "or `torch.inference_mode()`, or pass tensors that are detached"
)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attend, where tensors have memory and no gradient; `causal` counts from the first key."""
    note_taken()
    output = _empty_output(query, key, value, enable_gqa)
    run(
        fastattn.attention,
        array_of(query),
        array_of(key),
        array_of(value),
        mask=None if mask is None else array_of(mask),
        causal="top_left" if causal else False,
        scale=scale,
        enable_gqa=enable_gqa,
        out=array_of(output),
    )
    return output


def _linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Map rows, where tensors have memory and no gradient."""
    note_taken()
    output = input.new_empty((*input.shape[:-1], weight.shape[0]))
    run(
        fastattn.linear,
        array_of(input),
        weight_of(weight, owner_of(weight)),
        None if bias is None else array_of(bias),
        out=array_of(output),
    )
    return output


def _empty_output(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, enable_gqa: bool
) -> torch.Tensor:
    batch: tuple[int, ...] | None = query.shape[:-2]
    for other in (key, value):
        given = other.shape[:-2]
        if given == batch:
            continue
        if enable_gqa:  # heads of the query count
            given = (*given[:-1], 1)
        batch = None if batch is None else broadcast(batch, given)
    if batch is None:
        raise ValueError(
            f"batch dims do not broadcast: query {tuple(query.shape)}, key {tuple(key.shape)}, "
            f"value {tuple(value.shape)}"
        )
    return empty_heads(query, (*batch, query.shape[-2], value.shape[-1]))


def _fake_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    return _empty_output(query, key, value, enable_gqa)


def _fake_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    return input.new_empty((*input.shape[:-1], weight.shape[0]))


def _register(name: str, kernel: Any, fake: Any) -> None:
    def checked(*operands: Any) -> torch.Tensor:
        if _records() and records_gradient(*(x for x in operands if isinstance(x, torch.Tensor))):
            raise RuntimeError(GRADIENT)
        return kernel(*operands)

    _library.impl(name, checked, "CPU")
    torch.library.register_fake(f"fastattn::{name}", fake, lib=_library)


_register("attention", _attention, _fake_attention)
_register("linear", _linear, _fake_linear)

attention = torch.ops.fastattn.attention.default
linear = torch.ops.fastattn.linear.default
