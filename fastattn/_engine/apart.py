"""Query heads that cannot share the packed keys of their group: an entry for each."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastattn._core.options import HEAD, KEY, QUERY, SEQUENCE, rows_of
from fastattn._core.places import Packed, Pages
from fastattn._core.problem import Problem

__all__ = ["apart", "in_entries"]


def apart(problem: Problem) -> Problem:
    """View (*batch, Hkv, G, ...) as (*batch, Hkv, G, 1, ...) where heads differ in their keys.

    Distances take the power of two of a scale onto packed keys or onto differences, so that heads
    of other scales pack keys of their own. Every other factor goes onto rows of queries.
    """
    query, scale, place = problem.query, problem.options.scale, problem.place
    groups = query.shape[-3]
    one_scale = not isinstance(scale, np.ndarray)
    if one_scale or problem.options.similarity != "euclidean" or groups == 1:
        return problem

    def own(array: Any, trailing: int) -> Any:
        return np.expand_dims(array, -1 - trailing) if isinstance(array, np.ndarray) else array

    def shared(array: Any, trailing: int) -> Any:
        if array is None:
            return None
        at: int = array.ndim - trailing
        shape = (*array.shape[:at], groups, *array.shape[at:])
        return np.broadcast_to(np.expand_dims(array, at), shape)

    # Sequences end to end have arrays of their own kinds along them, without heads.
    kinds = (HEAD,) if isinstance(place, Packed) else (HEAD, SEQUENCE, QUERY, KEY)
    extras = {
        row.name: own(getattr(problem.extras, row.name), int(row.kind in (QUERY, KEY)))
        for row in rows_of(*kinds)
    }
    if isinstance(place, Pages):
        tables = ("key", "value", "key_scale", "value_scale")
        place = place._replace(**{name: shared(getattr(place, name), 1) for name in tables})
    return problem._replace(
        query=own(query, 2),
        key=shared(problem.key, 2),
        value=shared(problem.value, 2),
        mask=own(problem.mask, 2),
        options=problem.options._replace(scale=own(scale, 0)),
        extras=problem.extras._replace(**extras),
        place=place,
    )


def in_entries(problem: Problem, array: Any, trailing: int) -> Any:
    """View a result (*batch, Hkv, G, ...) or sinks as the entries of a problem have it."""
    if array is None or array.ndim - trailing == problem.query.ndim - 2:
        return array
    return np.expand_dims(array, -1 - trailing)
