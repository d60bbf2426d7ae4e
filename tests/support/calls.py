"""Small calls of every public function: ordinary numbers, tiny ones, huge ones; hidden, empty rows.

Not whether results are right is asked here, but whether they are the same whatever surrounds the
call, so any numbers do. What a call returns is flattened to a list of arrays and texts; an error is
its text.
"""

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jobs
import numpy as np
import oracle
import strategies

import fastattn
from fastattn._core import kept, recipe, steps

DTYPES = ("float16", "bfloat16", "float32", "float64")
# Of numbers of order 1: left as they are, made subnormal, made next to the subnormals, and made to
# overflow in products.
KINDS = ("plain", "tiny", "small", "huge")
ROWS, KEYS, FEATURES = 3, 7, 5
BATCH = (2, 2)

Call = tuple[str, Callable[[], Any]]


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str) -> np.ndarray:
    """Draw numbers of one kind, finite in their dtype."""
    kept = strategies.dtype_of(dtype)
    bits, least = {"float16": (5, -24), "float64": (11, -1074)}.get(dtype, (8, -149))
    drawn = rng.uniform(0.5, 1.0, shape) * rng.choice([-1.0, 1.0], shape)
    if kind == "tiny":
        drawn = np.ldexp(drawn, least + 5)
    elif kind == "small":
        drawn = np.ldexp(drawn, 6 - 2 ** (bits - 1))
    elif kind == "huge":
        drawn = np.ldexp(drawn, 2 ** (bits - 1) - 2)
    else:
        drawn = 3 * drawn
    return drawn.astype(kept)


def _attention(rng, dtype: str, kind: str) -> Iterator[Call]:
    def draw(*shape):
        return numbers(rng, shape, dtype, kind)

    query, key = draw(*BATCH, ROWS, FEATURES), draw(*BATCH, KEYS, FEATURES)
    value = draw(*BATCH, KEYS, 4)
    value[..., 0, 0], value[..., 1, 1] = np.nan, np.inf
    seen = rng.random((ROWS, KEYS)) < 0.6
    seen[1] = False
    bias = np.where(seen, numbers(rng, seen.shape, "float64", kind), -np.inf)
    bias[0, :2] = np.finfo(float).min, 5e-324
    choices: dict[str, dict[str, Any]] = {
        "plain": {},
        "causal": {"causal": "bottom_right", "window": (3, None)},
        "mask": {"mask": seen},
        "bias": {"mask": bias},
        "cosine": {"similarity": "cosine", "scale": 1e-30},
        "euclidean": {"similarity": "euclidean", "scale": 7.0, "softcap": 1e-40},
        "heads": {
            "alibi_slopes": np.array([5e-324, 1e-40]),
            "sinks": np.array([1e-300, -np.inf]),
            "key_lengths": np.array([[0], [5]]),
        },
        "smallest scale": {"scale": 5e-324},
    }
    for name, options in choices.items():
        options |= {"return_lse": True, "return_weights": True}
        yield f"attention {name}", lambda o=options: fastattn.attention(query, key, value, **o)
    yield "attention alone", lambda: fastattn.attention(query, key, value)
    yield "explain", lambda: repr(fastattn.explain(query, key, value).plan)
    splits = np.array([0, 2, 2, ROWS]), np.array([0, 4, 5, KEYS])
    flat = [np.moveaxis(x[0], 0, 1) for x in (query, key, value)]
    lists = {"alibi_slopes": np.array([5e-324, 1e-40]), "sinks": 1e-300, "return_lse": True}
    yield "attention_varlen", lambda: fastattn.attention_varlen(*flat, *splits, **lists)
    long = [numbers(rng, (600, n), dtype, kind) for n in (FEATURES, 4)]
    one = query[0, 0]

    def in_parts():
        first = fastattn.attention_state(one, long[0][:512], long[1][:512])
        last = fastattn.attention_state(one, long[0][512:], long[1][512:], key_start=512)
        return first.merge(last).finish(sinks=1e-300, return_lse=True)

    yield "attention_state State", in_parts
    outputs, lses = draw(2, ROWS, 4), draw(2, ROWS)
    lses[0, 1] = -np.inf
    yield "merge_states", lambda: fastattn.merge_states(outputs, lses)


def _stages(rng, dtype: str, kind: str) -> Iterator[Call]:
    def draw(*shape):
        return numbers(rng, shape, dtype, kind)

    x, seen = draw(4, 40), rng.random((4, 40)) < 0.7
    seen[1] = False
    bias = np.where(seen, numbers(rng, seen.shape, "float64", kind), -np.inf)
    one, other, weights = draw(4, FEATURES), draw(40, FEATURES), abs(draw(4, 40))
    for name in ("softmax", "log_softmax", "logsumexp"):
        function = getattr(fastattn, name)
        for axis in (-1, 0, None):
            yield f"{name} {axis}", lambda f=function, a=axis: f(x, a)
        yield f"{name} mask", lambda f=function: f(x, mask=seen, scale=1e-30)
        yield f"{name} bias", lambda f=function: f(x, mask=bias)
        yield f"{name} smallest scale", lambda f=function: f(x, scale=5e-324)
        # Long enough to be cut into phases.
        yield f"{name} long", lambda f=function: f(np.tile(x[:1], (1, 40_000)))
    for metric in ("dot", "scaled_dot", "cosine", "euclidean"):
        yield f"similarity {metric}", lambda m=metric: fastattn.similarity(one, other, metric=m)
    yield "similarity scale", lambda: fastattn.similarity(one, other, metric="dot", scale=1e-310)
    bias = draw(40)
    yield "linear", lambda: fastattn.linear(one, other, bias)
    yield "linear row", lambda: fastattn.linear(one[0], other)
    yield (
        "linear pack_linear PackedWeight",
        lambda: fastattn.linear(one, fastattn.pack_linear(other), bias),
    )
    for reduce in (True, False):
        yield f"fuse {reduce}", lambda r=reduce: fastattn.fuse(weights, other, reduce=r)


def _caches(rng, dtype: str, kind: str) -> Iterator[Call]:
    new = [numbers(rng, (2, 1, 20, n), dtype, kind) for n in (FEATURES, 4)]
    query = numbers(rng, (2, 2, 1, FEATURES), dtype, kind)
    for storage in (*DTYPES, "int8"):

        def use(storage=storage):
            cache = fastattn.KVCache(
                2, 1, FEATURES, dtype=strategies.dtype_of(storage), value_dim=4
            )
            cache.append(*new)
            results = [cache.attend(query, return_lse=True, sinks=np.array([1e-300, 0.0]))]
            cache.append(*new, lengths=np.array([3, 0]))
            cache.truncate(np.array([21, 20]))
            cache.reorder(np.array([1, 1]))
            results += [cache.attend(query, alibi_slopes=np.array([5e-324, 1.0]))]
            return [*results, cache.attend(query, return_weights=True), *cache.dense()]

        yield f"KVCache {storage}", use


def _modules(rng, dtype: str, kind: str) -> Iterator[Call]:
    x = numbers(rng, (2, ROWS, 8), dtype, kind)
    kept = strategies.dtype_of(dtype)

    def attend(**options):
        module = fastattn.MultiHeadAttention(8, 2, dtype=kept, seed=0, **options)
        same = fastattn.MultiHeadAttention.from_state_dict(
            module.state_dict(), 2, add_zero_attn=options.get("add_zero_attn", False)
        )
        asked = {"return_weights": True, "average_weights": True}
        return [module(x), same(x, key_lengths=[2, 0], **asked), list(module.state_dict().values())]

    yield "MultiHeadAttention", attend
    yield "MultiHeadAttention added", lambda: attend(add_bias_kv=True, add_zero_attn=True)
    square, wide = (numbers(rng, (8, 8), name, kind) for name in (dtype, "float64"))
    yield (
        "MultiHeadAttention arrays",
        lambda: fastattn.MultiHeadAttention.from_arrays(
            2, query_weight=square, key_weight=square, value_weight=wide, output_weight=square
        )(x),
    )


def _allocations(rng, dtype: str, kind: str) -> Iterator[Call]:
    weights, cap = (abs(numbers(rng, (3, 6), dtype, kind)) for _ in range(2))
    weights[0, :3] = 0
    budgets = {"one": 7.5, "tiny": 3e-320, "each": np.array([1e-310, 0.0, 1e300])}
    for name, budget in budgets.items():
        for options in (
            {"on_unspent": "keep", "upper": cap},
            {"on_unspent": "keep", "upper": cap, "lower": cap / 2, "where": weights > 0},
            {"unit": 0.1, "on_unspent": "keep"},
            {"unit": 1, "upper": 3.0, "on_unspent": "keep", "method": "dhondt"},
            {"lower": 1e300},
        ):
            told = f"allocate {name} {' '.join(options)}"
            yield told, lambda b=budget, o=options: fastattn.allocate(weights, b, **o)
    shared = np.array([3.0, 1e-310, 2.0]), np.array([1e-310, 1e300, 0.0, 1.0, 2.0, np.inf])
    yield "allocate_shared", lambda: fastattn.allocate_shared(weights, *shared)
    queries, keys = (numbers(rng, (n, FEATURES), dtype, kind) for n in (2, 6))
    values = numbers(rng, (6, 2), dtype, kind)
    values[0, 0], seen = np.nan, np.ones((2, 6), bool)
    seen[0, 0] = False
    yield (
        "attention_allocation",
        lambda: fastattn.attention_allocation(
            queries, keys, values, budget=8, upper=3, mask=seen, on_unspent="keep"
        ),
    )


def _jobs(rng, dtype: str, kind: str) -> Iterator[Call]:
    if dtype == "bfloat16" or kind != "tiny":
        return
    arrays = [numbers(rng, (2, n, FEATURES), dtype, kind) for n in (ROWS, KEYS, KEYS)]

    def run():
        with tempfile.TemporaryDirectory() as folder:
            paths = {}
            for name, array in zip(("query", "key", "value"), arrays, strict=True):
                paths[name] = str(Path(folder, f"{name}.npy"))
                np.save(paths[name], array)
            out = str(Path(folder, "out.npy"))
            jobs.run_job(jobs.Job(**paths, out=out, sinks=(1e-300, 0.0)))
            return np.load(out)

    yield "run_job", run


def every_call(dtype: str, kind: str, seed: int) -> Iterator[Call]:
    """Name and do every call, on numbers of one dtype and kind."""
    rng = np.random.default_rng(seed)
    for group in (_attention, _stages, _caches, _modules, _allocations, _jobs):
        for name, call in group(rng, dtype, kind):
            yield f"{name}, {dtype} {kind}", call


def flattened(result: Any) -> list[Any]:
    """List the arrays and texts of a result, however they are wrapped."""
    if dataclasses.is_dataclass(result):
        result = [getattr(result, field.name) for field in dataclasses.fields(result)]
    if isinstance(result, list | tuple):
        return [part for one in result for part in flattened(one)]
    return [result if result is None or isinstance(result, str) else np.asarray(result)]


def results(call: Callable[[], Any]) -> list[Any]:
    """Do a call twice, the second time as it is done once it is known."""
    found = []
    for _ in range(2):
        try:
            found += flattened(call())
        except (ValueError, TypeError) as error:
            found.append(str(error))
    return found


def assert_same(found: list[Any], expected: list[Any], name: str) -> None:
    """Assert that two results of a call agree in every bit and letter."""
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, np.ndarray) and theirs.dtype.kind not in "biu":
            oracle.assert_same_bits(ours, theirs, about=name)
        else:
            assert type(ours) is type(theirs), f"{ours!r}, not {theirs!r}: {name}"
            assert np.array_equal(ours, theirs), f"{ours!r}, not {theirs!r}: {name}"


def forget() -> None:
    """Let every call be planned anew, and not as it was planned before."""
    recipe._recipes.clear()
    kept.clear()
    steps._steps.clear()
