"""How long files and functions may be, and what may be longer because it is one thing."""

import ast

import pytest
from places import ROOT

FILES = sorted(
    path
    for room in ("fastattn", "bench", "tests")
    for suffix in ("py", "pyi", "pyx", "h")
    for path in (ROOT / room).rglob(f"*.{suffix}")
    if path.name != "__init__.pyi"  # which is written by static_face.py
)
LONGEST_FILE = 400
LONGEST_FUNCTION = 60  # below signature and docstring, which are written out whatever they take

LONG_FILES = {
    "bench/cases.py": "one list of cases, and what makes each of a line",
    "fastattn/cache.py": "one class, most of it docstrings",
    "fastattn/multihead.py": "one class, most of it docstrings",
    "fastattn/_cython/_native.pyx": "one module: drivers, threads, and kept calls",
    "tests/seeded/faults.py": "one table of faults, and how each is seeded",
    "tests/batch/test_batch_shared.py": "how jobs meet others on their files, one harness",
    "tests/contract/test_bfloat16_dot.py": "runs itself in a process where pairs are multiplied",
    "tests/face/test_cache_kv.py": "one model of a cache, and all that may happen to it",
    "tests/face/test_cli.py": "one command line: exit codes and streams of every command",
    "tests/cython/test_compiled.py": "the compiled backend in its process: threads, forks, levels",
    "tests/stages/test_logarithms.py": "one judge in decimal arithmetic for all operations",
}
LONG_FUNCTIONS = {
    "fastattn/_numba/machine/tile.py:_emit_tile": "one loop nest, from loads to stores",
    "fastattn/_numba/stages/fuse.py:fuse_strip": "calls of one tile whose sizes are constants",
    "fastattn/_core/recipe.py:_make_recipe": "one value, each field made of those before it",
    "fastattn/_engine/stages.py:similarity": "one record, filled in one place",
    "fastattn/_numba/steps/score.py:product_columns": "calls of one tile whose sizes are constants",
    "fastattn/_numba/stages/softmax.py:normalise_block": "phases of one block, on one record",
}


def lines_of(function):
    """Count a function's lines below its signature and docstring."""
    first, *rest = function.body
    documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if documented and not rest:
        return 0
    return function.end_lineno - (first.end_lineno if documented else first.lineno - 1)


def functions_of(source):
    """Yield the name and the length of every function, those within others and methods too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, lines_of(node)


def names(path):
    return str(path.relative_to(ROOT))


def test_long_files_are_those_with_a_reason():
    assert {path.parts[len(ROOT.parts)] for path in FILES} == {"fastattn", "bench", "tests"}
    lengths = {names(path): len(path.read_text("utf-8").splitlines()) for path in FILES}
    found = {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE}
    changed = found.keys() ^ LONG_FILES.keys()
    assert not changed, f"cut it, give its reason, or strike it from the list: {changed}, {found}"


def test_long_functions_are_those_with_a_reason():
    found = {
        f"{names(path)}:{name}": lines
        for path in FILES
        if path.suffix == ".py"
        for name, lines in functions_of(path.read_text("utf-8"))
        if lines > LONGEST_FUNCTION
    }
    changed = found.keys() ^ LONG_FUNCTIONS.keys()
    assert not changed, f"cut it, give its reason, or strike it from the list: {changed}, {found}"


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("return 1", 1),
        ("'one line'", 0),
        ("'one line'\n  return 1", 1),
        ("'''two\n  lines'''\n\n  # why\n  x = (\n    1)\n  return x", 5),
        ("x = 1\n  def inner():\n    return x\n  return inner", 4),
    ],
)
def test_lines_are_counted_below_the_docstring(body, lines):
    assert next(functions_of(f"def f(\n  a,\n  b,\n):\n  {body}\n")) == ("f", lines)
