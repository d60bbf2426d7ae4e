"""Code that error texts quote: found in the sources, cut out of messages, pasted and run.

A text that quotes code puts it in backticks, or it is an option of the command line, which begins
with ``--``. `advice_calls.py` holds, for every such text, a wrong call that is answered with it
(`advice_names.py`: one with a name of another library; `advice_wrong.py`: how they are written);
``test_advice.py`` pastes what the answer quotes, as a user would, and expects that the call works.
"""

import ast
import builtins
import importlib.metadata
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fastattn

PACKAGE = Path(fastattn.__file__).parent
QUOTED = re.compile(r"`([^`]+)`")
OPTION = re.compile(r"(?<![\w`-])--[a-z][a-z-]+(?: \d[\w.,]*| --[a-z-]+)*")
# What code looks like: a call, a keyword, an index, a command.
LOOKS_LIKE_CODE = re.compile(
    r"[\w\]}]\((?!\.\.\.|s\b|es\b)|(?<![\w.])[a-z_]\w*=(?!=)|\[(?:[^\]]*:[^\]]*|None)\]"
    r"|\bpip install|\bnp\.\w+|~\w"
)
# Strings that look like code and are no texts for people.
NO_TEXTS = re.compile(
    r"^\S*$|^(void|int64|#define|\} __attribute__)|^, kdim=|\(\?<!|^Computes |^\s*target triple"
    r"|\(\) got an unexpected|check_\{\}\(\{\}\)$|^(attention|linear)\(Tensor "
)
# Whose texts speak of options of the command line; elsewhere they are options themselves.
SPEAKS_OF_OPTIONS = ("batch", "plot", "examples")


class Text(NamedTuple):
    """A string of the package, with ``{}`` where something is put in."""

    place: str
    template: str

    @property
    def pattern(self) -> re.Pattern[str]:
        parts = re.split(r"\{\w*\}", self.template)
        return re.compile(".*?".join(map(re.escape, parts)), re.S)

    def quotes_code(self) -> bool:
        room = self.place.split("/")[0]
        speaks = room in SPEAKS_OF_OPTIONS and " " in self.template.strip()
        return bool(QUOTED.search(self.template) or (speaks and OPTION.search(self.template)))

    def has_bare_code(self) -> bool:
        bare = QUOTED.sub("", self.template)
        return bool(LOOKS_LIKE_CODE.search(bare)) and not NO_TEXTS.search(self.template)


def texts(source: str, place: str) -> Iterator[Text]:
    """Every string of a module that is no docstring and no part of a ``__repr__``."""
    tree = ast.parse(source)
    passed: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr):
                passed.add(first.value)
            if getattr(node, "name", "") in ("__repr__", "__str__"):
                passed.update(ast.walk(node))
        if isinstance(node, ast.JoinedStr):
            passed.update(part for part in node.values if isinstance(part, ast.Constant))
        if isinstance(node, ast.keyword) and node.arg in ("help", "description", "epilog"):
            passed.update(ast.walk(node.value))
    for node in ast.walk(tree):
        if node in passed:
            continue
        if isinstance(node, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
            yield Text(f"{place}:{node.lineno}", "".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield Text(f"{place}:{node.lineno}", node.value)


def all_texts() -> list[Text]:
    return [
        text
        for path in sorted(PACKAGE.rglob("*.py"))
        for text in texts(path.read_text(encoding="utf-8"), str(path.relative_to(PACKAGE)))
    ]


def missing(found: list[Text], messages: list[str]) -> list[Text]:
    """Those of the texts that quote code and are in none of the messages."""
    return [
        text
        for text in found
        if text.quotes_code() and not any(text.pattern.search(message) for message in messages)
    ]


def quoted(message: str) -> list[str]:
    return QUOTED.findall(message)


def answer(call: str, scope: dict[str, Any]) -> str:
    """Make a wrong call and return the text of its error or warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            eval(call, scope)
        except Exception as error:
            return str(error)
    assert caught, f"{call} is not refused"
    return str(caught[0].message)


def follow(message: str, number: int, wrong: Any, scope: dict[str, Any]) -> None:
    """Paste the numbered piece of code of a text; where there are more rounds, of the next too."""
    for left in reversed(range(wrong.rounds)):
        try:
            paste(quoted(message)[number], wrong.call, scope, wrong.into, message)
            return
        except Exception as error:
            if not left:
                raise
            message = str(error)


def paste(code: str, call: str, scope: dict[str, Any], into: str | None, message: str) -> None:
    """Do what a text advises, then make the call again, which must work without a warning."""
    if "pip install" in code:
        installed(code)
        return
    tree = ast.parse(call, mode="eval").body
    assert isinstance(tree, ast.Call), f"write a call whose last step is refused: {call}"
    unknown = re.search(r"unexpected keyword argument '(\w+)'", message)
    keywords = {}
    for keyword in tree.keywords:
        scope[keyword.arg] = eval(ast.unparse(keyword.value), scope)
        if not unknown or keyword.arg != unknown[1]:
            keywords[keyword.arg] = scope[keyword.arg]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given = _keywords(code)
        if given is not None:
            keywords |= {name: eval(value, scope) for name, value in given.items()}
        else:
            value = eval(code, scope)
            target = _first_variable(code, scope) if into is None else into
            if target:
                scope[target] = value
            if target in keywords:
                keywords[target] = value
        if into != "":
            function = eval(ast.unparse(tree.func), scope)
            function(*(eval(ast.unparse(x), scope) for x in tree.args), **keywords)


def _keywords(code: str) -> dict[str, str] | None:
    try:
        call = ast.parse(f"f({code})", mode="eval").body
    except SyntaxError:
        return None
    assert isinstance(call, ast.Call)
    if call.args or not call.keywords:
        return None
    return {str(keyword.arg): ast.unparse(keyword.value) for keyword in call.keywords}


def _first_variable(code: str, scope: dict[str, Any]) -> str:
    for node in ast.walk(ast.parse(code, mode="eval")):
        if isinstance(node, ast.Name) and node.id in scope["variables"]:
            return node.id
    raise AssertionError(f"`{code}` names no argument of the call: say into= what it goes")


def installed(command: str) -> None:
    """``pip install NAME`` is judged by what is installed here under that name."""
    name = command.split("pip install ")[1]
    if name.startswith("-e "):
        assert (PACKAGE.parent / name[3:] / "pyproject.toml").is_file()
        before = command.split("pip install")[0].strip()
        variable = before.split("=")[0]
        assert before == f"{sys.executable} -m" or (
            before and variable in (PACKAGE.parent / "setup.py").read_text()
        )
        return
    assert re.fullmatch(r"[\w-]+", name), f"{command}: a name that the index has, and no extra"
    assert name != "fastattn"
    importlib.metadata.distribution(name)


def scope_of(variables: dict[str, str]) -> dict[str, Any]:
    """Make the variables of a call, each from an expression over those before it."""
    import ml_dtypes
    import numpy as np

    scope: dict[str, Any] = {name: getattr(fastattn, name) for name in fastattn.__all__}
    scope |= {"np": np, "numpy": np, "ml_dtypes": ml_dtypes, "fastattn": fastattn}
    scope["__builtins__"] = builtins
    scope["variables"] = tuple(variables)
    for name, expression in variables.items():
        scope[name] = eval(expression, scope) if isinstance(expression, str) else expression()
    return scope
