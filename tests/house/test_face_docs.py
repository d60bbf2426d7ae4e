"""Docstrings and README: their examples run, README's commands and links work, rooms are told."""

import ast
import doctest
import importlib
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from places import ROOT

import fastattn

README = (ROOT / "README.md").read_text(encoding="utf-8")
FLAGS = doctest.NORMALIZE_WHITESPACE
MODULES = [
    "fastattn.allocation",
    "fastattn.attention",
    "fastattn.attention_allocation",
    "fastattn.cache",
    "fastattn.fusion",
    "fastattn.linear",
    "fastattn.multihead",
    "fastattn.normalize",
    "fastattn.shared_allocation",
    "fastattn.similarity",
    "fastattn.state",
    "fastattn.varlen",
    "fastattn._core.backends",
    "fastattn._core.config",
    "fastattn._core.sharing",
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


def test_examples_of_the_tour():
    found = doctest.testmod(fastattn, optionflags=FLAGS)
    assert found.attempted > 50
    assert not found.failed


def test_examples_of_the_readme():
    found = doctest.testfile(str(ROOT / "README.md"), module_relative=False, optionflags=FLAGS)
    assert found.attempted >= 10
    assert not found.failed


def test_the_readme_is_read_in_one_go():
    lines = len(README.splitlines())
    assert lines <= 300, f"README has {lines} lines: what a room is stands in its __init__"


def test_links_of_the_pages_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "bench" / "README.md", ROOT / "tests" / "README.md"):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)]*)\)", text):
            path, _, heading = target.partition("#")
            found = page.parent / path if path else page
            assert found.is_file(), f"{page.name} links to {target}"
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.M)
            assert not heading or heading in [one.lower().replace(" ", "-") for one in headings]


@pytest.mark.parametrize(
    ("name", "ending"),
    [("run", ".venv/bin/fastattn example digits"), ("test", "-m pytest -n 2 --dist loadfile")],
)
def test_commands_of_the_readme(name, ending):
    part = re.search(rf"<!-- {name} -->(.*?)<!-- /{name} -->", README, re.S)
    (block,) = re.findall(r"```[a-z]*\n(.*?)```", part[1], re.S)
    (line,) = block.strip().splitlines()
    assert line.startswith("python3 -m venv .venv && ")
    assert line.endswith(ending)


def test_readme_names_every_room():
    layout = README.split("```\nfastattn/\n")[1].split("```")[0]
    assert len(layout.splitlines()) <= 25
    package = Path(fastattn.__file__).parent
    rooms = {path.name for path in package.iterdir() if path.is_dir() and path.name[0] != "."}
    files = {path.name for path in package.glob("*.py")}
    for name in (rooms | files) - {"__pycache__", "__main__.py"}:
        assert name in layout, f"README's layer map does not know {name}"


ROOMS = sorted(path for path in Path(fastattn.__file__).parent.rglob("__init__.py"))[1:]


@pytest.mark.parametrize(
    "room", [*ROOMS, ROOT / "bench" / "__init__.py"], ids=lambda path: path.parent.name
)
def test_a_room_says_what_its_files_are(room):
    told = re.findall(r"[\w*]+\.\w+", ast.get_docstring(ast.parse(room.read_text("utf-8"))))
    files = [path for suffix in ("py", "pyx", "h") for path in room.parent.glob(f"*.{suffix}")]
    rooms = [path.parent for path in room.parent.glob("*/__init__.py")]
    assert len(files) + len(rooms) > 2
    for path in files:
        known = path == room or any(fnmatch(path.name, pattern) for pattern in told)
        assert known, f"the docstring of {room.parent.name} does not know {path.name}"


def test_readme_names_everything_public():
    for name in fastattn.__all__:
        assert f"{name}" in README
