"""README's table of determinism, cell by cell: what it says is the same has the same bits.

Each row of the table names subjects: calls on arrays (batch, rows, ...) and others. `test_bits.py`
and its kin go deeper, into every option and shape; here every promise is kept once, as it is made.
"""

import hashlib
import itertools
import os
import re
from contextlib import contextmanager

import children
import numpy as np
import oracle
import pytest
import strategies
from conftest import EXACT, HERE
from places import ROOT

import fastattn

README = (ROOT / "README.md").read_text(encoding="utf-8")
LAYOUTS = ("negative", "strided", "fortran", "unaligned", "byteswapped")
CHANGES = ["batch", "other rows", "threads", "parts, chunks", "layout", "CPU", "backend"]
BATCH, ROWS, KEYS, FEATURES = 3, 40, 1100, 24


def _ragged(query, key, value):
    sequences = [x.reshape(-1, x.shape[-1]) for x in (query, key, value)]
    splits = [np.arange(len(x) + 1) * x.shape[1] for x in (query, key)]
    return fastattn.attention_varlen(*sequences, *splits).reshape(*query.shape[:-1], -1)


def _cached(query, key, value, portions=((0, KEYS),)):
    cache = fastattn.KVCache(len(key), 1, FEATURES, dtype=key.dtype)
    for first, stop in portions:
        cache.append(key[:, None, first:stop], value[:, None, first:stop])
    return cache.attend(query[:, None], causal=False)[:, 0]


def _in_parts(query, key, value, borders=(0, 512, 1024, KEYS)):
    states = [
        fastattn.attention_state(query, key[:, a:b], value[:, a:b], key_start=a)
        for a, b in itertools.pairwise(borders)
    ]
    return states[0].merge(states[1]).merge(states[2]).finish()


def _module(query, key):
    dtype = query.dtype.newbyteorder("=")
    module = fastattn.MultiHeadAttention(FEATURES, 4, dtype=dtype, seed=0)
    return module(query, key)


def _allocation(query, key, value):
    result = fastattn.attention_allocation(query, key, value, budget=9, unit=1, upper=2)
    return np.concatenate([result.weights, result.allocation, result.output], axis=-1)


def _merged(outputs, lses):
    return fastattn.merge_states(*(np.moveaxis(x, 2, 0) for x in (outputs, lses)))


def _linear(x):
    rng = np.random.default_rng(0)
    weight, bias = (rng.standard_normal(n).astype(x.dtype) for n in ((70, FEATURES), 70))
    packed = fastattn.pack_linear(weight)
    return fastattn.linear(x, weight, bias), fastattn.linear(x, packed, bias)


SIZES = {"query": (BATCH, ROWS, FEATURES), "key": (BATCH, KEYS, FEATURES)}
QKV = (SIZES["query"], SIZES["key"], SIZES["key"])
SCORES, BUDGET = (BATCH, ROWS, KEYS), (BATCH, ROWS)
ATTENTION = {
    "attention": (lambda *x: fastattn.attention(*x), QKV),
    "attention_varlen": (_ragged, QKV),
    "KVCache": (_cached, QKV),
}
FLOATS = ("float64", "float32", "float16")
ALL_FLOATS = (*FLOATS, "bfloat16")
# By rows of the table: the dtypes, and calls with the shapes of their arrays, of which those of
# ROWS rows are split.
TABLE = {
    "attention: float64, float32, float16": (FLOATS, ATTENTION),
    "attention: bfloat16": (("bfloat16",), ATTENTION),
    "`MultiHeadAttention`": (
        ALL_FLOATS,
        {"MultiHeadAttention": (_module, QKV[:2])},
    ),
    "`similarity`, `softmax`, `log_softmax`, `logsumexp`, `fuse`, `linear`": (
        ALL_FLOATS,
        {
            "similarity": (lambda *x: fastattn.similarity(*x), QKV[:2]),
            "distances": (lambda *x: fastattn.similarity(*x, metric="euclidean"), QKV[:2]),
            "softmax": (lambda x: fastattn.softmax(x), (SCORES,)),
            "log_softmax": (lambda x: fastattn.log_softmax(x), (SCORES,)),
            "logsumexp": (lambda x: fastattn.logsumexp(x), (SCORES,)),
            "fuse": (lambda *x: fastattn.fuse(*x), (SCORES, SIZES["key"])),
            "linear": (_linear, (SIZES["query"],)),
        },
    ),
    "`allocate`, `attention_allocation`": (
        ALL_FLOATS,
        {
            "allocate": (lambda w, b: fastattn.allocate(abs(w), 9 + abs(b)), (SCORES, BUDGET)),
            "attention_allocation": (_allocation, QKV),
        },
    ),
    "`allocate_shared`": (
        ("float64",),
        {
            "allocate_shared": (
                lambda w, b, c: fastattn.allocate_shared(abs(w), abs(b), abs(c)).allocation,
                ((ROWS, 30), (ROWS,), (30,)),
            )
        },
    ),
    "`merge_states`": (
        ALL_FLOATS,
        {"merge_states": (_merged, ((BATCH, ROWS, 4, FEATURES), (BATCH, ROWS, 4)))},
    ),
}


def drawn(shapes, dtype):
    rng = np.random.default_rng(len(shapes))
    return [rng.standard_normal(shape).astype(strategies.dtype_of(dtype)) for shape in shapes]


def results(call, arrays):
    found = call(*arrays)
    return found if isinstance(found, tuple) else (found,)


@contextmanager
def on_threads(count):
    fastattn.set_threads(count)
    try:
        yield
    finally:
        fastattn.set_threads(None)


def others(change, call, arrays, shapes):
    """Do a call changed in some ways; yield its results, and where they lie in the first ones."""
    whole = (Ellipsis,)
    if change == "batch":
        for part in (slice(1, 2), slice(1, 3)):
            yield results(call, [x[part] for x in arrays]), (part,)
    elif change == "other rows":
        for part in (slice(7, 8), slice(7, 31)):
            cut = [x[:, part] if s[1] == ROWS else x for x, s in zip(arrays, shapes, strict=True)]
            yield results(call, cut), (slice(None), part)
    elif change == "threads":
        for count in (1, 2, 64):
            with on_threads(count):
                yield results(call, arrays), whole
    elif change == "parts, chunks":
        yield (_in_parts(*arrays),), whole
        yield (_cached(*arrays, portions=((0, 1), (1, 700), (700, KEYS))),), whole
    elif change == "layout":
        small = any(x.dtype.name == "bfloat16" for x in arrays)  # has one byte order in NumPy
        for name in LAYOUTS[: len(LAYOUTS) - small]:
            yield results(call, [strategies.lay_out(x, name) for x in arrays]), whole
    elif change == "backend":
        for backend in EXACT:
            with fastattn.use_backend(backend):
                yield results(call, arrays), whole


def digest(dtypes, calls):
    """Digest all results of a row of the table, where zeros and NaN are alike."""
    found = hashlib.sha256()
    for dtype in dtypes:
        for call, shapes in calls.values():
            for result in results(call, drawn(shapes, dtype)):
                found.update((np.asarray(result, np.float64) + 0.0).tobytes())
    return found.hexdigest()


def cells():
    part = re.search("<!-- determinism -->(.*?)<!-- /determinism -->", README, re.S)[1]
    lines = [line.strip("| ").split(" | ") for line in part.strip().splitlines()]
    heads, _, *rows = lines
    assert heads == ["results", *CHANGES]
    assert [name for name, *_ in rows] == list(TABLE)
    return {
        (name, change): cell
        for name, *row in rows
        for change, cell in zip(CHANGES, row, strict=True)
    }


CELLS = cells()
PROMISED = [place for place, cell in CELLS.items() if cell == "same" and place[1] != "CPU"]


@pytest.mark.parametrize(("name", "change"), PROMISED)
def test_the_same_bits(name, change):
    if change == "backend" and len(EXACT) < 2:
        pytest.skip("one backend alone")
    dtypes, calls = TABLE[name]
    for dtype in dtypes:
        for told, (call, shapes) in calls.items():
            arrays = drawn(shapes, dtype)
            expected = results(call, arrays)
            compared = 0
            for found, where in others(change, call, arrays, shapes):
                for ours, theirs in zip(found, expected, strict=True):
                    oracle.assert_same_bits(ours, theirs[where], about=(told, dtype, change))
                    compared += 1
            assert compared > 1


@pytest.mark.skipif("cython" not in HERE, reason="levels are those of compiled kernels")
def test_the_same_bits_on_cpus_of_every_level():
    """Where bfloat16 is widened on all of them: the others of its bits are promised alike alone."""
    from fastattn._cython import _native

    code = (
        f"import sys; sys.path.append({os.path.dirname(__file__)!r})\n"
        "import test_determinism as t\n"
        "print(*(t.digest(*row) for row in t.TABLE.values()))"
    )
    digests = {
        children.run(
            code, FASTATTN_BACKEND="cython", FASTATTN_CYTHON_LEVEL=level, FASTATTN_BFLOAT16_DOT=0
        )
        for level in _native.supported_levels()
    }
    assert len(digests) == 1


def test_what_is_not_promised_says_so():
    no_parts = [name for name in TABLE if not name.startswith("attention:")]
    expected = {(name, "parts, chunks"): "-" for name in no_parts}
    expected |= {("`allocate_shared`", change): "-" for change in ("batch", "other rows")}
    expected |= {("attention: bfloat16", change): "alike" for change in ("CPU", "backend")}
    assert {place: cell for place, cell in CELLS.items() if cell != "same"} == expected
