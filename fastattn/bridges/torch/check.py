"""Whether a model gives each row the same bits in any batch: measured, and where it stops to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from fastattn.bridges.torch.tensors import array_of

__all__ = ["Difference", "InvarianceReport", "check_batch_invariance"]


@dataclass(frozen=True)
class Difference:
    """How the rows of one run differ from those of the whole batch.

    Attributes
    ----------
    run : str
        What was run: ``"alone"``, ``"in batches of 2"``, ``"permuted"``, ``"one thread"``.
    rows : tuple of int
        Rows whose output differs.
    numbers : int
        How many numbers of the output differ.
    bits : int
        How many bits of them differ.
    largest : float
        The largest difference.
    module : str
        The first module, in the order in which they finish, whose output differs; empty where none
        does by itself.
    """

    run: str
    rows: tuple[int, ...]
    numbers: int
    bits: int
    largest: float
    module: str

    def __str__(self) -> str:
        where = f", first in {self.module}" if self.module else ""
        return (
            f"{self.run}: {len(self.rows)} rows differ {list(self.rows[:8])}, {self.numbers} "
            f"numbers, {self.bits} bits, by up to {self.largest:.3g}{where}"
        )


@dataclass(frozen=True)
class InvarianceReport:
    """What `check_batch_invariance` found; true where every run gave the same bits.

    Attributes
    ----------
    rows : int
        Rows of the batch.
    runs : tuple of str
        What was run, beside the whole batch on all threads.
    differences : tuple of Difference
        Those of the runs that differ from it.
    """

    rows: int
    runs: tuple[str, ...]
    differences: tuple[Difference, ...] = field(default=())

    def __bool__(self) -> bool:
        return not self.differences

    def __str__(self) -> str:
        head = f"{self.rows} rows, {', '.join(self.runs)}: "
        if self:
            return head + "the same bits as in the whole batch"
        return "\n".join((head + "other bits than in the whole batch", *map(str, self.differences)))


def check_batch_invariance(model: torch.nn.Module, inputs: Any) -> InvarianceReport:
    """Run a model on a batch, on its rows alone, in other batches, and compare all bits.

    Parameters
    ----------
    model : Module
        Called without gradients, in the mode it is in: `model.eval()` first.
    inputs : Tensor, sequence of arguments, or mapping of keywords
        A batch. Tensors whose first axis is as long as that of the first tensor are cut along it,
        all else is passed as it is.

    Returns
    -------
    report : InvarianceReport
        True if all outputs have the same bits: each row alone, in batches of 2 and 3, all permuted,
        on one thread and on all. Otherwise it tells of each run which rows differ, in how many
        numbers and bits, and the first module whose output does.

    Raises
    ------
    ValueError
        If there is no tensor to cut, or only one row.

    Examples
    --------
    >>> import torch, fastattn
    >>> model = torch.nn.Sequential(torch.nn.Linear(100, 100), torch.nn.Tanh())
    >>> with fastattn.bridges.torch.batch_invariant():
    ...     report = fastattn.bridges.torch.check_batch_invariance(model, torch.randn(5, 100))
    >>> print(report)
    5 rows, alone, in batches of 2, in batches of 3, permuted, one thread: the same bits as in the \
whole batch
    """
    batch = _Batch(inputs)
    rows = batch.rows
    every = torch.arange(rows)
    runs = {
        "alone": [every[i : i + 1] for i in range(rows)],
        "in batches of 2": list(every.split(2)),
        "in batches of 3": list(every.split(3)),
        "permuted": [every.flip(0).roll(1)],
        "one thread": [every],
    }
    with torch.no_grad(), _Watched(model, rows) as watched:
        whole = watched.whole(lambda: batch.run(model, every))
        found = []
        for name, parts in runs.items():
            with _threads(1 if name == "one thread" else None):
                outputs = [watched.part(part, lambda p=part: batch.run(model, p)) for part in parts]
            difference = _compare(name, whole, outputs, parts, watched.differing())
            if difference is not None:
                found.append(difference)
    return InvarianceReport(rows, tuple(runs), tuple(found))


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Batch:
    """The inputs of a model, and calls with some of their rows."""

    def __init__(self, inputs: Any) -> None:
        self._names: list[str] | None = None
        if isinstance(inputs, torch.Tensor):
            values = [inputs]
        elif isinstance(inputs, Mapping):
            self._names, values = list(inputs), list(inputs.values())
        elif isinstance(inputs, Sequence) and not isinstance(inputs, str):
            values = list(inputs)
        else:
            raise TypeError(f"inputs are a tensor, a sequence or a mapping, not {type(inputs)}")
        self._values = values
        sizes = [len(x) for x in values if isinstance(x, torch.Tensor) and x.dim()]
        if not sizes or sizes[0] < 2:
            raise ValueError(f"a batch of at least two rows is needed, and there are {sizes[:1]}")
        self.rows = sizes[0]

    def run(self, model: Any, rows: torch.Tensor) -> list[torch.Tensor]:
        """Call the model with these rows, and return the tensors among what it returns."""
        values = [
            x[rows] if isinstance(x, torch.Tensor) and x.dim() and len(x) == self.rows else x
            for x in self._values
        ]
        named = dict(zip(self._names, values, strict=True)) if self._names is not None else {}
        return _tensors(model(**named) if named else model(*values))


def _tensors(output: Any) -> list[torch.Tensor]:
    return [x for x in tree_leaves(output) if isinstance(x, torch.Tensor)]


class _Watched:
    """A model whose modules' outputs are compared with those of the whole batch, as they come."""

    def __init__(self, model: torch.nn.Module, rows: int) -> None:
        self._model, self._rows = model, rows
        self._known: list[tuple[str, torch.Tensor]] | None = None
        self._seen: list[tuple[str, torch.Tensor]] = []
        self._axes: dict[int, int | None] = {}
        self._differ: set[int] = set()

    def __enter__(self) -> _Watched:
        self._hooks = [
            module.register_forward_hook(self._hook(name or "the model"), always_call=False)
            for name, module in self._model.named_modules()
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _hook(self, name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Any) -> None:
            # Copies: what comes next may write into them.
            self._seen += [(name, x.clone()) for x in _tensors(output)]

        return hook

    def whole(self, run: Any) -> list[torch.Tensor]:
        """Run the whole batch, and keep what its modules give."""
        self._seen = []
        outputs: list[torch.Tensor] = run()
        self._known = self._seen
        return outputs

    def part(self, rows: torch.Tensor, run: Any) -> list[torch.Tensor]:
        """Run some rows, and note the modules that give them other bits."""
        self._seen = []
        outputs: list[torch.Tensor] = run()
        known = self._known or []
        if [name for name, _ in known] == [name for name, _ in self._seen]:
            for place, ((_, before), (_, now)) in enumerate(zip(known, self._seen, strict=True)):
                if place not in self._axes:
                    self._axes[place] = _batch_axis(before, now, self._rows, len(rows))
                axis = self._axes[place]
                if axis is not None and not _same(_rows_of(before, axis, self._rows, rows), now):
                    self._differ.add(place)
        return outputs

    def differing(self) -> str:
        """Return the first module that gave other bits since the last question."""
        first, self._differ = min(self._differ, default=None), set()
        return "" if first is None or self._known is None else self._known[first][0]


def _batch_axis(whole: torch.Tensor, part: torch.Tensor, rows: int, some: int) -> int | None:
    """Return the axis that is longer by as much as the batch is; None: there is no such axis."""
    if rows == some or whole.dim() != part.dim():
        return None
    for axis in range(whole.dim()):
        if whole.shape[axis] * some == part.shape[axis] * rows:
            same = [n for at, n in enumerate(whole.shape) if at != axis]
            if same == [n for at, n in enumerate(part.shape) if at != axis] and whole.shape[axis]:
                return axis
    return None


def _rows_of(x: torch.Tensor, axis: int, count: int, rows: torch.Tensor) -> torch.Tensor:
    """Pick rows of the batch along an axis that holds them one behind the other."""
    split = x.unflatten(axis, (count, x.shape[axis] // count))
    return split.index_select(axis, rows).flatten(axis, axis + 1)


def _bits(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(array_of(x)).reshape(-1).view(np.uint8)


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and np.array_equal(_bits(one), _bits(other))


def _compare(
    run: str,
    whole: list[torch.Tensor],
    outputs: list[list[torch.Tensor]],
    parts: list[torch.Tensor],
    module: str,
) -> Difference | None:
    """Compare the outputs of a run with the same rows of those of the whole batch."""
    differing: set[int] = set()
    numbers = bits = 0
    largest = 0.0
    count = sum(map(len, parts)) if parts else 0
    for output, rows in zip(outputs, parts, strict=True):
        for before, now in zip(whole, output, strict=True):
            if (
                not before.dim()
                or len(before) % count
                or len(before) // count * len(rows) != len(now)
            ):
                continue  # no axis of rows
            expected = _rows_of(before, 0, count, rows)
            if _same(expected, now):
                continue
            for row, one, other in zip(
                rows.tolist(), expected.chunk(len(rows)), now.chunk(len(rows)), strict=True
            ):
                if not _same(one, other):
                    differing.add(row)
                    xor = _bits(one) ^ _bits(other)
                    bits += int(np.unpackbits(xor).sum())
                    numbers += int((xor.reshape(-1, one.element_size()) != 0).any(1).sum())
                    apart = (one.double() - other.double()).abs().nan_to_num()
                    largest = max(largest, float(apart.max()))
    if not differing:
        return None
    return Difference(run, tuple(sorted(differing)), numbers, bits, largest, module)
