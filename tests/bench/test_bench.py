"""The bench itself: its work counts, its judge, its tables, and every contender on small cases."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from bench import cases, ceilings, draw, interleave, readme, report, sheet
from bench.__main__ import main
from bench.contender import Refused
from bench.contenders import CONTENDERS
from bench.truth import TOLERANCE, Truth, WrongResult

TWO_HEADS = (2, 4)
SMALL = (
    cases.attention("t-plain", batch=TWO_HEADS, queries=33, keys=47, features=16),
    cases.attention("t-causal", batch=TWO_HEADS, queries=40, features=16, causal=True),
    cases.attention(
        "t-window", batch=TWO_HEADS, queries=40, features=16, causal=True, window=(5, None)
    ),
    cases.attention("t-mask", batch=TWO_HEADS, queries=33, keys=47, features=16, mask="bool"),
    cases.attention("t-bias", batch=TWO_HEADS, queries=33, keys=47, features=16, mask="float"),
    cases.attention("t-grouped", batch=TWO_HEADS, key_heads=2, queries=1, keys=50, features=16),
    cases.attention("t-pooling", batch=(5, 1), queries=1, keys=50, features=16),
    cases.attention(
        "t-weights", batch=TWO_HEADS, queries=33, features=9, value_features=7, return_weights=True
    ),
    cases.attention("t-double", batch=TWO_HEADS, queries=33, features=16, dtype="float64"),
    cases.attention(
        "t-bias-heads", batch=TWO_HEADS, queries=33, features=16, mask="float", bias_heads=True
    ),
    cases.attention("t-alibi", batch=TWO_HEADS, queries=40, features=16, causal=True, alibi=True),
    cases.attention("t-sinks", batch=TWO_HEADS, queries=33, keys=47, features=16, sinks=True),
    cases.attention(
        "t-documents", batch=TWO_HEADS, queries=300, features=16, causal=True, documents=True
    ),
    cases.attention("t-bfloat16", batch=TWO_HEADS, queries=33, features=16, dtype="bfloat16"),
    cases.attention(
        "t-float16", batch=TWO_HEADS, key_heads=2, queries=1, keys=50, features=16, dtype="float16"
    ),
    *(
        cases.cache(
            f"t-cache-{dtype}", batch=2, heads=4, key_heads=2, keys=200, features=16, dtype=dtype
        )
        for dtype in ("float32", "int8")
    ),
    cases.varlen("t-ragged", lengths=[3, 1, 40, 7], told="few", features=16),
    cases.varlen("t-ragged-equal", lengths=[9] * 5, told="9 each", features=16),
    cases.varlen("t-ragged-table", lengths=[3, 1, 40, 7], told="few", features=16, table=30),
    cases.varlen(
        "t-ragged-causal",
        lengths=[3, 1, 40, 7],
        told="few",
        features=16,
        heads=2,
        own_queries=True,
        causal=True,
    ),
    cases.rowwise("softmax", "t-softmax", shape=(30, 40), out=True),
    cases.rowwise("softmax", "t-softmax-0", shape=(30, 40), axis=0),
    cases.rowwise("logsumexp", "t-logsumexp", shape=(30, 40)),
    cases.similarity("t-cosine", "cosine", queries=30, keys=40, features=16),
    cases.similarity("t-dot", "dot", queries=30, keys=40, features=16),
    cases.similarity("t-euclidean", "euclidean", queries=30, keys=40, features=16),
    cases.multihead("t-module", batch=3, length=10, features=16, heads=2),
    cases.fuse("t-fuse", batch=(1, 2), queries=30, keys=40, features=16),
    cases.linear("t-linear", rows=30, features=16, outputs=70),
    cases.linear("t-linear-unpacked", rows=3, features=16, outputs=70, packed=False),
)
LIGHT = ("fastattn", "fastattn-float32", "numpy", "scipy", "scikit-learn")  # quick imports
PAIRS = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in SMALL
    for name in LIGHT
    if case.operation in CONTENDERS[name].prepare
]
HEAVY = [
    pytest.param(case, name, id=f"{case.name}-{name}", marks=pytest.mark.long)
    for case in SMALL
    for name in CONTENDERS
    if name not in LIGHT and case.operation in CONTENDERS[name].prepare
]


@pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*nested tensors:UserWarning")
@pytest.mark.parametrize(("case", "name"), PAIRS + HEAVY)
def test_a_contender_agrees_with_the_judge(case: cases.Case, name: str) -> None:
    missing = CONTENDERS[name].missing() or draw.missing_dtype(case.dtype)
    if missing is not None:
        pytest.skip(f"{missing} is not installed")
    arrays = case.inputs()
    truth = Truth(case, arrays)
    try:
        variants = CONTENDERS[name].prepare[case.operation](case, arrays, 1)
    except Refused as refusal:
        pytest.skip(f"{name} refuses: {refusal}")
    for variant in variants.values():
        truth.error(variant.read(variant.run()))
    label, fastest = sheet.prepare(name, case, arrays, 1, truth)
    assert label in variants
    assert truth.error(fastest.read(fastest.run())) <= TOLERANCE[case.dtype]


def test_the_judge_agrees_with_the_reference() -> None:
    from fastattn import reference

    case = SMALL[1]
    arrays = case.inputs()
    assert Truth(case, arrays).error(reference.attention(**arrays, causal=True)) < 1e-12


def test_the_judge_refuses_half_precision_and_wrong_shapes() -> None:
    case = SMALL[0]
    arrays = case.inputs()
    variant = CONTENDERS["numpy"].prepare["attention"](case, arrays, 1)[""]
    right = variant.run()
    with pytest.raises(WrongResult, match="relative error"):
        Truth(case, arrays).error(right.astype(np.float16))
    with pytest.raises(WrongResult, match="relative error"):
        Truth(case, arrays).error(np.where(right > 1e9, right, np.nan))
    with pytest.raises(WrongResult, match="shape"):
        Truth(case, arrays).error(right[..., :-1])


def test_work_counts_visible_pairs_only() -> None:
    by_name = {case.name: case for case in cases.CASES}
    assert by_name["prefill"].flops == 4 * 8 * 2048**2 * 64
    assert by_name["prefill-causal"].flops == by_name["prefill"].flops / 2
    brute_force = sum(min(i, 255) + 1 for i in range(8192))
    assert by_name["window"].flops == 4 * 2 * brute_force * 64
    assert by_name["odd-33-17"].flops == 2 * 8 * 1000**2 * (33 + 17)
    cached = 2 * 8 * 8 * 4096 * 128 * 4
    assert by_name["decode-grouped"].bytes == cached + 2 * 8 * 32 * 128 * 4
    assert by_name["softmax-out"].bytes == 2 * 8192 * 4096 * 4


def test_case_names_are_unique_and_inputs_repeat() -> None:
    names = [case.name for case in cases.CASES]
    assert len(set(names)) == len(names)
    first, second = SMALL[3].inputs(), SMALL[3].inputs()
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
        assert array.dtype == bool or array.ctypes.data % draw.ALIGNMENT == 0


def test_ratios_are_formed_within_a_round() -> None:
    slow_machine = [1.0, 10.0, 1.0, math.nan]
    peer = [2.0, 20.0, 2.0, 2.0]
    assert interleave.ratio(peer, slow_machine) == (2.0, 2.0, 2.0)
    assert interleave.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)


def test_the_register_loop_does_the_work_it_claims() -> None:
    run, flops = ceilings.fma_turn("float32", 1, steps=100_000)
    run()
    seconds = interleave.estimate(interleave.Turn(run))
    assert 1e9 < flops / seconds < 1e12  # a folded-away loop would be beyond any core


def test_the_copy_loop_touches_every_byte(monkeypatch) -> None:
    monkeypatch.setattr(ceilings, "PASS_BYTES", 0)
    run, moved = ceilings.memory_turn(2**16, 1, write=True)
    assert moved == 2**16
    target = ceilings._buffer("target", 2**15)
    target[...] = 0
    run()
    assert target.all()
    ceilings.release_buffers()


def test_the_read_loop_counts_every_pass() -> None:
    _, moved = ceilings.memory_turn(2**16, 1, write=False)
    assert moved == ceilings.PASS_BYTES
    ceilings.release_buffers()


def test_a_run_becomes_a_sheet_a_file_and_tables(tmp_path) -> None:
    names = [name for name in ("fastattn", "numpy") if importlib.util.find_spec(name)]
    record = sheet.run_case(SMALL[0], names, threads=1, rounds=3, seconds=1)
    result = sheet.header(names, {}, 1) | {"cases": [record]}
    path = report.save(result, tmp_path)
    assert "/" not in path.read_text().replace("bench/", "")
    again = report.load([path])
    assert json.loads(path.read_text())["cases"][0]["name"] == "t-plain"
    assert "fastattn is" in report.print_case(again["cases"][0])
    text = "a\n<!-- bench:attention -->\nold\n<!-- /bench:attention -->\nb\n"
    rewritten = readme.rewrite(text, readme.blocks(again))
    assert "old" not in rewritten
    assert "t-plain" in rewritten
    assert rewritten.startswith("a\n")
    assert rewritten.endswith("\nb\n")
    assert readme.rewrite(rewritten, readme.blocks(again)) == rewritten


def test_a_contender_may_have_any_name(monkeypatch, tmp_path) -> None:
    """One that looks like ours, and one that no package and no table would like."""
    names = ("fastattn-lookalike", "no package | at all")
    for name in names:
        mine = CONTENDERS["numpy"]._replace(requires=("numpy", "json.decoder"))
        monkeypatch.setitem(CONTENDERS, name, mine)
    monkeypatch.setitem(CONTENDERS, "not here", mine._replace(requires=("nowhere.at.all",)))
    present, skipped = sheet.available(["not here", *names, "fastattn"])
    assert (present, list(skipped)) == ([*names, "fastattn"], ["not here"])
    record = sheet.run_case(SMALL[0], present, threads=1, rounds=3, seconds=1)
    result = sheet.header(present, skipped, 1) | {"cases": [record]}
    assert set(report.means([record])) == {"best peer", *names}
    again = report.load([report.save(result, tmp_path)])
    (line,) = (row for row in readme.blocks(again)["attention"].splitlines() if "t-plain" in row)
    assert line.replace("\\|", "").count("|") == 8  # seven columns
    assert all(f"  {name} " in report.print_case(record) for name in names)


def test_the_backend_of_each_column_is_kept_and_told(tmp_path, monkeypatch, capsys) -> None:
    """Also where fastattn plays in another form alone."""
    pytest.importorskip("numba")
    monkeypatch.setattr("bench.__main__.CASES", SMALL[:1])
    monkeypatch.setattr("bench.cases.CASES", SMALL[:1])
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(report.save, "__defaults__", (tmp_path,))
    short = ["--threads=1", "--rounds=3", "--seconds=0.1", "--cases=t-plain", "--contenders"]
    assert main([*short, "fastattn-numba"]) == 0
    assert "backends: fastattn-numba on numba\n" in capsys.readouterr().out
    (alone,) = tmp_path.iterdir()
    assert json.loads(alone.read_text())["backends"] == {"fastattn-numba": "numba"}
    alone.unlink()
    assert main([*short, "numpy", "fastattn", "fastattn-numba"]) == 0
    chosen = CONTENDERS["fastattn"].backend()
    assert f"backends: fastattn on {chosen}, fastattn-numba on numba\n" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    head = readme.blocks(report.load([path]))["attention"].splitlines()[0]
    assert f"| fastattn ({chosen}) |" in head
    assert "| fastattn-numba (numba) |" in head
    other = tmp_path / "other.json"
    other.write_text(path.read_text().replace(f'"fastattn": "{chosen}"', '"fastattn": "another"'))
    with pytest.raises(SystemExit, match="never mix"):
        report.load([path, other])


def _closure(extra: str, extras: dict[str, list[str]]) -> set[str]:
    """The distributions that an extra brings, directly."""
    found = set()
    for requirement in extras[extra]:
        name, _, inner = re.fullmatch(r"([\w-]+)(\[([\w,-]+)\])?[^\[]*", requirement).groups()
        if name == "fastattn":
            found |= {one for deeper in inner.split(",") for one in _closure(deeper, extras)}
        else:
            found.add(name)
    return found


def test_the_extras_hold_what_the_bench_imports() -> None:
    root = Path(cases.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    bench, peers = _closure("bench", extras), _closure("peers", extras)
    known = {"bench", "fastattn", "numpy", "numba", "llvmlite"}  # the last comes with numba
    called = {"sklearn": "scikit-learn", "faiss": "faiss-cpu", "ml_dtypes": "ml_dtypes"}
    imported = set()
    for path in (root / "bench").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module)
    imported |= {module for contender in CONTENDERS.values() for module in contender.requires}
    tops = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names - known
    needed = {called.get(top, top.replace("_", "-")) for top in tops}
    assert needed <= bench | peers
    assert peers - bench == needed - bench, "peers that nobody races, or that bench brings"
    assert "pytest-benchmark[histogram]>=5" in extras["bench"]  # its flag --benchmark-histogram
    rest = {one for extra in extras for one in _closure(extra, extras)} - (peers - bench)
    assert _closure("all", extras) == rest


def test_parts_are_merged_into_the_tables_of_one_run(tmp_path, monkeypatch, capsys) -> None:
    chosen = [case for case in SMALL if case.name in ("t-ragged", "t-cache-int8", "t-plain")]
    monkeypatch.setattr("bench.cases.CASES", tuple(chosen))
    monkeypatch.setattr("bench.__main__.CASES", tuple(chosen))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    kept = []
    monkeypatch.setattr(report, "save", lambda result: kept.append(result) or tmp_path / "kept")
    monkeypatch.setattr("bench.__main__.startup.measure", lambda threads: {"threads": threads})
    monkeypatch.setattr(report, "startup_rows", lambda startup: [("start", "1 s")])
    monkeypatch.setattr("bench.__main__.SCALING_CASES", ["t-plain"])
    short = ["--threads=2", "--rounds=3", "--seconds=0.1", "--contenders", "fastattn", "numpy"]
    for part in ("1/2", "2/2"):
        assert main([*short, f"--part={part}"]) == 0
    assert [len(part["cases"]) for part in kept] == [2, 1]
    assert [bool(part["scaling"]) for part in kept] == [False, True]
    assert "startup" not in kept[0]
    files = [tmp_path / "one.json", tmp_path / "two.json"]
    for path, part in zip(files, kept, strict=True):
        path.write_text(json.dumps(report._finite(part)))
    names = ("machine", "attention", "ragged", "dtypes", "summary", "scaling", "startup")
    page = tmp_path / "README.md"
    page.write_text("".join(f"<!-- bench:{name} -->\n<!-- /bench:{name} -->\n" for name in names))
    summary = tmp_path / "summary.md"
    summary.write_text("<!-- bench:summary -->\n<!-- /bench:summary -->\n")
    monkeypatch.setattr(readme.write, "__defaults__", ((page, summary),))
    assert main(["--from-json", *map(str, files), "--write-readme"]) == 0
    capsys.readouterr()
    text = page.read_text()
    assert set(readme.blocks(report.load(files))) == set(names)
    for expected in ("| t-plain: ", "| t-ragged: ", "| t-cache-int8: ", "| t-plain | ", "| 1 s |"):
        assert expected in text
    assert "| whole sheet |" in summary.read_text()


def test_tables_are_published_where_there_are_markers(tmp_path) -> None:
    shown = [set(re.findall("<!-- bench:(.*?) -->", page.read_text())) for page in readme.PAGES]
    assert shown[0] == {"machine", "summary"}
    assert shown[1] == {*readme.TABLES, "machine", "summary", "scaling", "startup"}
    page = tmp_path / "page.md"
    page.write_text("no marker")
    with pytest.raises(SystemExit, match=r"no <!-- bench:NAME --> marker .* in page\.md"):
        readme.write(sheet.header(["numpy"], {}, 1), [page])


def test_work_of_ragged_and_narrow_cases() -> None:
    by_name = {case.name: case for case in cases.CASES}
    packed, table = by_name["ragged-50"], by_name["ragged-50-table"]
    assert packed.flops == 4 * 8192 * 50 * 64 == table.flops
    assert packed.bytes == 4 * 64 * 2 * (8192 + 8192 * 50)
    touched = len(np.unique(table.inputs()["key_indices"]))
    assert table.bytes == pytest.approx(4 * 64 * 2 * (8192 + touched), rel=0.01)
    heavy = by_name["ragged-heavy"]
    lengths = np.diff(heavy.fixed["key_splits"])
    assert lengths.min() >= 1
    assert lengths.max() == 2000
    assert np.median(lengths) < 60 < lengths.mean() < 200
    float32, int8 = by_name["cache-float32"], by_name["cache-int8"]
    assert int8.bytes / float32.bytes == pytest.approx((128 + 4) / 512, rel=0.01)
    ids = by_name["documents"].fixed["key_segments"]
    pairs = sum(n * n / 2 for n in np.bincount(ids))
    assert by_name["documents"].flops == 4 * 8 * pairs * 64


def test_own_forms_are_no_peers() -> None:
    case = {
        "contenders": {
            "fastattn": {"seconds": [1.0, 1.0]},
            "fastattn-float32": {"seconds": [1.5, 1.5]},
            "torch": {"seconds": [2.0, 2.0]},
        }
    }
    assert report.peers(case)["fastattn-float32"].median == 1.5
    name, ratio = report.best_peer(case)
    assert (name, ratio.median) == ("torch", 2.0)
    assert "fastattn-float32" not in report.means([case])


@pytest.mark.skipif(not ceilings.has_bfloat16_dot(), reason="the CPU has no bfloat16 dot")
def test_the_bfloat16_loop_does_the_work_it_claims() -> None:
    run, flops = ceilings.fma_turn("bfloat16", 1, steps=100_000)
    run()
    seconds = interleave.estimate(interleave.Turn(run))
    assert 1e9 < flops / seconds < 1e12
    assembly = "".join(ceilings._bfloat16_loop().inspect_asm().values())
    assert assembly.count("vdpbf16ps") >= ceilings.ACCUMULATORS * ceilings.UNROLL


def test_pytest_bench_takes_the_flags_of_pytest_benchmark(tmp_path) -> None:
    chosen = ["bench", "-k", "tiny-fastattn] or tiny-numpy]", "--bench-threads=1"]
    saved = tmp_path / "saved"
    flags = [
        "--benchmark-max-time=0.01",
        "--benchmark-min-rounds=3",
        f"--benchmark-storage={saved}",
    ]
    for more in (
        ["--benchmark-save=one", f"--benchmark-json={tmp_path / 'now.json'}"],
        ["--benchmark-compare=0001", "--benchmark-compare-fail=min:100000%"],
    ):
        child = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen, *flags, *more],
            cwd=Path(cases.__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert child.returncode == 0, child.stdout + child.stderr
    assert "0001_one" in child.stdout  # what it was compared with
    assert len(list(saved.rglob("0001_one.json"))) == 1
    written = json.loads((tmp_path / "now.json").read_text())["benchmarks"]
    assert {one["group"] for one in written} == {"tiny"}
    assert len(written) == 2
    assert all(one["extra_info"]["threads"] == 1 for one in written)
