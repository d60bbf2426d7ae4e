"""The weights of a multi-head attention: PyTorch's names, their shapes, and where they come from.

No file of weights is ever needed in whole, and PyTorch is never imported: its tensors are known by
the methods they have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastattn._core.arrays import as_array, dtypes

__all__ = ["Sizes", "checked", "draw", "from_arrays", "from_file", "head_features"]

Parameters = dict[str, np.ndarray]

JOINT = "in_proj_weight"
SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
BIASES = ("in_proj_bias", "out_proj.bias")
ADDED = ("bias_k", "bias_v")
OUTPUT = "out_proj.weight"
NAMES = (JOINT, *SEPARATE, OUTPUT, *BIASES, *ADDED)


class Sizes(NamedTuple):
    """Everything that decides which parameters there are, and their shapes."""

    embed_dim: int
    kdim: int
    vdim: int
    bias: bool
    add_bias_kv: bool

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
    if isinstance(num_heads, bool) or not isinstance(num_heads, (int, np.integer)):
        raise TypeError(f"num_heads must be an integer, not {num_heads!r}")
    if num_heads < 1 or embed_dim % num_heads:
        raise ValueError(
            f"num_heads = {num_heads} must be at least 1 and divide embed_dim = {embed_dim}"
        )
    return embed_dim // int(num_heads)


def checked(state: Mapping[str, Any], prefix: str = "") -> tuple[Sizes, Parameters]:
    """Return the parameters of a state, read-only copies, or raise for the first that is wrong."""
    if not isinstance(state, Mapping):
        raise TypeError(
            f"a state dict maps names to arrays, not {type(state).__qualname__}: pass "
            "module.state_dict()"
        )
    found = {
        name.removeprefix(prefix): _array(repr(name), x)
        for name, x in state.items()
        if name.startswith(prefix)
    }
    if not found:
        raise ValueError(f"no name begins with prefix {prefix!r}: there are {_listed(state)}")
    for name in found:
        if name not in NAMES:
            raise ValueError(
                f"{prefix + name!r} of shape {found[name].shape} is no parameter of multi-head "
                f"attention, which has {', '.join(NAMES)}: leave it out, or set prefix= to what "
                "the names of one module begin with"
            )
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


def _array(name: str, x: Any) -> np.ndarray:
    """Return a read-only copy of an array or of a tensor that knows how to become one."""
    for method in ("detach", "cpu"):
        if hasattr(x, method):
            x = getattr(x, method)()
    half = None
    if str(getattr(x, "dtype", "")) == "torch.bfloat16":
        # NumPy cannot look at such memory; float32 holds the same numbers.
        x, half = x.float(), _bfloat16()
    array = as_array(name, x.numpy() if hasattr(x, "numpy") else x)
    dtype = dtypes((name, array.dtype, array.shape))[1]
    copy = np.array(array, dtype if half is None else half, order="C")
    copy.flags.writeable = False
    return copy


def _bfloat16() -> Any:
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        return None
    return bfloat16


def from_arrays(
    projections: Sequence[Any], output: Any, biases: Sequence[Any], added: Sequence[Any]
) -> Parameters:
    """Give arrays the names and arrangement of PyTorch; `checked` will tell if they fit."""
    last = as_array("output_weight", output)
    names = ("query_weight", "key_weight", "value_weight")
    weights = [as_array(name, x) for name, x in zip(names, projections, strict=True)]
    size = len(last) if last.ndim else 0
    state = {OUTPUT: last}
    if all(weight.shape == (size, size) for weight in weights):
        state[JOINT] = np.concatenate(weights)
    else:
        state |= zip(SEPARATE, weights, strict=True)
    if any(bias is not None for bias in biases):
        given = [
            np.zeros(size, last.dtype) if bias is None else as_array("bias", bias).reshape(-1)
            for bias in biases
        ]
        state |= zip(BIASES, (np.concatenate(given[:3]), given[3]), strict=True)
    for name, x in zip(ADDED, added, strict=True):
        if x is not None:
            state[name] = as_array(name, x).reshape(1, 1, -1)
    return state


def from_file(path: Any, prefix: str) -> Parameters:
    """Read what begins with `prefix` from a safetensors file, and nothing else of it."""
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise ImportError(
            "safetensors, the package, is not installed: pip install 'fastattn[safetensors]'"
        ) from error
    with safe_open(path, framework="numpy") as file:
        names = list(file.keys())
        wanted = [name for name in names if name.startswith(prefix)]
        if not wanted:
            raise ValueError(
                f"{path}: no name begins with prefix {prefix!r}; there are {_listed(names)}"
            )
        halves = any(file.get_slice(name).get_dtype() == "BF16" for name in wanted)
        # Once imported, NumPy knows the type by its name, which is how the reader asks for it.
        if halves and _bfloat16() is None:
            raise ImportError(
                f"{path} holds bfloat16, which NumPy learns from ml_dtypes: "
                "pip install 'fastattn[bfloat16]'"
            )
        return {name: file.get_tensor(name) for name in wanted}


def draw(sizes: Sizes, dtype: np.dtype, seed: Any) -> Parameters:
    """Draw parameters from the distributions that PyTorch starts a module with."""
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
