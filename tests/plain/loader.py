"""The files of the kernels, loaded once more as plain Python.

Each file runs as it stands, in a module of its own that is not in `sys.modules`. What it imports is
looked up here: other kernel files are loaded the same way; those in `_REPLACED` have a twin;
what registers types and functions with Numba registers nothing; and `intrinsic` gives the twin of
the function's name. A kernel file that moves is found by its name, wherever in the folder it is.
"""

import builtins
import importlib
import types
from pathlib import Path

import numba.core.imputils
import numba.core.typing.templates
import numba.extending
import numpy as np

import fastattn

from . import elementary, lanes, storage, tiles, words
from .floats import F64, larger_of, number, smaller_of
from .measure import Coverage, compiled_functions

__all__ = ["Entry", "World"]

FOLDER = Path(fastattn.__file__).parent / "_numba"
_PACKAGE = "fastattn._numba"
_TWINS = lanes.TWINS | elementary.TWINS | words.TWINS | storage.TWINS | tiles.TWINS
# What compiles and what has threads is not a kernel.
_REPLACED = ("compile", "launch")


def _nothing(*arguments, **options):
    """A decorator that leaves what it decorates as it is."""
    return lambda decorated: decorated


_UNREGISTERED = {
    "numba.extending": {
        "register_model": _nothing, "overload": _nothing, "lower_builtin": _nothing,
        "models": numba.extending.models, "typeof_impl": types.SimpleNamespace(register=_nothing),
    },
    "numba.core.imputils": {"lower_getattr_generic": _nothing},
    "numba.core.typing.templates": {
        "AbstractTemplate": numba.core.typing.templates.AbstractTemplate,
        "AttributeTemplate": numba.core.typing.templates.AttributeTemplate,
        "infer_getattr": lambda decorated: decorated,
        "infer_global": _nothing,
        "signature": numba.core.typing.templates.signature,
    },
}  # fmt: skip


class _Numpy:
    """NumPy, but that a number which nobody wrote may be converted like any other."""

    float64 = staticmethod(lambda value: number(F64, value))

    def __getattr__(self, name):
        return getattr(np, name)


class Entry:
    """A kernel's entry point as the engine wants it: with an address, which only we understand."""

    def __init__(self, function, features=""):
        self.function, self.features = function, features
        self.name = function.__name__
        self.address = id(self)


def _entry(function=None, *, features=""):
    if function is None:
        return lambda decorated: Entry(decorated, features)
    return Entry(function, features)


class _Driver:
    """A natively callable function, called as it is."""

    def __init__(self, function):
        self.run = function


class World:
    """The kernels, loaded. `edits` change a file before: {file: (original, broken)}."""

    def __init__(self, edits=None, run_serially=None):
        self.coverage = Coverage()
        self._edits = dict(edits or {})
        self._modules = {}
        self._files = {path.stem: path for path in FOLDER.rglob("*.py")}
        self._run_serially = run_serially
        self._replace()
        self.entries = self.module("entry_points").ENTRIES
        # Which of them this machine runs is not for plain Python to ask.
        self.entries = {
            name: one
            for file in self._modules.values()
            for name, one in vars(file).items()
            if isinstance(one, Entry)
        }
        self.again = self.module("repeat").again
        if self._edits:
            raise ValueError(f"nobody loads {', '.join(self._edits)}")

    def _replace(self):
        def device(function=None, *, inlined=False):
            return function if function is not None else lambda decorated: decorated

        self._modules["compile"] = types.SimpleNamespace(
            device=device,
            entry=_entry,
            driver=lambda signature, parallel=False: _Driver,
            Entry=Entry,
            DEVICE_OPTIONS={},
        )
        self._modules["launch"] = types.SimpleNamespace(run_serially=self._run_serially)

    def not_loaded(self):
        """Files with compiled functions that nothing here runs."""
        loaded = {Path(getattr(one, "__file__", "")) for one in self._modules.values()}
        return sorted(
            path.name
            for path in set(self._files.values()) - loaded
            if compiled_functions(path.read_text(encoding="utf-8"))
        )

    def not_twinned(self):
        """Machine functions for which nothing stands."""
        names = {name for file in self.coverage.machine.values() for name in file}
        return sorted(names - set(_TWINS) - set(words.MADE))

    def module(self, name):
        """A file of the kernels, by the last part of its name."""
        if name not in self._modules:
            self._load(name)
        return self._modules[name]

    def _load(self, name):
        path = self._files[name]
        file = str(path.relative_to(FOLDER))
        source = path.read_text(encoding="utf-8")
        if path.name in self._edits:
            original, broken = self._edits.pop(path.name)
            assert source.count(original) == 1, f"{file} no longer has {original!r} once"
            source = source.replace(original, broken)
        module = self._modules[name] = types.ModuleType(f"plain.{name}")
        module.__file__ = str(path)
        module.__builtins__ = {
            **vars(builtins),
            "__import__": self._import,
            "float": np.float64,
            "min": smaller_of,
            "max": larger_of,
        }
        vars(module).update(self.coverage.names())
        exec(compile(self.coverage.marked(file, source), str(path), "exec"), vars(module))
        if name == "variant":
            steps = vars(module.VariantSteps)["__annotations__"].keys() & vars(module).keys()
            vars(module).update({one: words.step(one) for one in steps})
        if name == "elementary":
            elementary.learn(module)

    def _intrinsic(self, function=None, *, prefer_literal=False):
        if function is None:
            return self._intrinsic
        if function.__name__ in words.MADE:
            return words.MADE[function.__name__](function)
        return _TWINS.get(function.__name__) or _Untwinned(function.__name__)

    def _import(self, name, globals=None, locals=None, fromlist=(), level=0):
        if level or name.startswith(_PACKAGE):
            return self._own(name, fromlist or ())
        if name == "numpy":
            return _Numpy()
        if name in _UNREGISTERED:
            return types.SimpleNamespace(**_UNREGISTERED[name], intrinsic=self._intrinsic)
        return importlib.__import__(name, globals, locals, fromlist, level)

    def _own(self, name, fromlist):
        last = name.rpartition(".")[2]
        if last in self._modules or (last in self._files and last != "__init__"):
            return self.module(last)
        return types.SimpleNamespace(**{part: self.module(part) for part in fromlist})


class _Untwinned:
    """A machine function without a twin: an error once a kernel calls it."""

    def __init__(self, name):
        self.name = name

    def __call__(self, *arguments):
        raise NotImplementedError(f"the machine function {self.name} has no plain twin")
