"""One run of the bench: prepare, check, play the rounds, and collect what report.py prints."""

from __future__ import annotations

import datetime
import functools
import gc
import os
import platform
import time
from collections.abc import Sequence
from typing import Any

from bench import ceilings
from bench.cases import Arrays, Case
from bench.contender import Refused, Variant
from bench.contenders import CONTENDERS, load, versions
from bench.draw import missing_dtype
from bench.interleave import Probe, Turn, estimate, play
from bench.truth import Truth, WrongResult

Record = dict[str, Any]
OWN = "fastattn"
FORMAT = 1
LONG_CALL_SECONDS = 0.3  # variants this slow are compared by their first calls
HOPELESS_VARIANT = 8.0  # a first call this many times slower than the best variant's usual one


@functools.cache
def _probe(threads: int) -> Probe:
    return Probe(threads)


def available(names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Load the contenders that can play, and say for the others why they cannot."""
    present, skipped = [], {}
    for name in names:
        if name not in CONTENDERS:
            raise SystemExit(f"no contender {name!r}; there are: {', '.join(CONTENDERS)}")
        missing = CONTENDERS[name].missing()
        if missing is None:
            present.append(name)
        else:
            skipped[name] = f"{missing} is not installed"
    load(present)
    return present, skipped


def prepare(
    name: str, case: Case, arrays: Arrays, threads: int, truth: Truth
) -> tuple[str, Variant]:
    """The fastest variant of a contender that passes the judge, and its name.

    Raises
    ------
    Refused
        If the contender has no such operation, cannot do the case, or does it wrong.
    """
    contender = CONTENDERS[name]
    if case.operation not in contender.prepare:
        raise Refused("no such operation")
    contender.set_threads(threads)
    variants = contender.prepare[case.operation](case, arrays, threads)
    best: tuple[float, str, Variant] | None = None
    wrong = ""
    for label, variant in variants.items():
        start = time.perf_counter()
        result = variant.run()
        first = time.perf_counter() - start
        try:
            truth.error(variant.read(result))
        except WrongResult as error:
            if name == OWN:
                raise
            wrong = f"{label}: {error}"
            continue
        if len(variants) == 1:
            return label, variant
        if best is not None and first > HOPELESS_VARIANT * best[0]:
            continue
        seconds = first if first > LONG_CALL_SECONDS else estimate(Turn(variant.run))
        if best is None or seconds < best[0]:
            best = (seconds, label, variant)
    if best is None:
        raise Refused(f"wrong result, {wrong}")
    return best[1], best[2]


def ceiling_turns(case: Case, threads: int) -> dict[str, tuple[Turn, float]]:
    """The ceiling a case is held against: its turn, and the work of one call."""
    if case.bound == "compute":
        if case.dtype == "bfloat16" and not ceilings.has_bfloat16_dot():
            return {}
        # float16 is widened: its ceiling is float32's.
        dtype = "float32" if case.dtype == "float16" else case.dtype
        run, work = ceilings.fma_turn(dtype, threads)
    elif case.bound in ("read", "copy"):
        run, work = ceilings.memory_turn(int(case.bytes), threads, case.bound == "copy")
    else:
        return {}
    kind = "bfloat16 dot" if (case.bound, case.dtype) == ("compute", "bfloat16") else case.bound
    return {f"ceiling:{kind}": (Turn(run), work)}


def work_of(case: Case) -> float:
    """FLOPs or bytes, whichever bounds the case."""
    return case.bytes if case.bound in ("read", "copy") else case.flops


def run_case(
    case: Case, names: Sequence[str], *, threads: int, rounds: int, seconds: float
) -> Record:
    """Race the named contenders over one case."""
    missing = missing_dtype(case.dtype)
    if missing is not None:
        refused = {"refused": f"{case.dtype} needs {missing}, which is not installed"}
        unplayed = {"threads": threads, "contenders": dict.fromkeys(names, refused)}
        return describe_case(case) | unplayed | {"turns": 0, "unsteady_turns": 0}
    started = time.perf_counter()
    arrays = case.inputs()
    truth = Truth(case, arrays)
    turns: dict[str, Turn] = {}
    variants: dict[str, Variant] = {}
    players: dict[str, Record] = {}
    for name in names:
        try:
            label, variant = prepare(name, case, arrays, threads, truth)
        except Refused as refusal:
            players[name] = {"refused": str(refusal)}
            continue
        players[name] = {"variant": label}
        variants[name] = variant
        turns[name] = Turn(variant.run, functools.partial(CONTENDERS[name].set_threads, threads))
    ceiling = ceiling_turns(case, threads)
    turns |= {name: turn for name, (turn, _) in ceiling.items()}
    estimates = {name: estimate(turn) for name, turn in turns.items()}
    played = play(turns, estimates, _probe(threads), rounds=rounds, seconds=seconds)
    times = played.times
    for name, record in players.items():
        if name in times:
            record["seconds"] = times[name]
            truth.error(variants[name].read(variants[name].run()))  # still right at the end
    record = describe_case(case) | {
        "threads": threads,
        "contenders": players,
        "wall_seconds": time.perf_counter() - started,
        "turns": played.turns,
        "unsteady_turns": played.unsteady,
    }
    for name, (_, work) in ceiling.items():
        kind = name.partition(":")[2]
        record["ceiling"] = {"kind": kind, "work": work, "seconds": times[name]}
    ceilings.release_buffers()
    gc.collect()
    return record


def describe_case(case: Case) -> Record:
    """What a reader of the JSON needs to repeat the case."""
    return {
        "name": case.name,
        "operation": case.operation,
        "dtype": case.dtype,
        "shapes": {name: list(shape) for name, shape in case.shapes.items()},
        "options": dict(case.options),
        "flops": case.flops,
        "bytes": case.bytes,
        "bound": case.bound,
        "note": case.note,
    }


def run_scaling(case: Case, name: str, *, most: int, rounds: int, seconds: float) -> Record:
    """One contender on one thread and on ``most``, turn about, beside the machine's own scaling."""
    arrays = case.inputs()
    truth = Truth(case, arrays)
    turns: dict[str, Turn] = {}
    work = 1.0
    for threads in (1, most):
        try:
            _, variant = prepare(name, case, arrays, threads, truth)
        except Refused as refusal:
            return describe_case(case) | {"contender": name, "refused": str(refusal)}
        before = functools.partial(CONTENDERS[name].set_threads, threads)
        turns[f"{threads}"] = Turn(variant.run, before)
        for turn, work_of_call in ceiling_turns(case, threads).values():
            turns[f"ceiling:{threads}"] = turn
            work = work_of_call
    estimates = {label: estimate(turn) for label, turn in turns.items()}
    played = play(turns, estimates, _probe(most), rounds=rounds, seconds=seconds)
    ceilings.release_buffers()
    # The register loop does the same work per thread, the memory loop the same work in all.
    per_thread = case.bound == "compute"
    return describe_case(case) | {
        "contender": name,
        "threads": most,
        "seconds": played.times,
        "unsteady_turns": played.unsteady,
        "ceiling_grows": per_thread,
        "ceiling_work": work,
    }


def machine(threads: int) -> Record:
    """The machine, without its name or any path."""
    description = {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "logical_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "vector_bytes": ceilings.vector_bytes(),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": threads,
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        description["memory_gib"] = round(memory / 2**30, 1)
    return description


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def header(names: Sequence[str], skipped: dict[str, str], threads: int) -> Record:
    """What stands above the cases of a result file."""
    backends = {name: CONTENDERS[name].backend for name in names}
    return {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": machine(threads),
        "versions": versions(names),
        "backends": {name: backend() for name, backend in backends.items() if backend is not None},
        "skipped": skipped,
        "cases": [],
        "scaling": [],
    }
