"""Tensors that are described, and made only where somebody computes with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

__all__ = ["Deferred"]

# What is known of a tensor without its numbers.
_KNOWN = {
    torch.Tensor.shape.__get__,
    torch.Tensor.dtype.__get__,
    torch.Tensor.device.__get__,
    torch.Tensor.ndim.__get__,
    torch.Tensor.requires_grad.__get__,
    torch.Tensor.is_cpu.__get__,
    torch.Tensor.dim,
    torch.Tensor.size,
    torch.Tensor.numel,
}


class Deferred(torch.Tensor):
    """A tensor by shape, dtype and what makes it, which happens when an operation asks for it.

    It passes through a model's code as any tensor does. `meaning` is what the attention function
    looks at instead of the numbers.
    """

    meaning: Any
    _make: Callable[[], torch.Tensor]

    @classmethod
    def of(
        cls, meaning: Any, shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], Any]
    ) -> Deferred:
        """Describe a tensor."""
        found = torch.zeros((), dtype=dtype).expand(shape).as_subclass(cls)
        found.meaning, found._make = meaning, make
        return found

    def made(self) -> torch.Tensor:
        """Make the tensor."""
        return self._make()

    def __repr__(self, **_: Any) -> str:
        return f"<Deferred {tuple(self.shape)}, {self.dtype}: {self.meaning}>"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _KNOWN:
            args, kwargs = tree_map(
                lambda x: x.made() if isinstance(x, Deferred) else x, (args, kwargs)
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)
