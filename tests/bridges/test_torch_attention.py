"""`scaled_dot_product_attention` against torch's own, over its argument rules."""

import numpy as np
import pytest
import tolerances
from tensors import FLOATS, laid_out, normal, numpy_name, same_bits, torch

import fastattn

bridge = fastattn.bridges.torch
ours = bridge.scaled_dot_product_attention
theirs = torch.nn.functional.scaled_dot_product_attention
SETS = 300


def draw(rng):
    """A call that torch documents: operands and options."""
    dtype = FLOATS[rng.choice(4, p=[0.4, 0.2, 0.2, 0.2])]
    outer = tuple(rng.integers(1, 4, rng.integers(0, 3)))
    rows, keys = rng.integers(1, 20, 2)
    features, wide = rng.integers(1, 40, 2)
    heads, kv_heads, gqa = int(rng.integers(1, 5)), None, False
    if rng.random() < 0.3:
        kv_heads, gqa = heads, True
        heads *= int(rng.integers(1, 4))
    kv_heads = kv_heads or heads
    if rng.random() < 0.2 and not gqa:
        outer, heads, kv_heads = (), None, None
    query = normal(rng, *outer, *([heads] if heads else []), rows, features, dtype=dtype)
    key = normal(rng, *outer, *([kv_heads] if heads else []), keys, features, dtype=dtype)
    value = normal(rng, *outer, *([kv_heads] if heads else []), keys, wide, dtype=dtype)
    options = {"enable_gqa": True} if gqa else {}
    if rng.random() < 0.3:
        options["scale"] = float(rng.choice([0.0, -0.5, 0.2, 1.0]))
    kind = rng.integers(4)
    if kind == 1:
        options["is_causal"] = True
    elif kind > 1:
        full = (*query.shape[:-2], rows, keys)
        shape = [n if rng.random() < 0.6 else 1 for n in full][rng.integers(0, len(full) - 1) :]
        mask = torch.from_numpy(rng.random(shape) < 0.7)
        if kind == 3:
            mask = normal(rng, *shape, dtype=dtype).masked_fill(~mask, float("-inf"))
            if dtype is not torch.float64 and rng.random() < 0.3:
                mask = mask.float()
        options["attn_mask"] = mask
    return [laid_out(rng, x) for x in (query, key, value)], options


@pytest.mark.parametrize("part", range(10))
def test_it_gives_what_torch_gives(part, seed):
    for number in range(SETS // 10):
        rng = np.random.default_rng([seed, part, number])
        operands, options = draw(rng)
        told = f"{[tuple(x.shape) for x in operands]}, {operands[0].dtype}, {options}"
        expected = theirs(*(x.contiguous() for x in operands), **options)
        output = ours(*operands, **options)
        assert output.dtype is expected.dtype, told
        assert output.shape == expected.shape, told
        apart = (output.double() - expected.double()).abs().max()
        size = float(operands[2].abs().max())
        assert apart <= tolerances.pytorch_error(numpy_name(output.dtype), size), told


@pytest.mark.parametrize("part", range(3))
def test_it_has_the_bits_of_attention(part, seed):
    for number in range(20):
        rng = np.random.default_rng([seed, 1, part, number])
        operands, options = draw(rng)
        arrays = [bridge.tensors.array_of(x) for x in operands]
        mask = options.get("attn_mask")
        expected = fastattn.attention(
            *arrays,
            mask=None if mask is None else bridge.tensors.array_of(mask),
            causal="top_left" if options.get("is_causal") else False,
            scale=options.get("scale"),
            enable_gqa=options.get("enable_gqa", False),
        )
        output = ours(*operands, **options)
        assert np.array_equal(bridge.tensors.array_of(output), expected)
        operator = torch.ops.fastattn.attention(
            *operands,
            mask,
            options.get("is_causal", False),
            options.get("scale"),
            options.get("enable_gqa", False),
        )
        assert same_bits(operator, output)


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_that_may_attend_to_nothing_are_zero_as_torchs(dtype):
    x = torch.ones(1, 1, 2, 4, dtype=dtype)
    mask = torch.tensor([[False, False], [True, False]])
    for given in (mask, torch.zeros(2, 2, dtype=dtype).masked_fill(~mask, float("-inf"))):
        for function in (ours, theirs):
            assert function(x, x, x, given)[0, 0].tolist() == [[0.0] * 4, [1.0] * 4]


@pytest.mark.parametrize("sizes", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty_sizes(sizes):
    rows, keys, features, wide = sizes
    query, key = torch.ones(2, 3, rows, features), torch.ones(2, 3, keys, features)
    value = torch.ones(2, 3, keys, wide)
    assert torch.equal(ours(query, key, value), theirs(query, key, value))
    assert ours(query[:0], key[:0], value[:0]).shape == (0, 3, rows, wide)


@pytest.mark.parametrize("layout", ["heads apart", "heads side by side"])
def test_heads_of_the_output_lie_as_the_querys(layout):
    x = torch.ones(2, 3, 5, 4)
    if layout == "heads side by side":
        x = torch.ones(2, 5, 3, 4).transpose(1, 2)
    assert ours(x, x, x).stride() == theirs(x, x, x).stride() == x.stride()


X = torch.ones(2, 4, 3, 8)
WRONG = {
    "dropout": ((X, X, X, None, 0.1), {}, "dropout_p is 0.1"),
    "mask and causal": ((X, X, X, torch.ones(3, 3, dtype=torch.bool)), {"is_causal": True}, "tril"),
    "dtypes": ((X, X.double(), X), {}, "float64"),
    "a mask of numbers": ((X, X, X, torch.ones(3, 3, dtype=torch.int64)), {}, "int64"),
    "a mask of doubles": ((X, X, X, torch.ones(3, 3, dtype=torch.float64)), {}, "float64"),
    "a mask of one dim": ((X, X, X, torch.ones(3)), {}, r"\(3,\)"),
    "a mask too large": ((X, X, X, torch.ones(5, 1, 1, 3, 3)), {}, "does not broadcast"),
    "one query": ((X[0, 0, 0], X, X), {}, "too few dims"),
    "features": ((X, X[..., :3], X), {}, "differ in features"),
    "values": ((X, X, X[..., :2, :]), {}, "one value for each key"),
    "heads": ((X, X[:, :2], X[:, :2]), {}, "do not broadcast"),
    "grouped heads": ((X, X[:, :3], X[:, :3]), {"enable_gqa": True}, "multiple"),
    "heads of values": ((X, X[:, :2], X), {"enable_gqa": True}, "differ in heads"),
    "scale": ((X, X, X), {"scale": float("nan")}, "finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused(name):
    operands, options, text = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=text):
        ours(*operands, **options)


def test_vmap_and_batches_agree(seed):
    rng = np.random.default_rng(seed)
    query, key = normal(rng, 3, 2, 5, 8), normal(rng, 3, 2, 7, 8)
    mask = torch.from_numpy(rng.random((3, 5, 7)) < 0.8)
    both = torch.vmap(ours)(query, key, key, mask)
    assert same_bits(both, torch.stack([ours(*x) for x in zip(query, key, key, mask, strict=True)]))
    shared = torch.vmap(ours, in_dims=(1, None, None), out_dims=1)(query, key[0, 0], key[0, 0])
    assert same_bits(shared, ours(query, key[0, 0], key[0, 0]))
