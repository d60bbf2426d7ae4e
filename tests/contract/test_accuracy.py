"""Contract point 4: no less accurate than plain NumPy in the same dtype."""

import accuracy
import numpy as np
import pytest
import tolerances


def check(figures, dtype):
    text = accuracy.report(figures, dtype)
    print(f"\n{text}")
    assert max(figure.excess for figure in figures) <= 1, text
    assert accuracy.mean_ratio(figures) <= tolerances.ACCURACY_MEAN_RATIO, text


@pytest.mark.parametrize(("dtype", "cases"), [(np.float32, 150), (np.float64, 60)])
def test_errors_of_a_sample(exact_backend, dtype, cases, seed):
    check([accuracy.measure(seed + i, dtype) for i in range(cases)], dtype)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_errors_of_a_thousand_cases(exact_backend, dtype):
    check([accuracy.measure(i, dtype) for i in range(1000)], dtype)


def check_wide(dtype, widths, seed=0, kinds=("signed", "positive"), sizes=accuracy.FEW_ROWS):
    """No metric errs more than the contract allows, for features of these kinds."""
    for metric in accuracy.METRICS:
        for kind in kinds:
            for features in widths:
                both = accuracy.measure_wide(metric, dtype, kind, features, seed, sizes)
                for name, figure in zip(("similarity", "attention"), both, strict=True):
                    if dtype == "bfloat16" and name == "attention":
                        continue  # its weights may be rounded, which NumPy's are not
                    about = f"{name} {metric} {dtype} {kind} E = {features}: {figure}"
                    assert figure.excess <= 1, about


@pytest.mark.parametrize("dtype", accuracy.DTYPES)
def test_errors_of_wide_vectors(exact_backend, dtype, seed):
    check_wide(dtype, (1, 100, 768, 1536, 4096, 20000), seed)


@pytest.mark.parametrize("dtype", accuracy.DTYPES)
def test_errors_of_equal_products(exact_backend, dtype, seed):
    """In calls that NumPy multiplies as it does large ones: its chains are as long there."""
    widths = (24, 64, 65, 128, 768, 1536)
    check_wide(dtype, widths, seed, ("constant",), sizes=((64,), 256))


@pytest.mark.parametrize("dtype", accuracy.DTYPES)
@pytest.mark.parametrize("metric", accuracy.METRICS)
def test_errors_of_equal_products_of_few_rows(exact_backend, metric, dtype, seed):
    """NumPy adds those up on lanes, and errs less: README says how much is left to us."""
    for features in (24, 57, 64, 65, 128, 400):
        scores, _ = accuracy.measure_wide(metric, dtype, "constant", features, seed)
        assert scores.ours <= tolerances.EQUAL_PRODUCTS[metric], (features, scores)


@pytest.mark.long
@pytest.mark.parametrize("dtype", accuracy.DTYPES)
def test_errors_of_a_million_features(exact_backend, dtype):
    check_wide(dtype, accuracy.WIDTHS)


def test_the_measure_sees_an_unsegmented_sum():
    """The harness can fail: one float32 chain over thirty thousand keys is far beyond the bound."""
    value = np.random.default_rng(1).random((30000, 4), np.float32) + np.float32(10)
    weights = np.full(30000, 1 / 30000, np.float32)
    chained = np.cumsum(weights[:, None] * value, axis=0, dtype=np.float32)[-1]
    truth = weights.astype(float) @ value.astype(float)
    ulp = np.finfo(np.float32).eps * float(value.max())
    ours, plain = (np.abs(x - truth).max() / ulp for x in (chained, weights @ value))
    assert accuracy.Figure(0, 30000, 1.0, ours, plain).excess > 1
