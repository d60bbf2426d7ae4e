"""One call of attention under comparison: it runs itself, can be cut, and says what is compared."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import strategies

import fastattn
from fastattn import reference
from fastattn.reference.attention import resolve_offset

Pick = Callable[[np.ndarray], np.ndarray]


def everything(result: np.ndarray) -> np.ndarray:
    return result


@dataclass(frozen=True)
class Call:
    """One call of `fastattn.attention` with explicit positions, and what of it is compared."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)
    # By result: output (..., L, Ev), lse (..., L), weights (..., L, S).
    picks: tuple[Pick, Pick, Pick] = (everything, everything, everything)
    run_with: Callable[["Call"], tuple[np.ndarray, ...]] | None = None

    def run(self) -> tuple[np.ndarray, ...]:
        """Compute output, lse and weights (or fewer), and pick what is compared."""
        if self.run_with is not None:
            results = self.run_with(self)
        else:
            results = fastattn.attention(
                *self.arrays, **self.options, return_lse=True, return_weights=True
            )
        return tuple(pick(result) for pick, result in zip(self.picks, results, strict=False))

    def lean(self) -> tuple[np.ndarray, ...]:
        """Compute output and lse alone: the path that may cut the keys into tasks."""
        if self.run_with is not None:
            return self.run()[:2]
        results = fastattn.attention(*self.arrays, **self.options, return_lse=True)
        return tuple(pick(result) for pick, result in zip(self.picks, results, strict=False))

    def plan(self) -> Any:
        return fastattn.explain(*self.arrays, **self.options, return_lse=True).plan

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.query, self.key, self.value

    @property
    def batch(self) -> tuple[int, ...]:
        heads = self.query.shape[-3:-2]
        outer = (array.shape[:-3] for array in self.arrays)
        if not self.options.get("enable_gqa"):
            heads = np.broadcast_shapes(*(array.shape[-3:-2] for array in self.arrays))
        return (*np.broadcast_shapes(*outer), *heads)

    @property
    def rows(self) -> int:
        return self.query.shape[-2]

    @property
    def keys(self) -> int:
        return self.key.shape[-2]

    def having(self, **options: Any) -> "Call":
        return replace(self, options={**self.options, **options})

    def picking(self, *index: Any) -> "Call":
        """Compare only this part of the batch and row axes."""

        def pick(trailing: int) -> Pick:
            tail = (slice(None),) * trailing
            return lambda result: result[(*index, *tail)] if index else result

        return replace(self, picks=(pick(1), pick(0), pick(1)))

    def row_range(self, first: int, stop: int) -> "Call":
        """The same call for some of its rows."""
        options = dict(self.options)
        options["query_offset"] = options.get("query_offset", 0) + first
        if "mask" in options:
            options["mask"] = take(options["mask"], -2, slice(first, stop))
        if "query_segments" in options:
            options["query_segments"] = options["query_segments"][..., first:stop]
        return replace(self, query=self.query[..., first:stop, :], options=options)

    def key_prefix(self, keys: int) -> "Call":
        """The same call with later keys cut off."""
        options = dict(self.options)
        if "mask" in options:
            options["mask"] = take(options["mask"], -1, slice(0, keys))
        if "key_segments" in options:
            options["key_segments"] = options["key_segments"][..., :keys]
        if "key_lengths" in options:
            options["key_lengths"] = np.minimum(options["key_lengths"], keys)
        return replace(
            self, key=self.key[..., :keys, :], value=self.value[..., :keys, :], options=options
        )

    def batch_part(self, axis: int, chosen: Any) -> "Call":
        """Some of the elements of a batch axis, counted from the right (-1: the heads)."""
        query, key, value = (take(array, axis - 2, chosen) for array in self.arrays)
        options = dict(self.options)
        trailing = {"mask": 2, "query_segments": 1, "key_segments": 1}
        for name in ("scale", "key_lengths", "query_offset", "alibi_slopes", "sinks", *trailing):
            if np.ndim(options.get(name, 0)):
                options[name] = take(options[name], axis - trailing.get(name, 0), chosen)
        return replace(self, query=query, key=key, value=value, options=options)


def take(array: np.ndarray, axis: int, chosen: Any) -> np.ndarray:
    """Choose along an axis counted from the right, if the array has it and does not share it."""
    if array.ndim < -axis or array.shape[axis] == 1:
        return array
    return array[(..., chosen, *[slice(None)] * (-axis - 1))]


def call_of(case: strategies.Case) -> Call:
    """The case as a call whose rows know their positions, so that it can be cut."""
    options = {name: value for name, value in case.options.items() if name != "return_lse"}
    causal = options.get("causal", False)
    offset = resolve_offset(
        causal,
        options.get("query_offset"),
        options.get("key_lengths"),
        case.query.shape[-2],
        case.key.shape[-2],
    )
    options["causal"] = bool(causal)
    options["query_offset"] = offset if offset.ndim else int(offset)
    if "mask" in options:
        options["mask"] = np.asarray(options["mask"])
    return Call(*case.arrays, options)


def visible(call: Call) -> np.ndarray:
    """Which key each row sees: (*batch, L, S)."""
    options = {name: call.options[name] for name in call.options if name not in ("threads",)}
    weights = reference.attention(
        np.zeros_like(call.query, dtype=float),
        np.zeros_like(call.key, dtype=float),
        np.zeros_like(call.value, dtype=float),
        **{**options, "similarity": "dot", **dict.fromkeys(("softcap", "alibi_slopes", "sinks"))},
        return_weights=True,
    )[1]
    return weights > 0
