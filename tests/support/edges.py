"""Operands, calls and the check against the oracle that the tests of edges share."""

import numpy as np
import oracle
import strategies

import fastattn

DTYPES = ("float32", "float64")
# A lone row takes another path through the plan than many do, and a second segment is folded.
SIZES = [(1, 3), (7, 65), (26, 600)]


def arrays(dtype, rows, keys, features=8, value_features=5, seed=3):
    rng = np.random.default_rng(seed)
    shapes = ((2, rows, features), (2, keys, features), (2, keys, value_features))
    return tuple(strategies.draw(rng, shape, dtype) for shape in shapes)


def attend(*operands, **options):
    return fastattn.attention(*operands, **options, return_lse=True, return_weights=True)


def check(*operands, **options):
    oracle.attention(*operands, **options).check(*attend(*operands, **options), about=options)
