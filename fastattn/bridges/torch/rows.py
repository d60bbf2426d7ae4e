"""What torch computes row by row if the row lies side by side: so it is laid before.

Otherwise torch takes numbers of several rows into one vector, and those at its end one by one, with
other roundings: which they are depends on how many rows there are.
"""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["GRAIN", "HANDLERS"]

# Below these many numbers, torch keeps work to one thread.
GRAIN = 32768

_Arguments = tuple[Any, ...]
_Options = dict[str, Any]


def _named(func: Any, args: _Arguments, kwargs: _Options) -> _Options:
    return {**dict(zip((x.name for x in func._schema.arguments), args, strict=False)), **kwargs}


def reduce(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Sum, or the like, of rows; one of more numbers than a thread's is shared if it is alone."""
    named = _named(func, args, kwargs)
    x, axes = named.pop("self"), named.get("dim")
    if "out" in named:
        return NotImplemented
    if x.dim() == 0:
        return func(*args, **kwargs)
    reduced = sorted({axis % x.dim() for axis in ([axes] if isinstance(axes, int) else axes or ())})
    kept = [axis for axis in range(x.dim()) if axis not in reduced]
    if not reduced:
        return func(x.contiguous(), **named) if x.numel() < GRAIN else NotImplemented
    if x.numel() >= GRAIN * max(math.prod(x.shape[axis] for axis in kept), 1):
        return NotImplemented
    if reduced == [*range(len(kept), x.dim())] and x.is_contiguous():
        return func(*args, **kwargs)
    x = x.permute(*kept, *reduced).contiguous().flatten(len(kept))
    result = func(x, **{**named, "dim": -1 if isinstance(axes, int) else [-1], "keepdim": False})
    for axis in reduced if named.get("keepdim") else ():
        result = result.unsqueeze(axis)
    return result


def log_softmax(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Normalise along an axis, laid last."""
    x, axis, *more = args
    if x.dim() == 0 or axis % x.dim() == x.dim() - 1:
        return func(*args, **kwargs)
    result = func(x.movedim(axis, -1).contiguous(), -1, *more, **kwargs)
    return result.movedim(-1, axis).contiguous()


def group_norm(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Normalise groups of channels, each of which lies side by side."""
    x = args[0]
    output, *more = func(x.contiguous(), *args[1:], **kwargs)
    if not x.is_contiguous():
        output = torch.empty_like(x).copy_(output)
    return output, *more


def add(func: Any, args: _Arguments, kwargs: _Options) -> Any:
    """Add or subtract a multiple: it is rounded before, wherever in a vector it stands."""
    named = _named(func, args, kwargs)
    scaled = "self" if func._schema.name == "aten::rsub" else "other"
    alpha, part = named.pop("alpha", 1), named[scaled]
    if alpha == 1:
        return func(*args, **kwargs)
    dtype = torch.result_type(named["self"], named["other"])
    if not dtype.is_floating_point:
        return func(*args, **kwargs)
    if isinstance(part, torch.Tensor):
        part = part.to(dtype)
    return func(**{**named, scaled: part * alpha})


HANDLERS = {
    "linalg_vector_norm": reduce,
    "logsumexp": reduce,
    "mean": reduce,
    "norm": reduce,
    "prod": reduce,
    "sum": reduce,
    "_log_softmax": log_softmax,
    "native_group_norm": group_norm,
    "add": add,
    "add_": add,
    "sub": add,
    "sub_": add,
    "rsub": add,
}
