"""Broadcasting of more than the 32 dims that `np.broadcast_shapes` and its relatives know."""

import numpy as np

__all__ = ["broadcast_shapes"]


def broadcast_shapes(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that all of them broadcast to: that of an iterator over views."""
    views = [np.broadcast_to(np.False_, shape) for shape in shapes]
    return np.nditer(views, ["multi_index", "zerosize_ok"]).shape
