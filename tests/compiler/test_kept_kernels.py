"""Kernels that Numba compiled stay on disk, all of them."""

from pathlib import Path

import pytest
from conftest import available

pytestmark = pytest.mark.skipif(not available("numba"), reason="numba is not there")


def test_every_kernel_stays_on_disk():
    """What holds an address of this process could not: Numba warns, and compiles it every time."""
    from fastattn._numba.compiler import disk
    from fastattn._numba.entry_points import ENTRIES

    folder = disk.describe()["folder"]
    if folder is None:
        pytest.skip(f"no disk cache here: {disk.describe()['refusal']}")
    for entry in ENTRIES.values():
        entry.warm()
    kept = [path.name for path in Path(folder).glob("*.cell")]
    names = [entry.name for entry in ENTRIES.values()]
    assert [x for x in names if not any(file.startswith(f"{x}_") for file in kept)] == []
