"""fastattn as a contender: always the plain public call, with nothing done ahead of it.

``fastattn-float32`` is no peer: it is fastattn on the same numbers in float32 arrays, beside the
cases in halves and from a cache, so that what a narrow dtype gains stands in the same rounds. Nor
is ``fastattn-numba``: the same call on the backend that compiles at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastattn
from bench.cases import Arrays, Case
from bench.contender import Refused, Variant

_ARRAY_OPTIONS = ("mask", "alibi_slopes", "sinks", "query_segments", "key_segments")
_OPTIONS = ("causal", "window", "enable_gqa", "return_weights")


def _as_it_is(result: Any) -> Any:
    return result


def _options(case: Case, arrays: Arrays, threads: int) -> dict[str, Any]:
    given = {name: arrays[name] for name in _ARRAY_OPTIONS if name in arrays}
    given |= {name: case.options[name] for name in _OPTIONS if name in case.options}
    return given | {"threads": threads}


def attention(
    case: Case, arrays: Arrays, threads: int, backend: str | None = None
) -> dict[str, Variant]:
    """``fastattn.attention``."""
    options = _options(case, arrays, threads) | {"backend": backend}
    query, key, value = (arrays[name] for name in ("query", "key", "value"))
    run = lambda: fastattn.attention(query, key, value, **options)  # noqa: E731
    return {"": Variant(run, _as_it_is)}


def varlen(
    case: Case, arrays: Arrays, threads: int, backend: str | None = None
) -> dict[str, Variant]:
    """``fastattn.attention_varlen`` on the packed arrays, or on the table and the list."""
    options = _options(case, arrays, threads) | {"backend": backend}
    names = ("query", "key", "value", "query_splits", "key_splits")
    operands = tuple(arrays[name] for name in names)
    if "key_indices" in arrays:
        options["key_indices"] = arrays["key_indices"]
    run = lambda: fastattn.attention_varlen(*operands, **options)  # noqa: E731
    return {"": Variant(run, _as_it_is)}


def cache(
    case: Case, arrays: Arrays, threads: int, backend: str | None = None
) -> dict[str, Variant]:
    """``KVCache.attend`` over a cache that was filled before."""
    batch, heads, _, features = case.shapes["key"]
    filled = fastattn.KVCache(batch, heads, features, dtype=case.dtype)
    filled.append(arrays["key"], arrays["value"])
    query = arrays["query"]
    return {"": Variant(lambda: filled.attend(query, threads=threads, backend=backend), _as_it_is)}


def float32(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """``fastattn.attention`` on the same numbers, float32 and in plain arrays."""
    if case.operation == "attention" and case.dtype not in ("float16", "bfloat16"):
        raise Refused("no such operation")
    wide = {
        name: array.astype(np.float32) if name in ("query", "key", "value", "mask") else array
        for name, array in arrays.items()
    }
    return attention(case, wide, threads)


def stage(
    case: Case, arrays: Arrays, threads: int, backend: str | None = None
) -> dict[str, Variant]:
    """A stage on its own, into an array that exists where the case has one."""
    function: Callable[..., Any] = getattr(fastattn, case.operation)
    options: dict[str, Any] = {"backend": backend}
    if case.operation == "similarity":
        shape = (case.shapes["query"][0], case.shapes["key"][0])
        options |= {"metric": case.options["metric"], "out": np.empty(shape, case.dtype)}
    elif case.operation in ("softmax", "logsumexp"):
        options |= {"axis": case.options["axis"]}
        if case.options["out"]:
            options["out"] = np.empty_like(arrays["x"])
    operands = tuple(arrays.values())
    return {"": Variant(lambda: function(*operands, **options))}


def linear(
    case: Case, arrays: Arrays, threads: int, backend: str | None = None
) -> dict[str, Variant]:
    """``fastattn.linear`` into an array that exists."""
    x, weight, bias = (arrays[name] for name in ("x", "weight", "bias"))
    out = np.empty((len(x), len(bias)), x.dtype)
    held = fastattn.pack_linear(weight) if case.options["packed"] else weight
    return {"": Variant(lambda: fastattn.linear(x, held, bias, out=out, backend=backend))}


def on_numba(case: Case, arrays: Arrays, threads: int) -> dict[str, Variant]:
    """The same call on the numba backend."""
    functions = {"attention": attention, "varlen": varlen, "cache": cache, "linear": linear}
    return functions.get(case.operation, stage)(case, arrays, threads, "numba")


def chosen_backend() -> str:
    """The backend of a call that names none."""
    return str(fastattn.explain([1.0], [[1.0]], [[1.0]]).backend)


def set_threads(threads: int) -> None:
    """fastattn's own number of threads."""
    fastattn.set_threads(threads)
