"""The public face of attention: validate, choose a backend, hand over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fastattn._core import backends, kept, names
from fastattn._core import problem as problems
from fastattn._core.arrays import check_out
from fastattn._core.environment import default_environment
from fastattn._core.options import NO_EXTRAS, Extras, asked, spelt
from fastattn._core.recipe import Recipe, Results, recipe, signature
from fastattn._core.scales import is_small
from fastattn._core.threads import resolve

if TYPE_CHECKING:
    from fastattn._core.annotations import ArrayLike, BackendName, Causal, Similarity, Window
    from fastattn._core.execution import Execution

__all__ = ["attention", "explain"]


@names.closed
def attention(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    similarity: Similarity = "scaled_dot",
    scale: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: Causal = False,
    query_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    return_weights: bool = False,
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> Any:
    r"""Attend: average the values, each weighted by how similar its key is to the query.

    .. math::

        s_{ij} = c \tanh(\mathrm{scale} \cdot \mathrm{sim}(q_i, k_j) / c) + m_{ij}
        - a \, |i + \mathrm{offset} - j|, \quad
        o_i = \frac{\sum_j e^{s_{ij}} v_j}{e^{z} + \sum_j e^{s_{ij}}}

    over the keys :math:`j` visible to query row :math:`i`, where :math:`c` is `softcap` (no tanh
    when None), :math:`m` a float `mask`, and :math:`a` and :math:`z` the slope and the sink of the
    head (no such terms when None). The scores are never all in memory.

    Parameters
    ----------
    query : array_like, (..., L, E) or (E,)
        L queries of E features. A 1-D query is one query, and the results lose their L axis.
    key : array_like, (..., S, E)
        S keys. Batch dims broadcast as in NumPy, without copies.
    value : array_like, (..., S, Ev)
        One row per key; ``Ev != E`` is ordinary.
    similarity : {"scaled_dot", "dot", "cosine", "euclidean"}
        ``dot`` and ``scaled_dot``: :math:`q \cdot k`; ``cosine``: :math:`q \cdot k / (|q||k|)`, 0
        for a zero vector; ``euclidean``: :math:`-|q - k|^2`, from differences.
    scale : float or float array over the batch dims, optional
        Factor of the similarity, any finite number; or one per head, as learned where queries and
        keys are normalised. An array has exactly as many dims as the batch, heads included, with
        size 1 where shared; each head has the bits of a call with its own number. None:
        ``1/sqrt(E)`` for ``scaled_dot`` (1 when E is 0), 1 for the others.
    mask : array_like, broadcasts to (..., L, S), optional
        bool: True where a query may attend; float: added to the scores, -inf hides.
        It does not change the dtype of the result. A float mask of only 0 and 1, hardly ever
        meant to be added, is warned of. Where it hides 64 keys in a row from a few dozen queries,
        they cost nothing, and little where it shows them all, or adds 0. None: every key is
        visible.
    causal : bool or {"top_left", "bottom_right"}
        Key j is visible to row i iff ``j <= i + offset``. "top_left" means offset 0,
        "bottom_right" ``S - L`` (``key_lengths - L`` where lengths are given). True takes
        `query_offset`, or offset 0 if ``L == S``.
    query_offset : int or int array over the batch dims, optional
        Position of query row 0 on the key axis; may be negative. An array has exactly as many dims
        as the batch, heads included, with size 1 where shared. None: 0.
    window : tuple (left, right), optional
        Key j is visible to row i iff ``i + offset - left <= j <= i + offset + right``; None on a
        side, or None for the pair: unbounded.
    key_lengths : int or int array over the batch dims, optional
        Only the first n keys exist, ``0 <= n <= S``. Dims as for `query_offset`. None: all S.
    query_segments, key_segments : int array, broadcast to (..., L) and (..., S), optional
        Ids of documents packed into one row: a query attends to the keys of equal id. Give both, or
        neither; in any order, though sorted ids let whole stretches of foreign keys be skipped. A
        row of ids per batch entry, the same for all heads, is ``ids[:, None]``. None: no bound.
    softcap : float, optional
        Positive bound c of the scores, ``c * tanh(score / c)``, before the mask. None: no bound.
    alibi_slopes : float array, broadcasts to the batch dims, optional
        One slope per head, (H,): adds ``-slope * |i + offset - j|`` to the scores, the offset 0
        unless `causal` or `query_offset` say otherwise. None: no such bias.
    sinks : float array, broadcasts to the batch dims, optional
        One more score per head, (H,), neither scaled nor capped, which takes weight and has no
        value. It counts in the log-sum-exp: a row that sees no key then has its sink there. -inf
        is no sink. None: no sinks.
    enable_gqa : bool
        Grouped queries: heads are axis -3, the H query heads a multiple of the Hkv key heads, and
        query head h reads key head ``h // (H // Hkv)``.
    return_lse, return_weights : bool
        Append the natural-log log-sum-exp of each row's scores (..., L), the weights (..., L, S).
    out : ndarray, (..., L, Ev), optional
        Where to store the output; may overlap an input. None: a new array.
    backend : {"cython", "numba", "reference"}, optional
        None: `use_backend`, ``FASTATTN_BACKEND``, or ``cython`` where it was built, else ``numba``.
    threads : int, optional
        At most this many threads. None: a block of `threads`, `set_threads`, ``NUMBA_NUM_THREADS``,
        ``OMP_NUM_THREADS``, or the machine.

    Returns
    -------
    output : ndarray, (..., L, Ev)
        Of the dtype to which query, key and value promote (`np.result_type`; float16 with bfloat16:
        float32; integers and bools: float64). `out` itself where given.
    lse : ndarray, (..., L)
        Only with `return_lse`. float64 if the output is, else float32.
    weights : ndarray, (..., L, S)
        Only with `return_weights`. Of the dtype of the output.

    Raises
    ------
    ValueError
        If shapes do not fit each other, the mask does not broadcast to the scores, a name is
        unknown, a number is out of range, ``causal=True`` is ambiguous (L differs from S and no
        offset is given), or the chosen backend cannot do the call.
    TypeError
        If an operand is complex, extended precision, object, string, masked, sparse or lazy, an
        option has the wrong type, or there is no such option: those that other libraries have by
        other names are told by the names they have here.

    See Also
    --------
    explain : what the same call would do.
    attention_state : the same over keys that come in parts.

    Notes
    -----
    A row that sees no key is 0, with lse -inf and weights 0. What a hidden key or value holds, NaN
    included, never reaches a result. A NaN in a visible input reaches exactly the rows that see it.

    Accuracy: at most 1.5 times the error of plain NumPy in the same dtype, for weights as for
    outputs. A log-sum-exp near 0 is as exact as the distances of the scores to the largest; where
    that one and the logarithm of the sum cancel, as exact as both, whose roundings are left.
    float16 and bfloat16 are computed in float32 and rounded once; what float16 cannot hold becomes
    inf. Values larger than the largest float divided by S may overflow, since sums of them are
    divided last: scale them by a power of two, and the output back. Scores are those of
    `similarity`: right though their sums overflow with the scale, or without it, but not if both.

    Where the CPU multiplies pairs of bfloat16 faster than float32 (AMD from Zen 4 on), queries,
    keys and values of bfloat16 are multiplied as they are, weights are rounded to bfloat16 and
    subnormal numbers count as 0; error and lse stay as good, bits are others.
    ``FASTATTN_BFLOAT16_DOT=0`` in the environment widens everywhere.

    The bits of a row depend on that row's query, the keys and values it sees, their positions and
    the options; not on the other rows, batch, threads, memory layout, the CPU (x86-64 with AVX2 and
    FMA) or what else is returned.

    Memory: scratch grows with threads and block sizes, never with L times S, except for weights
    that are asked for. Inputs are read where they lie, any strides, and never written. Safe to
    call from many threads at once.

    References
    ----------
    .. [1] A. Vaswani et al., "Attention is all you need", 2017, section 3.2.1.
    .. [2] O. Press et al., "Train short, test long: attention with linear biases", 2022, section 3.
    .. [3] G. Xiao et al., "Efficient streaming language models with attention sinks", 2024.
    .. [4] M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, section 3.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> query = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> key = np.array([[4.0, 0.0], [0.0, 4.0]])
    >>> value = np.array([[10.0], [20.0]])
    >>> fastattn.attention(query, key, value, scale=1.0).round(3)
    array([[10.18],
           [19.82]])

    The first query under a causal mask sees the first key only:

    >>> output, weights = fastattn.attention(query, key, value, causal=True, return_weights=True)
    >>> weights.round(3)
    array([[1.   , 0.   ],
           [0.056, 0.944]])

    One query over many keys needs no extra axes:

    >>> fastattn.attention([0.1, 0.2], [[0.5, 0.3], [0.4, 0.5], [0.2, 0.4]],
    ...                    [[0.6, 0.7], [0.8, 0.9], [0.1, 0.2]], similarity="cosine").round(4)
    array([0.4926, 0.5926])

    Two documents in one row: the first two tokens see nothing of the third.

    >>> ids = np.array([0, 0, 1])
    >>> x = np.array([[1.0], [2.0], [9.0]])
    >>> fastattn.attention(x, x, x, scale=0.0, query_segments=ids, key_segments=ids)
    array([[1.5],
           [1.5],
           [9. ]])

    A scale per head, as Swin v2 learns one for its cosines; with a batch in front of the heads it
    would be ``scale[None]``.

    >>> logit_scale = np.array([[[0.7]], [[9.0]]])
    >>> scale = np.exp(np.minimum(logit_scale, np.log(100.0)))[:, 0, 0]
    >>> heads = np.broadcast_to(query, (2, 2, 2))
    >>> fastattn.attention(heads, heads, heads, similarity="cosine", scale=scale).round(2)
    array([[[0.88, 0.12],
            [0.12, 0.88]],
    <BLANKLINE>
           [[1.  , 0.  ],
            [0.  , 1.  ]]])

    A relative bias, as T5 has it, is a number for each head and distance from query to key. As a
    mask it takes no memory of L times S: row i is a window of a table of the distances from 1 - N
    to N - 1, and a view of it gives the bits of the array written out. Here are L queries, the
    first at position p (0 but for decoding), and S keys; N is at least S, and p + L.

    >>> from numpy.lib.stride_tricks import sliding_window_view
    >>> N, L, S, p = 6, 2, 5, 3
    >>> table = np.array([[0.1], [0.5]]) * np.minimum(0, np.arange(1 - N, N))
    >>> bias = sliding_window_view(table, S, axis=-1)[:, N - 1 - p :: -1][:, :L]
    >>> bias[1]
    array([[-1.5, -1. , -0.5,  0. ,  0. ],
           [-2. , -1.5, -1. , -0.5,  0. ]])
    >>> query, key = np.ones((2, L, 4)), np.ones((2, S, 4))
    >>> fastattn.attention(query, key, key, mask=bias).shape
    (2, 2, 4)

    A sink takes weight and has no value; here it takes as much as each of the two keys.

    >>> fastattn.attention([[1.0]], [[0.0], [0.0]], [[3.0], [6.0]], sinks=0.0)
    array([[3.]])
    """
    if unknown:
        names.refuse(attention, unknown)
    # Arguments are passed on by name: unpacking a tuple into a call costs a small call 0.1 µs.
    query, key, value, mask = problems.arrays(query, key, value, mask)
    extras = NO_EXTRAS
    if not (
        key_lengths is None
        and query_offset is None
        and query_segments is None
        and key_segments is None
        and alibi_slopes is None
        and sinks is None
    ):
        extras = Extras(
            query_offset, key_lengths, query_segments, key_segments, alibi_slopes, sinks
        )
    options = spelt(
        similarity, scale, causal, window, softcap, enable_gqa, return_lse, return_weights
    )
    wanted, workers = backends.choose(backend), resolve(threads)
    call = "attention", wanted, options
    if extras is NO_EXTRAS:
        found = kept.find(call, workers, out, query, key, value, mask)
        if found is not None:
            return found
    operands = query, key, value, mask
    with default_environment():
        made = recipe(signature(*operands, options, *extras.given()))
        results = made.allocate(out, operands)
        # Where `out` cannot be written straight, the call is one of another array.
        straight = out if results[0] is out else None
        if extras is NO_EXTRAS and straight is not out:
            found = kept.find(call, workers, None, *operands)
            if found is not None:
                output, lse = found if made.options.return_lse else (found, None)
                return made.deliver(output, lse, None, out)
        problem = problems.bind(made, *operands, extras)
        execution = backends.prepare(problem, wanted, workers)
        execution.run(*made.canonical(results))
        if extras is NO_EXTRAS and is_small(made.options.scale):
            _keep((call, workers, straight), made, execution, operands, results)
        return made.deliver(*results, out)


def _keep(
    call: tuple[tuple[Any, ...], int, Any],
    made: Recipe,
    execution: Execution,
    operands: tuple[np.ndarray | None, ...],
    results: Results,
) -> None:
    """Keep a call for later ones, if its backend can repeat it."""
    repeat = getattr(execution, "repeat", None)
    # Where `out` is another array, it is a new one that is kept: they lie as they are made.
    if repeat is not None and (call[2] is not None or results[0].flags.c_contiguous):
        stored = tuple(result for result in results if result is not None)
        again = repeat(made.canonical(results)[0])
        kept.keep(*call, again, operands, stored, (*operands, *stored))


@names.closed
@default_environment()
def explain(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    similarity: Similarity = "scaled_dot",
    scale: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    causal: Causal = False,
    query_offset: ArrayLike | None = None,
    window: Window | None = None,
    key_lengths: ArrayLike | None = None,
    query_segments: ArrayLike | None = None,
    key_segments: ArrayLike | None = None,
    softcap: float | None = None,
    alibi_slopes: ArrayLike | None = None,
    sinks: ArrayLike | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    return_weights: bool = False,
    out: np.ndarray | None = None,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> Execution:
    """Return what `attention` would execute with the same arguments, without executing it.

    Parameters
    ----------
    query, key, value, similarity, scale, mask, causal, query_offset, window, key_lengths
        As for `attention`.
    query_segments, key_segments, softcap, alibi_slopes, sinks
        As for `attention`.
    enable_gqa, return_lse, return_weights, out, backend, threads
        As for `attention`.

    Returns
    -------
    execution : object
        ``backend`` (its name), ``plan`` (tiles and tasks), ``scratch_bytes`` (memory beside inputs
        and results), ``refusals`` (a dict: why each backend passed over cannot do the call),
        ``problem`` (the validated call). Backends with kernels also tell ``way``: how keys and
        values are read, and why so.

    Raises
    ------
    ValueError, TypeError
        Exactly where `attention` would.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> x = np.ones((2, 8, 4), np.float32)
    >>> execution = fastattn.explain(x, x, x, causal=True, backend="reference")
    >>> execution.backend, execution.refusals
    ('reference', {})
    """
    if unknown:
        names.refuse(explain, unknown)
    operands = problems.arrays(query, key, value, mask)
    options, extras = asked(locals())
    made = recipe(signature(*operands, options, *extras.given()))
    if out is not None:
        check_out(out, made.output_shape, made.output_dtype)
    problem = problems.bind(made, *operands, extras)
    return backends.prepare(problem, backends.choose(backend), resolve(threads))
