from collections.abc import Hashable
from typing import Any

from fastattn._core.kept import Kept, Operand

def built_from() -> tuple[int, int]: ...
def built_levels() -> tuple[str, ...]: ...
def supported_levels() -> tuple[str, ...]: ...
def entry_addresses(level: str) -> dict[str, int]: ...
def run_serially(entry: int, call: int, first: int, stop: int) -> None: ...
def run_parallel(entry: int, call: int, first: int, stop: int, workers: int) -> None: ...
def again(
    entry: int,
    tasks: int,
    form: int,
    call: int,
    first: int,
    second: int,
    third: int,
    fourth: int,
    fifth: int,
    sixth: int,
) -> None: ...
def knows_arrays() -> bool: ...

class Calls:
    def __init__(self, most: int = ...) -> None: ...
    def __len__(self) -> int: ...
    def clear(self) -> None: ...
    def find(
        self,
        options: tuple[Hashable, ...],
        threads: int,
        out: Any,
        first: Any,
        second: Any = None,
        third: Any = None,
        fourth: Any = None,
    ) -> Any: ...
    def keep(
        self,
        options: tuple[Hashable, ...],
        threads: int,
        out: Any,
        operands: tuple[Operand, ...],
        kept: Kept,
    ) -> None: ...
