"""The module equals PyTorch's to rounding, its rows depend on themselves alone, its errors tell."""

import itertools
import threading

import multihead_golden as golden
import numpy as np
import pytest
import tolerances

from fastattn import MultiHeadAttention

SIZES = {"plain": {}, "other sizes": {"kdim": 6, "vdim": 5}, "kdim = vdim": {"kdim": 6, "vdim": 6}}


def close(actual, expected, features=16):
    """Three products in a row, each a chain over the features, of numbers around 1."""
    assert actual.shape == expected.shape
    error = tolerances.output_error(actual.dtype, features, 4.0, 16, 4.0)
    assert np.abs(actual - expected).max() <= error


def module_of(name, dtype=np.float64):
    options = dict(golden.CASES[name])
    zero = options.pop("add_zero_attn", False)
    state = {key: x.astype(dtype) for key, x in golden.state(**options).items()}
    return MultiHeadAttention.from_state_dict(state, golden.HEADS, add_zero_attn=zero)


def inputs_of(name, dtype=np.float64):
    sizes = {n: golden.CASES[name][n] for n in ("kdim", "vdim") if n in golden.CASES[name]}
    *arrays, mask = golden.inputs(**sizes)
    return *(x.astype(dtype) for x in arrays), mask


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", golden.CASES)
def test_kept_answers_of_pytorch(name, dtype, backend):
    *arrays, mask = inputs_of(name, dtype)
    output, weights = module_of(name, dtype)(
        *arrays, mask=mask, return_weights=True, average_weights=True
    )
    assert output.dtype == weights.dtype == dtype
    close(output[0], np.array(golden.OUTPUTS[name]))
    close(weights[0], np.array(golden.WEIGHTS[name]))


def torch_module(torch, dtype="float32", **options):
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(
        16, 4, batch_first=True, dtype=getattr(torch, dtype), **options
    )
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("sizes", SIZES)
def test_equal_to_pytorch_over_all_its_options(sizes, dtype):
    torch = pytest.importorskip("torch")
    widths = SIZES[sizes]
    for bias, kv, zero in itertools.product((True, False), repeat=3):
        theirs = torch_module(torch, dtype, bias=bias, add_bias_kv=kv, add_zero_attn=zero, **widths)
        ours = MultiHeadAttention.from_state_dict(theirs.state_dict(), 4, add_zero_attn=zero)
        arrays = [
            torch.randn(3, n, width, dtype=getattr(torch, dtype))
            for n, width in ((5, 16), (7, ours.kdim), (7, ours.vdim))
        ]
        hidden = torch.rand(3, 4, 5, 7) < 0.3
        padding = torch.zeros(3, 7, dtype=torch.bool)
        padding[1, 5:] = True
        hidden[..., 0] = False
        bias_mask = torch.randn(3, 4, 5, 7, dtype=arrays[0].dtype)
        shared = ~hidden[0, 0].numpy()
        calls = [  # PyTorch's options, ours
            ({}, {}),
            ({"attn_mask": hidden[0, 0]}, {"mask": shared}),
            ({"attn_mask": hidden.flatten(0, 1)}, {"mask": ~hidden.numpy()}),
            ({"attn_mask": bias_mask.flatten(0, 1)}, {"mask": bias_mask.numpy()}),
            ({"key_padding_mask": padding}, {"key_lengths": [7, 5, 7]}),
            (
                {"attn_mask": hidden[0, 0], "key_padding_mask": padding},
                {"mask": shared & ~padding.numpy()[:, None, None]},
            ),
        ]
        for (theirs_take, ours_take), averaged in itertools.product(calls, (True, False)):
            with torch.inference_mode():
                expected = theirs(*arrays, average_attn_weights=averaged, **theirs_take)
            actual = ours(
                *(x.numpy() for x in arrays),
                return_weights=True,
                average_weights=averaged,
                **ours_take,
            )
            for one, other in zip(actual, expected, strict=True):
                assert one.dtype == other.numpy().dtype
                close(one, other.numpy())


def test_causal_self_attention_equals_pytorch_on_both_its_paths():
    torch = pytest.importorskip("torch")
    theirs = torch_module(torch)
    ours = MultiHeadAttention.from_state_dict(theirs.state_dict(), 4)
    x = torch.randn(2, 9, 16)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(9)
    with torch.inference_mode():
        expected = theirs(x, x, x, attn_mask=mask, is_causal=True, need_weights=False)[0]
        unmasked = theirs(x, x, x, need_weights=False)[0]
    close(ours(x.numpy(), causal=True), expected.numpy())
    close(ours(x.numpy()), unmasked.numpy())
    close(ours(x[0].numpy()), unmasked[0].numpy())  # without a batch


def test_bfloat16_weights_of_pytorch_are_read_as_they_are():
    torch, ml_dtypes = pytest.importorskip("torch"), pytest.importorskip("ml_dtypes")
    theirs = torch_module(torch).to(torch.bfloat16)
    ours = MultiHeadAttention.from_state_dict(theirs.state_dict(), 4)
    for name, x in ours.state_dict().items():
        assert x.dtype == ml_dtypes.bfloat16
        assert np.array_equal(x.astype(np.float32), theirs.state_dict()[name].float().numpy())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_computed_in_float32_and_rounded_once(dtype):
    dtype = np.dtype(getattr(pytest.importorskip("ml_dtypes"), dtype, dtype))
    half = module_of("added keys", dtype)
    wide = MultiHeadAttention.from_state_dict(
        {name: x.astype(np.float32) for name, x in half.state_dict().items()},
        golden.HEADS,
        add_zero_attn=True,
    )
    *arrays, mask = inputs_of("added keys", dtype)
    options = {"mask": mask, "return_weights": True}
    actual = half(*arrays, **options)
    expected = wide(*(x.astype(np.float32) for x in arrays), **options)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == dtype
        assert np.array_equal(one, other.astype(dtype))


def test_halves_are_stored_where_asked():
    module, x = module_of("plain", np.float16), np.ones((3, 8), np.float16)
    out = np.empty((3, 8), np.float16)
    assert module(x, out=out) is out
    assert np.array_equal(out, module(x))


def test_keys_and_values_of_one_width_take_their_own_weights():
    module = MultiHeadAttention(8, 2, kdim=6, vdim=6, seed=5)
    rng = np.random.default_rng(5)
    query, key = rng.standard_normal((4, 8)), rng.standard_normal((5, 6))
    assert np.array_equal(module(query, key, key.copy()), module(query, key))


def test_float16_overflows_to_infinity():
    module = MultiHeadAttention.from_arrays(
        1,
        **{f"{n}_weight": np.full((1, 1), 300, "f2") for n in ("query", "key", "value", "output")},
    )
    assert module(np.ones((1, 1), np.float16)) == np.inf


def test_dtypes_promote():
    module = module_of("plain", np.float32)
    for given, result in (("f4", "f4"), ("f8", "f8"), ("f2", "f4"), ("i4", "f8")):
        assert module(np.ones((2, 8), given)).dtype == result


def test_rows_do_not_depend_on_batch_threads_layout_or_the_rest(exact_backend, seed):
    rng = np.random.default_rng(seed)
    module = MultiHeadAttention(48, 4, add_bias_kv=True, seed=seed)
    x = rng.standard_normal((3, 70, 48), dtype=np.float32)
    whole, weights = module(x, return_weights=True)
    mean = module(x, return_weights=True, average_weights=True)[1]
    for one in range(3):
        assert np.array_equal(module(x[one]), whole[one])
    assert np.array_equal(module(x[:1, :1], x[:1])[0, 0], whole[0, 0])
    few = module(x[:1, :1], x[:1], return_weights=True, average_weights=True)[1]
    assert np.array_equal(few[0, 0], mean[0, 0])
    assert np.array_equal(module(x, x.copy(), x.copy()), whole)
    assert np.array_equal(module(x, x, x.copy()), whole)
    assert np.array_equal(module(x, threads=1), whole)
    assert np.array_equal(module(np.asfortranarray(x)), whole)
    assert np.array_equal(module(x.astype(">f4")), whole)
    out = np.empty((70, 3, 48), np.float32).swapaxes(0, 1)
    assert module(x, out=out) is out
    assert np.array_equal(out, whole)
    assert weights.shape == (3, 4, 70, 71)
    own = x.copy()
    assert np.array_equal(module(own, out=own), whole)


def test_batch_dims_broadcast():
    module = module_of("plain")
    query, key, value, mask = inputs_of("plain")
    queries = np.concatenate([query, -query, query + 1])
    expected = np.stack([module(one, key[0], value[0], mask=mask) for one in queries])
    assert np.array_equal(module(queries, key[0], value, mask=mask), expected)
    lengths = module(queries, key, value, key_lengths=np.array([4, 2, 3]))
    assert np.array_equal(lengths[1], module(queries[1], key[0, :2], value[0, :2]))


@pytest.mark.parametrize("name", golden.CASES)
def test_hidden_keys_leak_nothing_and_rows_that_see_nothing_are_the_bias(name):
    module = module_of(name)
    query, key, value, _ = inputs_of(name)
    expected = module(query, key[:, :2], value[:, :2])
    key[:, 2:], value[:, 2:] = np.nan, np.inf
    assert np.array_equal(module(query, key, value, key_lengths=2), expected)
    alone = module(query, key, value, key_lengths=0)
    empty = module(query, key[:, :0], value[:, :0])
    assert np.array_equal(alone, empty)
    if name != "added keys":
        bias = module.state_dict().get("out_proj.bias", np.zeros(8))
        assert np.array_equal(alone, np.broadcast_to(bias, alone.shape))


def test_added_keys_are_seen_whatever_is_hidden():
    """As if the caller had one key more, of the added key's own projection, and one of zeros."""
    module = module_of("added keys")
    query, key, value, _ = inputs_of("added keys")
    output, weights = module(query, key, value, causal=True, query_offset=-2, return_weights=True)
    assert (weights[..., :2, :4] == 0).all()
    assert np.allclose(weights.sum(-1), 1, rtol=0, atol=1e-15)
    assert (weights[..., 4:] > 0).all()
    hidden = module(query, key, value, key_lengths=0)
    assert np.array_equal(output[:, :2], hidden[:, :2])


def test_empty_batches_and_lengths():
    module = module_of("plain")
    assert module(np.zeros((0, 3, 8))).shape == (0, 3, 8)
    assert module(np.zeros((2, 0, 8)), np.zeros((2, 5, 8))).shape == (2, 0, 8)


def test_safe_from_many_threads():
    module, x = MultiHeadAttention(32, 4, seed=1), np.ones((2, 40, 32), np.float32)
    x += np.arange(40)[:, None] / 40
    results = [None] * 8
    workers = [
        threading.Thread(target=lambda at=at: results.__setitem__(at, module(x, causal=True)))
        for at in range(8)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(np.array_equal(result, module(x, causal=True)) for result in results)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m: m(np.ones((3, 7))), ValueError, "query must be (..., length, embed_dim) with"),
        (lambda m: m(np.ones(8)), ValueError, "one row is `np.asarray(query)[None]`"),
        (
            lambda m: m(np.ones((3, 8)), np.ones((4, 8)), np.ones((5, 8))),
            ValueError,
            "value (5, 8)",
        ),
        (lambda m: m(np.ones((2, 3, 8)), np.ones((3, 3, 8))), ValueError, "PyTorch's batch_first"),
        (lambda m: m(np.ones((2, 3, 8)), key_lengths=[3]), None, ""),
        (lambda m: m(np.ones((2, 3, 8)), key_lengths=[1, 2, 3]), ValueError, "batch dims (2,)"),
        (lambda m: m(np.ones((3, 8)), return_weights="mean"), TypeError, "return_weights"),
        (lambda m: m(np.ones((3, 8)), out=np.ones((2, 8))), ValueError, "out has shape (2, 8)"),
        (lambda m: m(np.ones((3, 8)), np.ones((4, 8)), causal=True), ValueError, "bottom_right"),
        (lambda m: m(np.ones((3, 8)) * 1j), TypeError, "complex"),
        (
            lambda m: m(np.ones((3, 5, 8)), mask=np.ones((3, 5, 5), bool)),
            ValueError,
            "one mask per batch row is `np.asarray(mask)[:, None]`",
        ),
        (
            lambda m: m(np.ones((3, 5, 8)), mask=np.ones((6, 5, 5), bool)),
            ValueError,
            "one per batch row and head is `np.reshape(mask, (3, 2, 5, 5))`",
        ),
        (
            lambda m: m(np.ones((3, 5, 8)), mask=np.ones((3, 5), bool)),
            ValueError,
            "one mask of keys per batch row is `np.asarray(mask)[:, None, None, :]`",
        ),
        (
            lambda m: m(np.ones((3, 8)), average_weights=True),
            ValueError,
            "`return_weights=True` too",
        ),
        (lambda m: MultiHeadAttention(8, 3), ValueError, "num_heads = 3"),
        (lambda m: MultiHeadAttention(8, 2.0), TypeError, "num_heads must be an integer"),
        (lambda m: MultiHeadAttention(0, 1), ValueError, "embed_dim must be a positive integer"),
        (lambda m: MultiHeadAttention(8, 2, dtype=int), ValueError, "not int64"),
    ],
)
def test_calls_that_cannot_work_say_why(call, error, words):
    module = module_of("plain")
    if error is None:
        call(module)
        return
    with pytest.raises(error) as caught:
        call(module)
    assert words in str(caught.value)


def test_pytorch_is_never_imported():
    from imports import fresh

    code = (
        "import sys, numpy as np, fastattn; m = fastattn.MultiHeadAttention(8, 2);"
        "m(np.ones((3, 8)));"
        "print(sorted({'torch', 'safetensors', 'ml_dtypes'} & set(sys.modules)))"
    )
    assert fresh(code) == "[]"
