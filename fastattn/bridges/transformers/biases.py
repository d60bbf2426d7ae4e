"""Relative biases, as T5 and its kin have them: a number for each head and distance, no L × S.

Their modules write them out, queries times keys, for all layers. Here a module's class learns at
its first call to describe them instead: the bias of one query that has every distance before it,
of which each row is a window.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from numpy.lib.stride_tricks import sliding_window_view

from fastattn.bridges.torch.tensors import array_of
from fastattn.bridges.transformers.deferred import Deferred

__all__ = ["describe_biases_of"]

# What T5 and those that are copied from it take; others are left alone.
_TAKEN = ["self", "query_length", "key_length", "device", "past_seen_tokens"]


def describe_biases_of(kind: type, name: str) -> None:
    """Let modules of this class describe their biases from now on, where the model attends here."""
    write_out = getattr(kind, "compute_bias", None)
    if write_out is None or hasattr(write_out, "__wrapped__"):
        return
    if list(inspect.signature(write_out).parameters) != _TAKEN:
        return

    @functools.wraps(write_out)
    def compute_bias(
        self: Any, query_length: int, key_length: int, device: Any = None, past_seen_tokens: int = 0
    ) -> torch.Tensor:
        def dense() -> torch.Tensor:
            bias: torch.Tensor = write_out(self, query_length, key_length, device, past_seen_tokens)
            return bias

        known = type(query_length) is type(key_length) is int and query_length > 0
        if not known or torch.is_grad_enabled() or self.config._attn_implementation != name:
            return dense()
        # As the last query sees keys that reach as far before the first one's as before its own.
        last, reach = past_seen_tokens + query_length - 1, key_length + query_length - 1
        table = write_out(self, 1, reach, device, int(last))
        windows = sliding_window_view(array_of(table)[:, :, 0], key_length, axis=-1)
        shape = (*table.shape[:2], query_length, key_length)
        return Deferred.of(windows[:, :, ::-1], shape, table.dtype, dense)

    kind.compute_bias = compute_bias  # type: ignore[attr-defined]
