"""Review hours for incoming tickets: attention hands out a budget, under caps, in whole hours.

Past tickets tell which features go with harm: a regression of its logarithm. Its coefficients are
the query, today's tickets are the keys, and the softmax of their products is each ticket's share of
the day's expected harm. The hours of the day go by these shares, none to a ticket beyond what a
full review of it takes. The values are the harm that an hour prevents, so that the fused output is
the harm covered: the article's three steps, with a budget.

The data are generated. Over 250 days come 4 to 60 tickets a day (log-uniform mean, then Poisson);
each has 8 standard normal features; the logarithm of its harm is linear in them (the coefficients
have length 1.2) plus normal noise of 0.8; a full review takes a log-normal number of hours of
median 3, rounded up, 16 at most, known in advance; part of a review prevents that part of the harm.
1000 past tickets are known with their harm. There are 40 hours a day.

Where five reviewers have 8 of these hours each, and each judges by 200 past tickets of their own,
their shares agree so far that they meet at the same tickets: hours beyond a full review are lost.
`allocate_shared` keeps every reviewer near their own shares, and every ticket within its need, in
fractions of hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import fastattn
from fastattn.examples.report import Report, mean_and_error

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DAYS, HOURS, PAST, FEATURES, REVIEWERS = 250, 40, 1000, 8, 5
ALONE, TOGETHER = "reviewers alone", "reviewers together"


class Tickets(NamedTuple):
    """Tickets day by day, padded at the end of each day: (days, most tickets of a day)."""

    features: np.ndarray  # (days, tickets, FEATURES)
    harm: np.ndarray  # known afterwards; 0 where there is no ticket
    needed: np.ndarray  # hours for a full review
    present: np.ndarray  # bool: is there a ticket


@dataclass(frozen=True)
class TicketsReport(Report):
    """What the example found.

    Attributes
    ----------
    covered : dict
        Share of the true harm that the reviews prevent, mean and standard error over the days.
    unspent : dict
        Hours of the year that reach no ticket with work left: not handed out, or beyond its need.
    idle_at_best : int
        Hours of the days whose tickets need fewer than there are: nobody can spend them.
    untouched : dict
        Share of tickets that get no time at all.
    """

    covered: dict[str, tuple[float, float]]
    unspent: dict[str, float]
    idle_at_best: int
    untouched: dict[str, float]
    tickets: int
    _shown: tuple[np.ndarray, np.ndarray, np.ndarray, float]

    def lines(self) -> dict[str, str]:
        """Return what was found, in words."""
        rest = (f"{self.unspent[way]:.0f} {way}" for way in self._pooled())
        share = {way: f"{mean:.3f} ± {error:.3f}" for way, (mean, error) in self.covered.items()}
        return {
            "data": f"generated: {self.tickets} tickets in {DAYS} days of {HOURS} review hours",
            "unspent": f"hours of {DAYS * HOURS:,} without work: {', '.join(rest)}; "
            f"{self.idle_at_best} no one could spend",
            "untouched": ", ".join(f"{self.untouched[way]:.1%} {way}" for way in self._pooled()),
            "reviewers": f"{REVIEWERS} of {HOURS // REVIEWERS} hours who know {PAST // REVIEWERS} "
            f"past tickets each cover {share[TOGETHER]} of the harm together, {share[ALONE]} where "
            f"each plans alone, in fractions of hours; {self.unspent[TOGETHER]:.0f} and "
            f"{self.unspent[ALONE]:.0f} hours without work",
            "harm covered": ", ".join(f"{share[way]} {way}" for way in self._pooled()),
        }

    def _pooled(self) -> list[str]:
        return [way for way in self.covered if way not in (ALONE, TOGETHER)]

    def figures(self) -> dict[str, Figure]:
        """Draw one day's hours under their caps."""
        from fastattn.plot import AllocationDisplay

        hours, needed, shares, unspent = self._shown
        display = AllocationDisplay.from_allocation(
            hours,
            upper=needed,
            weights=shares,
            unspent=unspent,
            labels=[f"ticket {number}" for number in range(1, len(hours) + 1)],
            title=f"One day: {HOURS} hours by share of expected harm, up to a full review",
        )
        display.axes_.flat[0].set_xlabel("hours")
        return {"tickets": display.figure_}


def run_tickets(
    *, seed: int = 0, threads: int | None = None, backend: str | None = None
) -> TicketsReport:
    """Hand out a year of review hours, from one pool and by several reviewers.

    Parameters
    ----------
    seed : int
        Of the tickets.
    threads, backend
        As for `fastattn.attention_allocation`.

    Returns
    -------
    TicketsReport
        Harm covered, hours unspent.
    """
    past, today = generate(seed)
    query = harm_query(past.features[0], past.harm[0])
    result = review(today, query, threads=threads, backend=backend)
    alone, together = several(past, today, threads=threads, backend=backend)
    shares, hours = result.weights[:, 0], result.allocation[:, 0]
    ways = {
        "capped attention": hours.astype(float),
        "uncapped shares": HOURS * shares,
        "equal split": HOURS * today.present / today.present.sum(axis=1, keepdims=True),
        "greedy by share per hour": greedy(shares, today),
        ALONE: alone,
        TOGETHER: together,
    }
    spent = {way: np.minimum(hours, today.needed) for way, hours in ways.items()}
    covered = {way: covered_share(today, hours) for way, hours in spent.items()}
    # Fusion has added up the same for the hours that attention handed out.
    found = covered["capped attention"]
    fused = result.output[:, 0, 0]
    np.testing.assert_allclose(fused / today.harm.sum(axis=1), found, rtol=1e-12)
    day = int(np.argmin(np.abs(today.present.sum(axis=1) - 20)))
    here = today.present[day]
    return TicketsReport(
        covered={way: mean_and_error(share) for way, share in covered.items()},
        unspent={way: float(DAYS * HOURS - hours.sum()) for way, hours in spent.items()},
        idle_at_best=int(np.maximum(HOURS - today.needed.sum(axis=1), 0).sum()),
        untouched={way: float(np.mean(hours[today.present] == 0)) for way, hours in spent.items()},
        tickets=int(today.present.sum()),
        _shown=(
            hours[day, here],
            today.needed[day, here],
            shares[day, here],
            float(result.unspent[day, 0]),
        ),
    )


def generate(seed: int) -> tuple[Tickets, Tickets]:
    """Generate past tickets (as one day) and a year of days, by the process stated above."""
    rng = np.random.default_rng(seed)
    coefficients = rng.normal(size=FEATURES)
    coefficients *= 1.2 / np.linalg.norm(coefficients)
    counts = np.maximum(rng.poisson(np.exp(rng.uniform(np.log(4), np.log(60), DAYS))), 1)

    def tickets(counts: np.ndarray) -> Tickets:
        present = np.arange(counts.max()) < counts[:, None]
        features = rng.normal(size=(*present.shape, FEATURES))
        harm = np.exp(features @ coefficients + rng.normal(0.0, 0.8, present.shape))
        needed = np.minimum(np.ceil(rng.lognormal(np.log(3), 0.7, present.shape)), 16)
        return Tickets(features, harm * present, needed * present, present)

    return tickets(np.array([PAST])), tickets(counts)


def harm_query(features: np.ndarray, harm: np.ndarray) -> np.ndarray:
    """Return the coefficients by which past tickets' features tell the logarithm of their harm."""
    known = np.column_stack([features, np.ones(len(features))])
    coefficients: np.ndarray = np.linalg.lstsq(known, np.log(harm), rcond=None)[0]
    return coefficients[:-1]  # the softmax takes no notice of the constant


def review(today: Tickets, query: np.ndarray, **machine: Any) -> fastattn.AllocationResult:
    """Hand out every day's hours in one call: what the example is about."""
    prevented = today.harm / np.maximum(today.needed, 1)  # by each hour
    return fastattn.attention_allocation(
        query[None],
        today.features,
        prevented[..., None],
        similarity="dot",
        mask=today.present[:, None],
        budget=HOURS,
        upper=today.needed[:, None],
        unit=1,
        on_unspent="keep",
        **machine,
    )


def several(past: Tickets, today: Tickets, **machine: Any) -> tuple[np.ndarray, np.ndarray]:
    """Hand out the hours of several reviewers, each on their own and all together."""
    queries = [
        harm_query(past.features[0, n::REVIEWERS], past.harm[0, n::REVIEWERS])
        for n in range(REVIEWERS)
    ]
    alone = fastattn.attention_allocation(
        np.array(queries),
        today.features,
        similarity="dot",
        mask=today.present[:, None],
        budget=HOURS / REVIEWERS,
        upper=today.needed[:, None],
        on_unspent="keep",
        **machine,
    )
    budgets = np.full(REVIEWERS, HOURS / REVIEWERS)
    together = [
        fastattn.allocate_shared(shares, budgets, needed, **machine).allocation
        for shares, needed in zip(alone.weights, today.needed, strict=True)
    ]
    return alone.allocation.sum(axis=1), np.sum(together, axis=1)


def greedy(shares: np.ndarray, today: Tickets) -> np.ndarray:
    """Review in full what prevents most per hour, then the next: the best when harm is all."""
    hours = np.zeros(shares.shape)
    for day, here in enumerate(today.present):
        left = float(HOURS)
        rank = np.where(here, shares[day] / np.maximum(today.needed[day], 1), -1.0)
        for ticket in np.argsort(-rank)[: here.sum()]:
            hours[day, ticket] = min(left, today.needed[day, ticket])
            left -= hours[day, ticket]
    return hours


def covered_share(today: Tickets, hours: np.ndarray) -> np.ndarray:
    """Return the share of each day's harm that so many hours a ticket prevent."""
    part = hours / np.maximum(today.needed, 1)
    covered: np.ndarray = np.sum(today.harm * part, axis=1) / today.harm.sum(axis=1)
    return covered
