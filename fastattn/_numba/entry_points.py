"""Every kernel of the package, by name: what backends run and what is compiled ahead of time."""

from .budgets import allocation, shared
from .compiler.compile import Entry
from .machine.emit import DOTS_PAIRS
from .stages import attention, fuse, similarity, softmax

__all__ = ["ENTRIES"]

ENTRIES = {
    name: value
    for room in (attention, similarity, fuse, softmax, allocation, shared)
    for name, value in vars(room).items()
    if isinstance(value, Entry) and (DOTS_PAIRS or not name.endswith("_pairs"))
}
