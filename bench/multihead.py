"""The whole module: projections, heads, attention, output projection; self-attention of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.cases import Arrays, Case
from bench.contender import Variant


def state(arrays: Arrays) -> Arrays:
    """The weights by PyTorch's names, sized so that scores are of the order of 1."""
    features = arrays["query"].shape[-1]
    scale = np.float32(features**-0.5)
    return {name: x * scale for name, x in arrays.items() if name != "query"}


def own(case: Case, arrays: Arrays, threads: int, backend: str | None = None) -> dict[str, Variant]:
    """``fastattn.MultiHeadAttention``."""
    import fastattn

    module = fastattn.MultiHeadAttention.from_state_dict(state(arrays), case.options["heads"])
    x = arrays["query"]
    return {"": Variant(lambda: module(x, threads=threads, backend=backend))}


def on_numba(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """The same call on the numba backend."""
    return own(case, arrays, threads, "numba")


def in_torch(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """``nn.MultiheadAttention``, on its own fast path and on ``scaled_dot_product_attention``."""
    import torch

    features = case.shapes["query"][-1]
    module = torch.nn.MultiheadAttention(features, case.options["heads"], batch_first=True).eval()
    module.load_state_dict({name: torch.from_numpy(x) for name, x in state(arrays).items()})
    x = torch.from_numpy(arrays["query"])

    def call(fast: bool) -> Callable[[], Any]:
        def run() -> Any:
            torch.backends.mha.set_fastpath_enabled(fast)
            with torch.inference_mode():
                return module(x, x, x, need_weights=False)[0]

        return run

    return {"fast path": Variant(call(True)), "sdpa": Variant(call(False))}


def in_numpy(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """Matrix products written out; what the judge computes too, in float64."""
    weights = state(arrays)
    return {"": Variant(lambda: written_out(arrays["query"], weights, case.options["heads"]))}


def written_out(x: np.ndarray, weights: Arrays, heads: int) -> np.ndarray:
    """The module's formula, plainly."""
    projected = x @ weights["in_proj_weight"].T + weights["in_proj_bias"]
    parts = projected.reshape(*x.shape[:2], 3, heads, -1)
    query, key, value = np.moveaxis(parts, (2, 3), (0, 2))
    scores = query @ key.swapaxes(-1, -2) * x.dtype.type(query.shape[-1] ** -0.5)
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    joined = (scores @ value).swapaxes(1, 2).reshape(x.shape)
    result: np.ndarray = joined @ weights["out_proj.weight"].T + weights["out_proj.bias"]
    return result
