"""Attention over packed sequences of different lengths: a loop of calls of `attention`."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastattn.reference.attention import Window, attention
from fastattn.reference.shapes import broadcast_shapes

__all__ = ["attend_each", "attention_varlen"]

Float64Array = NDArray[np.float64]


def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    query_splits: ArrayLike,
    key_splits: ArrayLike,
    *,
    key_indices: ArrayLike | None = None,
    similarity: str = "scaled_dot",
    scale: ArrayLike | None = None,
    causal: bool | str = False,
    query_offset: ArrayLike | None = None,
    window: Window | None = None,
    query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """Attend within each sequence, as `fastattn.attention_varlen` means it.

    Sequence ``b`` has the queries ``query_splits[b]`` to ``query_splits[b + 1]`` and the keys
    ``key_splits[b]`` to ``key_splits[b + 1]``, or with `key_indices` the rows of key and value
    that this part of the indices names. Rows that belong to no sequence have output 0, lse −inf.

    Parameters
    ----------
    query, key, value : array_like, (total, H, E) or (total, E)
    query_splits, key_splits : array_like of int, (batch + 1,)
    query_segments, key_segments : array_like of int, packed as the queries and the keys
        With `key_indices`, `key_segments` goes along the indices.

    Examples
    --------
    >>> value = [[10.0], [20.0], [30.0]]
    >>> attention_varlen([[0.0], [0.0]], [[1.0]] * 3, value, [0, 1, 2], [0, 2, 3])
    array([[15.],
           [30.]])
    """
    query, key, value = (
        np.swapaxes(array, 0, -2) for array in map(np.asarray, (query, key, value))
    )
    output, lse = attend_each(
        query,
        key,
        value,
        query_splits,
        key_splits,
        key_indices=key_indices,
        query_offset=query_offset,
        query_segments=query_segments,
        key_segments=key_segments,
        similarity=similarity,
        scale=scale,
        causal=causal,
        window=window,
        softcap=softcap,
        alibi_slopes=alibi_slopes,
        sinks=sinks,
        enable_gqa=enable_gqa,
    )
    output, lse = np.swapaxes(output, 0, -2), np.moveaxis(lse, -1, 0)
    return (output, lse) if return_lse else output


def attend_each(
    query: NDArray[Any],
    key: NDArray[Any],
    value: NDArray[Any],
    query_splits: ArrayLike,
    key_splits: ArrayLike,
    *,
    key_indices: ArrayLike | None = None,
    query_offset: ArrayLike | None = None,
    query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None,
    **options: Any,
) -> tuple[Float64Array, Float64Array]:
    """Compute (..., total, Ev) and (..., total): heads in front, as in `attention`."""
    query_splits, key_splits = np.asarray(query_splits), np.asarray(key_splits)
    heads = query.shape[:-2]
    if not options.get("enable_gqa"):
        heads = broadcast_shapes(heads, key.shape[:-2], value.shape[:-2])
    output = np.zeros((*heads, query.shape[-2], value.shape[-1]))
    lse = np.full((*heads, query.shape[-2]), -np.inf)
    offsets = None if query_offset is None else np.broadcast_to(query_offset, len(query_splits) - 1)
    for sequence in range(len(query_splits) - 1):
        rows = slice(query_splits[sequence], query_splits[sequence + 1])
        listed = slice(key_splits[sequence], key_splits[sequence + 1])
        keys = listed if key_indices is None else np.asarray(key_indices)[listed]
        output[..., rows, :], lse[..., rows] = attention(
            query[..., rows, :],
            key[..., keys, :],
            value[..., keys, :],
            query_offset=None if offsets is None else offsets[sequence],
            query_segments=None if query_segments is None else np.asarray(query_segments)[rows],
            key_segments=None if key_segments is None else np.asarray(key_segments)[listed],
            return_lse=True,
            **options,
        )
    return output, lse
