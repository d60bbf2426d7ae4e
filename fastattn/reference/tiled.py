"""The algorithm of the kernels in NumPy: tiles, segments and lanes, in seven steps.

1. **pack**: the query takes the power of two of the scale; keys go to panels ``[S/64][E][64]``.
2. **score**: a tile of rows × panel is a sum of chains of multiply-adds over 64 features each
   (squares: of 16); sixteen chains are a run, and runs are added with what each sum loses kept
   beside it. What is not finite is summed again without the power of two, which then comes last;
   under a cap infinite sums will do. Cosines are kept within [-1, 1].
3. **shape**: rest of the scale, softcap, float mask, ALiBi. Where only a positive rest is left to
   do, it waits and joins log2 e in the argument of exp2.
4. **reveal**: ranges clip the loop to panels that some row sees; other hidden scores become −inf,
   among them those of another document.
5. **normalise**: per segment of 512 keys the row maximum, ``exp2`` of the distance to it, and the
   row sum on 16 lanes with a written-out tree; for the log-sum-exp, its rest without one maximum.
6. **fuse**: one chain of multiply-adds over the keys of the segment; segments fold left.
7. **finish**: fold the sink, divide by the row sum, log-sum-exp from the rest, empty rows.

Only segments, lanes and chains decide bits, and they are constants counted from key 0; blocks of
rows and panels are free. NumPy has no fused multiply-add and works in float64 here, so this file
agrees with the kernels to rounding, not in bits.
"""

from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastattn.reference.attention import (
    distances,
    key_ranges,
    per_head,
    resolve_offset,
    same_segment,
)
from fastattn.reference.shapes import broadcast_shapes
from fastattn.reference.similarity import default_scale, split_scale, unit_rows
from fastattn.reference.sums import LANES, add_runs, sum_of_lanes

__all__ = [
    "BLOCK_ROWS",
    "LANES",
    "PANEL_KEYS",
    "SEGMENT_KEYS",
    "State",
    "attention",
    "attention_state",
]

SEGMENT_KEYS = 512
# Values are fused in chains of this many keys, counted from the first key of the segment.
CHAIN_KEYS = 128
PANEL_KEYS = 64
BLOCK_ROWS = 24
LOG2_E = float(np.log2(np.e))

Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


class Partial(NamedTuple):
    """Running softmax of some rows over some keys: sums of weights and of weighted values."""

    row_max: Float64Array
    row_sum: Float64Array
    rest: Float64Array  # the sum without one weight of 1
    output: Float64Array


class Shaping(NamedTuple):
    """What turns a product into a score, and a score into an exponent; of each head."""

    rest: Float64Array  # (..., 1): applied to the product in step 3; 1 where it waits
    softcap: float | None
    late_rest: Float64Array  # (..., 1): lse = row_max * late_rest + log(row_sum); or 1
    power: Float64Array  # (..., 1): what the query of a cosine was multiplied by


class Rows(NamedTuple):
    """What a block of rows has beside its queries: who it sees, and what is added to its scores."""

    mask: NDArray[Any] | None  # (..., L, S), or 1 for L or S
    start: NDArray[np.int64]  # (..., L): first visible key
    stop: NDArray[np.int64]  # (..., L): end of the visible keys
    segments: NDArray[Any] | None  # (..., L): ids of documents
    offset: NDArray[np.int64]  # (...): position of the block's first row
    slopes: Float64Array | None  # (...): ALiBi


@dataclass(frozen=True)
class State:
    """Attention over keys ``[key_start, key_stop)``, unfinished.

    A part that starts at key 0 is folded as far as it goes. A later part keeps its segments apart
    until it is merged: folding left is not associative in floating point, and the one call never
    folds the later segments among themselves first.
    """

    key_start: int
    key_stop: int
    partials: tuple[Partial, ...]
    shaping: Shaping

    def merge(self, following: "State") -> "State":
        """Join the part that starts where this one stops, at a segment border."""
        if following.key_start != self.key_stop or self.key_stop % SEGMENT_KEYS:
            raise ValueError(
                f"cannot merge keys [{self.key_start}, {self.key_stop}) with "
                f"[{following.key_start}, {following.key_stop}): parts must follow one another and "
                f"meet at a multiple of {SEGMENT_KEYS}"
            )
        partials = self.partials + following.partials
        return State(self.key_start, following.key_stop, partials, self.shaping).folded()

    def folded(self) -> "State":
        """Fold the segments, where the part starts at key 0."""
        if self.key_start or len(self.partials) == 1:
            return self
        return State(0, self.key_stop, (self.fold_partials(),), self.shaping)

    def fold_partials(self) -> Partial:
        """Fold all segments in index order, from the left."""
        factor = self.shaping.late_rest * LOG2_E
        return reduce(lambda left, right: fold(left, right, factor), self.partials)

    def finish(self, sinks: ArrayLike | None = None) -> tuple[Float64Array, Float64Array]:
        """Give output and log-sum-exp of every row (step 7)."""
        with np.errstate(all="ignore"):
            return finish(self.fold_partials(), self.shaping, sinks)


def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    sinks: ArrayLike | None = None,
    return_lse: bool = False,
    **options: Any,
) -> Float64Array | tuple[Float64Array, Float64Array]:
    """Compute `fastattn.reference.attention` tile by tile; same options, no returned weights."""
    output, lse = attention_state(query, key, value, **options).finish(sinks)
    return (output, lse) if return_lse else output


def attention_state(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    key_start: int = 0,
    similarity: str = "scaled_dot",
    scale: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: bool | str = False,
    query_offset: ArrayLike | None = None,
    window: tuple[int | None, int | None] | None = None,
    key_lengths: ArrayLike | None = None,
    query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
) -> State:
    """Attend over the keys from `key_start` on; positions count from key 0 of the sequence.

    `mask` and `key_segments` span these keys alone, `key_lengths` the whole sequence.
    """
    query, key, value = (np.asarray(array, dtype=np.float64) for array in (query, key, value))
    mask = None if mask is None else np.asarray(mask)
    rows, key_stop = query.shape[-2], key_start + key.shape[-2]
    offset = resolve_offset(causal, query_offset, key_lengths, rows, key_stop)
    start, stop = key_ranges(
        rows, key_stop, causal=bool(causal), offset=offset, window=window, key_lengths=key_lengths
    )
    every_row = Rows(
        mask,
        np.maximum(start - key_start, 0),
        np.maximum(stop - key_start, 0),
        None if query_segments is None else np.asarray(query_segments),
        offset - key_start,
        None if alibi_slopes is None else per_head(alibi_slopes),
    )
    key_ids = None if key_segments is None else np.asarray(key_segments)
    if scale is None:
        scale = default_scale(similarity, query.shape[-1])
    biased = alibi_slopes is not None or (mask is not None and mask.dtype != bool)
    with np.errstate(all="ignore"):
        query, panels, shaping = pack(query, key, similarity, scale, softcap, biased)
        blocks = [
            attend_block(
                query[..., first : first + BLOCK_ROWS, :],
                panels,
                value,
                key_ids,
                block_of_rows(every_row, first),
                similarity,
                shaping,
            )
            for first in range(0, max(rows, 1), BLOCK_ROWS)
        ]
        partials = tuple(join_rows(segment) for segment in zip(*blocks, strict=True))
        return State(key_start, key_stop, partials, shaping).folded()


def attend_block(
    query: Float64Array,
    panels: list[Float64Array],
    value: Float64Array,
    key_ids: NDArray[Any] | None,
    block: Rows,
    similarity: str,
    shaping: Shaping,
) -> list[Partial]:
    """Do steps 2 to 6 for a block of rows: one partial result per segment of keys."""
    partials = []
    keys = value.shape[-2]
    for first in range(0, max(keys, 1), SEGMENT_KEYS):
        segment = range(first, min(first + SEGMENT_KEYS, keys))
        scores = score(query, panels, segment, block, similarity, shaping)
        scores = shape(scores, segment, block, shaping)
        scores = reveal(scores, segment, block, columns_of(key_ids, segment))
        row_max, weights, row_sum = normalise(scores, shaping.late_rest * LOG2_E)
        rest = sum_of_lanes(np.where(weights == 1.0, 0.0, weights))
        rest = np.where(row_sum < 2.0, rest, row_sum - 1.0)
        output = fuse(weights, value[..., first : segment.stop, :], scores != -np.inf)
        partials.append(Partial(row_max, row_sum, rest, output))
    return partials


def pack(
    query: Float64Array,
    key: Float64Array,
    similarity: str,
    scale: ArrayLike,
    softcap: float | None,
    biased: bool,
) -> tuple[Float64Array, list[Float64Array], Shaping]:
    """1. Exact part of the scale onto the query; unit rows for cosine; keys into panels."""
    euclidean = similarity == "euclidean"
    rest, exponent = split_scale(
        np.asarray(scale, dtype=np.float64)[..., None, None], even=euclidean
    )
    if euclidean:
        query, key = np.ldexp(query, exponent // 2), np.ldexp(key, exponent // 2)
    elif similarity == "cosine":
        query, key = np.ldexp(unit_rows(query), exponent), unit_rows(key)
    else:
        query = np.ldexp(query, exponent)
    keys = key.shape[-2]
    padding = [(0, 0)] * (key.ndim - 2) + [(0, -keys % PANEL_KEYS), (0, 0)]
    packed = np.swapaxes(np.pad(key, padding), -1, -2)
    panels = [packed[..., first : first + PANEL_KEYS] for first in range(0, keys, PANEL_KEYS)]
    rest, power = rest[..., 0], np.ldexp(1.0, exponent[..., 0])
    now = (rest <= 0) | biased | (softcap is not None)
    return query, panels, Shaping(np.where(now, rest, 1), softcap, np.where(now, 1, rest), power)


def score(
    query: Float64Array,
    panels: list[Float64Array],
    segment: range,
    block: Rows,
    similarity: str,
    shaping: Shaping,
) -> Float64Array:
    """2. Runs of chains over the features; panels that no row sees are skipped."""
    start, stop = (np.min(block.start, initial=segment.stop), np.max(block.stop, initial=0))
    power, tiles = shaping.power[..., None], []
    for first in range(segment.start, segment.stop, PANEL_KEYS):
        panel = panels[first // PANEL_KEYS]
        batch = broadcast_shapes(query.shape[:-2], panel.shape[:-2])
        zero = tile = np.zeros((*batch, query.shape[-2], PANEL_KEYS))
        if start < first + PANEL_KEYS and first < stop:
            tile = add_runs(query, panel, zero, similarity == "euclidean")
        if similarity != "euclidean" and not np.isfinite(tile).all():
            without = add_runs(query / power, panel, zero, squared=False) * power
            unusable = np.isnan(without if shaping.softcap else without - without)
            tile = np.where(np.isfinite(tile) | unusable, tile, without)
        tiles.append(tile[..., : segment.stop - first])
    scores = np.concatenate(tiles, axis=-1) if tiles else np.zeros((*query.shape[:-1], 0))
    return np.clip(scores, -power, power) if similarity == "cosine" else scores


def shape(scores: Float64Array, segment: range, block: Rows, shaping: Shaping) -> Float64Array:
    """3. Rest of the scale, softcap, float mask, ALiBi."""
    scores = scores * shaping.rest[..., None]
    if shaping.softcap is not None:
        scores = shaping.softcap * np.tanh(scores / shaping.softcap)
    mask = columns_of(block.mask, segment)
    if mask is not None and mask.dtype != bool:
        scores = np.where(mask == -np.inf, -np.inf, scores + mask)
    if block.slopes is not None:
        apart = distances(block.offset - segment.start, scores.shape[-2], len(segment))
        scores = scores - block.slopes[..., None, None] * apart
    return scores


def reveal(
    scores: Float64Array, segment: range, block: Rows, key_ids: NDArray[Any] | None
) -> Float64Array:
    """4. −inf outside the row's range, where a bool mask is False and in another document."""
    position = np.arange(segment.start, segment.stop)
    visible = (block.start[..., None] <= position) & (position < block.stop[..., None])
    mask = columns_of(block.mask, segment)
    if mask is not None and mask.dtype == bool:
        visible = visible & mask
    if block.segments is not None:
        visible = visible & same_segment(block.segments, key_ids)
    return np.where(visible, scores, -np.inf)


def normalise(
    scores: Float64Array, exponent_factor: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """5. Row maximum, weights relative to it, and their sum: key ``j`` goes to lane ``j % 16``."""
    row_max = np.max(scores, axis=-1, initial=-np.inf)
    weights = np.exp2((scores - row_max[..., None]) * exponent_factor[..., None])
    weights = np.where(scores == -np.inf, 0.0, weights)
    return row_max, weights, sum_of_lanes(weights)


def fuse(weights: Float64Array, value: Float64Array, attended: BoolArray) -> Float64Array:
    """6. A sum of chains over 128 keys; if NaN comes out, again over each row's attended keys."""
    output = _fuse_chains(weights, value, np.ones_like(attended))
    return output if not np.isnan(output).any() else _fuse_chains(weights, value, attended)


def _fuse_chains(weights: Float64Array, value: Float64Array, attended: BoolArray) -> Float64Array:
    batch = broadcast_shapes(weights.shape[:-2], value.shape[:-2])
    output = np.zeros((*batch, weights.shape[-2], value.shape[-1]))
    for first in range(0, value.shape[-2], CHAIN_KEYS):
        chain = np.zeros_like(output)
        for position in range(first, min(first + CHAIN_KEYS, value.shape[-2])):
            longer = chain + weights[..., position, None] * value[..., position, None, :]
            chain = np.where(attended[..., position, None], longer, chain)
        output = output + chain
    return output


def fold(left: Partial, right: Partial, exponent_factor: Float64Array | float) -> Partial:
    """6. The next segment joins, both corrected to the larger maximum; empty ones skipped."""
    row_max = np.maximum(left.row_max, right.row_max)
    correction = np.exp2((left.row_max - row_max) * exponent_factor)
    share = np.exp2((right.row_max - row_max) * exponent_factor)
    row_sum = left.row_sum * correction + right.row_sum * share
    at_left, at_right = left.rest + right.row_sum * share, left.row_sum * correction + right.rest
    rest = np.where(left.row_max >= right.row_max, at_left, at_right)  # one maximum stays apart
    output = left.output * correction[..., None] + right.output * share[..., None]
    for empty, other in ((left.row_max == -np.inf, right), (right.row_max == -np.inf, left)):
        row_sum, rest = np.where(empty, other.row_sum, row_sum), np.where(empty, other.rest, rest)
        output = np.where(empty[..., None], other.output, output)
    return Partial(row_max, row_sum, rest, output)


def finish(
    partial: Partial, shaping: Shaping, sinks: ArrayLike | None
) -> tuple[Float64Array, Float64Array]:
    """7. The sink, one key without a value, joins last; divide by the row sum, empty rows are 0."""
    partial = partial._replace(row_max=partial.row_max * shaping.late_rest)
    if sinks is not None:
        sink = per_head(sinks)[..., None]
        one, zero = np.ones_like(sink), np.zeros_like(sink)
        partial = fold(partial, Partial(sink, one, zero, np.zeros((1, 1))), LOG2_E)
    empty = partial.row_max == -np.inf
    output = np.where(empty[..., None], 0.0, partial.output / partial.row_sum[..., None])
    return output, np.where(empty, -np.inf, partial.row_max + np.log1p(partial.rest))


def block_of_rows(rows: Rows, first: int) -> Rows:
    """Take one block of rows; what has a single row has it for all."""

    def block(array: NDArray[Any], axis: int) -> NDArray[Any]:
        if array.ndim < -axis or array.shape[axis] == 1:
            return array
        index: tuple[Any, ...] = (..., slice(first, first + BLOCK_ROWS))
        return array[index + (slice(None),) * (-axis - 1)]

    return Rows(
        None if rows.mask is None else block(rows.mask, -2),
        block(rows.start, -1),
        block(rows.stop, -1),
        None if rows.segments is None else block(rows.segments, -1),
        rows.offset + first,
        rows.slopes,
    )


def columns_of(array: NDArray[Any] | None, segment: range) -> NDArray[Any] | None:
    """Take one segment of keys of a mask or of ids, which may have a single column for all."""
    if array is None or array.ndim == 0 or array.shape[-1] == 1:
        return array
    return array[..., segment.start : segment.stop]


def join_rows(blocks: tuple[Partial, ...]) -> Partial:
    """Join one segment of all blocks of rows."""
    *sums, output = zip(*blocks, strict=True)
    row_max, row_sum, rest = (np.concatenate(one, axis=-1) for one in sums)
    return Partial(row_max, row_sum, rest, np.concatenate(output, axis=-2))
