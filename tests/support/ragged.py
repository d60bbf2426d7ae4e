"""Ragged cases for tests: packed arrays, splits, options, from one seed; and each sequence alone.

`RAGGED_FEATURES` is the list of what a ragged call can have; test_varlen takes every pair of it.
"""

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import strategies

# Borders of rows (6, 24), panels (64), chains (128) and segments (512); empty sequences among them.
QUERY_LENGTHS = (0, 1, 1, 2, 6, 7, 25)
KEY_LENGTHS = (0, 1, 3, 17, 64, 65, 128, 130, 513)
TABLE_ROWS = 90


@dataclass
class Ragged:
    """Arrays and options of one ragged call."""

    rng: np.random.Generator
    seed: int
    lengths: list[tuple[int, int]]
    heads: int | None = 4  # None: two-dimensional arrays
    key_heads: int | None = 4
    features: int = 16
    value_features: int = 16
    dtypes: tuple[Any, Any, Any] = (np.float32,) * 3
    layouts: tuple[str, str, str] = ("contiguous",) * 3
    splits_dtype: Any = np.int64
    index_dtype: Any = None  # not None: keys are rows of a table
    outside: tuple[int, int] = (0, 0)  # rows of no sequence, before and after
    options: dict[str, Any] = field(default_factory=dict)
    features_used: tuple[str, ...] = ()
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray] = field(init=False, repr=False)
    splits: tuple[np.ndarray, np.ndarray] = field(init=False, repr=False)

    def build(self) -> "Ragged":
        """Draw arrays and splits; call once all sizes are settled."""
        before, after = self.outside
        splits = [np.cumsum([before, *lengths]) for lengths in self.axes]
        rows, listed = (int(offsets[-1]) + after for offsets in splits)
        self.splits = tuple(offsets.astype(self.splits_dtype) for offsets in splits)
        keys = listed
        if self.index_dtype is not None:
            keys = TABLE_ROWS
            indices = self.rng.integers(0, keys, listed)
            self.options["key_indices"] = indices.astype(self.index_dtype)
        heads = [() if n is None else (n,) for n in (self.heads, self.key_heads, self.key_heads)]
        sizes = (self.features, self.features, self.value_features)
        self.arrays = tuple(
            strategies.lay_out(
                strategies.draw(self.rng, (total, *own, size), dtype),
                layout if total else "fortran",
            )
            for total, own, size, dtype, layout in zip(
                (rows, keys, keys), heads, sizes, self.dtypes, self.layouts, strict=True
            )
        )
        return self

    @property
    def axes(self) -> tuple[list[int], list[int]]:
        """Lengths of the queries, and lengths of the keys."""
        return [ours for ours, _ in self.lengths], [theirs for _, theirs in self.lengths]

    @property
    def arguments(self) -> tuple[np.ndarray, ...]:
        return (*self.arrays, *self.splits)

    def rows(self, sequence: int) -> slice:
        """Where a sequence's results are."""
        return slice(int(self.splits[0][sequence]), int(self.splits[0][sequence + 1]))

    def alone(self, sequence: int) -> tuple[list[np.ndarray], dict[str, Any]]:
        """Operands and options of `fastattn.attention` for one sequence, heads first."""
        options = {name: x for name, x in self.options.items() if name != "partial"}
        rows = self.rows(sequence)
        listed = slice(int(self.splits[1][sequence]), int(self.splits[1][sequence + 1]))
        indices = options.pop("key_indices", None)
        keys = listed if indices is None else indices[listed]
        if "key_segments" in options:
            options["query_segments"] = options["query_segments"][rows]
            options["key_segments"] = options["key_segments"][listed]
        if np.ndim(options.get("query_offset", 0)):
            options["query_offset"] = int(options["query_offset"][sequence])
        query, key, value = self.arrays
        operands = [query[rows], key[keys], value[keys]]
        return [x.swapaxes(0, 1) if x.ndim == 3 else x for x in operands], options

    def __str__(self) -> str:
        options = {
            name: f"{x.dtype} array {x.shape}" if isinstance(x, np.ndarray) else x
            for name, x in self.options.items()
        }
        shapes = ", ".join(f"{x.dtype} {x.shape}" for x in self.arrays)
        return (
            f"ragged({self.features_used}, seed={self.seed}): {shapes}, lengths {self.lengths}, "
            f"{options}"
        )


def ragged(features: Iterable[str] = (), /, *, seed: int = 0, **sizes: Any) -> Ragged:
    """Make the case that has these `RAGGED_FEATURES`, other choices drawn from the seed."""
    names = tuple(features)
    rng = np.random.default_rng([seed, 7, *map(ord, " ".join(names))])
    count = int(rng.integers(3, 7))
    lengths = [(int(rng.choice(QUERY_LENGTHS)), int(rng.choice(KEY_LENGTHS))) for _ in range(count)]
    made = Ragged(rng, seed, lengths, features_used=names)
    made.features, made.value_features = (int(n) for n in rng.choice((1, 3, 8, 16, 17, 64, 65), 2))
    for name, size in sizes.items():
        setattr(made, name, size)
    for name in sorted(names, key=lambda name: name not in RAGGED_SHAPING):
        RAGGED_FEATURES[name](made)
    return made.build()


def shuffled(case: Ragged, order: np.ndarray) -> Ragged:
    """The same sequences in another order, packed anew."""
    other = Ragged(case.rng, case.seed, [case.lengths[b] for b in order], case.heads)
    other.options = dict(case.options)

    def pick(array: np.ndarray, splits: np.ndarray) -> np.ndarray:
        parts = [array[splits[b] : splits[b + 1]] for b in order]
        return np.concatenate(parts) if parts else array[:0]

    own, theirs = case.splits
    query, key, value = case.arrays
    if "key_indices" in case.options:
        other.options["key_indices"] = pick(case.options["key_indices"], theirs)
    else:
        key, value = pick(key, theirs), pick(value, theirs)
    other.arrays = pick(query, own), key, value
    other.splits = tuple(np.cumsum([0, *lengths]) for lengths in other.axes)
    for name, splits in (("query_segments", own), ("key_segments", theirs)):
        if name in case.options:
            other.options[name] = pick(case.options[name], splits)
    if np.ndim(case.options.get("query_offset", 0)):
        other.options["query_offset"] = case.options["query_offset"][order]
    return other


# --- features ------------------------------------------------------------------------------------


def _set(**attributes: Any) -> Callable[[Ragged], None]:
    def apply(c: Ragged) -> None:
        for name, value in attributes.items():
            setattr(c, name, value)

    return apply


def _rows_of_nobody(c: Ragged) -> None:
    c.outside = 3, 2
    c.options["partial"] = True


def _option(name: str, value: Any) -> Callable[[Ragged], None]:
    def apply(c: Ragged) -> None:
        c.options[name] = value

    return apply


def _lengths(*lengths: tuple[int, int]) -> Callable[[Ragged], None]:
    return _set(lengths=list(lengths))


def _causal_offset(c: Ragged) -> None:
    c.options.update(causal=True, query_offset=int(c.rng.integers(-3, 70)))


def _causal_offsets(c: Ragged) -> None:
    offsets = c.rng.integers(-9, 140, len(c.lengths))
    c.options.update(causal=True, query_offset=offsets)


def _causal_word(word: str) -> Callable[[Ragged], None]:
    def apply(c: Ragged) -> None:
        c.options["causal"] = word
        c.options.pop("query_offset", None)

    return apply


def _window(left: int | None, right: int | None) -> Callable[[Ragged], None]:
    def apply(c: Ragged) -> None:
        c.options["window"] = (left, right)
        if not isinstance(c.options.get("causal"), str):
            c.options.setdefault("query_offset", int(c.rng.integers(0, 60)))

    return apply


def _documents(c: Ragged) -> None:
    for name, lengths in zip(("query_segments", "key_segments"), c.axes, strict=True):
        total = sum(c.outside) + sum(lengths)
        c.options[name] = np.sort(c.rng.integers(0, 5, total)).astype(np.int32)


def _ids_in_any_order(c: Ragged) -> None:
    for name, lengths in zip(("query_segments", "key_segments"), c.axes, strict=True):
        ids = np.array([-(2**62), -1, 2**40])
        c.options[name] = c.rng.choice(ids, sum(c.outside) + sum(lengths))


def _per_head(name: str, scale: float) -> Callable[[Ragged], None]:
    def apply(c: Ragged) -> None:
        c.options[name] = (c.rng.normal(size=c.heads or 1) * scale).astype(np.float32)

    return apply


def _scales(c: Ragged) -> None:
    """One of each head, one of them negative; a number where there are no heads."""
    scales = np.array([0.4, -0.3, 0.0, 1.5])
    c.options["scale"] = 0.4 if c.heads is None else scales[: c.heads]


def _grouped(c: Ragged) -> None:
    if c.heads is None:
        return
    c.options["enable_gqa"] = True
    c.key_heads = 2


RAGGED_SHAPING: dict[str, Callable[[Ragged], None]] = {
    "grouped": _grouped,
    "no_heads": _set(heads=None, key_heads=None),
    "no_sequences": _lengths(),
    "nothing_but_empty": _lengths((0, 0), (0, 0), (0, 7), (5, 0)),
    "one_long": _lengths((1, 3), (2, 1500), (1, 1), (1, 40)),
    "one_row_each": _lengths(*[(1, n) for n in (1, 0, 65, 2, 130, 16, 5, 600)]),
    "int32_splits": _set(splits_dtype=np.int32),
    "rows_of_nobody": _rows_of_nobody,
    "gathered": _set(index_dtype=np.int32),
    "gathered_int64": _set(index_dtype=np.int64),
    "float64": _set(dtypes=(np.float64,) * 3),
    "float16": _set(dtypes=(np.float16,) * 3),
    "mixed": _set(dtypes=(np.float32, np.int16, np.float64)),
    "strided": _set(layouts=("strided", "heads_inside", "negative")),
    "transposed": _set(layouts=("transposed", "fortran", "byteswapped")),
}
if importlib.util.find_spec("ml_dtypes"):
    RAGGED_SHAPING["bfloat16"] = _set(dtypes=("bfloat16",) * 3)

RAGGED_FEATURES: dict[str, Callable[[Ragged], None]] = {
    **RAGGED_SHAPING,
    "dot": _option("similarity", "dot"),
    "cosine": _option("similarity", "cosine"),
    "euclidean": _option("similarity", "euclidean"),
    "scale": _option("scale", -0.3),
    "scales": _scales,
    "softcap": _option("softcap", 1.5),
    "causal_top_left": _causal_word("top_left"),
    "causal_bottom_right": _causal_word("bottom_right"),
    "causal_offset": _causal_offset,
    "causal_offsets": _causal_offsets,
    "window": _window(20, 2),
    "window_left": _window(70, None),
    "documents": _documents,
    "ids_in_any_order": _ids_in_any_order,
    "alibi": _per_head("alibi_slopes", 0.05),
    "sinks": _per_head("sinks", 2.0),
    "no_sinks": _option("sinks", -np.inf),
}

EXCLUSIVE = (
    {"grouped", "no_heads"},
    {"no_sequences", "nothing_but_empty", "one_long", "one_row_each"},
    {"gathered", "gathered_int64"},
    {"float64", "float16", "mixed", "bfloat16"},
    {"strided", "transposed"},
    {"dot", "cosine", "euclidean"},
    {"scale", "scales"},
    {"causal_top_left", "causal_bottom_right", "causal_offset", "causal_offsets"},
    {"window", "window_left"},
    {"documents", "ids_in_any_order"},
    {"sinks", "no_sinks"},
)


def compatible(*names: str) -> bool:
    """Tell whether one call can have all these features."""
    return not any(len(group.intersection(names)) > 1 for group in EXCLUSIVE)


def feature_pairs() -> list[tuple[str, str]]:
    """All pairs of features that one call can have."""
    names = list(RAGGED_FEATURES)
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return [pair for pair in pairs if compatible(*pair)]


def random_features(rng: np.random.Generator, count: int) -> tuple[str, ...]:
    """Draw up to `count` features that go together."""
    chosen: tuple[str, ...] = ()
    for name in rng.permutation(list(RAGGED_FEATURES)):
        if len(chosen) < count and compatible(*chosen, str(name)):
            chosen += (str(name),)
    return chosen
