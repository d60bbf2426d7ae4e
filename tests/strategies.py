"""Cases for tests: sizes at tile and segment borders, every option, every layout, from one seed.

`Case` holds the arrays and options of one attention call and prints itself with the seed that makes
it again. `FEATURES` is the one list of what a call can have; conformance tests take every pair.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

# Borders of the kernels: 16 lanes, 6- and 24-row blocks, panels of 64 keys, segments of 512 keys.
ROWS = (1, 2, 5, 6, 7, 17, 23, 24, 25, 31, 49)
KEYS = (1, 3, 15, 16, 17, 63, 64, 65, 100, 130, 511, 512, 513, 600)
FEATURE_SIZES = (1, 2, 3, 8, 15, 16, 17, 33, 64, 65)
FLOATS = (np.float32, np.float64)


@dataclass
class Case:
    """Arrays and options of one call, under construction or ready."""

    rng: np.random.Generator
    seed: int
    batch: tuple[int, ...] = (2, 4)
    rows: int = 7
    keys: int = 130
    features: int = 16
    value_features: int = 16
    dtypes: tuple[Any, Any, Any] = (np.float32,) * 3
    layouts: tuple[str, str, str] = ("contiguous",) * 3
    key_heads: int | None = None
    key_batch: tuple[int, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    features_used: tuple[str, ...] = ()
    query: np.ndarray = field(init=False, repr=False)
    key: np.ndarray = field(init=False, repr=False)
    value: np.ndarray = field(init=False, repr=False)

    def build(self) -> "Case":
        """Draw the arrays; call once all sizes are settled."""
        batch = self.batch if self.key_batch is None else self.key_batch
        if self.key_heads is not None:
            batch = (*batch[:-1], self.key_heads)
        shapes = (
            (*self.batch, self.rows, self.features),
            (*batch, self.keys, self.features),
            (*batch, self.keys, self.value_features),
        )
        self.query, self.key, self.value = (
            lay_out(draw(self.rng, shape, dtype), layout)
            for shape, dtype, layout in zip(shapes, self.dtypes, self.layouts, strict=True)
        )
        return self

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.query, self.key, self.value

    def __str__(self) -> str:
        options = {
            name: f"{value.dtype} array {value.shape}" if isinstance(value, np.ndarray) else value
            for name, value in self.options.items()
        }
        arrays = ", ".join(
            f"{name} {array.dtype} {array.shape} {layout}"
            for name, array, layout in zip(
                ("query", "key", "value"), self.arrays, self.layouts, strict=True
            )
        )
        return f"case({self.features_used}, seed={self.seed}): {arrays}; {options}"


def case(features: Iterable[str] = (), /, *, seed: int = 0, **sizes: Any) -> Case:
    """Make the case that has these `FEATURES`, other choices drawn from the seed."""
    names = tuple(features)
    rng = np.random.default_rng([seed, *map(ord, " ".join(names))])
    made = Case(rng, seed, features_used=names)
    made.rows, made.keys = int(rng.choice(ROWS)), int(rng.choice(KEYS))
    made.features, made.value_features = (int(n) for n in rng.choice(FEATURE_SIZES, 2))
    for name, size in sizes.items():
        setattr(made, name, size)
    shapes_first = sorted(names, key=lambda name: name not in SHAPING)
    for name in shapes_first:
        FEATURES[name](made)
    return made.build()


def dtype_of(name: str) -> np.dtype:
    """Find a dtype by its name; bfloat16 is NumPy's once `ml_dtypes` is there, else a skip."""
    if name == "bfloat16":
        reason = "ml_dtypes, which gives NumPy its bfloat16, is not here"
        return np.dtype(pytest.importorskip("ml_dtypes", reason=reason).bfloat16)
    return np.dtype(name)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Random numbers of any dtype; integers small, so that scores stay in a useful range."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    return rng.integers(0 if dtype.kind == "u" else -3, 4, shape).astype(dtype)


# --- layouts ---------------------------------------------------------------------------------


def _transposed(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.swapaxes(a, -1, -2)).swapaxes(-1, -2)


def _negative(a: np.ndarray) -> np.ndarray:
    flip = (slice(None, None, -1),) * a.ndim
    return np.ascontiguousarray(a[flip])[flip]


def _strided(a: np.ndarray) -> np.ndarray:
    wide = np.full([2 * n + 1 for n in a.shape], 77, dtype=a.dtype)
    view = wide[tuple(slice(1, 2 * n + 1, 2) for n in a.shape)]
    view[...] = a
    return view


def _heads_inside(a: np.ndarray) -> np.ndarray:
    """(..., L, H, E) seen as (..., H, L, E), as projections leave it."""
    return a if a.ndim < 3 else np.ascontiguousarray(a.swapaxes(-2, -3)).swapaxes(-2, -3)


def _unaligned(a: np.ndarray) -> np.ndarray:
    buffer = np.empty(a.nbytes + 1, dtype=np.uint8)
    view = buffer[1:].view(a.dtype).reshape(a.shape) if a.size else a
    view[...] = a
    return view


def _read_only(a: np.ndarray) -> np.ndarray:
    copy = a.copy()
    copy.flags.writeable = False
    return copy


def _broadcast_first(a: np.ndarray) -> np.ndarray:
    """Zero stride on the first axis; every slice is the first one."""
    return np.broadcast_to(a[:1].copy(), a.shape)


def _broadcast_rows(a: np.ndarray) -> np.ndarray:
    """Zero stride on the second last axis: all queries, keys or values alike."""
    return np.broadcast_to(a[..., :1, :].copy(), a.shape)


def _broadcast_columns(a: np.ndarray) -> np.ndarray:
    """Zero stride on the last axis: all features alike."""
    return np.broadcast_to(a[..., :1].copy(), a.shape)


LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": np.ascontiguousarray,
    "transposed": _transposed,
    "negative": _negative,
    "strided": _strided,
    "heads_inside": _heads_inside,
    "fortran": np.asfortranarray,
    "unaligned": _unaligned,
    "byteswapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "read_only": _read_only,
    "broadcast_first": _broadcast_first,
    "broadcast_rows": _broadcast_rows,
    "broadcast_columns": _broadcast_columns,
}


def lay_out(a: np.ndarray, layout: str) -> np.ndarray:
    """Same shape and dtype in another layout; broadcast layouts repeat their first numbers."""
    return LAYOUTS[layout](a)


def plain(a: np.ndarray) -> np.ndarray:
    """The same numbers in a fresh, contiguous, aligned array of native byte order."""
    return np.array(a, dtype=a.dtype.newbyteorder("="), order="C", copy=True)


# --- features: what a call can have ------------------------------------------------------------


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
    dtype = np.result_type(c.dtypes[0], np.float32)
    c.options["mask"] = c.rng.normal(size=(c.rows, c.keys)).astype(dtype)


def _float_mask_hiding(c: Case) -> None:
    """float64 beside float32 inputs, laid out by columns, a third of it −inf."""
    mask = c.rng.normal(size=(*c.batch[:-1], 1, c.keys, c.rows))
    mask[c.rng.random(mask.shape) < 0.3] = -np.inf
    c.options["mask"] = mask.swapaxes(-1, -2)


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


def _key_length(c: Case) -> None:
    c.options["key_lengths"] = int(c.rng.integers(0, c.keys + 1))


def _key_lengths(c: Case) -> None:
    c.options["key_lengths"] = c.rng.integers(0, c.keys + 1, c.batch)


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


SHAPING: dict[str, Callable[[Case], None]] = {
    "one_row": _size(rows=1),
    "many_rows": _size(rows=97),
    "two_segments": _size(keys=700),
    "no_keys": _size(keys=0),
    "no_rows": _size(rows=0),
    "no_features": _size(features=0),
    "wide_values": _size(value_features=81),
    "grouped": _grouped,
    "broadcast_keys": _broadcast_keys,
    "float64": _dtypes(np.float64, np.float64, np.float64),
    "mixed": _dtypes(np.float32, np.float64, np.float32),
    "integers": _dtypes(np.int16, np.float32, np.uint8),
    "booleans": _dtypes(np.float32, np.float32, np.bool_),
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
}

# Features that set the same thing: of such a pair only one can be had.
EXCLUSIVE = (
    {"one_row", "many_rows", "no_rows"},
    {"two_segments", "no_keys"},
    {"float64", "mixed", "integers", "booleans"},
    {"fortran_transposed", "strided_unaligned", "byteswapped_broadcast", "read_only_columns"},
    {"dot", "cosine", "euclidean"},
    {"scale", "negative_scale", "zero_scale"},
    {"bool_mask", "key_mask", "row_mask", "float_mask", "float_mask_hiding"},
    {"causal_offset", "causal_offsets", "causal_top_left", "causal_bottom_right"},
    {"window_left", "window_right", "window_both"},
    {"key_length", "key_lengths"},
    {"softcap", "small_softcap"},
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


# --- hypothesis ----------------------------------------------------------------------------------


@st.composite
def cases(draw_from, max_features: int = 5, **sizes: Any) -> Case:
    """Any case: up to `max_features` features that go together, sizes at or off the borders."""
    names = draw_from(
        st.lists(st.sampled_from(list(FEATURES)), max_size=max_features, unique=True).filter(
            lambda names: compatible(*names)
        )
    )
    seed = draw_from(st.integers(0, 2**32 - 1))
    return case(names, seed=seed, **sizes)
