"""Linear maps of tensors, each row with the bits it has alone."""

from __future__ import annotations

import torch

from fastattn.bridges.torch import operators
from fastattn.bridges.torch.tensors import FLOATS, is_readable, records_gradient, why_unreadable

__all__ = ["linear", "why_not_linear"]


def why_not_linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[str, str] | None:
    """Say why a linear map is left to torch, in a word and in a sentence; None: it is not."""
    for name, tensor in (("input", input), ("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if not is_readable(tensor):
            return why_unreadable(name, tensor)
        if tensor.dtype not in FLOATS or tensor.dtype is not input.dtype:
            return "dtype", (
                f"{name} has dtype {tensor.dtype} and input {input.dtype}: one float type is needed"
            )
    if records_gradient(input, weight, bias):
        return "gradient", operators.GRADIENT
    if weight.dim() != 2 or input.dim() < 1 or input.shape[-1] != weight.shape[1]:
        return "shapes", (
            f"input {tuple(input.shape)} and weight {tuple(weight.shape)} do not fit: input is "
            "(..., K), weight (N, K)"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        return "shapes", f"bias {tuple(bias.shape)} is not (N,), weight is {tuple(weight.shape)}"
    return None


def linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Apply a linear map to every row, ``input @ weight.T + bias``, as torch's function does.

    Parameters
    ----------
    input : Tensor, (..., K)
        Rows of K features; float32, float64, float16 or bfloat16, on the CPU, any strides.
    weight : Tensor, (N, K)
        Within `batch_invariant`, a `torch.nn.Parameter` is packed at its first use and kept packed.
    bias : Tensor, (N,), optional
        What is added to each output.

    Returns
    -------
    output : Tensor, (..., N)
        Of the dtype of input. A row of it is a function of that row of input, of weight and bias.

    Raises
    ------
    RuntimeError
        If a gradient would be recorded.
    TypeError
        If a tensor is on another device, or its dtype or layout is another.
    ValueError
        If shapes do not fit.
    """
    why = why_not_linear(input, weight, bias)
    if why is not None:
        raise refusal(*why)
    return operators.linear(input, weight, bias)


def refusal(reason: str, text: str) -> Exception:
    """Return the error of a call that is not for fastattn."""
    kinds = {"gradient": RuntimeError, "device": TypeError, "dtype": TypeError, "layout": TypeError}
    return kinds.get(reason, ValueError)(text)
