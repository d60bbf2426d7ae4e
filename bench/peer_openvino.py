"""OpenVINO as a contender: one-node models, static shapes, latency hint, float32 as float32.

Left to itself the plugin computes float32 in bfloat16 where the CPU can; the precision hint is the
dtype of the case.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as operations

from bench import ragged
from bench.cases import Arrays, Case
from bench.contender import Refused, Variant
from bench.forms import (
    additive,
    arrangements,
    attention_shape,
    is_grouped,
    plain_form,
)

_BFLOAT16 = openvino.Type.bf16
_PRECISION = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def _tensor(array: np.ndarray) -> Any:
    """A tensor over the memory of ``array``."""
    if array.dtype.name == "bfloat16":
        return openvino.Tensor(array.view(np.uint16), list(array.shape), _BFLOAT16)
    return openvino.Tensor(array, shared_memory=True)


@functools.cache
def _core() -> Any:
    return openvino.Core()


def _variant(feeds: list[np.ndarray], build: Any, threads: int, read: Any) -> Variant:
    """Compile ``build(parameters)`` for fixed shapes, share the inputs, offer ``infer``."""
    dtype = feeds[0].dtype.name
    if dtype not in _PRECISION:
        raise Refused(f"computes {dtype} in float32")
    half = _BFLOAT16 if dtype == "bfloat16" else None
    parameters = [operations.parameter(list(feed.shape), half or feed.dtype.type) for feed in feeds]
    model = openvino.Model(build(*parameters), parameters)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": _PRECISION[dtype],
    }
    try:
        request = _core().compile_model(model, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise Refused(str(error).strip().splitlines()[-1]) from error
    for index, feed in enumerate(feeds):
        request.set_input_tensor(index, _tensor(feed))

    def run(_alive: Any = feeds) -> Any:  # a shared tensor does not keep its array alive
        request.infer()
        return request

    def collect(finished: Any) -> Any:
        count = len(finished.model_outputs)
        data = [finished.get_output_tensor(index).data for index in range(count)]
        # A bfloat16 result arrives under the name of another 16-bit type.
        return read([array.view(feeds[0].dtype) if half else array for array in data])

    return Variant(run, collect)


def attention(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """``scaled_dot_product_attention`` of opset 13 in every arrangement with equal heads."""
    arrays, mask, causal = plain_form(case, arrays)
    extra = [] if mask is None else [additive(mask, case.dtype)]
    to_shape = attention_shape(case)
    weights = bool(case.options.get("return_weights"))
    variants = {}
    for arrangement, form in arrangements(case, arrays).items():
        if is_grouped(form):
            continue
        feeds = [np.ascontiguousarray(form[name]) for name in ("query", "key", "value")] + extra
        build = _written_out if weights else functools.partial(_fused, causal)
        read = tuple if weights else (lambda values: to_shape(values[0]))
        variants[arrangement] = _variant(feeds, build, threads, read)
    if not variants:
        raise Refused("needs as many key heads as query heads")
    return variants


def varlen(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """Attention over rectangles padded before the clock starts."""
    return ragged.padded_variants(case, arrays, threads, attention)


def _fused(causal: bool, *parameters: Any) -> list[Any]:
    return [operations.scaled_dot_product_attention(*parameters, causal=causal)]


def _written_out(query: Any, key: Any, value: Any) -> list[Any]:
    scale = np.float32(query.shape[-1] ** -0.5)
    scores = operations.matmul(operations.multiply(query, scale), key, False, True)
    weights = operations.softmax(scores, -1)
    return [operations.matmul(weights, value, False, False), weights]


def softmax(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """The softmax operator."""
    build = lambda x: [operations.softmax(x, case.options["axis"])]  # noqa: E731
    return {"": _variant([arrays["x"]], build, threads, lambda values: values[0])}


def logsumexp(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """No operator of its own: refuses."""
    raise Refused("no such operator")


def fuse(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """MatMul."""
    build = lambda weights, value: [operations.matmul(weights, value, False, False)]  # noqa: E731
    feeds = [arrays["weights"], arrays["value"]]
    return {"": _variant(feeds, build, threads, lambda values: values[0])}
