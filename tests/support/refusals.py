"""How a call that must be refused is written down: what is called, the error, what it must say."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastattn


def zeros(*shape, dtype=np.float64):
    return np.zeros(shape, dtype)


Q, K, V = zeros(2, 3, 5, 8), zeros(2, 3, 7, 8), zeros(2, 3, 7, 4)


class Call(NamedTuple):
    """What is called, and with what."""

    function: Callable[..., Any]
    operands: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self):
        return self.function(*self.operands, **self.options)


def call(*operands, function=fastattn.attention, **options):
    return Call(function, operands or (Q, K, V), options)


def check(case, error, fragments):
    """Call twice, since what was refused once must not be remembered as good."""
    for _ in range(2):
        with pytest.raises(error) as caught:
            case()
        missing = [fragment for fragment in fragments if fragment not in str(caught.value)]
        assert not missing, str(caught.value)
