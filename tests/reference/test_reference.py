"""The reference against formulations that share no line with it: plain loops, SciPy, torch.

Everything else in the suite is compared with the reference, so this file is where trust begins.
"""

import itertools
import math

import numpy as np
import oracle
import pytest
import scipy.special
import strategies

from fastattn import reference
from fastattn.reference import tiled

CLOSE = 1e-12


def score_by_hand(q, k, similarity, scale):
    """One score in Python floats."""
    if similarity == "euclidean":
        return -scale * math.fsum((a - b) ** 2 for a, b in zip(q, k, strict=True))
    dot = math.fsum(a * b for a, b in zip(q, k, strict=True))
    if similarity == "cosine":
        size = math.hypot(*q) * math.hypot(*k)
        return scale * dot / size if size else 0.0
    return scale * dot


def row_by_hand(query, key, value, row, options):
    """One output row and its log-sum-exp in Python floats: the contract, read line by line."""
    similarity = options.get("similarity", "scaled_dot")
    keys, features = key.shape
    scale = options.get("scale")
    if scale is None:
        scale = 1 / math.sqrt(features) if similarity == "scaled_dot" else 1.0
    length = options.get("key_lengths", keys)
    causal = options.get("causal", False)
    if causal == "bottom_right":
        offset = length - query.shape[0]
    else:
        offset = options.get("query_offset", 0)
    left, right = options.get("window", (None, None))
    mask = options.get("mask")
    segments = options.get("query_segments"), options.get("key_segments")
    scores = {}
    for j in range(keys):
        score = score_by_hand(query[row].tolist(), key[j].tolist(), similarity, scale)
        if options.get("softcap"):
            score = options["softcap"] * math.tanh(score / options["softcap"])
        if mask is not None and mask.dtype != bool:
            score += mask[row, j]
        score -= options.get("alibi_slopes", 0.0) * abs(row + offset - j)
        hidden = (
            (mask is not None and mask.dtype == bool and not mask[row, j])
            or score == -math.inf
            or j >= length
            or (causal and j > row + offset)
            or (left is not None and j < row + offset - left)
            or (right is not None and j > row + offset + right)
            or ("key_segments" in options and segments[0][row] != segments[1][j])
        )
        if not hidden:
            scores[j] = score
    sink = options.get("sinks", -math.inf)
    if not scores:
        return [0.0] * value.shape[1], sink, [0.0] * keys
    largest = max(*scores.values(), sink)
    total = math.fsum(math.exp(score - largest) for score in (*scores.values(), sink))
    weights = {j: math.exp(score - largest) / total for j, score in scores.items()}
    output = [
        math.fsum(weights[j] * float(value[j, d]) for j in weights) for d in range(value.shape[1])
    ]
    return output, largest + math.log(total), [weights.get(j, 0.0) for j in range(keys)]


OPTION_CHOICES = {
    "similarity": ("dot", "scaled_dot", "cosine", "euclidean"),
    "scale": (None, 0.7, -0.4, 0.0, 2.0**-5),
    "softcap": (None, 0.8),
    "mask": (None, "bool", "float", "hiding"),
    "causal": (False, True, "top_left", "bottom_right"),
    "window": (None, (2, None), (None, 1), (3, 0), (0, 0)),
    "key_lengths": (None, 0, 4, 9),
    "alibi_slopes": (None, None, 0.3, -0.2),
    "sinks": (None, None, 0.7, -20.0, 900.0, -np.inf),
    "key_segments": (None, None, "ids"),
}


def case_by_hand(rng):
    """Small arrays and random options for `row_by_hand`."""
    options = {}
    for name, values in OPTION_CHOICES.items():
        value = values[rng.integers(len(values))]
        if value is not None:
            options[name] = value
    rows, keys = 5, 9
    if options.get("causal") is True or (not options.get("causal") and "window" in options):
        options["query_offset"] = int(rng.integers(-2, 8))
    if options.get("mask") == "bool":
        options["mask"] = rng.random((rows, keys)) < 0.6
    elif "mask" in options:
        mask = rng.normal(size=(rows, keys))
        mask[rng.random(mask.shape) < 0.3] = -np.inf if options["mask"] == "hiding" else 1.0
        options["mask"] = mask
    if "key_segments" in options:
        options["query_segments"] = rng.integers(-1, 2, rows)
        options["key_segments"] = rng.integers(-1, 2, keys)
    arrays = (rng.normal(size=shape) for shape in ((rows, 3), (keys, 3), (keys, 2)))
    return *arrays, options


@pytest.mark.parametrize("block", range(8))
def test_agrees_with_loops_over_python_floats(block, seed):
    for number in range(40):
        rng = np.random.default_rng([seed, block, number])
        query, key, value, options = case_by_hand(rng)
        output, lse, weights = reference.attention(
            query, key, value, **options, return_lse=True, return_weights=True
        )
        for row in range(query.shape[0]):
            expected = row_by_hand(query, key, value, row, options)
            about = f"row {row} of block {block}, number {number}: {options}"
            oracle.assert_close(output[row], np.array(expected[0]), CLOSE, about=about)
            oracle.assert_close(lse[row], np.array(expected[1]), CLOSE, about=about)
            oracle.assert_close(weights[row], np.array(expected[2]), CLOSE, about=about)


def test_worked_example_of_cosine_attention():
    """Query [0.1, 0.2] over three keys: figures computed by hand to five places."""
    key = [[0.5, 0.3], [0.4, 0.5], [0.2, 0.4]]
    cosine = reference.similarity([0.1, 0.2], key, metric="cosine")
    np.testing.assert_allclose(cosine, [0.84366, 0.97780, 1.0], atol=5e-6)
    weights = reference.softmax(cosine)
    np.testing.assert_allclose(weights, [0.30186, 0.34520, 0.35294], atol=5e-6)
    apart = reference.fuse(weights[None], [[0.6, 0.7], [0.8, 0.9], [0.1, 0.2]], reduce=False)
    np.testing.assert_allclose(apart[0, 1], weights[1] * np.array([0.8, 0.9]))
    together = reference.attention(
        [0.1, 0.2], key, [[0.6, 0.7], [0.8, 0.9], [0.1, 0.2]], similarity="cosine"
    )
    np.testing.assert_allclose(together, apart[0].sum(axis=0), rtol=CLOSE)


def test_grouped_heads_read_the_right_key_head(seed):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.normal(size=(2, h, 5, 3)) for h in (6, 2, 2))
    grouped = reference.attention(query, key, value, enable_gqa=True)
    for head in range(6):
        alone = reference.attention(query[:, head], key[:, head // 3], value[:, head // 3])
        np.testing.assert_allclose(grouped[:, head], alone, rtol=CLOSE)


def test_cosine_norms_neither_overflow_nor_underflow():
    for size in (1e-300, 1e-30, 1.0, 1e30, 1e300):
        cosine = reference.similarity([[3 * size, 4 * size]], [[1 / size, 0.0], [0.0, 0.0]])
        np.testing.assert_allclose(cosine, [[0.6, 0.0]], rtol=1e-15)


def test_scale_keeps_extreme_products_representable():
    np.testing.assert_allclose(
        reference.similarity([[1e200]], [[1e200]], metric="dot", scale=1e-300), [[1e100]]
    )
    np.testing.assert_allclose(
        reference.similarity([[1e200]], [[0.0]], metric="euclidean", scale=1e-300), [[-1e100]]
    )


@pytest.mark.parametrize("axis", [-1, 0, 1, (0, 2), None])
def test_softmax_family_agrees_with_scipy(axis, seed):
    x = np.random.default_rng(seed).normal(size=(4, 5, 6)) * 20
    x[1, 2, 3], x[0, 0] = -np.inf, -np.inf
    with np.errstate(invalid="ignore"):
        pairs = [
            (reference.softmax(x, axis), scipy.special.softmax(x, axis)),
            (reference.log_softmax(x, axis), scipy.special.log_softmax(x, axis)),
            (reference.logsumexp(x, axis), scipy.special.logsumexp(x, axis)),
            (
                reference.logsumexp(x, axis, keepdims=True),
                scipy.special.logsumexp(x, axis, keepdims=True),
            ),
        ]
    for number, (ours, theirs) in enumerate(pairs):
        oracle.assert_close(np.asarray(ours), np.asarray(theirs), 1e-12, about=f"pair {number}")


@pytest.mark.parametrize("special", [np.inf, np.nan, -np.inf])
def test_softmax_treats_infinities_as_scipy_does(special):
    x = np.array([[special, 1.0, 2.0], [special, special, special]])
    with np.errstate(invalid="ignore"):
        oracle.assert_close(reference.softmax(x), scipy.special.softmax(x, axis=-1), 1e-15)
        oracle.assert_close(reference.log_softmax(x), scipy.special.log_softmax(x, axis=-1), 1e-15)
        oracle.assert_close(reference.logsumexp(x), scipy.special.logsumexp(x, axis=-1), 1e-15)


def test_masked_softmax_is_the_softmax_of_what_is_left(seed):
    rng = np.random.default_rng(seed)
    x, mask = rng.normal(size=(6, 9)), rng.random((6, 9)) < 0.5
    mask[2] = False
    weights = reference.softmax(x, mask=mask, scale=1.7)
    logarithms = reference.log_softmax(x, mask=mask, scale=1.7)
    sums = reference.logsumexp(x, mask=mask, scale=1.7)
    for row in range(6):
        seen = 1.7 * x[row, mask[row]]
        np.testing.assert_allclose(
            weights[row, mask[row]], scipy.special.softmax(seen) if seen.size else seen
        )
        assert not weights[row, ~mask[row]].any()
        assert (logarithms[row, ~mask[row]] == -np.inf).all()
        if seen.size:
            np.testing.assert_allclose(logarithms[row, mask[row]], scipy.special.log_softmax(seen))
            np.testing.assert_allclose(sums[row], scipy.special.logsumexp(seen))
    assert sums[2] == -np.inf


def test_agrees_with_torch(seed):
    torch = pytest.importorskip("torch", reason="torch, an independent formulation, is not here")
    rng = np.random.default_rng(seed)
    query, key, value = (torch.from_numpy(rng.normal(size=(2, 3, n, 8))) for n in (7, 11, 11))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    bias = torch.from_numpy(rng.normal(size=(7, 11)))
    for torch_options, options in (
        ({}, {}),
        ({"is_causal": True}, {"causal": "top_left"}),
        ({"attn_mask": bias}, {"mask": bias.numpy()}),
        ({"attn_mask": bias > -1}, {"mask": (bias > -1).numpy()}),
        ({"scale": 0.3}, {"scale": 0.3}),
    ):
        expected = sdpa(query, key, value, **torch_options).numpy()
        actual = reference.attention(query.numpy(), key.numpy(), value.numpy(), **options)
        np.testing.assert_allclose(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_merging_parts_gives_the_whole(parts, seed):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.normal(size=(3, n, 4)) for n in (5, 40, 40))
    mask = rng.random((3, 5, 40)) < 0.4
    mask[0, 0] = False
    mask[1, 1, 8:] = False
    borders = np.linspace(0, 40, parts + 1).astype(int)
    results = [
        reference.attention(query, key[:, a:b], value[:, a:b], mask=mask[..., a:b], return_lse=True)
        for a, b in itertools.pairwise(borders)
    ]
    outputs, lses = [np.stack(each, axis=1) for each in zip(*results, strict=True)]
    outputs[lses == -np.inf] = np.nan  # a part that saw nothing has no say
    output, lse = reference.merge_states(outputs, lses, axis=1)
    whole, whole_lse = reference.attention(query, key, value, mask=mask, return_lse=True)
    oracle.assert_close(output, whole, CLOSE)
    oracle.assert_close(lse, whole_lse, CLOSE)


def test_hidden_contents_never_matter(seed):
    rng = np.random.default_rng(seed)
    query, key, value = rng.normal(size=(5, 3)), rng.normal(size=(9, 3)), rng.normal(size=(9, 2))
    mask = rng.random((5, 9)) < 0.6
    mask[:, 4], mask[2, 6] = False, False
    expected = reference.attention(query, key, value, mask=mask, return_weights=True)
    for poison in (np.nan, np.inf, -np.inf):
        key[4] = value[4] = poison
        for actual, clean in zip(
            reference.attention(query, key, value, mask=mask, return_weights=True),
            expected,
            strict=True,
        ):
            oracle.assert_close(actual, clean, 0.0)
    value[6] = np.nan
    output = reference.attention(query, key, value, mask=mask)
    assert np.array_equal(np.isnan(output[:, 0]), mask[:, 6])


# --- the tiled algorithm ---------------------------------------------------------------------


def tiled_options(case):
    """Options of a case as `tiled.attention` takes them; grouped heads written out."""
    options = dict(case.options)
    query, key, value = map(oracle.as_float64, case.arrays)
    if options.pop("enable_gqa", False):
        key, value = (np.repeat(x, query.shape[-3] // x.shape[-3], axis=-3) for x in (key, value))
    return query, key, value, options


@pytest.mark.parametrize("block", range(6))
def test_tiled_algorithm_computes_the_plain_formula(block, seed):
    for number in range(25):
        rng = np.random.default_rng([seed, block, number])
        features = strategies.random_features(rng, 5)
        case = strategies.case(features, seed=seed + number, batch=(1, 2))
        query, key, value, options = tiled_options(case)
        output, lse = tiled.attention(query, key, value, **options, return_lse=True)
        truth = oracle.attention(query, key, value, **options)
        truth.check(output, lse, about=case)


def test_tiled_algorithm_selects_away_hidden_infinities(seed):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.normal(size=(n, 8)) for n in (30, 1100, 1100))
    options = {"causal": True, "query_offset": 1000}
    expected = tiled.attention(query, key, value, **options)
    key[1040:], value[1040:] = np.nan, np.inf
    actual = tiled.attention(query, key, value, **options)
    assert np.array_equal(actual, expected)


def test_streamed_states_are_the_one_call(seed):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.normal(size=(2, n, 8)) for n in (30, 1700, 1700))
    options = {"causal": True, "query_offset": 1300, "softcap": 3.0, "alibi_slopes": 0.01}
    options["query_segments"] = rng.integers(0, 3, 30)
    ids, sinks = rng.integers(0, 3, 1700), np.array([0.5, -1.0])
    one = tiled.attention_state(query, key, value, key_segments=ids, **options).finish(sinks)
    plain = reference.attention(
        query, key, value, key_segments=ids, sinks=sinks, return_lse=True, **options
    )
    for actual, expected in zip(one, plain, strict=True):
        oracle.assert_close(actual, expected, CLOSE)
    parts = [
        tiled.attention_state(
            query, key[:, a:b], value[:, a:b], key_start=a, key_segments=ids[a:b], **options
        )
        for a, b in ((0, 512), (512, 1536), (1536, 1700))
    ]
    forwards = parts[0].merge(parts[1]).merge(parts[2]).finish(sinks)
    backwards = parts[0].merge(parts[1].merge(parts[2])).finish(sinks)
    for merged in (forwards, backwards):
        for actual, expected in zip(merged, one, strict=True):
            assert np.array_equal(actual, expected)
    with pytest.raises(ValueError, match=r"\[1536, 1700\).*multiple of 512"):
        parts[0].merge(parts[2])


def test_a_linear_map_by_hand():
    """Each output is the sum over features of x times its own row of weights, and its bias."""
    rng = np.random.default_rng(0)
    x, weight, bias = rng.random((2, 3, 4)), rng.random((5, 4)), rng.random(5)
    found = reference.linear(x, weight, bias)
    assert found.shape == (2, 3, 5)
    for place in np.ndindex(found.shape):
        terms = [x[place[:2]][k] * weight[place[2], k] for k in range(4)]
        assert found[place] == pytest.approx(sum(terms) + bias[place[2]], rel=1e-14)
    np.testing.assert_allclose(reference.linear(x[1, 2], weight, bias), found[1, 2], rtol=1e-14)


def test_a_power_of_two_of_scale_meets_the_factor_that_keeps_its_bits():
    """Scores that are representable, of rows that a tiny or a huge scale would empty or fill."""
    tiny, huge = 5e-324, 2.0**1000
    for query, key, scale, expected in (
        ([0.2], [1e308], tiny, 0.2 * (1e308 * tiny)),
        ([0.2], [np.inf], tiny, np.inf),
        ([1e308], [0.2], tiny, 0.2 * (1e308 * tiny)),
        ([1e300], [1e-300], huge, huge),
        ([1e-300, 1e300], [1e300, 1e-300], huge, 2 * huge),
    ):
        found = reference.similarity([query], [key], metric="dot", scale=scale)
        np.testing.assert_allclose(found, [[expected]], rtol=1e-15)
