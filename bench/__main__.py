"""``python -m bench``: race, print the sheet, keep the numbers, rewrite the tables of README.md.

Without ``--cases``, ``--scaling`` or ``--startup`` it does everything, which takes minutes;
``--part 1/2`` and ``--part 2/2`` do it in two runs, and ``--from-json FILE FILE --write-readme``
makes one set of tables of both.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from fnmatch import fnmatchcase
from pathlib import Path

from bench import readme, report, sheet, startup
from bench.cases import CASES, Case
from bench.contenders import CONTENDERS

SCALING_CASES = ["prefill", "long-causal", "encoder-128", "decode-grouped", "softmax-out"]


def usable_cpus() -> int:
    """CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def select(patterns: list[str] | None) -> list[Case]:
    """The cases whose names match one of the shell patterns, in the order of the table."""
    if not patterns:
        return list(CASES)
    chosen = [case for case in CASES if any(fnmatchcase(case.name, p) for p in patterns)]
    if not chosen:
        names = ", ".join(case.name for case in CASES)
        raise SystemExit(f"no case matches {' '.join(patterns)}; there are: {names}")
    return chosen


def _part(text: str) -> tuple[int, int]:
    """``N/M`` as two numbers."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is no N/M with 1 <= N <= M")
    return int(number), int(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--cases", nargs="+", metavar="PATTERN", help="shell patterns of case names")
    add("--contenders", nargs="+", metavar="NAME", help=f"of: {', '.join(CONTENDERS)}")
    add("--threads", type=int, default=usable_cpus(), help="for every contender (%(default)s)")
    add("--rounds", type=int, default=15, help="per case, at most (%(default)s)")
    add("--seconds", type=float, default=8.0, help="per case, about (%(default)s)")
    add("--scaling", action="store_true", help="alone: fastattn's one thread against --threads")
    add("--startup", action="store_true", help="alone: import, first call, scratch memory")
    add("--part", type=_part, metavar="N/M", help="the N-th of M parts of everything, for merging")
    add("--list", action="store_true", help="name cases and contenders and stop")
    add("--from-json", nargs="+", type=Path, metavar="FILE", help="print kept results, run nothing")
    add("--no-save", action="store_true", help="keep no JSON")
    add(
        "--write-readme",
        action="store_true",
        help="rewrite the tables of README.md, the bench's and the project's",
    )
    return parser


def _list() -> None:
    for case in CASES:
        print(f"{case.name:20} {report.shape_text(sheet.describe_case(case))}")
    for name, contender in CONTENDERS.items():
        missing = contender.missing()
        print(f"{name:20} {'skipped: ' + missing + ' is not installed' if missing else 'ready'}")


def _race(options: argparse.Namespace) -> report.Record:
    """Run what the options ask for and print each part as soon as it is there."""
    names, skipped = sheet.available(options.contenders or list(CONTENDERS))
    for name, reason in skipped.items():
        print(f"{name} skipped: {reason}", file=sys.stderr)
    result = sheet.header(names, skipped, options.threads)
    print(report.print_backends(result))
    limits = {"rounds": options.rounds, "seconds": options.seconds}
    number, parts = options.part or (1, 1)
    sheet_too = not (options.scaling or options.startup)
    rest_too = sheet_too and not options.cases and sheet.OWN in names and number == parts
    if sheet_too:
        for case in select(options.cases)[number - 1 :: parts]:
            record = sheet.run_case(case, names, threads=options.threads, **limits)
            result["cases"].append(record)
            print(report.print_case(record), flush=True)
        print(report.print_means(result))
    if (options.scaling or rest_too) and options.threads > 1:
        for case in select(options.cases or SCALING_CASES):
            record = sheet.run_scaling(
                case, (options.contenders or [sheet.OWN])[0], most=options.threads, **limits
            )
            result["scaling"].append(record)
            print(report.print_scaling(record), flush=True)
    if options.startup or rest_too:
        result["startup"] = startup.measure(options.threads)
        print(report.print_startup(result["startup"]))
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.write_readme and options.no_save and not options.from_json:
        parser.error("--write-readme publishes numbers, which are kept: leave --no-save out")
    if options.list:
        _list()
        return 0
    behind = options.from_json
    if options.from_json:
        result = report.load(options.from_json)
        order = {case.name: number for number, case in enumerate(CASES)}
        result["cases"].sort(key=lambda case: order.get(case["name"], len(order)))
        print(report.print_backends(result))
        for case in result["cases"]:
            print(report.print_case(case))
        print(report.print_means(result))
        for record in result["scaling"]:
            print(report.print_scaling(record))
        if result.get("startup"):
            print(report.print_startup(result["startup"]))
    else:
        result = _race(options)
        if not options.no_save:
            behind = [report.save(result)]
            print(f"kept in bench/results/{behind[0].name}, which git ignores", file=sys.stderr)
    if options.write_readme:
        print(f"written: {', '.join(readme.write(result))}", file=sys.stderr)
        pages, files = (
            " ".join(shlex.quote(os.path.relpath(path)) for path in paths)
            for paths in (readme.PAGES, behind)
        )
        print(f"to publish them: git add {pages} && git add -f {files}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
