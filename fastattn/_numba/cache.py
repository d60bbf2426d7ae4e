"""Where compiled kernels are kept between processes. So far nowhere: every process compiles."""

from collections.abc import Callable
from typing import Any


def build(
    name: str,
    function: Callable,
    make: Callable[[], Any],
    compile_it: Callable[[Any], None],
    was_cached: Callable[[Any], bool],
) -> tuple[Any, bool]:
    """Make and compile a Numba object; return it, and whether it came from the disk."""
    compiled = make()
    compile_it(compiled)
    return compiled, False
