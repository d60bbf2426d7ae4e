"""A model's settings while it is run: whoever comes first changes them, the last restores them.

Several threads may run one model, and each of them needs it to infer, and to attend here.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["attending", "inferring"]

_lock = threading.Lock()
# Of an object and an attribute of its: how many use it, the object, and what was there before.
_kept: dict[tuple[int, str], list[Any]] = {}


def inferring(model: Any) -> contextlib.AbstractContextManager[None]:
    """Leave out what belongs to training, in a module and all in it."""
    return _changed([(module, "training") for module in model.modules()], model.eval)


def attending(model: Any, name: str) -> contextlib.AbstractContextManager[None]:
    """Let a model of Transformers and all in it attend by an implementation, if they can."""
    configs = [getattr(module, "config", None) for module in model.modules()]
    attribute = "_attn_implementation_internal"
    owners = {id(config): config for config in configs if hasattr(config, attribute)}
    settings = [(config, attribute) for config in owners.values()]
    return _changed(settings, lambda: model.set_attn_implementation(name))


@contextlib.contextmanager
def _changed(settings: list[tuple[Any, str]], change: Callable[[], Any]) -> Iterator[None]:
    with _lock:
        for owner, name in settings:
            kept = _kept.setdefault((id(owner), name), [0, owner, getattr(owner, name)])
            kept[0] += 1
    try:
        with _lock:
            change()
        yield
    finally:
        with _lock:
            for owner, name in settings:
                kept = _kept[id(owner), name]
                kept[0] -= 1
                if not kept[0]:
                    setattr(owner, name, kept[2])
                    del _kept[id(owner), name]
