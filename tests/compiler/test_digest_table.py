"""The table of digests sees what differs; and the ways to run the kernels differ in nothing."""

import digest_table
import numpy as np
import pytest
from plain.cases import CASES

import fastattn


def digests_of(ways, changed=(), absent=()):
    """Made-up digests of every case: changed by the last way, or not done by it."""
    found = {way: {case.name: "same" for case in CASES} for way in ways}
    last = found[ways[-1]]
    last.update(dict.fromkeys(changed, "other"))
    for name in absent:
        del last[name]
    return found


def test_rows_are_of_public_functions():
    assert {case.operation for case in CASES} <= set(fastattn.__all__)


@pytest.mark.parametrize("changed", [[], ["varlen, options", "softmax, segments"]])
def test_ways_that_differ_are_named_and_fail(monkeypatch, capsys, changed):
    found = digests_of(["one", "two", "three"], changed)
    monkeypatch.setattr(digest_table, "everywhere", lambda: found)
    assert digest_table.main() == bool(changed)
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("differs")] == [
        f"differs: {name}: one, two / three" for name in changed
    ]
    for name, _, *cells in digest_table.table(found)[1:]:
        differs = name in ("softmax", "attention_varlen", "all but pairs") and bool(changed)
        assert cells[0] == cells[1]
        assert (cells[2] != cells[0]) == differs, name


def test_what_a_way_does_not_do_is_no_difference():
    pairs = [case.name for case in CASES if case.pairs]
    found = digests_of(["one", "two"], absent=pairs)
    assert digest_table.differences(found) == []
    cells = {row[0]: row[2:] for row in digest_table.table(found)[1:]}
    assert {name for name, (_, last) in cells.items() if last == "-"} == {
        "attention, pairs",
        "attention_varlen, pairs",
        "KVCache, pairs",
    }
    assert cells["all but pairs"][0] == cells["all but pairs"][1]


def test_a_digest_is_of_bits_types_and_texts():
    results = [np.array([0.0, np.nan, 1.0]), "an error", None, np.array([True])]
    expected = digest_table.digest(results)
    negative = np.array([-0.0, -np.nan, 1.0])
    assert digest_table.digest([negative, *results[1:]]) == expected
    for other in (
        np.array([0.0, np.nan, np.nextafter(1.0, 2.0)]),
        np.array([0.0, np.nan, 1.0], np.float32),
        np.array([[0.0, np.nan, 1.0]]),
    ):
        assert digest_table.digest([other, *results[1:]]) != expected
    assert digest_table.digest([results[0], "another", *results[2:]]) != expected


@pytest.mark.long
def test_every_way_has_one_digest():
    assert digest_table.main() == 0
