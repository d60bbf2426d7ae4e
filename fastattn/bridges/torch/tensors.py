"""Tensors as arrays, without copies: the same memory under another name, both ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

__all__ = [
    "FLOATS",
    "array_of",
    "broadcast",
    "empty_heads",
    "is_readable",
    "records_gradient",
    "why_unreadable",
]

# What products are computed in; each in its own dtype, halves accumulated in float32.
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
# Looked up once: a small call feels it.
_BFLOAT16, _STRIDED = torch.bfloat16, torch.strided
_records = torch.is_grad_enabled


def _brain_float() -> Any:
    """Return NumPy's bfloat16."""
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise TypeError(
            "a tensor holds bfloat16, which NumPy learns from ml_dtypes: `pip install ml_dtypes`"
        ) from None
    return bfloat16


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """Look at the memory of a tensor on the CPU: any strides, and whether or not it has a gradient.

    Writing into the array writes into the tensor.
    """
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype is _BFLOAT16:
        # NumPy refuses it by name: it passes as integers of its size.
        return tensor.view(torch.int16).numpy().view(_brain_float())
    return tensor.numpy()


def is_readable(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is numbers in the memory of the CPU, so many steps apart."""
    return tensor.is_cpu and tensor.layout is _STRIDED and not tensor.is_nested


def why_unreadable(name: str, tensor: torch.Tensor) -> tuple[str, str]:
    """Say in a word and in a sentence why a tensor is not readable."""
    if not tensor.is_cpu:
        return "device", f"{name} is on the device {tensor.device}: pass `{name}.cpu()`"
    return "layout", f"{name} is no strided tensor ({tensor.layout})"


def records_gradient(*tensors: torch.Tensor | None) -> bool:
    """Tell whether torch would record how a result follows from these."""
    if not _records():
        return False
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def empty_heads(query: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Make an output of attention, to be filled: its heads lie as the query's do, as torch's.

    Where they lie side by side, `output.transpose(1, 2).flatten(2)`, what models do next, is free.
    """
    if query.stride(-1) == 1 and query.shape == shape:
        return torch.empty_like(query)
    if len(shape) != 4 or query.dim() != 4 or query.stride(1) >= query.stride(2):
        return query.new_empty(shape)
    batch, heads, rows, features = shape
    return query.new_empty((batch, rows, heads, features)).transpose(1, 2)


def broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """Broadcast two shapes; None where that does not work."""
    if one == other:
        return tuple(one)
    longer = max(len(one), len(other))
    found = []
    for a, b in zip(
        (1,) * (longer - len(one)) + tuple(one),
        (1,) * (longer - len(other)) + tuple(other),
        strict=True,
    ):
        if a != b and a != 1 and b != 1:
            return None
        found.append(b if a == 1 else a)
    return tuple(found)
