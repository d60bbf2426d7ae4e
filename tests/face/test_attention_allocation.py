"""Attention with a budget: every option reaches its stage, hidden keys get nothing, labels stay."""

import children
import numpy as np
import pytest

import fastattn

QUERY = np.array([[0.1, 0.2], [0.9, -0.3]])
KEY = np.array([[0.5, 0.3], [0.4, 0.5], [0.2, 0.4]])
VALUE = np.array([[0.6, 0.7], [0.8, 0.9], [0.1, 0.2]])


def test_the_article_with_right_numbers(backend):
    """Cosines 0.84366, 0.97780, 1.00000; its query of three components is refused in words."""
    cosines = fastattn.similarity(QUERY[:1], KEY)
    assert cosines.round(5).tolist() == [[0.84366, 0.97780, 1.0]]
    result = fastattn.attention_allocation([0.1, 0.2], KEY, VALUE)
    assert result.weights.round(5).tolist() == [0.30186, 0.34520, 0.35294]
    np.testing.assert_allclose(result.output, result.weights @ VALUE, rtol=1e-15)
    with pytest.raises(ValueError, match=r"query has 3 components and key 2: query \(3,\)") as told:
        fastattn.attention_allocation([0.1, 0.2, 0.3], KEY, VALUE)
    assert "`np.asarray(query)[..., :2]`" in str(told.value)


def test_a_budget_of_one_is_attention(backend, seed):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal(s) for s in ((2, 5, 4), (2, 9, 4), (2, 9, 3)))
    for similarity in ("cosine", "scaled_dot", "dot", "euclidean"):
        options = {"similarity": similarity, "scale": 1.5}
        result = fastattn.attention_allocation(query, key, value, **options)
        expected, weights = fastattn.attention(query, key, value, return_weights=True, **options)
        assert np.array_equal(result.weights, weights)
        np.testing.assert_allclose(result.allocation, weights, rtol=1e-14)
        np.testing.assert_allclose(result.output, expected, rtol=1e-12, atol=1e-14)
        assert result.unspent is None


HIDING = [
    {"mask": np.array([[True, False, True], [True, True, False]])},
    {"mask": np.array([[0, -np.inf, 1], [-np.inf, 0, 0]])},
    {"causal": "bottom_right"},
    {"window": (0, 0)},
    {"window": (1, 0), "query_offset": 1},
    {"key_lengths": 2},
    {"query_segments": [0, 1], "key_segments": [1, 0, 1]},
]


@pytest.mark.parametrize("hiding", HIDING, ids=lambda options: " ".join(options))
def test_hidden_keys_get_nothing_whatever_their_bounds(backend, hiding):
    result = fastattn.attention_allocation(
        QUERY, KEY, VALUE, budget=[6, 9], lower=1, scale=900.0, **hiding
    )
    _, seen = fastattn.attention(
        np.zeros((2, 1)), np.zeros((3, 1)), np.zeros((3, 1)), return_weights=True, **hiding
    )
    # With this scale some visible keys have weight 0, and their lower bound all the same.
    assert ((result.allocation >= 1) == (seen > 0)).all()
    assert (result.allocation[seen == 0] == 0).all()
    np.testing.assert_allclose(result.allocation.sum(axis=1), [6, 9])


def test_options_of_allocation(backend):
    result = fastattn.attention_allocation(
        QUERY, KEY, VALUE, budget=[7, 2], unit=1, upper=3, lower=[0, 1, 0], method="dhondt"
    )
    expected = fastattn.allocate(
        result.weights, [7, 2], unit=1, upper=3, lower=[0, 1, 0], method="dhondt"
    )
    assert result.allocation.dtype == np.int64
    assert np.array_equal(result.allocation, expected)
    np.testing.assert_allclose(result.output, expected @ VALUE)
    kept = fastattn.attention_allocation(QUERY, KEY, budget=9, upper=2, on_unspent="keep")
    assert kept.output is None
    assert kept.unspent.tolist() == [3, 3]
    with pytest.raises(ValueError, match=r"row 0 is 9\.0"):
        fastattn.attention_allocation(QUERY, KEY, budget=9, upper=2)
    single = fastattn.attention_allocation(
        QUERY.astype(np.float32), KEY.astype(np.float32), threads=1
    )
    assert (single.weights.dtype, single.allocation.dtype) == (np.float32, np.float64)


def test_hidden_keys_and_values_leak_nothing(seed):
    rng = np.random.default_rng(seed)
    query, key, value = (rng.standard_normal(s) for s in ((2, 4), (7, 4), (7, 3)))
    options = {"causal": True, "query_offset": 2, "budget": 8.0, "upper": 4.0, "similarity": "dot"}
    expected = fastattn.attention_allocation(query, key, value, **options)
    key[4:], value[4:] = np.nan, np.inf
    result = fastattn.attention_allocation(query, key, value, **options)
    assert np.array_equal(result.allocation, expected.allocation)
    assert np.array_equal(result.output, expected.output)
    one = fastattn.attention_allocation(query[0], key, value, key_lengths=4, similarity="dot")
    assert np.isfinite(one.output).all()
    value[3, 1] = np.nan  # seen by the second query alone
    seen = fastattn.attention_allocation(query, key, value, **options)
    assert np.isnan(seen.output).tolist() == [[False] * 3, [False, True, False]]
    value[4] = np.inf  # and this by nobody
    batch = fastattn.attention_allocation(
        *(np.stack([x, x]) for x in (query, key, value)), **options
    )
    for output in (seen.output, *batch.output):
        assert np.array_equal(np.delete(output, 1, axis=1), np.delete(expected.output, 1, axis=1))
        assert np.array_equal(output[:, 1], [expected.output[0, 1], np.nan], equal_nan=True)
    none = fastattn.attention_allocation(query[:0], key, value, key_lengths=4, similarity="dot")
    assert none.output.shape == (0, 3)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (ValueError, {"key": [[1, 2], [np.nan, 1]]}, "query 0 are nan.*look at key 1"),
        (ValueError, {"query": [[1, 1], [np.inf, 1]]}, "query 1 are nan.*look at the query"),
        (ValueError, {"value": [1.0, 2.0]}, r"shape \(2,\).*`np\.asarray\(value\)\[:, None\]`"),
        (ValueError, {"budget": [1, 2, 3]}, r"budget of shape \(3,\)"),
        (TypeError, {"budget": np.ma.masked_array([1.0, 2.0])}, "budget is a masked array"),
        (TypeError, {"upper": np.ma.masked_array([1.0, 2.0])}, "upper is a masked array"),
        (ValueError, {"scale": 1e4, "budget": 4, "upper": 3}, "give weight to those of weight 0"),
    ],
)
def test_what_cannot_work_is_said_in_words(backend, kind, change, words):
    given = {"query": [[1, 0.1], [0.1, 1]], "key": [[1, 0.2], [0.2, 1]], **change}
    with pytest.raises(kind, match=words):
        fastattn.attention_allocation(**given)


def test_proportional_weights_without_softmax(backend):
    """The line that the docstring offers."""
    shares = fastattn.allocate(
        np.maximum(fastattn.similarity([[1, 0]], [[3, 4], [-1, 0], [1, 0]]), 0), 8
    )
    np.testing.assert_allclose(shares, [[3, 0, 5]])


def test_rows_depend_on_themselves_alone(exact_backend, seed):
    rng = np.random.default_rng(seed)
    query, key, value = (
        rng.standard_normal((2, n, e), dtype=np.float32) for n, e in ((5, 4), (7, 4), (7, 3))
    )
    options = {"budget": 30, "upper": 9, "unit": 1, "scale": 4.0}
    whole = fastattn.attention_allocation(query, key, value, **options)
    for threads, batch, row in ((1, 0, 3), (2, 1, 4)):
        operands = (query[batch, row], key[batch], value[batch])
        one = fastattn.attention_allocation(*operands, **options, threads=threads)
        for name in ("weights", "allocation", "output"):
            assert np.array_equal(getattr(one, name), getattr(whole, name)[batch, row])


def test_labels_are_carried_to_the_result():
    pandas = pytest.importorskip("pandas")
    query = pandas.DataFrame(QUERY, index=["now", "soon"], columns=["x", "y"])
    key = pandas.DataFrame(KEY, index=["a", "b", "c"], columns=["x", "y"])
    value = pandas.DataFrame(VALUE, index=["a", "b", "c"], columns=["cost", "gain"])
    upper = pandas.Series([4.0, 9.0, 9.0], index=["a", "b", "c"])
    budget = pandas.Series([10.0, 20.0], index=["now", "soon"])
    result = fastattn.attention_allocation(query, key, value, budget=budget, upper=upper)
    plain = fastattn.attention_allocation(QUERY, KEY, VALUE, budget=[10, 20], upper=[4, 9, 9])
    for frame, array in ((result.weights, plain.weights), (result.allocation, plain.allocation)):
        assert list(frame.index) == ["now", "soon"]
        assert list(frame.columns) == ["a", "b", "c"]
        assert np.array_equal(frame.to_numpy(), array)
    assert list(result.output.columns) == ["cost", "gain"]
    one = fastattn.attention_allocation(query.loc["now"], key, budget=9, upper=2, on_unspent="keep")
    assert list(one.allocation.index) == ["a", "b", "c"]
    assert one.allocation.name == one.weights.name == "now"
    assert one.unspent == 3
    batch = fastattn.attention_allocation(np.stack([query, query]), key, value)
    assert isinstance(batch.weights, np.ndarray)
    mask = pandas.DataFrame(np.ones((2, 3), bool), index=query.index, columns=key.index)
    for wrong, words in (
        ({"query": query[["y", "x"]]}, "columns of key"),
        ({"value": value[::-1]}, "index of value"),
        ({"upper": upper[::-1]}, "labels of upper"),
        ({"budget": budget[::-1]}, "index of budget"),
        ({"mask": mask[["c", "b", "a"]]}, "labels of mask"),
        ({"mask": mask[::-1]}, "index of mask"),
    ):
        given = {"query": query, "key": key, "value": value, "upper": upper, "budget": budget}
        with pytest.raises(ValueError, match=words):
            fastattn.attention_allocation(**{**given, **wrong})
    nullable = {"budget": budget.astype("Int64"), "upper": upper.astype("Float64")}
    again = fastattn.attention_allocation(query, key, value, **nullable)
    assert again.allocation.equals(result.allocation)


def test_pandas_is_not_imported():
    program = (
        "import fastattn, sys; fastattn.attention_allocation([1.0], [[1.0]]); "
        "print('pandas' in sys.modules)"
    )
    assert children.run(program).strip() == "False"
