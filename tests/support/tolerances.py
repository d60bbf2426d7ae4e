"""How far a result may be from the float64 oracle: every tolerance of the suite, per dtype.

A tolerance is counted in roundings (units of ``eps``) of the dtype under test and grows with what
really makes roundings larger: a score is a sum of E products of total size Σ|q_e k_e|·|scale|, an
error in a score is a relative error of its weight, and an output is a mean of values.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

# Roundings that every result may take, whatever its scores: exp2, row sum, division, mask, fold.
WEIGHT_ROUNDINGS = 8.0
# Roundings per unit of score size: scale, chain of products, distance to the maximum, mask.
SCORE_ROUNDINGS = 1.0
# A chain of E products errs like a walk of E steps.
CHAIN_ROUNDINGS = 0.25
# A sum of weighted values of one sign grows as it goes, so each step rounds all before it anew.
SUM_ROUNDINGS = 0.5
SEGMENT_KEYS = 512
# Roundings of a subnormal sum: each product may lose half of the smallest number.
UNDERFLOW_ROUNDINGS = 64.0
# Roundings of a log-sum-exp near 0: exponential, their sum, logarithm, result.
LOGARITHM_ROUNDINGS = 4.0
# What is lost of a log-sum-exp whose terms cancel, in squares of the dtype's epsilon.
LOST_IN_CANCELLING = 16.0
# A log-sum-exp is never off by more than this many times what SciPy's is, over a distribution.
SCIPY_RATIO = 2.0
# Single operations against SciPy's or NumPy's formula in float64.
SOFTMAX_ROUNDINGS = 8.0
FUSE_ROUNDINGS = 2.0
# Hidden states of whole float32 models, in parts of the largest; and embeddings of length 1. A key
# too many or too few changes them a thousand times as much.
HIDDEN_STATES = 5e-6
EMBEDDINGS = 1e-6


def epsilon(dtype) -> float:
    """Spacing of the dtype's numbers at 1."""
    if is_small(dtype):
        return 2.0 ** -SMALL_DTYPES[np.dtype(dtype).name][0]
    return float(np.finfo(dtype).eps)


def tiny(dtype) -> float:
    """Smallest normal number: what may be lost where results underflow."""
    return float(np.finfo(dtype).tiny)


def lost_below(dtype) -> float:
    """What sums of products below the normal numbers may lose."""
    return UNDERFLOW_ROUNDINGS * float(np.finfo(dtype).smallest_subnormal)


def score_error(dtype, features: int, score_size: float) -> float:
    """Absolute error of a final score, for scores whose terms add up to `score_size`."""
    roundings = SCORE_ROUNDINGS + CHAIN_ROUNDINGS * math.sqrt(features)
    return epsilon(dtype) * roundings * score_size


def weight_error(dtype, features: int, score_size: float) -> float:
    """Relative error of a weight, and of a log-sum-exp apart from its own size."""
    return WEIGHT_ROUNDINGS * epsilon(dtype) + score_error(dtype, features, score_size)


def weight_beside_output(dtype) -> float:
    """Absolute error of a weight against the output of the same call whose values are the identity.

    Both see the same scores, so their size is no excuse: what the bound above lets pass where
    scores are large, this one does not.
    """
    small = float(rounding(dtype, 1.0)) if is_small(dtype) else 0.0
    return WEIGHT_ROUNDINGS * epsilon(np.float32 if is_small(dtype) else dtype) + 2 * small


def near_zero_error(dtype, distance: ArrayLike = 0.0) -> np.ndarray:
    """Relative error of a logarithm of a sum near 1, whose rest is that far below its maximum."""
    return epsilon(dtype) * (LOGARITHM_ROUNDINGS + np.asarray(distance))


def cancelled_error(dtype, result: float) -> float:
    """Absolute error of a log-sum-exp whose maximum and logarithm cancel."""
    return float(near_zero_error(dtype)) * abs(result) + LOST_IN_CANCELLING * epsilon(dtype) ** 2


def lost_of_factors(dtype) -> float:
    """The same of factors of both signs and any size, whose terms may be larger than their sum."""
    return 32 * LOST_IN_CANCELLING * epsilon(dtype) ** 2


def output_error(dtype, features: int, score_size: float, keys: int, value_size: float) -> float:
    """Absolute error of an output over some keys, for values as large as `value_size`."""
    roundings = SUM_ROUNDINGS * math.sqrt(min(keys, SEGMENT_KEYS))
    relative = weight_error(dtype, features, score_size) + epsilon(dtype) * roundings
    return relative * value_size + lost_below(dtype)


def lse_error(dtype, features: int, score_size: float, lse_size: float) -> float:
    """Absolute error of a log-sum-exp."""
    return weight_error(dtype, features, score_size) + 4 * epsilon(dtype) * lse_size


def softmax_error(dtype, score_size: float) -> float:
    """Relative error of a softmax, absolute error of its logarithms apart from their own size."""
    return epsilon(dtype) * (SOFTMAX_ROUNDINGS + 2 * score_size)


def fuse_error(dtype, keys: int, product_size: float) -> float:
    """Absolute error of a weighted sum whose terms' sizes add up to `product_size`."""
    return epsilon(dtype) * (FUSE_ROUNDINGS + CHAIN_ROUNDINGS * math.sqrt(keys)) * product_size


# Sums over features, however many, as parts of themselves where all terms have one sign and even
# where all are alike, so that roundings add up: of squares, as near as NumPy's pairwise sum; of
# products, whose chains are longer; cosines err as those do, and as norms.
WIDE_ROUNDINGS = {"euclidean": 4.0, "dot": 12.0, "scaled_dot": 12.0, "cosine": 16.0}


# Root mean square of a call's scores whose products are all alike, in ulp of the largest.
EQUAL_PRODUCTS = {"euclidean": 1.0, "dot": 3.0, "scaled_dot": 3.0, "cosine": 7.0}


def wide_error(dtype, metric: str, size: float) -> float:
    """Absolute error of a score of this size over any number of features."""
    return WIDE_ROUNDINGS[metric] * epsilon(dtype) * size


# Roundings of a linear map: of chains, of runs, of the bias.
LINEAR_ROUNDINGS = 4.0


def linear_error(dtype, size: float) -> float:
    """Absolute error of a linear map over any number of features, whose terms add up to `size`."""
    return LINEAR_ROUNDINGS * epsilon(dtype) * size


# Small dtypes: computed in float32, then rounded once; the result may be off by this many times
# what rounding the exact result would be.
SMALL_ROUNDINGS = 1.5
# mantissa bits, exponent of the smallest normal number
SMALL_DTYPES = {"float16": (10, -14), "bfloat16": (7, -126)}


def is_small(dtype) -> bool:
    """Tell whether results of this dtype are computed in float32 and rounded."""
    return np.dtype(dtype).name in SMALL_DTYPES


def rounding(dtype, numbers: ArrayLike) -> np.ndarray:
    """Largest error of rounding numbers of this size to a small dtype: half the spacing there."""
    bits, lowest = SMALL_DTYPES[np.dtype(dtype).name]
    exponent = np.frexp(np.where(np.isfinite(numbers), numbers, 0.0))[1] - 1
    return np.ldexp(0.5, np.maximum(exponent, lowest) - bits)


def small_error(dtype, numbers: ArrayLike) -> np.ndarray:
    """What rounding may add to the error of a float32 result, number by number."""
    return SMALL_ROUNDINGS * rounding(dtype, numbers)


def native_weight_error(dtype, value_size: float) -> float:
    """Output error of weights rounded to bfloat16, which the CPU's own dot product takes."""
    return float(rounding(dtype, 1.0)) * value_size if np.dtype(dtype).name == "bfloat16" else 0.0


# A cache of int8 rounds each number to a 254th of the largest of its row (two sides of 127).
INT8_ERROR = 0.5 / 127


# Contract point 4: error over the error of plain NumPy in the same dtype.
ACCURACY_LARGEST_RATIO = 1.5
ACCURACY_ULPS = 2.0
ACCURACY_MEAN_RATIO = 1.0
# Of linear maps of up to some thousand features; beside NumPy's of many rows.
LINEAR_ULPS = 2.0
LINEAR_RATIO = 0.8


# Shared allocation: what its total may lack of a maximum flow, as a part of it, at the tolerance of
# 1e-9 by default.
SHARED_TOTAL = 1e-9
# Of cells that carry more than the first, how far log(x / w) may be from a sum of row and column.
SHARED_USED = 1e-4
SHARED_FACTORS = 1e-4
# Sums of rows, and cells whatever the order of rows, against the fair parts: to what is left of
# eight digits, since a stop at the tolerance of 1e-9 leaves that of a sum to its few cells.
SHARED_SUMS = 1e-8
SHARED_ORDER = 1e-7
# Levels that a linear program gives, whose own feasibility is 1e-7 by default.
SHARED_PROGRAM = 1e-6
# Levels of whole numbers that no rounds come near to: quotients of a few sums.
SHARED_LEVELS = 1e-12
# Linear systems of 70 unknowns against a solver, which loses some digits; three by hand lose none.
SOLVED, SOLVED_BY_HAND = 1e-9, 1e-12
# Steps of Newton's method only point the way: three digits of a logarithm of what they grew by,
# seven of small ones; the logarithm itself is nearly that of float64.
STEP, SMALL_STEP, STEP_LOGARITHM = 1e-3, 1e-7, 1e-13

# Sums with factors of both signs in float64, of 130 terms that do not cancel far; and of a few
# terms, in roundings of the dtype.
FACTORS = 1e-12
FACTOR_ROUNDINGS = 4.0
# float32 outputs near 1 against PyTorch's, which rounds in its own order: five digits.
PYTORCH = 1e-5
# The same of any dtype, in roundings of the largest value: torch rounds weights of halves too.
PYTORCH_ROUNDINGS, PYTORCH_HALF_ROUNDINGS = 64.0, 4.0


def pytorch_error(dtype, size: float) -> float:
    """Absolute error of an output against PyTorch's, for values as large as `size`."""
    roundings = PYTORCH_HALF_ROUNDINGS if is_small(dtype) else PYTORCH_ROUNDINGS
    return roundings * epsilon(dtype) * max(size, 1.0)
