"""``assert_type`` for a file that runs: what a checker of types was told is looked at."""

from types import UnionType
from typing import Any, get_args, get_origin


def assert_type(value: Any, expected: Any) -> Any:
    """Compare a value with the type that a checker knows of it."""
    origin, inside = get_origin(expected), get_args(expected)
    if expected is Any:
        return value
    if isinstance(expected, UnionType):
        expected = next(one for one in inside if type(value) is (get_origin(one) or one))
        return assert_type(value, expected)
    assert type(value) is (origin or expected), f"{type(value)} where {expected} was promised"
    if origin is tuple and inside[-1:] != (...,):
        for one, kind in zip(value, inside, strict=True):
            assert_type(one, kind)
    elif origin is tuple:
        for one in value:
            assert_type(one, inside[0])
    elif origin is dict:
        for key, one in value.items():
            assert_type(key, inside[0])
            assert inside[1] is object or isinstance(one, get_origin(inside[1]) or inside[1])
    return value
