"""The examples of docstrings and README run, and README's two commands are what they must be."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

import fastattn

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLAGS = doctest.NORMALIZE_WHITESPACE
MODULES = [
    "fastattn.allocation",
    "fastattn.attention",
    "fastattn.attention_allocation",
    "fastattn.cache",
    "fastattn.fusion",
    "fastattn.multihead",
    "fastattn.normalize",
    "fastattn.shared_allocation",
    "fastattn.similarity",
    "fastattn.state",
    "fastattn.varlen",
    "fastattn._core.backends",
    "fastattn._core.config",
    "fastattn._core.threads",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    module = importlib.import_module(name)
    found = doctest.testmod(module, optionflags=FLAGS)
    assert found.attempted
    assert not found.failed


def test_every_public_example_is_among_them():
    modules = {
        getattr(fastattn, name).__module__
        for name in fastattn.__all__
        if name[0] != "_"
        if hasattr(getattr(fastattn, name), "__module__")
    }
    assert modules == set(MODULES)


def test_examples_of_the_readme():
    found = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=FLAGS)
    assert found.attempted > 10
    assert not found.failed


@pytest.mark.parametrize(
    ("name", "ending"), [("run", ".venv/bin/fastattn example digits"), ("test", "-m pytest")]
)
def test_commands_of_the_readme(name, ending):
    part = re.search(rf"<!-- {name} -->(.*?)<!-- /{name} -->", README, re.S)
    (block,) = re.findall(r"```[a-z]*\n(.*?)```", part[1], re.S)
    (line,) = block.strip().splitlines()
    assert line.startswith("python3 -m venv .venv && ")
    assert line.endswith(ending)


def test_readme_names_every_room():
    layout = README.split("```\nfastattn/\n")[1].split("```")[0]
    package = Path(fastattn.__file__).parent
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name[0] != "."}
    files = {path.name for path in (*package.glob("*.py"), *(package / "_core").glob("*.py"))}
    for name in (rooms | files) - {"__pycache__", "__main__.py"}:
        assert name in layout, f"README's layer map does not know {name}"


def test_readme_names_everything_public():
    for name in fastattn.__all__:
        assert f"{name}" in README
