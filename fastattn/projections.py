"""The linear maps around the heads of `MultiHeadAttention`, and the keys it adds to every sequence.

A map is one call of `similarity`: a row times the rows of a matrix is a table of dot products, and
as fast as a BLAS (measured: 11.3 ms where NumPy's matmul and its sum with the bias take 11.8), with
bits that depend on that row alone. The bias is one more feature of the matrix, which meets a 1 at
the end of each row: no pass of its own over the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fastattn._core.arrays import (
    MOST_DIMS,
    as_array,
    broadcast_arrays,
    broadcast_shapes,
    check_dims,
    new_array,
    same_memory,
)
from fastattn.attention import attention
from fastattn.normalize import softmax
from fastattn.parameters import ADDED, BIASES, JOINT, OUTPUT, SEPARATE
from fastattn.similarity import similarity

__all__ = [
    "Matrices",
    "attend",
    "joined",
    "linear",
    "mean_of_heads",
    "operands",
    "padded",
    "per_sequence",
    "project",
    "ready",
    "rounded",
]

# Room behind each row of a buffer, in numbers: for the 1 that meets the bias, and so that rows of
# 1024 floats, say, do not all fall into the same sets of the cache.
_ROOM = 16
_SIZES = ("embed_dim", "kdim", "vdim")


class Matrices(NamedTuple):
    """Weights ready to use: a row per output feature, its bias behind the last input feature."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    key_value: np.ndarray | None  # both in one, where their inputs are as wide
    whole: np.ndarray | None  # all three in one
    output: np.ndarray
    biased: bool


def ready(parameters: Mapping[str, np.ndarray], dtype: np.dtype) -> Matrices:
    """Lay weights and biases out for computing in `dtype`."""
    biased = BIASES[0] in parameters
    output = parameters[OUTPUT]
    size = len(output)

    def matrix(weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        parts = [weight] if bias is None else [weight, bias[:, None]]
        return np.concatenate([part.astype(dtype) for part in parts], axis=1)

    bias, last = (parameters.get(name) for name in BIASES)
    if JOINT in parameters:
        whole = matrix(parameters[JOINT], bias)
        query, key, value = np.split(whole, 3)
        return Matrices(query, key, value, whole[size:], whole, matrix(output, last), biased)
    biases = [None] * 3 if bias is None else np.split(bias, 3)
    query, key, value = (
        matrix(parameters[name], b) for name, b in zip(SEPARATE, biases, strict=True)
    )
    both = None
    if key.shape == value.shape:
        both = np.concatenate([key, value])
        key, value = np.split(both, 2)
    return Matrices(query, key, value, both, None, matrix(output, last), biased)


def operands(
    query: Any, key: Any, value: Any, widths: tuple[int, int, int]
) -> tuple[dict[str, np.ndarray], tuple[int, ...]]:
    """Return query, key and value as arrays that fit the module, and their batch dims."""
    key = query if key is None else key
    value = key if value is None else value
    arrays = {"query": as_array("query", query)}
    arrays["key"] = arrays["query"] if key is query else as_array("key", key)
    arrays["value"] = arrays["key"] if value is key else as_array("value", value)
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


def _shown(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{name} {x.shape}" for name, x in arrays.items())


def per_sequence(name: str, x: Any, batch: tuple[int, ...]) -> np.ndarray | None:
    """Give numbers over the batch dims a dim for heads, which `attention` counts among them."""
    if x is None:
        return None
    array = as_array(name, x)
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


def padded(shape: tuple[int, ...], dtype: np.dtype, biased: bool) -> np.ndarray:
    """Make rows to be multiplied: of `shape`, with a 1 behind each where there are biases."""
    *lead, width = shape
    rows = new_array((*lead, width + _ROOM), dtype)[..., : width + biased]
    rows[..., width:] = 1.0
    return rows


def linear(
    rows: np.ndarray, matrix: np.ndarray, out: np.ndarray | None = None, **run: Any
) -> np.ndarray:
    """Multiply each row of (..., width) by a matrix (n, width): (..., n)."""
    lead, n = rows.shape[:-1], len(matrix)
    result = new_array((*lead, n + _ROOM), matrix.dtype)[..., :n] if out is None else out
    # One table for the whole batch, so that the matrix is read once. Neither reshape copies: both
    # arrays are contiguous but for what is behind their rows.
    flat = (math.prod(lead), n)
    similarity(
        rows.reshape(flat[0], rows.shape[-1]),
        matrix,
        metric="dot",
        out=result.reshape(flat),
        **run,
    )
    return result


def project(
    operands: tuple[np.ndarray, ...], matrices: Matrices, heads: int, **run: Any
) -> list[np.ndarray]:
    """Return query, key and value of all heads, (..., heads, rows, features), as views."""
    query, key, value = operands
    shared = same_memory(key, value)
    if shared and matrices.whole is not None and same_memory(query, key):
        parts = [(query, matrices.whole)]
    elif shared and matrices.key_value is not None:
        parts = [(query, matrices.query), (key, matrices.key_value)]
    else:
        parts = [(query, matrices.query), (key, matrices.key), (value, matrices.value)]
    projected = []
    for x, matrix in parts:
        if matrices.biased:
            rows = padded(x.shape, matrix.dtype, True)
            rows[..., :-1] = x
        else:
            rows = np.ascontiguousarray(x, matrix.dtype)
        result = linear(rows, matrix, **run)
        size = len(matrices.query)
        count = len(matrix) // size
        split = result.reshape(*result.shape[:-1], count, heads, size // heads)
        projected += [split[..., at, :, :].swapaxes(-2, -3) for at in range(count)]
    return projected


def joined(attended: np.ndarray, dtype: np.dtype, biased: bool) -> np.ndarray:
    """Lay the heads of (..., heads, rows, features) side by side, as rows to be multiplied.

    Attention could write here itself; but calls with an `out` that is not contiguous are planned
    anew each time, and where it matters less, this copy costs what those stores cost (measured).
    """
    *batch, heads, length, features = attended.shape
    rows = padded((*batch, length, heads * features), dtype, biased)
    split = rows[..., : heads * features].reshape(*batch, length, heads, features)
    split[...] = attended.swapaxes(-2, -3)
    return rows


def attend(
    heads: list[np.ndarray],
    parameters: Mapping[str, np.ndarray],
    zero: bool,
    return_weights: bool,
    **options: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the output of all heads, (..., H, L, head_dim), and the weights if asked for."""
    added = zero or ADDED[0] in parameters
    results = attention(*heads, return_lse=added, return_weights=return_weights, **options)
    output, *more = results if added or return_weights else (results,)
    weights = more[-1] if return_weights else None
    if added:
        run = {name: options[name] for name in ("backend", "threads")}
        weights = _add_keys(heads[0], output, more[0], weights, parameters, zero, **run)
    return output, weights


def _add_keys(
    query: np.ndarray,
    output: np.ndarray,
    lse: np.ndarray,
    weights: np.ndarray | None,
    parameters: Mapping[str, np.ndarray],
    zero: bool,
    **run: Any,
) -> np.ndarray | None:
    """Let every query see the added keys too: change `output` in place, return the new weights.

    A finished result and its log-sum-exp count as one key among those added. So whatever hides
    keys is about the caller's keys alone, and nothing has to be made longer.
    """
    heads, features = query.shape[-3], query.shape[-1]
    added = [
        parameters[name].reshape(heads, 1, features).astype(query.dtype)
        for name in ADDED
        if name in parameters
    ]
    scores = [lse]
    if added:
        scores.append(similarity(query, added[0], metric="scaled_dot", **run)[..., 0])
    if zero:
        scores.append(np.zeros_like(lse))
    shares = softmax(np.stack(broadcast_arrays(*scores), axis=-1), **run)
    output *= shares[..., :1]
    if added:
        output += shares[..., 1:2] * added[1]
    if weights is None:
        return None
    return np.concatenate([weights * shares[..., :1], shares[..., 1:]], axis=-1)


def mean_of_heads(weights: np.ndarray) -> np.ndarray:
    """Average over axis -3, heads added one by one.

    NumPy's mean adds in an order that depends on the other axes, and so would the bits.
    """
    heads = weights.shape[-3]
    total = weights[..., 0, :, :].copy()
    for head in range(1, heads):
        total += weights[..., head, :, :]
    total /= heads
    return total


def rounded(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Round to a half what was computed in float32; what float16 cannot hold becomes inf."""
    if array.dtype == dtype:
        return array
    return array.astype(dtype)
