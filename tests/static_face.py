"""Write ``fastattn/__init__.pyi``, the public face as checkers of types and editors see it.

Run ``python tests/static_face.py`` after a change of a public signature; ``tests/typed`` asks for
it. The sources say everything once. What the stub has of its own is how a result depends on what is
asked for, which one signature cannot say; and it lacks ``**unknown``, which is there at run time to
explain what other libraries call an argument.
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "fastattn"
STUB = PACKAGE / "__init__.pyi"
LINE = 100

# Where the names come from that signatures may use; those that are used are imported.
IMPORTS = {
    "os": (),
    "collections.abc": ("Callable", "Iterator", "Mapping", "Sequence"),
    "contextlib": ("contextmanager",),
    "dataclasses": ("dataclass",),
    "typing": ("Any", "Final", "Literal", "NamedTuple", "Never", "overload"),
    "numpy as np": (),
    "numpy.typing": ("DTypeLike",),
    "fastattn._core.annotations": (
        *("ArrayLike", "Axis", "BackendName", "Causal", "ConfigMode", "Method", "OnUnspent"),
        *("Rotate", "Similarity", "Window"),
    ),
    "fastattn._core.execution": ("Execution",),
    "fastattn._core.sharing": ("Sharing",),
}
DECORATORS = ("classmethod", "contextmanager", "dataclass", "property", "staticmethod")
METHODS = ("__call__", "__enter__", "__exit__", "__init__")
MADE_ELSEWHERE = ("PackedWeight", "State")

# A function whose source returns Any appends an array for each ``return_...`` that is True; what
# it returns without them, unless that is an array (of a reduction a scalar may be left):
PLAIN = {"logsumexp": "Any"}
# What else decides what is returned: the words of an argument, with what each makes of the plain.
CHOICES = {
    ("allocate", "on_unspent"): {"raise": "np.ndarray", "keep": "tuple[np.ndarray, Any]"},
    ("show_config", "mode"): {"stdout": "None", "dicts": "dict[str, dict[str, object]]"},
}
# Arguments about a result that must be asked for.
ABOUT = {"average_weights": "return_weights"}


def parsed(module: str) -> ast.Module:
    """Read a module of the package."""
    path = PACKAGE.parent / (module.replace(".", "/") + ".py")
    return ast.parse((path if path.is_file() else PACKAGE / "__init__.py").read_text("utf-8"))


def assigned(tree: ast.Module, name: str) -> object:
    """Return the literal that a module assigns to a name."""
    return next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name
    )


def wrapped(head: str, parts: list[str], tail: str, indent: str = "") -> str:
    """Write ``head(parts)tail``, in lines that are filled and broken between the parts."""
    line = f"{indent}{head}({', '.join(parts)}){tail}"
    if len(line) <= LINE:
        return line
    inside = indent + "    "
    joined = ", ".join(part.replace(" ", "\0") for part in parts)
    lines = textwrap.fill(joined, LINE, initial_indent=inside, subsequent_indent=inside)
    return f"{indent}{head}(\n{lines},\n{indent}){tail}".replace("\0", " ")


def parameters(function: ast.FunctionDef, changed: dict[str, str | None]) -> list[str]:
    """Write the parameters of a function; those of `changed` have another type, or are not there.

    One that is changed to what its default is not must be given, and by name.
    """
    given = function.args
    defaults = [None] * (len(given.args) - len(given.defaults)) + list(given.defaults)
    placed, named = [], []
    for argument, default in [
        *zip(given.args, defaults, strict=True),
        *zip(given.kwonlyargs, given.kw_defaults, strict=True),
    ]:
        kind = ast.unparse(argument.annotation) if argument.annotation else None
        text = argument.arg
        is_needed = default is None
        if text in changed:
            kind = changed[text]
            if kind is None:
                continue
            is_needed = default is None or kind != f"Literal[{ast.unparse(default)}]"
        by_name = argument in given.kwonlyargs or (is_needed and default is not None)
        if kind is not None:
            text += f": {kind}"
        if not is_needed and default is not None:
            text += f" = {ast.unparse(default)}"
        (named if by_name else placed).append(text)
    return [*placed, "*", *named] if named else placed


def ways(function: ast.FunctionDef) -> Iterator[tuple[dict[str, str | None], str]]:
    """Yield what may be asked for, as types of arguments, and what is then returned."""
    told = ast.unparse(function.returns) if function.returns else "None"
    arguments = [x.arg for x in (*function.args.args, *function.args.kwonlyargs)]
    for (name, argument), words in CHOICES.items():
        if name == function.name:
            for word, returned in words.items():
                yield {argument: f"Literal[{word!r}]"}, returned
    flags = [name for name in arguments if name.startswith("return_") and told == "Any"]
    plain = PLAIN.get(function.name, "np.ndarray")
    for asked in itertools.product((False, True), repeat=len(flags) if flags else 0):
        if not flags:
            break
        changed: dict[str, str | None] = {
            flag: f"Literal[{is_asked}]" for flag, is_asked in zip(flags, asked, strict=True)
        }
        for argument, flag in ABOUT.items():
            if argument in arguments and changed.get(flag) == "Literal[False]":
                changed[argument] = None
        more = ["Any" if plain == "Any" else "np.ndarray"] * sum(asked)
        yield changed, f"tuple[{', '.join([plain, *more])}]" if more else plain
    yield {flag: "bool" for name, flag in ABOUT.items() if name in arguments}, told


def written(function: ast.FunctionDef, indent: str = "") -> Iterator[str]:
    """Yield the lines of a function: one signature, or one for each that may be asked for."""
    found = list(ways(function))
    decorators = [ast.unparse(one) for one in function.decorator_list]
    kept = [one for one in decorators if one.partition("(")[0] in DECORATORS]
    for changed, returns in found:
        for one in [*["overload"] * (len(found) > 1), *kept]:
            yield f"{indent}@{one}"
        parts = parameters(function, changed)
        yield wrapped(f"def {function.name}", parts, f" -> {returns}: ...", indent)


def class_lines(node: ast.ClassDef) -> Iterator[str]:
    """Yield what a class shows."""
    for one in node.decorator_list:
        yield f"@{ast.unparse(one)}"
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    yield f"class {node.name}({bases}):" if bases else f"class {node.name}:"
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and ast.unparse(part.target)[0] != "_":
            yield f"    {ast.unparse(part)}"
        if isinstance(part, ast.FunctionDef) and (part.name[0] != "_" or part.name in METHODS):
            if part.name == "__init__" and node.name in MADE_ELSEWHERE:
                yield "    def __init__(self, made_elsewhere: Never, /) -> None: ..."
            else:
                yield from written(part, "    ")


def lines() -> Iterator[str]:
    """Yield everything public, in the order of its names."""
    tree = parsed("fastattn")
    origins = {
        alias.asname or alias.name: (node.module or "", alias.name)
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    public = assigned(tree, "__all__")
    assert isinstance(public, list)
    yield wrapped("__all__ = ", list(map(repr, public)), "")
    for name in public:
        module, original = origins[name]
        source = parsed(module)
        for node in source.body:
            if isinstance(node, ast.FunctionDef) and node.name == original:
                yield from written(node)
            elif isinstance(node, ast.ClassDef) and node.name == original:
                yield from class_lines(node)
        if original.isupper():
            yield f"{name}: Final[{type(assigned(source, original)).__name__}]"


def text() -> str:
    """Return the stub."""
    body = "\n".join(lines())
    imports = []
    for module, names in IMPORTS.items():
        used = [name for name in names if re.search(rf"\b{name}\b", body)]
        if used:
            line = f"from {module} import {', '.join(used)}"
            imports.append(
                line if len(line) <= LINE else wrapped(line.partition(used[0])[0], used, "")
            )
        elif not names and re.search(rf"\b{module.split()[-1]}\.", body):
            imports.append(f"import {module}")
    written_out = (
        "# Written by tests/static_face.py: change the sources, and run it.\n"
        + "\n".join(imports)
        + "\nfrom . import bridges as bridges\nfrom . import reference as reference\n\n"
        + body
        + "\n"
    )
    return written_out.replace("'", '"')


if __name__ == "__main__":
    STUB.write_text(text(), "utf-8")
