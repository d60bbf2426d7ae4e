"""What must hold for any input, tried by hypothesis on every backend."""

import numpy as np
import oracle
import pytest
import strategies
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fastattn
from fastattn import reference

FLOATS = st.sampled_from([np.float32, np.float64])


def arrays_of(shape, dtype, size=10.0):
    """Arrays of any numbers up to `size`; zeros, repeats and denormals included."""
    width = 8 * np.dtype(dtype).itemsize
    return hnp.arrays(dtype, shape, elements=st.floats(-size, size, width=width))


@st.composite
def operands(draw, size=10.0):
    """Query, key and value of one head in one dtype."""
    dtype = draw(FLOATS)
    rows, keys, features, value_features = (draw(st.integers(1, n)) for n in (9, 40, 20, 20))
    return (
        draw(arrays_of((rows, features), dtype, size)),
        draw(arrays_of((keys, features), dtype, size)),
        draw(arrays_of((keys, value_features), dtype, size)),
    )


@pytest.fixture(autouse=True)
def _on_backend(backend):
    """Every property on every backend."""


@given(case=strategies.cases(batch=(1, 2)))
@settings(max_examples=150)
def test_any_case_agrees_with_the_oracle(case):
    results = fastattn.attention(*case.arrays, **case.options, return_lse=True, return_weights=True)
    oracle.attention(*case.arrays, **case.options).check(*results, about=case)


@given(operands=operands(), scale=st.floats(-3, 3))
def test_any_numbers_agree_with_the_oracle(operands, scale):
    results = fastattn.attention(
        *operands, scale=scale, similarity="dot", return_lse=True, return_weights=True
    )
    oracle.attention(*operands, scale=scale, similarity="dot").check(*results)


@given(operands=operands(), seed=st.integers(0, 1000))
def test_output_is_a_mean_of_visible_values(operands, seed):
    query, key, value = operands
    mask = np.random.default_rng(seed).random((len(query), len(key))) < 0.5
    output, weights = fastattn.attention(query, key, value, mask=mask, return_weights=True)
    slack = 40 * np.finfo(value.dtype).eps
    assert (weights >= 0).all()
    assert not weights[~mask].any()
    sums = weights.astype(float).sum(axis=-1)
    np.testing.assert_allclose(sums, mask.any(axis=-1), rtol=slack)
    for row in np.flatnonzero(mask.any(axis=-1)):
        low, high = value[mask[row]].min(axis=0), value[mask[row]].max(axis=0)
        room = slack * np.maximum(abs(low), abs(high)) + np.finfo(value.dtype).tiny
        assert (output[row] >= low - room).all()
        assert (output[row] <= high + room).all()


@given(operands=operands(), seed=st.integers(0, 1000))
def test_order_of_keys_does_not_matter(operands, seed):
    query, key, value = operands
    order = np.random.default_rng(seed).permutation(len(key))
    truth = oracle.attention(query, key, value)
    truth.check(*fastattn.attention(query, key[order], value[order], return_lse=True))


@given(operands=operands(), power=st.integers(-20, 20))
def test_values_times_a_power_of_two_give_that_much_output(operands, power):
    """Every step after the weights is linear, and powers of two are exact: equal bits."""
    query, key, value = operands
    value = np.where(abs(value) < 1e-3, 0, value).astype(value.dtype)
    output = fastattn.attention(query, key, value, similarity="dot", scale=0.01)
    scaled = fastattn.attention(query, key, np.ldexp(value, power), similarity="dot", scale=0.01)
    np.testing.assert_allclose(scaled, np.ldexp(output, power), rtol=1e-5, atol=1e-12)


@given(operands=operands(size=3.0), shift=st.floats(-50, 50, width=32))
def test_a_constant_added_to_all_scores_changes_only_lse(operands, shift):
    query, key, value = operands
    mask = np.full((1, 1), shift, query.dtype)
    output, lse = fastattn.attention(query, key, value, mask=mask, return_lse=True)
    truth = oracle.attention(query, key, value, mask=mask)
    oracle.assert_close(output, oracle.attention(query, key, value).output, truth.output_tolerance)
    plain = oracle.attention(query, key, value).lse
    oracle.assert_close(lse, plain + float(shift), truth.lse_tolerance)


@given(operands=operands(), data=st.data())
def test_parts_merge_to_the_whole(operands, data):
    query, key, value = operands
    cut = data.draw(st.integers(0, len(key)))
    parts = [
        fastattn.attention(query, key[part], value[part], return_lse=True)
        for part in (slice(0, cut), slice(cut, None))
    ]
    outputs, lses = zip(*parts, strict=True)
    output, lse = fastattn.merge_states(outputs, lses)
    oracle.attention(query, key, value).check(output, lse)


@given(operands=operands(), count=st.integers(0, 70))
def test_hidden_keys_at_the_end_change_no_bit(operands, count):
    query, key, value = operands
    expected = fastattn.attention(query, key, value, return_lse=True)
    key, value = (
        np.concatenate([x, np.full((count, x.shape[1]), np.nan, x.dtype)]) for x in (key, value)
    )
    actual = fastattn.attention(query, key, value, key_lengths=len(key) - count, return_lse=True)
    exact = fastattn.explain(query, key, value).backend != "reference"
    for ours, theirs in zip(actual, expected, strict=True):
        oracle.assert_close(ours, theirs.astype(float), 0.0 if exact else 1e-5)


@given(operands=operands())
def test_stages_compose_to_attention(operands):
    query, key, value = operands
    weights = fastattn.softmax(fastattn.similarity(query, key, metric="scaled_dot"))
    oracle.attention(query, key, value).check(fastattn.fuse(weights, value), weights=weights)


@given(x=arrays_of((5, 40), np.float32, 80.0), axis=st.sampled_from([0, 1, None, (0, 1)]))
def test_softmax_is_a_distribution_in_the_order_of_its_input(x, axis):
    weights = fastattn.softmax(x, axis)
    np.testing.assert_allclose(weights.astype(float).sum(axis=axis), 1, rtol=1e-5)
    if axis == 1:
        ordered = np.take_along_axis(weights, np.argsort(x, axis=1), 1)
        assert (np.diff(ordered, axis=1) >= 0).all()
    expected = reference.log_softmax(x, axis)
    error = tolerances.softmax_error(np.float32, oracle.finite_max(x))
    oracle.assert_close(fastattn.log_softmax(x, axis), expected, error)
    oracle.assert_close(
        np.asarray(fastattn.logsumexp(x, axis)), np.asarray(reference.logsumexp(x, axis)), error
    )


@given(operands=operands(), metric=st.sampled_from(["dot", "euclidean"]))
def test_similarity_is_symmetric(operands, metric):
    query, key, _ = operands
    there = fastattn.similarity(query, key, metric=metric)
    back = fastattn.similarity(key, query, metric=metric)
    size = oracle.score_size(*map(oracle.as_float64, (query, key)), similarity=metric, scale=1.0)
    error = tolerances.score_error(query.dtype, query.shape[1], size) + tolerances.tiny(query.dtype)
    oracle.assert_close(there, back.T.astype(float), error)


@given(operands=operands())
def test_cosine_lies_between_minus_one_and_one(operands):
    query, key, _ = operands
    cosine = fastattn.similarity(query, key, metric="cosine")
    assert (abs(cosine) <= 1 + 20 * np.finfo(query.dtype).eps).all()
    itself = fastattn.similarity(key, key, metric="cosine")
    expected = np.any(key != 0, axis=1)
    np.testing.assert_allclose(
        np.diagonal(itself), expected, rtol=20 * np.finfo(query.dtype).eps, atol=0
    )
