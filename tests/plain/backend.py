"""The backend "plain": the engine as it is, on kernels that run as plain Python.

`on_plain_kernels` makes it one of the backends for the length of a block. What the engine tells a
launcher is a record of addresses; which arrays they are of is learned where they are noted down.
"""

import contextlib
from unittest import mock

import calls
import numpy as np

import fastattn
from fastattn._core import backends
from fastattn._engine import layouts, normalize, record, template
from fastattn._engine.engine import Engine
from fastattn._engine.operations import name_kernels
from fastattn._engine.variants import VARIANTS

from .arrays import poison
from .launches import Launcher, words_at
from .loader import World
from .memory import Memory, Region, use

__all__ = ["NAME", "Plain", "on_plain_kernels", "widening"]

NAME = "plain"


class Plain:
    """A backend of plain kernels, with what it has seen: launches, and what of the kernels ran."""

    def __init__(self, edits=None):
        self.launcher = Launcher()
        self.world = World(edits, self.launcher.run_serially)
        self.coverage = self.world.coverage
        self.name = NAME
        entries = self.world.entries
        self.launcher.entries = {one.address: one for one in entries.values()}
        kernels = name_kernels(NAME, entries, self.launcher, _Again(self))
        # Which CPU this is does not matter here.
        pairs = {("attend", "pairs"): entries["attend_pairs"]}
        every = tuple(variant.name for variant in VARIANTS)
        self.engine = Engine(kernels._replace(products=every, entries={**kernels.entries, **pairs}))

    def __getattr__(self, operation):
        return getattr(self.engine, operation)

    def about(self):
        return {}

    def refusal(self, problem):
        return None

    def warmup(self):
        pass


class _Again:
    """A small call once more: the kernels' own code for it, on checked memory."""

    def __init__(self, plain):
        self.plain = plain

    def run(self, entry, tasks, form, call, *objects):
        memory, word = Memory(), layouts.FORM.word
        head = words_at(form, len(word))
        size = 8 * (len(word) + int(head[word["words"]]))
        memory.add(Region("the form", form, bytearray(b"\1" * size)))
        memory.add(Region.fresh("the new record", call, int(head[word["record_bytes"]])))
        for place in {*objects} - {0}:  # some may be one and the same
            data = place + layouts.DATA_OFFSET
            memory.add(Region(f"the array object at {place:#x}", data, bytearray(b"\1" * 8)))
        with use(memory):
            self.plain.world.again.run(entry, tasks, form, call, *objects)


def widening(engine):
    """Let an engine's kernels widen bfloat16, as on a CPU that does not multiply it."""
    widens = Engine(engine.kernels._replace(products=("float32", "float64")))
    return mock.patch.multiple(engine, kernels=widens.kernels, _functions=widens._functions)


@contextlib.contextmanager
def on_plain_kernels(plain):
    """Let calls run on plain kernels; those of other backends go on as they are."""
    launcher = plain.launcher
    point, tables = record.Record.point, record.Record.point_tables
    follow = template.Template.__call__
    describe_factors = normalize._describe_factors

    def know_point(self, **arrays):
        for field, array in arrays.items():
            launcher.know(field, array)
        point(self, **arrays)

    def know_tables(self, **arrays):
        for field, array in arrays.items():
            launcher.know(field, array)
        tables(self, **arrays)

    def know_operands(self, *operands):
        for field, array in zip(self.operands, operands, strict=False):
            if array is not None:
                launcher.know(field, array)
        follow(self, *operands)

    def know_sign(made, view, signed, out):
        if signed.sign is not None:
            launcher.know("sign", signed.sign)
        describe_factors(made, view, signed, out)

    with contextlib.ExitStack() as changed:
        for target, name, value in (
            (record.Record, "point", know_point),
            (record.Record, "point_tables", know_tables),
            (template.Template, "__call__", know_operands),
            (normalize, "_describe_factors", know_sign),
            (np, "empty", _poisoned(np.empty)),
            (np, "empty_like", _poisoned(np.empty_like)),
        ):
            changed.enter_context(mock.patch.object(target, name, value))
        changed.enter_context(mock.patch.dict(backends._MODULES, {NAME: __name__}))
        changed.enter_context(mock.patch.dict(backends._loaded, {NAME: plain}))
        calls.forget()
        try:
            with fastattn.use_backend(NAME):
                yield plain
        finally:
            calls.forget()
            launcher.forget()


def _is_number(dtype):
    return dtype.kind in "fiu" or dtype.name == "bfloat16"  # whose kind is that of raw bytes


def _poisoned(make):
    def fresh(*arguments, **options):
        made = make(*arguments, **options)
        if type(made) is np.ndarray and _is_number(made.dtype) and made.size:
            poison(made.view() if made.flags.c_contiguous else made.T)
        return made

    return fresh
