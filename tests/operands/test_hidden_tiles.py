"""What a mask hides in whole panels is never read: it lies in memory that nobody may read.

The sweep runs in a child process, which a read of such keys or values ends.
"""

import mmap
import sys

import numpy as np
import pytest
import strategies
from pens import PAGE, lines_of, protect

PANEL = 64


class Panels:
    """Rows of which each panel is a page; those that are hidden cannot be read."""

    def __init__(self, rows: np.ndarray, hidden: list[int]) -> None:
        assert PANEL * rows.strides[0] == PAGE
        self.memory = mmap.mmap(-1, rows.nbytes)
        self.rows = np.frombuffer(self.memory, rows.dtype).reshape(rows.shape)
        self.rows[...] = rows
        for panel in hidden:
            protect(self.rows.ctypes.data + panel * PAGE, PAGE)


def sweep(backend: str, dtype: str, rows: int) -> None:
    """Attend to panels that are before, between and behind hidden ones, in three segments."""
    import fastattn

    rng = np.random.default_rng(rows)
    dtype = strategies.dtype_of(dtype)
    features = PAGE // (PANEL * dtype.itemsize)
    query, key, value = (strategies.draw(rng, (n, features), dtype) for n in (rows, 1280, 1280))
    for seen in ([0], [1], [19], [0, 3], [2, 9], [7, 8, 9], [1, 5, 18], [0, 2, 4, 6]):
        hidden = sorted(set(range(20)) - set(seen))
        mask = np.isin(np.arange(1280) // PANEL, seen) & (rng.random((rows, 1280)) < 0.9)
        held = [Panels(x, hidden).rows for x in (key, value)]
        for one in (mask, np.where(mask, np.float32(0), np.float32(-np.inf))):
            print(dtype, rows, seen, one.dtype, flush=True)
            with fastattn.use_backend(backend):
                found = fastattn.attention(query, *held, mask=one)
                expected = fastattn.attention(query, key, value, mask=one)
            assert np.array_equal(found, expected)


# Halves are read where they lie by up to four rows; more have the values between staged as well.
@pytest.mark.parametrize(
    ("dtype", "rows"),
    [*(("float32", n) for n in (1, 4, 30, 300)), ("float64", 2), ("float64", 70), ("float16", 3)],
)
def test_hidden_panels_are_never_read(exact_backend, dtype, rows):
    assert len(lines_of(__file__, exact_backend, dtype, str(rows))) == 16


if __name__ == "__main__":
    sweep(*sys.argv[1:3], int(sys.argv[3]))
