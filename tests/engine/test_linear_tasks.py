"""How linear maps are cut into tasks: work for all threads, and tasks that Ctrl-C can wait for."""

import numpy as np
import pytest

import fastattn
from fastattn._core.constants import PANEL_KEYS, TILE_ROWS
from fastattn._engine import linear
from fastattn._engine.layouts import WEIGHTS_DECODE, WEIGHTS_IN_PANELS, WEIGHTS_IN_ROWS

WAYS = (WEIGHTS_IN_ROWS, WEIGHTS_IN_PANELS, WEIGHTS_DECODE)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rows", [1, 4, 7, 32, 512, 4096])
@pytest.mark.parametrize(
    ("depth", "columns"), [(768, 768), (3072, 768), (2048, 11008), (10**6, 512)]
)
def test_tasks(rows, depth, columns, way):
    for threads in (1, 2, 16):
        task_rows, task_columns = linear._task_size(rows, columns, depth, 1, way, threads)
        assert task_rows % TILE_ROWS == 0
        assert task_columns % PANEL_KEYS == 0
        tasks = -(-rows // task_rows) * -(-columns // task_columns)
        smallest = task_columns == PANEL_KEYS and task_rows <= 4 * TILE_ROWS
        assert threads == 1 or tasks >= 2 * threads or smallest
        smallest = task_columns == PANEL_KEYS and task_rows <= TILE_ROWS
        assert task_rows * task_columns * depth <= linear._TASK_PRODUCTS or smallest


@pytest.mark.parametrize("packed", [True, False])
def test_rows_that_lie_apart_meet_the_weights_once(monkeypatch, exact_backend, packed):
    """As those of part of each sequence, which went through the weights sequence by sequence."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((200, 130), dtype=np.float32)
    held = fastattn.pack_linear(weight) if packed else weight
    x = rng.standard_normal((3, 4, 9, 130), dtype=np.float32)
    expected = fastattn.linear(np.ascontiguousarray(x[:, :, :7]), held, backend=exact_backend)
    met, weight_way = [], linear._weight_way

    def watched(rows, *arguments):
        met.append(rows)
        return weight_way(rows, *arguments)

    monkeypatch.setattr(linear, "_weight_way", watched)
    found = fastattn.linear(x[:, :, :7], held, backend=exact_backend)
    assert met == [3 * 4 * 7]
    assert np.array_equal(found, expected)
    apart = np.empty((3, 4, 9, 200), np.float32)[:, :, :7]
    assert np.array_equal(fastattn.linear(x[:, :, :7], held, out=apart), expected)
    few = np.ones((4, 130), np.float32)  # not worth a plan for each call
    fastattn.linear(x[:, :, :7], few, backend=exact_backend)
    assert met[-1] == 7
