"""The command ``fastattn``: offline jobs, the machine, the kernel cache, the examples.

Results go to stdout, everything else to stderr. Exit codes: 0 done, 1 a file, the disk or the
machine failed, 2 the request cannot work, 130 interrupted.
"""

# Nothing is imported up here that a usage error or --help would have to wait for.
import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastattn.arguments import (
    count,
    index,
    indices,
    integer_or_path,
    joined,
    numbers_or_path,
    positive,
    scale,
    side,
    size,
)
from fastattn.examples import EXAMPLES
from fastattn.start import ended, forget_interrupts, started

if TYPE_CHECKING:
    from fastattn.batch import Job

SIMILARITIES = ("dot", "scaled_dot", "cosine", "euclidean")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments without the command's name; None: those of the process.

    Returns
    -------
    int
        The exit code.
    """
    _open_standard_streams()
    parser = _parser()
    arguments = parser.parse_args(joined(sys.argv[1:] if argv is None else argv))
    if "command" not in arguments:
        parser.print_help(sys.stderr)
        return 2
    try:
        started()
        code: int = arguments.command(arguments)
        ended()
    except KeyboardInterrupt as interruption:
        ended()
        forget_interrupts()
        _say(str(interruption) or "interrupted")
        return 130
    return code


def _open_standard_streams() -> None:
    """Give what was closed (``2>&-``) to nobody: an output file must not get its descriptor.

    Otherwise a library that writes to descriptor 2 would write into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free descriptor, which is this one.
            os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastattn",
        description="Attention from files to files, in chunks of bounded memory.",
        epilog="Exit codes: 0 done, 1 a file or the disk failed, 2 the request cannot work, "
        "130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND")
    _add_run(commands.add_parser("run", help="compute attention from .npy files to a .npy file"))
    _add_plot(commands.add_parser("plot", help="draw the weights in a .npy file as a picture"))
    info = commands.add_parser("info", help="show versions, machine, threads and backends")
    info.add_argument("--json", action="store_true", help="as JSON")
    info.set_defaults(command=_info)
    warmup = commands.add_parser("warmup", help="compile the kernels and fill the cache on disk")
    warmup.set_defaults(command=_warmup)
    example = commands.add_parser("example", help="run an example: a number and a picture")
    _add_examples(example.add_subparsers(metavar="EXAMPLE", required=True))
    return parser


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Computes fastattn.attention(query, key, value, ...) chunk by chunk. The output gets its "
        "name when it is complete; a killed job goes on with --resume and ends with the same bytes."
    )
    files = parser.add_argument_group("files (.npy)")
    files.add_argument("--query", required=True, metavar="FILE", help="(..., L, E) or (E,)")
    files.add_argument("--key", required=True, metavar="FILE", help="(..., S, E)")
    files.add_argument("--value", required=True, metavar="FILE", help="(..., S, Ev)")
    files.add_argument("--out", required=True, metavar="FILE", help="(..., L, Ev) is written here")
    files.add_argument("--mask", metavar="FILE", help="bool (True = may attend) or float")
    files.add_argument("--query-segments", metavar="FILE", help="ids of documents, (..., L)")
    files.add_argument("--key-segments", metavar="FILE", help="ids of documents, (..., S)")
    files.add_argument("--bfloat16", action="store_true", help="dtype V2 in a file is bfloat16")
    files.add_argument("--return-lse", action="store_true", help="needs --lse-out")
    files.add_argument("--lse-out", metavar="FILE", help="write the rows' log-sum-exp here")
    _add_options(parser.add_argument_group("attention"))
    job = parser.add_argument_group("job")
    job.add_argument("--max-memory", type=size, default=1 << 30, metavar="SIZE", help=_MEMORY_HELP)
    rows = "at most so many output rows per chunk (default: some seconds of work)"
    job.add_argument("--chunk-rows", type=count, metavar="N", help=rows)
    job.add_argument("--resume", action="store_true", help="go on with a job that was killed")
    job.add_argument(
        "--overwrite",
        action="store_true",
        help="replace the output; without --resume, also discard an unfinished job on it",
    )
    job.add_argument("--json", action="store_true", help="print a summary as JSON on stdout")
    _add_machine(job)
    parser.set_defaults(command=_run, parser=parser)


_MEMORY_HELP = "what the job's arrays may take, like 512M or 2G (default 1G)"


def _add_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--similarity", choices=SIMILARITIES, default="scaled_dot")
    group.add_argument(
        "--scale",
        type=scale,
        metavar="NUMBERS|FILE",
        help="factor of the similarity, or one per head, like 8,12.5",
    )
    group.add_argument(
        "--causal",
        nargs="?",
        const="true",
        default=False,
        choices=("true", "top_left", "bottom_right"),
        help="key j is visible iff j <= i + offset; the words fix the offset",
    )
    group.add_argument(
        "--query-offset",
        type=integer_or_path,
        metavar="INT|FILE",
        help="position of query row 0 on the key axis",
    )
    group.add_argument(
        "--window",
        nargs=2,
        type=side,
        metavar=("LEFT", "RIGHT"),
        help="keys from i - LEFT to i + RIGHT are visible; 'none' is unbounded",
    )
    group.add_argument(
        "--key-lengths",
        type=integer_or_path,
        metavar="INT|FILE",
        help="only the first so many keys exist",
    )
    group.add_argument("--softcap", type=positive, metavar="NUMBER")
    group.add_argument(
        "--alibi-slopes",
        type=numbers_or_path,
        metavar="NUMBERS|FILE",
        help="one slope per head, like 0.5,0.25: subtracts slope * |i + offset - j|",
    )
    group.add_argument(
        "--sinks",
        type=numbers_or_path,
        metavar="NUMBERS|FILE",
        help="one more score per head, which takes weight and has no value",
    )
    group.add_argument(
        "--enable-gqa", action="store_true", help="query heads are a multiple of key heads"
    )


def _add_machine(group: argparse._ActionsContainer) -> None:
    group.add_argument("--threads", type=count, metavar="N")
    group.add_argument("--backend", metavar="NAME", help="cython, numba or reference")


def _add_plot(parser: argparse.ArgumentParser) -> None:
    words = "a,b,c or a text file with a label on each line"
    parser.add_argument("weights", metavar="WEIGHTS", help=".npy, (..., H, L, S), (L, S) or (S,)")
    parser.add_argument("out", metavar="PICTURE", help="this .png, .pdf or .svg is written")
    parser.add_argument("--query-labels", metavar="WORDS|FILE", help=words)
    parser.add_argument("--key-labels", metavar="WORDS|FILE", help=words)
    parser.add_argument("--labels", metavar="WORDS|FILE", help="of both, in self-attention")
    parser.add_argument("--batch", type=index, metavar="N", help="which of several batches")
    parser.add_argument("--head", type=indices, metavar="N,...", help="these heads only, from 0")
    parser.add_argument(
        "--hidden", metavar="zeros|FILE", help="cells to mark as hidden: zeros, or bool as .npy"
    )
    parser.add_argument("--title", metavar="TEXT")
    parser.add_argument("--dpi", type=count, default=150, metavar="N", help="pixels per inch (150)")
    parser.add_argument("--bfloat16", action="store_true", help="dtype V2 in a file is bfloat16")
    parser.add_argument("--overwrite", action="store_true", help="replace PICTURE")
    parser.set_defaults(command=_plot)


_SEED_HELP = "other data, or other parts of them held out (default 0, of which the docs speak)"


def _add_examples(examples: Any) -> None:
    for name, about in EXAMPLES.items():
        parser = examples.add_parser(name, help=about, description=about.capitalize() + ".")
        parser.add_argument("--out", metavar="FOLDER", help="write the pictures here, as PNG")
        parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
        parser.add_argument("--json", action="store_true", help="print the figures as JSON")
        if name != "article":  # whose numbers are its own
            parser.add_argument("--seed", type=index, default=0, metavar="N", help=_SEED_HELP)
        _add_machine(parser)
        parser.set_defaults(command=_example, name=name)
        if name == "digits":
            parser.add_argument("--dir", metavar="FOLDER", help="keep the files of the job here")
            parser.add_argument(
                "--max-memory", type=size, default=1 << 30, metavar="SIZE", help=_MEMORY_HELP
            )


def _run(arguments: argparse.Namespace) -> int:
    if arguments.return_lse and not arguments.lse_out:
        arguments.parser.error("--return-lse needs --lse-out FILE, where the log-sum-exp goes")

    from fastattn.batch import progress_on, run_job

    def work() -> int:
        summary = run_job(_job(arguments), progress_on(sys.stderr))
        chunks = f"{summary.chunks} chunk" + "s" * (summary.chunks != 1)
        _say(
            f"wrote {summary.out}: {chunks} in {summary.seconds:.3g} s, "
            f"{summary.rows_per_second:.4g} rows/s, backend {summary.backend}"
        )
        return _print(json.dumps(summary.as_dict())) if arguments.json else 0

    return _guarded(work)


def _job(arguments: argparse.Namespace) -> "Job":
    from dataclasses import fields

    from fastattn.batch import Job

    values = {field.name: getattr(arguments, field.name) for field in fields(Job)}
    if arguments.causal == "true":
        values["causal"] = True
    if arguments.window is not None:
        values["window"] = tuple(arguments.window)
    return Job(**values)


def _plot(arguments: argparse.Namespace) -> int:
    from fastattn.plot.files import plot_file

    options = ("batch", "hidden", "title", "dpi", "bfloat16", "overwrite")

    def work() -> int:
        plot_file(
            arguments.weights,
            arguments.out,
            query_labels=arguments.query_labels or arguments.labels,
            key_labels=arguments.key_labels or arguments.labels,
            heads=arguments.head,
            **{name: getattr(arguments, name) for name in options},
        )
        _say(f"wrote {arguments.out}")
        return 0

    return _guarded(work)


def _info(arguments: argparse.Namespace) -> int:
    import fastattn

    sections = fastattn.show_config(mode="dicts")
    if arguments.json:
        return _print(json.dumps(sections, default=str))
    lines = []
    for title, entries in (sections or {}).items():
        lines += [f"{title}:", *(f"  {name}: {entry}" for name, entry in entries.items())]
    return _print("\n".join(lines))


def _warmup(arguments: argparse.Namespace) -> int:
    import time

    import fastattn

    start = time.monotonic()
    try:
        fastattn.warmup()
    except (ImportError, ValueError, OSError) as error:
        # Numba refuses to be imported under a wrong setting of its own.
        _say(f"error: the kernels cannot be compiled: {error}; see fastattn info")
        return 1
    _say(f"the kernels are ready ({time.monotonic() - start:.1f} s)")
    return 0


def _example(arguments: argparse.Namespace) -> int:
    from importlib import import_module

    name = arguments.name
    options = {"seed": arguments.seed} if "seed" in arguments else {}
    if name == "digits":
        from fastattn.batch import progress_on

        options |= {option: getattr(arguments, option) for option in ("overwrite", "max_memory")}
        options |= {"folder": arguments.dir, "progress": progress_on(sys.stderr)}

    def work() -> int:
        run = getattr(import_module(f"fastattn.examples.{name}"), f"run_{name}")
        report = run(threads=arguments.threads, backend=arguments.backend, **options)
        if arguments.out:
            for path in report.save(arguments.out, overwrite=arguments.overwrite):
                _say(f"wrote {path}")
        else:
            _say("--out FOLDER draws the pictures of it")
        failed = int(report.failed)
        return _print(json.dumps(report.as_dict()) if arguments.json else str(report)) or failed

    return _guarded(work)


def _guarded(work: Any) -> int:
    """Turn every failure that is to be expected into one line and an exit code."""
    from fastattn.batch import JobError

    try:
        code: int = work()
    except JobError as error:
        _say(f"error: {error.in_options()}")
        return error.exit_code
    except MemoryError as error:
        _say(f"error: out of memory: {error}")
        return 1
    return code


def _print(text: str) -> int:
    """Print a result on stdout; a closed pipe or a full disk there is a failure without a trace."""
    try:
        print(text, flush=True)
    except OSError as error:
        # Python flushes stdout once more at exit, and would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _say(f"error: stdout cannot be written: {error.strerror}")
        return 1
    return 0


def _say(text: str) -> None:
    """Say something on stderr; a full disk or a closed pipe there is no reason to fail."""
    try:
        print(f"fastattn: {text}", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _version() -> str:
    import fastattn

    return f"fastattn {fastattn.__version__}"


if __name__ == "__main__":
    sys.exit(main())
