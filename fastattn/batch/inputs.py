"""The input files of a job, their measures, and what each chunk needs of them."""

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple, overload

import numpy as np

from fastattn.batch.borders import Chunk, Layout, Operand
from fastattn.batch.errors import JobError, UsageError
from fastattn.batch.job import FILES, INTEGERS, OPTIONS, PER_HEAD, SEGMENTS, Job
from fastattn.batch.manifest import manifest_path
from fastattn.batch.readers import NpyFile, Range
from fastattn.batch.writers import final_path, partial_path, refuse_existing, refuse_input

# The per-batch arrays, by name; None where they are not given.
Small = dict[str, np.ndarray | None]
_SMALL = (*INTEGERS, *PER_HEAD)
_INT64 = np.dtype(np.int64)


class Inputs(NamedTuple):
    """The opened inputs of a valid job, their sizes, and where query rows stand on the key axis."""

    job: Job
    files: dict[str, NpyFile]
    layout: Layout
    dtype: np.dtype[Any]  # of the output
    lse_dtype: np.dtype[Any]  # and of computing
    output_shape: tuple[int, ...]
    key_lengths: np.ndarray | None
    query_offset: np.ndarray | None  # None where positions do not matter
    per_head: Small

    def options(self, chunk: Chunk) -> dict[str, Any]:
        """Collect the options of `fastattn.attention` for one chunk, those of its keys apart."""
        options: dict[str, Any] = {name: getattr(self.job, name) for name in OPTIONS}
        options |= {"causal": bool(self.job.causal), "key_lengths": _cut(self.key_lengths, chunk)}
        options |= {name: _cut(x, chunk) for name, x in self.per_head.items() if name != "sinks"}
        if self.query_offset is not None:
            options["query_offset"] = _cut(self.query_offset, chunk) + chunk.rows[0]
        return options

    def sinks_of(self, chunk: Chunk) -> np.ndarray | None:
        """Cut the sinks for one chunk; they come last, when all keys have been seen."""
        return _cut(self.per_head["sinks"], chunk)

    def visible_keys(self, chunk: Chunk) -> Range:
        """Find the smallest range that holds every key which some row of the chunk may see."""
        start, stop = 0, self.layout.keys
        lengths = self.key_lengths
        if lengths is not None:
            stop = min(stop, int(_cut(lengths, chunk).max()))
        if self.query_offset is not None:
            offset = _cut(self.query_offset, chunk)
            first, last = int(offset.min()) + chunk.rows[0], int(offset.max()) + chunk.rows[1] - 1
            left, right = self.job.window or (None, None)
            if left is not None:
                start = max(start, first - left)
            if right is not None:
                stop = min(stop, last + right + 1)
            if self.job.causal:
                stop = min(stop, last + 1)
        return min(start, max(stop, 0)), max(stop, 0)

    def read_all(self, roles: Sequence[str], chunk: Chunk, keys: Range) -> dict[str, Any]:
        """Read what a chunk needs of those of the inputs that are given."""
        return {role: self.read(role, chunk, keys) for role in roles if role in self.files}

    def read(self, role: str, chunk: Chunk, keys: Range) -> np.ndarray:
        """Read what a chunk needs of one input."""
        box = self.layout.operands[role].box(chunk, keys, self.layout.group)
        return self.files[role].read(box)


def open_inputs(job: Job, stack: ExitStack) -> tuple[dict[str, NpyFile], Small]:
    """Open the input files of a job, and read the small ones; `stack` closes them."""
    files: dict[str, NpyFile] = {}
    small: Small = {}
    for role in (*FILES, *_SMALL):
        given = getattr(job, role)
        if role in _SMALL and not isinstance(given, str):
            small[role] = None if given is None else np.asarray(given)
        elif given is not None:
            files[role] = NpyFile(role.replace("_", "-"), given, job.bfloat16)
            stack.callback(files[role].close)
    for role, file in files.items():
        if role in INTEGERS:
            _check_integers(file, "integers over the batch dims")
        if role in SEGMENTS:
            # Ids beyond int64 would only be met in the midst of the work.
            _check_integers(file, "ids that fit into int64", np.can_cast(file.dtype, _INT64))
            # The face copies the ids of one row when it judges the call as a whole.
            _check_size(file, _INT64.itemsize * math.prod(file.shape[-1:]), job.max_memory)
        if role in _SMALL:
            _check_size(file, file.nbytes, job.max_memory)
            small[role] = file.read([(0, length) for length in file.shape])
    scale = small["scale"]
    if isinstance(job.scale, tuple) and scale is not None:
        # One per head, the last of the batch dims, of which a scale has all.
        dims = max(len(files[role].shape) for role in ("query", "key", "value")) - 2
        small["scale"] = scale.reshape(*(1,) * (dims - 1), len(scale))
    return files, small


def describe_inputs(job: Job, files: dict[str, NpyFile], small: Small, call: Any) -> Inputs:
    """Take the measures of inputs which the public face has accepted as `call`."""
    dtype, compute_dtype = call.problem.output_dtype, call.problem.dtype
    shape = call.problem.output_shape
    # A 1-D query has no axis of rows, and neither has its output.
    batch = shape[:-2] if len(files["query"].shape) > 1 else shape[:-1]
    layout = _layout(job, files, batch, dtype, compute_dtype)
    lengths, offset = (
        None if given is None else given.astype(np.int64)
        for given in (small["key_lengths"], small["query_offset"])
    )
    per_head = {name: _over_batch(small[name], layout.batch) for name in PER_HEAD}
    if not (job.causal or job.window or job.alibi_slopes is not None):
        offset = None
    elif job.causal == "bottom_right":
        offset = np.asarray((layout.keys if lengths is None else lengths) - np.int64(layout.rows))
    elif offset is None:
        offset = np.zeros((), np.int64)
    return Inputs(job, files, layout, dtype, compute_dtype, shape, lengths, offset, per_head)


def _check_integers(file: NpyFile, what: str, fit: bool = True) -> None:
    if file.dtype.kind not in "iu" or not fit:
        raise JobError(
            f"{file.name}: expected {what}, found {file.dtype} {file.shape}; "
            "`numpy.save(path, array.astype(numpy.int64))`"
        )


def _check_size(file: NpyFile, needed: int, limit: int) -> None:
    if needed > limit:
        raise UsageError(
            f"{file.name}: its {needed} bytes are more than the memory to be used, {limit}"
        )


def _layout(
    job: Job,
    files: dict[str, NpyFile],
    batch: tuple[int, ...],
    dtype: np.dtype[Any],
    compute_dtype: np.dtype[Any],
) -> Layout:
    query, key, value = (files[role].shape for role in ("query", "key", "value"))
    rows = query[-2] if len(query) > 1 else 1
    group = 1
    if job.enable_gqa:
        heads, *key_heads = (shape[-3] if len(shape) > 2 else 1 for shape in (query, key, value))
        # One key head for all is plain broadcasting, which may be cut anywhere.
        group = max(heads // max(key_heads), 1) if max(key_heads) > 1 else 1
    operands = {
        "query": _operand(files["query"], ("rows", "features")),
        "key": _operand(files["key"], ("keys", "features"), group > 1),
        "value": _operand(files["value"], ("keys", "features"), group > 1),
    }
    if "mask" in files:
        operands["mask"] = _operand(files["mask"], ("rows", "keys"))
    for role, axis in zip(SEGMENTS, ("rows", "keys"), strict=True):
        if role in files:
            ids = _operand(files[role], (axis,))
            operands[role] = ids._replace(itemsize=ids.itemsize + _INT64.itemsize)  # and a copy
    return Layout(
        batch=batch,
        rows=rows,
        keys=key[-2],
        features=query[-1],
        value_features=value[-1],
        group=group,
        operands=operands,
        row_bytes=value[-1] * dtype.itemsize + (job.lse_out is not None) * compute_dtype.itemsize,
        compute_itemsize=compute_dtype.itemsize,
    )


def _operand(file: NpyFile, trailing: Any, key_heads: bool = False) -> Operand:
    trailing = trailing[max(0, len(trailing) - len(file.shape)) :]
    return Operand(file.shape, file.dtype.itemsize, trailing, key_heads)


def _over_batch(array: np.ndarray | None, batch: tuple[int, ...]) -> np.ndarray | None:
    """Give an array that broadcasts to the batch dims all of them; a number stays one."""
    if array is None or array.ndim == 0:
        return array
    return array.reshape((1,) * (len(batch) - array.ndim) + array.shape if batch else ())


@overload
def _cut(array: np.ndarray, chunk: Chunk) -> np.ndarray: ...
@overload
def _cut(array: np.ndarray | None, chunk: Chunk) -> np.ndarray | None: ...
def _cut(array: np.ndarray | None, chunk: Chunk) -> np.ndarray | None:
    """Take the part of a per-batch array that belongs to a chunk; dims of size 1 are shared."""
    if array is None or array.ndim == 0:
        return array
    ranges = zip(array.shape, chunk.batch, strict=True)
    return array[tuple(slice(None) if n == 1 else slice(*span) for n, span in ranges)]


def check_paths(job: Job) -> None:
    """Refuse outputs that are also inputs, or each other, or not to be replaced."""
    out, lse_out = final_path(job.out), job.lse_out and final_path(job.lse_out)
    targets = [path for path in (out, lse_out) if path]
    temporaries = [partial_path(path) for path in targets]
    manifest = manifest_path(out)
    if out == lse_out or (lse_out and {out, lse_out} & {*temporaries, manifest}):
        raise same_outputs(job)
    for role in (*FILES, *_SMALL):
        path = getattr(job, role)
        for target in (*targets, *temporaries, manifest):
            refuse_input(target, role, path if isinstance(path, str) else None)
    if not os.path.lexists(manifest):  # else what may be replaced depends on what it says
        for target in targets:
            refuse_existing(target, job.overwrite)
    with suppress(OSError):  # one of them does not exist
        if lse_out and os.path.samefile(out, lse_out):
            raise same_outputs(job)


def same_outputs(job: Job) -> UsageError:
    """Say that two outputs are one file, by whichever names."""
    return UsageError(f"--out {job.out} and --lse-out {job.lse_out} are the same file; give two")
