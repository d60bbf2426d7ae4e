"""The worked example of the article fastattn began from, with the right numbers.

"The role of artificial intelligence in allocating attention resources" goes three steps: features,
allocation by similarity, fusion. Its example cannot be computed as printed: the query has three
components and the keys have two. fastattn says so. The sensible reading, the query's first two
components, gives the numbers here, and the weights then hand out ten hours of work. The data are
the article's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import fastattn
from fastattn import reference
from fastattn.examples.report import Report, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

QUERY = np.array([0.1, 0.2, 0.3])
KEYS = np.array([[0.5, 0.3], [0.4, 0.5], [0.2, 0.4]])
VALUES = np.array([[0.6, 0.7], [0.8, 0.9], [0.1, 0.2]])
PRINTED_COSINES = np.array([0.44, 0.53, 0.30])
HOURS = 10
MOST = np.array([np.inf, np.inf, 2])  # the third task has work for two hours alone


@dataclass(frozen=True)
class ArticleReport(Report):
    """What the example found.

    Attributes
    ----------
    refusal : str
        What fastattn says to a query of three components and keys of two.
    cosines, weights : list of float
        Similarities of the query's first two components with the keys, and their softmax.
    weighted : list of list of float
        Each value times its weight, the list that the article's pseudocode returns.
    output : list of float
        Their sum, which its Python version returns.
    hours, whole_hours, capped_hours : list
        Ten hours shared out: as they fall, in whole hours, and with two at most for the third.
    max_error : float
        Largest difference of the output from `fastattn.reference`.
    """

    refusal: str
    cosines: list[float]
    weights: list[float]
    weighted: list[list[float]]
    output: list[float]
    hours: list[float]
    whole_hours: list[int]
    capped_hours: list[int]
    max_error: float

    def lines(self) -> dict[str, str]:
        """Return what was found, in words."""
        return {
            "data": "the article's own numbers",
            "as printed": f"ValueError: {self.refusal}",
            "cosines": f"{numbers(self.cosines, 5)} of the query's first two components "
            f"(the article says {numbers(PRINTED_COSINES, 2)})",
            "weights": numbers(self.weights, 5),
            "fused": f"{numbers(self.output, 5)}, the sum of "
            + ", ".join(f"({numbers(row, 5)})" for row in self.weighted),
            "max error": f"{self.max_error:.1e} against the float64 reference",
            "whole hours": " ".join(map(str, self.whole_hours))
            + f" of {HOURS}, from {numbers(self.hours, 4)}; "
            + " ".join(map(str, self.capped_hours))
            + f" where the third takes {MOST[2]:g} at most",
            "answer": f"the third key matters most: {self.weights[2]:.1%} of the attention, "
            "where the article's cosines gave it least",
        }

    def figures(self) -> dict[str, Figure]:
        """Draw the whole hours under their caps."""
        from fastattn.plot import AllocationDisplay

        display = AllocationDisplay.from_allocation(
            self.capped_hours,
            upper=MOST,
            weights=self.weights,
            labels=["key 1", "key 2", "key 3"],
            title=f"{HOURS} hours by attention, {MOST[2]:g} at most for key 3",
        )
        display.axes_.flat[0].set_xlabel("hours")
        return {"article": display.figure_}


def run_article(*, threads: int | None = None, backend: str | None = None) -> ArticleReport:
    """Go the article's three steps, as printed and as they can be meant.

    Parameters
    ----------
    threads, backend
        As for `fastattn.attention`.

    Returns
    -------
    ArticleReport
        The error, the right numbers, and ten hours shared out by them.
    """
    machine: dict[str, Any] = {"threads": threads, "backend": backend}
    # Three steps: how near is the query to each key, what share does each get, what comes of it.
    query = QUERY[:2]
    cosines = fastattn.similarity(query, KEYS, metric="cosine", **machine)
    weights = fastattn.softmax(cosines, **machine)
    weighted = fastattn.fuse(weights, VALUES, reduce=False, **machine)

    # What the article is about: the weights hand out what is limited, here hours; in one call.
    shared = fastattn.attention_allocation(query, KEYS, VALUES, budget=HOURS, **machine)
    whole = fastattn.allocate(weights, HOURS, unit=1, **machine)
    capped = fastattn.allocate(weights, HOURS, upper=MOST, unit=1, **machine)

    # Attention itself is a budget of 1, in one pass without the weights in between.
    output = fastattn.attention(query, KEYS, VALUES, similarity="cosine", **machine)
    meant = reference.attention(query, KEYS, VALUES, similarity="cosine")
    return ArticleReport(
        refusal=refusal(),
        cosines=cosines.tolist(),
        weights=weights.tolist(),
        weighted=weighted.tolist(),
        output=output.tolist(),
        hours=shared.allocation.tolist(),
        whole_hours=whole.tolist(),
        capped_hours=capped.tolist(),
        max_error=float(np.abs(output - meant).max()),
    )


def refusal() -> str:
    """Return what fastattn says to the example as the article prints it."""
    try:
        fastattn.attention(QUERY, KEYS, VALUES, similarity="cosine")
    except ValueError as error:
        return str(error)
    raise AssertionError("three components were compared with two")
