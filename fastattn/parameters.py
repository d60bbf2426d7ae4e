"""The weights of a multi-head attention: the names they have, their shapes, where they come from.

Names are judged before anything is read, so that a whole model's file or state costs nothing, and
PyTorch is never imported: its tensors are known by the methods they have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from fastattn._core import names
from fastattn._core.arrays import as_array, dtypes, flag
from fastattn._core.environment import default_environment
from fastattn._core.foreign import bfloat16

__all__ = [
    *("ADDED", "BIASES", "OUTPUT"),
    *("Given", "Sizes", "from_file", "from_module", "from_parts", "from_state", "named"),
]

PARTS = ("query", "key", "value", "output")
Parameters = dict[str, np.ndarray]

# PyTorch's names.
JOINT = "in_proj_weight"
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
BIASES = ("in_proj_bias", "out_proj.bias")
ADDED = ("bias_k", "bias_v")
OUTPUT = "out_proj.weight"
NAMES = (JOINT, *SEPARATE, OUTPUT, *BIASES, *ADDED)


class Family(NamedTuple):
    """How models name the maps of attention, in the order of `PARTS`.

    Each has a ``.weight`` and may have a ``.bias``. `beside` begin names of what is no part of it.
    """

    maps: tuple[str, str, str, str]
    beside: tuple[str, ...] = ()
    rotary: bool = False

    def names(self) -> dict[str, str]:
        """Return the names of parameters, by what they are."""
        return {
            f"{part}_{kind}": f"{name}.{kind}"
            for part, name in zip(PARTS, self.maps, strict=True)
            for kind in ("weight", "bias")
        }


_BERT = Family(("self.query", "self.key", "self.value", "output.dense"), ("output.LayerNorm.",))
_VIT = Family(("attention.query", "attention.key", "attention.value", "output.dense"))
_DISTILBERT = Family(("q_lin", "k_lin", "v_lin", "out_lin"))
_BART = Family(("q_proj", "k_proj", "v_proj", "out_proj"))  # CLIP and Whisper too
_LLAMA = Family(("q_proj", "k_proj", "v_proj", "o_proj"), ("rotary_emb.",), rotary=True)
_FAMILIES = (_BERT, _VIT, _DISTILBERT, _LLAMA, _BART)

# How names of dtypes begin that safetensors has and NumPy has not (or no weights).
_UNREAD = ("F8_", "F6_", "F4", "C")


class Given(NamedTuple):
    """The parameters of one module, which fit each other, by the part that they are of."""

    weights: dict[str, np.ndarray]  # of all parts, a row per output feature
    biases: dict[str, np.ndarray]  # of those that have one
    added: tuple[np.ndarray, ...]  # a key and a value that every query sees, or nothing
    heads: int
    rotary: bool  # queries and keys are rotated by their positions, which no parameter says


class Sizes(NamedTuple):
    """Everything that decides which parameters there are, and their shapes."""

    embed_dim: int
    kdim: int
    vdim: int
    bias: bool
    add_bias_kv: bool

    @classmethod
    def given(cls, embed_dim: Any, kdim: Any, vdim: Any, bias: Any, add_bias_kv: Any) -> Sizes:
        """Check the sizes that a caller gives."""
        names.refuse_missing(embed_dim=embed_dim)
        widths = (embed_dim, *(embed_dim if n is None else n for n in (kdim, vdim)))
        for name, n in zip(("embed_dim", "kdim", "vdim"), widths, strict=True):
            wrong = f"{name} must be a positive integer, not {n!r}"
            if isinstance(n, bool) or not isinstance(n, (int, np.integer)):
                raise TypeError(wrong)
            if n < 1:
                raise ValueError(wrong)
        size, of_key, of_value = map(int, widths)
        return cls(size, of_key, of_value, flag("bias", bias), flag("add_bias_kv", add_bias_kv))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter, by the name it has in PyTorch."""
        size = self.embed_dim
        if self.kdim == self.vdim == size:
            shapes: dict[str, tuple[int, ...]] = {JOINT: (3 * size, size)}
        else:
            widths = (size, self.kdim, self.vdim)
            shapes = {name: (size, n) for name, n in zip(SEPARATE, widths, strict=True)}
        shapes[OUTPUT] = (size, size)
        if self.bias:
            shapes |= {BIASES[0]: (3 * size,), BIASES[1]: (size,)}
        if self.add_bias_kv:
            shapes |= dict.fromkeys(ADDED, (1, 1, size))
        return shapes

    @classmethod
    def of(cls, found: Parameters) -> Sizes:
        """Read the sizes off the parameters that are there, as far as they can be believed."""
        if OUTPUT not in found or found[OUTPUT].ndim != 2:
            has = found[OUTPUT].shape if OUTPUT in found else "none"
            raise ValueError(
                f"{OUTPUT!r} of shape (embed_dim, embed_dim) is needed, found {has}; the state "
                f"holds {_listed(found)}"
            )
        size = found[OUTPUT].shape[0]
        kdim = vdim = size
        if JOINT not in found:
            kdim, vdim = (_width(found.get(name), size) for name in SEPARATE[1:])
        return cls(
            size,
            kdim,
            vdim,
            bias=any(name in found for name in BIASES),
            add_bias_kv=any(name in found for name in ADDED),
        )


def _width(weight: np.ndarray | None, otherwise: int) -> int:
    return otherwise if weight is None or weight.ndim != 2 else weight.shape[1]


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return (", ".join(repr(name) for name in shown[:12]) or "nothing") + more


def _heads(num_heads: Any, rows: int, told: str) -> int:
    """Return the number of heads, if so many rows of the query's weights can be shared among it."""
    names.refuse_missing(num_heads=num_heads)
    if isinstance(num_heads, bool) or not isinstance(num_heads, (int, np.integer)):
        raise TypeError(f"num_heads must be an integer, not {num_heads!r}")
    if num_heads < 1 or not rows or rows % num_heads:
        raise ValueError(f"num_heads = {num_heads} must be at least 1 and divide {told}")
    return int(num_heads)


@default_environment()
def from_state(state: Mapping[str, Any], num_heads: Any, prefix: str = "") -> Given:
    """Return the parameters that a state holds, or raise for the first that is wrong."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"a state dict maps names to arrays, not {type(state).__qualname__}: pass "
            "`module.state_dict()`"
        )
    for key in state:
        if not isinstance(key, str):
            raise TypeError(f"a state dict maps names to arrays, and {key!r} is no name")
    family, wanted = _wanted(state, prefix, lambda name: tuple(getattr(state[name], "shape", ())))
    found = {name: _array(repr(prefix + name), state[prefix + name]) for name in wanted}
    if family is None:
        return _of_torch(found, num_heads, prefix)
    called = family.names()
    given = {part: found[name] for part, name in called.items() if name in found}
    shown = {part: repr(prefix + name) for part, name in called.items()}
    return from_parts(given, num_heads, shown, family.rotary)


def _of_torch(found: dict[str, np.ndarray], num_heads: Any, prefix: str) -> Given:
    """Take the parameters by the names and in the arrangement of PyTorch's module."""
    sizes = Sizes.of(found)
    shapes = sizes.shapes()
    told = f"embed_dim = {sizes.embed_dim}, by {prefix + OUTPUT!r} of shape {found[OUTPUT].shape}"
    for name, shape in shapes.items():
        if name not in found:
            raise ValueError(
                f"{prefix + name!r} of shape {shape} is missing ({told}); there are "
                f"{_listed(found)}"
            )
        if found[name].shape != shape:
            raise ValueError(
                f"{prefix + name!r} has shape {found[name].shape}, expected {shape} ({told})"
            )
    for name in found:
        if name not in shapes:
            raise ValueError(
                f"{prefix + name!r} of shape {found[name].shape} is one too many beside "
                f"{prefix + JOINT!r} of shape {found[JOINT].shape}: leave one of them out"
            )
    heads = _heads(num_heads, sizes.embed_dim, f"embed_dim = {sizes.embed_dim}")
    maps = [found[name] for name in SEPARATE if name in found] or np.split(found[JOINT], 3)
    weights = dict(zip(PARTS, [*maps, found[OUTPUT]], strict=True))
    biases = {}
    if sizes.bias:
        biases = dict(zip(PARTS, [*np.split(found[BIASES[0]], 3), found[BIASES[1]]], strict=True))
    added = tuple(found[name].reshape(-1) for name in ADDED if name in found)
    return Given(weights, biases, added, heads, rotary=False)


@default_environment()
def from_parts(
    arrays: Mapping[str, Any],
    num_heads: Any,
    shown: Mapping[str, str] | None = None,
    rotary: bool = False,
) -> Given:
    """Take parameters that stand each for itself, by what they are; errors name them as `shown`.

    Keys may have fewer heads than queries: the rows of their weights tell how many.
    """
    shown = shown or {name: name for part in PARTS for name in (f"{part}_weight", f"{part}_bias")}
    found = {name: _array(shown.get(name, name), x) for name, x in arrays.items() if x is not None}
    told = ""

    def fitting(name: str, *shape: int | str) -> np.ndarray:
        called = shown.get(name, name)  # a size with a name is free
        if name not in found:
            raise ValueError(f"{called} of shape {shape} is missing{told}")
        array = found[name]
        if array.ndim != len(shape) or any(
            type(n) is int and n != size for n, size in zip(shape, array.shape, strict=True)
        ):
            raise ValueError(f"{called} has shape {array.shape}, expected {shape}{told}")
        return array

    size, inner = fitting("output_weight", "embed_dim", "num_heads * head_dim").shape
    last = shown["output_weight"]
    told = f" (embed_dim = {size}, by {last} of shape {(size, inner)})"
    heads = _heads(num_heads, inner, f"the {inner} columns of {last} of shape {(size, inner)}")
    weights = {"query": fitting("query_weight", inner, size)}
    rows = len(fitting("key_weight", "rows", "kdim"))
    if not rows or rows % (inner // heads) or heads % (rows * heads // inner):
        raise ValueError(
            f"{shown['key_weight']} has {rows} rows, and heads of "
            f"{inner // heads} whose number divides {heads} are needed{told}"
        )
    weights["key"] = fitting("key_weight", rows, "kdim")
    weights["value"] = fitting("value_weight", rows, "vdim")
    weights["output"] = found["output_weight"]
    biases = {
        part: fitting(f"{part}_bias", len(weights[part]))
        for part in PARTS
        if f"{part}_bias" in found
    }
    added: tuple[np.ndarray, ...] = ()
    if "added_key" in found or "added_value" in found:
        if not rows == inner == size:
            raise ValueError(f"added keys are for key_weight of embed_dim rows, not {rows}{told}")
        added = fitting("added_key", inner), fitting("added_value", inner)
    return Given(weights, biases, added, heads, rotary)


def named(given: Given) -> Parameters:
    """Name parameters as PyTorch does, or as a family does that has what PyTorch has not."""
    weights, biases = given.weights, given.biases
    query, key, value, output = (weights[part] for part in PARTS)
    size = len(output)
    if given.rotary or not len(query) == len(key) == size:
        called = (_LLAMA if given.rotary else _BART).names()
        by_part = {f"{part}_weight": x for part, x in weights.items()}
        by_part |= {f"{part}_bias": x for part, x in biases.items()}
        return {called[part]: x for part, x in by_part.items()}
    state = dict(zip(SEPARATE, (query, key, value), strict=True))
    if all(x.shape == (size, size) for x in state.values()):
        state = {JOINT: np.concatenate([query, key, value])}
    state[OUTPUT] = output
    if biases:
        filled = [biases.get(part, np.zeros(size, output.dtype)) for part in PARTS]
        state |= zip(BIASES, (np.concatenate(filled[:3]), filled[3]), strict=True)
    state |= zip(ADDED, (x.reshape(1, 1, size) for x in given.added), strict=False)
    return state


def _wanted(
    names: Collection[str], prefix: str, shape_of: Callable[[str], tuple[int, ...]]
) -> tuple[Family | None, list[str]]:
    """Return the family (None: PyTorch's module) and the names of one module without their prefix.

    Or say which does not belong there.
    """
    wanted = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    if not wanted:
        raise ValueError(
            f"no name begins with prefix {prefix!r}; there are {_listed(names)}{_told(names)}"
        )
    known: Iterable[str] = NAMES
    alike = [one for one in _FAMILIES if one.names()["query_weight"] in wanted]
    family = max(alike, key=lambda one: one.names()["output_weight"] in wanted, default=None)
    if family is not None:
        known = family.names().values()
        wanted = [name for name in wanted if not name.startswith(family.beside)]
    for name in wanted:
        if name not in known:
            raise ValueError(
                f"{prefix + name!r} of shape {shape_of(prefix + name)} is no parameter of "
                f"multi-head attention, which has {', '.join(known)}: leave it out, or set prefix "
                f"to what the names of one module begin with{_told(names)}"
            )
    return family, wanted


def _told(names: Iterable[str]) -> str:
    """Name the prefixes of the modules that there are, as the end of a sentence."""
    firsts = (OUTPUT, *(family.names()["query_weight"] for family in _FAMILIES))
    found = {
        name.removesuffix(first): None
        for name in names
        for first in firsts
        if f".{name}".endswith(f".{first}")
    }
    modules = [repr(prefix) for prefix in found]
    more = f" and {len(modules) - 6} more" if len(modules) > 6 else ""
    return f"; prefixes of modules here: {', '.join(modules[:6])}{more}" if modules else ""


def _array(name: str, x: Any) -> np.ndarray:
    """Return an array, or what a tensor holds that knows how to become one."""
    for method in ("detach", "cpu"):
        if hasattr(x, method) and (method, str(getattr(x, "device", ""))) != ("cpu", "meta"):
            x = getattr(x, method)()
    if str(getattr(x, "dtype", "")) == "torch.bfloat16" and bfloat16() is None:
        x = x.float()  # which holds the same numbers
    array = as_array(name, x)
    return array.astype(dtypes((name, array.dtype, array.shape))[1], copy=False)


def from_file(path: Any, prefix: str) -> Parameters:
    """Read what begins with `prefix` from a safetensors file, and nothing else of it."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            "safetensors, the package, is not installed: `pip install safetensors`"
        ) from error
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or a path, not {path!r}")
    if os.path.isdir(path):
        inside = sorted(name for name in os.listdir(path) if str(name).endswith(".safetensors"))
        raise IsADirectoryError(
            f"{path} is a folder; name the file in it"
            + (f": there are {_listed(inside)}" if inside else ", which ends in .safetensors")
        )
    try:
        opened = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or not whole: {error}") from error
    with opened as file:

        def shape_of(name: str) -> tuple[int, ...]:
            return tuple(file.get_slice(name).get_shape())

        try:
            wanted = [prefix + name for name in _wanted(file.keys(), prefix, shape_of)[1]]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        held = {name: file.get_slice(name).get_dtype() for name in wanted}
        for name, kind in held.items():
            if kind.startswith(_UNREAD):
                raise TypeError(
                    f"{path}: {name!r} of shape {shape_of(name)} is stored as {kind}, which is not "
                    "read: save it as F32"
                )
        halves = "BF16" in held.values()
        # Once imported, NumPy knows the type by its name, which is how the reader asks for it.
        if halves and bfloat16() is None:
            raise ImportError(
                f"{path} holds bfloat16, which NumPy learns from ml_dtypes: `pip install ml_dtypes`"
            )
        return {name: file.get_tensor(name) for name in wanted}


def from_module(module: Any) -> tuple[Parameters, int, bool, bool]:
    """Return a module's state, its heads, and whether it adds a key of zeros, has batches first."""
    kind: Any = type(module)
    names = [f"{one.__module__}.{one.__qualname__}" for one in kind.__mro__]
    theirs = "torch.nn.modules.activation.MultiheadAttention"
    if theirs not in names:
        raise TypeError(
            f"module must be a torch.nn.MultiheadAttention, not {names[0]}: others, as BERT's and "
            "Llama's, are taken by the names of their weights, "
            "`fastattn.MultiHeadAttention.from_state_dict(module.state_dict(), num_heads)`"
        )
    if kind.forward is not kind.__mro__[names.index(theirs)].forward:
        raise ValueError(f"{names[0]} computes in a way of its own, which its weights do not say")
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError("module has hooks, which would not run: remove them first")
    if module.training and module.dropout:
        raise ValueError("module is training, and drops some of its weights: `module.eval()`")
    state = {name: x for name in NAMES if (x := attrgetter(name)(module)) is not None}
    return state, module.num_heads, module.add_zero_attn, module.batch_first
