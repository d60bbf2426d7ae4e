"""Which of torch's operations give a row of their result from that row alone, by their names.

Names are those of ATen without what follows the point; one that ends in ``_`` writes in place.
"""

from __future__ import annotations

from typing import Any

__all__ = ["NUMBERS", "ROWS", "WHOLE_VECTORS", "is_by_row"]

# What moves, picks and makes numbers, and compares them.
_MOVES = """
    _to_copy _unsafe_view alias_copy arange argmax argmin argsort bitwise_and bitwise_not bitwise_or
    bitwise_xor bucketize cat clone constant_pad_nd copy contiguous detach empty empty_like
    empty_strided eq equal eye fill flip full full_like gather ge gt im2col index index_select
    is_same_size isfinite isinf isnan isin item le lift_fresh lift_fresh_copy linspace
    _local_scalar_dense logical_and logical_not logical_or logical_xor lt masked_fill masked_select
    max max_pool1d max_pool2d_with_indices min amax amin any all ne new_empty new_empty_strided
    new_full new_ones new_zeros nonzero ones ones_like pixel_shuffle pixel_unshuffle repeat
    repeat_interleave reshape resolve_conj resolve_neg roll scalar_tensor scatter select_backward
    searchsorted select_scatter set_ slice_scatter sort split_with_sizes_copy stack topk tril triu
    unfold_copy view_copy where zero zeros zeros_like set
"""
# One number from those in its place; rounded alike wherever in a tensor it stands.
NUMBERS = """
    abs acos acosh add addcdiv addcmul asin asinh atan ceil clamp clamp_max clamp_min cos div
    erf erfc exp expm1 floor floor_divide fmod hardsigmoid hardswish hardtanh leaky_relu lerp log
    log10 log1p log2 log_sigmoid_forward maximum minimum mul nan_to_num neg reciprocal relu
    remainder round rsub sgn sign sin sqrt square sub tan tanh threshold trunc
"""
# A row, or its sum, from the numbers in the row.
ROWS = """
    _fused_rms_norm _log_softmax _native_batch_norm_legit_no_training cumprod cumsum embedding
    linalg_vector_norm logsumexp mean native_group_norm native_layer_norm norm prod sum
"""
# torch computes these on vectors of numbers, and the few at the end of a thread's share, or those
# that do not lie side by side, one by one with other roundings.
WHOLE_VECTORS = frozenset(
    ("atanh", "elu", "exp2", "gelu", "mish", "pow", "rsqrt", "sigmoid", "silu", "sinh", "softplus")
)

_BY_ROW = frozenset((_MOVES + NUMBERS + ROWS).split()) - WHOLE_VECTORS


def is_by_row(operation: Any) -> bool:
    """Tell whether an operation, as torch dispatches it, gives each row from that row alone."""
    space, _, name = operation._schema.name.partition("::")
    if space == "fastattn" or operation.is_view:
        return True
    return space == "aten" and name.removesuffix("_") in _BY_ROW
