"""What checkers of types know of the public face, and that it is what runs."""

import inspect
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest
import right_calls
import static_face
from places import ROOT

import fastattn
from fastattn import allocation, cli, reference
from fastattn._core import annotations, backends, options
from fastattn._engine import allocation as engine_allocation
from fastattn._engine import describe

HERE = Path(__file__).parent
OPTIONS_OF_MYPY = ("--strict", "--config-file=", "--follow-imports=silent", "--no-error-summary")


def test_the_stub_is_what_the_sources_say():
    assert static_face.STUB.read_text("utf-8") == static_face.text(), (
        "python tests/static_face.py writes it anew"
    )


@pytest.mark.parametrize("name", ["right_calls", "wrong_calls"])
def test_mypy_accepts_what_is_right_and_refuses_what_is_wrong(name, tmp_path):
    """Of a user's file, strictly; what must be refused is in a comment that asks to ignore it."""
    pytest.importorskip("mypy")
    found = subprocess.run(
        [sys.executable, "-m", "mypy", *OPTIONS_OF_MYPY, f"--cache-dir={tmp_path}", f"{name}.py"],
        cwd=HERE,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


def test_results_are_of_the_types_that_mypy_was_told():
    right_calls.run()


def test_every_public_name_is_called():
    text = (HERE / "right_calls.py").read_text("utf-8")
    for name in set(fastattn.__all__) - {"PackedWeight", "warmup"}:
        assert f"fastattn.{name}" in text, name


def test_no_signature_has_other_arguments():
    assert "**" not in static_face.STUB.read_text("utf-8")


# Its module has the name of the function in it.
REFERENCE = import_module("fastattn.reference.similarity")
TABLES = {
    "similarities": (annotations.Similarity, options.SIMILARITIES),
    "the engine's": (annotations.Similarity, describe.METRICS),
    "the reference's": (
        annotations.Similarity,
        import_module("fastattn.reference.similarity")._METRICS,
    ),
    "the command line's": (annotations.Similarity, cli.SIMILARITIES),
    "methods": (annotations.Method, allocation.METHODS),
    "the engine's methods": (annotations.Method, [*filter(None, engine_allocation._METHODS)]),
    "backends": (annotations.BackendName, backends._MODULES),
    "those of the package": (annotations.BackendName, backends.KNOWN),
}


@pytest.mark.parametrize("name", TABLES)
def test_words_are_those_of_the_tables(name):
    words, table = TABLES[name]
    assert sorted(get_args(words)) == sorted(table)


WORDS = {
    "similarity": annotations.Similarity,
    "metric": annotations.Similarity,
    "causal": annotations.Alignment,
    "method": annotations.Method,
    "on_unspent": annotations.OnUnspent,
    "backend": annotations.BackendName,
    "mode": annotations.ConfigMode,
}


def functions():
    """Everything public that has a signature, by its name."""
    for name in set(fastattn.__all__) - {"__version__", "numerics_version"}:
        thing = getattr(fastattn, name)
        yield name, thing
        if inspect.isclass(thing):
            yield from (
                (f"{name}.{method}", function)
                for method, function in inspect.getmembers(thing, inspect.isfunction)
                if method[0] != "_" or method == "__call__"
            )


def test_docstrings_name_the_words_of_their_options():
    told = 0
    for name, function in functions():
        text = inspect.getdoc(function) or ""
        for argument, listed in re.findall(r"^(\w+) : (?:bool or )?\{([^}]*)\}", text, re.M):
            if argument in WORDS:
                found = re.findall(r'"(\w+)"', listed)
                assert sorted(found) == sorted(get_args(WORDS[argument])), (name, argument)
                told += 1
    assert told >= 15, told


def test_options_with_words_are_annotated_with_them():
    named = {"similarity": "Similarity", "metric": "Similarity", "method": "Method"}
    named |= {"causal": "Causal", "on_unspent": "OnUnspent", "mode": "ConfigMode"}
    for name, function in functions():
        if inspect.isclass(function):
            continue
        for argument, parameter in inspect.signature(function).parameters.items():
            if argument in named:
                assert parameter.annotation == named[argument], (name, argument)
            if argument == "backend":
                assert parameter.annotation == "BackendName | None", (name, argument)


def test_the_reference_is_seen_too():
    assert fastattn.reference is reference
