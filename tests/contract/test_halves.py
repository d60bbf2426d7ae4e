"""float16 and bfloat16 in and out: computed in float32, rounded once, whatever the operation.

Every option with these dtypes is in test_conformance's pairs; here is what is special about them.
"""

import functools
import itertools

import numpy as np
import oracle
import pytest
import strategies
import tolerances
from halves import ANY, SHAPES, SMALL, exact_backends_only, operands
from pairs import taken, takes_pairs

import fastattn
from fastattn import reference


@functools.lru_cache(maxsize=3)
def judged(dtype, shape, seed, spread, options):
    """Operands of a call and its exact result; the backends do a few calls each, turn about."""
    arrays = operands(dtype, shape, seed, spread)
    return arrays, reference.attention(*arrays, **dict(options))


# --- accuracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0], scope="module")
@pytest.mark.parametrize("shape", SHAPES, scope="module")
@pytest.mark.parametrize("dtype", SMALL, scope="module")
@pytest.mark.parametrize(
    "options", [{}, {"causal": "bottom_right"}, {"similarity": "cosine"}], ids=str, scope="module"
)
def test_error_is_that_of_one_rounding(backend, dtype, shape, options, spread, seed):
    """In the root mean square and at most: 1.5 times what rounding the exact result costs."""
    arrays, expected = judged(dtype, shape, seed, spread, tuple(options.items()))
    output = fastattn.attention(*arrays, **options)
    assert output.dtype == arrays[0].dtype
    error = abs(output.astype(float) - expected)
    rounding = abs(expected.astype(arrays[0].dtype).astype(float) - expected)
    for measure in (np.max, lambda x: np.sqrt(np.mean(x**2))):
        assert measure(error) <= tolerances.SMALL_ROUNDINGS * measure(rounding)


@pytest.mark.parametrize("dtypes", list(itertools.product(ANY, repeat=3)), ids="-".join)
def test_mixed_floats_promote_as_numpy_says(backend, dtypes, seed):
    dtypes = tuple(strategies.dtype_of(name) for name in dtypes)
    case = strategies.case(seed=seed, dtypes=dtypes, batch=(2,), rows=5, keys=70)
    results = fastattn.attention(*case.arrays, return_lse=True, return_weights=True)
    oracle.attention(*case.arrays).check(*results, about=case)
    names = {dtype.name for dtype in dtypes}
    wanted = "float64" if "float64" in names else "float32"
    assert results[0].dtype == (names.pop() if len(names) == 1 else wanted)
    assert results[1].dtype == wanted


@pytest.mark.parametrize("other", ["i1", "u2", "?"])
@pytest.mark.parametrize("dtype", SMALL)
def test_integers_beside_small_floats_compute_in_float64(backend, dtype, other, seed):
    case = strategies.case(seed=seed, dtypes=(strategies.dtype_of(dtype), dtype, other), keys=70)
    results = fastattn.attention(*case.arrays, return_lse=True, return_weights=True)
    assert results[0].dtype == np.float64
    oracle.attention(*case.arrays).check(*results, about=case)


@pytest.mark.parametrize("mask_dtype", SMALL)
@pytest.mark.parametrize("dtype", ANY)
def test_small_masks_slopes_and_sinks_never_promote(backend, dtype, mask_dtype, seed):
    small = strategies.dtype_of(mask_dtype)
    case = strategies.case(seed=seed, dtypes=(strategies.dtype_of(dtype),) * 3, rows=8, keys=70)
    mask = case.rng.standard_normal((8, 70)).astype(small)
    mask[3, ::2] = -np.inf
    options = {"mask": mask, "alibi_slopes": np.full(4, 0.1).astype(small)}
    options["sinks"] = case.rng.standard_normal(4).astype(small)
    results = fastattn.attention(*case.arrays, **options, return_lse=True, return_weights=True)
    oracle.attention(*case.arrays, **options).check(*results, about=case)


# --- rounding ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SMALL)
def test_every_number_comes_back(backend, dtype):
    """One key: its value, whatever it is. Every one of the 65536, NaN as NaN."""
    numbers = np.arange(2**16, dtype=np.uint16).view(strategies.dtype_of(dtype)).reshape(-1, 64)
    x = np.ones((1, 4), numbers.dtype)
    expected = taken(numbers) if takes_pairs(x, x, numbers[:, None, :]) else numbers
    output = fastattn.attention(x, x, numbers[:, None, :])
    oracle.assert_same_bits(output, expected[:, None, :])
    packed = numbers.reshape(1, -1)
    varlen = fastattn.attention_varlen(x, x, packed, [0, 1], [0, 1])
    oracle.assert_same_bits(varlen, expected.reshape(1, -1))


@pytest.mark.parametrize("dtype", SMALL)
def test_ties_go_to_even(backend, dtype):
    """The mean of neighbours lies in the middle; cutting it off would give the smaller one."""
    dtype = strategies.dtype_of(dtype)
    bits = np.arange(0x2000, 0x6000, 37, dtype=np.uint16)
    value = np.stack([bits, bits + 1]).view(dtype)
    value = np.concatenate([value, -value], axis=1)
    x = np.zeros((1, 4), dtype), np.zeros((2, 4), dtype)
    output = fastattn.attention(*x, value)[0]
    expected = value.astype(float).mean(axis=0).astype(dtype)
    oracle.assert_same_bits(output, expected)
    assert (output.view(np.uint16) % 2 == 0).all()


@pytest.mark.parametrize("dtype", SMALL)
@pytest.mark.parametrize("features", [1, 15, 16, 17, 64])
def test_rounded_once_from_float32(backend, dtype, features, seed):
    """Equal to the float32 call, rounded: for float16 always, for bfloat16 without a native dot."""
    exact_backends_only(backend)
    case = strategies.case(
        ["causal_bottom_right"], seed=seed, keys=600, features=features, rows=26,
        dtypes=(strategies.dtype_of(dtype),) * 3,
    )  # fmt: skip
    wide = [array.astype(np.float32) for array in case.arrays]
    asked = {**case.options, "return_lse": True, "return_weights": True}
    small, exact = fastattn.attention(*case.arrays, **asked), fastattn.attention(*wide, **asked)
    if dtype == "bfloat16":
        # The native dot may round weights, and adds in another order.
        for ours, theirs in zip(small, exact, strict=True):
            error = tolerances.small_error(dtype, 1.0) * oracle.finite_max(case.value)
            np.testing.assert_allclose(ours.astype(float), theirs, atol=error, rtol=0.01)
        return
    oracle.assert_same_bits(small[1], exact[1])
    for ours, theirs in ((small[0], exact[0]), (small[2], exact[2])):
        oracle.assert_same_bits(ours, theirs.astype(dtype))


@pytest.mark.parametrize("dtype", SMALL)
def test_ends_of_the_range(backend, dtype):
    dtype = strategies.dtype_of(dtype)
    # bfloat16 reaches as far as float32, in which values are summed before they are divided.
    largest = np.array([0x7BFF if dtype == np.float16 else 0x7E7F], np.uint16).view(dtype)[0]
    smallest = np.array([1], np.uint16).view(dtype)[0]
    value = np.array([[largest, smallest, -largest, 0], [largest, smallest, -largest, 0]], dtype)
    x = np.zeros((1, 4), dtype), np.zeros((2, 4), dtype)
    expected = taken(value[:1]) if takes_pairs(*x, value) else value[:1]
    np.testing.assert_array_equal(fastattn.attention(*x, value), expected)
    # Scores far beyond float16's range are float32's.
    query = np.full((1, 4), 200, dtype)
    output, lse = fastattn.attention(
        query, np.full((2, 4), 200, dtype), value, scale=1.0, return_lse=True
    )
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_allclose(lse, 160000 + np.log(2), rtol=1e-6)
    assert lse.dtype == np.float32


@pytest.mark.parametrize("dtype", SMALL)
def test_hidden_and_visible_nan(backend, dtype, seed):
    query, key, value = operands(dtype, "odd", seed)
    mask = np.ones((25, 77), bool)
    mask[:, 40] = False
    clean = fastattn.attention(query, key, value, mask=mask)
    for poison in (np.nan, np.inf):
        key[..., 40, :], value[..., 40, :] = poison, poison
        oracle.assert_same_bits(fastattn.attention(query, key, value, mask=mask), clean)
    mask[3, 40] = True
    touched = np.isnan(fastattn.attention(query, key, value, mask=mask)).any(axis=-1)
    assert touched[..., 3].all()
    assert not np.delete(touched, 3, axis=-1).any()


@pytest.mark.parametrize("bits", [0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("dtype", SMALL)
def test_nan_of_any_payload_stays_nan(backend, dtype, bits, seed):
    """Rounding it like a number would carry into the sign, and give 0 or infinity."""
    mask = np.zeros((25, 77), np.float32)
    mask.view(np.uint32)[3, 40] = bits
    output = fastattn.attention(*operands(dtype, "odd", seed), mask=mask)
    touched = np.isnan(output).any(axis=-1)
    assert np.isnan(output[..., 3, :]).all()
    assert not np.delete(touched, 3, axis=-1).any()


# --- layouts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", strategies.LAYOUTS)
@pytest.mark.parametrize("dtype", SMALL)
def test_any_layout(exact_backend, dtype, layout, seed):
    laid = [strategies.lay_out(x, layout) for x in operands(dtype, "odd", seed)]
    plain = [strategies.plain(x) for x in laid]
    asked = {"causal": "bottom_right", "return_lse": True, "return_weights": True}
    for ours, theirs in zip(
        fastattn.attention(*laid, **asked), fastattn.attention(*plain, **asked), strict=True
    ):
        oracle.assert_same_bits(ours, theirs, about=layout)
    if "broadcast" in layout or layout == "read_only":
        return
    out = strategies.lay_out(np.zeros(laid[0].shape, laid[0].dtype), layout)
    assert fastattn.attention(*laid, causal="bottom_right", out=out) is out
    assert np.array_equal(out, fastattn.attention(*plain, causal="bottom_right"))


@pytest.mark.parametrize("dtype", SMALL)
def test_out_of_another_dtype_is_refused(backend, dtype, seed):
    query, key, value = operands(dtype, "odd", seed)
    with pytest.raises((TypeError, ValueError), match=dtype):
        fastattn.attention(query, key, value, out=np.empty(query.shape, np.float32))


# --- states --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", SMALL)
def test_states(backend, dtype, seed):
    query, key, value = operands(dtype, "decode", seed)
    sinks = np.array([0.5, -1.0, 3.0, -np.inf], np.float32)
    parts = [
        fastattn.attention_state(query, key[..., a:b, :], value[..., a:b, :], key_start=a)
        for a, b in ((0, 512), (512, 1024), (1024, 1100))
    ]
    merged = parts[0].merge(parts[1].merge(parts[2])).finish(sinks=sinks, return_lse=True)
    oracle.attention(query, key, value, sinks=sinks).check(*merged)
    one = fastattn.attention(query, key, value, sinks=sinks, return_lse=True)
    if fastattn.explain(query, key, value).backend != "reference":
        for ours, theirs in zip(merged, one, strict=True):
            oracle.assert_same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", SMALL)
def test_merging_results(backend, dtype, seed):
    query, key, value = operands(dtype, "odd", seed)
    halves = [
        fastattn.attention(query, key[..., part, :], value[..., part, :], return_lse=True)
        for part in (slice(0, 30), slice(30, None))
    ]
    output, lse = fastattn.merge_states(*zip(*halves, strict=True))
    truth = oracle.attention(query, key, value)
    assert output.dtype == query.dtype
    assert lse.dtype == np.float32
    rounding = tolerances.small_error(dtype, oracle.finite_max(value))
    oracle.assert_close(output, truth.output, 2 * rounding + truth.output_tolerance)
    oracle.assert_close(lse, truth.lse, truth.lse_tolerance)
