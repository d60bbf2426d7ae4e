"""What the face asks of a backend, written down as types; backends need not import this file.

A backend is what ``backend.py`` in `_numba` or `_cython` calls `backend`, or the module of that
name in `reference`. Every array it receives is validated: operands are read-only views in
canonical, broadcast shape (any strides, alignment, byte order, real dtype). The output is
preallocated in the problem's `output_dtype`, log-sum-exp and weights in the compute dtype.
`threads` is resolved: an int of at least 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from fastattn._core.kept import Repeat
from fastattn._core.problem import Problem

__all__ = ["Backend", "Execution", "Repeat", "Step"]

# step(query, pages, keys, extras, output, lse): the same plan on a cache of as many pages, with
# `keys` keys in its longest sequence. Extras are by name those that there are: lengths, and offsets
# unless they are one number, are int64 (*batch), contiguous; what heads have has the strides of the
# problem's. Query and results are as for `Repeat`.
Step = Callable[..., None]


class Execution(Protocol):
    """One planned call, ready to run; what `fastattn.explain` shows.

    Optional: ``repeat() -> Repeat | None``. The function it returns is kept for later calls of the
    same signature without per-batch arrays, from any number of threads at once, so it holds no
    array and no state of one call. It is called as ``repeat(query, key, value, mask, output)``, or
    with the lse too, on the caller's arrays as they are, whose canonical strides the plan knows.

    Optional: ``step() -> Step | None``, likewise, of a call on the pages of a cache.
    """

    backend: str
    plan: Any
    refusals: dict[str, str]

    @property
    def way(self) -> Any:
        """How keys and values are read, and why so; None where there is one way only."""

    @property
    def scratch_bytes(self) -> int:
        """Memory the call needs beside its operands and results."""

    def run(self, output: np.ndarray, lse: np.ndarray | None, weights: np.ndarray | None) -> None:
        """Fill (*batch, Hkv, G, L, Ev), (*batch, Hkv, G, L) and (*batch, Hkv, G, L, S)."""


class Backend(Protocol):
    """The functions of a backend module.

    A stage may return a `Repeat` that does the same to other arrays of the same shapes, strides and
    dtypes, from any number of threads at once (`fastattn._core.kept`).

    Optional: ``about() -> dict[str, str | None]``, what `show_config` says of it (kernel cache,
    vector width, ...); entries of None are left out.
    """

    name: str

    def refusal(self, problem: Problem) -> str | None:
        """Say why this backend cannot do the call, or None."""

    def warmup(self) -> None:
        """Do now what the first call would have to: compile."""

    def prepare_attention(self, problem: Problem, threads: int) -> Execution:
        """Plan the call; runs nothing."""

    def prepare_varlen(self, problem: Problem, threads: int) -> Execution:
        """Plan a call of `Packed` keys; `run` gets (Hkv, G, rows, Ev) and (Hkv, G, rows).

        Rows of no sequence are not touched.
        """

    def attention_state(self, problem: Problem, key_start: int, threads: int) -> Any:
        """Compute one part of the keys into a state only this backend understands.

        `problem` is in the part's own coordinates: key 0, lengths and offsets count from
        `key_start`, a multiple of the segment size that a state needs only to know whether it is
        the first part.
        """

    def merge_states(self, state: Any, following: Any) -> Any:
        """Fold two states, the left one's keys first; neither is changed."""

    def finish_state(
        self, state: Any, output: np.ndarray, lse: np.ndarray | None, sinks: np.ndarray | None
    ) -> None:
        """Fill (*batch, Hkv, G, L, Ev) and (*batch, Hkv, G, L); sinks are (*batch, Hkv, G)."""

    def similarity(
        self,
        query: np.ndarray,
        key: np.ndarray,
        out: np.ndarray,
        metric: str,
        scale: float | np.ndarray,
        threads: int,
    ) -> Repeat | None:
        """Fill out (*batch, L, S) from (*batch, L, E) and (*batch, S, E), scale (*batch)."""

    def softmax(
        self, x: np.ndarray, mask: np.ndarray | None, out: np.ndarray, scale: float, threads: int
    ) -> Repeat | None:
        """Fill out (*rows, n) from x and mask (*rows, n).

        `out` may be x itself, element for element; any other overlap the face has removed.
        """

    def log_softmax(
        self, x: np.ndarray, mask: np.ndarray | None, out: np.ndarray, scale: float, threads: int
    ) -> Repeat | None:
        """Fill out (*rows, n) as `softmax` does."""

    def logsumexp(
        self,
        x: np.ndarray,
        mask: np.ndarray | None,
        out: np.ndarray,
        scale: float,
        threads: int,
        factors: np.ndarray | None = None,
        sign: np.ndarray | None = None,
    ) -> Repeat | None:
        """Fill out (*rows) from x, mask and factors (*rows, n) of the exponentials.

        `sign` has the shape, strides and dtype of `out`, and comes with factors only.
        """

    def fuse(
        self, weights: np.ndarray, value: np.ndarray, out: np.ndarray, reduce: bool, threads: int
    ) -> Repeat | None:
        """Fill out (*batch, L, Ev), or (*batch, L, S, Ev) where not reduced."""

    def linear(
        self,
        x: np.ndarray,
        weight: np.ndarray,
        bias: np.ndarray | None,
        out: np.ndarray,
        threads: int,
    ) -> Repeat | None:
        """Fill out (*batch, N) from x (*batch, K), weight (N, K) and bias (N,).

        A weight of three dims was packed before: panels (n, K, 64) of 64 columns each, the last
        one filled up with zeros.
        """

    def allocate(
        self,
        weights: np.ndarray,
        budget: np.ndarray,
        lower: np.ndarray | None,
        upper: np.ndarray | None,
        where: np.ndarray | None,
        out: np.ndarray,
        unspent: np.ndarray,
        method: str | None,
        unit: float,
        threads: int,
    ) -> None:
        """Fill out (*rows, n) and unspent (*rows) from weights and bounds (*rows, n).

        With a `method`, budgets and bounds are whole numbers of units, and so is `unspent`; `out`
        is int64 where `unit` is an int. `unspent` is NaN for a row that makes no sense: a weight
        or bound that is none, or lower bounds above the budget. Budgets are finite, not negative.
        """

    def allocate_shared(
        self,
        weights: np.ndarray,
        budgets: np.ndarray,
        capacities: np.ndarray,
        tol: float,
        max_iter: int,
        threads: int,
    ) -> tuple[np.ndarray, int, float]:
        """Return the allocation (m, n) in float64, the rounds it took, and the violation.

        Weights (m, n) are finite and not negative, m and n at least 1; budgets (m,) and capacities
        (n,) are float64, not negative; budgets are finite.
        """
