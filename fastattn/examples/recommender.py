"""Recommending by target attention: a candidate asks the history what it has to say about it.

Mean pooling makes one vector of all that a user has seen. Target attention makes one per candidate:
the candidate is the query, the items seen are keys and values, so a history of jazz and cookery
answers for a cookery book with its cookery. Histories have any length; `attention_varlen` reads
them as row numbers of the item table. With scale 0 attention *is* mean pooling, so the two differ
in one number, which is chosen on validation users and judged on the others.

The data are generated. 500 items belong to 30 genres and have log-normal popularity; 1200 users
like one to six genres each, and see items without repetition with probability proportional to
popularity, a hundred times less outside their genres; histories have a log-normal length of median
20. One seen item is held out at random, and must be found among 99 unseen ones drawn by popularity.
The model knows neither genres nor popularity: item vectors are the leading eigenvectors of the
items' pointwise mutual information in the histories, fewer than there are genres.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import fastattn
from fastattn.examples.report import Report, mean_and_error, name_axes, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

USERS, ITEMS, GENRES, MOST_LIKED, FEATURES, OTHERS = 1200, 500, 30, 6, 12, 99
ROOMY = 60  # features enough for every genre
TESTED = np.arange(USERS) % 4 != 0  # the others are for choosing the scale
SCALES = (0.0, 2.0, 3.0, 4.0, 6.0)
_SHOWN = 3  # genres that the user of the picture likes


class World(NamedTuple):
    """Users' histories end to end, as row numbers of the items, and what is to be ranked."""

    genre: np.ndarray  # (items,), unknown to the model
    likes: np.ndarray  # (users,), how many genres
    seen: np.ndarray  # (total,), items
    splits: np.ndarray  # (users + 1,), where each history begins
    candidates: np.ndarray  # (users, 1 + OTHERS), the held-out item first


class Compared(NamedTuple):
    """Ranks of the tested users' held-out items, and the scale that attention took."""

    attention: np.ndarray
    mean: np.ndarray
    scale: float


@dataclass(frozen=True)
class RecommenderReport(Report):
    """What the example found, over several worlds.

    Attributes
    ----------
    ndcg_attention, ndcg_mean : tuple (mean, standard error)
        Normalised discounted cumulative gain at 10 of the held-out item among 100.
    ndcg_gain : tuple (mean, standard error)
        Attention less mean pooling, world by world.
    ndcg_gain_roomy : tuple (mean, standard error)
        The same with vectors of more numbers than there are genres.
    auc_attention, auc_mean : tuple (mean, standard error)
        Probability that the held-out item is ranked before another one.
    by_likes_attention, by_likes_mean : list of float
        NDCG of users who like one genre, two, and so on.
    scales : list of float
        Chosen in each world on its validation users.
    """

    ndcg_attention: tuple[float, float]
    ndcg_mean: tuple[float, float]
    ndcg_gain: tuple[float, float]
    ndcg_gain_roomy: tuple[float, float]
    auc_attention: tuple[float, float]
    auc_mean: tuple[float, float]
    by_likes_attention: list[float]
    by_likes_mean: list[float]
    scales: list[float]
    test_users: int
    _weights: np.ndarray
    _labels: tuple[list[str], list[str]]

    def lines(self) -> dict[str, str]:
        """Return what was found, in words."""
        worlds = len(self.scales)
        return {
            "data": f"generated: {worlds} worlds of {USERS} users, {ITEMS} items, {GENRES} genres; "
            f"{self.test_users} users tested",
            "vectors": f"{FEATURES} numbers an item, from which items are seen together",
            "scale": f"{numbers(self.scales, 0)} (chosen on validation users; 0 is mean pooling)",
            "AUC": f"attention {_spread(self.auc_attention)}, mean {_spread(self.auc_mean)}",
            "roomy": f"with {ROOMY} numbers an item, more than there are genres, the gain in "
            f"NDCG@10 is {_spread(self.ndcg_gain_roomy)} alone",
            "by tastes": f"NDCG of users with 1 to {MOST_LIKED} genres: "
            f"attention {numbers(self.by_likes_attention, 2)}, "
            f"mean {numbers(self.by_likes_mean, 2)}",
            "NDCG@10": f"attention {_spread(self.ndcg_attention)}, mean {_spread(self.ndcg_mean)}, "
            f"gain {_spread(self.ndcg_gain)}",
        }

    def figures(self) -> dict[str, Figure]:
        """Draw which items of a history answer for which candidates."""
        from fastattn.plot import AttentionDisplay

        candidates, history = self._labels
        display = AttentionDisplay.from_weights(
            self._weights,
            query_labels=candidates,
            key_labels=history,
            title="What a user has seen answers for the candidates that come first",
        )
        name_axes(display, "candidate item", "item seen")
        return {"recommender": display.figure_}


def run_recommender(
    worlds: int = 5, *, seed: int = 0, threads: int | None = None, backend: str | None = None
) -> RecommenderReport:
    """Rank held-out items by target attention and by mean pooling.

    Parameters
    ----------
    worlds : int
        How many to generate.
    seed : int
        Of the worlds: the first is generated from ``seed * worlds``, the next from one more.
    threads, backend
        As for `fastattn.attention_varlen`.

    Returns
    -------
    RecommenderReport
        Held-out figures with their standard errors over the worlds.
    """
    narrow: list[Compared] = []
    roomy: list[Compared] = []
    likes = []
    for number in range(seed * worlds, (seed + 1) * worlds):
        world = generate(number)
        likes.append(world.likes[TESTED])
        items, roomy_items = item_vectors(world, FEATURES, ROOMY)
        narrow.append(compare(world, items, threads, backend))
        roomy.append(compare(world, roomy_items, threads, backend))
    weights, labels = _one_user(world, items, narrow[-1].scale)
    return RecommenderReport(
        ndcg_attention=_over_worlds(ndcg(c.attention) for c in narrow),
        ndcg_mean=_over_worlds(ndcg(c.mean) for c in narrow),
        ndcg_gain=_over_worlds(ndcg(c.attention) - ndcg(c.mean) for c in narrow),
        ndcg_gain_roomy=_over_worlds(ndcg(c.attention) - ndcg(c.mean) for c in roomy),
        auc_attention=_over_worlds(auc(c.attention) for c in narrow),
        auc_mean=_over_worlds(auc(c.mean) for c in narrow),
        by_likes_attention=_by_likes([c.attention for c in narrow], likes),
        by_likes_mean=_by_likes([c.mean for c in narrow], likes),
        scales=[c.scale for c in narrow],
        test_users=sum(map(len, likes)),
        _weights=weights,
        _labels=labels,
    )


def generate(seed: int) -> World:
    """Generate a world, by the process that the module states."""
    rng = np.random.default_rng(seed)
    genre = rng.integers(0, GENRES, ITEMS)
    popularity = rng.lognormal(0.0, 1.0, ITEMS)
    likes = rng.integers(1, MOST_LIKED + 1, USERS)
    liked = rng.random((USERS, GENRES)).argsort(axis=1).argsort(axis=1) < likes[:, None]
    interesting = liked[:, genre]

    # A race with exponential times draws without repetition: the first come are seen.
    times = rng.exponential(size=(USERS, ITEMS)) / popularity
    order = np.argsort(times * np.where(interesting, 1.0, 100.0), axis=1)
    wanted = np.rint(rng.lognormal(np.log(20.0), 0.7, USERS))
    lengths = np.clip(np.minimum(wanted, interesting.sum(axis=1) / 2), 3, 200).astype(int)
    held_out = rng.integers(0, lengths + 1)
    place = np.arange(ITEMS)
    known = place <= lengths[:, None]  # along `order`: the history and what is held out of it

    rivals = rng.exponential(size=(USERS, ITEMS)) / popularity
    rivals[np.nonzero(known)[0], order[known]] = np.inf
    others = np.argsort(rivals, axis=1)[:, :OTHERS]
    answer = np.take_along_axis(order, held_out[:, None], axis=1)
    return World(
        genre,
        likes,
        seen=order[known & (place != held_out[:, None])],
        splits=np.r_[0, np.cumsum(lengths)],
        candidates=np.concatenate([answer, others], axis=1),
    )


def compare(world: World, items: np.ndarray, threads: int | None, backend: str | None) -> Compared:
    """Choose the scale on the validation users, and rank for the others with and without it."""
    ranks = {
        scale: held_out_ranks(score(world, items, scale, threads, backend)) for scale in SCALES
    }
    best = max(SCALES, key=lambda scale: ndcg(ranks[scale][~TESTED]).mean())
    return Compared(ranks[best][TESTED], ranks[0.0][TESTED], best)


def item_vectors(world: World, *features: int) -> list[np.ndarray]:
    """Describe items by what they are seen with, in so many numbers, as vectors of length 1."""
    together = np.zeros((USERS, ITEMS))
    together[np.repeat(np.arange(USERS), np.diff(world.splits)), world.seen] = 1.0
    pairs, alone = together.T @ together, together.sum(axis=0)
    by_chance = np.maximum(np.outer(alone, alone), 1.0) / USERS
    information = np.log(np.maximum(pairs / by_chance, 1.0))
    np.fill_diagonal(information, 0.0)
    values, vectors = np.linalg.eigh(information)
    scaled = vectors * np.sqrt(np.maximum(values, 0.0))
    leading = [scaled[:, -count:] for count in features]
    lengths = [np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-9) for v in leading]
    return [np.ascontiguousarray(v / n, np.float32) for v, n in zip(leading, lengths, strict=True)]


def score(
    world: World, items: np.ndarray, scale: float, threads: int | None, backend: Any
) -> np.ndarray:
    """Score every user's candidates, (users, 1 + OTHERS): the whole model."""
    candidates = items[world.candidates]  # (users, 1 + OTHERS, features)
    answers = fastattn.attention_varlen(
        candidates.reshape(-1, items.shape[1]),
        items,
        items,
        query_splits=np.arange(USERS + 1) * (1 + OTHERS),
        key_splits=world.splits,
        key_indices=world.seen,
        similarity="cosine",
        scale=scale,
        threads=threads,
        backend=backend,
    ).reshape(candidates.shape)
    scores: np.ndarray = np.sum(candidates * answers, axis=-1)
    return scores


def held_out_ranks(scores: np.ndarray) -> np.ndarray:
    """Return how many candidates come before each user's held-out item."""
    before: np.ndarray = np.sum(scores[:, 1:] >= scores[:, :1], axis=1)
    return before


def ndcg(ranks: np.ndarray) -> np.ndarray:
    """Return each user's gain: 1 for the first place, less down to the tenth, then 0."""
    return np.where(ranks < 10, 1 / np.log2(ranks + 2), 0.0)


def auc(ranks: np.ndarray) -> np.ndarray:
    """Return each user's share of other candidates ranked behind the held-out one."""
    return 1 - ranks / OTHERS


def _over_worlds(figures: Iterable[np.ndarray]) -> tuple[float, float]:
    return mean_and_error(np.array([users.mean() for users in figures]))


def _by_likes(ranks: list[np.ndarray], likes: list[np.ndarray]) -> list[float]:
    gains, groups = ndcg(np.concatenate(ranks)), np.concatenate(likes)
    return [float(gains[groups == n].mean()) for n in range(1, MOST_LIKED + 1)]


def _one_user(
    world: World, items: np.ndarray, scale: float
) -> tuple[np.ndarray, tuple[list[str], list[str]]]:
    """Let the candidates that come first attend to one user's history, for the picture."""
    lengths = np.diff(world.splits)
    scores = score(world, items, scale, None, None)
    fit = (world.likes == _SHOWN) & (lengths >= 15) & (lengths <= 25) & (held_out_ranks(scores) < 8)
    user = np.flatnonzero(fit)[0]
    best = np.argsort(-scores[user])[:8]
    candidates = world.candidates[user, best]
    history = world.seen[world.splits[user] : world.splits[user + 1]]
    history = history[np.argsort(world.genre[history], kind="stable")]
    _, weights = fastattn.attention(
        items[candidates],
        items[history],
        items[history],
        similarity="cosine",
        scale=scale,
        return_weights=True,
    )
    rows = [
        f"{i} (genre {world.genre[i]})" + (" held out" if b == 0 else "")
        for b, i in zip(best, candidates, strict=True)
    ]
    return weights, (rows, [f"{i} (genre {world.genre[i]})" for i in history])


def _spread(figure: tuple[float, float]) -> str:
    return f"{figure[0]:.3f} ± {figure[1]:.3f}"
