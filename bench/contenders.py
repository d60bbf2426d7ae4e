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
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bench import peer_numpy
from bench.cases import Arrays, Case
from bench.contender import Contender, Refused, Variant, is_installed


def load(names: Sequence[str]) -> None:
    """Import what the named contenders need, torch first and fastattn last.

    numba's OpenMP layer switches nested parallelism on in the system's libgomp. A torch imported
    after that shares the library and was seen to take 250 ms for what it does in 50.
    """
    needed = dict.fromkeys(module for name in names for module in CONTENDERS[name].requires)
    for module in sorted(needed, key=lambda module: (module == "fastattn", module != "torch")):
        importlib.import_module(module)


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
_MODULES = {
    "allocate": "bench.allocation",
    "allocate_shared": "bench.shared",
    "multihead": "bench.multihead",
}
_OWN = {name: _lazy("bench.own", name) for name in ("attention", "varlen", "cache", "linear")}
_OWN |= dict.fromkeys(_STAGES, _lazy("bench.own", "stage"))
_OWN |= {name: _lazy(at, "own") for name, at in _MODULES.items()}
_FLOAT32 = dict.fromkeys(("attention", "cache"), _lazy("bench.own", "float32"))
_NUMBA = dict.fromkeys(_OWN, _lazy("bench.own", "on_numba"))
_NUMBA |= {name: _lazy(at, "on_numba") for name, at in _MODULES.items()}
_TORCH = {name: _lazy("bench.peer_torch", name) for name in ("attention", "linear", *_STAGES)}
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
            "attention": peer_numpy.attention,
            "varlen": peer_numpy.varlen,
            "softmax": peer_numpy.rowwise,
            "logsumexp": peer_numpy.rowwise,
            "similarity": peer_numpy.similarity,
            "fuse": peer_numpy.fuse,
            "linear": peer_numpy.linear,
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
        if is_installed(module):
            library = distributions.get(module.partition(".")[0], [module])[0]
            found[library] = _version(library, module)
    return found


def _version(library: str, module: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return str(getattr(importlib.import_module(module), "__version__", "?"))
