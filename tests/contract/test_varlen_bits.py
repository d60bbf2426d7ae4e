"""A sequence's bits are its own: alone, in any batch, gathered, in a cache, on any threads."""

import numpy as np
import oracle
import pytest
import strategies
from ragged import Ragged, ragged, random_features, shuffled

import fastattn
from fastattn._engine.ragged import WAVE

# Rows beyond a block, keys beyond a panel, a chain and a segment; empty ones between.
LENGTHS = [(3, 70), (0, 0), (1, 1), (130, 600), (2, 0), (7, 513), (1, 1100), (25, 129), (0, 5)]
FEATURES = {
    "plain": (),
    "causal": ("causal_bottom_right",),
    "windows": ("window", "causal_offsets", "euclidean"),
    "biased": ("alibi", "sinks", "softcap"),
    "documents": ("documents", "cosine", "causal_top_left"),
    "grouped": ("grouped", "scale", "alibi", "causal_offset"),
    "gathered": ("gathered", "documents", "sinks"),
    "no_heads": ("no_heads", "window_left"),
}
DTYPES = ("float32", "float64", "float16", "bfloat16")
RANDOM_BLOCKS = 4


def case_of(features, /, seed, dtype="float32", lengths=LENGTHS, **sizes) -> Ragged:
    sizes = {"features": 33, "value_features": 40, **sizes}
    strategies.dtype_of(dtype)  # skips where NumPy does not know it
    return ragged(features, seed=seed, lengths=list(lengths), dtypes=(dtype,) * 3, **sizes)


def attend(case, **more):
    return fastattn.attention_varlen(*case.arguments, **case.options, return_lse=True, **more)


def packed(results):
    """Results of a dense call (H, L, ...) as those of a ragged one (L, H, ...)."""
    return [
        x.swapaxes(0, 1) if x.ndim == rank else x for x, rank in zip(results, (3, 2), strict=True)
    ]


def same(results, expected, about):
    for name, ours, theirs in zip(("output", "lse"), results, expected, strict=True):
        oracle.assert_same_bits(ours, theirs, about=f"{name}: {about}")


def compare_alone(case):
    """Every sequence of a ragged call against a call of `attention` of its own."""
    results = attend(case)
    for sequence in range(len(case.lengths)):
        operands, options = case.alone(sequence)
        alone = fastattn.attention(*operands, **options, return_lse=True)
        alone = packed(alone) if operands[0].ndim == 3 else alone
        rows = case.rows(sequence)
        same([x[rows] for x in results], alone, (sequence, str(case)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", FEATURES)
def test_alone_and_in_a_batch(exact_backend, features, dtype, seed):
    compare_alone(case_of(FEATURES[features], seed, dtype))


@pytest.mark.parametrize("block", range(RANDOM_BLOCKS))
def test_alone_and_in_a_batch_for_random_options(exact_backend, block, seed):
    for number in range(block, 60, RANDOM_BLOCKS):
        rng = np.random.default_rng([seed, 9, number])
        compare_alone(ragged(random_features(rng, int(rng.integers(1, 6))), seed=seed + number))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", FEATURES)
def test_in_a_shuffled_batch(exact_backend, features, dtype, seed):
    case = case_of(FEATURES[features], seed, dtype)
    results = attend(case)
    order = np.random.default_rng(seed).permutation(len(case.lengths))
    other = shuffled(case, order)
    assert other.lengths != case.lengths
    shuffled_results = attend(other)
    for place, sequence in enumerate(order):
        here = [x[case.rows(sequence)] for x in results]
        there = [x[other.rows(place)] for x in shuffled_results]
        same(there, here, (sequence, str(case)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("features", ["plain", "causal", "biased", "grouped", "documents"])
def test_gathered_and_packed(exact_backend, features, dtype, seed):
    case = case_of(("gathered", *FEATURES[features]), seed, dtype)
    options = dict(case.options)
    indices = options.pop("key_indices")
    query, key, value = case.arrays
    plain = fastattn.attention_varlen(
        query, key[indices], value[indices], *case.splits, **options, return_lse=True
    )
    same(attend(case), plain, str(case))


@pytest.mark.parametrize("features", FEATURES)
def test_on_any_number_of_threads(exact_backend, features, seed):
    case = case_of(FEATURES[features], seed)
    serial = attend(case, threads=1)
    for threads in (2, 3, 64):
        same(attend(case, threads=threads), serial, (threads, str(case)))


@pytest.mark.parametrize("features", ["plain", "causal", "gathered"])
@pytest.mark.parametrize("place", [0, 150, 300])
@pytest.mark.parametrize("rows", [1, 40])
def test_long_sequence_among_many_short_ones(exact_backend, rows, place, features, seed):
    """Whatever way is found to share the long one among threads, its bits are its own."""
    rng = np.random.default_rng(seed)
    lengths = [(int(n), int(n) * 2) for n in rng.integers(0, 4, 300)]
    lengths.insert(place, (rows, 5000))
    case = case_of(FEATURES[features], seed, lengths=lengths, features=16, value_features=16)
    results = attend(case, threads=2)
    same(attend(case, threads=1), results, str(case.features_used))
    for sequence in {place, 3, 299}:
        operands, options = case.alone(sequence)
        alone = packed(fastattn.attention(*operands, **options, return_lse=True))
        same([x[case.rows(sequence)] for x in results], alone, (sequence, features))


def test_beyond_what_is_planned_at_a_time(exact_backend, seed):
    """The sequences behind the first wave have offsets of their own, and a long one of theirs."""
    rng = np.random.default_rng(seed)
    count = WAVE + 400
    lengths = [(int(n), int(n) * 2) for n in rng.integers(0, 3, count)]
    lengths[WAVE + 5] = (2, 5000)
    case = case_of(("causal_offsets", "no_heads"), seed, lengths=lengths, features=8)
    results = attend(case, threads=2)
    same(attend(case, threads=1), results, "threads")
    for sequence in (1, WAVE - 1, *range(WAVE, WAVE + 20), count - 1):
        operands, options = case.alone(sequence)
        alone = fastattn.attention(*operands, **options, return_lse=True)
        same([x[case.rows(sequence)] for x in results], alone, sequence)


@pytest.mark.parametrize("features", ["plain", "documents", "gathered"])
def test_some_of_the_sequences(exact_backend, features, seed):
    """Splits that leave out sequences at both ends, and those of another integer dtype."""
    case = case_of(FEATURES[features], seed)
    results = attend(case)
    for first, last in ((0, 4), (3, 7), (5, 9), (4, 4)):
        splits = [x[first : last + 1].astype(np.int32) for x in case.splits]
        options = {**case.options, "partial": True, "return_lse": True}
        part = fastattn.attention_varlen(*case.arrays, *splits, **options)
        inside = slice(int(splits[0][0]), int(splits[0][-1]))
        same([x[inside] for x in part], [x[inside] for x in results], (first, last))
        assert not np.delete(part[0], inside, 0).any()
        assert (np.delete(part[1], inside, 0) == -np.inf).all()


def test_rows_of_a_sequence_one_by_one(exact_backend, seed):
    """The same keys named again for each row: a row does not know its neighbours."""
    case = case_of(("gathered", "causal_offset", "alibi"), seed)
    results = attend(case)
    offset = case.options["query_offset"]
    theirs = case.splits[1]
    rows = [(b, i) for b, (count, _) in enumerate(case.lengths) for i in range(count)]
    lists = [case.options["key_indices"][theirs[b] : theirs[b + 1]] for b, _ in rows]
    options = {**case.options, "key_indices": np.concatenate(lists)}
    options["query_offset"] = np.array([offset + i for _, i in rows])
    apart = fastattn.attention_varlen(
        *case.arrays,
        np.arange(len(rows) + 1),
        np.cumsum([0, *map(len, lists)]),
        **options,
        return_lse=True,
    )
    same(apart, results, str(case))


@pytest.mark.parametrize("layout", strategies.LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_packed_arrays_of_any_layout(exact_backend, dtype, layout, seed):
    lengths = [(3, 70), (0, 2), (30, 600), (1, 0)]
    for features in ((), ("gathered", "grouped"), ("no_heads", "cosine")):
        case = case_of(features, seed, dtype, lengths)
        laid = [strategies.lay_out(x, layout) for x in case.arrays]
        options = {**case.options, "return_lse": True}
        here = fastattn.attention_varlen(*laid, *case.splits, **options)
        there = fastattn.attention_varlen(*map(strategies.plain, laid), *case.splits, **options)
        same(here, there, (layout, str(case)))


@pytest.mark.parametrize("storage", DTYPES)
@pytest.mark.parametrize("features", ["causal", "biased"])
def test_in_a_cache(exact_backend, features, storage, seed):
    """As many queries each; a cache's batch is a ragged one that fills up behind."""
    lengths = [(3, n) for n in (70, 3, 129, 600, 1, 512)]
    case = case_of(FEATURES[features], seed, storage, lengths)
    case.options["causal"] = "bottom_right"
    results = attend(case)
    cache = fastattn.KVCache(
        len(lengths), heads=4, head_dim=33, value_dim=40, dtype=strategies.dtype_of(storage)
    )
    longest = max(n for _, n in lengths)
    filled = [np.zeros((len(lengths), 4, longest, n), storage) for n in (33, 40)]
    for sequence in range(len(lengths)):
        operands, _ = case.alone(sequence)
        for array, part in zip(filled, operands[1:], strict=True):
            array[sequence, :, : part.shape[1]] = part
    cache.append(*filled, lengths=[n for _, n in lengths])
    query = np.stack([case.alone(b)[0][0] for b in range(len(lengths))])
    attended = cache.attend(query, **case.options, return_lse=True)
    for sequence in range(len(lengths)):
        rows = case.rows(sequence)
        same(
            [x[rows] for x in results],
            packed([x[sequence] for x in attended]),
            (sequence, str(case)),
        )


def test_small_sequences_are_the_bits_of_a_dense_batch(exact_backend, seed):
    """Fifty thousand users with three items each, as one batch and as one ragged call."""
    rng = np.random.default_rng(seed)
    users, items, table = 50_000, 3, 997
    query = strategies.draw(rng, (users, 8), "f4")
    key, value = (strategies.draw(rng, (table, 8), "f4") for _ in range(2))
    indices = rng.integers(0, table, users * items).astype(np.int32)
    splits = np.arange(users + 1)
    gathered = fastattn.attention_varlen(
        query, key, value, splits, splits * items, key_indices=indices, return_lse=True
    )
    chosen = indices.reshape(users, items)
    dense = fastattn.attention(query[:, None], key[chosen], value[chosen], return_lse=True)
    same(gathered, [x[:, 0] for x in dense], "users")
