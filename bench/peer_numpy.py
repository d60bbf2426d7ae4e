"""NumPy as a contender: the formulas written out, products by its BLAS."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.cases import Arrays, Case
from bench.contender import Refused, Variant
from bench.forms import additive, plain_form


def attention(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    if case.dtype in ("float16", "bfloat16"):
        raise Refused("no fast products of halves")
    arrays, mask, causal = plain_form(case, arrays)
    query, key, value = (arrays[name] for name in ("query", "key", "value"))
    scale = query.dtype.type(1 / np.sqrt(query.shape[-1]))
    hidden = None if mask is None else additive(mask, case.dtype)
    if causal:
        below = np.tri(query.shape[-2], key.shape[-2], dtype=bool)
        hidden = additive(below, case.dtype)
    grouped = (*key.shape[:-2], -1, *query.shape[-2:])

    def run() -> Any:
        scores = query.reshape(grouped) * scale @ key[..., None, :, :].swapaxes(-1, -2)
        if hidden is not None:
            scores += hidden if hidden.ndim < 3 else hidden[..., :, None, :, :]
        scores -= scores.max(axis=-1, keepdims=True)
        weights = np.exp(scores, out=scores)
        weights /= weights.sum(axis=-1, keepdims=True)
        output = (weights @ value[..., None, :, :]).reshape(*query.shape[:-1], -1)
        if case.options.get("return_weights"):
            return output, weights.reshape(*query.shape[:-1], -1)
        return output

    return {"": Variant(run, lambda result: result)}


def varlen(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """A loop over sequences, one head at a time, rows of a table taken in the loop."""
    query, key, value = (arrays[name] for name in ("query", "key", "value"))
    at_query, at_key = arrays["query_splits"].tolist(), arrays["key_splits"].tolist()
    listed, causal = arrays.get("key_indices"), case.options.get("causal")
    scale = query.dtype.type(1 / np.sqrt(query.shape[-1]))

    def run() -> np.ndarray:
        output = np.empty((*query.shape[:-1], value.shape[-1]), query.dtype)
        for b in range(len(at_key) - 1):
            rows, keys = slice(*at_query[b : b + 2]), slice(*at_key[b : b + 2])
            seen = keys if listed is None else listed[keys]
            for head in range(query.shape[1]):
                scores = query[rows, head] * scale @ key[seen, head].T
                if causal:
                    scores[~np.tri(*scores.shape, dtype=bool)] = -np.inf
                scores -= scores.max(axis=-1, keepdims=True)
                weights = np.exp(scores, out=scores)
                weights /= weights.sum(axis=-1, keepdims=True)
                output[rows, head] = weights @ value[seen, head]
        return output

    return {"loop": Variant(run)}


def rowwise(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    x, axis = arrays["x"], case.options["axis"]
    out = np.empty_like(x) if case.options["out"] else None

    def softmax() -> np.ndarray:
        result = np.subtract(x, x.max(axis=axis, keepdims=True), out=out)
        np.exp(result, out=result)
        result /= result.sum(axis=axis, keepdims=True)
        return result

    def logsumexp() -> np.ndarray:
        largest = x.max(axis=axis, keepdims=True)
        total = np.exp(x - largest).sum(axis=axis, keepdims=True)
        return np.squeeze(largest + np.log(total), axis)

    return {"": Variant(softmax if case.operation == "softmax" else logsumexp)}


def similarity(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    query, key, metric = arrays["query"], arrays["key"], case.options["metric"]
    out = np.empty((len(query), len(key)), query.dtype)

    def product() -> np.ndarray:
        return np.matmul(query, key.T, out=out)

    def cosine() -> np.ndarray:
        unit_query = query / np.linalg.norm(query, axis=-1, keepdims=True)
        unit_key = key / np.linalg.norm(key, axis=-1, keepdims=True)
        return np.matmul(unit_query, unit_key.T, out=out)

    def expanded() -> np.ndarray:
        np.matmul(query, key.T, out=out)
        np.multiply(out, 2, out=out)
        np.subtract(out, np.square(query).sum(axis=-1)[:, None], out=out)
        return np.subtract(out, np.square(key).sum(axis=-1), out=out)

    if metric == "euclidean":
        return {"expanded square": Variant(expanded)}
    return {"": Variant(cosine if metric == "cosine" else product)}


def linear(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    x, weight, bias = arrays["x"], arrays["weight"], arrays["bias"]
    out = np.empty((len(x), len(bias)), x.dtype)

    def run() -> np.ndarray:
        np.matmul(x, weight.T, out=out)
        return np.add(out, bias, out=out)

    return {"": Variant(run)}


def fuse(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    weights, value = arrays["weights"], arrays["value"]
    return {"": Variant(lambda: weights @ value)}
