"""One digest of many calls: equal if and only if all their results have the same bits."""

import hashlib

import numpy as np

import fastattn

OPTIONS: tuple[dict, ...] = (
    {},
    {"causal": True, "query_offset": 600},
    {"similarity": "cosine", "scale": 9.0},
    {"similarity": "euclidean", "scale": 0.3},
    {"softcap": 3.0},
    {"window": (50, 9), "query_offset": 300},
    {"mask": True},
    {"alibi_slopes": True, "sinks": True},
    {"return_lse": True, "return_weights": True},
)


def everything(seed: int = 0) -> str:
    """Digest attention with every option, decode, ragged calls, halves, stages, allocation."""
    rng = np.random.default_rng(seed)
    digest = hashlib.sha256()

    def add(*results):
        for result in results:
            digest.update(np.ascontiguousarray(result).tobytes())

    for dtype in (np.float32, np.float64, np.float16):

        def draw(*shape, dtype=dtype):
            return rng.standard_normal(shape).astype(dtype)

        for option in OPTIONS:
            arrays = {"mask": (70, 1100), "alibi_slopes": (2,), "sinks": (2,)}
            options = {
                name: draw(*arrays[name], dtype=np.float32) if name in arrays else value
                for name, value in option.items()
            }
            for features, value_features in ((64, 64), (33, 17)):
                results = fastattn.attention(
                    draw(2, 2, 70, features),
                    draw(2, 2, 1100, features),
                    draw(2, 2, 1100, value_features),
                    **options,
                )
                add(*(results if isinstance(results, tuple) else (results,)))
        add(fastattn.attention(draw(1, 4, 1, 64), draw(1, 4, 5000, 64), draw(1, 4, 5000, 64)))
        splits = np.array([0, 0, 3, 40, 41, 700])
        total = splits[-1]
        packed = draw(total, 2, 24), draw(total, 2, 24), draw(total, 2, 40)
        add(fastattn.attention_varlen(*packed, splits, splits, causal=True))
        add(fastattn.softmax(draw(300, 700), axis=0), fastattn.log_softmax(draw(30, 700)))
        add(fastattn.logsumexp(draw(300, 700)), fastattn.fuse(draw(30, 700), draw(700, 20)))
        for features in (130, 1040, 2100):
            wide = draw(2, 30, features), draw(2, 90, features), draw(2, 90, 64)
            for similarity in ("scaled_dot", "cosine", "euclidean"):
                add(fastattn.attention(*wide, similarity=similarity))
                add(fastattn.attention(wide[0][:, :1], *wide[1:], similarity=similarity))
                add(fastattn.similarity(*wide[:2], metric=similarity))
        add(fastattn.similarity(draw(30, 70), draw(90, 70)))
        add(fastattn.similarity(draw(30, 70), draw(90, 70), metric="euclidean"))
        for features in (40, 4200):
            weight, bias = draw(130, features), draw(130)
            for rows in (1, 3, 70):
                x = draw(rows, features)
                add(fastattn.linear(x, weight), fastattn.linear(x, weight[:128]))
                add(fastattn.linear(x, fastattn.pack_linear(weight), bias))
    weights, budgets, capacities = rng.random((300, 70)), rng.random(300), 3 * rng.random(70)
    add(fastattn.allocate_shared(weights, budgets, capacities, max_iter=200).allocation)
    nested = np.tril(weights[:70]) ** 9  # where supply and demand are equal
    add(fastattn.allocate_shared(nested, budgets[:70], budgets[69::-1]).allocation)
    add(*fastattn.allocate(weights, budgets, upper=capacities / 70, on_unspent="keep"))
    add(fastattn.allocate(weights, 1000, unit=1), fastattn.allocate(weights.T, 9.0, axis=0))
    return digest.hexdigest()
