"""onnxruntime as a contender: one-node graphs, static shapes, inputs and outputs bound ahead.

Attention is offered as the standard operator of opset 23 and as com.microsoft's
MultiHeadAttention in its own layout; the conversion to that layout is not timed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
from onnx import helper

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

IR_VERSION = 10  # what opset 23 needs; newer ones are refused by older runtimes
OPSET = 23
Feeds = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


def _variant(node: Any, feeds: Feeds, results: Shapes, threads: int, read: Any) -> Variant:
    """Build the one-node model, bind every input and output, and offer ``run``."""
    dtype = next(iter(feeds.values())).dtype
    info = helper.make_tensor_value_info
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
    graph = helper.make_graph(
        [node],
        "bench",
        [info(name, types[name], array.shape) for name, array in feeds.items()],
        [info(n, helper.np_dtype_to_tensor_dtype(dtype), shape) for n, shape in results.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    inputs = {n: onnxruntime.OrtValue.ortvalue_from_numpy(a) for n, a in feeds.items()}
    outputs = [
        onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, dtype)
        for shape in results.values()
    ]
    for name, tensor in inputs.items():
        binding.bind_ortvalue_input(name, tensor)
    for name, tensor in zip(results, outputs, strict=True):
        binding.bind_ortvalue_output(name, tensor)

    def run(_alive: Any = inputs) -> Any:
        session.run_with_iobinding(binding)
        return outputs

    return Variant(run, lambda values: read([value.numpy() for value in values]))


def _guarded(*arguments: Any) -> Variant | str:
    """A variant, or the first line of onnxruntime's reason not to build it."""
    try:
        variant = _variant(*arguments)
        variant.run()
    except Exception as error:  # onnxruntime's exceptions share no public base class
        return str(error).splitlines()[0]
    return variant


def attention(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """Opset 23's Attention and com.microsoft's MultiHeadAttention, in every arrangement."""
    arrays, mask, causal = plain_form(case, arrays)
    built: dict[str, Variant | str] = {}
    for arrangement, form in arrangements(case, arrays).items():
        built[f"Attention, {arrangement}"] = _standard(case, form, mask, causal, threads)
        if not is_grouped(form) and not case.options.get("return_weights"):
            for name, packed in (("packed keys", True), ("heads first", False)):
                built[f"MultiHeadAttention {name}, {arrangement}"] = _microsoft(
                    case, form, mask, causal, threads, packed
                )
    variants = {name: item for name, item in built.items() if isinstance(item, Variant)}
    if not variants:
        raise Refused("; ".join(sorted({str(item) for item in built.values()})))
    return variants


def varlen(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """Attention over rectangles padded before the clock starts."""
    return ragged.padded_variants(case, arrays, threads, attention)


def _standard(
    case: Case, form: Arrays, mask: np.ndarray | None, causal: bool, threads: int
) -> Variant | str:
    feeds = {name: form[name] for name in ("query", "key", "value")}
    if mask is not None:
        feeds["mask"] = mask
    query, key, value = (form[name].shape for name in ("query", "key", "value"))
    results: Shapes = {"output": (*query[:-1], value[-1])}
    to_shape = attention_shape(case)
    if case.options.get("return_weights"):
        results["weights"] = (*query[:-1], key[-2])
        # The fourth output, taken after the softmax (mode 3).
        node = helper.make_node(
            "Attention",
            list(feeds),
            ["output", "", "", "weights"],
            is_causal=int(causal),
            qk_matmul_output_mode=3,
        )
        return _guarded(node, feeds, results, threads, tuple)
    node = helper.make_node("Attention", list(feeds), ["output"], is_causal=int(causal))
    return _guarded(node, feeds, results, threads, lambda values: to_shape(values[0]))


def _microsoft(
    case: Case, form: Arrays, mask: np.ndarray | None, causal: bool, threads: int, packed: bool
) -> Variant | str:
    def pack(array: np.ndarray) -> np.ndarray:
        """(B, H, L, E) as the operator's (B, L, H * E)."""
        rows = np.moveaxis(array, -3, -2)
        return np.ascontiguousarray(rows.reshape(*rows.shape[:-2], -1))

    feeds = {"query": pack(form["query"])}
    for name in ("key", "value"):
        feeds[name] = pack(form[name]) if packed else form[name]
    names = list(feeds)
    if mask is not None:
        bias = additive(mask, case.dtype)
        whole = *bias.shape[:-2], form["query"].shape[-2], form["key"].shape[-2]
        feeds["bias"] = np.ascontiguousarray(np.broadcast_to(bias, whole))
        feeds["bias"] = feeds["bias"].reshape(*[1] * (4 - bias.ndim), *whole)
        names += ["", "", "bias"]
    heads = form["query"].shape[-3]
    value_features = form["value"].shape[-1]
    results: Shapes = {"output": (*feeds["query"].shape[:2], heads * value_features)}
    node = helper.make_node(
        "MultiHeadAttention",
        names,
        ["output"],
        domain="com.microsoft",
        num_heads=heads,
        unidirectional=int(causal),
    )
    to_shape = attention_shape(case)

    def read(values: list[np.ndarray]) -> np.ndarray:
        rows = values[0].reshape(*values[0].shape[:2], heads, value_features)
        return to_shape(np.moveaxis(rows, -2, -3))

    return _guarded(node, feeds, results, threads, read)


def _single(node: Any, feeds: Feeds, shape: tuple[int, ...], threads: int) -> dict[str, Variant]:
    built = _guarded(node, feeds, {"output": shape}, threads, lambda values: values[0])
    if isinstance(built, str):
        raise Refused(built)
    return {node.op_type: built}


def softmax(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """The Softmax operator into a bound output."""
    node = helper.make_node("Softmax", ["x"], ["output"], axis=case.options["axis"])
    return _single(node, arrays, arrays["x"].shape, threads)


def logsumexp(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """ReduceLogSumExp over the last axis."""
    axes = np.array([case.options["axis"]], np.int64)
    node = helper.make_node("ReduceLogSumExp", ["x", "axes"], ["output"], keepdims=0)
    shape = tuple(np.delete(arrays["x"].shape, case.options["axis"]).tolist())
    return _single(node, arrays | {"axes": axes}, shape, threads)


def fuse(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """MatMul."""
    node = helper.make_node("MatMul", ["weights", "value"], ["output"])
    shape = (*arrays["weights"].shape[:-1], arrays["value"].shape[-1])
    return _single(node, arrays, shape, threads)
