"""Small calls that hand out budgets, and the calls that other tests repeat."""

from collections.abc import Iterator

import calls
import numpy as np

import fastattn

from .case import F32, F64, Case

METHODS = ("largest_remainder", "sainte_lague", "dhondt", "huntington_hill")


def each(name, weights, budget, threads=1, **options):
    options.setdefault("on_unspent", "keep")
    return Case(
        f"allocate, {name}", lambda: fastattn.allocate(weights, budget, **options),
        threads=threads,
    )  # fmt: skip


def _drawn():
    """A generator, and rows of weights that are orders apart."""
    rng = np.random.default_rng(9)
    weights = rng.random((3, 40)) * 10.0 ** rng.integers(-6, 6, (3, 40))
    weights[0, :5] = 0
    return rng, weights


def _budgets() -> Iterator[Case]:
    rng, weights = _drawn()
    upper, lower = rng.random((3, 40)) * 30, rng.random((3, 40)) / 8
    for threads in (1, 2):
        yield each(f"plain, {threads}", weights, 100.0, threads)
    yield each("of one column", weights.T[:, :2], 7.0, axis=0)
    yield each("of sixteens", weights[:, :32], 100.0)
    yield each("capped", weights, 100.0, upper=upper)
    yield each("raised", weights, 100.0, lower=lower)
    yield each("bounded", weights, np.array([1.0, 90.0, 1e9]), lower=lower, upper=upper + 1)
    yield each("where", weights, 50.0, where=weights > 1, upper=upper, lower=0.001)
    yield each("int weights", (weights.astype(int) % 97).T, 12.0, axis=0, upper=3.0)
    yield each("nothing", weights * 0, 5.0, upper=upper)
    yield each("nothing, unbounded", weights * 0, 5.0)
    yield each("no budget", weights, 0.0, upper=upper)
    yield each("least", weights, 40 * 0.5, lower=0.5)
    yield each("most", weights, 40 * 0.5, upper=0.5)
    yield each("one heavy", np.r_[1.0, np.full(30, 1e-290)], 9.0, upper=np.r_[2.0, np.ones(30)])
    for wrong in (np.nan, np.inf, -1.0):
        bad = np.r_[wrong, 1.0, 2.0]
        yield each(f"weight {wrong}", bad, 3.0)
        yield each(f"cap {wrong}", np.ones(3), 3.0, upper=bad)
        yield each(f"floor {wrong}", np.ones(3), 3.0, lower=bad)
    yield each("too much", np.ones(3), 3.0, lower=2.0)


def _units() -> Iterator[Case]:
    _, weights = _drawn()
    for method in METHODS:
        for name, seats in (("few", 7), ("many", 201), ("float", 33.0)):
            yield each(f"{method}, {name}", weights, seats, unit=1, method=method)
            yield each(
                f"{method}, {name}, bounded", weights, seats, unit=1, method=method, lower=1,
                upper=20,
            )  # fmt: skip
        yield each(f"{method}, ties", np.ones((2, 17)), 23, unit=1, method=method)
        yield each(
            f"{method}, near ties", np.array([3.0, 1.0, 1.0, 5.0]) / 7, 5, unit=1, method=method
        )
        yield each(f"{method}, half units", weights, 20.0, unit=0.5, method=method, upper=3.0)
        yield each(f"{method}, caps", weights, 90, unit=1, method=method, upper=2)
        yield each(f"{method}, tiny", weights * 1e-300, 90, unit=1, method=method)
        shares = np.array([[1.0, 1.5, 2.5, 3.5, 0.5], [2.0, 6.0, 12.0, 20.0, 3.0]])
        yield each(f"{method}, on the border", shares, 9, unit=1, method=method)
    yield each("dhondt, nothing", weights * 0, 5, unit=1, method="dhondt")
    yield each("dhondt, weight nan", np.r_[np.nan, 1.0, 2.0], 5, unit=1, method="dhondt")
    many = np.random.default_rng(11).random((1, 300))
    yield each("largest_remainder, many receivers", many, 151, unit=1)
    yield each("largest_remainder, alike receivers", np.round(many, 1) + 1, 151, unit=1)


def _extremes() -> Iterator[Case]:
    """Weights that are orders apart, and bounds next to shares."""
    for tail in (1e-9, 1e-120, 1e-290):
        far = np.array([1, tail])
        yield each(f"far theta, {tail}", far, 1.0, lower=[0, 0.25], upper=[0.5, 1])
        small = np.r_[1.0, tail * np.array([5, 4, 7, 6.5])]
        for method in METHODS[1:]:
            yield each(
                f"{method}, small claims, {tail}", small, 12, unit=1, method=method,
                upper=[1.0] + [np.inf] * 4,
            )  # fmt: skip
    rng = np.random.default_rng(12)
    share = 10 * rng.random((64, 1)) * rng.random((64, 6)) ** 4
    near = [
        share * (rng.random(share.shape) < 0.6) * (1 + rng.integers(-2, 3, share.shape) * 2.0**-53)
        for _ in range(2)
    ]
    near[1][near[1] == 0] = np.inf
    near[0] = np.minimum(*near)
    total = share.sum(axis=1) * (1 + rng.integers(-2, 3, 64) * 2.0**-53)
    some = near[0].sum(axis=1) <= total
    yield each(
        "caps next to shares", share[some], total[some], lower=near[0][some], upper=near[1][some]
    )
    far = np.random.default_rng(0)
    wide = 10.0 ** far.uniform(-280, 0, (24, 4))
    least = far.random((24, 4)) * (far.random((24, 4)) < 0.5) / 4
    most = least + far.random((24, 4)) * 2
    yield each("many binary orders", wide, 1.0, lower=least, upper=most)
    # From one theta to the next the first receiver goes from its least amount to its cap, and past
    # what the second leaves it: that lies between two floats.
    whole = int(1.95 * 2**52)
    bounds = [[(whole + n) * 2.0**-52, 2.0**-53] for n in (2, 3)]
    between = {"lower": bounds[0], "upper": bounds[1]}
    yield each("between two thetas", np.array([1.95, 1e-3]), bounds[1][0], **between)


def _minus_zero() -> Iterator[Case]:
    """Wherever it may stand; and rows side by side, whose receivers lie apart."""
    rng = np.random.default_rng(13)
    weights = rng.integers(0, 3, (20, 5)).astype(F64)
    weights[weights == 0] = -0.0
    budget = np.where(rng.random(20) < 0.5, -0.0, 3.0)
    for method in (None, "largest_remainder"):
        unit = {} if method is None else {"unit": 1, "method": method}
        for name, bounds in (("", {}), (", bounds", {"lower": -0.0, "upper": [-0.0, 1, 1, 2, 9]})):
            yield each(f"minus 0, {method}{name}", weights, budget, **unit, **bounds)
    yield each("rows side by side", rng.random((3, 40)), 5.0, axis=0, upper=2.0)
    yield each("rows side by side, floors", rng.random((3, 40)), 5.0, axis=0, lower=1.0, upper=2.5)
    yield Case("shared, minus 0", lambda: fastattn.allocate_shared(weights, budget, np.full(5, 9)))


def _shared() -> Iterator[Case]:
    rng = np.random.default_rng(10)
    weights = rng.random((21, 20)) * (rng.random((21, 20)) < 0.7)
    weights[3] = 0
    budgets, capacities = rng.random(21) * 3, rng.random(20) * 2
    budgets[4], capacities[[2, 5]] = 0, (0, np.inf)
    for threads in (1, 2):
        yield Case(
            f"shared, {threads} workers",
            lambda: fastattn.allocate_shared(weights, budgets, capacities, max_iter=6),
            threads=threads,
        )
    square = np.eye(4) + 0.01
    yield Case("shared, tight", lambda: fastattn.allocate_shared(square, np.ones(4), np.ones(4)))
    wide = rng.random((2, 530))
    yield Case(
        "shared, wide",
        lambda: fastattn.allocate_shared(wide, np.ones(2), np.ones(530) / 200, max_iter=3),
    )


def _public() -> Iterator[Case]:
    """What the tests of results say again, whatever surrounds a call, of some kinds of numbers."""
    for dtype, kind in ((F32, "tiny"), (F64, "small")):
        for name, call in calls.every_call(dtype, kind, 5):
            if name.startswith(_AGAIN) and " long" not in name:
                yield Case(name, call)


_AGAIN = "attention", "softmax", "log", "similarity", "fuse", "allocate "
GROUPS = (_budgets, _units, _extremes, _minus_zero, _shared, _public)
