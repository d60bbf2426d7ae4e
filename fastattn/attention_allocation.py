"""Attention with a budget: similarity, weights, allocation and fusion in one call."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fastattn._core import names
from fastattn._core.arrays import as_array
from fastattn._core.environment import default_environment
from fastattn._core.foreign import is_only_exported
from fastattn._core.recipe import ONE_NUMBER_PER_KEY
from fastattn.allocation import allocate
from fastattn.attention import attention
from fastattn.fusion import fuse

if TYPE_CHECKING:
    from fastattn._core.annotations import (
        ArrayLike,
        BackendName,
        Causal,
        Method,
        OnUnspent,
        Similarity,
        Window,
    )

__all__ = ["AllocationResult", "attention_allocation"]


@dataclass(frozen=True, eq=False)
class AllocationResult:
    """What `attention_allocation` found, query by query.

    Attributes
    ----------
    weights : ndarray, DataFrame or Series, (..., L, S)
        Attention weights: each row adds up to 1.
    allocation : ndarray, DataFrame or Series, (..., L, S)
        What each key receives of each query's budget.
    output : ndarray, DataFrame, Series or None, (..., L, Ev)
        Values weighed with the allocation and added up; None where there were no values.
    unspent : ndarray, Series or None, (..., L)
        What caps left of each budget, with ``on_unspent="keep"``; otherwise None.

    Examples
    --------
    >>> import fastattn
    >>> result = fastattn.attention_allocation([1.0], [[1.0], [1.0]], budget=8, upper=3,
    ...                                        on_unspent="keep")
    >>> result.allocation, result.unspent
    (array([3., 3.]), np.float64(2.0))
    """

    weights: Any
    allocation: Any
    output: Any
    unspent: Any = None


@names.closed
@default_environment()
def attention_allocation(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike | None = None,
    *,
    budget: ArrayLike = 1.0,
    lower: ArrayLike = 0,
    upper: ArrayLike | None = None,
    unit: float | None = None,
    method: Method = "largest_remainder",
    on_unspent: OnUnspent = "raise",
    similarity: Similarity = "cosine",
    scale: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: Causal = False,
    query_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> AllocationResult:
    r"""Hand out each query's budget among the keys, by attention, and fuse the values with it.

    .. math:: w_{ij} = \operatorname{softmax}_j s(q_i, k_j), \quad
              a_{ij} = \min(\max(\theta_i w_{ij}, l_{ij}), u_{ij}), \quad o_i = \sum_j a_{ij} v_j

    with the :math:`\theta_i` that spends the budget of query i. A budget of 1 without bounds is
    attention itself, to rounding.

    Parameters
    ----------
    query : array_like, DataFrame or Series, (..., L, E) or (E,)
        The present needs; a 1-D array is one query, and the result loses its L axis.
    key : array_like or DataFrame, (..., S, E)
        What may receive a share. Batch dims broadcast.
    value : array_like or DataFrame, (..., S, Ev), optional
        What the keys carry. None: only weights and allocation are wanted.
    budget : array_like, broadcasts to (..., L)
        What each query hands out; finite, not negative.
    lower, upper, unit, method, on_unspent
        As for `allocate`, over the last axis of (..., L, S). A hidden key gets nothing, whatever
        its lower bound.
    similarity : {"cosine", "scaled_dot", "dot", "euclidean"}
        As for `attention`.
    scale, mask, causal, query_offset, window, key_lengths, query_segments, key_segments
        As for `attention`; a larger scale gives more to the most similar.
    backend, threads
        As for `attention`.

    Returns
    -------
    AllocationResult
        Weights of the dtype of query and key, allocation in float64 (int64 with an int `unit`).
        Where query, key or value are pandas objects, so are the results, with their labels.

    Raises
    ------
    ValueError
        Where `attention` or `allocate` would; also if labels of pandas objects that must be the
        same are not, or a query has NaN for weights.
    TypeError
        Where `attention` or `allocate` would.

    Notes
    -----
    The weights are an L × S array in memory, and so is the allocation. What a hidden key or value
    holds, NaN included, reaches no result. Labels are compared, never sorted. Bits depend on each
    row alone, as those of `attention` do.

    Softmax makes a visible key's weight 0 where its score is some 100 below the largest in float32,
    some 740 in float64. It then gets its lower bound alone, even if the caps of the others leave
    something: take a smaller `scale`, or float64. Weights in proportion to the similarity itself
    need no softmax: ``allocate(numpy.maximum(similarity(query, key), 0), budget)``.

    References
    ----------
    .. [1] D. Bahdanau, K. Cho, Y. Bengio, "Neural Machine Translation by Jointly Learning to Align
       and Translate", ICLR 2015, for weights as shares of attention.

    Examples
    --------
    The worked example of an article on allocating attention gives its query three components and
    its keys two:

    >>> import fastattn
    >>> keys = [[0.5, 0.3], [0.4, 0.5], [0.2, 0.4]]
    >>> values = [[0.6, 0.7], [0.8, 0.9], [0.1, 0.2]]
    >>> fastattn.attention_allocation([0.1, 0.2, 0.3], keys, values)
    Traceback (most recent call last):
        ...
    ValueError: query has 3 components and key 2: query (3,), key (3, 2); a query is compared with
    every key component by component, so keep what they share, e.g.
    `np.asarray(query)[..., :2]`, or bring both into one space

    Of the first two, which it goes on with, the cosines are 0.84366, 0.97780 and 1.00000:

    >>> result = fastattn.attention_allocation([0.1, 0.2], keys, values)
    >>> result.weights.round(5), result.output.round(4)
    (array([0.30186, 0.3452 , 0.35294]), array([0.4926, 0.5926]))

    Of 100 the first may take a quarter at most; or there are ten whole hours:

    >>> result = fastattn.attention_allocation([0.1, 0.2], keys, budget=100.0, upper=[25, 100, 100])
    >>> result.allocation.round(2)
    array([25.  , 37.08, 37.92])
    >>> fastattn.attention_allocation([0.1, 0.2], keys, budget=10, unit=1).allocation
    array([3, 3, 4])
    """
    if unknown:
        names.refuse(attention_allocation, unknown)
    operands: dict[str, Any] = {"query": query, "key": key, "value": value, "budget": budget}
    operands |= {"lower": lower, "upper": upper, "mask": mask}
    query, key, value, budget, lower, upper, mask = (
        as_array(name, x) if is_only_exported(x) else x for name, x in operands.items()
    )
    labels = _Labels(query, key, value, budget, lower, upper, mask)
    value = None if value is None else _values(value)
    engine: dict[str, Any] = {"backend": backend, "threads": threads}
    query, key = as_array("query", query), as_array("key", key)
    _check_features(query.shape, key.shape)
    nothing = np.empty((*key.shape[:-1], 0), key.dtype if key.dtype.kind == "f" else np.float64)
    visibility: dict[str, Any] = {
        "mask": mask,
        "causal": causal,
        "query_offset": query_offset,
        "window": window,
        "key_lengths": key_lengths,
        "query_segments": query_segments,
        "key_segments": key_segments,
    }
    hiding = {name: x for name, x in visibility.items() if x is not None and x is not False}
    scoring: dict[str, Any] = {"similarity": similarity, "scale": scale}
    _, weights = attention(query, key, nothing, return_weights=True, **scoring, **hiding, **engine)
    where = _visible(query, key, hiding, engine) if hiding else None
    _check_weights(weights, key)
    handed = allocate(
        weights,
        budget,
        lower=lower,
        upper=upper,
        unit=unit,
        where=where,
        method=method,
        on_unspent=on_unspent,
        **engine,
    )
    allocation, unspent = handed if on_unspent == "keep" else (handed, None)
    output = None if value is None else _fused(allocation, value, where, engine)
    return labels.put_on(AllocationResult(weights, allocation, output, unspent))


def _check_features(query: tuple[int, ...], key: tuple[int, ...]) -> None:
    if query and len(key) > 1 and query[-1] != key[-1]:
        longer = "query" if query[-1] > key[-1] else "key"
        raise ValueError(
            f"query has {query[-1]} components and key {key[-1]}: query {query}, key {key}; a "
            "query is compared with every key component by component, so keep what they share, "
            f"e.g. `np.asarray({longer})[..., :{min(query[-1], key[-1])}]`, or bring both into one "
            "space"
        )


def _visible(
    query: np.ndarray, key: np.ndarray, hiding: dict[str, Any], engine: dict[str, Any]
) -> np.ndarray:
    """Tell which keys each query sees, asking attention: of equal scores none has weight 0."""
    mask = hiding.get("mask")
    if mask is not None and np.asarray(mask).dtype != np.bool_:
        hiding = {**hiding, "mask": np.asarray(mask) != -np.inf}
    queries, keys = (np.zeros((*x.shape[:-1], 1), np.float32) for x in (query, key))
    _, weights = attention(queries, keys, keys, return_weights=True, **hiding, **engine)
    seen: np.ndarray = weights > 0
    return seen


def _values(value: Any) -> np.ndarray:
    array = as_array("value", value)
    if array.ndim < 2:
        raise ValueError(
            f"value has shape {array.shape}; (..., S, Ev) is needed"
            + (
                ": one number per key is `value.to_frame()`"
                if hasattr(value, "to_frame")
                else ONE_NUMBER_PER_KEY * (array.ndim == 1)
            )
        )
    return array


def _check_weights(weights: np.ndarray, key: np.ndarray) -> None:
    """Raise where a score was NaN or +inf, which makes all weights of its query NaN."""
    wrong = np.isnan(weights)
    if not wrong.any():
        return
    *row, _ = map(int, np.argwhere(wrong)[0])
    strange = np.argwhere(~np.isfinite(np.asarray(key, np.float64)).all(axis=-1))
    whose = f"key {', '.join(map(str, strange[0].tolist()))}" if len(strange) else "the query"
    raise ValueError(
        f"the weights of query {', '.join(map(str, row)) or '0'} are nan, since a score is nan or "
        f"inf: look at {whose}; a mask hides keys, and budget 0 goes with a query that sees none"
    )


def _fused(
    amounts: np.ndarray, value: np.ndarray, seen: np.ndarray | None, engine: dict[str, Any]
) -> np.ndarray:
    """Add values up by amount; what a hidden value holds, NaN included, has no part in it."""
    strange = ~np.isfinite(value)
    if seen is None or not strange.any():
        return fuse(amounts, value, **engine)
    plain = value.copy()
    plain[strange] = 0
    total = fuse(amounts, plain, **engine)
    # NaN and inf go to the sums of those who see them; to the others 0 is added.
    keys = np.flatnonzero(strange.any(axis=(*range(value.ndim - 2), -1)))
    value, strange = value[..., keys, :], strange[..., keys, :]
    rows, seen = (np.atleast_2d(x)[..., keys] for x in (amounts, seen))
    sums = total if amounts.ndim > 1 else total[None]
    for i in range(rows.shape[-2]):
        mine = seen[..., i, :, None] & strange
        sums[..., i, :] += np.where(mine, rows[..., i, :, None] * value, 0).sum(axis=-2)
    return total


def _is_pandas(x: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(x, (pandas.DataFrame, pandas.Series))


class _Labels:
    """The labels of pandas operands, checked against each other, for the results."""

    def __init__(
        self, query: Any, key: Any, value: Any, budget: Any, lower: Any, upper: Any, mask: Any
    ) -> None:
        self.needed = any(map(_is_pandas, (query, key, value)))
        one_query = np.ndim(query) == 1
        self.name = query.name if one_query and _is_pandas(query) else None
        self.features = _axis(query, -1)
        self.queries = None if one_query else _axis(query, 0)
        self.keys = _axis(key, 0)
        self.values = _axis(value, 1)
        _same("the columns of key", _axis(key, 1), "those of query", self.features)
        _same("the index of value", _axis(value, 0), "that of key", self.keys)
        for name, x in (("lower", lower), ("upper", upper), ("mask", mask)):
            _same(f"the labels of {name}", _axis(x, -1), "the index of key", self.keys)
            if np.ndim(x) == 2:
                _same(f"the index of {name}", _axis(x, 0), "that of query", self.queries)
        if not one_query:
            _same("the index of budget", _axis(budget, 0), "that of query", self.queries)

    def put_on(self, result: AllocationResult) -> AllocationResult:
        """Return the result with labels, where the operands had some."""
        if not self.needed:
            return result
        return AllocationResult(
            self._labelled(result.weights, self.keys),
            self._labelled(result.allocation, self.keys),
            self._labelled(result.output, self.values),
            self._labelled(result.unspent, None),
        )

    def _labelled(self, array: Any, columns: Any) -> Any:
        """Make a DataFrame or Series of a result; more dims than two have no labels."""
        pandas = sys.modules["pandas"]
        if array is None or np.ndim(array) not in (1, 2):
            return array
        if array.ndim == 2:
            return pandas.DataFrame(array, index=self.queries, columns=columns)
        rows = self.queries if columns is None else columns
        return pandas.Series(array, index=rows, name=self.name)


def _axis(x: Any, axis: int) -> Any:
    """Return the labels along an axis of a pandas object, else None."""
    if not _is_pandas(x):
        return None
    axes = x.axes
    return axes[axis] if -len(axes) <= axis < len(axes) else None


def _same(name: str, labels: Any, other: str, expected: Any) -> None:
    if labels is None or expected is None or labels.equals(expected):
        return
    raise ValueError(
        f"{name} and {other} differ: {list(labels)[:8]} and {list(expected)[:8]}; bring them into "
        "one order, or pass plain arrays if they mean the same"
    )
