"""Attention: every query's weighted sum of the values whose keys it may see.

The order of work on one score is the contract: similarity × scale → softcap → float mask → ALiBi →
visibility → softmax → weighted sum. A score of −inf, wherever it comes from, hides its key. A sink
is one more score of the softmax, whose weight goes to no value.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastattn.reference.fusion import fuse_visible
from fastattn.reference.normalize import log_of_sum, masked
from fastattn.reference.similarity import similarity as similarity_of

__all__ = ["attention", "distances", "key_ranges", "per_head", "resolve_offset", "scores"]

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
Window = tuple[int | None, int | None]


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    similarity: str = "scaled_dot",
    scale: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: bool | str = False,
    query_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    return_weights: bool = False,
) -> Float64Array | tuple[Float64Array, ...]:
    """Compute ``softmax(scores) @ value`` over the visible keys, as `fastattn.attention` means it.

    Parameters are those of `fastattn.attention`; results are float64 whatever the inputs were.

    Examples
    --------
    >>> attention([[0.0]], [[1.0], [2.0]], [[10.0], [20.0]])
    array([[15.]])
    >>> attention([[0.0], [0.0]], [[1.0], [2.0]], [[10.0], [20.0]], causal=True)
    array([[10.],
           [15.]])
    """
    with np.errstate(invalid="ignore"):  # a signalling NaN, which casts speak of
        query, key, value = (np.asarray(array, dtype=np.float64) for array in (query, key, value))
    single = query.ndim == 1
    query = query[None] if single else query
    if enable_gqa:
        group = query.shape[-3] // key.shape[-3]
        key, value = np.repeat(key, group, axis=-3), np.repeat(value, group, axis=-3)
    with np.errstate(all="ignore"):
        final = scores(
            query,
            key,
            similarity=similarity,
            scale=scale,
            mask=mask,
            causal=causal,
            query_offset=query_offset,
            window=window,
            key_lengths=key_lengths,
            query_segments=query_segments,
            key_segments=key_segments,
            softcap=softcap,
            alibi_slopes=alibi_slopes,
        )
        sink = per_head(-np.inf if sinks is None else sinks)[..., None, None]
        row_max = np.maximum(np.max(final, axis=-1, keepdims=True, initial=-np.inf), sink)
        attended = final != -np.inf
        empty = row_max == -np.inf
        weights = np.where(attended, np.exp(final - row_max), 0.0)
        sink_weight = np.where(sink == -np.inf, 0.0, np.exp(sink - row_max))
        row_sum = np.where(empty, 1.0, np.sum(weights, axis=-1, keepdims=True) + sink_weight)
        lse = (row_max + log_of_row(final, weights, row_max, sink, sink_weight))[..., 0]
        weights = np.where(attended, weights / row_sum, 0.0)
        output = fuse_visible(weights, value, attended)
    results = [output, *([lse] if return_lse else []), *([weights] if return_weights else [])]
    if single:
        rows = [-2, *([-1] if return_lse else []), *([-2] if return_weights else [])]
        results = [result.take(0, axis) for result, axis in zip(results, rows, strict=True)]
    return results[0] if len(results) == 1 else tuple(results)


def log_of_row(
    final: Float64Array,
    weights: Float64Array,
    row_max: Float64Array,
    sink: Float64Array,
    sink_weight: Float64Array,
) -> Float64Array:
    """Compute the logarithm of the sum of weights and sink; 0 for an empty row."""
    is_max = final == row_max
    at_max = np.sum(np.where(is_max, weights, 0.0), axis=-1, keepdims=True)
    rest = np.sum(np.where(is_max, 0.0, weights), axis=-1, keepdims=True)
    at_sink = np.where(sink == row_max, sink_weight, 0.0)
    total = log_of_sum(at_max + at_sink, rest + (sink_weight - at_sink))
    return np.where(row_max == -np.inf, 0.0, total)


def scores(
    query: Float64Array,
    key: Float64Array,
    *,
    similarity: str = "scaled_dot",
    scale: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: bool | str = False,
    query_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
) -> Float64Array:
    """Score every query with every key: what the softmax sees, −inf where a key is hidden."""
    final = similarity_of(query, key, metric=similarity, scale=scale)
    if softcap is not None:
        final = softcap * np.tanh(final / softcap)
    final = masked(final, 1.0, mask)
    rows, keys = query.shape[-2], key.shape[-2]
    offset = resolve_offset(causal, query_offset, key_lengths, rows, keys)
    if alibi_slopes is not None:
        final = final - per_head(alibi_slopes)[..., None, None] * distances(offset, rows, keys)
    start, stop = key_ranges(
        rows, keys, causal=bool(causal), offset=offset, window=window, key_lengths=key_lengths
    )
    positions = np.arange(keys)
    visible = (start[..., None] <= positions) & (positions < stop[..., None])
    if query_segments is not None:
        visible = visible & same_segment(query_segments, key_segments)
    return np.where(visible, final, -np.inf)


def per_head(numbers: ArrayLike) -> Float64Array:
    """Read one number, or numbers over the batch dims; a lone number goes with any batch."""
    numbers = np.asarray(numbers, dtype=np.float64)
    return numbers.reshape(()) if numbers.size == 1 else numbers


def distances(offset: ArrayLike, rows: int, keys: int) -> Int64Array:
    """Count the keys from a query's position to each key: ``|i + offset - j|``, (..., L, S).

    Examples
    --------
    >>> distances(1, 2, 4).tolist()
    [[1, 0, 1, 2], [2, 1, 0, 1]]
    """
    position = np.asarray(offset, dtype=np.int64)[..., None] + np.arange(rows)
    apart: Int64Array = np.abs(position[..., None] - np.arange(keys))
    return apart


def same_segment(
    query_segments: ArrayLike | None, key_segments: ArrayLike | None
) -> NDArray[np.bool_]:
    """Compare the documents of queries (..., L) and keys (..., S) by their ids: (..., L, S)."""
    queries, keys = np.asarray(query_segments), np.asarray(key_segments)
    same: NDArray[np.bool_] = np.atleast_1d(queries)[..., :, None] == keys[..., None, :]
    return same


def resolve_offset(
    causal: bool | str,
    query_offset: ArrayLike | None,
    key_lengths: ArrayLike | None,
    rows: int,
    keys: int,
) -> Int64Array:
    """Find the position of query row 0 on the key axis, per batch element or as a scalar."""
    if causal == "bottom_right":
        return np.asarray(keys if key_lengths is None else key_lengths, dtype=np.int64) - rows
    return np.asarray(0 if query_offset is None else query_offset, dtype=np.int64)


def key_ranges(
    rows: int,
    keys: int,
    *,
    causal: bool = False,
    offset: ArrayLike = 0,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
) -> tuple[Int64Array, Int64Array]:
    """Intersect causal, window and lengths: half-open ranges of visible keys, (..., L) each.

    Examples
    --------
    >>> start, stop = key_ranges(3, 5, causal=True, offset=1, window=(1, None))
    >>> start.tolist(), stop.tolist()
    ([0, 1, 2], [2, 3, 4])
    """
    position = np.asarray(offset, dtype=np.int64)[..., None] + np.arange(rows)
    left, right = (None, None) if window is None else window
    start = np.zeros_like(position) if left is None else np.maximum(position - left, 0)
    lengths = np.asarray(keys if key_lengths is None else key_lengths, dtype=np.int64)
    stop = np.clip(lengths, 0, keys)[..., None] + np.zeros_like(position)
    if causal:
        stop = np.minimum(stop, position + 1)
    if right is not None:
        stop = np.minimum(stop, position + right + 1)
    return start, np.maximum(stop, start)
