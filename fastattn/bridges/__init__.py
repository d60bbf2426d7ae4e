"""Other people's programs on fastattn: one import each, loaded when somebody uses it.

A bridge takes the arrays of another library where they lie, speaks its names and keeps its rules.
It stands on the public face alone, but for whose threads serve, and nothing of it is loaded before
it is asked for: ``fastattn.bridges.torch.patch()`` needs no import of its own. Where the library is
missing, the error says which extra brings it.

extras.py           libraries that are missing, and what to install
torch/              tensors, scaled_dot_product_attention and linear, for models as they are
transformers/       attn_implementation="fastattn", a cache, texts without padding
sentence_transformers.py    `encode` without padding
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastattn.bridges.extras import BRIDGES

if TYPE_CHECKING:  # what `__getattr__` loads, by name
    from fastattn.bridges import sentence_transformers as sentence_transformers
    from fastattn.bridges import torch as torch
    from fastattn.bridges import transformers as transformers

__all__ = [*BRIDGES]


def __getattr__(name: str) -> object:
    if name in BRIDGES:
        from importlib import import_module

        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *BRIDGES})
