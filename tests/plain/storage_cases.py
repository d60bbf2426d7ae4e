"""Small calls of attention on halves, int8, pages, pairs of bfloat16, and ragged ones."""

from collections.abc import Iterator

import numpy as np
import ragged
import strategies

import fastattn

from .case import BF16, BOTH, F16, F32, F64, Case, attend, draw, operands, spilling


def _small_storage() -> Iterator[Case]:
    """Few rows that read halves where they lie, and more that stage them."""
    for dtype in (F16, BF16):
        for rows, keys, features, columns in (
            (1, 70, 8, 64), (3, 33, 24, 64), (2, 40, 7, 9), (30, 70, 16, 20), (1, 33, 1032, 4),
        ):  # fmt: skip
            arrays = operands(rows, keys, features, columns, dtype=dtype)
            name = f"{dtype}, {rows} rows, {keys} keys, {features} and {columns} features"
            yield attend(name, arrays, widens=True, return_lse=True)
    swapped = [x.astype(x.dtype.newbyteorder()) for x in operands(2, 20, 8, 64, dtype=F16)]
    yield attend("swapped float16", swapped)
    wider = [draw(n, (33, 2 * n), F16)[:, :n] for n in (8, 64)]
    yield attend("halves in rows apart", [draw(1, (1, 8), F16), *wider])
    wide = operands(1, 33, 1032, 4, dtype=F16)
    wide[1] = draw(1, (33, 1040), F16)[:, :1032]
    yield attend("wide halves in rows apart", wide)
    yield attend("halves of several lines", operands(30, 33, 40, 20, dtype=F16))
    whole = [np.random.default_rng(n).integers(-9, 9, (n, 20)).astype(np.int8) for n in (3, 9, 9)]
    yield attend("int8 operands", whole)
    hidden = operands(1, 70, 8, 64, dtype=F16)
    hidden[2][3] = np.nan
    mask = np.arange(70) != 3
    yield attend("hidden NaN of halves", hidden, mask=mask)


def _cache(storage, rows, lengths, features, columns, widens=False, dropped=None, **options):
    def attend():
        batch = len(lengths)
        cache = fastattn.KVCache(
            batch, 1, features, dtype=strategies.dtype_of(storage), value_dim=columns
        )
        dtype = F32 if storage == "int8" else storage
        new = [draw(n, (batch, 1, max(lengths), n), dtype) for n in (features, columns)]
        cache.append(*new, lengths=np.array(lengths))
        query = draw(3, (batch, 1, rows, features), dtype)
        if dropped is not None:
            cache.drop_before(dropped)
        found = [cache.attend(query, **options)]
        cache.append(*(x[:, :, :1] for x in new))
        return [*found, cache.attend(query, **options)]

    name = f"cache, {storage}, {rows} rows, {lengths}, {features} and {columns} {options or ''}"
    name += f", {dropped} dropped" * (dropped is not None)
    name = name if widens or storage != BF16 else f"pairs, {name}"
    return Case(name, attend, widens=widens)


def _caches() -> Iterator[Case]:
    for storage in (F32, F16, BF16, "int8"):
        for rows, lengths, features, columns in (
            (1, (140, 3), 16, 64), (1, (130,), 20, 16), (2, (145,), 8, 5), (30, (130,), 16, 20),
        ):  # fmt: skip
            yield _cache(storage, rows, lengths, features, columns, widens=True)
    yield _cache(F64, 2, (140, 20), 8, 5, return_lse=True)
    yield _cache(F32, 30, (20, 20), 4, 16)
    yield _cache("int8", 2, (40,), 16, 64, alibi_slopes=0.1, sinks=0.2)
    yield _cache(F32, 1, (20,), 8, 16, window=(5, 0))
    # Pages that were given back have no memory.
    for storage, rows in ((F32, 1), (F32, 30), (F16, 2), ("int8", 1)):
        options = {"dropped": [140, 0], "window": (30 - rows, 0)}
        yield _cache(storage, rows, (160, 160), 8, 16, widens=True, **options)
    # The last key is the first of a page that lies elsewhere.
    yield _cache(F32, 1, (128,), 8, 16)


def _pairs() -> Iterator[Case]:
    """bfloat16 multiplied as it is."""
    for rows, keys, features, columns in (
        (1, 70, 8, 64), (3, 33, 24, 64), (2, 41, 7, 9), (30, 140, 16, 20), (1, 33, 2064, 4),
        (5, 35, 9, 80), (2, 39, 32, 64),
    ):  # fmt: skip
        arrays = operands(rows, keys, features, columns, dtype=BF16)
        name = f"pairs, {rows} rows, {keys} keys, {features} and {columns} features"
        yield attend(name, arrays, return_lse=True)
        yield attend(f"{name}, weights", arrays, causal="bottom_right", scale=0.3, **BOTH)
    odd = operands(5, 41, 10, 20, dtype=BF16)
    odd[0][::2, 0] = 3e-38
    for scale in (0.125, 2.0**30, 0.0):
        yield attend(f"pairs, scale {scale}", odd, scale=scale)
        yield attend(
            f"pairs, scale {scale}, many", [np.repeat(odd[0], 6, 0), *odd[1:]], scale=scale
        )
    for rows in (2, 30):
        large = spilling(operands(rows, 70, 8, 20, dtype=BF16))
        yield attend(f"pairs, {rows} rows that spill", large, similarity="dot", scale=2.0)
    # Each head is a block, and the second sees but one panel.
    query = draw(3, (3, 24, 4), BF16)
    query[1, :, 0] = 3e-38
    heads = [query, *operands(1, 140, 4, batch=(1,), dtype=BF16)[1:]]
    yield attend(
        "pairs, panels in the place of others", heads, scale=0.125, enable_gqa=True,
        key_lengths=np.array([140, 64, 140]),
    )  # fmt: skip
    for columns in (20, 64):
        hidden = operands(2, 41, 8, columns, dtype=BF16)
        hidden[2][[3, 4, 40]] = np.inf
        mask = np.ones((2, 41), bool)
        mask[:, [3, 4, 40]], mask[1] = False, False
        yield attend(f"pairs, hidden inf, {columns}", hidden, mask=mask)
    yield attend("pairs, two entries", operands(26, 40, 8, 20, batch=(2,), dtype=BF16))
    many = operands(26, 21, 8, 20, dtype=BF16)
    many[2][1] = np.nan
    mask = np.arange(21) != 1
    yield attend("pairs, hidden NaN of many rows", many, mask=mask)
    turned = [np.asfortranarray(x) for x in operands(3, 20, 6, 5, dtype=BF16)]
    yield attend("pairs, transposed", turned)
    swapped = [x.astype(x.dtype.newbyteorder()) for x in operands(3, 20, 6, 18, dtype=BF16)]
    yield attend("pairs, swapped", swapped)
    yield _cache(BF16, 1, (140, 3), 16, 64)
    yield _cache(BF16, 6, (135,), 10, 20)
    yield _cache(BF16, 2, (131,), 7, 5)


def _varlen() -> Iterator[Case]:
    lengths = [(2, 17), (0, 5), (1, 0), (3, 40), (7, 70), (1, 1), (2, 9), (1, 130)]
    for dtype, index in (
        (F32, None),
        (F32, np.int32),
        (F64, np.int64),
        (BF16, np.int32),
        (F16, None),
    ):
        made = ragged.Ragged(np.random.default_rng(4), 4, lengths, heads=2, key_heads=1, features=6)
        made.options["enable_gqa"] = True
        made.value_features, made.index_dtype = 20, index
        made.dtypes = (strategies.dtype_of(dtype),) * 3
        made.build()
        for threads in (1, 2):
            yield Case(
                f"varlen, {dtype}, indices {index and index.__name__}, {threads} workers",
                lambda m=made: fastattn.attention_varlen(
                    *m.arguments, **m.options, return_lse=True
                ),
                threads=threads,
            )
    for dtype, features in ((F32, 4), (BF16, 40)):
        many = ragged.Ragged(np.random.default_rng(8), 8, [(30, 9), (2, 20)], heads=1, key_heads=1)
        many.features, many.dtypes = features, (strategies.dtype_of(dtype),) * 3
        many.index_dtype = np.int64 if dtype == BF16 else None
        many.build()
        yield Case(
            f"varlen, many rows, {dtype}",
            lambda m=many: fastattn.attention_varlen(*m.arguments, **m.options),
        )
    columns = ragged.Ragged(
        np.random.default_rng(9), 9, [(3, 9), (2, 20)], heads=None, key_heads=None
    )
    columns.index_dtype, columns.layouts = np.int32, ("contiguous", "fortran", "fortran")
    columns.build()
    yield Case(
        "varlen, tables of columns",
        lambda: fastattn.attention_varlen(*columns.arguments, **columns.options),
    )
    made = ragged.Ragged(np.random.default_rng(5), 5, lengths, heads=None, key_heads=None).build()
    rows, keys = (int(splits[-1]) for splits in made.splits)
    options = {
        "causal": "bottom_right", "alibi_slopes": 0.1, "softcap": 3.0, "window": (9, None),
        "query_segments": np.arange(rows) % 2, "key_segments": np.arange(keys) // 3 % 2,
    }  # fmt: skip
    yield Case("varlen, options", lambda: fastattn.attention_varlen(*made.arguments, **options))
    offsets = np.arange(len(lengths))
    yield Case(
        "varlen, offsets",
        lambda: fastattn.attention_varlen(*made.arguments, causal=True, query_offset=offsets),
    )
    long = ragged.Ragged(np.random.default_rng(6), 6, [(1, 600), (2, 1100)], features=4).build()
    yield Case("varlen, long", lambda: fastattn.attention_varlen(*long.arguments), threads=2)


def _tiles() -> Iterator[Case]:
    """Panels that a mask hides between others, of halves and of pairs, in every way of values."""
    seen = np.isin(np.arange(200) // 64, (0, 2))
    for rows, columns in ((3, 64), (3, 20), (30, 20)):
        for dtype, widens in ((F16, False), (BF16, True), (BF16, False)):
            arrays = operands(rows, 200, 8, columns, dtype=dtype)
            arrays[2][70:75] = np.nan
            name = f"tiles, {dtype}, {rows} rows, {columns} columns"
            name = name if dtype == F16 or widens else f"pairs, {name}"
            yield attend(name, arrays, widens=widens, mask=seen)


GROUPS = (_small_storage, _caches, _pairs, _varlen, _tiles)
