"""A user's file: every public function, its common calls, and what mypy knows of their results.

``mypy --strict`` accepts it, and it runs: what is asserted of types is then looked at.
"""

import os
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

import fastattn

if TYPE_CHECKING:
    from typing import assert_type
else:
    from seen_types import assert_type

Array = np.ndarray
Two = tuple[np.ndarray, np.ndarray]
Kept = np.ndarray | tuple[np.ndarray, Any]
Three = tuple[np.ndarray, np.ndarray, np.ndarray]


class Exported:
    """An array of a library of which only DLPack is known."""

    def __init__(self, memory: np.ndarray) -> None:
        self._memory = memory

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(
        self,
        *,
        stream: Any = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        return self._memory.__dlpack__(max_version=max_version)


x = np.random.default_rng(0).standard_normal((2, 4, 6, 8), dtype=np.float32)
lists = [[1.0, 2.0], [3.0, 4.0]]
flag = bool(x.size)


def attend() -> None:
    assert_type(fastattn.attention(x, x, x), Array)
    assert_type(fastattn.attention(lists, lists, lists, scale=0.5, similarity="cosine"), Array)
    assert_type(fastattn.attention(Exported(x), x, x, mask=x[0, 0, :, :6] > 0), Array)
    assert_type(fastattn.attention(x, x, x, causal="bottom_right", return_lse=False), Array)
    assert_type(fastattn.attention(x, x, x, window=(3, None), return_lse=True), Two)
    assert_type(fastattn.attention(x, x, x, causal=flag, return_weights=True), Two)
    assert_type(fastattn.attention(x, x, x, return_lse=True, return_weights=True), Three)
    assert_type(fastattn.attention(x, x, x, return_lse=flag), Any)
    out = np.empty_like(x)
    assert_type(
        fastattn.attention(
            x,
            x,
            x,
            scale=np.ones((1, 4)),
            query_offset=[[2], [3]],
            key_lengths=np.array([[5], [6]]),
            query_segments=np.zeros(6, int),
            key_segments=[0, 0, 0, 1, 1, 1],
            softcap=30,
            alibi_slopes=[0.5, 0.25, 0.125, 0.0625],
            sinks=np.zeros(4),
            enable_gqa=True,
            out=out,
            backend="numba",
            threads=1,
            causal=True,
        ),
        Array,
    )
    execution = fastattn.explain(x, x, x, return_lse=True)
    assert_type(execution.backend, str)
    assert_type(execution.refusals, dict[str, str])
    assert_type(execution.scratch_bytes, int)


def ragged() -> None:
    rows, splits = x[0, 0], np.array([0, 2, 6])
    assert_type(fastattn.attention_varlen(rows, rows, rows, splits, [0, 3, 6]), Array)
    assert_type(
        fastattn.attention_varlen(
            rows, rows, rows, splits, splits, key_indices=[0, 1, 2, 3, 4, 5], return_lse=True
        ),
        Two,
    )
    assert_type(fastattn.attention_varlen(rows, rows, rows, splits, splits, return_lse=flag), Any)


def parts() -> None:
    state = fastattn.attention_state(x, x, x, key_start=0)
    assert_type(state, fastattn.State)
    assert_type(state.key_stop, int)
    assert_type(state.finish(), Array)
    assert_type(state.finish(np.zeros(4), return_lse=True), Two)
    assert_type(state.finish(return_lse=flag), Any)
    long = np.repeat(x, 100, axis=-2)
    first = fastattn.attention_state(x, long[..., :512, :], long[..., :512, :])
    rest = fastattn.attention_state(x, long[..., 512:, :], long[..., 512:, :], key_start=512)
    assert_type(first.merge(rest).finish(), Array)
    output, lse = fastattn.attention(x, x, x, return_lse=True)
    merged, _ = fastattn.merge_states([output, output], [lse, lse])
    assert_type(merged, Array)


def cached() -> None:
    cache = fastattn.KVCache(2, heads=4, head_dim=8, dtype=np.float16, value_dim=8, window=(9, 0))
    assert cache.window == (9, 0)
    cache.append(x, x, lengths=[6, 5])
    assert_type(cache.lengths, Array)
    assert_type(cache.batch_shape, tuple[int, ...])
    assert_type(cache.heads + cache.head_dim + cache.value_dim, int)
    assert_type(cache.attend(x[:, :, :1]), Array)
    assert_type(cache.attend(x, causal=False, return_lse=True), Two)
    assert_type(cache.attend(x, return_weights=True), Two)
    assert_type(cache.attend(x, return_lse=True, return_weights=True), Three)
    assert_type(cache.attend(x, return_weights=flag), Any)
    assert_type(cache.dense(), Two)
    cache.truncate(3)
    cache.reorder([1, 1])
    cache.drop_before([0, 0])
    cache.select([0, -1])
    assert_type(cache.nbytes, int)
    cache.reset()


def stages() -> None:
    scores = fastattn.similarity(x, x, metric="euclidean", scale=2)
    assert_type(scores, Array)
    assert_type(fastattn.softmax(scores, mask=scores > -10), Array)
    assert_type(fastattn.log_softmax(scores, axis=(0, 1), scale=2.0), Array)
    assert_type(fastattn.logsumexp(scores, None, keepdims=True), Any)
    assert_type(fastattn.logsumexp(scores, b=-1.0, return_sign=True), tuple[Any, Any])
    assert_type(fastattn.fuse(fastattn.softmax(scores), x, reduce=False), Array)
    packed = fastattn.pack_linear(x[0, 0])
    assert_type(packed.shape, tuple[int, int])
    assert_type(packed.nbytes, int)
    assert_type(fastattn.linear(x, packed, np.zeros(6, np.float32)), Array)
    assert_type(fastattn.linear(Exported(x), x[0, 0], threads=2), Array)


def budgets() -> None:
    assert_type(fastattn.allocate([5, 3, 1], 10, unit=1, method="dhondt"), Array)
    assert_type(fastattn.allocate([5, 3], 10, upper=3, on_unspent="keep"), tuple[np.ndarray, Any])
    words: Literal["raise", "keep"] = "keep" if flag else "raise"
    assert_type(fastattn.allocate([[5.0, 3.0]], 10.0, where=[True, False], on_unspent=words), Kept)
    shared = fastattn.allocate_shared([[1.0, 2.0]], [3.0], np.inf, tol=1e-6)
    assert_type(shared, fastattn.SharedAllocation)
    assert_type(shared.allocation, Array)
    assert_type(shared.converged, bool)
    found = fastattn.attention_allocation([1.0], [[1.0], [2.0]], budget=8, on_unspent="keep")
    assert_type(found, fastattn.AllocationResult)
    assert_type(found.allocation, Any)


def module() -> None:
    made = fastattn.MultiHeadAttention(8, num_heads=2, kdim=None, dtype="float32", seed=0)
    tokens = x[:, 0]
    assert_type(made(tokens), Array)
    assert_type(made(tokens, tokens, causal=True), Array)
    assert_type(made(tokens, return_weights=True, average_weights=flag), Two)
    assert_type(made(tokens, return_weights=flag), Any)
    assert_type(made.state_dict(), dict[str, np.ndarray])
    assert_type(made.embed_dim // made.num_heads == made.head_dim, bool)
    assert_type(made(tokens, rotate=lambda query, key: (query, key)), Array)
    again = fastattn.MultiHeadAttention.from_state_dict(made.state_dict(), 2, prefix="")
    assert_type(again, fastattn.MultiHeadAttention)


def machine() -> None:
    assert_type(fastattn.numerics_version, int)
    assert_type(fastattn.__version__, str)
    assert_type(fastattn.show_config(mode="dicts"), dict[str, dict[str, object]])
    with fastattn.use_backend("reference"):
        fastattn.reference.softmax(x).sum()
    fastattn.share_threads(False)
    with fastattn.threads(1):
        fastattn.set_threads(1)
    fastattn.set_threads(None)


class Attends(Protocol):
    """What is written for attention takes a function of the user's as well."""

    def __call__(self, query: np.ndarray, key: np.ndarray, value: np.ndarray, /) -> np.ndarray: ...


def by_another(function: Attends) -> np.ndarray:
    return function(x, x, x)


def from_torch(module: Any) -> fastattn.MultiHeadAttention:
    return fastattn.MultiHeadAttention.from_module(module)


def from_file(path: str | os.PathLike[str]) -> fastattn.MultiHeadAttention:
    return fastattn.MultiHeadAttention.from_safetensors(path, 2, prefix="layer.")


def in_bridges(model: Any, tokens: Any) -> np.ndarray:
    """As the README has it, whether or not the libraries are there."""
    with fastattn.bridges.torch.patch() as counted, fastattn.bridges.torch.batch_invariant():
        print(model(tokens), counted.unsure)
    print(fastattn.bridges.torch.check_batch_invariance(model, tokens))
    fastattn.bridges.transformers.register()
    cache = fastattn.bridges.transformers.FastattnCache(model.config, dtype="float16")
    assert_type(cache.nbytes, int)
    print(fastattn.bridges.transformers.pack(model)([[1]])[0].shape)
    return fastattn.bridges.sentence_transformers.encode(model, ["one"], invariant=True)


def run() -> None:
    for call in (attend, ragged, parts, cached, stages, budgets, module, machine):
        call()
    assert_type(by_another(fastattn.attention), Array)
