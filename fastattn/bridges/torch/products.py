"""Products of matrices, softmax and convolutions: each element from its row and its column alone.

By weights (Parameters, and views of them) products are those of `fastattn.linear`, all others those
of `fastattn.similarity`: so no bit depends on whether torch makes one product of a batch or many.
A handler takes an operation of torch and its arguments, and returns `NotImplemented` where it does
not do them: the operation then is taken apart, or named if that is not possible.
"""

from __future__ import annotations

from typing import Any

import torch

import fastattn
from fastattn.bridges.torch.counting import note_taken
from fastattn.bridges.torch.packs import owner_of, weight_of
from fastattn.bridges.torch.tensors import FLOATS, array_of, broadcast
from fastattn.bridges.torch.threads import run

__all__ = ["HANDLERS"]

_Arguments = tuple[Any, ...]
_Options = dict[str, Any]


def _product(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    owner: torch.nn.Parameter | None = None,
) -> Any:
    """Multiply (..., M, K) by (K, N), or by (B, K, N) if there are as many dims."""
    tensors = (a, b) if bias is None else (a, b, bias)
    if not all(x.is_cpu and x.dtype is a.dtype and x.layout is torch.strided for x in tensors):
        return NotImplemented
    if a.dtype not in FLOATS or not _fit(a.shape, b.shape, bias):
        return NotImplemented
    note_taken()
    output = a.new_empty((*a.shape[:-1], b.shape[-1]))
    out = array_of(output)
    owner = owner_of(b) if owner is None else owner
    # A matrix for the whole batch is laid out like this, or the only one of a batch of one.
    if owner is not None and (b.dim() == 2 or b.stride(0) == 0 or b.shape[0] == 1):
        weight = weight_of((b if b.dim() == 2 else b[0]).t(), owner)
        run(fastattn.linear, array_of(a), weight, bias if bias is None else array_of(bias), out=out)
        return output
    run(fastattn.similarity, array_of(a), array_of(b.transpose(-1, -2)), metric="dot", out=out)
    return output if bias is None else output.add_(bias)


def _fit(a: torch.Size, b: torch.Size, bias: torch.Tensor | None) -> bool:
    """Tell whether operands fit; where they do not, torch says so."""
    batches = len(b) == 2 or a[:-2] == b[:-2]
    return batches and a[-1] == b[-2] and (bias is None or bias.shape == b[-1:])


def _added(product: Any, added: torch.Tensor, beta: float, alpha: float) -> Any:
    """Return ``beta * added + alpha * product``."""
    if product is NotImplemented:
        return product
    if alpha != 1:
        product.mul_(alpha)
    if beta == 0:
        return product
    return product.add_(added if beta == 1 else added * beta)


def mm(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Multiply two matrices, or two batches of such."""
    return _product(*args, **kwargs)


def addmm(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Add a product of two matrices, or of two batches of such, to something."""
    added, a, b = args
    beta, alpha = kwargs.get("beta", 1), kwargs.get("alpha", 1)
    if beta == alpha == 1 and added.shape == b.shape[-1:]:
        return _product(a, b, added)
    shape = (*a.shape[:-1], b.shape[-1])
    if broadcast(shape, added.shape) != shape:
        return NotImplemented
    return _added(_product(a, b), added, beta, alpha)


def mv(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Multiply a matrix by a vector."""
    matrix, vector = args
    product = _product(matrix, vector[:, None])
    return product if product is NotImplemented else product[:, 0]


def addmv(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Add a product of a matrix and a vector to something."""
    added, *factors = args
    return _added(
        mv(func, tuple(factors), {}), added, kwargs.get("beta", 1), kwargs.get("alpha", 1)
    )


def matmul(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Multiply anything by anything, as it comes in `torch.inference_mode`."""
    a, b = args
    return _product(a, b) if a.dim() > 1 and b.dim() == 2 else NotImplemented


def linear(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Map rows, as it comes in `torch.inference_mode`."""
    input, weight, bias = (*args, None)[:3]
    if input.dim() < 2 or weight.dim() != 2:
        return NotImplemented
    return _product(input, weight.t(), bias, owner_of(weight))


def dot(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Multiply two vectors."""
    one, other = args
    product = _product(one[None], other[:, None])
    return product if product is NotImplemented else product[0, 0]


def softmax(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Normalise along an axis; hidden entries change no bit of the others."""
    x, axis, change = (*args, None)[:3]  # to float32 first, if True; to a dtype, as softmax
    if change or kwargs or not x.is_cpu or x.dtype not in FLOATS or x.layout is not torch.strided:
        return NotImplemented
    if x.dim() == 0:
        return torch.ones_like(x)
    note_taken()
    output = x.new_empty(x.shape)  # side by side however x lies, as torch's
    run(fastattn.softmax, array_of(x), axis, out=array_of(output))
    return output


def convolution(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Convolve: a linear map of patches, laid out side by side."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = args
    dims = weight.dim() - 2
    if transposed or groups != 1 or any(step != 1 for step in dilation) or x.dim() != dims + 2:
        return NotImplemented
    sizes = weight.shape[2:]
    steps, edges = (pair * dims if len(pair) == 1 else pair for pair in (stride, padding))
    if any(edges):
        around = [edge for size in reversed(edges) for edge in (size, size)]
        x = torch.constant_pad_nd(x, around)
    for axis in range(dims):
        x = x.unfold(axis + 2, sizes[axis], steps[axis])
    # batch, channels, places, patch -> batch, places, channels and patch
    places = range(2, 2 + dims)
    patches = x.permute(0, *places, 1, *range(2 + dims, 2 + 2 * dims)).flatten(1 + dims)
    output = _product(patches.flatten(0, -2), weight.flatten(1).t(), bias, owner_of(weight))
    if output is NotImplemented:
        return output
    output = output.view(*patches.shape[:-1], weight.shape[0]).movedim(-1, 1)
    # The channels of a place lie side by side where torch's do; else programs take a view of rows.
    last = {2: torch.channels_last, 3: torch.channels_last_3d}.get(dims)
    if last is None or (dims == 3 and x.dtype is torch.float64):
        return output.contiguous()
    given = (y for y in (args[0], weight) if not y.is_contiguous())
    return (
        output if any(y.is_contiguous(memory_format=last) for y in given) else output.contiguous()
    )


HANDLERS = {
    "mm": mm,
    "bmm": mm,
    "addmm": addmm,
    "baddbmm": addmm,
    "matmul": matmul,
    "linear": linear,
    "mv": mv,
    "addmv": addmv,
    "dot": dot,
    "vdot": dot,
    "_softmax": softmax,
    "softmax": softmax,
    "convolution": convolution,
}
