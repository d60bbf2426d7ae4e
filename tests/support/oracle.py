"""The truth a result is compared with: the float64 reference on the very numbers the call saw.

Inputs are already rounded to the dtype under test when they come here, so the oracle's result is
what an exact computation of the call would give, and its tolerances say how many roundings of that
dtype the result may be away.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tolerances

import fastattn
from fastattn import reference


@dataclass(frozen=True)
class Truth:
    """Expected results of one attention call, and how near they must be met."""

    output: np.ndarray
    lse: np.ndarray
    weights: np.ndarray
    dtype: np.dtype
    lse_dtype: np.dtype
    output_tolerance: float
    lse_tolerance: float
    weight_tolerance: float

    def check(self, output, lse=None, weights=None, *, about: Any = "") -> None:
        """Assert that results of a call have the right dtype, shape and numbers."""
        named = [("output", output, self.output, self.dtype, self.output_tolerance)]
        if lse is not None:
            named.append(("lse", lse, self.lse, self.lse_dtype, self.lse_tolerance))
        if weights is not None:
            named.append(("weights", weights, self.weights, self.dtype, self.weight_tolerance))
        for name, actual, expected, dtype, tolerance in named:
            assert actual.dtype == dtype, f"{name} is {actual.dtype}, not {dtype}: {about}"
            if tolerances.is_small(dtype):
                tolerance = tolerance + tolerances.small_error(dtype, expected)
            assert_close(actual, expected, tolerance, about=f"{name} of {about}")


def attention(query, key, value, **options) -> Truth:
    """Compute the truth of ``fastattn.attention(query, key, value, **options)``."""
    arrays = as_float64(query), as_float64(key), as_float64(value)
    options = rounded_options(options, compute_dtype(query, key, value))
    results = reference.attention(*arrays, **options, return_lse=True, return_weights=True)
    size = score_size(*arrays[:2], **options)
    return truth_of(results, (query, key, value), arrays[2].shape[-2], size)


def attention_varlen(query, key, value, query_splits, key_splits, **options) -> Truth:
    """Compute the truth of ``fastattn.attention_varlen`` on the same arguments."""
    options.pop("partial", None)  # the reference looks at what the splits say alone
    arrays = as_float64(query), as_float64(key), as_float64(value)
    options = rounded_options(options, compute_dtype(query, key, value))
    results = reference.attention_varlen(
        *arrays, query_splits, key_splits, **options, return_lse=True
    )
    keys = int(np.diff(key_splits).max(initial=0))
    bias = abs(np.asarray(options.get("alibi_slopes", 0.0))).max() * farthest(
        np.diff(query_splits), np.diff(key_splits), options.get("query_offset")
    )
    sizes = {name: options[name] for name in ("similarity", "scale") if name in options}
    size = score_size(*arrays[:2], **sizes) + bias
    return truth_of((*results, None), (query, key, value), keys, size)


def truth_of(results, operands, keys: int, size: float) -> Truth:
    """Say how near results must be met, for scores whose terms add up to `size`."""
    output, lse, weights = results
    dtype, result = compute_dtype(*operands), result_dtype(*operands)
    features, value_size = operands[0].shape[-1], finite_max(operands[2])
    error = tolerances.output_error(dtype, features, size, keys, value_size)
    return Truth(
        output,
        lse,
        weights,
        result,
        dtype,
        error + tolerances.native_weight_error(result, value_size),
        tolerances.lse_error(dtype, features, size, finite_max(lse)),
        tolerances.weight_error(dtype, features, size),
    )


def assert_weights_are_outputs(weights, query, key, *, about: Any = "", **options):
    """Assert that weights are the output of the same call whose values are the identity."""
    keys = key.shape[-2]
    identity = np.broadcast_to(np.eye(keys).astype(weights.dtype), (*key.shape[:-2], keys, keys))
    output = fastattn.attention(query, key, identity, **options)
    tolerance = tolerances.weight_beside_output(output.dtype)
    assert_close(weights, as_float64(output), tolerance, about=about)


def rounded_options(options, dtype: np.dtype) -> dict[str, Any]:
    """Options that say what, their float arrays as the call's dtype holds them."""
    kept = {name: options[name] for name in options if name not in IGNORED_OPTIONS}
    for name in ("mask", "alibi_slopes", "sinks"):
        if kept.get(name) is not None and np.asarray(kept[name]).dtype != bool:
            kept[name] = rounded_mask(np.asarray(kept[name]), dtype)
    return kept


def rounded_mask(mask: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A float mask as the call's dtype holds it; what is finite stays finite."""
    largest = np.finfo(dtype).max
    wide = as_float64(mask)
    return as_float64(
        np.where(np.isfinite(wide), np.clip(wide, -largest, largest), wide).astype(dtype)
    )


# Options that say how, not what.
IGNORED_OPTIONS = ("return_lse", "return_weights", "out", "backend", "threads")


def score_size(
    query,
    key,
    *,
    similarity="scaled_dot",
    scale=None,
    mask=None,
    alibi_slopes=None,
    query_offset=None,
    **others,
) -> float:
    """Bound Σ|q_e k_e|·|scale| (or its like for other similarities) plus mask and ALiBi."""
    if scale is None:
        scale = reference.default_scale(similarity, query.shape[-1])
    with np.errstate(all="ignore"):
        largest_query = finite_max(np.sqrt(np.sum(query**2, axis=-1)))
        largest_key = finite_max(np.sqrt(np.sum(key**2, axis=-1)))
    sizes = {
        "cosine": 3.0,  # a unit vector has the roundings of its norm, and there are two
        "euclidean": (largest_query + largest_key) ** 2,
        "dot": largest_query * largest_key,
        "scaled_dot": largest_query * largest_key,
    }
    size = sizes[similarity] * finite_max(scale)
    if mask is not None and np.asarray(mask).dtype != bool:
        size += finite_max(mask)
    if alibi_slopes is not None:
        lengths = others.get("key_lengths")
        keys = key.shape[-2] if lengths is None else np.max(lengths, initial=0)
        rows = query.shape[-2] if query.ndim > 1 else 1
        size += finite_max(alibi_slopes) * farthest(rows, keys, query_offset)
    return size


def farthest(rows, keys, offset) -> float:
    """Bound the distance of a query to a key, whatever the offset is resolved to."""
    return float(
        np.max(rows, initial=0)
        + np.max(keys, initial=0)
        + finite_max(0 if offset is None else offset)
    )


def compute_dtype(*arrays) -> np.dtype:
    """The dtype fastattn computes in: float64 where the result is, else float32."""
    return np.dtype(np.float64 if result_dtype(*arrays) == np.float64 else np.float32)


def result_dtype(*arrays) -> np.dtype:
    """The dtype of a result: that of the floats, float64 where an integer is there."""
    dtypes = [np.asarray(array).dtype for array in arrays]
    if any(dtype.kind != "f" and not tolerances.is_small(dtype) for dtype in dtypes):
        return np.dtype(np.float64)
    if {dtype.name for dtype in dtypes} >= set(tolerances.SMALL_DTYPES):
        dtypes = [np.dtype(np.float32), *(x for x in dtypes if not tolerances.is_small(x))]
    return np.result_type(*dtypes).newbyteorder("=")


def as_float64(array) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # garbage may hold a signalling NaN
        return np.asarray(array).astype(np.float64)


def finite_max(array) -> float:
    """Largest finite size in an array, 0 where there is none."""
    array = np.abs(np.asarray(array, dtype=np.float64))
    return float(np.max(array, where=np.isfinite(array), initial=0.0))


def assert_close(actual, expected, tolerance: float | np.ndarray, *, about: Any = "") -> None:
    """Assert equal shapes, NaN and inf in the same places, and numbers within the tolerance."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape, f"shape {actual.shape}, not {expected.shape}: {about}"
    wide = as_float64(actual)
    special = ~np.isfinite(expected) | ~np.isfinite(wide)
    same = (wide == expected) | (np.isnan(wide) & np.isnan(expected))
    wrong = special & ~same
    assert not wrong.any(), _first_difference(wide, expected, wrong, about)
    with np.errstate(invalid="ignore"):
        error = np.where(special, 0.0, np.abs(wide - expected))
    wrong = error > tolerance
    assert not wrong.any(), (
        f"error up to {error.max():.3g}, tolerance {np.max(tolerance):.3g}; "
        + _first_difference(wide, expected, wrong, about)
    )


def assert_same_bits(actual, expected, *, about: Any = "") -> None:
    """Assert equality to the last bit; NaN equals NaN, and −0 equals +0."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype, f"{actual.dtype}, not {expected.dtype}: {about}"
    assert actual.shape == expected.shape, f"shape {actual.shape}, not {expected.shape}: {about}"
    if canonical_bytes(actual) == canonical_bytes(expected):
        return
    differ = ~((actual == expected) | (np.isnan(actual) & np.isnan(expected)))
    raise AssertionError(
        f"{np.count_nonzero(differ)} of {differ.size} numbers differ in bits; "
        + _first_difference(actual, expected, differ, about)
    )


def canonical_bytes(array: np.ndarray) -> bytes:
    """Bytes of an array in which every NaN is the same NaN and every zero is +0."""
    with np.errstate(invalid="ignore"):  # ml_dtypes warns of signalling NaN
        array = np.where(np.isnan(array), np.asarray(np.nan, array.dtype), array)
        return (array + np.asarray(0, array.dtype)).tobytes()


def _first_difference(actual, expected, wrong, about) -> str:
    index = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"first at {index} of shape {actual.shape}: {actual[index]!r}, expected "
        f"{expected[index]!r}; {about}"
    )
