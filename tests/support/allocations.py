"""Random rows of receivers for the tests of allocation."""

import numpy as np

METHODS = ("largest_remainder", "sainte_lague", "dhondt", "huntington_hill")
DIVISOR_METHODS = METHODS[1:]


def draw_weights(rng, n, kind=None):
    """Weights of many kinds: alike, whole numbers with ties and zeros, over many orders."""
    kind = rng.integers(6) if kind is None else kind
    return (
        lambda: rng.random(n),
        lambda: rng.integers(0, 6, n).astype(float),
        lambda: np.exp(rng.normal(0, 5, n)),
        lambda: rng.integers(1, 4, n).astype(float),
        lambda: np.exp(rng.normal(0, 60, n)),
        lambda: rng.random(n) ** 20,
    )[kind]()


def draw_bounds(rng, n, budget, whole=False):
    """Bounds that bind sometimes: (lower, upper), now and then without caps."""
    lower, upper = np.zeros(n), np.full(n, np.inf)
    share = budget / n
    if rng.random() < 0.6:
        caps = rng.random(n) * 3 * share
        upper = np.where(rng.random(n) < 0.7, np.ceil(caps) if whole else caps, np.inf)
    if rng.random() < 0.5:
        least = np.where(rng.random(n) < 0.5, rng.random(n) * share, 0)
        lower = np.minimum(np.floor(least) if whole else least, upper)
    return lower, upper


def draw_budget(rng, whole=False):
    if whole:
        return float(rng.integers(0, 60))
    return float(rng.choice([10 * rng.random(), 10.0 ** rng.integers(-250, 250), 0.0, 7.0]))
