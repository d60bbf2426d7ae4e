"""What a wrong call is, and short ways to write one down."""

import sys
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from foreign import Tensor


class Wrong(NamedTuple):
    """A call that is refused, or warned of, and how its advice goes into it.

    `call` is written with variables alone, `variables` are expressions that make them. What a text
    quotes replaces the first variable it names, or `into`; "" where the quoted code only has to
    run. `without` are modules that cannot be imported meanwhile, `patches` attributes that differ
    until the advice is taken.
    """

    call: str
    variables: dict[str, Any]
    into: str | None = None
    without: tuple[str, ...] = ()
    patches: tuple[tuple[str, Any], ...] = ()
    rounds: int = 1  # texts to follow until the call works

    def refused(self) -> Any:
        """Make the world as it is when the call is refused."""
        stack = mock.patch.dict(sys.modules, dict.fromkeys(self.without))
        for target, value in self.patches:
            stack = _both(stack, mock.patch(target, value))
        return stack


class _both:
    def __init__(self, *contexts: Any) -> None:
        self._contexts = contexts

    def __enter__(self) -> None:
        for context in self._contexts:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._contexts):
            context.__exit__(*error)


OPERANDS = {
    "query": "np.ones((2, 3, 5, 8))",
    "key": "np.ones((2, 3, 7, 8))",
    "value": "np.ones((2, 3, 7, 4))",
}
PACKED = {"query": "np.ones((6, 8))", "key": "np.ones((9, 8))", "value": "np.ones((9, 4))"}
SPLITS = {"query_splits": "[0, 3, 6]", "key_splits": "[0, 4, 9]"}
RAGGED = "attention_varlen(query, key, value, query_splits, key_splits)"
X = {"x": "np.ones((3, 4))"}


def attend(options: str = "", *, into: str | None = None, **variables: Any) -> Wrong:
    return Wrong(f"attention(query, key, value{options})", OPERANDS | variables, into)


def ragged(options: str = "", *, into: str | None = None, **variables: Any) -> Wrong:
    return Wrong(RAGGED[:-1] + options + ")", PACKED | SPLITS | variables, into)


def cached(call: str, *, into: str | None = None, **variables: Any) -> Wrong:
    return Wrong(call, {"cache": _cache, **variables}, into)


def _cache() -> Any:
    import fastattn

    cache = fastattn.KVCache(2, 1, 4)
    cache.append(np.ones((2, 1, 3, 4)), np.ones((2, 1, 3, 4)), lengths=[3, 2])
    return cache


def tensor(**attributes: Any) -> Wrong:
    return Wrong("softmax(x)", {"x": lambda: Tensor(**attributes)})


def display(name: str) -> Any:
    import fastattn.plot

    return getattr(fastattn.plot, name)
