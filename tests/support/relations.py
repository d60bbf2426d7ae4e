"""Pairs of calls whose results must be the same bits: what a row may not depend on.

A relation takes a case and yields pairs of `Call`s. Each call knows how to run itself, and which
part of its result the pair has in common.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import strategies
import tolerances
from cut import Call, take, visible

import fastattn

SEGMENT_KEYS = 512

Pairs = Iterator[tuple[Call, Call]]


def threads(call: Call, rng: np.random.Generator) -> Pairs:
    for count in (2, 3, 64):
        yield call.having(threads=1), call.having(threads=count)


def repeated_calls(call: Call, rng: np.random.Generator) -> Pairs:
    for _ in range(3):
        yield call, call


def query_split(call: Call, rng: np.random.Generator) -> Pairs:
    borders = sorted({0, call.rows, *rng.integers(0, call.rows + 1, 3).tolist()})
    for first, stop in itertools.pairwise(borders):
        yield call.picking(..., slice(first, stop)), call.row_range(first, stop)


def one_row_among_many(call: Call, rng: np.random.Generator) -> Pairs:
    for row in {0, call.rows - 1, *rng.integers(0, max(call.rows, 1), 3).tolist()}:
        if 0 <= row < call.rows:
            yield call.picking(..., slice(row, row + 1)), call.row_range(row, row + 1)


def batch_split(call: Call, rng: np.random.Generator) -> Pairs:
    for axis in range(-len(call.batch), 0):
        if axis == -1 and call.options.get("enable_gqa"):
            continue
        after = (slice(None),) * (-axis - 1)
        for element in range(call.batch[axis]):
            part = slice(element, element + 1)
            yield call.picking(..., part, *after, slice(None)), call.batch_part(axis, part)


def head_order(call: Call, rng: np.random.Generator) -> Pairs:
    if not call.batch or call.options.get("enable_gqa"):
        return
    order = rng.permutation(call.batch[-1])
    yield call.picking(..., order, slice(None)), call.batch_part(-1, order)


def grouped_heads_repeated(call: Call, rng: np.random.Generator) -> Pairs:
    if not call.options.get("enable_gqa"):
        return
    group = call.query.shape[-3] // call.key.shape[-3]
    key, value = (np.repeat(array, group, axis=-3) for array in (call.key, call.value))
    yield call, replace(call, key=key, value=value).having(enable_gqa=False)


def layouts(call: Call, rng: np.random.Generator) -> Pairs:
    for _ in range(3):
        names = rng.choice(list(strategies.LAYOUTS), 4)
        laid = [
            strategies.lay_out(array, str(name)) if array.size else array
            for array, name in zip(call.arrays, names, strict=False)
        ]
        plain = [strategies.plain(array) for array in laid]
        there, here = {}, {}
        mask = call.options.get("mask")
        if mask is not None and mask.ndim > 1 and mask.size:
            there["mask"] = strategies.lay_out(mask, str(names[3]))
            here["mask"] = strategies.plain(there["mask"])
        yield (
            replace(call, query=plain[0], key=plain[1], value=plain[2]).having(**here),
            replace(call, query=laid[0], key=laid[1], value=laid[2]).having(**there),
        )


def causal_prefix(call: Call, rng: np.random.Generator) -> Pairs:
    """Later keys and rows change nothing for the rows before them."""
    causal = call.having(causal=True)
    for row in rng.integers(0, max(call.rows, 1), 3).tolist():
        seen = np.max(causal.options["query_offset"], initial=-(2**40)) + row + 1
        keys = int(np.clip(seen, 0, call.keys))
        part = causal.row_range(0, row + 1)
        cut = part.key_prefix(keys)
        yield _without_weights(causal.picking(..., slice(0, row + 1))), _without_weights(cut)


def lengths_against_truncation(call: Call, rng: np.random.Generator) -> Pairs:
    if "key_lengths" in call.options:
        return
    for keys in {0, call.keys, *rng.integers(0, call.keys + 1, 3).tolist()}:
        yield (
            _without_weights(call.having(key_lengths=keys)),
            _without_weights(call.key_prefix(keys)),
        )


def hidden_contents(call: Call, rng: np.random.Generator) -> Pairs:
    """Rows that do not see a key do not see what it holds, be it inf or NaN."""
    if not call.keys or not _is_float(call.key):
        return
    sees = visible(call)
    for poison in (np.nan, np.inf, -np.inf):
        chosen = rng.random(call.keys) < rng.choice([0.02, 0.3, 0.9])
        clean = ~(sees & chosen).any(axis=-1)
        key = np.where(chosen[:, None], poison, call.key).astype(call.key.dtype)
        value = call.value
        if _is_float(value):
            value = np.where(chosen[:, None], poison, value).astype(value.dtype)
        poisoned = replace(call, key=key, value=value)
        yield call.picking(clean), poisoned.picking(clean)


def _is_float(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" or tolerances.is_small(array.dtype)


def documents_as_a_mask(call: Call, rng: np.random.Generator) -> Pairs:
    """Ids hide what the mask that says the same hides, and nothing else."""
    options = dict(call.options)
    if "query_segments" not in options:
        return
    ids = options.pop("query_segments"), options.pop("key_segments")
    same = ids[0][..., :, None] == ids[1][..., None, :]
    yield call, _also_hidden(replace(call, options=options), same)


def _also_hidden(call: Call, seen: np.ndarray) -> Call:
    """Hide by the mask what is not seen, beside what it hides already."""
    mask = call.options.get("mask")
    if mask is not None and mask.dtype != bool:
        return call.having(mask=np.where(seen, mask, np.array(-np.inf, mask.dtype)))
    return call.having(mask=seen if mask is None else seen & mask)


def ranges_as_a_mask(call: Call, rng: np.random.Generator) -> Pairs:
    """Causal masks, windows and lengths hide what the mask that says the same hides."""
    options = dict(call.options)
    position = np.arange(call.rows) + np.asarray(options["query_offset"])[..., None]
    left, right = options.pop("window", None) or (None, None)
    if options.pop("causal"):
        right = 0
    key = np.arange(call.keys)
    seen = key < np.asarray(options.pop("key_lengths", call.keys))[..., None, None]
    if left is not None:
        seen = seen & (key >= position[..., None] - left)
    if right is not None:
        seen = seen & (key <= position[..., None] + right)
    yield call, _also_hidden(replace(call, options=options), seen)


def beside_rows_that_see_all(call: Call, rng: np.random.Generator) -> Pairs:
    """Between the rows of a call others for whose sake a mask lets nothing be skipped."""
    if "mask" not in call.options:
        return
    placed = "causal", "window", "alibi_slopes", "query_offset"
    options = {name: value for name, value in call.options.items() if name not in placed}
    call = replace(call, options=options)
    mask = options["mask"]
    mask = np.repeat(np.broadcast_to(mask, (*mask.shape[:-2], call.rows, call.keys)), 2, axis=-2)
    mask[..., ::2, :] = mask.dtype == bool
    if "query_segments" in options:
        options = {**options, "query_segments": np.repeat(options["query_segments"], 2, axis=-1)}
    query = np.repeat(call.query, 2, axis=-2)
    both = replace(call, query=query, options={**options, "mask": mask})
    yield call, both.picking(..., slice(1, None, 2))


def sinks_of_nothing(call: Call, rng: np.random.Generator) -> Pairs:
    """A sink of −inf takes no weight, and changes no bit."""
    heads = call.batch[-1:]
    if "sinks" not in call.options:
        yield call, call.having(sinks=np.full(heads, -np.inf, np.float32))


def results_asked_for(call: Call, rng: np.random.Generator) -> Pairs:
    """Output is the same with lse, with weights, with both, with `out`."""

    def only(**asked: Any) -> Call:
        def run(c: Call) -> tuple[np.ndarray, ...]:
            results = fastattn.attention(*c.arrays, **c.options, **asked)
            return results[:1] if isinstance(results, tuple) else (results,)

        return replace(call, run_with=run)

    output = fastattn.attention(*call.arrays, **call.options)
    fortran = np.full_like(output, np.nan, order="F")
    yield call, only()
    yield call, only(return_lse=True)
    yield call, only(return_weights=True)
    yield call, only(out=np.full_like(output, np.nan))
    yield call, only(out=fortran)


def streamed_states(call: Call, rng: np.random.Generator) -> Pairs:
    """Parts of the keys, each from a segment border on, merge to the one call."""
    segments = -(-call.keys // SEGMENT_KEYS)
    for _ in range(2):
        inner = rng.random(max(segments - 1, 0)) < 0.6
        borders = [SEGMENT_KEYS * (i + 1) for i in np.flatnonzero(inner)]
        borders = [0, *borders, call.keys]
        right_first = bool(rng.integers(2))

        def run(c: Call, borders=borders, right_first=right_first):
            states = [_state(c, first, stop) for first, stop in itertools.pairwise(borders)]
            while len(states) > 1:
                at = len(states) - 2 if right_first else 0
                states[at : at + 2] = [states[at].merge(states[at + 1])]
            return states[0].finish(sinks=c.options.get("sinks"), return_lse=True)

        yield call, replace(call, run_with=run)


def _state(call: Call, first: int, stop: int) -> Any:
    options = dict(call.options)
    if "mask" in options:
        options["mask"] = take(options["mask"], -1, slice(first, stop))
    if "key_segments" in options:
        options["key_segments"] = options["key_segments"][..., first:stop]
    options.pop("sinks", None)
    key, value = call.key[..., first:stop, :], call.value[..., first:stop, :]
    return fastattn.attention_state(call.query, key, value, key_start=first, **options)


def _without_weights(call: Call) -> Call:
    """Compare output and lse alone: the weights of fewer keys have another shape."""

    def run(c: Call) -> tuple[np.ndarray, ...]:
        return fastattn.attention(*c.arrays, **c.options, return_lse=True)

    return replace(call, run_with=run)


RELATIONS: dict[str, Callable[[Call, np.random.Generator], Pairs]] = {
    relation.__name__: relation
    for relation in (
        threads,
        repeated_calls,
        query_split,
        one_row_among_many,
        batch_split,
        head_order,
        grouped_heads_repeated,
        layouts,
        causal_prefix,
        lengths_against_truncation,
        hidden_contents,
        documents_as_a_mask,
        ranges_as_a_mask,
        beside_rows_that_see_all,
        sinks_of_nothing,
        results_asked_for,
        streamed_states,
    )
}

# Relations that say something only if the two calls are really cut in another way.
PLANS_DIFFER = ("threads", "query_split", "one_row_among_many", "batch_split")
