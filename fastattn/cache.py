"""The key-value cache: sequences that grow, in pages that never move."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Never

import numpy as np

from fastattn._core import backends, names, steps, stored
from fastattn._core import problem as problems
from fastattn._core.arrays import as_numbers, check_dims, check_size
from fastattn._core.constants import PAGE_KEYS
from fastattn._core.environment import default_environment
from fastattn._core.masks import as_mask
from fastattn._core.options import Extras, spelt
from fastattn._core.pages import PageTable
from fastattn._core.recipe import recipe, signature
from fastattn._core.threads import resolve
from fastattn._core.visibility import check_window, positions

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from fastattn._core.annotations import ArrayLike, BackendName, Causal, Similarity, Window

__all__ = ["KVCache"]


class KVCache:
    r"""Keys and values of a batch of sequences that grow token by token.

    `append` adds what is new, `attend` reads all there is, and nothing is ever recomputed or moved.
    `attend` gives the very bits of `attention` over what `dense` shows, whatever the dtype of the
    query: for int8 storage, over the dequantised keys :math:`\hat k = \mathrm{scale} \cdot q`, in
    float32.

    Parameters
    ----------
    batch_shape : int or tuple of int
        The batch dims, without heads: one sequence per element.
    heads : int
        Key heads Hkv; queries may have a multiple of them.
    head_dim : int
        Features E of a key.
    dtype : {float32, float64, float16, bfloat16, int8}
        How keys and values are stored. int8 keeps one float32 scale per token and head, the
        largest magnitude divided by 127: an element is off by at most half a scale, 0.4 % of the
        largest of its row. What is appended is rounded to this type once. bfloat16 needs the
        package ml_dtypes.
    value_dim : int, optional
        Features Ev of a value. None: `head_dim`.
    window : (int or None, int or None), optional
        How far queries see, as for `attention`: the window of every call of `attend` that names no
        other. What it hides from all queries to come is given back as sequences grow, so that
        memory stays that of a window. None: everything is kept.

    Attributes
    ----------
    batch_shape : tuple of int
        As `select` leaves it.

    Notes
    -----
    Memory grows in pages of 128 tokens of one sequence, ``128 * heads * (head_dim + value_dim)``
    numbers each (int8: and 8 bytes per token and head), taken as many at a time as there are
    already, up to 256 MiB. Nothing that is there is copied; `reorder` and `select` share pages
    between sequences until one of them writes. Pages of tokens that `truncate` and `reorder` leave
    to nobody are used again. After `select`, `drop_before` and under a `window` the few that are
    still held move together where they are less than a quarter of all, and the memory of the others
    is freed. The kernels read pages where they lie; the backend "reference" and `dense` make a
    copy. Attending from several threads at once is safe; changing
    the cache while another thread uses it is not. Copies (`copy.deepcopy`, `pickle`) have pages of
    their own.

    A step is planned once a page, and costs some 15 µs beside its kernel; one with a mask, ids of
    documents, `query_offset`, ``causal=True`` or weights is planned each time, in some 140.

    References
    ----------
    .. [1] W. Kwon et al., "Efficient memory management for large language model serving with
       PagedAttention", 2023, section 4.

    Examples
    --------
    >>> import numpy as np, fastattn
    >>> rng = np.random.default_rng(0)
    >>> key, value = rng.standard_normal((2, 1, 2, 10, 8), dtype=np.float32)
    >>> cache = fastattn.KVCache(1, heads=2, head_dim=8)
    >>> cache.append(key, value)
    >>> cache.lengths
    array([10])
    >>> query = rng.standard_normal((1, 2, 1, 8), dtype=np.float32)
    >>> bool(np.all(cache.attend(query) == fastattn.attention(query, key, value)))
    True

    Two sequences of different lengths; then both go on from the second, without its last token:

    >>> cache = fastattn.KVCache(2, heads=1, head_dim=4, dtype="float16")
    >>> cache.append(np.ones((2, 1, 3, 4)), np.ones((2, 1, 3, 4)), lengths=np.array([3, 2]))
    >>> cache.reorder(np.array([1, 1]))
    >>> cache.truncate(1)
    >>> cache
    <KVCache (2,), 1 heads of 4, float16, up to 1 keys>
    """

    batch_shape: tuple[int, ...]
    heads: int
    head_dim: int
    value_dim: int
    dtype: np.dtype
    window: tuple[int | None, int | None] | None

    @names.closed
    def __init__(
        self,
        batch_shape: int | tuple[int, ...],
        heads: int,
        head_dim: int,
        *,
        dtype: DTypeLike = np.float32,
        value_dim: int | None = None,
        window: tuple[int | None, int | None] | None = None,
        **unknown: Never,
    ) -> None:
        if unknown:
            names.refuse(KVCache.__init__, unknown)
        names.refuse_missing(batch_shape=batch_shape, heads=heads, head_dim=head_dim)
        shape = batch_shape if isinstance(batch_shape, tuple) else (batch_shape,)
        self.batch_shape = tuple(stored.size("batch_shape", n) for n in shape)
        self.heads = stored.size("heads", heads)
        self.head_dim = stored.size("head_dim", head_dim)
        self.value_dim = self.head_dim if value_dim is None else stored.size("value_dim", value_dim)
        self.dtype = stored.storage(dtype)
        self.window = None if window is None else check_window(window)
        check_dims(len(self.batch_shape) + 3)
        check_size(self.batch_shape, np.dtype(np.int64))
        self.reset()
        self._stood_in: tuple[np.ndarray, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out stand-ins, which a copy would write out in full."""
        return {**self.__dict__, "_stood_in": None}

    def __repr__(self) -> str:
        return (
            f"<KVCache {self.batch_shape}, {self.heads} heads of {self.head_dim}, {self.dtype}, "
            f"up to {self._table.longest} keys>"
        )

    @property
    def lengths(self) -> np.ndarray:
        """Tokens in each sequence, int64 of the batch shape; a copy."""
        return self._table.lengths.reshape(self.batch_shape).copy()

    @property
    def nbytes(self) -> int:
        """Bytes of the pages, those that wait to be used again among them."""
        return self._table.nbytes

    @names.closed
    @default_environment()
    def append(
        self,
        key: ArrayLike,
        value: ArrayLike,
        lengths: ArrayLike | None = None,
        **unknown: Never,
    ) -> None:
        """Add new tokens behind each sequence's last.

        Parameters
        ----------
        key : array_like, (*batch_shape, Hkv, n, E)
            n new keys for every sequence.
        value : array_like, (*batch_shape, Hkv, n, Ev)
            Their values.
        lengths : int or int array of the batch shape, optional
            Only the first so many of the n tokens are added, ``0 <= lengths <= n``. None: all.

        Notes
        -----
        In a cache with a window the last n positions of each sequence, one if n is 0, are those
        that queries may stand at afterwards; what none of them sees may be given back.

        Raises
        ------
        ValueError
            If shapes do not fit the cache, a length is out of range, or int8 storage meets a
            number that is not finite. The cache is unchanged then.
        TypeError
            If an array is no real float array.
        """
        if unknown:
            names.refuse(KVCache.append, unknown)
        fitting = self.batch_shape, self.heads
        new = (
            stored.tokens("key", key, *fitting, self.head_dim, self.dtype),
            stored.tokens("value", value, *fitting, self.value_dim, self.dtype),
        )
        if new[0].shape[-2] != new[1].shape[-2]:
            raise ValueError(
                f"key has {new[0].shape[-2]} new tokens and value {new[1].shape[-2]}: one value "
                "row per key is needed (axis -2 of both)"
            )
        count, entries = new[0].shape[-2], len(self._table.lengths)
        counts = None
        if lengths is not None:
            counts = self._per_entry("lengths", lengths, count, f"{count} new tokens")
        flat = [x.reshape(entries, *x.shape[-3:]) for x in new]
        self._table.append(flat[0], flat[1], counts)

    @names.closed
    def attend(
        self,
        query: ArrayLike,
        *,
        similarity: Similarity = "scaled_dot",
        scale: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        causal: Causal = "bottom_right",
        query_offset: ArrayLike | None = None,
        window: Window | None = None,
        query_segments: ArrayLike | None = None,
        key_segments: ArrayLike | None = None,
        softcap: float | None = None,
        alibi_slopes: ArrayLike | None = None,
        sinks: ArrayLike | None = None,
        return_lse: bool = False,
        return_weights: bool = False,
        out: np.ndarray | None = None,
        backend: BackendName | None = None,
        threads: int | None = None,
        **unknown: Never,
    ) -> Any:
        """Attend from queries to all keys in the cache.

        Parameters
        ----------
        query : array_like, (*batch_shape, H, L, E)
            H is a multiple of the cache's heads; query head h reads key head
            ``h // (H // heads)``.
        causal : bool or {"top_left", "bottom_right"}
            By default the last query stands at its sequence's last key: query row i sees the keys
            up to ``lengths - L + i``. With `query_offset` write True; False: every key.
        mask : array_like, broadcasts to (*batch_shape, H, L, S), optional
            S is the longest length; what lies beyond a sequence's own is hidden anyway.
        query_segments, key_segments : int array, broadcast to (*batch_shape, H, L) and (..., S)
            As for `attention`; S as for the mask.
        window : (int or None, int or None), optional
            As for `attention`. None: the window of the cache, if it has one.
        similarity, scale, query_offset, softcap
            As for `attention`.
        alibi_slopes, sinks, return_lse, return_weights, out, backend, threads
            As for `attention`.

        Returns
        -------
        output : ndarray, (*batch_shape, H, L, Ev)
            Of the dtype to which the query and the stored type promote (int8 counts as float32);
            log-sum-exp and weights as `attention` returns them.

        Raises
        ------
        ValueError, TypeError
            As `attention`; and where causal, window and positions do not hide from all queries what
            was given back (`drop_before`).
        """
        if unknown:
            names.refuse(KVCache.attend, unknown)
        wanted, workers = backends.choose(backend), resolve(threads)
        pages = self._table.pages(self.batch_shape)
        full = self._stand_ins(pages.key.shape[-1] * PAGE_KEYS)
        query, _, _, _ = problems.arrays(query, *full, None)
        if mask is not None:
            mask = as_mask(mask, query.shape, self._table.longest)
        stored.check_query(query, self.batch_shape, self.heads, self.head_dim)
        extras = Extras(
            query_offset,
            self._table.lengths,  # as a step takes them
            query_segments,
            key_segments,
            None if alibi_slopes is None else as_numbers("alibi_slopes", alibi_slopes),
            None if sinks is None else as_numbers("sinks", sinks),
        )
        window = self.window if window is None else window
        options = spelt(
            similarity, scale, causal, window, softcap, True, return_lse, return_weights
        )
        if self._table.dropped is not None:
            told = self._table.dropped, self._table.lengths, self.batch_shape
            stored.check_kept(*told, query, options, query_offset)
        call = steps.describe((query, *full, mask), extras, options, self.dtype, wanted, workers)
        if call is not None:
            results = steps.repeat(call, query, self._table, pages, extras, out)
            if results is not None:
                return results
        extras = extras._replace(key_lengths=extras.key_lengths.reshape(*self.batch_shape, 1))
        operands = query, *self._stand_ins(self._table.longest), mask
        with default_environment():
            made = recipe(signature(*operands, options, *extras.given()))
            problem = problems.bind(made, *operands, extras)._replace(place=pages)
            execution = backends.prepare(problem, wanted, workers)
            if call is not None:
                # For the steps that follow, as if the last pages were full.
                key, value = full
                whole = backends.prepare(problem._replace(key=key, value=value), wanted, workers)
                steps.keep(call, whole, made)
            results = made.allocate(out, operands)
            execution.run(*made.canonical(results))
            return made.deliver(*results, out)

    def truncate(self, lengths: ArrayLike) -> None:
        """Forget the tokens from `lengths` on, e.g. rejected drafts.

        Parameters
        ----------
        lengths : int or int array of the batch shape
            Tokens to keep in each sequence, at most what it has.

        Raises
        ------
        ValueError
            If a length is negative, beyond what its sequence has, or, 0 apart, within what was
            given back (`drop_before`); the cache is unchanged then.
        """
        kept = self._within("lengths", lengths, "cannot be truncated to")
        dropped = 0 * kept if self._table.dropped is None else self._table.dropped
        within = np.flatnonzero((kept > 0) & (kept < dropped))
        if len(within):
            b = int(within[0])
            raise ValueError(
                f"the first {dropped[b]} tokens of sequence {b} were given back, so that it cannot "
                f"be truncated to {kept[b]}: 0, or at least so many"
            )
        self._table.truncate(kept)

    def reorder(self, indices: ArrayLike) -> None:
        """Replace sequence i by what sequence ``indices[i]`` holds, e.g. surviving beams.

        Parameters
        ----------
        indices : int array of the batch shape
            Flat numbers of sequences, 0 to the number of sequences - 1; repeats are fine.

        Raises
        ------
        ValueError
            If the shape is wrong or a number does not exist; the cache is unchanged then.
        """
        entries = len(self._table.lengths)
        self._table.select(stored.sequences(indices, entries, self.batch_shape).reshape(-1))

    def select(self, indices: ArrayLike) -> None:
        """Go on with chosen sequences, fewer or more: without finished ones, with new ones.

        Parameters
        ----------
        indices : int array
            Flat numbers of sequences, 0 to the number of sequences - 1, repeats are fine; -1 is a
            new sequence without tokens. Its shape is the batch shape from now on.

        Raises
        ------
        ValueError
            If a number does not exist; the cache is unchanged then.

        Examples
        --------
        The first of three is done, the others go on, and two begin:

        >>> import numpy as np, fastattn
        >>> cache = fastattn.KVCache(3, heads=1, head_dim=4)
        >>> cache.append(*np.ones((2, 3, 1, 9, 4)), lengths=[9, 5, 7])
        >>> cache.select([1, 2, -1, -1])
        >>> cache.lengths
        array([5, 7, 0, 0])
        """
        entries = len(self._table.lengths)
        found = stored.sequences(indices, entries, self.batch_shape, selecting=True)
        check_dims(found.ndim + 3)
        self._table.select(found.reshape(-1))
        self.batch_shape, self._stood_in = found.shape, None

    def drop_before(self, positions: ArrayLike) -> None:
        """Give back pages whose tokens all stand before `positions`, which no query sees any more.

        Positions and lengths stay what they are. Calls of `attend` whose queries see what was given
        back, by their window, are refused; `dense` shows zeros there.

        Parameters
        ----------
        positions : int or int array of the batch shape
            First position of each sequence to keep, at most its length. What was given back before
            stays so.

        Raises
        ------
        ValueError
            If a position is negative or beyond the length of its sequence; the cache is unchanged
            then.

        Examples
        --------
        >>> import numpy as np, fastattn
        >>> cache = fastattn.KVCache(1, heads=1, head_dim=4)
        >>> cache.append(*np.ones((2, 1, 1, 1000, 4)))
        >>> cache.drop_before(900)
        >>> cache.attend(np.ones((1, 1, 1, 4)), window=(99, 0)).shape
        (1, 1, 1, 4)
        """
        self._table.drop_before(self._within("positions", positions, "has nothing to keep from"))

    def reset(self) -> None:
        """Begin again: no sequence has a token, and all pages are freed."""
        self._table = PageTable(
            math.prod(self.batch_shape),
            self.heads,
            (self.head_dim, self.value_dim),
            self.dtype,
            None if self.window is None else self.window[0],
        )

    @default_environment()
    def dense(self) -> tuple[np.ndarray, np.ndarray]:
        """Copy what is stored: keys and values, (*batch_shape, Hkv, longest, E or Ev).

        Zeros beyond a sequence's length and where pages were given back; int8 is dequantised to
        float32.
        """
        return tuple(  # type: ignore[return-value]
            x.reshape(*self.batch_shape, *x.shape[1:]) for x in self._table.read()
        )

    def _stand_ins(self, keys: int) -> tuple[np.ndarray, np.ndarray]:
        """Stand in for so many keys and values; kept, since steps ask for the same again."""
        kept = self._stood_in
        if kept is None or kept[0].shape[-2] != keys:
            seen = np.dtype(np.float32) if self.dtype == np.int8 else self.dtype
            shape = (*self.batch_shape, self.heads, keys)
            kept = (
                stored.stand_in((*shape, self.head_dim), seen),
                stored.stand_in((*shape, self.value_dim), seen),
            )
            self._stood_in = kept
        return kept

    def _per_entry(self, name: str, x: Any, largest: int, bound: str) -> np.ndarray:
        array = positions(name, x, self.batch_shape, 0, largest, bound)
        return np.broadcast_to(array, self.batch_shape).reshape(-1).copy()

    def _within(self, name: str, x: Any, what: str) -> np.ndarray:
        """Return a number for each sequence, at most its length; `what` is wrong beyond that."""
        most = self._table.longest
        found = self._per_entry(name, x, most, f"{most}, the longest sequence")
        beyond = np.flatnonzero(found > self._table.lengths)
        if len(beyond):
            b = int(beyond[0])
            raise ValueError(
                f"sequence {b} has {self._table.lengths[b]} tokens and {what} {found[b]}: "
                f"`np.minimum({name}, cache.lengths)`"
            )
        return found
