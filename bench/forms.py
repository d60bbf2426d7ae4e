"""Equal calls in other forms, which some libraries need or do faster; made ahead of the clock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.cases import Arrays, Case
from bench.draw import aligned
from bench.truth import visibility

MATMUL_FORM_ELEMENTS = 2**26  # above this many scores nobody would write them out


def arrangements(case: Case, arrays: Arrays) -> dict[str, Arrays]:
    """The arrays as given, and in the equivalent shapes that some libraries do faster."""
    forms = {"as given": arrays}
    query, key = arrays["query"], arrays["key"]
    if case.options.get("enable_gqa") and query.shape[-2] == 1:
        groups = query.shape[-3] // key.shape[-3]
        folded = query.reshape(*key.shape[:-2], groups, query.shape[-1])
        forms["groups as rows"] = arrays | {"query": folded}
    if query.shape[-3] == 1 and "mask" not in arrays:
        names = ("query", "key", "value")
        forms["batch as heads"] = {name: np.moveaxis(arrays[name], 0, 1) for name in names}
    return forms


def is_grouped(form: Arrays) -> bool:
    """Whether a form still has more query heads than key heads."""
    return form["query"].shape[-3] != form["key"].shape[-3]


def plain_form(case: Case, arrays: Arrays) -> tuple[Arrays, np.ndarray | None, bool]:
    """An equal call for a library that only knows a mask and a causal flag, made before the clock
    starts: the arrays, the mask (windows, documents and ALiBi written out, a sink as one more key
    of zeros), and whether its own causal flag is to be set.
    """
    if not {"window", "documents", "alibi", "sinks"} & set(case.options):
        return arrays, arrays.get("mask"), bool(case.options.get("causal"))
    query, key = arrays["query"], arrays["key"]
    rows, columns = np.arange(query.shape[-2]), np.arange(key.shape[-2])
    visible = visibility(case, arrays, rows, len(columns))
    if not {"alibi", "sinks"} & set(case.options):
        return arrays, visible, False
    bias = np.zeros((query.shape[-3], len(rows), len(columns)), query.dtype)
    if "alibi_slopes" in arrays:
        distances = np.abs(rows[:, None] - columns).astype(bias.dtype)
        bias -= arrays["alibi_slopes"][:, None, None] * distances
    if visible is not None:
        bias[:, ~visible] = -np.inf
    if "sinks" in arrays:
        last = np.broadcast_to(arrays["sinks"][:, None, None], (*bias.shape[:2], 1))
        bias = np.concatenate([bias, last], axis=-1)
        widths = [(0, 0)] * (key.ndim - 2) + [(0, 1), (0, 0)]
        arrays = arrays | {name: np.pad(arrays[name], widths) for name in ("key", "value")}
    return arrays, aligned(bias), False


def additive(mask: np.ndarray, dtype: str) -> np.ndarray:
    """A bool mask as the float one that some libraries want or do faster."""
    if mask.dtype != bool:
        return mask
    return np.where(mask, np.zeros((), dtype), np.array(-np.inf, dtype))


def attention_shape(case: Case) -> Callable[[Any], np.ndarray]:
    """Read one output of any arrangement in the shape of the case."""
    shape = (*case.shapes["query"][:-1], case.shapes["value"][-1])
    return lambda result: np.asarray(result).reshape(shape)
