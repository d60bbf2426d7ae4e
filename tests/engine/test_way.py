"""How keys and values are read: decided once, told by `explain`, obeyed by kernels, free of bits.

Whether kernels obey is seen on plain kernels: which of their functions ran. There too, ways that
nobody would choose run on checked memory.
"""

import contextlib
import itertools
from unittest import mock

import calls
import numpy as np
import pytest
import ragged
import strategies
from plain.backend import Plain, on_plain_kernels, widening
from plain.case import BF16, F16, F32, F64, Case, attend, draw, operands
from plain.storage_cases import _cache

import fastattn
from fastattn._engine import attention, layouts, plan, plan_ragged, way

MANY = "a task has more than 4 rows, which share what is packed"


def rows_apart(arrays):
    """Keys and values beside others' in memory, as those of heads side by side."""
    query, *others = arrays
    return [query, *(np.stack([x, x], 1)[:, 0] for x in others)]


def turned(arrays):
    query, *others = arrays
    return [query, *map(np.asfortranarray, others)]


def swapped(arrays):
    return [x.astype(x.dtype.newbyteorder()) for x in arrays]


# Arrays and options; keys, panels, values, by columns; why not otherwise.
TABLE = {
    "one row": (operands(1, 40, 8, 16), {}, "decode", "in place", "in place", ("", "", "")),
    "four rows": (operands(4, 40, 8, 16), {}, "decode", "in place", "in place", ("", "", "")),
    "five rows": (operands(5, 40, 8, 16), {}, "packed", "in place", "in place", (MANY, "", "")),
    "one row of float64": (
        operands(1, 40, 8, 16, dtype=F64), {}, "decode", "in place", "in place", ("", "", ""),
    ),
    "rows apart": (
        rows_apart(operands(2, 40, 8, 16)), {}, "decode", "in place", "in place", ("", "", ""),
    ),
    "features in no fours": (
        operands(1, 40, 9, 17), {}, "packed", "in place", "late",
        ("features are no multiple of 4", "", "features of a value are no multiple of 16"),
    ),
    "no feature": (
        operands(1, 40, 0, 16), {}, "packed", "in place", "in place",
        ("features are no multiple of 4", "", ""),
    ),
    "distances": (
        operands(1, 40, 8, 16), {"similarity": "euclidean"}, "packed", "in place", "in place",
        ("the similarity is no plain product", "", ""),
    ),
    "documents": (
        operands(1, 40, 8, 16),
        {"query_segments": np.zeros(1, int), "key_segments": np.zeros(40, int)},
        "packed", "in place", "in place", ("there are documents", "", ""),
    ),
    "columns": (
        turned(operands(2, 40, 8, 16)), {}, "packed", "in place", "late by columns",
        ("the features of a key lie apart", "", "the features of a value lie apart"),
    ),
    "many rows, columns": (
        turned(operands(25, 40, 8, 16)), {}, "packed", "in place", "staged by columns",
        (MANY, "", "the features of a value lie apart"),
    ),
    "many rows, odd": (
        operands(25, 40, 8, 17), {}, "packed", "in place", "staged",
        (MANY, "", "features of a value are no multiple of 16"),
    ),
    "swapped": (
        swapped(operands(2, 40, 8, 16)), {}, "packed", "staged", "late",
        *[("keys are of another dtype or byte order",) * 2 +
          ("values are of another dtype or byte order",)],
    ),
    "halves": (
        operands(4, 40, 8, 64, dtype=F16), {}, "decode_small", "widened", "decode_small",
        ("", "keys are of a small dtype", ""),
    ),
    "many rows of halves": (
        operands(5, 40, 8, 64, dtype=F16), {}, "packed", "widened", "late",
        (MANY, "keys are of a small dtype", MANY),
    ),
    "narrow halves": (
        operands(1, 40, 7, 48, dtype=F16), {}, "packed", "staged", "late",
        (
            "the bytes of a key are no multiple of 16", "keys are of another dtype or byte order",
            "features of a value are no multiple of 64",
        ),
    ),
    "halves against float64": (
        [draw(1, (1, 8), F64), *operands(1, 40, 8, 64, dtype=F16)[1:]], {},
        "packed", "widened", "late",
        (
            "keys are of another dtype or byte order", "keys are of a small dtype",
            "values are of another dtype or byte order",
        ),
    ),
    "turned halves": (
        turned(operands(1, 40, 8, 64, dtype=F16)), {}, "packed", "in place", "late",
        ("the features of a key lie apart", "", "the features of a value lie apart"),
    ),
    "pairs": (
        operands(4, 40, 8, 64, dtype=BF16), {}, "decode_small", "in place", "decode_small",
        ("", "", ""),
    ),
    "many rows of pairs": (
        operands(25, 40, 8, 64, dtype=BF16), {}, "packed", "in place", "staged", (MANY, "", MANY),
    ),
    "odd pairs": (
        operands(1, 40, 7, 64, dtype=BF16), {}, "packed", "staged", "decode_small",
        (
            "the bytes of a key are no multiple of 16",
            "pairs of features do not lie as one word each", "",
        ),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def plain():
    return Plain()


@contextlib.contextmanager
def ways(change=lambda chosen: chosen):
    """Let every call go another way; gives the list of those that were gone."""
    gone = []

    def choose(operands, rows):
        gone.append(change(way.choose(operands, rows)))
        return gone[-1]

    with (
        mock.patch.object(plan, "choose", choose),
        mock.patch.object(plan_ragged, "choose", choose),
    ):
        calls.forget()
        yield gone
    calls.forget()


@pytest.mark.parametrize("name", TABLE)
def test_who_goes_which_way(plain, name):
    arrays, options, keys, panels, values, why = TABLE[name]
    with on_plain_kernels(plain):  # which multiply pairs, whatever this CPU does
        found = fastattn.explain(*arrays, **options, threads=1).way
    by_columns = " by columns" * found.by_columns
    assert (found.keys, found.panels, found.values + by_columns) == (keys, panels, values)
    assert found.why == why
    assert found.products == ("pairs" if "pairs" in name else "float64" if "64" in name else F32)
    for reason in filter(None, why):
        assert f"({reason})" in repr(found)


def test_a_cpu_that_widens_goes_another_way(plain):
    arrays = operands(1, 40, 7, 64, dtype=BF16)
    with on_plain_kernels(plain), widening(plain.engine):
        found = fastattn.explain(*arrays).way
    assert (found.products, found.panels) == (F32, "staged")


@pytest.mark.parametrize("keys", [0, 1, 15, 16, 500, 512, 513, 5000])
@pytest.mark.parametrize("dtype", [F32, F16])
def test_how_many_keys_there_are_decides_nothing(keys, dtype):
    """So that the kept plan of a cache serves it at every length."""
    first, second = (fastattn.explain(*operands(1, n, 8, 64, dtype=dtype)).way for n in (40, keys))
    assert first == second


def list_of(lengths, dtype=F32, index=None, **sizes):
    made = ragged.Ragged(np.random.default_rng(4), 4, lengths, heads=None, key_heads=None)
    for name, value in (sizes | {"index_dtype": index}).items():
        setattr(made, name, value)
    made.dtypes = (strategies.dtype_of(dtype),) * 3
    made.build()
    name = f"varlen, {lengths}, {dtype}, {sizes}, {index and index.__name__}"
    return Case(name, lambda: fastattn.attention_varlen(*made.arguments, **made.options))


RAGGED_AND_CACHES = {
    "sequences of few rows": (
        list_of([(1, 20), (3, 7), (2, 600)], features=8, value_features=16),
        "decode", "in place", "in place",
    ),
    "one of many rows": (
        list_of([(1, 20), (9, 7)], features=8, value_features=16),
        "packed", "in place", "in place",
    ),
    "lists": (
        list_of([(1, 20), (3, 7)], index=np.int32, features=8, value_features=64),
        "packed", "staged", "late",
    ),
    "lists of halves": (
        list_of([(1, 20), (3, 7)], F16, np.int64, features=8, value_features=64),
        "packed", "staged", "late",
    ),
    "sequences of halves": (
        list_of([(1, 20), (3, 7)], F16, features=8, value_features=64),
        "decode_small", "widened", "decode_small",
    ),
    "a cache": (_cache(F32, 1, (140, 20), 8, 16), "decode", "in place", "in place"),
    "a cache of int8": (
        _cache("int8", 2, (40,), 16, 64), "decode_small", "widened", "decode_small",
    ),
    "a cache of narrow int8": (_cache("int8", 2, (40,), 8, 5), "packed", "staged", "late"),
    "a cache of pairs": (
        _cache(BF16, 2, (131, 7), 16, 64), "decode_small", "in place", "decode_small",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RAGGED_AND_CACHES)
def test_ragged_calls_and_caches(plain, name):
    case, *expected = RAGGED_AND_CACHES[name]
    with case.settings(), on_plain_kernels(plain), ways() as gone:
        calls.results(case.call)
    assert gone
    for one in gone:
        assert [one.keys, one.panels, one.values] == expected


# By the word of a way, what runs in kernels that go it.
SCORES = {
    "packed": {"score_packed", "score_pairs"},
    "decode": {"score_decode"},
    "decode_small": {"score_decode_small", "score_small_pairs"},
}
FUSES = {
    "in place": {"fuse_listed"},
    "staged": {"fuse_listed", "fuse_pairs"},
    "late": {"fuse_listed", "fuse_pairs"},
    "decode_small": {"fuse_decode_small", "fuse_small_pairs"},
}


def running(plain, call):
    """The functions of the kernels that run in a call."""
    coverage = plain.coverage
    before = list(coverage.ran)
    coverage.ran[:] = [False] * len(before)
    try:
        call()
        return {one.function for one, ran in zip(coverage.places, coverage.ran, strict=True) if ran}
    finally:
        coverage.ran[:] = before


@pytest.mark.parametrize("name", TABLE)
def test_kernels_go_the_way_that_explain_tells(plain, name):
    arrays, options, *_ = TABLE[name]
    with on_plain_kernels(plain):
        execution = fastattn.explain(*arrays, **options, threads=1)
        ran = running(plain, lambda: fastattn.attention(*arrays, **options, threads=1))
        record = attention.make_record(
            execution.problem, execution.plan, np.empty((1, 1, *execution.problem.output_shape))
        )
    found = execution.way
    assert ran & set().union(*SCORES.values()) == ran & SCORES[found.keys] != set()
    assert ran & set().union(*FUSES.values()) == ran & FUSES[found.values] != set()
    copies = found.keys == "packed" and found.panels == "staged"
    copies |= found.values in ("staged", "late") and not found.by_columns
    assert bool({"stage_rows", "copy_key", "stage_pairs"} & ran) == copies
    words = {name: int(record.words[record.layout.word[name]]) for name in found.words()}
    assert words == found.words()
    assert layouts.KEY_WAYS[words["key_way"]] == found.keys


def others(chosen):
    """All ways that give the right result where the one that was chosen does."""
    every = itertools.product(
        sorted({chosen.keys, "packed"}),
        sorted({chosen.panels, "staged"}),
        sorted({chosen.values, "late", "staged"}),
        sorted({chosen.by_columns, False}),
    )
    for keys, panels, values, by_columns in every:
        copied = values in ("late", "staged")
        if copied or not by_columns:
            # Values that could lie by columns are not in one piece otherwise.
            yield chosen._replace(keys=keys, panels=panels, values=values, by_columns=by_columns)


def _late(keys):
    """Rows that see the last keys only, of a segment that has few of them."""
    arrays = operands(2, keys, 8, 16)
    return attend(f"late, {keys}", arrays, causal=True, query_offset=keys - 2, window=(9, 0))


def hidden(dtype):
    arrays = operands(2, 40, 8, 64, dtype=dtype)
    arrays[2][3] = np.nan
    return arrays


FORCED = {
    **{name: attend(name, row[0], **row[1], return_lse=True) for name, row in TABLE.items()},
    **{name: row[0] for name, row in RAGGED_AND_CACHES.items()},
    **{f"late, {keys}": _late(keys) for keys in (7, 15, 17, 515, 530)},
    "hidden NaN": attend("hidden NaN", hidden(F32), mask=np.arange(40) != 3),
    "hidden NaN of halves": attend("hidden NaN", hidden(F16), mask=np.arange(40) != 3),
    "hidden NaN of pairs": attend("hidden NaN", hidden(BF16), mask=np.arange(40) != 3),
    "scored again": attend(
        "scored again", [np.float32([[3e38, 1e-45, 0, 0]]), *operands(1, 40, 4, 16)[1:]],
        scale=0.125,
    ),
}  # fmt: skip


def gone_otherwise(case):
    """What a case gives the chosen way, and then every other one."""
    with ways() as gone:
        expected = calls.results(case.call)
    for chosen in dict.fromkeys(gone):
        for other in others(chosen):
            with ways(lambda one, here=chosen, there=other: there if one == here else one):
                calls.assert_same(calls.results(case.call), expected, f"{case.name}: {other}")


@pytest.mark.parametrize("name", FORCED)
def test_every_way_gives_the_same_bits(exact_backend, name):
    case = FORCED[name]
    with case.settings():
        gone_otherwise(case)


@pytest.mark.parametrize("name", FORCED)
def test_every_way_finds_its_scratch(plain, name):
    case = FORCED[name]
    with case.settings(), on_plain_kernels(plain):
        gone_otherwise(case)
