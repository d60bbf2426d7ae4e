"""Programs as they are, with results that do not depend on what else is in the batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastattn.bridges.torch import operators, packs, products, rows
from fastattn.bridges.torch.counting import Counted, counting
from fastattn.bridges.torch.maps import why_not_linear
from fastattn.bridges.torch.operations import WHOLE_VECTORS, is_by_row
from fastattn.bridges.torch.packs import owner_of
from fastattn.bridges.torch.routing import Routing, are_plain, attend, fast_paths

__all__ = ["batch_invariant"]

# Takes an operation and its arguments; returns NotImplemented where it does not do it.
_Handler = Callable[..., Any]


# Under it, operations are not shown to a mode of the dispatcher.
_unseen = partial(
    torch._C._ExcludeDispatchKeyGuard, torch._C.DispatchKeySet(torch._C.DispatchKey.Python)
)


def _ordered_by_sizes(func: Any, args: tuple[Any, ...]) -> str:
    """Name a function that multiplies several matrices in an order that their sizes decide."""
    if func is torch.einsum:
        operands = args[1] if len(args) == 2 and isinstance(args[1], (list, tuple)) else args[1:]
        return "einsum" if len(operands) > 2 else ""
    return {torch.linalg.multi_dot: "multi_dot", torch.chain_matmul: "chain_matmul"}.get(func, "")


class _Maps(Routing):
    """Lead attention and linear maps here, those of a layer's own weight, which is kept packed."""

    def attend(self, *args: Any, **kwargs: Any) -> torch.Tensor | str:
        """Attend, or say in a word why that is left to torch."""
        with _unseen():
            return attend(*args, **kwargs)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer a call of a function of torch."""
        name = _ordered_by_sizes(func, args)
        if name:
            self.counted.unsure[name] += 1
        elif (
            func is functional.linear and are_plain(types) and not torch.is_autocast_enabled("cpu")
        ):
            taken = self._map(*args, **kwargs or {})
            if taken is not None:
                return taken
        return super().__torch_function__(func, types, args, kwargs)

    def _map(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        # What is left, for a gradient say, is met again below as a product.
        if owner_of(weight) is None or why_not_linear(input, weight, bias) is not None:
            return None
        with _unseen():
            return operators.linear(input, weight, bias)


class _Products(TorchDispatchMode):
    """Compute products of matrices here, and name what may depend on the batch."""

    # Those that take functions, such as `torch.cond`: they are named, and run unseen.
    supports_higher_order_operators = True

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer an operation, after gradients have been recorded."""
        kwargs = kwargs or {}
        if isinstance(func, HigherOrderOperator):
            self.counted.unsure[func.name()] += 1
            return func(*args, **kwargs)
        action = _actions.get(func)
        if action is None:
            action = _actions[func] = _action_of(func)
        result = action(func, args, kwargs)
        if result is NotImplemented:
            if func._can_decompose():
                with self:
                    return func.decompose(*args, **kwargs)
            self.counted.unsure[func._schema.name] += 1
            result = func(*args, **kwargs)
        if func._schema.is_mutable:
            packs.note_written(_written(func, args, kwargs))
        return result


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """Return the tensors into which an operation writes."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return [x for x in tree_leaves(found) if isinstance(x, torch.Tensor)]


def _leave(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return NotImplemented


def _do(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


_actions: dict[Any, _Handler] = {}


def _action_of(func: Any) -> _Handler:
    """Decide what is done with an operation, whatever its operands."""
    name, overload = func._schema.name.removeprefix("aten::"), func._overloadname
    if name in products.HANDLERS and overload in ("default", "int"):
        return products.HANDLERS[name]
    if name.removesuffix("_") in WHOLE_VECTORS:
        return _leave if overload.endswith("out") else _on_whole_vectors
    if name in rows.HANDLERS:
        return rows.HANDLERS[name]
    return _do if is_by_row(func) else _leave


# Numbers in a vector, of any dtype and machine, and a multiple of it.
_VECTOR = 128
# Above this, torch shares elementwise work out, in shares of equal size.
_SMALLEST_SHARED = 16384


def _whole(numbers: int) -> int:
    """Return how many numbers, at least so many, torch's threads share in whole vectors."""
    threads = torch.get_num_threads()
    if numbers > _SMALLEST_SHARED:
        while True:
            sharing = min(threads, -(-numbers // rows.GRAIN))
            unit = _VECTOR * math.lcm(threads, max(sharing, 1))
            whole = -(-numbers // unit) * unit
            if whole == numbers:
                return numbers
            numbers = whole
    return -(-numbers // _VECTOR) * _VECTOR


def _on_whole_vectors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute a function of single numbers so that each is computed in a vector."""
    tensors = [place for place, x in enumerate(args) if isinstance(x, torch.Tensor)]
    if len(tensors) != 1:
        return NotImplemented
    (place,) = tensors
    x = args[place]
    if not (x.is_cpu and x.is_floating_point() and x.layout is torch.strided):
        return NotImplemented
    numbers = x.numel()
    whole = _whole(numbers)
    like = torch.empty_like(x)  # it has the order of dims in memory that torch's result has
    if like.stride() == x.stride() and whole == numbers:
        return func(*args, **kwargs)
    dense = x if like.stride() == x.stride() else like.copy_(x)
    flat = x.new_ones(whole)
    flat[:numbers] = dense.as_strided((numbers,), (1,))
    result = func(*args[:place], flat, *args[place + 1 :], **kwargs)[:numbers]
    result = result.as_strided(x.shape, like.stride())
    return x.copy_(result) if func._schema.name.endswith("_") else result


@torch.compiler.disable
@contextmanager
def batch_invariant() -> Iterator[Counted]:
    """Let no result of the program within depend on what else is in the batch.

    Attention, linear layers, products of matrices (``@``, `torch.matmul`, `torch.addmm`,
    `torch.einsum`, ...), softmax and convolutions of the program run here, on the thread that
    enters; what torch computes row by row, it goes on computing. Every other operation is named:
    `unsure` is empty where the promise holds for all that ran.

    Yields
    ------
    counted : Counted
        `taken` and `left` as of `patch`, linear layers and products included; `unsure`, torch's
        names of operations whose results may depend on the batch, and how often they ran.

    Notes
    -----
    Parameters are packed at their first use and kept packed, in as much memory again, until they
    change or die, or `forget_weights` is called. At its first use in each block, each is looked at
    as a whole (6 GB/s), so changes of any kind between blocks are seen, and within those that torch
    writes; within a block, nobody may write into weights by way of NumPy or from other threads.

    Of a row, what a layer pads is a part: attention and softmax give what they give without the
    hidden keys, sums along the last axis need not. Each operation costs some µs more, seen from
    Python. Nothing is compiled within: programs run as they are written, and torch refuses
    ``torch.compile(..., fullgraph=True)``, and so `flex_attention`.

    With gradients recorded, linear layers and products still are computed here, and attention is
    left to torch.

    Examples
    --------
    >>> import torch, fastattn
    >>> layer, x = torch.nn.Linear(300, 200), torch.randn(50, 300)
    >>> with torch.no_grad(), fastattn.bridges.torch.batch_invariant() as counted:
    ...     torch.equal(layer(x)[7], layer(x[7]))
    True
    >>> counted.unsure
    Counter()
    """
    with (
        counting() as counted,
        packs.keeping(),
        fast_paths.off(),
        _Maps(counted),
        _Products(counted),
    ):
        yield counted
