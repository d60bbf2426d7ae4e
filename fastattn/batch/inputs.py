"""The input files of a job, their measures, and what each chunk needs of them."""

import os
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from fastattn.batch.borders import Chunk, Layout, Operand
from fastattn.batch.errors import JobError, UsageError
from fastattn.batch.job import FILES, INTEGERS, Job
from fastattn.batch.manifest import manifest_path
from fastattn.batch.readers import NpyFile, Range
from fastattn.batch.writers import final_path, partial_path, refuse_existing

Integers = dict[str, np.ndarray | None]


class Inputs(NamedTuple):
    """The opened inputs of a valid job, their sizes, and where query rows stand on the key axis."""

    job: Job
    files: dict[str, NpyFile]
    layout: Layout
    dtype: np.dtype[Any]  # of computing and of the outputs
    output_shape: tuple[int, ...]
    key_lengths: np.ndarray | None
    query_offset: np.ndarray | None  # None where positions do not matter

    def options(self, chunk: Chunk) -> dict[str, Any]:
        """Collect the options of `fastattn.attention` for one chunk."""
        job, lengths = self.job, self.key_lengths
        options: dict[str, Any] = {
            "similarity": job.similarity,
            "scale": job.scale,
            "causal": bool(job.causal),
            "window": job.window,
            "softcap": job.softcap,
            "enable_gqa": job.enable_gqa,
            "threads": job.threads,
            "backend": job.backend,
            "key_lengths": None if lengths is None else _cut(lengths, chunk),
        }
        if self.query_offset is not None:
            options["query_offset"] = _cut(self.query_offset, chunk) + chunk.rows[0]
        return options

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

    def read(self, role: str, chunk: Chunk, keys: Range) -> np.ndarray:
        """Read what a chunk needs of one input."""
        box = self.layout.operands[role].box(chunk, keys, self.layout.group)
        return self.files[role].read(box)


def open_inputs(job: Job, stack: ExitStack) -> tuple[dict[str, NpyFile], Integers]:
    """Open the input files of a job, and read the small ones; `stack` closes them."""
    files: dict[str, NpyFile] = {}
    integers: Integers = {}
    for role in (*FILES, *INTEGERS):
        given = getattr(job, role)
        if role in INTEGERS and not isinstance(given, str):
            integers[role] = None if given is None else np.asarray(given)
        elif given is not None:
            files[role] = NpyFile(role.replace("_", "-"), given)
            stack.callback(files[role].close)
    for role in INTEGERS:
        if role in files:
            integers[role] = _read_integers(files[role], job.max_memory)
    return files, integers


def describe_inputs(job: Job, files: dict[str, NpyFile], integers: Integers) -> Inputs:
    """Take the measures of inputs which the public face has accepted."""
    dtypes = [files[role].dtype.newbyteorder("=") for role in ("query", "key", "value")]
    dtype = np.dtype(np.float32 if all(d == np.float32 for d in dtypes) else np.float64)
    layout = _layout(job, files, dtype)
    # A 1-D query has no axis of rows, and neither has its output.
    rows = (layout.rows,) if len(files["query"].shape) > 1 else ()
    shape = (*layout.batch, *rows, layout.value_features)
    lengths, offset = (
        None if given is None else given.astype(np.int64)
        for given in (integers["key_lengths"], integers["query_offset"])
    )
    if not (job.causal or job.window):
        offset = None
    elif job.causal == "bottom_right":
        offset = np.asarray((layout.keys if lengths is None else lengths) - np.int64(layout.rows))
    elif offset is None:
        offset = np.zeros((), np.int64)
    return Inputs(job, files, layout, dtype, shape, lengths, offset)


def _read_integers(file: NpyFile, limit: int) -> np.ndarray:
    if file.dtype.kind not in "iu":
        raise JobError(
            f"{file.name}: expected integers over the batch dims, found {file.dtype} {file.shape}; "
            "save array.astype(numpy.int64)"
        )
    if file.nbytes > limit:
        raise UsageError(f"{file.name}: {file.nbytes} bytes are more than --max-memory {limit}")
    return file.read([(0, length) for length in file.shape])


def _layout(job: Job, files: dict[str, NpyFile], dtype: np.dtype[Any]) -> Layout:
    query, key, value = (files[role].shape for role in ("query", "key", "value"))
    rows = query[-2] if len(query) > 1 else 1
    group = 1
    if job.enable_gqa:
        heads, *key_heads = (shape[-3] if len(shape) > 2 else 1 for shape in (query, key, value))
        # One key head for all is plain broadcasting, which may be cut anywhere.
        group = max(heads // max(key_heads), 1) if max(key_heads) > 1 else 1
    leads = [query[:-2], _spread(key[:-2], group), _spread(value[:-2], group)]
    batch = np.broadcast_shapes(*leads)
    operands = {
        "query": _operand(files["query"], ("rows", "features")),
        "key": _operand(files["key"], ("keys", "features"), group > 1),
        "value": _operand(files["value"], ("keys", "features"), group > 1),
    }
    if "mask" in files:
        operands["mask"] = _operand(files["mask"], ("rows", "keys"))
    return Layout(
        batch=batch,
        rows=rows,
        keys=key[-2],
        features=query[-1],
        value_features=value[-1],
        group=group,
        operands=operands,
        row_bytes=(value[-1] + (job.lse_out is not None)) * dtype.itemsize,
        compute_itemsize=dtype.itemsize,
    )


def _operand(file: NpyFile, trailing: Any, key_heads: bool = False) -> Operand:
    trailing = trailing[max(0, len(trailing) - len(file.shape)) :]
    return Operand(file.shape, file.dtype.itemsize, trailing, key_heads)


def _spread(lead: tuple[int, ...], group: int) -> tuple[int, ...]:
    return (*lead[:-1], lead[-1] * group) if lead and lead[-1] > 1 else lead


def _cut(array: np.ndarray, chunk: Chunk) -> np.ndarray:
    """Take the part of a per-batch array that belongs to a chunk; dims of size 1 are shared."""
    if array.ndim == 0:
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
        raise UsageError(f"--out and --lse-out are the same file {out}; give two")
    for role in (*FILES, *INTEGERS):
        path = getattr(job, role)
        for target in (*targets, *temporaries, manifest):
            if isinstance(path, str) and os.path.exists(target) and os.path.samefile(path, target):
                raise UsageError(
                    f"the {role} file {path} would be written to as {target}; choose another output"
                )
    if os.path.lexists(manifest):
        return  # what may be replaced depends on what it says
    for target, temporary in zip(targets, temporaries, strict=True):
        if os.path.lexists(temporary):
            raise JobError(
                f"{temporary}: is in the way of the temporary output, and no manifest beside it "
                "says that a job left it; move it away or remove it"
            )
        refuse_existing(target, job.overwrite)
