"""Every kernel of the package, by name: what backends run and what is compiled ahead of time."""

from .budgets import allocation, shared
from .compiler.compile import Entry
from .machine.emit import has
from .stages import attention, fold, fuse, linear, similarity, softmax

__all__ = ["ENTRIES"]

ENTRIES = {
    name: value
    for room in (attention, fold, similarity, fuse, linear, softmax, allocation, shared)
    for name, value in vars(room).items()
    if isinstance(value, Entry) and has(value.features)
}
