"""What a manifest may hold, field by field. A right checksum says nothing about what it is of."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from fastattn.batch.errors import cut
from fastattn.batch.job import FILES, INTEGERS, NOT_RECORDED, OPTIONS, PER_HEAD, Job, Window

Check = Callable[[Any, str], None]

_LARGEST = 2**63 - 1
_MOST_DIMS = 64
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Misfit(ValueError):
    """A field that is not what it must be; the text names it."""

    def __init__(self, field: str, expected: str, found: Any) -> None:
        what = cut(ascii(found) if isinstance(found, str) else found)
        super().__init__(f"its {field or 'line'} should be {expected}, found {what}")


def whole(lowest: int, highest: int = _LARGEST) -> Check:
    """Accept integers of a range, and no bool."""

    def check(value: Any, field: str) -> None:
        if type(value) is not int or not lowest <= value <= highest:
            raise Misfit(field, f"a whole number from {lowest} to {highest}", value)

    return check


def text(most: int) -> Check:
    """Accept strings up to a length."""

    def check(value: Any, field: str) -> None:
        if type(value) is not str or len(value) > most:
            raise Misfit(field, f"a text of at most {most} characters", value)

    return check


def flag(value: Any, field: str) -> None:
    """Accept true and false."""
    if type(value) is not bool:
        raise Misfit(field, "true or false", value)


def number(value: Any, field: str) -> None:
    """Accept what `plain` makes of numbers."""
    finite = type(value) is int or (type(value) is float and math.isfinite(value))
    if not finite and value not in ("inf", "-inf", "nan"):
        raise Misfit(field, "a number", value)


def digest(value: Any, field: str) -> None:
    """Accept a SHA-256 as hexadecimal digits."""
    if type(value) is not str or not _DIGEST.fullmatch(value):
        raise Misfit(field, "64 hexadecimal digits", value)


def optional(check: Check) -> Check:
    """Accept null too."""
    return lambda value, field: None if value is None else check(value, field)


def either(first: Check, second: Check) -> Check:
    """Accept what one of two accepts; the second explains itself otherwise."""

    def check(value: Any, field: str) -> None:
        try:
            first(value, field)
        except Misfit:
            second(value, field)

    return check


def listed(item: Check, most: int = _LARGEST, exactly: int | None = None) -> Check:
    """Accept lists of so many items."""

    def check(value: Any, field: str) -> None:
        if type(value) is not list or len(value) > most or exactly not in (None, len(value)):
            count = f"{exactly}" if exactly is not None else f"at most {most}"
            raise Misfit(field, f"a list of {count}", value)
        for entry in value:
            item(entry, field)

    return check


def table(fields: Mapping[str, Check], maybe: Mapping[str, Check] | None = None) -> Check:
    """Accept objects with all of `fields`, any of `maybe`, and nothing else."""
    known = {**fields, **(maybe or {})}

    def check(value: Any, field: str) -> None:
        if type(value) is not dict:
            raise Misfit(field, "a table", value)
        for name in fields:
            if name not in value:
                raise Misfit(f"{field} {name}".strip(), "there", "nothing")
        for name, entry in value.items():
            inner = f"{field} {cut(name, 40)}".strip()
            if name not in known:
                raise Misfit(inner, "absent", entry)
            known[name](entry, inner)

    return check


def plain(value: Any) -> Any:
    """Make of an option what JSON can hold and give back: numbers of NumPy, infinities, tuples."""
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


_NUMBERS = optional(either(listed(number), number))
_WORD = text(64)
# What JSON holds of a field of a job, by its type.
_OF_TYPE: dict[Any, Check] = {
    str: _WORD,
    bool: flag,
    float: number,
    bool | str: either(flag, _WORD),
    float | None: optional(number),
    Window | None: optional(listed(optional(whole(-_LARGEST)), exactly=2)),
}
_OPTIONS: dict[str, Check] = {
    **{
        field.name: _OF_TYPE[field.type]
        for field in fields(Job)
        if field.name in OPTIONS and field.name not in NOT_RECORDED
    },
    **dict.fromkeys(INTEGERS, optional(whole(-_LARGEST))),
    **dict.fromkeys(PER_HEAD, _NUMBERS),
}

_INPUT = table(
    {
        "bytes": whole(0),
        "mtime_ns": whole(-_LARGEST),
        "dtype": text(32),
        "shape": listed(whole(0), _MOST_DIMS),
        "fortran_order": flag,
        "data_offset": whole(0),
        "content": digest,
    }
)
_OUTPUT = table({"file": text(1 << 16), "bytes": whole(0)})

JOB = table(
    {
        "format": text(64),
        "numerics_version": whole(-_LARGEST),
        "backend": _WORD,
        "bfloat16_dot": flag,
        "inputs": table(
            dict.fromkeys(("query", "key", "value"), _INPUT),
            dict.fromkeys((*FILES, *INTEGERS, *PER_HEAD), _INPUT),
        ),
        "options": table(_OPTIONS),
        "outputs": table({"out": _OUTPUT}, {"lse": _OUTPUT}),
        "borders": table(
            {
                "axis": whole(0, _MOST_DIMS),
                "size": whole(1),
                "part_keys": optional(whole(1)),
            }
        ),
    }
)


def record_of(job: Mapping[str, Any]) -> Check:
    """Return the check of a chunk's record of this job."""
    return table(dict.fromkeys(job["outputs"], digest))
