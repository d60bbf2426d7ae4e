"""The printed sheet, the result files and what the tables of README.md say; it measures nothing.

A cell against a peer is "how many times faster fastattn is": the median over rounds of the
peer's time divided by fastattn's in the same round, quartiles in brackets. Below 1 fastattn loses.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.interleave import Spread, geometric_mean, ratio, spread

Record = dict[str, Any]
OWN = "fastattn"
# fastattn in every form that plays. Others may have any name.
OWN_FORMS = (OWN, "fastattn-float32", "fastattn-numba")
RESULTS = Path(__file__).parent / "results"
NOT_OFFERED = "no such operation"


def load(paths: Iterable[Path]) -> Record:
    """One result out of several files of one machine; a case measured twice counts as last read."""
    merged: Record = {}
    for path in paths:
        part = json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=float)
        if merged and part["machine"] != merged["machine"]:
            raise SystemExit(f"{path} is of another machine or thread count; tables never mix them")
        for key in ("cases", "scaling"):
            by_name = {case["name"]: case for case in merged.get(key, [])}
            by_name |= {case["name"]: case for case in part[key]}
            part[key] = list(by_name.values())
        part["versions"] = merged.get("versions", {}) | part["versions"]
        backends, others = merged.get("backends", {}), part.get("backends", {})
        for name in backends.keys() & others.keys():
            if backends[name] != others[name]:
                raise SystemExit(
                    f"{path} has {name} on the backend {others[name]}, the files before it on "
                    f"{backends[name]}; tables never mix them"
                )
        if "backends" in merged or "backends" in part:
            part["backends"] = backends | others
        merged = merged | part
    return merged


def save(result: Record, folder: Path = RESULTS) -> Path:
    """Write a result under ``folder``, named by its date and thread count."""
    folder.mkdir(parents=True, exist_ok=True)
    stamp = result["date"].replace(":", "").replace("-", "")
    path = folder / f"{stamp}-{result['machine']['threads']}threads.json"
    text = json.dumps(_finite(result), indent=1, ensure_ascii=False)
    # One number per line would make a thousand-line file of a few lists.
    text = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _finite(value: Any) -> Any:
    """The same record with rounded numbers and None for NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value


def times(player: Record) -> list[float]:
    """Seconds per call by round, NaN where the player sat out."""
    return [math.nan if t is None else t for t in player["seconds"]]


def rate(case: Record, seconds: float) -> str:
    """Work per second in the unit of what bounds the case."""
    if case["bound"] in ("read", "copy"):
        return f"{case['bytes'] / seconds / 1e9:.1f} GB/s"
    return f"{case['flops'] / seconds / 1e9:.0f} GFLOP/s"


def share(case: Record, player: Record) -> Spread | None:
    """The player's rate over the ceiling's in the same round; None where no ceiling applies."""
    ceiling = case.get("ceiling")
    if ceiling is None:
        return None
    work = case["bytes"] if case["bound"] in ("read", "copy") else case["flops"]
    per_round = ratio(times(ceiling), times(player))
    return Spread(*(value * work / ceiling["work"] for value in per_round))


def peers(case: Record) -> dict[str, Spread]:
    """fastattn's ratio to every other player of the case, its own other forms among them."""
    players = case["contenders"]
    if "seconds" not in players.get(OWN, {}):
        return {}
    own = times(players[OWN])
    return {
        name: ratio(times(player), own)
        for name, player in players.items()
        if name != OWN and "seconds" in player
    }


def is_peer(name: str) -> bool:
    """Whether a player is another library, and not fastattn itself in another form."""
    return name not in OWN_FORMS


def print_backends(result: Record) -> str:
    """Which of its backends fastattn runs on, in each of its forms."""
    if "backends" not in result:
        return "backends: not kept, in results this old"
    told = [f"{name} on {backend}" for name, backend in result["backends"].items()]
    return f"backends: {', '.join(told) or 'none, since fastattn does not play'}"


def column(result: Record, name: str) -> str:
    """A player's name at the head of its column, with its backend, where it has several."""
    backend = result.get("backends", {}).get(name)
    return name if backend is None else f"{name} ({backend})"


def best_peer(case: Record) -> tuple[str, Spread] | None:
    """The peer that was fastest, and fastattn's ratio to it."""
    ratios = {name: value for name, value in peers(case).items() if is_peer(name)}
    if not ratios:
        return None
    name = min(ratios, key=lambda peer: spread(times(case["contenders"][peer])).median)
    return name, ratios[name]


def means(cases: Sequence[Record]) -> dict[str, tuple[float, int]]:
    """Geometric mean and number of cases, against every peer and against the best of each case."""
    by_peer: dict[str, list[float]] = {"best peer": []}
    for case in cases:
        best = best_peer(case)
        if best is not None:
            by_peer["best peer"].append(best[1].median)
        for name, value in peers(case).items():
            if is_peer(name):
                by_peer.setdefault(name, []).append(value.median)
    return {name: (geometric_mean(values), len(values)) for name, values in by_peer.items()}


def duration(seconds: float) -> str:
    """Seconds in the unit a reader expects."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if seconds * factor >= 1 or unit == "µs":
            return f"{seconds * factor:.3g} {unit}"
    raise AssertionError


def shape_text(case: Record) -> str:
    """The shapes and options of a case in a few characters."""
    shapes = {name: ",".join(map(str, shape)) for name, shape in case["shapes"].items()}
    parts = [shapes.get("query") or shapes.get("x") or shapes["weights"]]
    if "key" in shapes and shapes["key"] != shapes["query"]:
        parts.append(f"keys {shapes['key']}")
    if "value" in shapes and "key" in shapes and shapes["value"] != shapes["key"]:
        parts.append(f"Ev {case['shapes']['value'][-1]}")
    if case["dtype"] != "float32":
        parts.append(case["dtype"])
    for name, value in case["options"].items():
        if name == "mask":
            heads = "per head " if len(case["shapes"]["mask"]) == 3 else ""
            parts.append(f"{value} mask {heads}".strip())
        elif name not in ("out", "metric", "axis") and value:
            parts.append(name if value is True else f"{name} {value}".replace("None", "any"))
    return "; ".join(parts)


def print_case(case: Record) -> str:
    """The lines of one case on the sheet."""
    lines = [f"{case['name']}  [{shape_text(case)}]"]
    if "ceiling" in case:
        top = case["ceiling"]["work"] / spread(times(case["ceiling"])).median / 1e9
        unit = "GFLOP/s" if case["bound"] == "compute" else "GB/s"
        lines[0] += f"  {case['ceiling']['kind']} ceiling {top:.4g} {unit}"
    if case["unsteady_turns"]:
        lines[0] += f"  ({case['unsteady_turns']} of {case['turns']} turns on a slow machine)"
    ratios = peers(case)
    for name, player in case["contenders"].items():
        if "refused" in player:
            if player["refused"] != NOT_OFFERED:
                lines.append(f"  {name:16} refuses: {player['refused'][:80]}")
            continue
        median = spread(times(player)).median
        line = f"  {name:16} {duration(median):>8} {rate(case, median):>13}"
        portion = share(case, player)
        line += f" {portion.median:7.1%}" if portion else " " * 8
        if name in ratios:
            line += f"  fastattn is {ratios[name]} x"
        lines.append(f"{line}  {player['variant']}".rstrip())
    return "\n".join(lines)


def print_means(result: Record) -> str:
    """Geometric means of the whole sheet."""
    lines = ["geometric means of fastattn's ratios"]
    for name, (mean, count) in means(result["cases"]).items():
        if count:
            lines.append(f"  {name:13} {mean:.2f} x over {count} cases")
    return "\n".join(lines)


def scaling_numbers(record: Record) -> tuple[Spread, Spread | None]:
    """Speed-up of the contender and of the machine's own ceiling from one thread to all."""
    most = record["threads"]
    taken = {
        label: [math.nan if t is None else t for t in values]
        for label, values in record["seconds"].items()
    }
    own = ratio(taken["1"], taken[f"{most}"])
    if "ceiling:1" not in taken:
        return own, None
    machine = ratio(taken["ceiling:1"], taken[f"ceiling:{most}"])
    factor = most if record["ceiling_grows"] else 1
    return own, Spread(*(value * factor for value in machine))


def print_scaling(record: Record) -> str:
    """One line of the scaling sheet."""
    if "refused" in record:
        return f"{record['name']:16} {record['contender']} refuses: {record['refused']}"
    own, machine = scaling_numbers(record)
    line = f"{record['name']:16} {record['contender']} on {record['threads']} threads {own} x"
    return line + (f"; the machine itself {machine} x" if machine else "")


def print_startup(startup: Record) -> str:
    """Import, first call and scratch memory."""
    return "\n".join(f"{what:60} {value}" for what, value in startup_rows(startup))


def startup_rows(startup: Record) -> list[tuple[str, str]]:
    """What was measured before the first number, and its value."""
    many, threads = startup["many_heads"], startup["threads"]
    chosen = []
    if "first_call_seconds" in startup:  # not in results from before there was a choice
        what = f"import and first call, backend {startup['backend']}"
        chosen = [(what, duration(startup["first_call_seconds"]))]
    return [
        ("`import fastattn`, NumPy already imported", duration(startup["import_seconds"])),
        *chosen,
        (
            "import and first call, Numba's kernels in the disk cache",
            duration(startup["first_call_warm_seconds"]),
        ),
        (
            "import and first call, Numba's kernels compiled",
            duration(startup["first_call_cold_seconds"]),
        ),
        (
            "scratch, L = S = 131072, E = 64, one head, one thread",
            f"{startup['scratch_bytes_one_thread'] / 2**20:.1f} MiB",
        ),
        (
            f"the same, one head, {threads} threads",
            f"{startup['scratch_bytes_one_head'] / 2**20:.1f} MiB",
        ),
        (
            f"the same, {many} heads, {threads} threads",
            f"{startup['scratch_bytes_many_heads'] / 2**20:.1f} MiB",
        ),
    ]
