"""The tables of README.md, the bench's and the project's.

Each stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``; a page has the markers of
those that it shows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.report import Record

TABLES = ("attention", "ragged", "dtypes", "stages")
ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "bench" / "README.md")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _machine(result: Record) -> str:
    machine, versions = result["machine"], result["versions"]
    libraries = ", ".join(f"{name} {number}" for name, number in versions.items())
    return (
        f"{machine['cpu']}, {machine['threads']} threads, {8 * machine['vector_bytes']}-bit "
        f"vectors, {machine.get('memory_gib', '?')} GiB, {machine['system']}, "
        f"Python {machine['python']}; {libraries}; {result['date'][:10]}."
    )


def _cell(case: Record, name: str) -> str:
    player = case["contenders"].get(name)
    if player is None or player.get("refused") == report.NOT_OFFERED:
        return "not offered"
    if "refused" in player:
        return "refuses"
    ratios = report.peers(case)
    return f"{ratios[name]}" if name in ratios else "not run"


def _speed_table(result: Record, cases: Sequence[Record]) -> str:
    """One row per case, one column per peer that played any of them; ours with their backends."""
    played = [name for case in cases for name in report.peers(case)]
    columns = list(dict.fromkeys(played))
    rows = []
    for case in cases:
        own = case["contenders"].get(report.OWN, {})
        if "seconds" not in own:
            continue
        median = report.spread(report.times(own)).median
        portion = report.share(case, own)
        best = report.best_peer(case)
        rows.append(
            [
                f"{case['name']}: {report.shape_text(case)}",
                report.duration(median),
                report.rate(case, median),
                f"{portion.median:.0%} {case['ceiling']['kind']}" if portion else "none applies",
                f"{best[1].median:.2f} {best[0]}" if best else "no peer",
                *(_cell(case, name) for name in columns),
            ]
        )
    own, *others = (report.column(result, name) for name in (report.OWN, *columns))
    return _table(["case", own, "rate", "of ceiling", "best peer", *others], rows)


def _group(case: Record) -> str:
    """The table a case stands in."""
    if case["operation"] == "varlen" or "documents" in case["options"]:
        return "ragged"
    if case["operation"] == "cache" or case["dtype"] in ("float16", "bfloat16"):
        return "dtypes"
    return "attention" if case["operation"] in ("attention", "multihead") else "stages"


def _groups(result: Record) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {name: [] for name in TABLES}
    for case in result["cases"]:
        groups[_group(case)].append(case)
    return {name: cases for name, cases in groups.items() if cases}


def _summary(result: Record) -> str:
    groups = _groups(result) | {"whole sheet": result["cases"]}
    averages = {group: report.means(cases) for group, cases in groups.items()}
    columns = list(averages["whole sheet"])
    rows = []
    for group, by_peer in averages.items():
        cells = [
            f"{by_peer[name][0]:.2f} ({by_peer[name][1]})"
            if by_peer.get(name, (0, 0))[1]
            else "none"
            for name in columns
        ]
        rows.append([group, *cells])
    return _table(["geometric mean (cases)", *columns], rows)


def _scaling(result: Record) -> str:
    rows = []
    for record in result["scaling"]:
        if "refused" not in record:
            own, machine = report.scaling_numbers(record)
            rows.append([record["name"], f"{own}", f"{machine}" if machine else "latency"])
    threads = result["machine"]["threads"]
    return _table(["case", f"{threads} threads against 1", "the machine's own ceiling"], rows)


def blocks(result: Record) -> dict[str, str]:
    """The text of every block that ``result`` has data for."""
    texts = {"machine": _machine(result)}
    texts |= {name: _speed_table(result, cases) for name, cases in _groups(result).items()}
    if result["cases"]:
        texts["summary"] = _summary(result)
    if result["scaling"]:
        texts["scaling"] = _scaling(result)
    if result.get("startup"):
        rows = report.startup_rows(result["startup"])
        texts["startup"] = _table(["before the first number", "measured"], rows)
    return texts


def rewrite(text: str, texts: dict[str, str]) -> str:
    """``text`` with every marked block replaced; blocks without data stay as they are."""
    for name, block in texts.items():
        pattern = rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)"
        text = re.sub(
            pattern, lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text, flags=re.S
        )
    return text


def write(result: Record, pages: Sequence[Path] = PAGES) -> list[str]:
    """Rewrite the blocks of all pages and return the names of those they have markers for."""
    texts = blocks(result)
    written = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        written += [name for name in texts if f"<!-- bench:{name} -->" in text]
        page.write_text(rewrite(text, texts), encoding="utf-8")
    if not written:
        names = " and ".join(page.name for page in pages)
        raise SystemExit(f"no <!-- bench:NAME --> marker for {', '.join(texts)} in {names}")
    return list(dict.fromkeys(written))
