"""Where the numbers come from: seeded arrays on cache lines, masks, lengths as users have them."""

from __future__ import annotations

import importlib.util
import zlib
from collections.abc import Iterable

import numpy as np

ALIGNMENT = 64  # bytes; what torch gives its own tensors, so that nobody pays for our allocation
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
MEDIAN_LENGTH, LENGTH_SIGMA, LONGEST = 50, 1.25, 2000
# Tokens of each document where a mask keeps them apart.
BLOCK = 64
HEAVY_TAILED = f"log-normal, median {MEDIAN_LENGTH}, sigma {LENGTH_SIGMA}, cut to 1..{LONGEST}"


def generator(name: str) -> np.random.Generator:
    """Random numbers of a case, the same in every process."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def missing_dtype(dtype: str) -> str | None:
    """The package that ``dtype`` needs and that is not installed, or None."""
    if dtype == "bfloat16" and importlib.util.find_spec("ml_dtypes") is None:
        return "ml_dtypes"
    return None


def numpy_dtype(dtype: str) -> np.dtype:
    """The dtype of a case's float arrays; what an int8 cache is filled with is float32."""
    if dtype == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(np.float32 if dtype == "int8" else dtype)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy of ``array`` that starts on a cache line."""
    raw = np.empty(array.nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Standard normal numbers, rounded once to a narrow dtype."""
    wide = dtype if dtype == np.float64 else np.dtype(np.float32)
    return aligned(rng.standard_normal(shape, dtype=wide).astype(dtype, copy=False))


def mask(
    rng: np.random.Generator, shape: tuple[int, ...], kind: str, dtype: np.dtype
) -> np.ndarray:
    """About half the keys visible (bool), a bias for each pair (float), or bools as models have
    them: causal, documents of ``BLOCK`` tokens (blocks), texts padded to the longest (padding).
    """
    rows, keys = np.arange(shape[-2])[:, None], np.arange(shape[-1])
    if kind == "causal":
        return aligned(keys <= rows)
    if kind == "blocks":
        return aligned(keys // BLOCK == rows // BLOCK)
    if kind == "padding":
        return aligned(keys < text_lengths(shape[0], shape[-1])[:, None, None, None])
    if kind == "bool":
        drawn = rng.random(shape, dtype=np.float32) < 0.5
        drawn[..., 0] = True  # peers give NaN for a row without a key
        return drawn
    return normal(rng, shape, dtype)


def text_lengths(count: int, longest: int) -> np.ndarray:
    """Lengths of texts in a batch, evenly from an eighth of the longest to it."""
    return np.linspace(longest // 8, longest, count).astype(np.int64)


def heavy_tailed_lengths(name: str, count: int) -> np.ndarray:
    """Lengths of ``count`` sequences: most are short, the longest is ``LONGEST``."""
    rng = generator(f"{name} lengths")
    drawn = rng.lognormal(np.log(MEDIAN_LENGTH), LENGTH_SIGMA, count).astype(np.int64)
    lengths: np.ndarray = np.clip(drawn, 1, LONGEST)
    lengths[count // 2] = LONGEST  # whatever the seed
    return lengths


def splits(lengths: np.ndarray | Iterable[int]) -> np.ndarray:
    """Where each sequence starts, and where the last one ends."""
    counts = np.fromiter(lengths, np.int64)
    return np.concatenate([[0], np.cumsum(counts)])


def document_ids(lengths: np.ndarray, total: int) -> np.ndarray:
    """One id per token of a row packed with documents, cut off at ``total`` tokens."""
    ids = np.repeat(np.arange(len(lengths)), lengths)[:total]
    if len(ids) < total:
        raise ValueError(f"{len(ids)} tokens do not fill a row of {total}")
    return ids


def alibi_slopes(heads: int) -> np.ndarray:
    """The slopes of the ALiBi paper: 2^-(8/H), 2^-(16/H), ..."""
    slopes: np.ndarray = np.exp2(-8 * np.arange(1, heads + 1) / heads).astype(np.float32)
    return slopes


def receivers(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Log-normal weights, and budgets of whole hours."""
    if name == "weights":
        return np.exp(rng.standard_normal(shape))
    return rng.integers(40, 400, shape).astype(np.float64)


def visible_pairs(
    queries: int, keys: int, causal: bool, window: tuple[int | None, int | None]
) -> float:
    """How many (query, key) pairs of one head take part; causal over equal lengths is half."""
    left, right = window
    if left is None and right is None:
        return queries * keys / 2 if causal else float(queries * keys)
    rows = np.arange(queries)
    first = np.zeros_like(rows) if left is None else np.maximum(rows - left, 0)
    stop = np.full_like(rows, keys) if right is None else np.minimum(rows + right + 1, keys)
    if causal:
        stop = np.minimum(stop, rows + 1)
    return float(np.maximum(stop - first, 0).sum())


def shown_pairs(mask: str, texts: int, queries: int, keys: int) -> float:
    """How many pairs of one head a mask of blocks or padding shows; of several texts the mean."""
    if mask == "blocks":
        return float((np.bincount(np.arange(queries) // BLOCK) ** 2).sum())
    return queries * float(text_lengths(texts, keys).mean())


def module_weights(features: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a multi-head module's weights, by PyTorch's names."""
    return {
        "in_proj_weight": (3 * features, features),
        "in_proj_bias": (3 * features,),
        "out_proj.weight": (features, features),
        "out_proj.bias": (features,),
    }
