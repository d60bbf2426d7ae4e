"""Say whether all ways to run the kernels give one digest: ``python tests/digest_table.py``.

Every case of `plain/cases.py`, small calls of all operations, dtypes and options, runs once in
each way: kernels that Numba compiles when they are needed, those compiled ahead for each level
that this CPU has, and the kernels as plain Python. One row an operation, one column a way. A digest
is of all results and error texts, where NaN is NaN and −0 is +0; bfloat16 that is multiplied as it
is has rows of its own, with a - where a way widens it instead. Ends with 1 where ways differ, and
names the cases. It takes two minutes, and more where Numba has its kernels to compile.
"""

import hashlib
import json
import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.append(str(Path(__file__).resolve().parent / "support"))

import children
import numpy as np
import oracle
from conftest import available
from plain.cases import CASES
from plain.runs import Runs, can_compare, compiled_results

__all__ = ["differences", "digest", "table", "ways"]

PLAIN = "plain Python"
# Seconds: Numba may have everything to compile, and somebody else the processors.
PATIENCE = 3600


def ways() -> dict[str, dict[str, str]]:
    """Each way that is here, and the environment of a process that takes it."""
    found = {}
    if available("numba"):
        found["numba"] = {"FASTATTN_BACKEND": "numba", **children.WITH_KERNELS}
    if available("cython"):
        from fastattn._cython import _native

        for level in _native.supported_levels():
            found[f"compiled {level.removeprefix('x86-64-')}"] = {
                "FASTATTN_BACKEND": "cython",
                "FASTATTN_CYTHON_LEVEL": level,
            }
    return found | {PLAIN: {}}


def digest(results: list) -> str:
    """Digest what `calls.results` gives: types, shapes and canonical bits of arrays, and texts."""
    found = hashlib.sha256()
    for result in results:
        if isinstance(result, np.ndarray):
            found.update(f"{result.dtype} {result.shape}".encode())
            whole = result.dtype.kind in "biu"
            found.update(result.tobytes() if whole else oracle.canonical_bytes(result))
        else:
            found.update(repr(result).encode())
    return found.hexdigest()


def here(backend: str) -> dict[str, str]:
    """The digest of each case on a backend of this process, of those that it does alike."""
    if backend == PLAIN:
        runs = Runs()
        return {case.name: digest(runs.results(case)) for case in CASES}
    return {
        case.name: digest(compiled_results(case, backend))
        for case in CASES
        if can_compare(case, backend)
    }


def everywhere() -> dict[str, dict[str, str]]:
    """The digests of each way, taken in a process of its own."""
    code = "import json, digest_table; print(json.dumps(digest_table.here({!r})))"
    found = {}
    for way, environment in ways().items():
        backend = environment.get("FASTATTN_BACKEND", PLAIN)
        found[way] = json.loads(children.run(code.format(backend), PATIENCE, **environment))
    return found


def table(found: dict[str, dict[str, str]]) -> list[list[str]]:
    """Rows of operations, columns of ways, and beneath them what all cases make."""
    rows: dict[str, list[str]] = {}
    for case in CASES:
        operation = f"{case.operation}{', pairs' if case.pairs else ''}"
        rows.setdefault(operation, []).append(case.name)
    alike = [case.name for case in CASES if not case.pairs]
    lines = [["operation", "cases", *found]]
    for operation, names in (*sorted(rows.items()), ("all but pairs", alike)):
        parts = [[digests.get(name, "") for name in names] for digests in found.values()]
        short = [hashlib.sha256("".join(part).encode()).hexdigest()[:12] for part in parts]
        cells = [one if all(part) else "-" for one, part in zip(short, parts, strict=True)]
        lines.append([operation, str(len(names)), *cells])
    return lines


def differences(found: dict[str, dict[str, str]]) -> list[str]:
    """The cases in which ways differ, with the ways of each digest."""
    told = []
    for case in CASES:
        by_digest: dict[str, list[str]] = {}
        for way, digests in found.items():
            if case.name in digests:
                by_digest.setdefault(digests[case.name], []).append(way)
        if len(by_digest) > 1:
            told.append(f"{case.name}: {' / '.join(map(', '.join, by_digest.values()))}")
    return told


def main() -> int:
    found = everywhere()
    lines = table(found)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(str.ljust, line, widths)).rstrip())
    differ = differences(found)
    for line in differ:
        print(f"differs: {line}")
    print(f"{len(found)} ways, {'not ' * bool(differ)}one digest")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
