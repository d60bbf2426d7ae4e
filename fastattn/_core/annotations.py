"""What signatures say: the words that an option may be, each said here alone, and what is an array.

Tables of words are made of these at run time; checkers of types read them where they stand.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy
    import numpy.typing

__all__ = [
    "Alignment",
    "ArrayLike",
    "Axis",
    "BackendName",
    "Causal",
    "ConfigMode",
    "Method",
    "OnUnspent",
    "Rotate",
    "Similarity",
    "SupportsDLPack",
    "Window",
]

Similarity = Literal["dot", "scaled_dot", "cosine", "euclidean"]
Alignment = Literal["top_left", "bottom_right"]
Causal = bool | Alignment
BackendName = Literal["cython", "numba", "reference"]
Method = Literal["largest_remainder", "sainte_lague", "dhondt", "huntington_hill"]
OnUnspent = Literal["raise", "keep"]
ConfigMode = Literal["stdout", "dicts"]

Window = tuple[int | None, int | None]
Axis = int | tuple[int, ...] | None


class SupportsDLPack(Protocol):
    """An array of any library that exports its memory by DLPack."""

    def __dlpack__(self, *arguments: Any, **options: Any) -> Any:
        """Export the memory."""

    def __dlpack_device__(self) -> tuple[Any, Any]:
        """Say where it lies."""


if TYPE_CHECKING:
    ArrayLike = numpy.typing.ArrayLike | SupportsDLPack
    Rotate = Callable[[numpy.ndarray, numpy.ndarray], tuple[ArrayLike, ArrayLike]]
