"""The ragged face: sequences of any lengths, packed end to end or gathered from tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fastattn._core import backends, names
from fastattn._core.arrays import deliver, new_array, result_array
from fastattn._core.environment import default_environment
from fastattn._core.options import asked
from fastattn._core.places import Packed
from fastattn._core.ragged import head_major, ragged_problem
from fastattn._core.threads import resolve

if TYPE_CHECKING:
    from fastattn._core.annotations import ArrayLike, BackendName, Causal, Similarity, Window

__all__ = ["attention_varlen"]


@names.closed
@default_environment()
def attention_varlen(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    query_splits: ArrayLike,
    key_splits: ArrayLike,
    *,
    key_indices: ArrayLike | None = None,
    similarity: Similarity = "scaled_dot",
    scale: ArrayLike | None = None,
    causal: Causal = False,
    query_offset: ArrayLike | None = None,
    window: Window | None = None,
    query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    partial: bool = False,
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> Any:
    r"""Attend in many sequences of different lengths, without padding.

    The sequences lie end to end in one array each of queries, keys and values. Sequence b is a call
    of `attention` of its own,

    .. math::

        o_i = \frac{\sum_j e^{s_{ij}} v_j}{\sum_j e^{s_{ij}}}, \quad
        i \in [Q_b, Q_{b+1}), \; j \in [K_b, K_{b+1})

    with :math:`Q` the `query_splits` and :math:`K` the `key_splits`, and gives the very bits of
    that call.

    Parameters
    ----------
    query : array_like, (total queries, H, E) or (total queries, E)
        The queries of all sequences, end to end; H heads on the middle axis, or none.
    key : array_like, (total keys, Hkv, E) or (total keys, E)
        The keys of all sequences; with `key_indices` a table of keys.
    value : array_like, (total keys, Hkv, Ev) or (total keys, Ev)
        One row per key.
    query_splits, key_splits : int array, (batch + 1,)
        Sequence b is ``splits[b] : splits[b + 1]``, never decreasing; empty sequences are fine.
        From lengths: ``np.r_[0, np.cumsum(lengths)]``; these are Arrow's list offsets and
        FlashAttention's ``cu_seqlens``. They begin at 0 and end at the number of queries, and of
        keys (with `key_indices`, of those), unless `partial` says otherwise.
    key_indices : int array, 1-D, optional
        Row numbers of the tables `key` and `value`: sequence b sees rows
        ``key_indices[key_splits[b] : key_splits[b + 1]]``, read where they lie. int32 and int64
        are used in place.
    similarity, softcap, enable_gqa, backend, threads
        As for `attention`.
    scale : float or float array, (H,), optional
        As for `attention`; the heads are the whole batch here.
    causal : bool or {"top_left", "bottom_right"}
        As for `attention`, in each sequence by its own lengths: "bottom_right" lets the last query
        of each sequence see its last key.
    query_offset : int or int array (batch,), optional
        Position of each sequence's first query on its own key axis.
    window : tuple (left, right), optional
        As for `attention`.
    query_segments, key_segments : int array, (total queries,) and (total keys,), optional
        Attend within equal ids only. With `key_indices` the ids go along that list.
    alibi_slopes, sinks : float array, (H,), optional
        As for `attention`.
    return_lse : bool
        Append the natural-log log-sum-exp of each row's scores.
    partial : bool
        True: splits may begin after the first row and end before the last, as the offsets of a
        slice of Arrow lists do. Query rows before and behind them belong to no sequence and give
        0, with lse -inf; such keys and indices are not looked at. False: an error, which lengths
        given for splits run into.
    out : ndarray, (total queries, H, Ev) or (total queries, Ev), optional
        Where to store the output; may overlap an input. None: a new array.

    Returns
    -------
    output : ndarray, (total queries, H, Ev) or (total queries, Ev)
        Of the dtype `attention` gives. `out` itself where given.
    lse : ndarray, (total queries, H) or (total queries,)
        Only with `return_lse`, of the dtype `attention` gives it.

    Raises
    ------
    ValueError
        If shapes do not fit each other, splits decrease, leave their array or do not cover it, an
        index leaves the tables, or an option is wrong as for `attention`; nothing has been computed
        then.
    TypeError
        If splits or indices are no integers, an option is unknown, or as for `attention`.

    See Also
    --------
    attention : one batch of equal lengths.
    KVCache : sequences that grow.

    Notes
    -----
    Work is balanced by keys, not by sequences. Gathered rows are read inside the kernel: memory
    beside inputs and results is scratch, and 40 bytes a sequence. The bits of a row depend on
    its own sequence alone: not on its neighbours, their order or number, nor on whether its keys
    are packed, gathered or in a `KVCache`. Tables are best row-major: of one whose columns lie
    together every element is a cache line of its own, which takes four times as long for a table
    of thousands of rows, and up to fourteen for one of a million.

    References
    ----------
    .. [1] T. Dao, "FlashAttention-2", 2023 (``flash_attn_varlen_func``, ``cu_seqlens``).

    Examples
    --------
    Two users with histories of one and two items, one query each:

    >>> import numpy as np, fastattn
    >>> items = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> fastattn.attention_varlen(
    ...     np.array([[1.0, 0.0], [0.0, 5.0]]), items, items, [0, 1, 2], [0, 1, 3]
    ... ).round(2)
    array([[1. , 0. ],
           [0.5, 1. ]])

    The same items as a table, and the row numbers of what each user saw: the first saw item 2, the
    second the items 0 and 1.

    >>> fastattn.attention_varlen(
    ...     np.array([[1.0, 0.0], [0.0, 5.0]]), items, items, [0, 1, 2], [0, 1, 3],
    ...     key_indices=[2, 0, 1],
    ... ).round(2)
    array([[1.  , 1.  ],
           [0.03, 0.97]])
    """
    if unknown:
        names.refuse(attention_varlen, unknown)
    options, extras = asked(locals())
    made, problem, place = ragged_problem(
        query,
        key,
        value,
        options,
        extras,
        query_splits=query_splits,
        key_splits=key_splits,
        key_indices=key_indices,
        partial=partial,
    )
    wanted, workers = backends.choose(backend), resolve(threads)
    # Results first: where there is no room for them there is none for a plan, and they have names.
    inputs = (problem.query, problem.key, problem.value, place.indices)
    output = result_array(out, problem.output_shape, problem.output_dtype, inputs)
    with_lse = problem.options.return_lse
    lse = new_array(problem.output_shape[:-1], problem.dtype) if with_lse else None
    execution = backends.prepare(problem, wanted, workers)
    _clear_outside(place, output, lse)
    results = (_heads_first(output), None if lse is None else head_major(lse), None)
    spread = made.canonical(results)
    execution.run(spread[0], spread[1], None)
    output = deliver(output, out)
    return output if lse is None else (output, lse)


def _heads_first(output: np.ndarray) -> np.ndarray:
    return head_major(output) if output.ndim == 3 else output


def _clear_outside(place: Packed, output: np.ndarray, lse: np.ndarray | None) -> None:
    """Rows that belong to no sequence see no key."""
    first, last = int(place.query_splits[0]), int(place.query_splits[-1])
    for outside in (slice(None, first), slice(last, None)):
        output[outside] = 0
        if lse is not None:
            lse[outside] = -np.inf
