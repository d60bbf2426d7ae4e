"""Operands in float16 and bfloat16, shapes at which their roundings are looked at."""

import numpy as np
import pytest
import strategies

SMALL = ("float16", "bfloat16")
ANY = ("float16", "bfloat16", "float32", "float64")
SHAPES = {
    "decode": (1, 4, 1, 1100, 64),
    "prefill": (1, 2, 130, 600, 64),
    "odd": (2, 3, 25, 77, 33),
    "many": (600, 1, 1, 50, 64),
}


def operands(dtype, shape, seed, spread=1.0):
    rng = np.random.default_rng(seed)
    batch, heads, rows, keys, features = SHAPES[shape]
    dtype = strategies.dtype_of(dtype)
    return [
        (rng.standard_normal((batch, heads, n, features)) * spread).astype(dtype)
        for n in (rows, keys, keys)
    ]


def exact_backends_only(backend):
    if backend == "reference":
        pytest.skip("the reference computes in float64")
