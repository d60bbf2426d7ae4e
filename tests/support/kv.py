"""A cache of keys and values beside a plain model of it, which the tests of caches share."""

import numpy as np
import oracle
import strategies

import fastattn

STORAGE = ("float32", "float16", "bfloat16", "int8")
# Pages hold 128 keys, segments 512.
BORDERS = (1, 127, 128, 129, 255, 256, 257, 511, 512, 513, 640)
OPTIONS = {
    "plain": {},
    "every_key": {"causal": False},
    "top_left": {"causal": "top_left"},
    "offset": {"causal": True, "query_offset": 40},
    "window": {"window": (150, 0)},
    "biased": {"alibi_slopes": [0.1, 0.05, 0.02, 0.01], "sinks": [0.5, -1.0, 2.0, -np.inf]},
    "softcap": {"softcap": 1.5, "scale": -0.7},
    "scales": {"scale": np.array([[0.3, -0.2, 0.0, 1.0]])},
    "scales_of_distances": {"similarity": "euclidean", "scale": [[0.1, -0.02, 0.0, 3.0]]},
    "cosine": {"similarity": "cosine"},
    "euclidean": {"similarity": "euclidean", "scale": 0.1},
}


def tokens(rng, batch, count, heads=2, features=24, value_features=17, dtype="float32"):
    """New keys and values for every sequence."""
    return [
        strategies.draw(rng, (*batch, heads, count, n), dtype) for n in (features, value_features)
    ]


def new_cache(batch, storage, heads=2, features=24, value_features=17):
    dtype = strategies.dtype_of(storage)
    return fastattn.KVCache(batch, heads, features, dtype=dtype, value_dim=value_features)


def as_stored(x, storage):
    """What a cache keeps of float32 numbers; int8 as its scales give it back."""
    if storage != "int8":
        return x.astype(strategies.dtype_of(storage))
    scale = abs(x).max(axis=-1, keepdims=True, initial=0) / np.float32(127)
    rounded = np.rint(x / np.where(scale > 0, scale, 1)).clip(-127, 127)
    return rounded.astype(np.float32) * scale


class Model:
    """What a cache should hold: a list of keys and values for each sequence."""

    def __init__(self, batch, storage, heads=2, features=24, value_features=17):
        self.batch, self.storage = batch, storage
        widths = (features, value_features)
        self.none = [np.zeros((heads, 0, n), np.float32) for n in widths]
        self.held = [list(self.none) for _ in np.ndindex(batch)]

    def append(self, key, value, lengths=None):
        count = key.shape[-2]
        lengths = np.broadcast_to(count if lengths is None else lengths, self.batch).ravel()
        for x, part in ((key, 0), (value, 1)):
            flat = x.reshape(len(self.held), *x.shape[-3:])
            for sequence, length in enumerate(lengths):
                old = self.held[sequence][part]
                self.held[sequence][part] = np.concatenate(
                    [old, flat[sequence, :, :length].astype(np.float32)], axis=1
                )

    def select(self, sources):
        """Go on from those sequences, -1 a new one."""
        sources = np.asarray(sources)
        self.batch = sources.shape
        self.held = [list(self.none if n < 0 else self.held[n]) for n in sources.flat]

    def truncate(self, lengths):
        for held, length in zip(self.held, np.ravel(lengths), strict=True):
            held[:] = [x[:, :length] for x in held]

    @property
    def lengths(self):
        return np.array([key.shape[1] for key, _ in self.held]).reshape(self.batch)

    def dense(self):
        """Keys and values in arrays as long as the longest; NaN behind the others."""
        longest = int(self.lengths.max(initial=0))
        results = []
        for part in (0, 1):
            padded = [
                np.pad(
                    as_stored(held[part], self.storage).astype(np.float32),
                    ((0, 0), (0, longest - held[part].shape[1]), (0, 0)),
                    constant_values=np.nan,
                )
                for held in self.held
            ]
            results.append(np.stack(padded).reshape(*self.batch, *padded[0].shape))
        if self.storage in ("float16", "bfloat16"):
            results = [x.astype(strategies.dtype_of(self.storage)) for x in results]
        return results

    def check(self, cache, rng, rows=2, heads=4, **options):
        """Compare with `attention` over the same keys; to the bit, but for the reference."""
        self.check_step(cache, rng, rows, heads, **options, return_weights=True)

    def check_step(self, cache, rng, rows=2, heads=4, **options):
        """The same without weights, as steps of a decoder are."""
        np.testing.assert_array_equal(cache.lengths, self.lengths)
        key, value = self.dense()
        dtype = "float32" if self.storage == "int8" else self.storage
        query = strategies.draw(rng, (*self.batch, heads, rows, key.shape[-1]), dtype)
        options = {"causal": "bottom_right", **options, "return_lse": True}
        seen = {"window": cache.window, **options}
        expected = fastattn.attention(
            query, key, value, enable_gqa=True, key_lengths=self.lengths[..., None], **seen
        )
        actual = cache.attend(query, **options)
        exact = fastattn.explain(query, key, value, enable_gqa=True).backend != "reference"
        for ours, theirs in zip(actual, expected, strict=True):
            if exact:
                oracle.assert_same_bits(ours, theirs, about=(self.lengths, options))
            else:
                np.testing.assert_allclose(
                    ours.astype(float), theirs.astype(float), rtol=0.01, atol=1e-5
                )
