"""Programs as they are, with their attention computed here: who calls torch is led here instead."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from fastattn.bridges.torch import operators
from fastattn.bridges.torch.attention import why_not_attention
from fastattn.bridges.torch.counting import Counted, counting, note_left

__all__ = ["Routing", "are_plain", "attend", "fast_paths", "patch"]

# Whatever name a program has bound it to, and however early.
_ATTENTION = functional.scaled_dot_product_attention
_PLAIN = {torch.Tensor, torch.nn.Parameter}

# torch asks at the head of this function for modes, before anything in it is called; without the
# question it runs under one, and its calls are seen one by one.
_MULTI_HEAD = functional.multi_head_attention_forward
_multi_head = FunctionType(
    _MULTI_HEAD.__code__,
    {**vars(functional), "has_torch_function": lambda tensors: False},
    _MULTI_HEAD.__name__,
    _MULTI_HEAD.__defaults__,
)


class Routing(TorchFunctionMode):
    """Lead calls of attention here, on the thread that has entered it.

    A compiler traces this as part of the program, and sees one operator where torch's function was.
    """

    def __init__(self, counted: Counted) -> None:
        super().__init__()
        self.counted = counted

    def attend(self, *args: Any, **kwargs: Any) -> torch.Tensor | str:
        """Attend, or say in a word why that is left to torch."""
        return attend(*args, **kwargs)

    def _leave(self, reason: str) -> None:
        # What one leaves, another around it is asked for: each counts for itself.
        if torch.compiler.is_compiling():
            _note_while_compiling(reason)
        else:
            self.counted.left[reason] += 1

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Answer a call of a function of torch."""
        kwargs = kwargs or {}
        if func is _ATTENTION:
            taken = self.attend(*args, **kwargs) if are_plain(types) else "subclass"
            if not isinstance(taken, str):
                return taken
            self._leave(taken)
        elif func is _MULTI_HEAD:
            with self:
                return _multi_head(*args, **kwargs)
        elif func is torch.Tensor.unflatten and torch.compiler.is_compiling():
            # As a method the compiler knows it, as a function it does not.
            return args[0].unflatten(*args[1:], **kwargs)
        return func(*args, **kwargs)


def are_plain(types: Any) -> bool:
    """Tell whether tensors of these types are nothing but tensors."""
    return all(kind in _PLAIN for kind in types)


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor | str:
    """Attend, or say in a word why that is left to torch, which also finds what is wrong."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value, attn_mask = map(_cast, (query, key, value, attn_mask))
    why = why_not_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if why is not None:
        return why[0]
    options = attn_mask, is_causal, scale, enable_gqa
    if torch.compiler.is_compiling():
        return operators.attention(query, key, value, *options)
    try:
        return operators.attention(query, key, value, *options)
    except (TypeError, ValueError):
        return "refused"


def _cast(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """Cast as torch's autocast does before attention."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype is torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype("cpu"))


@torch.compiler.assume_constant_result
def _note_while_compiling(reason: str) -> int:
    note_left(reason)
    return 0


class _FastPaths:
    """Whether torch's modules may hand whole layers to one kernel: for all threads alike."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = True

    @contextmanager
    def off(self) -> Iterator[None]:
        """Keep them to the calls that are led here, until the last who asked for it is done."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._before = torch.backends.mha.get_fastpath_enabled()
                torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if self._users == 0:
                    torch.backends.mha.set_fastpath_enabled(self._before)


fast_paths = _FastPaths()


@torch.compiler.disable
@contextmanager
def patch() -> Iterator[Counted]:
    """Let fastattn compute every `scaled_dot_product_attention` of the program within.

    Calls are led here whatever they are written as, those of `torch.nn.MultiheadAttention` and
    `torch.nn.TransformerEncoder` included, on the thread that enters; also within `torch.compile`,
    without breaking its graph. What cannot be computed here is left to torch, and counted.

    Yields
    ------
    counted : Counted
        `taken`, how many calls ran here, and `left`, how many did not, by reason: ``dropout``,
        ``gradient``, ``device``, ``dtype``, ``layout``, ``shapes``, ``scale``, ``subclass``,
        ``mask with is_causal``.

    Notes
    -----
    A program that does not use the function is not changed: `torch.nn.MultiheadAttention` asked for
    weights, models that multiply and normalise themselves.

    Examples
    --------
    >>> import torch, fastattn
    >>> x = torch.ones(1, 2, 3, 4)
    >>> with fastattn.bridges.torch.patch() as counted:
    ...     y = torch.nn.functional.scaled_dot_product_attention(x, x, x)
    >>> counted
    taken: 1
    """
    with counting() as counted, fast_paths.off(), Routing(counted):
        yield counted
