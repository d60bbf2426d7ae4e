"""The calls of the public face that a job is made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

import fastattn
from fastattn.batch.borders import Borders, Chunk
from fastattn.batch.errors import CallRefused
from fastattn.batch.inputs import Inputs, Small
from fastattn.batch.job import FILES, OPTIONS, SEGMENTS, Job
from fastattn.batch.readers import NpyFile, Range

Shapes = dict[str, tuple[int, ...]]


class KeyCache:
    """The keys and values of the last chunk, which the next one often shares."""

    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs
        self._held: dict[str, tuple[tuple[Range, ...], np.ndarray]] = {}

    def read(self, role: str, chunk: Chunk) -> np.ndarray:
        """Read the whole of `role` that a chunk looks at, unless it is held already."""
        layout = self._inputs.layout
        keys = (0, layout.keys)
        box = layout.operands[role].box(chunk, keys, layout.group)
        if self._held.get(role, (None,))[0] != box:
            self._held[role] = (box, self._inputs.read(role, chunk, keys))
        return self._held[role][1]


def attend_whole(
    inputs: Inputs, borders: Borders, chunk: Chunk, cache: KeyCache, with_lse: bool
) -> list[np.ndarray]:
    """One call for a chunk, whose keys are read whole."""
    keys = (0, inputs.layout.keys)
    results = fastattn.attention(
        inputs.read("query", chunk, keys),
        cache.read("key", chunk),
        cache.read("value", chunk),
        sinks=inputs.sinks_of(chunk),
        return_lse=with_lse,
        **inputs.read_all(("mask", *SEGMENTS), chunk, keys),
        **inputs.options(chunk),
    )
    return list(results) if with_lse else [results]


def attend_streamed(
    inputs: Inputs, borders: Borders, chunk: Chunk, cache: KeyCache, with_lse: bool
) -> list[np.ndarray]:
    """One chunk against its keys part by part, which gives the very bits of one call."""
    options = inputs.options(chunk)
    query = inputs.read("query", chunk, (0, 0))
    options |= inputs.read_all(("query_segments",), chunk, (0, 0))
    visible = inputs.visible_keys(chunk)
    state = _before_the_first(inputs, borders, chunk, visible, query)
    for keys in borders.parts(visible):
        part = fastattn.attention_state(
            query,
            inputs.read("key", chunk, keys),
            inputs.read("value", chunk, keys),
            key_start=keys[0],
            **inputs.read_all(("mask", "key_segments"), chunk, keys),
            **options,
        )
        state = part if state is None else state.merge(part)
        del part
    assert state is not None
    results = state.finish(inputs.sinks_of(chunk), return_lse=with_lse)
    return list(results) if with_lse else [results]


def _before_the_first(
    inputs: Inputs, borders: Borders, chunk: Chunk, visible: Range, query: np.ndarray
) -> fastattn.State | None:
    """Make the state of the keys before the first that is seen, without reading them.

    Only a state that begins at key 0 folds what is merged into it; others keep their segments
    apart, and would grow with every part. None where there are no such keys, or where the backend
    (the reference) would spend memory on them. What hides them is their position, so ids of
    documents are not needed.
    """
    hidden = (0, next(borders.parts(visible))[0])
    shapes = _shapes(inputs, chunk, hidden)
    options = inputs.options(chunk)
    if hidden[1] == 0:
        return None
    if _scratch(inputs, shapes, options, hidden[1]) > inputs.job.max_memory // 4:
        return None
    key, value = (_weightless(inputs.files[role], shapes[role]) for role in ("key", "value"))
    return fastattn.attention_state(query, key, value, **options)


def check_call(job: Job, files: dict[str, NpyFile], small: Small) -> Any:
    """Let the public face judge shapes and options as a whole, before any work."""
    shapes = {role: file.shape for role, file in files.items()}
    options = {name: getattr(job, name) for name in OPTIONS}
    try:
        return _explain(files, FILES, shapes, job, options | small)
    except (ValueError, TypeError) as error:
        roles = ", ".join(f"{role} {file.path}" for role, file in files.items())
        raise CallRefused(str(error), roles) from error


def scratch_bytes(inputs: Inputs, borders: Borders) -> int:
    """Bytes that the backend says it needs beside the arrays of one chunk."""
    layout = inputs.layout
    chunk = borders.chunk(layout.extents, 0)
    keys = (0, min(borders.part_keys or layout.keys, layout.keys))
    return _scratch(inputs, _shapes(inputs, chunk, keys), inputs.options(chunk), keys[1])


def _scratch(inputs: Inputs, shapes: Shapes, options: dict[str, Any], keys: int) -> int:
    if options["key_lengths"] is not None:
        options = options | {"key_lengths": np.minimum(options["key_lengths"], keys)}
    # Without ids, of which the face would make a copy each time, for the same scratch.
    roles = ("query", "key", "value", "mask")
    return int(_explain(inputs.files, roles, shapes, inputs.job, options).scratch_bytes)


def _shapes(inputs: Inputs, chunk: Chunk, keys: Range) -> Shapes:
    return {
        role: tuple(stop - start for start, stop in operand.box(chunk, keys, inputs.layout.group))
        for role, operand in inputs.layout.operands.items()
    }


def _weightless(file: NpyFile, shape: tuple[int, ...]) -> np.ndarray:
    """Make an array of this shape that takes no memory."""
    return np.broadcast_to(np.zeros((), file.dtype), shape)


def _explain(
    files: dict[str, NpyFile],
    roles: Sequence[str],
    shapes: Shapes,
    job: Job,
    options: dict[str, Any],
) -> Any:
    """Ask the face about a call on arrays of these shapes."""
    arrays: dict[str, Any] = {
        role: _weightless(files[role], shapes[role]) for role in roles if role in files
    }
    return fastattn.explain(**arrays, return_lse=job.lse_out is not None, **options)
