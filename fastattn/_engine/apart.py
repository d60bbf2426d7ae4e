"""Query heads that cannot share the packed keys of their group: an entry for each."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from fastattn._core.problem import Problem
from fastattn._core.ragged import RaggedProblem

from .kernels import Kernels
from .variants import choose

__all__ = ["apart", "arranged", "in_entries"]

_AnyProblem = TypeVar("_AnyProblem", Problem, RaggedProblem)


def arranged(kernels: Kernels, problem: _AnyProblem) -> _AnyProblem:
    """Return a problem as these kernels take it: its products chosen, heads apart."""
    return apart(problem._replace(products=choose(kernels.products, problem)))


def apart(problem: _AnyProblem) -> _AnyProblem:
    """View (*batch, Hkv, G, ...) as (*batch, Hkv, G, 1, ...) where heads differ in their keys.

    Distances take the power of two of a scale onto packed keys or onto differences, so that heads
    of other scales pack keys of their own. Every other factor goes onto rows of queries.
    """
    query, scale = problem.query, problem.scale
    groups = query.shape[-3]
    if not isinstance(scale, np.ndarray) or problem.similarity != "euclidean" or groups == 1:
        return problem

    def own(array: Any, trailing: int) -> Any:
        return np.expand_dims(array, -1 - trailing) if isinstance(array, np.ndarray) else array

    def shared(array: Any, trailing: int) -> Any:
        if array is None:
            return None
        at: int = array.ndim - trailing
        shape = (*array.shape[:at], groups, *array.shape[at:])
        return np.broadcast_to(np.expand_dims(array, at), shape)

    changed: dict[str, Any] = {
        "query": own(query, 2),
        "key": shared(problem.key, 2),
        "value": shared(problem.value, 2),
        "scale": own(scale, 0),
        "alibi_slopes": own(problem.alibi_slopes, 0),
        "sinks": own(problem.sinks, 0),
    }
    if isinstance(problem, Problem):
        changed |= {
            "mask": own(problem.mask, 2),
            "key_lengths": own(problem.key_lengths, 0),
            "query_offset": own(problem.query_offset, 0),
            "query_segments": own(problem.query_segments, 1),
            "key_segments": own(problem.key_segments, 1),
        }
        pages = problem.pages
        if pages is not None:
            tables = ("key", "value", "key_scale", "value_scale")
            spread = {name: shared(getattr(pages, name), 1) for name in tables}
            changed["pages"] = pages._replace(**spread)
    return problem._replace(**changed)


def in_entries(problem: Problem | RaggedProblem, array: Any, trailing: int) -> Any:
    """View a result (*batch, Hkv, G, ...) or sinks as the entries of a problem have it."""
    if array is None or array.ndim - trailing == problem.query.ndim - 2:
        return array
    return np.expand_dims(array, -1 - trailing)
