# Written by tests/static_face.py: change the sources, and run it.
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal, Never, overload
import numpy as np
from numpy.typing import DTypeLike
from fastattn._core.annotations import (
    ArrayLike, Axis, BackendName, Causal, ConfigMode, Method, OnUnspent, Rotate, Similarity, Window,
)
from fastattn._core.execution import Execution
from fastattn._core.sharing import Sharing
from . import bridges as bridges
from . import reference as reference

__all__ = (
    "AllocationResult", "KVCache", "MultiHeadAttention", "PackedWeight", "SharedAllocation",
    "State", "__version__", "allocate", "allocate_shared", "attention", "attention_allocation",
    "attention_state", "attention_varlen", "explain", "fuse", "linear", "log_softmax", "logsumexp",
    "merge_states", "numerics_version", "pack_linear", "set_threads", "share_threads",
    "show_config", "similarity", "softmax", "threads", "use_backend", "warmup",
)
@dataclass(frozen=True, eq=False)
class AllocationResult:
    weights: Any
    allocation: Any
    output: Any
    unspent: Any = None
class KVCache:
    batch_shape: tuple[int, ...]
    heads: int
    head_dim: int
    value_dim: int
    dtype: np.dtype
    window: tuple[int | None, int | None] | None
    def __init__(
        self, batch_shape: int | tuple[int, ...], heads: int, head_dim: int, *,
        dtype: DTypeLike = np.float32, value_dim: int | None = None,
        window: tuple[int | None, int | None] | None = None,
    ) -> None: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def nbytes(self) -> int: ...
    def append(
        self, key: ArrayLike, value: ArrayLike, lengths: ArrayLike | None = None,
    ) -> None: ...
    @overload
    def attend(
        self, query: ArrayLike, *, similarity: Similarity = "scaled_dot",
        scale: ArrayLike | None = None, mask: ArrayLike | None = None,
        causal: Causal = "bottom_right", query_offset: ArrayLike | None = None,
        window: Window | None = None, query_segments: ArrayLike | None = None,
        key_segments: ArrayLike | None = None, softcap: float | None = None,
        alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
        return_lse: Literal[False] = False, return_weights: Literal[False] = False,
        out: np.ndarray | None = None, backend: BackendName | None = None,
        threads: int | None = None,
    ) -> np.ndarray: ...
    @overload
    def attend(
        self, query: ArrayLike, *, similarity: Similarity = "scaled_dot",
        scale: ArrayLike | None = None, mask: ArrayLike | None = None,
        causal: Causal = "bottom_right", query_offset: ArrayLike | None = None,
        window: Window | None = None, query_segments: ArrayLike | None = None,
        key_segments: ArrayLike | None = None, softcap: float | None = None,
        alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
        return_lse: Literal[False] = False, return_weights: Literal[True],
        out: np.ndarray | None = None, backend: BackendName | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def attend(
        self, query: ArrayLike, *, similarity: Similarity = "scaled_dot",
        scale: ArrayLike | None = None, mask: ArrayLike | None = None,
        causal: Causal = "bottom_right", query_offset: ArrayLike | None = None,
        window: Window | None = None, query_segments: ArrayLike | None = None,
        key_segments: ArrayLike | None = None, softcap: float | None = None,
        alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
        return_lse: Literal[True], return_weights: Literal[False] = False,
        out: np.ndarray | None = None, backend: BackendName | None = None,
        threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def attend(
        self, query: ArrayLike, *, similarity: Similarity = "scaled_dot",
        scale: ArrayLike | None = None, mask: ArrayLike | None = None,
        causal: Causal = "bottom_right", query_offset: ArrayLike | None = None,
        window: Window | None = None, query_segments: ArrayLike | None = None,
        key_segments: ArrayLike | None = None, softcap: float | None = None,
        alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
        return_lse: Literal[True], return_weights: Literal[True], out: np.ndarray | None = None,
        backend: BackendName | None = None, threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
    @overload
    def attend(
        self, query: ArrayLike, *, similarity: Similarity = "scaled_dot",
        scale: ArrayLike | None = None, mask: ArrayLike | None = None,
        causal: Causal = "bottom_right", query_offset: ArrayLike | None = None,
        window: Window | None = None, query_segments: ArrayLike | None = None,
        key_segments: ArrayLike | None = None, softcap: float | None = None,
        alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None,
        return_lse: bool = False, return_weights: bool = False, out: np.ndarray | None = None,
        backend: BackendName | None = None, threads: int | None = None,
    ) -> Any: ...
    def truncate(self, lengths: ArrayLike) -> None: ...
    def reorder(self, indices: ArrayLike) -> None: ...
    def select(self, indices: ArrayLike) -> None: ...
    def drop_before(self, positions: ArrayLike) -> None: ...
    def reset(self) -> None: ...
    def dense(self) -> tuple[np.ndarray, np.ndarray]: ...
class MultiHeadAttention:
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    kdim: int
    vdim: int
    add_zero_attn: bool
    def __init__(
        self, embed_dim: int, num_heads: int, *, kdim: int | None = None, vdim: int | None = None,
        bias: bool = True, add_bias_kv: bool = False, add_zero_attn: bool = False,
        dtype: DTypeLike = np.float32, seed: int | None = None,
    ) -> None: ...
    @classmethod
    def from_state_dict(
        cls, state: Mapping[str, Any], num_heads: int, *, prefix: str = "",
        add_zero_attn: bool = False,
    ) -> MultiHeadAttention: ...
    @classmethod
    def from_safetensors(
        cls, path: str | os.PathLike[str], num_heads: int, *, prefix: str = "",
        add_zero_attn: bool = False,
    ) -> MultiHeadAttention: ...
    @classmethod
    def from_arrays(
        cls, num_heads: int, *, query_weight: ArrayLike, key_weight: ArrayLike,
        value_weight: ArrayLike, output_weight: ArrayLike, query_bias: ArrayLike | None = None,
        key_bias: ArrayLike | None = None, value_bias: ArrayLike | None = None,
        output_bias: ArrayLike | None = None, added_key: ArrayLike | None = None,
        added_value: ArrayLike | None = None, add_zero_attn: bool = False,
    ) -> MultiHeadAttention: ...
    @classmethod
    def from_module(cls, module: Any) -> MultiHeadAttention: ...
    def state_dict(self) -> dict[str, np.ndarray]: ...
    @overload
    def __call__(
        self, query: ArrayLike, key: ArrayLike | None = None, value: ArrayLike | None = None, *,
        mask: ArrayLike | None = None, causal: Causal = False,
        query_offset: ArrayLike | None = None, window: Window | None = None,
        key_lengths: ArrayLike | None = None, rotate: Rotate | None = None,
        return_weights: Literal[False] = False, out: np.ndarray | None = None,
        backend: BackendName | None = None, threads: int | None = None,
    ) -> np.ndarray: ...
    @overload
    def __call__(
        self, query: ArrayLike, key: ArrayLike | None = None, value: ArrayLike | None = None, *,
        mask: ArrayLike | None = None, causal: Causal = False,
        query_offset: ArrayLike | None = None, window: Window | None = None,
        key_lengths: ArrayLike | None = None, rotate: Rotate | None = None,
        return_weights: Literal[True], average_weights: bool = False, out: np.ndarray | None = None,
        backend: BackendName | None = None, threads: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def __call__(
        self, query: ArrayLike, key: ArrayLike | None = None, value: ArrayLike | None = None, *,
        mask: ArrayLike | None = None, causal: Causal = False,
        query_offset: ArrayLike | None = None, window: Window | None = None,
        key_lengths: ArrayLike | None = None, rotate: Rotate | None = None, return_weights: bool,
        average_weights: bool = False, out: np.ndarray | None = None,
        backend: BackendName | None = None, threads: int | None = None,
    ) -> Any: ...
class PackedWeight:
    shape: tuple[int, int]
    def __init__(self, made_elsewhere: Never, /) -> None: ...
    @property
    def dtype(self) -> np.dtype: ...
    @property
    def nbytes(self) -> int: ...
@dataclass(frozen=True, eq=False)
class SharedAllocation:
    allocation: np.ndarray
    converged: bool
    iterations: int
    violation: float
class State:
    key_start: int
    key_stop: int
    def __init__(self, made_elsewhere: Never, /) -> None: ...
    def merge(self, next_state: State) -> State: ...
    @overload
    def finish(
        self, sinks: ArrayLike | None = None, return_lse: Literal[False] = False,
    ) -> np.ndarray: ...
    @overload
    def finish(
        self, sinks: ArrayLike | None = None, *, return_lse: Literal[True],
    ) -> tuple[np.ndarray, np.ndarray]: ...
    @overload
    def finish(self, sinks: ArrayLike | None = None, return_lse: bool = False) -> Any: ...
__version__: Final[str]
@overload
def allocate(
    weights: ArrayLike, budget: ArrayLike, *, lower: ArrayLike = 0, upper: ArrayLike | None = None,
    unit: float | None = None, axis: int = -1, where: ArrayLike | None = None,
    method: Method = "largest_remainder", on_unspent: Literal["raise"] = "raise",
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> np.ndarray: ...
@overload
def allocate(
    weights: ArrayLike, budget: ArrayLike, *, lower: ArrayLike = 0, upper: ArrayLike | None = None,
    unit: float | None = None, axis: int = -1, where: ArrayLike | None = None,
    method: Method = "largest_remainder", on_unspent: Literal["keep"],
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> tuple[np.ndarray, Any]: ...
@overload
def allocate(
    weights: ArrayLike, budget: ArrayLike, *, lower: ArrayLike = 0, upper: ArrayLike | None = None,
    unit: float | None = None, axis: int = -1, where: ArrayLike | None = None,
    method: Method = "largest_remainder", on_unspent: OnUnspent = "raise",
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> Any: ...
def allocate_shared(
    weights: ArrayLike, budgets: ArrayLike, capacities: ArrayLike, *, tol: float = 1e-09,
    max_iter: int = 10000, backend: BackendName | None = None, threads: int | None = None,
) -> SharedAllocation: ...
@overload
def attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, *, similarity: Similarity = "scaled_dot",
    scale: ArrayLike | None = None, mask: ArrayLike | None = None, causal: Causal = False,
    query_offset: ArrayLike | None = None, window: Window | None = None,
    key_lengths: ArrayLike | None = None, query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None, softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None, enable_gqa: bool = False,
    return_lse: Literal[False] = False, return_weights: Literal[False] = False,
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> np.ndarray: ...
@overload
def attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, *, similarity: Similarity = "scaled_dot",
    scale: ArrayLike | None = None, mask: ArrayLike | None = None, causal: Causal = False,
    query_offset: ArrayLike | None = None, window: Window | None = None,
    key_lengths: ArrayLike | None = None, query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None, softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None, enable_gqa: bool = False,
    return_lse: Literal[False] = False, return_weights: Literal[True],
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, *, similarity: Similarity = "scaled_dot",
    scale: ArrayLike | None = None, mask: ArrayLike | None = None, causal: Causal = False,
    query_offset: ArrayLike | None = None, window: Window | None = None,
    key_lengths: ArrayLike | None = None, query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None, softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None, enable_gqa: bool = False,
    return_lse: Literal[True], return_weights: Literal[False] = False,
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, *, similarity: Similarity = "scaled_dot",
    scale: ArrayLike | None = None, mask: ArrayLike | None = None, causal: Causal = False,
    query_offset: ArrayLike | None = None, window: Window | None = None,
    key_lengths: ArrayLike | None = None, query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None, softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None, enable_gqa: bool = False,
    return_lse: Literal[True], return_weights: Literal[True], out: np.ndarray | None = None,
    backend: BackendName | None = None, threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
@overload
def attention(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, *, similarity: Similarity = "scaled_dot",
    scale: ArrayLike | None = None, mask: ArrayLike | None = None, causal: Causal = False,
    query_offset: ArrayLike | None = None, window: Window | None = None,
    key_lengths: ArrayLike | None = None, query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None, softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None, enable_gqa: bool = False,
    return_lse: bool = False, return_weights: bool = False, out: np.ndarray | None = None,
    backend: BackendName | None = None, threads: int | None = None,
) -> Any: ...
def attention_allocation(
    query: ArrayLike, key: ArrayLike, value: ArrayLike | None = None, *, budget: ArrayLike = 1.0,
    lower: ArrayLike = 0, upper: ArrayLike | None = None, unit: float | None = None,
    method: Method = "largest_remainder", on_unspent: OnUnspent = "raise",
    similarity: Similarity = "cosine", scale: ArrayLike | None = None,
    mask: ArrayLike | None = None, causal: Causal = False, query_offset: ArrayLike | None = None,
    window: Window | None = None, key_lengths: ArrayLike | None = None,
    query_segments: ArrayLike | None = None, key_segments: ArrayLike | None = None,
    backend: BackendName | None = None, threads: int | None = None,
) -> AllocationResult: ...
def attention_state(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, *, key_start: int = 0,
    similarity: Similarity = "scaled_dot", scale: ArrayLike | None = None,
    mask: ArrayLike | None = None, causal: Causal = False, query_offset: ArrayLike | None = None,
    window: Window | None = None, key_lengths: ArrayLike | None = None,
    query_segments: ArrayLike | None = None, key_segments: ArrayLike | None = None,
    softcap: float | None = None, alibi_slopes: ArrayLike | None = None, enable_gqa: bool = False,
    backend: BackendName | None = None, threads: int | None = None,
) -> State: ...
@overload
def attention_varlen(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, query_splits: ArrayLike,
    key_splits: ArrayLike, *, key_indices: ArrayLike | None = None,
    similarity: Similarity = "scaled_dot", scale: ArrayLike | None = None, causal: Causal = False,
    query_offset: ArrayLike | None = None, window: Window | None = None,
    query_segments: ArrayLike | None = None, key_segments: ArrayLike | None = None,
    softcap: float | None = None, alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None, enable_gqa: bool = False, return_lse: Literal[False] = False,
    partial: bool = False, out: np.ndarray | None = None, backend: BackendName | None = None,
    threads: int | None = None,
) -> np.ndarray: ...
@overload
def attention_varlen(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, query_splits: ArrayLike,
    key_splits: ArrayLike, *, key_indices: ArrayLike | None = None,
    similarity: Similarity = "scaled_dot", scale: ArrayLike | None = None, causal: Causal = False,
    query_offset: ArrayLike | None = None, window: Window | None = None,
    query_segments: ArrayLike | None = None, key_segments: ArrayLike | None = None,
    softcap: float | None = None, alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None, enable_gqa: bool = False, return_lse: Literal[True],
    partial: bool = False, out: np.ndarray | None = None, backend: BackendName | None = None,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]: ...
@overload
def attention_varlen(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, query_splits: ArrayLike,
    key_splits: ArrayLike, *, key_indices: ArrayLike | None = None,
    similarity: Similarity = "scaled_dot", scale: ArrayLike | None = None, causal: Causal = False,
    query_offset: ArrayLike | None = None, window: Window | None = None,
    query_segments: ArrayLike | None = None, key_segments: ArrayLike | None = None,
    softcap: float | None = None, alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None, enable_gqa: bool = False, return_lse: bool = False,
    partial: bool = False, out: np.ndarray | None = None, backend: BackendName | None = None,
    threads: int | None = None,
) -> Any: ...
def explain(
    query: ArrayLike, key: ArrayLike, value: ArrayLike, *, similarity: Similarity = "scaled_dot",
    scale: ArrayLike | None = None, mask: ArrayLike | None = None, causal: Causal = False,
    query_offset: ArrayLike | None = None, window: Window | None = None,
    key_lengths: ArrayLike | None = None, query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None, softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None, sinks: ArrayLike | None = None, enable_gqa: bool = False,
    return_lse: bool = False, return_weights: bool = False, out: np.ndarray | None = None,
    backend: BackendName | None = None, threads: int | None = None,
) -> Execution: ...
def fuse(
    weights: ArrayLike, value: ArrayLike, *, reduce: bool = True, out: np.ndarray | None = None,
    backend: BackendName | None = None, threads: int | None = None,
) -> np.ndarray: ...
def linear(
    x: ArrayLike, weight: ArrayLike | PackedWeight, bias: ArrayLike | None = None, *,
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> np.ndarray: ...
def log_softmax(
    x: ArrayLike, axis: Axis = -1, *, scale: float = 1.0, mask: ArrayLike | None = None,
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> np.ndarray: ...
@overload
def logsumexp(
    x: ArrayLike, axis: Axis = -1, *, b: ArrayLike | None = None, keepdims: bool = False,
    return_sign: Literal[False] = False, scale: float = 1.0, mask: ArrayLike | None = None,
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> Any: ...
@overload
def logsumexp(
    x: ArrayLike, axis: Axis = -1, *, b: ArrayLike | None = None, keepdims: bool = False,
    return_sign: Literal[True], scale: float = 1.0, mask: ArrayLike | None = None,
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> tuple[Any, Any]: ...
@overload
def logsumexp(
    x: ArrayLike, axis: Axis = -1, *, b: ArrayLike | None = None, keepdims: bool = False,
    return_sign: bool = False, scale: float = 1.0, mask: ArrayLike | None = None,
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> Any: ...
def merge_states(
    outputs: ArrayLike | Sequence[ArrayLike], lses: ArrayLike | Sequence[ArrayLike], axis: int = 0,
) -> tuple[np.ndarray, Any]: ...
numerics_version: Final[int]
def pack_linear(weight: ArrayLike) -> PackedWeight: ...
def set_threads(threads: int | None) -> None: ...
def share_threads(share: bool = True) -> Sharing: ...
@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(*, mode: Literal["dicts"]) -> dict[str, dict[str, object]]: ...
@overload
def show_config(mode: ConfigMode = "stdout") -> dict[str, dict[str, object]] | None: ...
def similarity(
    query: ArrayLike, key: ArrayLike, *, metric: Similarity = "cosine",
    scale: ArrayLike | None = None, out: np.ndarray | None = None,
    backend: BackendName | None = None, threads: int | None = None,
) -> np.ndarray: ...
def softmax(
    x: ArrayLike, axis: Axis = -1, *, scale: float = 1.0, mask: ArrayLike | None = None,
    out: np.ndarray | None = None, backend: BackendName | None = None, threads: int | None = None,
) -> np.ndarray: ...
@contextmanager
def threads(threads: int | None) -> Iterator[None]: ...
@contextmanager
def use_backend(backend: BackendName | None) -> Iterator[None]: ...
def warmup() -> None: ...
