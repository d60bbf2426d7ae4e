"""What the drivers know of records and kernels, as C; imports nothing of the package.

`setup.py` writes it into the header ``words.h`` when it builds the drivers. The header carries its
own digest and that of the kernels' sources, so that kernels built from others are noticed.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["digest", "header", "kernel_sources", "sources"]

# What kernels are compiled from, beside the room of their sources.
_NOT_COMPILED = ("__init__.py", "backend.py")
_TABLES = ("_core/constants.py", "_engine/layouts.py")


def _lines(tables: Mapping[str, Any]) -> list[str]:
    """Name the words in front of a record that a repeated call copies and fills."""
    numbers = {f"{name.upper()}_WORD": i for name, i in tables["FORM"].word.items()}
    numbers |= {"FORM_WORDS": len(tables["FORM"].word)}
    numbers |= {"FORM_PLACES": tables["FORM_PLACES"]}
    return [f"#define {name} INT64_C({number})" for name, number in sorted(numbers.items())]


def digest(*tables: Mapping[str, Any]) -> int:
    """Digest what `_engine.layouts` and `_core.constants` say: records, and what decides bits."""
    told = []
    for name, value in (item for table in tables for item in table.items()):
        if type(value) is int and not name.startswith("_"):
            told.append(f"{name} {value}")
        elif hasattr(value, "word"):
            told.append(f"{name} {value.word}")
    return zlib.crc32("\n".join(sorted(told)).encode())


def _crc(paths: Iterable[str]) -> int:
    crc = 0
    for path in paths:
        with open(path, "rb") as file:
            crc = zlib.crc32(file.read(), crc)
    return crc


def _files(folder: str) -> list[str]:
    return [os.path.join(place, name) for place, _, names in os.walk(folder) for name in names]


def kernel_sources(package: str | os.PathLike[str]) -> int:
    """Digest what kernels are compiled from.

    The versions of Numba and LLVM are not in it: no kernel leaves them a choice that changes bits,
    so what another version made of the same sources is as good, and is not refused.
    """
    kernels = sorted(
        path.split(os.sep)
        for path in _files(os.path.join(package, "_numba"))
        if path.endswith(".py") and os.path.basename(path) not in _NOT_COMPILED
    )
    tables = (os.path.join(package, table) for table in _TABLES)
    return _crc([*tables, *map(os.sep.join, kernels)])


def sources(package: str | os.PathLike[str]) -> int | None:
    """Digest what kernels and drivers are made from; None where only what was built is installed.

    A wheel is made whole, so only in a clone can sources change under what was built from them: it
    is known by the drivers' source, which no wheel carries.
    """
    room = os.path.join(package, "_cython")
    drivers = os.path.join(room, "_native.pyx")
    if not os.path.exists(drivers):
        return None
    headers = sorted(path for path in _files(room) if path.endswith(".h"))
    return kernel_sources(package) ^ _crc([*headers, drivers])


def _needs(features: str) -> str:
    """Spell a kind's features, in LLVM's spelling, as levels.h knows them."""
    names = [name.removeprefix("+").replace(".", "_") for name in features.split(",") if name]
    return " | ".join(f"HAS({name})" for name in names) or "0"


def header(
    tables: Mapping[str, Any],
    plan: Mapping[str, Any],
    sources: int,
    kernels: Sequence[Mapping[str, str]],
) -> str:
    """Write the header; `kernels` are those of ``kernels.json`` (see `_numba.objects`)."""
    above = ["/* Made by setup.py. */", "#ifndef FASTATTN_WORDS_H", "#define FASTATTN_WORDS_H"]
    digests = {"WORDS_DIGEST": digest(tables, plan), "SOURCES_DIGEST": sources}
    numbers = [f"#define {name} INT64_C({number})" for name, number in digests.items()]
    symbols = [f"extern kernel_entry {kernel['symbol']};" for kernel in kernels]
    kinds = {kernel["kind"]: _needs(kernel["features"]) for kernel in kernels}
    needs = [f"#define NEEDS_{kind} ({features})" for kind, features in kinds.items()]
    rows = [
        f'    {{"{kernel["level"]}", "{kernel["name"]}", {kernel["symbol"]}, '
        f"NEEDS_{kernel['kind']}}},"
        for kernel in kernels
    ]
    table = ["static const compiled_kernel kernels[] = {", *rows, "};"]
    table += ["static const int kernel_count = sizeof kernels / sizeof *kernels;"]
    above += ['#include "levels.h"', *_lines(tables), *numbers]
    return "\n".join([*above, *symbols, *needs, *table, "#endif", ""])
