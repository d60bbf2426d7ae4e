"""Who takes part: one table of libraries, each at its best settings for the case.

To race a library of your own, write one function and add one line, of any name, to
``CONTENDERS``::

    def _mine(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
        import mine
        if case.options.get("causal"):
            raise Refused("no causal mask")
        return {"": Variant(lambda: mine.attend(**arrays))}

    "mine": Contender(("mine",), {"attention": _mine}, lambda threads: mine.set_threads(threads)),

``prepare`` returns one or more variants: zero-argument calls on arrays that exist already, with
whatever the library can do ahead (conversion, compilation, binding, preallocation) done ahead.
The sheet checks each variant against float64 NumPy, lets the fastest play and keeps its name.
A library that is not installed is skipped with a word; one that cannot do a case raises
``Refused`` with the reason. ``threads`` is the same number for everybody.

Every peer may rearrange the arrays where that helps it: grouped queries of one step become the
rows of their key head, a batch of single heads becomes heads of one batch. fastattn is always
the plain public call. ``torch`` has ragged sequences padded before the clock starts,
``torch-padding`` pads within the call, ``torch-buckets`` has them sorted by length and padded
bucket by bucket before the clock starts. Not here: torch's FlexAttention, which needs a C++
compiler at run time.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bench.cases import Arrays, Case
from bench.draw import aligned

MATMUL_FORM_ELEMENTS = 2**26  # above this many scores nobody would write them out


class Refused(Exception):
    """The contender cannot do this case; the text says why."""


class Variant(NamedTuple):
    """One way to do a case: the timed call, and how to read its result as NumPy arrays."""

    run: Callable[[], Any]
    read: Callable[[Any], Any] = np.asarray


Prepare = Callable[[Case, Arrays, int], dict[str, Variant]]


class Contender(NamedTuple):
    """A library: what must be installed, what it can do, how its thread count is set.

    fastattn in its several forms also says on which of its backends it runs.
    """

    requires: tuple[str, ...]
    prepare: Mapping[str, Prepare]
    set_threads: Callable[[int], Any] = lambda threads: None
    backend: Callable[[], str] | None = None

    def missing(self) -> str | None:
        """The first required module that is not installed, or None."""
        return next((name for name in self.requires if not _is_installed(name)), None)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package it would be in
        return False


def load(names: Sequence[str]) -> None:
    """Import what the named contenders need, torch first and fastattn last.

    numba's OpenMP layer switches nested parallelism on in the system's libgomp. A torch imported
    after that shares the library and was seen to take 250 ms for what it does in 50.
    """
    needed = dict.fromkeys(module for name in names for module in CONTENDERS[name].requires)
    for module in sorted(needed, key=lambda module: (module == "fastattn", module != "torch")):
        importlib.import_module(module)


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
    from bench.truth import visibility

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


def _numpy_attention(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
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


def _numpy_varlen(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
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


def _numpy_rowwise(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
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


def _numpy_similarity(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
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


def _numpy_fuse(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    weights, value = arrays["weights"], arrays["value"]
    return {"": Variant(lambda: weights @ value)}


def _blas_threads(threads: int) -> None:
    """OpenBLAS and MKL under NumPy, SciPy and scikit-learn."""
    if importlib.util.find_spec("threadpoolctl") is not None:
        importlib.import_module("threadpoolctl").threadpool_limits(threads, user_api="blas")


def _scipy_rowwise(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    from scipy import special

    function = getattr(special, case.operation)
    return {"": Variant(lambda: function(arrays["x"], axis=case.options["axis"]))}


def _scipy_similarity(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    from scipy.spatial.distance import cdist

    if case.options["metric"] != "euclidean":
        raise Refused("cdist has no threads and no product")
    # cdist computes in float64 whatever it is given.
    run = lambda: cdist(arrays["query"], arrays["key"], "sqeuclidean")  # noqa: E731
    return {"cdist": Variant(run, lambda result: -result)}


def _sklearn_similarity(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    from sklearn.metrics import pairwise

    query, key = arrays["query"], arrays["key"]
    match case.options["metric"]:
        case "cosine":
            return {"": Variant(lambda: pairwise.cosine_similarity(query, key))}
        case "dot":
            return {"": Variant(lambda: pairwise.linear_kernel(query, key))}
    return {
        "expanded square": Variant(
            lambda: pairwise.euclidean_distances(query, key, squared=True), lambda result: -result
        )
    }


def _faiss_similarity(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    import faiss

    if case.dtype != "float32":
        raise Refused("float32 only")
    query, key, metric = arrays["query"], arrays["key"], case.options["metric"]
    if metric == "euclidean":
        squared = lambda: faiss.pairwise_distances(query, key)  # noqa: E731
        return {"": Variant(squared, lambda result: -result)}

    def product() -> np.ndarray:
        return faiss.pairwise_distances(query, key, metric=faiss.METRIC_INNER_PRODUCT)

    def cosine() -> np.ndarray:
        unit_query, unit_key = query.copy(), key.copy()
        faiss.normalize_L2(unit_query)
        faiss.normalize_L2(unit_key)
        return faiss.pairwise_distances(unit_query, unit_key, metric=faiss.METRIC_INNER_PRODUCT)

    return {"": Variant(cosine if metric == "cosine" else product)}


def _faiss_threads(threads: int) -> None:
    importlib.import_module("faiss").omp_set_num_threads(threads)


def _lazy(module: str, function: str) -> Callable[..., Any]:
    """A function of a bench module that imports its library at the top, fetched on first use."""
    return lambda *arguments: getattr(importlib.import_module(module), function)(*arguments)


_STAGES = ("softmax", "logsumexp", "similarity", "fuse")
_GRAPH_STAGES = ("attention", "varlen", "softmax", "logsumexp", "fuse")
_MODULES = {"allocate": "allocation", "allocate_shared": "shared", "multihead": "multihead"}
_OWN = {name: _lazy("bench.own", name) for name in ("attention", "varlen", "cache")}
_OWN |= dict.fromkeys(_STAGES, _lazy("bench.own", "stage"))
_OWN |= {name: _lazy(f"bench.{at}", "own") for name, at in _MODULES.items()}
_FLOAT32 = dict.fromkeys(("attention", "cache"), _lazy("bench.own", "float32"))
_NUMBA = dict.fromkeys(_OWN, _lazy("bench.own", "on_numba"))
_NUMBA |= {name: _lazy(f"bench.{at}", "on_numba") for name, at in _MODULES.items()}
_TORCH = {name: _lazy("bench.peer_torch", name) for name in ("attention", *_STAGES)}
_TORCH |= {name: _lazy("bench.peer_torch_bulk", name) for name in ("varlen", "cache")}
_TORCH |= {"multihead": _lazy("bench.multihead", "in_torch")}
_own_threads = _lazy("bench.own", "set_threads")
_own_backend = _lazy("bench.own", "chosen_backend")
_torch_threads = _lazy("bench.peer_torch", "set_threads")

CONTENDERS: dict[str, Contender] = {
    "fastattn": Contender(("fastattn",), _OWN, _own_threads, _own_backend),
    "fastattn-float32": Contender(("fastattn",), _FLOAT32, _own_threads, _own_backend),
    "fastattn-numba": Contender(("fastattn", "numba"), _NUMBA, _own_threads, lambda: "numba"),
    "torch": Contender(("torch",), _TORCH, _torch_threads),
    "torch-padding": Contender(
        ("torch",), {"varlen": _lazy("bench.peer_torch_bulk", "padding_timed")}, _torch_threads
    ),
    "torch-buckets": Contender(
        ("torch",), {"varlen": _lazy("bench.peer_torch_bulk", "buckets")}, _torch_threads
    ),
    "onnxruntime": Contender(
        ("onnxruntime", "onnx"),
        {name: _lazy("bench.peer_onnxruntime", name) for name in _GRAPH_STAGES},
    ),
    "openvino": Contender(
        ("openvino",), {name: _lazy("bench.peer_openvino", name) for name in _GRAPH_STAGES}
    ),
    "numpy": Contender(
        ("numpy",),
        {
            "attention": _numpy_attention,
            "varlen": _numpy_varlen,
            "softmax": _numpy_rowwise,
            "logsumexp": _numpy_rowwise,
            "similarity": _numpy_similarity,
            "fuse": _numpy_fuse,
            "allocate": _lazy("bench.allocation", "numpy_allocate"),
            "allocate_shared": _lazy("bench.shared", "numpy_allocate_shared"),
            "multihead": _lazy("bench.multihead", "in_numpy"),
        },
        _blas_threads,
    ),
    "scipy": Contender(
        ("scipy",),
        {
            "softmax": _scipy_rowwise,
            "logsumexp": _scipy_rowwise,
            "similarity": _scipy_similarity,
        },
        _blas_threads,
    ),
    "scikit-learn": Contender(("sklearn",), {"similarity": _sklearn_similarity}, _blas_threads),
    "faiss": Contender(("faiss",), {"similarity": _faiss_similarity}, _faiss_threads),
}


def versions(names: Sequence[str]) -> dict[str, str]:
    """The installed version of every library that the named contenders require, and of NumPy."""
    modules = ["numpy", "numba", *(m for name in names for m in CONTENDERS[name].requires)]
    distributions = importlib.metadata.packages_distributions()
    found = {}
    for module in dict.fromkeys(modules):
        if _is_installed(module):
            library = distributions.get(module.partition(".")[0], [module])[0]
            found[library] = _version(library, module)
    return found


def _version(library: str, module: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return str(getattr(importlib.import_module(module), "__version__", "?"))
