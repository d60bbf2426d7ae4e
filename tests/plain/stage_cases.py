"""Small calls of similarity, softmax and its relatives, fuse and linear."""

from collections.abc import Iterator

import numpy as np
import strategies

import fastattn
from fastattn._core.constants import LINEAR_RUN
from fastattn._engine import linear

from .case import (
    BF16,
    F16,
    F32,
    F64,
    IN_CHUNKS,
    IN_PIECES,
    NARROW,
    STREAMED,
    Case,
    draw,
    operands,
    spilling,
)  # fmt: skip


def _similarity() -> Iterator[Case]:
    def compare(name, query, key, within=(), threads=1, **options):
        return Case(
            f"similarity, {name}", lambda: fastattn.similarity(query, key, **options),
            within=within, threads=threads,
        )  # fmt: skip

    for metric in ("dot", "scaled_dot", "cosine", "euclidean"):
        for dtype in (F32, F64, F16, BF16):
            query, key, _ = operands(7, 70, 9, batch=(2,), dtype=dtype)
            yield compare(f"{metric}, {dtype}", query, key, metric=metric)
    query, key, _ = operands(13, 96, 20)
    out = np.empty((96, 13), F32).T
    scales = np.array([0.3, -2.0])
    yield compare("scales", *operands(3, 9, 4, batch=(2,))[:2], metric="dot", scale=scales)
    yield compare("narrow tiles", query.astype(F64), key.astype(F64), within=NARROW, metric="dot")
    yield compare("turned", query, key, out=out, metric="dot")
    yield compare("streamed", query, key, within=STREAMED, metric="cosine", scale=3.0)
    yield compare("streamed, odd", query[:, :7], key[:80], within=STREAMED, metric="dot")
    yield compare("two workers", query, key, threads=2, metric="dot", scale=2.0**-140)
    large, small, _ = spilling(operands(7, 70, 9))
    yield compare("sums that spill", large, small, metric="dot", scale=2.0)
    yield compare("few sums that spill", large[:2], small, metric="dot", scale=-3.0)
    yield compare("scaled up", query, key, metric="dot", scale=2.0)
    query[::3, 0], key[::5, 1] = 3e-45, 3e38
    yield compare("scored again", query, key, metric="dot", scale=0.25)
    wide = operands(2, 17, 1030)
    yield compare("wide", *wide[:2], metric="dot")
    alike = draw(3, (70, 3))
    yield compare("cosines of a set with itself", alike, alike, metric="cosine")


_RELATIVES = fastattn.softmax, fastattn.log_softmax, fastattn.logsumexp


def _each(name, x, *arguments, within=(), threads=1, which=_RELATIVES, **options):
    for function in which:
        yield Case(
            f"{function.__name__}, {name}",
            lambda f=function: f(x, *arguments, **options),
            within=within,
            threads=threads,
        )


def _softmax() -> Iterator[Case]:
    rng = np.random.default_rng(8)
    seen = rng.random((20, 40)) < 0.7
    seen[1] = False
    bias = np.where(seen, rng.standard_normal((20, 40)), -np.inf)

    for dtype in (F32, F64, F16, BF16):
        x = draw(8, (20, 40), dtype)
        for axis in (-1, 0, None):
            yield from _each(f"{dtype}, axis {axis}", x, axis)
        yield from _each(f"{dtype}, bool mask", x, mask=seen, scale=-0.3)
        yield from _each(
            f"{dtype}, mask across", x, 0, mask=bias.astype(strategies.dtype_of(dtype))
        )
        yield from _each(f"{dtype}, own mask", x, mask=bias.astype(strategies.dtype_of(dtype)))
        broken = x.copy()
        broken[0, 3], broken[2, 5], broken[3], broken[4, 1] = np.nan, np.inf, -np.inf, -np.inf
        for axis in (-1, 0):
            yield from _each(f"{dtype}, axis {axis}, not finite", broken, axis)
            yield from _each(f"{dtype}, axis {axis}, not finite, masked", broken, axis, mask=seen)
    broken = draw(8, (20, 40))
    broken[0, 3], broken[2, 5], broken[3] = np.nan, np.inf, -np.inf
    yield from _each("biased, not finite", broken, mask=bias.astype(F32))
    x = draw(9, (3, 1100))
    x[0, 7] = 40
    x[1, :600] = x[1].max()
    x[2, 530:] = -np.inf
    for threads in (1, 2):
        yield from _each(f"in chunks, {threads}", x, within=IN_CHUNKS, threads=threads)
    short = x[:, :600].T.copy()
    yield from _each("in chunks, across", short, 0, within=IN_CHUNKS)
    broken = x.copy()
    broken[0, 600], broken[1, 3] = np.nan, np.inf
    yield from _each("in chunks, not finite", broken, within=IN_CHUNKS)
    broken = broken[:, :601].T.copy()
    yield from _each("in chunks, across, not finite", broken, 0, within=IN_CHUNKS)
    yield from _each("segments", x)
    yield from _each("segments, across", short, 0)


def _layouts_of_softmax() -> Iterator[Case]:
    """Past the caches, across lanes, rounded and turned."""
    few = draw(10, (35, 20))
    for name, result in (
        ("late", few), ("late, long", np.tile(few, (1, 7))), ("late, swapped", few.astype(">f4")),
        ("late, across", few.T), ("late, mask", few * 30),
    ):  # fmt: skip
        yield from _each(name, result, within=STREAMED, which=_RELATIVES[:2])
    bad = few.copy()
    bad[3, 4], bad[9], bad[20, 1] = np.nan, -np.inf, np.inf
    yield from _each("late, not finite", bad, within=STREAMED)
    yield from _each("late, long, not finite", np.tile(bad, (1, 7)), within=STREAMED)
    yield from _each("late, segments", draw(18, (4, 1101)), within=STREAMED)
    unaligned = np.empty(701, F32)[1:]
    yield Case(
        "softmax, late, unaligned",
        lambda: fastattn.softmax(few.T, 0, out=unaligned.reshape(20, 35)),
        within=STREAMED,
    )
    yield from _each("of whole lanes", draw(14, (40, 32)), 0)
    long = draw(15, (3, 140))
    apart = np.empty((3, 280), F32)[:, ::2]
    yield Case("softmax, long, strided out", lambda: fastattn.softmax(long, out=apart))
    halves = np.empty((20, 80), F16)[:, :40]
    yield Case(
        "softmax, halves in rows apart",
        lambda: fastattn.softmax(draw(16, (20, 40), F16), out=halves),
    )
    turned_halves = np.empty((20, 80), F16)[:, :40]
    columns = np.asfortranarray(draw(17, (20, 40), F16))
    yield Case(
        "softmax, columns to halves in rows apart",
        lambda: fastattn.softmax(columns, out=turned_halves),
    )
    wide = np.empty((35, 41), F32)[:, 1::2]
    yield Case("softmax, strided out", lambda: fastattn.softmax(few, out=wide))
    turned = np.empty((20, 35), F32).T
    yield Case("softmax, turned out", lambda: fastattn.softmax(few, out=turned))
    half = draw(11, (33, 20), F16)
    yield from _each("halves, turned", half.T, 0)
    yield from _each("halves, short", half[:, :5])
    yield from _each("halves, columns", np.asfortranarray(half))


def _logsumexp() -> Iterator[Case]:
    def each(name, x, b, **options):
        return Case(f"logsumexp, {name}", lambda: fastattn.logsumexp(x, b=b, **options))

    x, b = draw(12, (4, 40)), draw(13, (4, 40))
    b[0, :5], b[1] = 0, -abs(b[1])
    b[2] = 0
    for dtype in (F32, F64, F16, BF16):
        kind = strategies.dtype_of(dtype)
        for axis in (-1, 0):
            yield each(
                f"{dtype}, b, axis {axis}", x.astype(kind), b.astype(kind), axis=axis,
                return_sign=True,
            )  # fmt: skip
    yield each("b alone", abs(x), abs(b) + 1)
    odd = x.copy()
    odd[0, 1], odd[1, 2], odd[3, 4] = np.inf, np.nan, -np.inf
    yield each("b, not finite", odd, b, return_sign=True)
    huge = np.full((1, 600), 3e38, F32)
    yield each("b, of a large sum", huge * 0, huge, return_sign=True)
    yield each("b, infinite", np.array([[0.0, -1000.0]]), np.array([[1.0, np.inf]]))
    signs = np.array([[1.0, 2.0, 3.0], [-1.0, 2.0, 3.0], [-1.0, -2.0, 3.0]])
    yield each("b, infinite terms", np.array([0.0, np.inf, np.inf]), signs, return_sign=True)
    mask, unseen = draw(14, (4, 40)) > 0, b.copy()
    unseen[~mask] = np.nan
    yield each("b, masked", x, unseen, mask=mask, scale=-2.0, return_sign=True)
    near = np.zeros((3, 600))
    near[0, 0], near[1, :3], near[2] = -1e-17, np.log(1 / 3), -np.log(600)
    yield Case("logsumexp, near 0", lambda: fastattn.logsumexp(near))
    few = np.log(np.full((4, 7), 1 / 7))
    few[:, 5:] = -50, -np.inf
    yield Case("logsumexp, few equal ones near 0", lambda: fastattn.logsumexp(few))
    for dtype in (F32, F64):
        kind = np.dtype(dtype).type
        level = np.stack([draw(14, (3, 40), dtype) - kind(row) for row in (0, 5)])
        level -= np.log(np.exp(level).sum(axis=-1, keepdims=True))
        level[0, 0, 3] = -np.inf
        bias = draw(15, (3, 40), dtype)
        bias[0, :5] = -np.inf
        yield from _each(f"{dtype}, cancelled", level, which=_RELATIVES[2:])
        yield from _each(f"{dtype}, one cancelled", level[1, 1], which=_RELATIVES[2:])
        yield from _each(
            f"{dtype}, cancelled across", level, 1, mask=bias > -1, which=_RELATIVES[2:]
        )
        shown = np.arange(40) >= 0
        yield from _each(f"{dtype}, cancelled, shown", level, mask=shown, which=_RELATIVES[2:])
        for scale in (1.0, 0.3):
            moved = (level[1] - bias) / kind(scale)
            yield from _each(
                f"{dtype}, cancelled with scale {scale}", moved, scale=scale, mask=bias,
                which=_RELATIVES[2:],
            )  # fmt: skip
        for sign in (1, -1):
            yield each(
                f"{dtype}, cancelled, b {sign}", level[1], np.full(40, sign), return_sign=True
            )
        yield each(f"{dtype}, b that cancel", np.array([[0, 1e-6]], dtype), np.array([2, -1.0]))
        yield each(f"{dtype}, b of 0", level[1], np.arange(40) % 2 * 2)
    yield each(
        "b, of a subnormal sum", np.array([[0.0, 0.0, -744.0]]), np.array([[1.0, -1.0, 1.0]])
    )


def _long_rows_near_zero() -> Iterator[Case]:
    for dtype in (F32, F64):
        x = draw(19, (3, 1100), dtype)
        x[1:] -= np.log(np.exp(x[1:]).sum(axis=-1, keepdims=True))
        for name, scores, axis in (("pieces", x, 1), ("pieces across", x.T.copy(), 0)):
            yield from _each(
                f"{dtype}, cancelled in {name}", scores, axis, within=IN_PIECES,
                which=_RELATIVES[2:],
            )  # fmt: skip


def _fuse() -> Iterator[Case]:
    def each(name, weights, value, within=(), threads=1, **options):
        return Case(
            f"fuse, {name}", lambda: fastattn.fuse(weights, value, **options),
            within=within, threads=threads,
        )  # fmt: skip

    for dtype in (F32, F64, F16, BF16):
        for rows, keys, columns in ((7, 40, 20), (13, 30, 64)):
            weights, value = draw(1, (rows, keys), dtype), draw(2, (keys, columns), dtype)
            for reduce in (True, False):
                yield each(f"{dtype}, {rows}, {reduce}", weights, value, reduce=reduce)
    weights, value = draw(1, (12, 600)), draw(2, (600, 80))
    yield each("segments", weights, value)
    yield each("two workers", weights, value, threads=2)
    yield each("transposed", np.asfortranarray(weights[:, :30]), np.asfortranarray(value[:30]))
    out = np.empty((80, 12), F32).T
    yield each("turned", weights[:, :30], value[:30], out=out)
    far = np.empty((12, 1 << 16), F32)[:, :30]
    far[...] = weights[:, :30]
    yield each("rows far apart", far, value[:30])
    products = np.empty((12, 30, 2 * 20), F32)[..., ::2]
    yield each("strided products", weights[:, :30], value[:30, :20], reduce=False, out=products)


def _linear() -> Iterator[Case]:
    def each(name, x, weight, bias=None, within=(), threads=1, **options):
        held = {"": weight, ", packed": fastattn.pack_linear(weight)}
        for kind, one in held.items():
            yield Case(
                f"linear, {name}{kind}", lambda w=one: fastattn.linear(x, w, bias, **options),
                within=within, threads=threads,
            )  # fmt: skip

    for dtype in (F32, F64, F16, BF16):
        for rows, features, columns in ((1, 12, 70), (3, 20, 130), (7, 9, 65), (13, 70, 20)):
            x, weight = draw(1, (rows, features), dtype), draw(2, (columns, features), dtype)
            yield from each(f"{dtype}, {rows}", x, weight, draw(3, (columns,), dtype))
    x, weight, bias = draw(1, (14, 36)), draw(2, (150, 36)), draw(3, (150,))
    yield from each("no bias", x, weight)
    yield from each("no features", x[:, :0], weight[:, :0], bias)
    yield from each("two workers", x, weight, bias, threads=2)
    yield from each("mixed", x, weight.astype(F64), bias.astype(F16))
    yield from each("narrow tiles", x, weight, bias, within=NARROW)
    yield from each("turned", np.asfortranarray(x), np.asfortranarray(weight), bias[::-1])
    yield from each("strided result", x, weight, bias, out=np.empty((150, 14), F32).T)
    yield from each("rows apart", x.reshape(7, 2, 36)[:, ::-1], weight, bias)
    short = (linear, "_STRETCH", 16), (linear, "_PACKING_STRETCH", 16)
    yield from each("stretches", x, weight, bias, within=short)
    small = ((linear, "_TASK_ROWS", 6), (linear, "_PACKING_ROWS", 6), (linear, "_TASK_COLUMNS", 64))
    yield from each("tasks", x, weight, bias, within=small)
    for rows, columns in ((2, 70), (7, 5)):
        depth = LINEAR_RUN + 12
        wide = draw(4, (rows, depth)), draw(5, (columns, depth)), draw(6, (columns,))
        yield from each(f"runs, {rows}", *wide)


GROUPS = (
    _similarity, _softmax, _layouts_of_softmax, _logsumexp, _long_rows_near_zero, _fuse, _linear
)  # fmt: skip
