"""Cases for tests: sizes at tile and segment borders, every option, every layout, from one seed.

`Case` holds the arrays and options of one attention call and prints itself with the seed that makes
it again. What a call can have is drawn by `features.py`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from features import FEATURES, SHAPING, compatible, feature_pairs, random_features
from hypothesis import strategies as st

__all__ = [
    "FEATURES",
    "LAYOUTS",
    "SHAPING",
    "Case",
    "case",
    "cases",
    "compatible",
    "draw",
    "dtype_of",
    "feature_pairs",
    "lay_out",
    "plain",
    "random_features",
]

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
    subnormal: bool = False  # every other query has a feature so small that a scale loses bits
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
        operands = [
            draw(self.rng, shape, dtype) for shape, dtype in zip(shapes, self.dtypes, strict=True)
        ]
        if self.subnormal and operands[0].dtype in FLOATS:
            smallest = np.finfo(operands[0].dtype).smallest_subnormal
            operands[0][..., ::2, :1] = 3 * smallest
        self.query, self.key, self.value = (
            lay_out(operand, layout) for operand, layout in zip(operands, self.layouts, strict=True)
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
    dtype = dtype_of(dtype) if isinstance(dtype, str) else np.dtype(dtype)
    if dtype.kind == "f" or dtype.name == "bfloat16":
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
