"""Small calls of attention: every option, and every way that its kernels take.

Small storage, caches, pairs of bfloat16 and ragged calls stand in `storage_cases`.
"""

from collections.abc import Iterator

import numpy as np
import strategies

import fastattn

from .case import (
    BF16,
    BOTH,
    F16,
    F32,
    F64,
    NARROW,
    WIDE,
    Case,
    attend,
    draw,
    operands,
    spilling,
)  # fmt: skip


def _options() -> Iterator[Case]:
    """Every feature that the conformance tests know, alone."""
    sizes = {"batch": (1, 2), "rows": 5, "keys": 35, "features": 9, "value_features": 20}
    for name in strategies.FEATURES:
        one = strategies.case((name,), seed=1, **sizes)
        yield Case(
            f"attention, {name}",
            lambda c=one: fastattn.attention(*c.arrays, **c.options, **BOTH),
            widens=name == BF16,
        )


def _shapes() -> Iterator[Case]:
    """Blocks, segments, tiles of every width, and rows that keys are read for in place."""
    for rows, keys, features, columns in (
        (50, 70, 8, 48), (25, 530, 5, 16), (4, 64, 9, 64), (8, 20, 9, 20), (1, 70, 9, 70),
        (7, 48, 9, 48), (3, 40, 8, 5), (1, 21, 1028, 4), (2, 17, 1030, 3), (1, 5, 8, 16),
        (2, 515, 4, 16),
    ):  # fmt: skip
        arrays = operands(rows, keys, features, columns)
        name = f"{rows} rows, {keys} keys, {features} and {columns} features"
        yield attend(name, arrays)
        if keys < 100:
            yield attend(f"{name}, narrow tiles", arrays, within=NARROW)
        if features < 100 and keys < 100:
            yield attend(f"{name}, {F64}", [x.astype(F64) for x in arrays], within=WIDE)
    long = operands(2, 1100, 4, 4)
    yield attend("split keys", long, threads=2, return_lse=True, sinks=0.5)
    yield attend("two workers", operands(30, 40, 8, batch=(2, 3)), threads=2, causal="top_left")
    yield attend("causal, several blocks", operands(60, 60, 4), causal=True, window=(20, 0))
    rows_apart = np.ascontiguousarray(draw(1, (40, 3, 8)).swapaxes(0, 1)).swapaxes(0, 1)[:, 1]
    apart = operands(1, 40, 8)
    # The last rows see a segment that the first do not.
    deep = operands(50, 530, 2)
    yield attend("causal, several segments", deep, causal=True, query_offset=480)
    yield attend("rows in tasks", operands(60, 40, 4), threads=2, causal="bottom_right")
    yield attend("two entries", operands(26, 140, 4, 16, batch=(2,)))
    grouped = [draw(1, (4, 30, 4)), draw(2, (1, 9, 4)), draw(3, (1, 9, 4))]
    yield attend("grouped heads in tasks", grouped, threads=2, enable_gqa=True)
    yield attend("window of one row", operands(1, 64, 9), query_offset=63, window=(20, None))
    yield attend("of one array", operands(5, 5, 4)[:1] * 3)
    split = operands(2, 1100, 4)
    yield attend("split keys, causal", split, threads=2, causal=True, query_offset=511)
    yield attend(
        "split keys, causal, lse", split, threads=2, causal=True, query_offset=511, return_lse=True
    )
    few = operands(6, 40, 8, 64)
    yield attend("values in place of six rows", few)
    for dtype in (F32, F16):
        out = np.empty((6, 128), dtype)[:, ::2]
        yield attend(f"strided out, {dtype}", [x.astype(dtype) for x in few], out=out)
    yield attend("very wide", operands(2, 17, 2070, 3))
    yield attend("very wide, in place", operands(2, 17, 2072, 3))
    wide = operands(2, 17, 1028, 4)
    wide[1] = draw(1, (17, 1032))[:, :1028]
    yield attend("wide keys in rows apart", wide)
    yield attend("keys in rows apart", [apart[0], draw(1, (40, 3, 8))[:, 1], rows_apart])
    late = operands(4, 600, 8, 16)
    yield attend("causal rows of a late segment", late, causal=True, query_offset=590)


def _values() -> Iterator[Case]:
    """Values in every layout; hidden ones that are not finite."""
    query, key, value = operands(6, 140, 5, 40)
    hidden = np.random.default_rng(3).random((6, 140)) < 0.5
    hidden[:, 0], hidden[2] = False, False
    broken = value.copy()
    broken[0, 3], broken[5] = np.nan, np.inf
    mask = ~hidden
    mask[:, [0, 5]] = False
    for name, change in (
        ("", lambda x: x), ("transposed", lambda x: np.asfortranarray(x)),
        ("backwards", lambda x: np.ascontiguousarray(x[:, ::-1])[:, ::-1]),
        ("of sixteens", lambda x: np.ascontiguousarray(x[:, :32])),
        ("swapped", lambda x: x.astype(">f4")),
    ):  # fmt: skip
        keys = 35 if name else 140
        some = query, key[:keys], change(broken[:keys])
        yield attend(f"hidden NaN, values {name}", some, mask=mask[:, :keys])
        yield attend(f"values {name}", (*some[:2], change(value[:keys])), return_lse=True)
    many = operands(26, 20, 5, 20)
    many[2][0] = np.nan
    seen = np.arange(20) > 0
    yield attend("hidden NaN of many rows", many, mask=seen)
    few = [query[:3], key[:33], broken[:33]]
    yield attend("visible NaN", few, mask=np.arange(33) > 0)
    query[1, 2], key[7, 1] = np.nan, np.inf
    yield attend("NaN and inf in scores", (query, key, value), **BOTH)
    bias = np.where(hidden, -np.inf, np.finfo(F64).min)
    yield attend("biases beyond float32", (query, key, value), mask=bias, **BOTH)
    bias[0, 3] = np.inf
    yield attend("infinite bias", (query, key, value), mask=bias, **BOTH)


def _scales() -> Iterator[Case]:
    """Powers of two that a query cannot take, or no operand can."""
    for dtype, tiny, huge in ((F32, 3e-45, 3e38), (F64, 5e-324, 1e308)):
        query, key, value = operands(5, 35, 5, 4, dtype=dtype)
        query[::2, 0], key[1::2, 1], query[3, 2] = 3 * tiny, huge, huge
        for scale in (0.25, 2.0**20, -0.3):
            for softcap in (None, 2.0):
                name = f"{dtype}, scale {scale}, cap {softcap}"
                arrays = query, key, value
                yield attend(name, arrays, scale=scale, softcap=softcap, return_lse=True)
        for rows, keys in ((2, 40), (30, 70)):
            large = spilling(operands(rows, keys, 4, 4, dtype=dtype))
            for softcap in (None, 2.0):
                name = f"{dtype}, {rows} rows that spill, cap {softcap}"
                yield attend(name, large, similarity="dot", scale=2.0, softcap=softcap)
        many = np.repeat(query, 6, axis=0)
        yield attend(f"{dtype}, many rows scored again", (many, key, value), scale=2.0**-3)
        for scale in (3e-300, 1e300, 7.0):
            yield attend(
                f"{dtype}, distances, scale {scale}", (query, key, value), similarity="euclidean",
                scale=scale,
            )  # fmt: skip
    wide = operands(2, 17, 1030, 4)
    wide[0][:, 5] = 3e-45
    yield attend("wide rows scored again", wide, scale=0.125)
    one = spilling(operands(2, 140, 4, 4))
    one[1][1:, :2] = 0
    yield attend("one panel of three that spills", one, similarity="dot", scale=2.0)
    yield attend("wide rows that spill", spilling(wide, 3), similarity="dot", scale=12.0)
    ordinary = operands(30, 70, 5)
    yield attend("many ordinary rows", ordinary, scale=3.0)
    yield attend("many ordinary rows, causal", ordinary, scale=3.0, causal="top_left")
    yield attend("wide cosines", wide, similarity="cosine")
    yield attend("wide distances", wide, similarity="euclidean", scale=1e-3)
    heads = operands(4, 20, 5, batch=(3,))
    scales = np.array([0.3, -2.0, 0.0])
    yield attend("a scale per head", heads, scale=scales, **BOTH)
    grouped = [heads[0], heads[1][:1], heads[2][:1]]
    yield attend("a scale per grouped head", grouped, scale=scales, enable_gqa=True)


def _numbers_of_heads() -> Iterator[Case]:
    """Slopes and sinks of each head, over segments; what a mask hides; cosines at their ends."""
    heads, shared = operands(3, 600, 4, batch=(4,)), operands(3, 600, 4, batch=(1,), seed=9)
    grouped = [heads[0], *shared[1:]]
    own = {"alibi_slopes": [0.02, 0.3, -0.1, 0.0], "sinks": [0.5, -2.0, 3.0, 0.0]}
    yield attend("numbers of grouped heads", grouped, enable_gqa=True, **own, **BOTH)
    query, key, value = operands(4, 40, 5)
    key[3] = np.nan
    bias = np.where(np.arange(40) == 3, -np.inf, 0.25)
    yield attend("a bias that hides NaN", (query, key, value), mask=bias)
    alike = draw(3, (70, 3))
    for scale in (1.0, -30.0):
        yield attend(
            f"cosines of a set with itself, {scale}", [alike] * 3, similarity="cosine", scale=scale,
            return_lse=True,
        )  # fmt: skip
    parts = operands(4, 530, 4, batch=(3,))

    def state_of_each_scale():
        first, second = (
            fastattn.attention_state(
                parts[0], parts[1][:, part], parts[2][:, part], scale=[0.3, -2.0, 1.0],
                key_start=part.start,
            )
            for part in (slice(0, 512), slice(512, 530))
        )  # fmt: skip
        return first.merge(second).finish(return_lse=True)

    yield Case("states, a scale per head", state_of_each_scale)


def _documents() -> Iterator[Case]:
    ids = np.repeat(np.arange(6), 50)
    query, key, value = operands(30, 300, 4, 4)
    for name, own in (("first", ids[:30]), ("middle", ids[120:150]), ("none", ids[:30] + 90)):
        yield attend(
            f"documents, {name}", (query, key, value), query_segments=own, key_segments=ids,
            causal=True, query_offset=270, sinks=-1.0,
        )  # fmt: skip
    yield attend(
        "documents of rows before the first key", (query, key, value), query_segments=ids[:30],
        key_segments=ids, causal=True, query_offset=-3,
    )  # fmt: skip
    heads = [np.stack([x, x]) for x in (query[:3], key[:33], value[:33])]
    yield attend(
        "documents per head", heads, query_segments=np.zeros((2, 3), int),
        key_segments=np.arange(66).reshape(2, 33) % 2, **BOTH,
    )  # fmt: skip


def _tiles() -> Iterator[Case]:
    """Masks that hide, show or mix whole panels: what is skipped before, between and behind."""
    query, key, value = operands(30, 300, 4, 16)
    rng = np.random.default_rng(5)
    mask = np.zeros((30, 300), bool)
    mask[:, 100:128], mask[:, 200:240] = True, rng.random((30, 40)) < 0.5
    mask[5], mask[24:, :130] = False, False
    bias = np.where(mask, np.float32(0), np.float32(-np.inf))
    bias[:, 210:220] += draw(8, (30, 10))
    for name, one in (
        ("bool", mask), ("bias", bias), ("bias of float64", bias.astype(F64)),
        ("bias of halves", bias.astype(F16)), ("columns", np.asfortranarray(mask)),
        ("biased columns", np.asfortranarray(bias)),
    ):  # fmt: skip
        yield attend(f"tiles, {name}", (query, key, value), mask=one, **BOTH)
    yield attend("tiles, causal", (query, key, value), mask=mask, causal=True, query_offset=215)
    broken = value.copy()
    broken[130:140], broken[90], broken[205] = np.nan, np.inf, np.nan
    yield attend("tiles, values not finite", (query, key, broken), mask=mask)
    swapped = broken.astype(">f4")
    yield attend("tiles, values swapped", (query, key, swapped), mask=mask, softcap=2.0)
    # Scores of the last keys are written from the hidden panel on that is before them.
    few = [x[:n] for x, n in zip((query, key, value), (3, 197, 197), strict=True)]
    ends = np.isin(np.arange(197) // 64, (0, 3))
    yield attend("tiles, few rows", few, mask=ends, **BOTH)
    yield attend("tiles, few spilling rows", spilling(few), mask=ends, similarity="dot", scale=2.0)
    heads = [draw(1, (4, 3, 4)), key[None], value[None]]
    padding = np.arange(300) < np.array([300, 70, 0, 16])[:, None, None]
    yield attend("tiles, padding of grouped heads", heads, mask=padding, enable_gqa=True, **BOTH)
    numbers = np.where(np.arange(70) // 16 == 2, draw(9, (30, 70)), np.float32(0))
    short = query, key[:70], value[:70]
    yield attend("tiles, numbers among zeros", short, mask=numbers)
    yield attend("tiles, numbers among zeros by columns", short, mask=np.asfortranarray(numbers))
    apart = np.arange(150) // 16 % 3 > 0
    apart[[20, 60]] = False
    yield attend("tiles, two stretches", (query, key[:150], value[:150]), mask=apart)
    yield attend("tiles, hidden rows", (query, key, value), mask=np.arange(30)[:, None] < 20)
    long = operands(2, 1100, 4)
    late = np.arange(1100) // 64 == 16
    yield attend("tiles, split keys", long, threads=2, mask=late, return_lse=True)
    ids = np.repeat(np.arange(6), 50)
    yield attend(
        "tiles, documents", (query, key, value), mask=mask, query_segments=ids[60:90],
        key_segments=ids, **BOTH,
    )  # fmt: skip


def _states() -> Iterator[Case]:
    query, key, value = operands(3, 1100, 4, 5)

    def merged(*borders, **options):
        parts = [
            fastattn.attention_state(
                query, key[first:stop], value[first:stop], key_start=first, **options
            )
            for first, stop in zip((0, *borders), (*borders, len(key)), strict=True)
        ]
        return parts

    def left_to_right():
        first, *others = merged(512, 1024, alibi_slopes=0.01)
        for other in others:
            first = first.merge(other)
        return first.finish(return_lse=True, sinks=0.5)

    def right_first():
        first, *others = merged(512, 1024)
        return [first.merge(others[0].merge(others[1])).finish(return_lse=True), first.finish()]

    yield Case("states, merged from the left", left_to_right)
    yield Case("states, merged from the right", right_first)
    outputs, lses = draw(1, (3, 4, 5)), draw(2, (3, 4))
    yield Case("merge_states, of results", lambda: fastattn.merge_states(outputs, lses))


GROUPS = (
    _options, _shapes, _values, _scales, _numbers_of_heads, _documents, _tiles, _states,
)  # fmt: skip
