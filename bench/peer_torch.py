"""PyTorch as a contender: inference mode, zero-copy tensors, every form of a call tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from bench.cases import Arrays, Case
from bench.contender import Variant
from bench.forms import (
    MATMUL_FORM_ELEMENTS,
    additive,
    arrangements,
    attention_shape,
    is_grouped,
    plain_form,
)


def set_threads(threads: int) -> None:
    """One number for torch's OpenMP pool, MKL and oneDNN."""
    torch.set_num_threads(threads)


def tensor(array: np.ndarray) -> torch.Tensor:
    """A tensor over the memory of ``array``; torch does not know NumPy's bfloat16 by itself."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def as_numpy(result: torch.Tensor) -> np.ndarray:
    """A result for the judge, which reads bfloat16 as float32."""
    return np.asarray(result.float() if result.dtype == torch.bfloat16 else result)


def inference(function: Callable[[], Any]) -> Callable[[], Any]:
    """``function`` under inference mode, entered inside the call as a user's would be."""

    def run() -> Any:
        with torch.inference_mode():
            return function()

    return run


def _matmul_form(form: dict[str, torch.Tensor], mask: torch.Tensor | None) -> Callable[[], Any]:
    query, key, value = form["query"], form["key"], form["value"]
    scale = query.shape[-1] ** -0.5

    def run() -> Any:
        scores = (query * scale) @ key.transpose(-1, -2)
        if mask is not None:
            scores += mask
        weights = torch.softmax(scores, -1)
        return weights @ value, weights

    return run


def attention(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """``scaled_dot_product_attention`` in every arrangement, and the three calls written out."""
    arrays, mask, causal = plain_form(case, arrays)
    masks: dict[str, torch.Tensor | None] = {"": None}
    if mask is not None:
        masks = {"float mask": tensor(additive(mask, case.dtype))}
        if mask.dtype == bool:
            masks["bool mask"] = tensor(mask)
    to_shape = attention_shape(case)
    read = lambda result: to_shape(as_numpy(result))  # noqa: E731
    variants = _one_call_per_document(case, arrays, read)
    for arrangement, form in arrangements(case, arrays).items():
        tensors = {name: tensor(form[name]) for name in ("query", "key", "value")}
        scores = int(np.prod(form["query"].shape[:-1])) * form["key"].shape[-2]
        if not is_grouped(form) and not causal and scores <= MATMUL_FORM_ELEMENTS:
            written_out = _matmul_form(tensors, masks.get("float mask"))
            if case.options.get("return_weights"):
                variants[f"matmuls, {arrangement}"] = Variant(
                    inference(written_out), lambda pair: tuple(np.asarray(t) for t in pair)
                )
                continue
            variants[f"matmuls, {arrangement}"] = Variant(
                inference(written_out), lambda pair: read(pair[0])
            )
        for kind, masking in masks.items():
            variants[f"sdpa {kind}, {arrangement}"] = Variant(
                inference(_sdpa(tensors, masking, causal, is_grouped(form))), read
            )
    return variants


def _sdpa(
    form: dict[str, torch.Tensor], mask: torch.Tensor | None, causal: bool, grouped: bool
) -> Callable[[], torch.Tensor]:
    query, key, value = form["query"], form["key"], form["value"]
    options: dict[str, Any] = {"is_causal": causal}
    if mask is not None:
        options["attn_mask"] = mask
    if grouped:
        options["enable_gqa"] = True
    return lambda: functional.scaled_dot_product_attention(query, key, value, **options)


def _one_call_per_document(case: Case, arrays: Arrays, read: Any) -> dict[str, Variant]:
    """A row of documents without a mask: a loop over the pieces, joined at the end."""
    if "query_segments" not in arrays:
        return {}
    ids = arrays["query_segments"]
    sizes = torch.from_numpy(np.diff(np.flatnonzero(np.diff(ids, prepend=-1)), append=len(ids)))
    causal = bool(case.options.get("causal"))
    tensors = [tensor(arrays[name]) for name in ("query", "key", "value")]

    def run() -> torch.Tensor:
        pieces = zip(*(torch.split(t, sizes.tolist(), dim=-2) for t in tensors), strict=True)
        call = functional.scaled_dot_product_attention
        return torch.cat([call(*piece, is_causal=causal) for piece in pieces], dim=-2)

    return {"one call per document": Variant(inference(run), read)}


def softmax(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """``torch.softmax``, into an existing tensor where the case has one."""
    x, axis = torch.from_numpy(arrays["x"]), case.options["axis"]
    if case.options["out"]:
        out = torch.zeros_like(x)
        return {"out=": Variant(inference(lambda: torch.softmax(x, axis, out=out)))}
    return {"": Variant(inference(lambda: torch.softmax(x, axis)))}


def logsumexp(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """``torch.logsumexp``."""
    x, axis = torch.from_numpy(arrays["x"]), case.options["axis"]
    return {"": Variant(inference(lambda: torch.logsumexp(x, axis)))}


def similarity(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """``mm`` of normalised rows, or ``cdist`` with and without the expanded square."""
    query, key = torch.from_numpy(arrays["query"]), torch.from_numpy(arrays["key"])
    out = torch.zeros(len(query), len(key), dtype=query.dtype)

    def product() -> torch.Tensor:
        return torch.mm(query, key.T, out=out)

    def cosine() -> torch.Tensor:
        unit_query, unit_key = functional.normalize(query), functional.normalize(key)
        return torch.mm(unit_query, unit_key.T, out=out)

    def squared_distances(mode: str) -> Callable[[], torch.Tensor]:
        return lambda: torch.cdist(query, key, compute_mode=mode).square_().neg_()

    if case.options["metric"] == "euclidean":
        return {
            "differences": Variant(inference(squared_distances("donot_use_mm_for_euclid_dist"))),
            "expanded square": Variant(inference(squared_distances("use_mm_for_euclid_dist"))),
        }
    run = cosine if case.options["metric"] == "cosine" else product
    return {"": Variant(inference(run))}


def linear(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """``linear``."""
    x, weight, bias = (torch.from_numpy(arrays[name]) for name in ("x", "weight", "bias"))
    return {"": Variant(inference(lambda: functional.linear(x, weight, bias)))}


def fuse(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """``matmul``."""
    weights, value = torch.from_numpy(arrays["weights"]), torch.from_numpy(arrays["value"])
    return {"": Variant(inference(lambda: torch.matmul(weights, value)))}
