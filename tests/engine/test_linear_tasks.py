"""How linear maps are cut into tasks: work for all threads, and tasks that Ctrl-C can wait for."""

import pytest

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
