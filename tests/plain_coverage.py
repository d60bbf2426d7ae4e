"""Say what of the kernels the cases of `plain` reach: ``python tests/plain_coverage.py``.

Per file the statements and branches of the functions that Numba compiles, and how many ran; how
many machine functions it has, for which twins ran instead; then every place that did not run, with
its reason. Nothing is compiled for it.
"""

import sys
from collections import Counter
from pathlib import Path

if __package__ in (None, ""):
    sys.path.append(str(Path(__file__).resolve().parent / "support"))

from plain.reasons import NOT_LOADED, NOT_TWINNED, REASONS, key_of
from plain.runs import Runs


def main():
    runs = Runs()
    missed = set(runs.missed())
    coverage = runs.plain.coverage
    total, ran = Counter(), Counter()
    for place in coverage.places:
        kind = "lines" if place.outcome is None else "branches"
        for file in (place.file, "all"):
            total[file, kind] += 1
            ran[file, kind] += place not in missed
    print(f"{'file':24}{'lines':>16}{'branches':>16}{'machine functions':>20}")
    files = sorted({place.file for place in coverage.places} | set(coverage.machine))
    for file in (*files, "all"):
        machine = coverage.machine.get(file, [])
        if file == "all":
            machine = [name for names in coverage.machine.values() for name in names]
        cells = [f"{ran[file, k]}/{total[file, k]}" for k in ("lines", "branches")]
        print(f"{file:24}{cells[0]:>16}{cells[1]:>16}{len(machine):>20}")
    for name, reason in (NOT_LOADED | NOT_TWINNED).items():
        print(f"{name}: {reason}")
    for place in sorted(missed, key=str):
        print(f"{place}\n    {REASONS.get(key_of(place), 'NO REASON')}")


if __name__ == "__main__":
    main()
