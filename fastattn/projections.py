"""The linear maps around the heads of `MultiHeadAttention`, and the keys it adds to every sequence.

Weights are packed once and kept so alone, which is all of a module that takes memory; halves as
float32, in which they are computed: to widen them in every call took up to a third of its time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn._core.arrays import (
    MOST_DIMS,
    as_array,
    broadcast_arrays,
    broadcast_shapes,
    check_dims,
    check_out,
    check_size,
    computed,
    deliver,
    dtypes,
    flag,
    given_dtype,
    new_array,
)
from fastattn._core.environment import default_environment
from fastattn.attention import attention
from fastattn.linear import PackedWeight, linear, pack_linear, unpacked
from fastattn.normalize import softmax
from fastattn.parameters import ADDED, BIASES, OUTPUT, Given, Parameters, Sizes
from fastattn.similarity import similarity

if TYPE_CHECKING:
    from fastattn._core.annotations import Rotate

__all__ = ["Maps", "draw", "forward", "operands", "sequences_first"]

_SIZES = ("embed_dim", "kdim", "vdim")


class Maps(NamedTuple):
    """A module, ready to use."""

    packed: dict[str, PackedWeight]
    given_as: dict[str, np.dtype]  # the dtypes that the weights came in
    biases: dict[str, np.ndarray]
    added: tuple[np.ndarray, ...]
    num_heads: int
    rotary: bool
    dtype: np.dtype  # to which all parameters promote
    zero: bool
    batch_first: bool

    @classmethod
    def of(cls, given: Given, zero: bool, batch_first: bool = True) -> Maps:
        """Pack the weights, and copy the rest."""
        given_as = {part: weight.dtype for part, weight in given.weights.items()}
        packed = {
            part: pack_linear(weight.astype(computed(weight.dtype), copy=False))
            for part, weight in given.weights.items()
        }
        biases = {part: _own(bias) for part, bias in given.biases.items()}
        added = tuple(map(_own, given.added))
        held = [*given_as.values(), *(x.dtype for x in (*biases.values(), *added))]
        dtype = dtypes(*(("weights", one, ()) for one in held))[1]
        heads, rotary = given.heads, given.rotary
        return cls(packed, given_as, biases, added, heads, rotary, dtype, zero, batch_first)

    def given(self) -> Given:
        """Return the parameters as they were given, weights as copies."""
        weights = {
            part: unpacked(packed).astype(self.given_as[part], copy=False)
            for part, packed in self.packed.items()
        }
        return Given(weights, self.biases, self.added, self.num_heads, self.rotary)

    def widths(self) -> tuple[int, int, int]:
        """Return the features of queries, keys and values as they come in."""
        query, key, value, _ = self.packed.values()
        return query.shape[1], key.shape[1], value.shape[1]

    def heads(self) -> tuple[int, int, int]:
        """Return the heads of queries, those of keys, and the features of one."""
        features = self.packed["query"].shape[0] // self.num_heads
        return self.num_heads, self.packed["key"].shape[0] // features, features

    def map(self, part: str, rows: np.ndarray, out: np.ndarray | None = None, **run: Any) -> Any:
        """Apply one of the four maps to rows of the dtype that is computed in."""
        return linear(rows, self.packed[part], self.biases.get(part), out=out, **run)


def _own(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


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


def operands(
    query: Any, key: Any, value: Any, widths: tuple[int, int, int], batch_first: bool
) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
    """Return query, key and value as arrays that fit the module, and their batch dims."""
    key = query if key is None else key
    value = key if value is None else value
    arrays = {"query": as_array("query", query)}
    arrays["key"] = arrays["query"] if key is query else as_array("key", key)
    arrays["value"] = arrays["key"] if value is key else as_array("value", value)
    if not batch_first:
        turned = {id(x): sequences_first(x) for x in arrays.values()}
        arrays = {name: turned[id(x)] for name, x in arrays.items()}
    for (name, x), size, width in zip(arrays.items(), _SIZES, widths, strict=True):
        if x.ndim < 2 or x.shape[-1] != width:
            raise ValueError(
                f"{name} must be (..., length, {size}) with {size} = {width}: {_shown(arrays)}"
                + (f"; one row is `np.asarray({name})[None]`" * (x.shape == (width,)))
            )
    if arrays["key"].shape[-2] != arrays["value"].shape[-2]:
        raise ValueError(f"one value row per key is needed (axis -2 of both): {_shown(arrays)}")
    check_dims(*(x.ndim for x in arrays.values()), most=MOST_DIMS - 1)  # heads are one more
    batch = arrays["query"].shape[:-2]
    if arrays["key"].shape[:-2] == arrays["value"].shape[:-2] == batch:
        return arrays, batch
    try:
        batch = broadcast_shapes(*(x.shape[:-2] for x in arrays.values()))
    except ValueError:
        raise ValueError(
            f"batch dims do not broadcast: {_shown(arrays)}; all dims before the last two must be "
            "equal, 1 or missing, and sequences come first (as with PyTorch's batch_first)"
        ) from None
    return arrays, batch


def sequences_first(x: np.ndarray) -> np.ndarray:
    """Swap lengths and batch, as PyTorch's ``batch_first=False`` has them; its own inverse."""
    return x.swapaxes(-2, -3) if x.ndim > 2 else x


def _shown(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {x.shape}" for name, x in arrays.items())


def _per_sequence(name: str, x: Any, batch: tuple[int, ...]) -> np.ndarray | None:
    """Give numbers over the batch dims a dim for heads, which `attention` counts among them."""
    if x is None:
        return None
    array = as_array(name, x)
    array = array.astype(given_dtype(x, array), copy=False)
    if array.ndim == 0:
        return array
    if array.ndim != len(batch) or any(
        n not in (1, size) for n, size in zip(array.shape, batch, strict=True)
    ):
        raise ValueError(
            f"{name} of shape {array.shape} must be one number, or have the batch dims {batch} "
            "(without heads), with size 1 where shared"
        )
    return array[..., None]


def forward(
    maps: Maps,
    given: tuple[Any, Any, Any],
    rotate: Rotate | None,
    out: Any,
    *,
    return_weights: bool,
    average_weights: bool,
    query_offset: Any,
    key_lengths: Any,
    backend: Any,
    threads: Any,
    **options: Any,
) -> Any:
    """Do what the module is called for."""
    return_weights = flag("return_weights", return_weights)
    average_weights = flag("average_weights", average_weights)
    if average_weights and not return_weights:
        raise ValueError("average_weights is about weights: write `return_weights=True` too")
    if maps.rotary and rotate is None:
        raise ValueError(
            "these are weights of a model with rotary embeddings, which are no part of them: pass "
            "rotate, the function that turns queries and keys by their positions"
        )
    arrays, batch = operands(*given, maps.widths(), maps.batch_first)
    named = [(name, x.dtype, x.shape) for name, x in arrays.items()]
    dtype, result_dtype = dtypes(*named, ("weights", maps.dtype, ()))
    target = out
    if out is not None:
        shape = (*batch, arrays["query"].shape[-2], maps.widths()[0])
        if not maps.batch_first and batch:
            shape = (*batch[:-1], shape[-2], batch[-1], shape[-1])
        target = check_out(out, shape, result_dtype)
        target = target if maps.batch_first else sequences_first(target)
    run = {"backend": backend, "threads": threads}
    options["query_offset"] = _per_sequence("query_offset", query_offset, batch)
    options["key_lengths"] = _per_sequence("key_lengths", key_lengths, batch)
    heads = _rotated(rotate, _project(arrays, maps, dtype, **run))
    attended, weights = _attend(heads, maps, return_weights, **options, **run)
    direct = target if result_dtype == dtype else None
    result = maps.map("output", _joined(attended), direct, **run)
    result = deliver(_rounded(result, result_dtype), target)
    if out is not None:
        result = out
    elif not maps.batch_first:
        result = sequences_first(result)
    if weights is None:
        return result
    if average_weights:
        weights = _mean_of_heads(weights)
    return result, _rounded(weights, result_dtype)


def _project(
    arrays: Mapping[str, np.ndarray], maps: Maps, dtype: np.dtype, **run: Any
) -> list[np.ndarray]:
    """Return query, key and value of all heads, (..., heads, rows, features), as views."""
    shapes = [(*x.shape[:-1], maps.packed[part].shape[0]) for part, x in arrays.items()]
    for shape in shapes:
        check_size(shape, dtype)
    rows = {id(x): np.asarray(x, dtype) for x in arrays.values()}
    features = maps.heads()[2]
    # In one piece, which the next call finds again: smaller ones the system takes back each time,
    # and has to clear anew, which took a tenth of a call.
    ends = list(accumulate(map(math.prod, shapes), initial=0))
    memory = new_array((ends[-1],), dtype)
    projected = []
    for (part, x), shape, start, stop in zip(arrays.items(), shapes, ends, ends[1:], strict=False):
        result = maps.map(part, rows[id(x)], memory[start:stop].reshape(shape), **run)
        split = result.reshape(*shape[:-1], shape[-1] // features, features)
        projected.append(split.swapaxes(-2, -3))
    return projected


def _rotated(rotate: Rotate | None, heads: list[np.ndarray]) -> list[np.ndarray]:
    """Let the caller turn queries and keys of all heads by their positions."""
    if rotate is None:
        return heads
    query, key, value = heads
    found = rotate(query, key)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(
            f"rotate must return query and key, both turned, not {type(found).__name__}"
        )
    turned = []
    for x, before in zip(found, (query, key), strict=True):
        array = as_array("what rotate returns", x)
        if array.shape != before.shape:
            raise ValueError(f"rotate must keep shapes, and made {array.shape} of {before.shape}")
        turned.append(array.astype(before.dtype, copy=False))
    return [*turned, value]


def _joined(attended: np.ndarray) -> np.ndarray:
    """Lay the heads of (..., heads, rows, features) side by side, as rows to be mapped.

    Attention could write here itself; but calls with an `out` that is not contiguous are planned
    anew each time, and where it matters less, this copy costs what those stores cost (measured).
    """
    *batch, heads, length, features = attended.shape
    return attended.swapaxes(-2, -3).reshape(*batch, length, heads * features)


def _attend(
    heads: list[np.ndarray], maps: Maps, return_weights: bool, **options: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the output of all heads, (..., H, L, head_dim), and the weights if asked for."""
    added = maps.zero or bool(maps.added)
    grouped = heads[0].shape[-3] != heads[1].shape[-3]
    results = attention(
        *heads, enable_gqa=grouped, return_lse=added, return_weights=return_weights, **options
    )
    output, *more = results if added or return_weights else (results,)
    weights = more[-1] if return_weights else None
    if added:
        run = {name: options[name] for name in ("backend", "threads")}
        weights = _add_keys(heads[0], output, more[0], weights, maps, **run)
    return output, weights


def _add_keys(
    query: np.ndarray,
    output: np.ndarray,
    lse: np.ndarray,
    weights: np.ndarray | None,
    maps: Maps,
    **run: Any,
) -> np.ndarray | None:
    """Let every query see the added keys too: change `output` in place, return the new weights.

    A finished result and its log-sum-exp count as one key among those added. So whatever hides
    keys is about the caller's keys alone, and nothing has to be made longer.
    """
    heads, features = query.shape[-3], query.shape[-1]
    added = [x.reshape(heads, 1, features).astype(query.dtype) for x in maps.added]
    scores = [lse]
    if added:
        scores.append(similarity(query, added[0], metric="scaled_dot", **run)[..., 0])
    if maps.zero:
        scores.append(np.zeros_like(lse))
    shares = softmax(np.stack(broadcast_arrays(*scores), axis=-1), **run)
    output *= shares[..., :1]
    if added:
        output += shares[..., 1:2] * added[1]
    if weights is None:
        return None
    return np.concatenate([weights * shares[..., :1], shares[..., 1:]], axis=-1)


def _mean_of_heads(weights: np.ndarray) -> np.ndarray:
    """Average over axis -3, heads added one by one.

    NumPy's mean adds in an order that depends on the other axes, and so would the bits.
    """
    heads = weights.shape[-3]
    total = weights[..., 0, :, :].copy()
    for head in range(1, heads):
        total += weights[..., head, :, :]
    total /= heads
    return total


def _rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round to a half what was computed in float32; what float16 cannot hold becomes inf."""
    if array.dtype == dtype:
        return array
    return array.astype(dtype)
