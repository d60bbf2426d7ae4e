"""Modules are read from below: nothing imports in circles, in functions, for types or by name."""

from graphlib import CycleError, TopologicalSorter

import pytest
from imports import BENCH, PACKAGE, graph_of

TREES = {"fastattn": PACKAGE, "bench": BENCH}


def circle_in(graph):
    """One circle of imports, as a list that ends where it begins; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("tree", TREES)
def test_no_circles_of_imports(tree):
    graph = graph_of(TREES[tree])
    assert sum(map(len, graph.values())) > len(graph), "hardly any import was read"
    assert circle_in(graph) == []


SPELLINGS = {
    "at the top": "from tree import low",
    "as an attribute": "import tree.low",
    "of one thing": "from tree.low import thing",
    "relative": "from .low import thing",
    "within a function": "def late():\n    from tree import low",
    "for types": "if TYPE_CHECKING:\n    from tree.low import thing",
    "by name": "import importlib\nthing = importlib.import_module('tree.low')",
    "through the package": "from tree import thing",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_circle_is_seen(tmp_path, spelling):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "__init__.py").write_text("from tree.low import thing")
    (tree / "low.py").write_text("import tree.high")
    (tree / "high.py").write_text("import numpy")
    assert circle_in(graph_of(tree)) == []
    (tree / "high.py").write_text(SPELLINGS[spelling])
    circle = circle_in(graph_of(tree))
    assert {"tree.low", "tree.high"} <= set(circle)
