"""The reference as a backend: every legal call in float64 NumPy, rounded once into the results.

It is never chosen automatically. It holds the whole L × S matrix in float64, several times over.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastattn.reference import allocation, fusion, normalize, shared_allocation
from fastattn.reference.attention import attention
from fastattn.reference.linear import linear as linear_of
from fastattn.reference.pages import from_pages
from fastattn.reference.similarity import similarity as similarity_of
from fastattn.reference.varlen import attend_each

__all__ = [
    "Execution",
    "RaggedExecution",
    "allocate",
    "allocate_shared",
    "attention_state",
    "finish_state",
    "fuse",
    "linear",
    "log_softmax",
    "logsumexp",
    "merge_states",
    "name",
    "prepare_attention",
    "prepare_varlen",
    "refusal",
    "similarity",
    "softmax",
    "warmup",
]

name = "reference"

Array = NDArray[Any]
State = tuple[NDArray[np.float64], NDArray[np.float64]]

# Options of a problem that its canonical form has no use for any more.
_DONE = ("enable_gqa", "return_lse", "return_weights")


@dataclass(frozen=True)
class Execution:
    """One attention call, ready to run."""

    problem: Any
    backend: str = name
    plan: None = None
    way: None = None
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


@dataclass(frozen=True)
class RaggedExecution:
    """One call over packed sequences, ready to run."""

    problem: Any
    backend: str = name
    plan: None = None
    way: None = None
    refusals: dict[str, str] = field(default_factory=dict)

    @property
    def scratch_bytes(self) -> int:
        """Scores, weights and visibility of the largest sequence, beside float64 results."""
        place = self.problem.place
        rows, keys = np.diff(place.query_splits), np.diff(place.key_splits)
        heads = math.prod(self.problem.query.shape[:-2])
        total, value_features = self.problem.query.shape[-2], self.problem.value.shape[-1]
        scores = heads * int(np.max(rows * keys, initial=0))
        numbers: int = 3 * scores + heads * total * (value_features + 1)
        return numbers * 8

    def run(self, output: Array, lse: Array | None, weights: None = None) -> None:
        """Compute into (Hkv, G, rows, Ev) and (Hkv, G, rows); there are no weights to return."""
        problem = self.problem
        results = attend_each(
            *canonical_operands(problem),
            problem.place.query_splits,
            problem.place.key_splits,
            key_indices=problem.place.indices,
            **canonical_options(problem),
        )
        for target, result in zip((output, lse), results, strict=True):
            if target is not None:
                store(target, result)


def warmup() -> None:
    """Nothing is compiled."""


def refusal(problem: Any) -> str | None:
    """Say why this backend cannot do a call: it can do every one."""
    return None


def prepare_attention(problem: Any, threads: int) -> Execution:
    """Describe the call as it would run; `threads` is for backends that have some."""
    return Execution(problem)


def prepare_varlen(problem: Any, threads: int) -> RaggedExecution:
    """Describe a call over packed sequences as it would run."""
    return RaggedExecution(problem)


def attention_state(problem: Any, key_start: int, threads: int) -> State:
    """Attend over one part of the keys; a part is its output and log-sum-exp."""
    return attention(*canonical_operands(problem), **canonical_options(problem), return_lse=True)  # type: ignore[return-value]


def merge_states(state: State, following: State) -> State:
    """Join two parts; equal to the one call up to rounding in float64."""
    return fusion.merge_states((state[0], following[0]), (state[1], following[1]))


def finish_state(
    state: State, output: Array, lse: Array | None, sinks: Array | None = None
) -> None:
    """Let the sinks take their weight, and round a state into the caller's arrays."""
    if sinks is not None:
        sinks = np.broadcast_to(np.asarray(sinks, np.float64)[..., None], state[1].shape)
        state = fusion.merge_states((state[0], np.zeros_like(state[0])), (state[1], sinks))
    store(output, state[0])
    if lse is not None:
        store(lse, state[1])


def similarity(
    query: Array,
    key: Array,
    out: Array,
    metric: str,
    scale: float | Array,
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


def logsumexp(
    x: Array,
    mask: Array | None,
    out: Array,
    scale: float,
    threads: int,
    factors: Array | None = None,
    sign: Array | None = None,
) -> None:
    """Store `fastattn.reference.logsumexp` along the last axis into `out`, its sign into `sign`."""
    signed = sign is not None
    found = normalize.logsumexp(x, b=factors, scale=scale, mask=mask, return_sign=signed)
    lse, signs = found if isinstance(found, tuple) else (found, None)
    store(out, lse)
    if sign is not None and signs is not None:
        store(sign, signs)


def fuse(weights: Array, value: Array, out: Array, reduce: bool, threads: int) -> None:
    """Store `fastattn.reference.fuse` into `out`."""
    store(out, fusion.fuse(weights, value, reduce=reduce))


def linear(x: Array, weight: Array, bias: Array | None, out: Array, threads: int) -> None:
    """Store `fastattn.reference.linear` into `out`; weights may be packed, in panels."""
    if weight.ndim == 3:
        weight = np.concatenate(list(weight.swapaxes(1, 2)) or [weight[:0, :, 0]])[: out.shape[-1]]
    store(out, linear_of(x, weight, bias))


def allocate_shared(
    weights: Array,
    budgets: Array,
    capacities: Array,
    tol: float,
    max_iter: int,
    threads: int,
) -> tuple[Array, int, float]:
    """Return what `fastattn.reference.allocate_shared` does."""
    return shared_allocation.allocate_shared(
        weights, budgets, capacities, tol=tol, max_iter=max_iter
    )


def canonical_operands(problem: Any) -> tuple[Array, Array, Array]:
    """Give query, key and value one shape of batch: (*batch, Hkv, G, ., .)."""
    key, value = problem.key, problem.value
    if type(problem.place).__name__ == "Pages":
        key, value = from_pages(problem)
    return problem.query, key[..., None, :, :], value[..., None, :, :]


def canonical_options(problem: Any) -> dict[str, Any]:
    """Name the options of a problem as `fastattn.reference.attention` does."""
    options = {**problem.options._asdict(), **problem.extras._asdict()}
    mask = as_computed(problem.mask, problem.dtype)
    return {name: x for name, x in options.items() if name not in _DONE} | {"mask": mask}


def as_computed(mask: Array | None, dtype: Any) -> Array | None:
    """Round a float mask to the compute dtype; what is finite stays finite, and does not hide."""
    if mask is None or mask.dtype == bool:
        return mask
    largest = np.finfo(dtype).max
    with np.errstate(invalid="ignore"):  # a signalling NaN is as good as another
        mask = mask.astype(np.float64)
    return np.where(np.isfinite(mask), np.clip(mask, -largest, largest), mask).astype(dtype)


def store(target: Array, result: Array) -> None:
    """Round a float64 result into the target's dtype; overflow gives inf, without a word."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if target.dtype.name == "bfloat16":
            result = sticky(result)
        np.copyto(target, result, casting="same_kind")


def sticky(numbers: Array) -> Array:
    """Round to float32 so that rounding the result to bfloat16 is rounding once.

    Casts from float64 to bfloat16 go through float32, where rounding to the nearest could make a
    tie of what is none. Here the last bit says that something was cut off.
    """
    nearest = numbers.astype(np.float32)
    cut = np.where(abs(nearest) > abs(numbers), np.nextafter(nearest, np.float32(0)), nearest)
    odd: Array = cut.view(np.uint32) | (cut != numbers)
    return odd.view(np.float32)


def allocate(
    weights: Array,
    budget: Array,
    lower: Array | None,
    upper: Array | None,
    where: Array | None,
    out: Array,
    unspent: Array,
    method: str | None,
    unit: float,
    threads: int,
) -> None:
    """Store the allocation of each row, `fastattn.reference.allocation`, and what is left."""
    low = np.zeros(weights.shape) if lower is None else lower
    cap = np.full(weights.shape, np.inf) if upper is None else upper
    part = np.ones(weights.shape, bool) if where is None else where
    for row in np.ndindex(weights.shape[:-1]):
        taking = part[row]
        own, least, most = (x[row][taking].astype(np.float64).tolist() for x in (weights, low, cap))
        given, left = allocation.allocate_row(own, least, most, float(budget[row]), method)
        out[row] = 0
        number = int if out.dtype == np.int64 else float
        out[row][taking] = [number(amount) * unit for amount in given]
        unspent[row] = left
