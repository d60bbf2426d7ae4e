"""The reference as a backend: every legal call in float64 NumPy, rounded once into the results.

It is never chosen automatically. It holds the whole L × S matrix in float64, several times over.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.reference import fusion, normalize
from fastattn.reference.attention import attention
from fastattn.reference.similarity import similarity as similarity_of

__all__ = [
    "Execution",
    "attention_state",
    "finish_state",
    "fuse",
    "log_softmax",
    "logsumexp",
    "merge_states",
    "name",
    "prepare_attention",
    "refusal",
    "similarity",
    "softmax",
]

name = "reference"

Array = NDArray[Any]
State = tuple[NDArray[np.float64], NDArray[np.float64]]

_OPTIONS = (
    "similarity",
    "scale",
    "mask",
    "causal",
    "query_offset",
    "window",
    "key_lengths",
    "softcap",
)


@dataclass(frozen=True)
class Execution:
    """One attention call, ready to run."""

    problem: Any
    backend: str = name
    plan: None = None
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def scratch_bytes(self) -> int:
        """Scores, weights and visibility of all heads at once."""
        *batch, rows, _ = self.problem.query.shape
        scores: int = math.prod(batch) * rows * self.problem.key.shape[-2]
        return 3 * scores * 8

    def run(self, output: Array, lse: Array | None, weights: Array | None) -> None:
        """Compute into the given arrays; None where a result is not wanted."""
        results = attention(
            *canonical_operands(self.problem),
            **canonical_options(self.problem),
            return_lse=True,
            return_weights=True,
        )
        for target, result in zip((output, lse, weights), results, strict=True):
            if target is not None:
                store(target, result)


def refusal(problem: Any) -> str | None:
    """Say why this backend cannot do a call: it can do every one."""
    return None


def prepare_attention(problem: Any, threads: int) -> Execution:
    """Describe the call as it would run; `threads` is for backends that have some."""
    return Execution(problem)


def attention_state(problem: Any, key_start: int, threads: int) -> State:
    """Attend over one part of the keys; a part is its output and log-sum-exp."""
    return attention(*canonical_operands(problem), **canonical_options(problem), return_lse=True)  # type: ignore[return-value]


def merge_states(state: State, following: State) -> State:
    """Join two parts; equal to the one call up to rounding in float64."""
    return fusion.merge_states((state[0], following[0]), (state[1], following[1]))


def finish_state(state: State, output: Array, lse: Array | None) -> None:
    """Round a state into the caller's arrays."""
    store(output, state[0])
    if lse is not None:
        store(lse, state[1])


def similarity(
    query: Array,
    key: Array,
    out: Array,
    metric: str,
    scale: float,
    threads: int,
) -> None:
    """Store `fastattn.reference.similarity` into `out`."""
    store(out, similarity_of(query, key, metric=metric, scale=scale))


def softmax(x: Array, mask: Array | None, out: Array, scale: float, threads: int) -> None:
    """Store `fastattn.reference.softmax` along the last axis into `out`."""
    store(out, normalize.softmax(x, scale=scale, mask=mask))


def log_softmax(x: Array, mask: Array | None, out: Array, scale: float, threads: int) -> None:
    """Store `fastattn.reference.log_softmax` along the last axis into `out`."""
    store(out, normalize.log_softmax(x, scale=scale, mask=mask))


def logsumexp(x: Array, mask: Array | None, out: Array, scale: float, threads: int) -> None:
    """Store `fastattn.reference.logsumexp` along the last axis into `out`."""
    store(out, normalize.logsumexp(x, scale=scale, mask=mask))


def fuse(weights: Array, value: Array, out: Array, reduce: bool, threads: int) -> None:
    """Store `fastattn.reference.fuse` into `out`."""
    store(out, fusion.fuse(weights, value, reduce=reduce))


def canonical_operands(problem: Any) -> tuple[Array, Array, Array]:
    """Give query, key and value one shape of batch: (*batch, Hkv, G, ., .)."""
    return problem.query, problem.key[..., None, :, :], problem.value[..., None, :, :]


def canonical_options(problem: Any) -> dict[str, Any]:
    """Name the options of a problem as `fastattn.reference.attention` does."""
    options = {option: getattr(problem, option) for option in _OPTIONS}
    return {**options, "mask": as_computed(problem.mask, problem.dtype)}


def as_computed(mask: Array | None, dtype: Any) -> Array | None:
    """Round a float mask to the compute dtype; what is finite stays finite, and does not hide."""
    if mask is None or mask.dtype == bool:
        return mask
    largest = np.finfo(dtype).max
    return np.where(np.isfinite(mask), np.clip(mask, -largest, largest), mask).astype(dtype)


def store(target: Array, result: Array) -> None:
    """Round a float64 result into the target's dtype; overflow gives inf, without a word."""
    with np.errstate(over="ignore", under="ignore"):
        np.copyto(target, result, casting="same_kind")
