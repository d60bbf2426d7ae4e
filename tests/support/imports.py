"""Who imports whom, read from the syntax trees, for the walls between rooms and for circles."""

import ast
import subprocess
import sys
from pathlib import Path

from places import ROOT

import fastattn

PACKAGE = Path(fastattn.__file__).parent
BENCH = ROOT / "bench"


def module_of(path, root=PACKAGE.parent):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path, root=PACKAGE.parent):
    """Every module that a file imports anywhere in it, functions included, as absolute names."""
    module = module_of(path, root)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join(above if node.level else []) + "." * bool(node.level and node.module)
            source += node.module or ""
            for alias in node.names:
                deeper = f"{source}.{alias.name}"
                yield deeper if _is_module(deeper, root) else source


def _is_module(name, root):
    path = root.joinpath(*name.split("."))
    # `from fastattn import attention` means the function, though a file has the same name.
    top, _, rest = name.partition(".")
    shadowed = top == "fastattn" and rest in fastattn.__all__
    return not shadowed and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def imports_by_name(path):
    """Texts of a file that calls `import_module`: any of them may be what it imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {getattr(node, "attr", getattr(node, "id", None)) for node in ast.walk(tree)}
    if "import_module" in names:
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def graph_of(folder):
    """All modules below a folder, each with those of them that it imports, at the top or later."""
    root = folder.parent
    files = {module_of(path, root): path for path in folder.rglob("*.py")}
    return {
        module: {*imports_of(path, root), *imports_by_name(path)} & files.keys()
        for module, path in files.items()
    }


def fresh(code):
    """Run code in a new process and return what it prints."""
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=PACKAGE.parent,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout.strip()
