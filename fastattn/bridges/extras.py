"""The libraries that bridges lead to: whether they are there, and what to install if not."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["BRIDGES", "needed"]

# Each bridge, and the extra that brings its library.
BRIDGES = {
    "torch": "torch",
    "transformers": "transformers",
    "sentence_transformers": "sentence-transformers",
}


def needed(library: str, extra: str) -> ModuleType:
    """Import the library that a bridge leads to, or say what brings it."""
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise  # it is there, and lacks something itself
        raise ModuleNotFoundError(
            f"fastattn.bridges.{extra.replace('-', '_')} needs {library}, which is not installed: "
            f'`pip install "fastattn[{extra}]"`',
            name=library,
        ) from None
