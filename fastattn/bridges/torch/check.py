"""Whether a model gives each row the same bits in any batch: measured, and where it stops to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

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
    uncompared : tuple of int
        Which of the tensors that the model returns, counted from 0, differ between runs and have no
        axis along which their rows lie, such as a mean over the batch. With any, it is false.
    """

    rows: int
    runs: tuple[str, ...]
    differences: tuple[Difference, ...] = field(default=())
    uncompared: tuple[int, ...] = field(default=())

    def __bool__(self) -> bool:
        return not self.differences and not self.uncompared

    def __str__(self) -> str:
        head = f"{self.rows} rows, {', '.join(self.runs)}: "
        other = "other bits than" if self.differences else "the same bits as"
        lines = [f"{head}{other} in the whole batch", *map(str, self.differences)]
        if self.uncompared:
            lines.append(f"not compared, for they have no rows: outputs {list(self.uncompared)}")
        return "\n".join(lines)


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
        numbers and bits, and the first module whose output does. Zeros are equal whatever their
        sign, and so are NaNs.

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
        found: list[Difference] = []
        comparison = _Comparison(whole, rows)
        for name, parts in runs.items():
            with _threads(1 if name == "one thread" else None):
                outputs = [watched.part(part, lambda p=part: batch.run(model, p)) for part in parts]
            difference = comparison.of(name, outputs, parts, watched.differing())
            if difference is not None:
                found.append(difference)
    return InvarianceReport(rows, tuple(runs), tuple(found), tuple(sorted(comparison.uncompared)))


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
        self._axes: dict[int, _Axis | None] = {}
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
                    self._axes[place] = _batch_axis(before, [now], [rows], self._rows)
                axis = self._axes[place]
                if axis is not None and not _same(axis.pick(before, rows), now):
                    self._differ.add(place)
        return outputs

    def differing(self) -> str:
        """Return the first module that gave other bits since the last question."""
        first, self._differ = min(self._differ, default=None), set()
        return "" if first is None or self._known is None else self._known[first][0]


@dataclass(frozen=True)
class _Axis:
    """Where the rows of the batch lie in a tensor."""

    axis: int
    count: int
    inner: bool  # within each step along the axis, as in (L * B, D); else one behind the other

    def split(self, x: torch.Tensor, rows: int) -> torch.Tensor:
        """Return the rows of a tensor, the batch first."""
        each = x.shape[self.axis] // max(rows, 1)
        sizes = (each, rows) if self.inner else (rows, each)
        return x.unflatten(self.axis, sizes).movedim(self.axis + self.inner, 0)

    def pick(self, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Return some rows of a tensor of the whole batch, laid out as one of these alone is."""
        picked = self.split(x, self.count).index_select(0, rows)
        return picked.movedim(0, self.axis + self.inner).flatten(self.axis, self.axis + 1)


def _batch_axis(
    whole: torch.Tensor, outputs: list[torch.Tensor], parts: list[torch.Tensor], count: int
) -> _Axis | None:
    """Return the axis that is longer by as much as the batch is; None: there is no such axis."""
    some, part = len(parts[0]), outputs[0]
    if count == some or whole.dim() != part.dim():
        return None
    for axis, (size, other) in enumerate(zip(whole.shape, part.shape, strict=True)):
        rest = whole.shape[:axis] + whole.shape[axis + 1 :]
        if size * some != other * count or not size:
            continue
        if rest == part.shape[:axis] + part.shape[axis + 1 :]:
            ways = [
                _Axis(axis, count, inner) for inner in ((False, True) if other > 1 else (False,))
            ]
            # Of two orders of rows, that which more of them have.
            return max(ways, key=lambda way: _alike(way, whole, outputs, parts))
    return None


def _alike(
    way: _Axis, whole: torch.Tensor, outputs: list[torch.Tensor], parts: list[torch.Tensor]
) -> int:
    return sum(
        int((_canonical(way.pick(whole, rows)) == _canonical(now)).sum())
        for rows, now in zip(parts, outputs, strict=True)
    )


def _canonical(x: torch.Tensor) -> np.ndarray:
    """Return the bits of numbers, one a row; all zeros alike, and all NaNs."""
    x = x.detach().resolve_conj().resolve_neg()
    x = (torch.view_as_real(x) if x.is_complex() else x).contiguous()
    bits: np.ndarray = x.reshape(-1).view(torch.uint8).numpy().reshape(x.numel(), x.element_size())
    if x.is_floating_point():
        bits = bits.copy()
        bits[(x == 0).reshape(-1).numpy()] = 0
        bits[torch.isnan(x).reshape(-1).numpy()] = 255
    return bits


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and np.array_equal(_canonical(one), _canonical(other))


class _Comparison:
    """The outputs of the whole batch, and those of the runs, which are compared with them."""

    def __init__(self, whole: list[torch.Tensor], count: int) -> None:
        self._whole, self._count = [x.clone() for x in whole], count
        self._axes: list[_Axis | None] = []
        self.uncompared: set[int] = set()

    def of(
        self, run: str, outputs: list[list[torch.Tensor]], parts: list[torch.Tensor], module: str
    ) -> Difference | None:
        """Compare the outputs of a run; of the first, each row is alone."""
        self._differing: set[int] = set()
        self._numbers = self._bits = 0
        self._largest = 0.0
        if any(len(output) != len(self._whole) for output in outputs):
            self.uncompared |= set(range(len(self._whole)))
            return None
        for place, whole in enumerate(self._whole):
            given = [output[place] for output in outputs]
            if len(self._axes) == place:
                self._axes.append(_batch_axis(whole, given, parts, self._count))
            axis = self._axes[place]
            for rows, now in zip(parts, given, strict=True):
                if axis is None:
                    if not _same(whole, now):
                        self.uncompared.add(place)
                elif not self._compare(axis, whole, now, rows):
                    self.uncompared.add(place)
        if not self._differing:
            return None
        rows_found = tuple(sorted(self._differing))
        return Difference(run, rows_found, self._numbers, self._bits, self._largest, module)

    def _compare(
        self, axis: _Axis, whole: torch.Tensor, now: torch.Tensor, rows: torch.Tensor
    ) -> bool:
        """Note which rows differ and by how much; False: they are not those of the batch."""
        expected = axis.pick(whole, rows)
        if expected.shape != now.shape or expected.dtype is not now.dtype:
            return False
        if _same(expected, now):
            return True
        pairs = (axis.split(x, len(rows)) for x in (expected, now))
        for row, one, other in zip(rows.tolist(), *pairs, strict=True):
            xor = _canonical(one) ^ _canonical(other)
            if xor.any():
                self._differing.add(row)
                self._bits += int(np.unpackbits(xor).sum())
                self._numbers += int(xor.any(1).sum())
                apart = (one.double() - other.double()).abs().nan_to_num()
                self._largest = max(self._largest, float(apart.max()))
        return True
