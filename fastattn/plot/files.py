"""From a file of weights to a file with their picture, for the command line."""

from __future__ import annotations

import contextlib
import io
import math
import os
from typing import Any

import numpy as np

from fastattn.batch.errors import JobError, UsageError
from fastattn.batch.readers import NpyFile, read_text
from fastattn.batch.writers import final_path, refuse_existing, refuse_input, write_whole
from fastattn.plot.attention import AttentionDisplay
from fastattn.plot.figures import MOST_PANELS, require_matplotlib

__all__ = ["plot_file"]

FORMATS = (".png", ".pdf", ".svg")


def plot_file(
    weights: str,
    out: str,
    *,
    query_labels: str | None = None,
    key_labels: str | None = None,
    batch: int | None = None,
    heads: tuple[int, ...] | None = None,
    hidden: str | None = None,
    title: str | None = None,
    dpi: int = 150,
    bfloat16: bool = False,
    overwrite: bool = False,
) -> AttentionDisplay:
    """Draw the attention weights of a `.npy` file into a picture, which appears when it is whole.

    Parameters
    ----------
    weights : str
        The file, of shape (..., H, L, S), (L, S) or (S,).
    out : str
        The picture: .png, .pdf or .svg.
    query_labels, key_labels : str, optional
        Words separated by commas, or a text file with a label on each line.
    batch : int, optional
        Which entry of the dims before the heads, counted through; needed where there are several.
    heads : tuple of int, optional
        Which heads; None: all. Only what is drawn is read.
    hidden : str, optional
        "zeros": weights of exactly 0 are hidden; else a `.npy` file of bool, True where hidden.
    title : str, optional
        Stands above the heads.
    dpi : int
        Pixels per inch.
    bfloat16 : bool
        Whether items of two raw bytes are bfloat16.
    overwrite : bool
        Replace a picture that is there already.

    Returns
    -------
    AttentionDisplay
        What was drawn.

    Raises
    ------
    JobError
        When a file cannot be read or written, or Matplotlib is missing; `UsageError` when what was
        asked for cannot work.
    """
    try:
        require_matplotlib()
    except ImportError as error:
        raise JobError(str(error)) from error
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in FORMATS:
        raise UsageError(f"output {out}: a name that ends in {', '.join(FORMATS)} says its format")
    path = final_path(out)
    refuse_existing(path, overwrite)
    sources = {"weights": weights, "hidden": hidden}
    for role, source in {**sources, "labels": query_labels, "key labels": key_labels}.items():
        refuse_input(path, role, source)
    array, where, name = _read_weights(weights, batch, heads, bfloat16)
    try:
        display = AttentionDisplay.from_weights(
            array,
            query_labels=_read_labels(query_labels),
            key_labels=_read_labels(key_labels),
            hidden=_read_hidden(hidden, where, bfloat16),
            head_labels=None if heads is None or array.ndim < 3 else [f"head {n}" for n in heads],
            title=title,
        )
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: {error}") from error
    buffer = io.BytesIO()
    display.figure_.savefig(buffer, format=suffix[1:], dpi=dpi)
    write_whole(path, buffer.getbuffer(), overwrite)
    return display


class _Chosen:
    """What is drawn of a file's array: an entry of its batch, and some of its heads."""

    def __init__(self, file: NpyFile, batch: int | None, heads: tuple[int, ...] | None) -> None:
        self.shape = shape = file.shape
        if len(shape) < 3 and heads is not None:
            raise UsageError(
                f"{file.name}: heads can be chosen of weights (..., H, L, S) alone, found {shape}: "
                "leave --head out"
            )
        outer = shape[:-3]
        entries = math.prod(outer)
        if (batch is None and entries > 1) or (batch is not None and batch >= entries):
            raise UsageError(
                f"{file.name}: expected one batch of heads, found {entries} in shape {shape}; "
                f"choose one with --batch, 0 to {entries - 1}"
            )
        if outer and entries == 0:
            raise UsageError(f"{file.name}: found shape {shape}, a batch of nothing")
        self.entry = tuple(int(i) for i in np.unravel_index(batch or 0, outer)) if outer else ()
        self.heads: tuple[int, ...] | None = None
        if len(shape) >= 3:
            self.heads = tuple(range(shape[-3])) if heads is None else heads
            for head in self.heads:
                if head >= shape[-3]:
                    raise UsageError(
                        f"{file.name}: there is no head {head}, the {shape[-3]} heads of shape "
                        f"{shape} are counted from 0"
                    )
            if len(self.heads) > MOST_PANELS:
                raise UsageError(
                    f"{file.name}: {len(self.heads)} heads in shape {shape} are more than the "
                    f"{MOST_PANELS} that one picture shows; choose some, as in --head 0,1,2,3"
                )


def _read_weights(
    path: str, batch: int | None, heads: tuple[int, ...] | None, bfloat16: bool
) -> tuple[np.ndarray, _Chosen, str]:
    file = NpyFile("weights", path, bfloat16)
    with contextlib.closing(file):
        if not file.shape:
            raise UsageError(f"{file.name}: expected weights, at least (S,), found a single number")
        if file.dtype.kind not in "fiub" and file.dtype.name != "bfloat16":
            raise UsageError(f"{file.name}: expected real numbers, found dtype {file.dtype}")
        chosen = _Chosen(file, batch, heads)
        if chosen.heads is None:
            return file.read([(0, length) for length in file.shape]), chosen, file.name
        size = file.shape[-2:]
        array = np.empty((len(chosen.heads), *size), file.dtype)
        for n, head in enumerate(chosen.heads):
            box = [*((i, i + 1) for i in (*chosen.entry, head)), (0, size[0]), (0, size[1])]
            array[n] = file.read(box).reshape(size)
        return array, chosen, file.name


def _read_hidden(hidden: str | None, chosen: _Chosen, bfloat16: bool) -> Any:
    if hidden is None or hidden == "zeros":
        return hidden
    file = NpyFile("hidden", hidden, bfloat16)
    with contextlib.closing(file):
        if file.dtype != bool:
            raise UsageError(
                f"{file.name}: expected bool, True where nothing can be seen, found {file.dtype}"
            )
        array = file.read([(0, length) for length in file.shape])
    try:
        array = np.broadcast_to(array, chosen.shape)
    except ValueError:
        raise UsageError(
            f"{file.name}: shape {array.shape} does not broadcast to the weights' {chosen.shape}"
        ) from None
    return array if chosen.heads is None else array[chosen.entry][list(chosen.heads)]


def _read_labels(labels: str | None) -> list[str] | None:
    """Return the lines of a text file, or words separated by commas where there is none."""
    if labels is None or not (os.path.lexists(labels) or "," not in labels):
        return None if labels is None else labels.split(",")
    return read_text("labels", labels).splitlines()
