"""What an attention call can have: one function per feature, which draws it into a case.

`FEATURES` is the one list; conformance tests take every pair of it that one call can have.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from strategies import Case


def _option(name: str, value: Any) -> Callable[[Case], None]:
    def apply(c: Case) -> None:
        c.options[name] = value

    return apply


def _bool_mask(c: Case) -> None:
    c.options["mask"] = c.rng.random((*c.batch, c.rows, c.keys)) < 0.6


def _key_mask(c: Case) -> None:
    """One row for all queries, as padding masks have it."""
    c.options["mask"] = c.rng.random((c.batch[0], *[1] * len(c.batch), c.keys)) < 0.7


def _row_mask(c: Case) -> None:
    """One column for all keys: whole rows are hidden."""
    c.options["mask"] = c.rng.random((c.rows, 1)) < 0.5


def _float_mask(c: Case) -> None:
    dtype = np.float64 if c.dtypes[0] == np.float64 else np.float32
    c.options["mask"] = c.rng.normal(size=(c.rows, c.keys)).astype(dtype)


def _small_mask(c: Case) -> None:
    """A float16 mask, a fifth of it −inf."""
    mask = c.rng.normal(size=(c.batch[-1], c.rows, c.keys)).astype(np.float16)
    mask[c.rng.random(mask.shape) < 0.2] = -np.inf
    c.options["mask"] = mask


def _float_mask_hiding(c: Case) -> None:
    """float64 beside float32 inputs, laid out by columns, a third of it −inf."""
    mask = c.rng.normal(size=(*c.batch[:-1], 1, c.keys, c.rows))
    mask[c.rng.random(mask.shape) < 0.3] = -np.inf
    c.options["mask"] = mask.swapaxes(-1, -2)


def tiles(rng: np.random.Generator, rows: int, keys: int) -> np.ndarray:
    """0 and 1 in tiles all of one, and 2 in others, of 16 or 64 keys and some rows each."""
    size = int(rng.choice((5, 24))), int(rng.choice((16, 64, 128)))
    drawn = rng.choice(3, (rows // size[0] + 1, keys // size[1] + 1), p=(0.55, 0.3, 0.15))
    return drawn.repeat(size[0], 0).repeat(size[1], 1)[:rows, :keys]


def _tile_mask(c: Case) -> None:
    """Tiles of each head hidden, seen or mixed: panels to skip before, between, behind others."""
    heads = [tiles(c.rng, c.rows, c.keys) for _ in range(c.batch[-1])]
    mixed = c.rng.random((c.batch[-1], c.rows, c.keys)) < 0.5
    c.options["mask"] = np.where(np.array(heads) == 2, mixed, np.array(heads) == 1)


def _tile_bias(c: Case) -> None:
    """The same of floats, shared by the heads: −inf, 0, or any numbers in a tile."""
    state = tiles(c.rng, c.rows, c.keys)
    numbers = c.rng.normal(size=state.shape)
    dtype = np.float64 if c.dtypes[0] == np.float64 else np.float32
    c.options["mask"] = np.choose(state, (-np.inf, 0.0, numbers)).astype(dtype)


def _causal_offset(c: Case) -> None:
    c.options["causal"] = True
    c.options["query_offset"] = int(c.rng.integers(-3, c.keys + 1))


def _causal_offsets(c: Case) -> None:
    """An offset per batch element, shared by the heads."""
    shape = (*c.batch[:-1], 1)
    c.options["causal"] = True
    c.options["query_offset"] = c.rng.integers(-c.rows, c.keys + 3, shape)


def _causal_word(word: str) -> Callable[[Case], None]:
    def apply(c: Case) -> None:
        c.options["causal"] = word
        c.options.pop("query_offset", None)

    return apply


def _window(left: int | None, right: int | None) -> Callable[[Case], None]:
    def apply(c: Case) -> None:
        c.options["window"] = (left, right)
        if not isinstance(c.options.get("causal"), str):
            c.options.setdefault("query_offset", max(c.keys - c.rows, 0))

    return apply


def _wide(c: Case) -> None:
    """More features than a chain of them has, or a run of chains; little else, to be quick."""
    c.features = int(c.rng.choice((129, 272, 1030, 1040, 2064)))
    c.rows, c.keys = min(c.rows, 7), min(c.keys, 65)


def _key_length(c: Case) -> None:
    c.options["key_lengths"] = int(c.rng.integers(0, c.keys + 1))


def _key_lengths(c: Case) -> None:
    c.options["key_lengths"] = c.rng.integers(0, c.keys + 1, c.batch)


def _scales(c: Case) -> None:
    """A scale per head, one of them negative and one of them 0."""
    scales = c.rng.uniform(0.1, 0.9, (*[1] * (len(c.batch) - 1), c.batch[-1]))
    scales[..., 0] *= -1
    scales[..., c.batch[-1] // 2] = 0
    c.options["scale"] = scales


def _scales_of_each(c: Case) -> None:
    """A scale per batch element and head, powers of two of either sign among them."""
    scales = c.rng.normal(size=c.batch).astype(np.float32) / 2
    scales.flat[: min(3, scales.size)] = (0.25, -(2.0**-9), 1.0)[: scales.size]
    c.options["scale"] = scales


def _alibi(c: Case) -> None:
    """A slope per head, each half the one before."""
    c.options["alibi_slopes"] = 2.0 ** -np.arange(2, 2 + c.batch[-1])


def _alibi_at_offset(c: Case) -> None:
    """A slope per batch element and head, one of them negative; queries that do not begin at 0."""
    slopes = c.rng.random(c.batch).astype(np.float32) / 16
    slopes[..., -1:] *= -1
    c.options["alibi_slopes"] = slopes
    if not isinstance(c.options.get("causal"), str):
        c.options.setdefault("query_offset", int(c.rng.integers(-5, c.keys + 5)))


def _sinks(c: Case) -> None:
    c.options["sinks"] = c.rng.normal(size=c.batch[-1]).astype(np.float32)


def _sinks_of_each(c: Case) -> None:
    """A sink per batch element and head: far above the scores, far below them, and none."""
    sinks = c.rng.normal(size=c.batch)
    sinks.flat[: min(3, sinks.size)] = (30.0, -60.0, -np.inf)[: sinks.size]
    c.options["sinks"] = sinks


def _documents(c: Case) -> None:
    """Documents packed into one row: the same borders for queries and keys, shared by all."""
    for name, length in (("query_segments", c.rows), ("key_segments", c.keys)):
        c.options[name] = np.sort(c.rng.integers(0, 4, length)).astype(np.int32)


def _documents_of_each(c: Case) -> None:
    """Ids in any order per batch element, negative and huge ones among them."""
    ids = np.array([-(2**62), -1, 7, 2**40])
    shape = (*c.batch[:-1], 1)
    for name, length in (("query_segments", c.rows), ("key_segments", c.keys)):
        c.options[name] = c.rng.choice(ids, (*shape, length))


def _grouped(c: Case) -> None:
    c.options["enable_gqa"] = True
    c.key_heads = c.batch[-1] // 2


def _broadcast_keys(c: Case) -> None:
    """One set of keys for the whole batch (heads kept, so that it goes with grouped heads)."""
    c.key_batch = (1, *c.batch[1:])


def _dtypes(*dtypes: Any) -> Callable[[Case], None]:
    def apply(c: Case) -> None:
        c.dtypes = dtypes

    return apply


def _layouts(query: str, key: str, value: str) -> Callable[[Case], None]:
    def apply(c: Case) -> None:
        c.layouts = (query, key, value)

    return apply


def _size(**sizes: int) -> Callable[[Case], None]:
    def apply(c: Case) -> None:
        for name, size in sizes.items():
            setattr(c, name, size)

    return apply


# Two features more where NumPy knows the dtype.
BFLOAT16_SHAPING: dict[str, Callable[[Case], None]] = {}
if importlib.util.find_spec("ml_dtypes"):
    BFLOAT16_SHAPING = {
        "bfloat16": _dtypes("bfloat16", "bfloat16", "bfloat16"),
        "bfloat16_values": _dtypes(np.float16, np.float16, "bfloat16"),
    }

SHAPING: dict[str, Callable[[Case], None]] = {
    "one_row": _size(rows=1),
    "many_rows": _size(rows=97),
    "two_segments": _size(keys=700),
    "no_keys": _size(keys=0),
    "no_rows": _size(rows=0),
    "no_features": _size(features=0),
    "wide_values": _size(value_features=81),
    "wide": _wide,
    "subnormal": _size(subnormal=True),
    "grouped": _grouped,
    "broadcast_keys": _broadcast_keys,
    "float64": _dtypes(np.float64, np.float64, np.float64),
    "mixed": _dtypes(np.float32, np.float64, np.float32),
    "integers": _dtypes(np.int16, np.float32, np.uint8),
    "booleans": _dtypes(np.float32, np.float32, np.bool_),
    "float16": _dtypes(np.float16, np.float16, np.float16),
    "small_keys": _dtypes(np.float32, np.float16, np.float16),
    **BFLOAT16_SHAPING,
    "fortran_transposed": _layouts("fortran", "transposed", "negative"),
    "strided_unaligned": _layouts("strided", "unaligned", "heads_inside"),
    "byteswapped_broadcast": _layouts("byteswapped", "broadcast_first", "byteswapped"),
    "read_only_columns": _layouts("broadcast_rows", "read_only", "broadcast_columns"),
}

FEATURES: dict[str, Callable[[Case], None]] = {
    **SHAPING,
    "dot": _option("similarity", "dot"),
    "cosine": _option("similarity", "cosine"),
    "euclidean": _option("similarity", "euclidean"),
    "scale": _option("scale", 0.37),
    "negative_scale": _option("scale", -0.2),
    "zero_scale": _option("scale", 0.0),
    "scales": _scales,
    "scales_of_each": _scales_of_each,
    "bool_mask": _bool_mask,
    "key_mask": _key_mask,
    "row_mask": _row_mask,
    "float_mask": _float_mask,
    "float_mask_hiding": _float_mask_hiding,
    "causal_offset": _causal_offset,
    "causal_offsets": _causal_offsets,
    "causal_top_left": _causal_word("top_left"),
    "causal_bottom_right": _causal_word("bottom_right"),
    "window_left": _window(5, None),
    "window_right": _window(None, 3),
    "window_both": _window(70, 2),
    "key_length": _key_length,
    "key_lengths": _key_lengths,
    "softcap": _option("softcap", 1.5),
    "small_softcap": _option("softcap", 0.01),
    "alibi": _alibi,
    "alibi_at_offset": _alibi_at_offset,
    "sinks": _sinks,
    "sinks_of_each": _sinks_of_each,
    "documents": _documents,
    "documents_of_each": _documents_of_each,
    "small_mask": _small_mask,
    "tile_mask": _tile_mask,
    "tile_bias": _tile_bias,
}

# Features that set the same thing: of such a pair only one can be had.
EXCLUSIVE = (
    {"one_row", "many_rows", "no_rows"},
    {"two_segments", "no_keys"},
    {
        *("float64", "mixed", "integers", "booleans", "float16", "small_keys"),
        *BFLOAT16_SHAPING,
    },
    {"wide", "many_rows", "two_segments", "no_features"},
    {"fortran_transposed", "strided_unaligned", "byteswapped_broadcast", "read_only_columns"},
    {"dot", "cosine", "euclidean"},
    {"scale", "negative_scale", "zero_scale", "scales", "scales_of_each"},
    {
        *("bool_mask", "key_mask", "row_mask", "tile_mask"),
        *("float_mask", "float_mask_hiding", "small_mask", "tile_bias"),
    },
    {"causal_offset", "causal_offsets", "causal_top_left", "causal_bottom_right"},
    {"window_left", "window_right", "window_both"},
    {"key_length", "key_lengths"},
    {"softcap", "small_softcap"},
    {"alibi", "alibi_at_offset"},
    {"sinks", "sinks_of_each"},
    {"documents", "documents_of_each"},
)


def compatible(*names: str) -> bool:
    """Tell whether one call can have all these features."""
    return not any(len(group.intersection(names)) > 1 for group in EXCLUSIVE)


def feature_pairs() -> list[tuple[str, str]]:
    """All pairs of features that one call can have."""
    names = list(FEATURES)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [pair for pair in pairs if compatible(*pair)]


def random_features(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """Draw up to `count` features that go together."""
    chosen: tuple[str, ...] = ()
    for name in rng.permutation(list(FEATURES)):
        if len(chosen) < count and compatible(*chosen, str(name)):
            chosen += (str(name),)
    return chosen
