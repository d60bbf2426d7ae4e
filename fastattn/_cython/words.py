"""The engine's records and constants as C, for the kernels; imports nothing of the package.

`setup.py` writes them into the header ``words.h`` when it builds the kernels. The header carries
its own digest and that of the kernels' sources, so that kernels built from others are noticed.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["digest", "header", "sources"]


def _lines(tables: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """Structures of the records, and constants; of `_engine.layouts` and `_core.plan`."""
    lines = []
    for name in ("ATTENTION", "SIMILARITY", "SOFTMAX", "FUSE", "ALLOCATION", "SHARED"):
        layout = tables[name]
        lines += ["typedef struct {"]
        lines += [f"    int64_t {field};" for field in layout.integers]
        lines += [f"    double {field};" for field in layout.floats]
        lines += [f"}} __attribute__((may_alias)) {name.lower()}_call;"]
    numbers: dict[str, int] = {}
    for name, number in (*tables.items(), *plan.items()):
        if type(number) is not int or name.startswith("_"):
            continue
        if numbers.setdefault(name, number) != number:
            raise ValueError(f"two constants are called {name}: {numbers[name]} and {number}")
    numbers |= {f"{name.upper()}_CODE": code for name, code in tables["STORAGE_CODES"].items()}
    numbers |= {f"{name.upper()}_OPERAND": i for i, name in enumerate(tables["OPERANDS"])}
    numbers |= {f"{name.upper()}_WORD": i for name, i in tables["ATTENTION"].word.items()}
    numbers |= {"ATTENTION_WORDS": len(tables["ATTENTION"].word)}
    del numbers["LANES"]  # of vector.h
    return [*lines, *(f"#define {name} INT64_C({numbers[name]})" for name in sorted(numbers))]


def _crc(lines: list[str]) -> int:
    return zlib.crc32("\n".join(lines).encode())


def digest(tables: Mapping[str, Any], plan: Mapping[str, Any]) -> int:
    """Digest what the header of these tables says."""
    return _crc(_lines(tables, plan))


def sources(folder: Path) -> int | None:
    """Digest what the kernels are compiled from; None where only what was built is installed."""
    paths = [*sorted(folder.glob("*.h")), folder / "kernels.c", folder / "_native.pyx"]
    crc = 0
    try:
        for path in paths:
            crc = zlib.crc32(path.read_bytes(), crc)
    except FileNotFoundError:
        return None
    return crc


def header(tables: Mapping[str, Any], plan: Mapping[str, Any], sources: int) -> str:
    """Write the header; `sources` digests the files that include it."""
    lines = _lines(tables, plan)
    above = ["/* Made by setup.py. */", "#ifndef FASTATTN_WORDS_H", "#define FASTATTN_WORDS_H"]
    digests = {"WORDS_DIGEST": _crc(lines), "SOURCES_DIGEST": sources}
    below = [f"#define {name} INT64_C({number})" for name, number in digests.items()]
    return "\n".join([*above, "#include <stdint.h>", *lines, *below, "#endif", ""])
