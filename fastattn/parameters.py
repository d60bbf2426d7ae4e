"""The weights of a multi-head attention: PyTorch's names, their shapes, and where they come from.

Names are judged before anything is read, so that a whole model's file or state costs nothing, and
PyTorch is never imported: its tensors are known by the methods they have.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastattn._core import names
from fastattn._core.arrays import as_array, dtypes, flag
from fastattn._core.environment import default_environment
from fastattn._core.foreign import bfloat16

__all__ = ["Sizes", "checked", "draw", "from_arrays", "from_file", "head_features"]

Parameters = dict[str, np.ndarray]

JOINT = "in_proj_weight"
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
BIASES = ("in_proj_bias", "out_proj.bias")
ADDED = ("bias_k", "bias_v")
OUTPUT = "out_proj.weight"
NAMES = (JOINT, *SEPARATE, OUTPUT, *BIASES, *ADDED)

# How names of dtypes begin that safetensors has and NumPy has not (or no weights).
_UNREAD = ("F8", "F6", "F4", "C")

# What `from_arrays` calls them.
_WEIGHTS = ("query_weight", "key_weight", "value_weight")
_GIVEN_BIASES = ("query_bias", "key_bias", "value_bias", "output_bias")
_GIVEN_ADDED = ("added_key", "added_value")


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


def head_features(embed_dim: int, num_heads: Any) -> int:
    """Return the features of one head, or say why there is no such number."""
    names.refuse_missing(num_heads=num_heads)
    if isinstance(num_heads, bool) or not isinstance(num_heads, (int, np.integer)):
        raise TypeError(f"num_heads must be an integer, not {num_heads!r}")
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(
            f"num_heads = {num_heads} must be at least 1 and divide embed_dim = {embed_dim}"
        )
    return embed_dim // int(num_heads)


@default_environment()
def checked(state: Mapping[str, Any], prefix: str = "") -> tuple[Sizes, Parameters]:
    """Return the parameters of a state, read-only copies, or raise for the first that is wrong."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"a state dict maps names to arrays, not {type(state).__qualname__}: pass "
            "`module.state_dict()`"
        )
    for key in state:
        if not isinstance(key, str):
            raise TypeError(f"a state dict maps names to arrays, and {key!r} is no name")
    names = _wanted(state, prefix, lambda name: tuple(getattr(state[name], "shape", ())))
    found = {name: _array(repr(prefix + name), state[prefix + name]) for name in names}
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
    return sizes, {name: found[name] for name in shapes}


def _wanted(
    names: Collection[str], prefix: str, shape_of: Callable[[str], tuple[int, ...]]
) -> list[str]:
    """Return the names of one module without their prefix, or say which does not belong there."""
    wanted = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    modules = [repr(name.removesuffix(OUTPUT)) for name in names if name.endswith(OUTPUT)]
    if not wanted:
        raise ValueError(
            f"no name begins with prefix {prefix!r}; there are {_listed(names)}{_told(modules)}"
        )
    for name in wanted:
        if name not in NAMES:
            raise ValueError(
                f"{prefix + name!r} of shape {shape_of(prefix + name)} is no parameter of "
                f"multi-head attention, which has {', '.join(NAMES)}: leave it out, or set prefix "
                f"to what the names of one module begin with{_told(modules)}"
            )
    return wanted


def _told(modules: list[str]) -> str:
    more = f" and {len(modules) - 6} more" if len(modules) > 6 else ""
    return f"; prefixes of modules here: {', '.join(modules[:6])}{more}" if modules else ""


def _array(name: str, x: Any) -> np.ndarray:
    """Return a read-only copy of an array or of a tensor that knows how to become one."""
    for method in ("detach", "cpu"):
        if hasattr(x, method):
            x = getattr(x, method)()
    half = None
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":
        x, half = x.float(), bfloat16()  # float32 holds the same numbers, without ml_dtypes too
    array = as_array(name, x)
    dtype = dtypes((name, array.dtype, array.shape))[1]
    copy = np.array(array, dtype if half is None else half, order="C")
    copy.flags.writeable = False
    return copy


def from_arrays(
    projections: Sequence[Any], output: Any, biases: Sequence[Any], added: Sequence[Any]
) -> Parameters:
    """Check arrays, and give them the names and the arrangement of PyTorch."""
    last = as_array("output_weight", output)
    if last.ndim != 2 or last.shape[0] != last.shape[1]:
        raise ValueError(f"output_weight must be (embed_dim, embed_dim), found {last.shape}")
    size = len(last)

    def fitting(name: str, x: Any, shape: tuple[int | str, ...]) -> np.ndarray:
        array = as_array(name, x)  # a size with a name is free
        if array.ndim != len(shape) or any(
            n not in (found, "kdim", "vdim") for n, found in zip(shape, array.shape, strict=True)
        ):
            raise ValueError(
                f"{name} has shape {array.shape}, expected {shape} (embed_dim = {size}, by "
                f"output_weight of shape {last.shape})"
            )
        return array

    widths: tuple[int | str, ...] = (size, "kdim", "vdim")
    weights = [
        fitting(name, x, (size, width))
        for name, x, width in zip(_WEIGHTS, projections, widths, strict=True)
    ]
    state = {OUTPUT: last}
    if all(weight.shape == (size, size) for weight in weights):
        state[JOINT] = np.concatenate(weights)
    else:
        state |= zip(SEPARATE, weights, strict=True)
    if any(bias is not None for bias in biases):
        given = [
            np.zeros(size, last.dtype) if bias is None else fitting(name, bias, (size,))
            for name, bias in zip(_GIVEN_BIASES, biases, strict=True)
        ]
        state |= zip(BIASES, (np.concatenate(given[:3]), given[3]), strict=True)
    for place, name, x in zip(ADDED, _GIVEN_ADDED, added, strict=True):
        if x is not None:
            state[place] = fitting(name, x, (size,)).reshape(1, 1, size)
        elif any(other is not None for other in added):
            raise ValueError(f"{name} of shape ({size},) is missing: added keys have values")
    return state


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
            wanted = [prefix + name for name in _wanted(file.keys(), prefix, shape_of)]
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


@default_environment()
def draw(sizes: Sizes, dtype: np.dtype, seed: Any) -> Parameters:
    """Draw parameters from the distributions that PyTorch starts a module with."""
    if dtypes(("dtype", dtype, ()))[1] != dtype:
        raise ValueError(f"dtype must be float32, float64, float16 or bfloat16, not {dtype}")
    rng = np.random.default_rng(seed)
    parameters = {}
    for name, shape in sizes.shapes().items():
        if name in BIASES:
            numbers = np.zeros(shape)
        elif name in ADDED:
            numbers = rng.normal(0.0, sizes.embed_dim**-0.5, shape)
        else:
            bound = shape[1] ** -0.5 if name == OUTPUT else (6 / sum(shape)) ** 0.5
            numbers = rng.uniform(-bound, bound, shape)
        parameters[name] = numbers.astype(dtype)
        parameters[name].flags.writeable = False
    return parameters
