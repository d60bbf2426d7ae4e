"""Broadcasting of more than the 32 dims that `np.broadcast_shapes` and its relatives know."""

import numpy as np

__all__ = ["broadcast_shapes"]


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that all of them broadcast to, dim by dim, 1 where a shape has none."""
    dims = max(map(len, shapes))
    padded = ((1,) * (dims - len(shape)) + shape for shape in shapes)
    return tuple(
        np.broadcast(*(np.empty((n, 0)) for n in sizes)).shape[0]
        for sizes in zip(*padded, strict=True)
    )
