"""The functions of a backend, made of its kernels."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

from fastattn._core.problem import Problem
from fastattn._core.ragged import RaggedProblem

from . import allocation, normalize, shared, stages, states
from .apart import apart
from .attention import Execution, plan_problem
from .bfloat16 import can_pair
from .kernels import Kernels
from .ragged import RaggedExecution
from .template import Template

__all__ = ["Engine"]

_AnyProblem = TypeVar("_AnyProblem", Problem, RaggedProblem)


class Engine:
    """What the face asks of a backend (`fastattn._core.execution.Backend`), on given kernels."""

    def __init__(self, kernels: Kernels) -> None:
        self.kernels = kernels

    def _choose_pairs(self, problem: _AnyProblem) -> _AnyProblem:
        """Decide whether bfloat16 operands are multiplied as they are."""
        if self.kernels.attend_pairs is None or not can_pair(problem):
            return problem
        return problem._replace(in_pairs=True)

    def prepare_attention(self, problem: Problem, threads: int) -> Execution:
        """Plan one attention call; runs nothing."""
        problem = apart(self._choose_pairs(problem))
        return Execution(self.kernels, problem, plan_problem(problem, threads))

    def prepare_varlen(self, problem: RaggedProblem, threads: int) -> RaggedExecution:
        """Plan one ragged call; runs nothing."""
        problem = apart(self._choose_pairs(problem))
        return RaggedExecution(self.kernels, problem, threads)

    def attention_state(self, problem: Problem, key_start: int, threads: int) -> Any:
        """Attend over one part of the keys."""
        problem = apart(self._choose_pairs(problem))
        return states.attention_state(self.kernels, problem, key_start, threads)

    def merge_states(self, state: Any, following: Any) -> Any:
        """Fold two states, the left one's keys first; neither is changed."""
        return states.merge_states(self.kernels, state, following)

    def finish_state(
        self, state: Any, output: np.ndarray, lse: np.ndarray | None, sinks: np.ndarray | None
    ) -> None:
        """Fill (*batch, Hkv, G, L, Ev) and (*batch, Hkv, G, L)."""
        states.finish_state(self.kernels, state, output, lse, sinks)

    def similarity(
        self,
        query: np.ndarray,
        key: np.ndarray,
        out: np.ndarray,
        metric: str,
        scale: float | np.ndarray,
        threads: int,
    ) -> Template | None:
        """Fill out (*batch, L, S) from (*batch, L, E), (*batch, S, E); scale is one or (*batch)."""
        return stages.similarity(self.kernels, query, key, out, metric, scale, threads)

    def fuse(
        self, weights: np.ndarray, value: np.ndarray, out: np.ndarray, reduce: bool, threads: int
    ) -> Template | None:
        """Fill out (*batch, L, Ev), or (*batch, L, S, Ev) where not reduced."""
        return stages.fuse(self.kernels, weights, value, out, reduce, threads)

    def softmax(
        self, x: np.ndarray, mask: np.ndarray | None, out: np.ndarray, scale: float, threads: int
    ) -> Template | None:
        """Fill out (*rows, n) from x and mask (*rows, n)."""
        return normalize.softmax(self.kernels, x, mask, out, scale, threads)

    def log_softmax(
        self, x: np.ndarray, mask: np.ndarray | None, out: np.ndarray, scale: float, threads: int
    ) -> Template | None:
        """Fill out (*rows, n) from x and mask (*rows, n)."""
        return normalize.log_softmax(self.kernels, x, mask, out, scale, threads)

    def logsumexp(
        self,
        x: np.ndarray,
        mask: np.ndarray | None,
        out: np.ndarray,
        scale: float,
        threads: int,
        factors: np.ndarray | None = None,
        sign: np.ndarray | None = None,
    ) -> Template | None:
        """Fill out (*rows), and sign too, from x, mask and factors (*rows, n)."""
        return normalize.logsumexp(self.kernels, x, mask, out, scale, threads, factors, sign)

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
        """Fill out (*rows, n) and unspent (*rows) from weights and bounds (*rows, n)."""
        allocation.allocate(
            self.kernels,
            allocation.Operands(weights, budget, lower, upper, where, out, unspent),
            method,
            unit,
            threads,
        )

    def allocate_shared(
        self,
        weights: np.ndarray,
        budgets: np.ndarray,
        capacities: np.ndarray,
        tol: float,
        max_iter: int,
        threads: int,
    ) -> tuple[np.ndarray, int, float]:
        """Return the allocation (m, n), the rounds it took and what the last one still moved."""
        return shared.allocate_shared(
            self.kernels, weights, budgets, capacities, tol, max_iter, threads
        )
