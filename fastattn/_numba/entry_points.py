"""Every kernel of the package, by name: what backends run and what is compiled ahead of time."""

from . import allocation, attention, fuse, shared, similarity, softmax
from .compile import Entry
from .emit import DOTS_PAIRS

__all__ = ["ENTRIES"]

ENTRIES = {
    name: value
    for room in (attention, similarity, fuse, softmax, allocation, shared)
    for name, value in vars(room).items()
    if isinstance(value, Entry) and (DOTS_PAIRS or not name.endswith("_pairs"))
}
