"""How many threads a bridged call takes: as many as torch would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["run"]


def run(function: Callable[..., Any], *operands: Any, **options: Any) -> Any:
    """Call a function of fastattn on torch's number of threads. Every bridged call passes here."""
    return function(*operands, threads=torch.get_num_threads(), **options)
