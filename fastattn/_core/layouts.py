"""Views of arrays that broadcast to the batch, laid out as (*batch, key heads, groups, ...)."""

from __future__ import annotations

from typing import Any

from fastattn._core.arrays import Layout
from fastattn._core.masks import check_mask_dtype

__all__ = ["layout", "mask_layout"]


def layout(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    outer: tuple[int, ...],
    kv_heads: int,
    groups: int | None,
    trailing: int,
) -> Layout:
    """Lay an array out as (*outer, kv_heads, groups, *trailing); None leaves the groups axis out.

    Splitting the heads axis h = kv * G + g is always a view: strides (G * s, s).
    """
    dims = len(shape) - trailing
    sizes, steps = shape[:dims], strides[:dims]
    step = 0 if dims == 0 or sizes[-1] == 1 else steps[-1]
    missing = len(outer) - max(dims - 1, 0)
    outer_strides = (0,) * missing + tuple(
        0 if size == 1 else stride for size, stride in zip(sizes[:-1], steps[:-1], strict=True)
    )
    if groups is None:
        return (*outer, kv_heads, *shape[dims:]), (*outer_strides, step, *strides[dims:])
    return (
        (*outer, kv_heads, groups, *shape[dims:]),
        (*outer_strides, step * groups, step, *strides[dims:]),
    )


def mask_layout(
    mask: tuple[Any, ...],
    outer: tuple[int, ...],
    heads: int,
    batch: tuple[int, ...],
    groups: int,
    tail: tuple[int, int],
) -> Layout:
    """Lay a mask (shape, strides, dtype) out over the scores, or say why it does not broadcast."""
    shape, strides, dtype = mask
    check_mask_dtype(dtype, shape)
    full = (*batch, *tail)
    padded = (1,) * (len(full) - len(shape)) + shape
    if len(shape) > len(full) or any(
        n not in (1, size) for n, size in zip(padded, full, strict=True)
    ):
        raise ValueError(
            f"mask of shape {shape} does not broadcast to the scores' {full} (batch, L, S): every "
            "dim must be equal or 1" + _way_out(shape, full)
        )
    steps = (0,) * (len(full) - len(shape)) + strides
    steps = tuple(0 if n == 1 else step for n, step in zip(padded, steps, strict=True))
    kv_heads = heads // groups if groups else 0
    return layout(full, steps, outer, kv_heads, groups, 2)


def _way_out(shape: tuple[int, ...], full: tuple[int, ...]) -> str:
    """Say how to spell masks without heads, or with batch and heads in one, as in PyTorch."""
    if len(full) != 4:
        return ""
    batch, heads, length, width = full
    if shape == (batch, width):
        return "; one mask of keys per batch row is `np.asarray(mask)[:, None, None, :]`"
    if shape == (batch, length, width):
        return "; one mask per batch row is `np.asarray(mask)[:, None]`"
    if shape == (batch * heads, length, width):
        return f"; one per batch row and head is `np.reshape(mask, {full})`"
    return ""
