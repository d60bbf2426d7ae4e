"""Attention over keys that come in parts: states that merge, and results that merge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fastattn._core import backends, names
from fastattn._core import problem as problems
from fastattn._core.arrays import FLOAT32, as_array, check_dtype, is_bool, is_half
from fastattn._core.constants import SEGMENT_KEYS
from fastattn._core.environment import default_environment
from fastattn._core.options import Extras, Options, asked
from fastattn._core.recipe import Recipe, recipe, signature
from fastattn._core.threads import resolve
from fastattn._core.visibility import LARGEST_POSITION
from fastattn.fusion import fuse
from fastattn.normalize import logsumexp, softmax

if TYPE_CHECKING:
    from fastattn._core.annotations import ArrayLike, BackendName, Causal, Similarity, Window
    from fastattn._core.execution import Backend

__all__ = ["State", "attention_state", "merge_states"]

# What the parts of one attention have in common, beside scales, slopes and positions; masks,
# lengths and ids of documents may differ from part to part, and groups of heads show in shapes.
_SHARED = ("output_shape", "dtype", "output_dtype")
_SHARED_OPTIONS = tuple(name for name in Options._fields if name not in ("scale", "enable_gqa"))


class State:
    """Attention of some queries over one stretch of the keys, unfinished.

    Made by `attention_state`. Merging parts in order and finishing gives the very bits of one call
    over all keys. A state is never changed: both operands of `merge` stay usable.

    Attributes
    ----------
    key_start, key_stop : int
        The stretch of the key axis it has seen, half open.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> rng = np.random.default_rng(0)
    >>> query, key, value = (rng.standard_normal((n, 8)) for n in (3, 1000, 1000))
    >>> first = fastattn.attention_state(query, key[:512], value[:512])
    >>> rest = fastattn.attention_state(query, key[512:], value[512:], key_start=512)
    >>> bool(np.all(first.merge(rest).finish() == fastattn.attention(query, key, value)))
    True
    """

    __slots__ = ("_backend", "_numbers", "_recipe", "_state", "key_start", "key_stop")

    key_start: int
    key_stop: int

    def __init__(
        self,
        backend: Backend,
        made: Recipe,
        numbers: dict[str, np.ndarray | None],
        state: Any,
        key_start: int,
        key_stop: int,
    ) -> None:
        self._backend = backend
        self._recipe = made
        self._numbers = numbers  # what parts have in common as numbers over the batch
        self._state = state
        self.key_start = key_start
        self.key_stop = key_stop

    def __repr__(self) -> str:
        return (
            f"<State of keys {self.key_start}..{self.key_stop}, output "
            f"{self._recipe.output_shape} {self._recipe.dtype}, {self._backend.name}>"
        )

    @default_environment()
    def merge(self, next_state: State) -> State:
        """Join the part that begins where this one stops.

        Parameters
        ----------
        next_state : State
            The following part: same queries, same options.

        Returns
        -------
        state : State
            A new state of both stretches.

        Raises
        ------
        ValueError
            If the parts do not follow each other, or differ in shapes, dtype, options or backend.
        TypeError
            If `next_state` is no `State`.
        """
        if not isinstance(next_state, State):
            raise TypeError(f"a State merges with a State, not {type(next_state).__qualname__}")
        if next_state.key_start != self.key_stop:
            raise ValueError(
                f"keys {next_state.key_start}..{next_state.key_stop} do not follow keys "
                f"{self.key_start}..{self.key_stop}: merge parts in order, each attention_state "
                "with the key_start where the part before it stops"
            )
        for name, ours in _shared(self._recipe).items():
            theirs = _shared(next_state._recipe)[name]
            if ours != theirs:
                raise ValueError(
                    f"states of one attention must agree, but {name} is {ours} on the left and "
                    f"{theirs} on the right"
                )
        for name, numbers in self._numbers.items():
            following = next_state._numbers[name]
            if not _same(numbers, following):
                raise ValueError(
                    f"states of one attention must agree, but {name} {_shown(numbers)} on the left "
                    f"and {_shown(following)} on the right"
                )
        if next_state._backend is not self._backend:
            raise ValueError(
                f"states of the backends {self._backend.name!r} and {next_state._backend.name!r} "
                "do not merge: pass the same backend to each attention_state"
            )
        merged = self._backend.merge_states(self._state, next_state._state)
        return State(
            self._backend, self._recipe, self._numbers, merged, self.key_start, next_state.key_stop
        )

    @names.closed
    @default_environment()
    def finish(
        self, sinks: ArrayLike | None = None, return_lse: bool = False, **unknown: Never
    ) -> Any:
        """Divide by the sum of weights: the output, as `attention` gives it.

        Parameters
        ----------
        sinks : float array, broadcasts to the batch dims, optional
            As for `attention`.
        return_lse : bool
            Append the log-sum-exp of each row's scores.

        Returns
        -------
        output : ndarray, (..., L, Ev)
            Rows that saw no key are 0. Of the dtype that `attention` gives.
        lse : ndarray, (..., L)
            Only with `return_lse`; -inf, or the sink, for rows that saw no key.

        Raises
        ------
        ValueError, TypeError
            If the sinks are not as `attention` wants them.
        """
        if unknown:
            names.refuse(State.finish, unknown)
        made = self._recipe
        made = made._replace(options=made.options._replace(return_lse=bool(return_lse)))
        numbers = None
        if sinks is not None:
            numbers = problems.of_heads(made, Extras(sinks=sinks))["sinks"]
        results = made.allocate(None, ())
        output, lse, _ = made.canonical(results)
        self._backend.finish_state(self._state, output, lse, numbers)
        return results[:2] if return_lse else results[0]


@names.closed
@default_environment()
def attention_state(
    query: ArrayLike,
    key: ArrayLike,
    value: ArrayLike,
    *,
    key_start: int = 0,
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
    enable_gqa: bool = False,
    backend: BackendName | None = None,
    threads: int | None = None,
    **unknown: Never,
) -> State:
    """Attend to one part of the keys, to be merged with the parts that follow.

    Parameters
    ----------
    query : array_like, (..., L, E) or (E,)
        The same queries for every part.
    key, value : array_like, (..., S, E) and (..., S, Ev)
        Keys ``key_start .. key_start + S - 1`` of the whole key axis.
    key_start : int
        Position of this part's first key, a multiple of 512, the segment size.
    similarity, scale, softcap, alibi_slopes, enable_gqa, backend, threads
        As for `attention`, the same for every part. Sinks belong to `State.finish`.
    query_segments, key_segments
        As for `attention`; key_segments are those of this part.
    mask : array_like, broadcasts to (..., L, S), optional
        The columns of this part.
    causal, query_offset, window, key_lengths
        As for `attention`, in positions of the whole key axis (`alibi_slopes` too). ``causal=True``
        needs `query_offset`, and "bottom_right" `key_lengths`: S of the whole is not known here.

    Returns
    -------
    state : State
        With ``merge(next_state)`` and ``finish(sinks=None, return_lse=False)``.

    Raises
    ------
    ValueError
        As `attention`, and if `key_start` is negative or no multiple of 512.
    TypeError
        As `attention`.

    Notes
    -----
    Parts merged in order give the very bits of one call over all keys. A part that does not start
    at key 0 keeps its segments of 512 keys apart until it is merged, ``L * (Ev + 3)`` numbers each,
    in the precision computed in: float32 for halves.

    Examples
    --------
    >>> import fastattn
    >>> state = fastattn.attention_state([1.0], [[0.0], [0.0]], [[2.0], [4.0]])
    >>> state.finish()
    array([3.])
    """
    if unknown:
        names.refuse(attention_state, unknown)
    if not isinstance(key_start, (int, np.integer)) or isinstance(key_start, bool):
        raise TypeError(f"key_start must be an integer, not {key_start!r}")
    if key_start % SEGMENT_KEYS or not 0 <= key_start <= LARGEST_POSITION:
        raise ValueError(
            f"key_start = {key_start} must be a multiple of {SEGMENT_KEYS}, the segment size, from "
            f"0 on: cut the keys there, e.g. at {max(0, key_start) // SEGMENT_KEYS * SEGMENT_KEYS}"
        )
    key_start = int(key_start)
    operands = problems.arrays(query, key, value, mask)
    options, extras = asked(locals())
    made = recipe(signature(*operands, options, *extras.given(), is_part=True))
    problem = problems.bind(made, *operands, extras, key_start)
    chosen = backends.pick(backend)
    state = chosen.attention_state(problem, key_start, resolve(threads))
    numbers = {
        "scale is": _over_batch(made.options.scale, made),
        "alibi_slopes are": _over_batch(problem.extras.alibi_slopes, made),
        # Also where "bottom_right" puts it; 0 where nobody asks.
        "query_offset, the position of query row 0, is": _over_batch(
            problem.extras.query_offset + key_start * made.positioned, made
        ),
    }
    return State(chosen, made, numbers, state, key_start, key_start + made.keys)


def _shared(made: Recipe) -> dict[str, Any]:
    """Name what must be equal in all parts."""
    options = {name: getattr(made.options, name) for name in _SHARED_OPTIONS}
    return {name: getattr(made, name) for name in _SHARED} | options


def _over_batch(numbers: np.ndarray | float | None, made: Recipe) -> np.ndarray | None:
    """Copy numbers (*batch, Hkv, G) as the caller sees the batch, whichever heads share keys."""
    if numbers is None or isinstance(numbers, (int, float)):
        return None if numbers is None else np.array(numbers)
    return np.array(numbers).reshape(made.batch)


def _same(ours: np.ndarray | None, theirs: np.ndarray | None) -> bool:
    if ours is None or theirs is None:
        return ours is theirs
    return bool((ours == theirs).all())


def _shown(numbers: np.ndarray | None) -> str:
    if numbers is None or numbers.ndim == 0:
        return str(numbers)
    return np.array2string(numbers.ravel(), threshold=8, precision=4)


@names.closed
@default_environment()
def merge_states(
    outputs: ArrayLike | Sequence[ArrayLike],
    lses: ArrayLike | Sequence[ArrayLike],
    axis: int = 0,
    **unknown: Never,
) -> tuple[np.ndarray, Any]:
    r"""Merge finished results over parts of the keys: each weighs :math:`e^{\mathrm{lse}}`.

    Parameters
    ----------
    outputs : array_like, the shape of `lses` + (Ev,)
        Outputs of `attention` over the parts, stacked along `axis`.
    lses : array_like
        Their log-sum-exps (``return_lse=True``), stacked along `axis`.
    axis : int
        The axis of `lses` that counts the parts; the same axis of `outputs`.

    Returns
    -------
    output : ndarray
        `outputs` without `axis`, of its dtype; float64 if `lses` is, or for integers.
    lse : ndarray
        `lses` without `axis`, of its dtype; float64 for integers.

    Raises
    ------
    ValueError
        If the shapes do not belong together or the axis does not exist.
    TypeError
        If an operand is complex, extended precision, object, masked, sparse or lazy.

    Notes
    -----
    Computed in float64 if an operand needs it, else in float32. Equal to one call over all keys to
    rounding; `State.merge` is equal in bits. A part with lse -inf counts for nothing, whatever its
    output holds. Sinks belong into one part only: each part that has them counts them once.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> query, key, value = np.ones(2), np.eye(2), np.array([[1.0], [3.0]])
    >>> parts = [fastattn.attention(query, key[i:i+1], value[i:i+1], return_lse=True)
    ...          for i in range(2)]
    >>> output, lse = fastattn.merge_states(*zip(*parts))
    >>> output
    array([2.])
    """
    if unknown:
        names.refuse(merge_states, unknown)
    outputs, lses = as_array("outputs", outputs), as_array("lses", lses)
    for name, x in (("outputs", outputs), ("lses", lses)):
        check_dtype(name, x.dtype, x.shape)
    shown = f"outputs {outputs.shape}, lses {lses.shape}"
    if outputs.ndim < 2 or outputs.shape[:-1] != lses.shape:
        raise ValueError(
            f"outputs must have the shape of lses and one axis more, Ev: {shown}; stack both along "
            "the same axis"
        )
    if is_bool(axis) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis must be an int, the one of lses that counts parts, not {axis!r}")
    if not -lses.ndim <= axis < lses.ndim:
        raise ValueError(f"axis {axis!r} does not exist in lses: {shown}")
    at = axis % lses.ndim
    parts = np.moveaxis(lses, at, -1)
    present = parts != -np.inf
    weights = softmax(parts.astype(FLOAT32) if is_half(parts.dtype) else parts, mask=present)
    values = np.moveaxis(outputs, at, -2)
    if not present.all():
        values = np.where(present[..., None], values, values.dtype.type(0))
    rows = weights[..., None, :]
    if is_half(outputs.dtype) and weights.dtype == FLOAT32:
        # As a part has it: rounded once, though weights of float32 would promote it.
        shape = (*lses.shape[:at], *lses.shape[at + 1 :], 1, outputs.shape[-1])
        output = np.empty(shape, outputs.dtype.newbyteorder("="))
        backends.pick(None).fuse(rows, values, output, True, resolve(None))
    else:
        output = fuse(rows, values)
    return output[..., 0, :], logsumexp(parts, mask=present)
