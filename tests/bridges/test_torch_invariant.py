"""`batch_invariant` and `check_batch_invariance`: the bits of a row, in any batch."""

import doctest
import importlib

import numpy as np
import pytest
import tolerances
from tensors import FLOATS, Mixed, functional, made, nn, normal, numpy_name, same_bits, torch

import fastattn
from fastattn.bridges.torch import operations

bridge = fastattn.bridges.torch
WIDTH = 29  # no multiple of anything


@pytest.fixture(autouse=True)
def threads():
    yield
    torch.set_num_threads(2)


class Conv1D(nn.Module):
    """As GPT-2 has it: weights the other way round, by addmm."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(*shape)) for shape in ((WIDTH, 50), (50,))
        )

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], 50)


class Products(nn.Module):
    """Products as people write them."""

    def __init__(self, write):
        super().__init__()
        self.weight, self.write = nn.Parameter(torch.ones(WIDTH, 40)), write

    def forward(self, x):
        return self.write(x, self.weight)


class Eager(nn.Module):
    """Attention by hand, with padding hidden by the lowest number."""

    def forward(self, x):
        hidden = torch.arange(x.shape[1]) > 3
        scores = (x @ x.mT / 3).masked_fill(hidden, torch.finfo(x.dtype).min)
        return torch.softmax(scores, -1) @ x


class Swapped(nn.Module):
    """The batch behind the rows, so that its layout depends on the size of the batch."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(WIDTH, 40)

    def forward(self, x):
        return self.linear(x.transpose(0, 1)).transpose(0, 1)


def gated(x, weight):
    gate, up = functional.linear(x, weight.T).chunk(2, -1)
    return functional.silu(gate) * up


LARGE = nn.Parameter(torch.ones(WIDTH, 2600))
MODELS = {
    "Linear": lambda: nn.Linear(WIDTH, 40),
    "Linear of many features": lambda: nn.Sequential(nn.Linear(WIDTH, 2600), nn.Linear(2600, 5)),
    "without bias": lambda: nn.Linear(WIDTH, 40, bias=False),
    "Conv1D": Conv1D,
    "Swapped": Swapped,
    "mm": lambda: Products(lambda x, w: (x.flatten(0, 1) @ w).unflatten(0, x.shape[:2])),
    "matmul": lambda: Products(lambda x, w: torch.matmul(x, w)),
    "matmul, strided": lambda: Products(lambda x, w: torch.matmul(x[:, ::2], w)),
    "matmul, swapped": lambda: Products(lambda x, w: (x.transpose(0, 1) @ w).transpose(0, 1)),
    "einsum": lambda: Products(lambda x, w: torch.einsum("bld,dk->blk", x, w)),
    "baddbmm": lambda: Products(
        lambda x, w: torch.baddbmm(x[:, :, :1], x, x.mT, beta=0.5, alpha=0.3) @ x
    ),
    "mv": lambda: Products(lambda x, w: x @ w[:, 0]),
    "a part of a weight": lambda: Products(lambda x, w: functional.linear(x, w.T[3:20])),
    "silu and chunks": lambda: Products(gated),
    "gelu": lambda: nn.Sequential(nn.Linear(WIDTH, 33), nn.GELU(), nn.LayerNorm(33)),
    "tanh gelu": lambda: nn.Sequential(nn.Linear(WIDTH, 33), nn.GELU("tanh"), nn.RMSNorm(33)),
    "Eager": Eager,
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(WIDTH, 1, 33, batch_first=True), 1, enable_nested_tensor=False
    ),
    "weights of attention": lambda: Returned(nn.MultiheadAttention(WIDTH, 1, batch_first=True)),
}


class Returned(nn.Module):
    """Attention that is asked for its weights, which torch then computes by products."""

    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=True)


def rows_alone(model, x, index):
    output = model(x[index : index + 1])
    return output if isinstance(output, torch.Tensor) else torch.cat([y.flatten() for y in output])


def whole(model, x):
    output = model(x)
    if isinstance(output, torch.Tensor):
        return output
    return [torch.cat([y[i].flatten() for y in output]) for i in range(len(x))]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_row_has_the_bits_it_has_alone(name, mode, seed):
    model, x = made(MODELS[name]()), normal(np.random.default_rng(seed), 7, 6, WIDTH)
    with mode():
        expected = whole(model, x)
        with bridge.batch_invariant() as counted:
            output = whole(model, x)
            for i in range(len(x)):
                alone = rows_alone(model, x, i)
                assert same_bits(alone.reshape(output[i].shape), output[i])
            for threads in (1, 3):
                torch.set_num_threads(threads)
                assert all(map(same_bits, whole(model, x), output))
    assert dict(counted.unsure) == {}
    assert counted.taken > 0 or name == "tanh"
    for one, other in zip(output, expected, strict=True):
        size = float(other.abs().max())
        assert float((one - other).abs().max()) <= tolerances.pytorch_error("float32", size)


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_type(dtype, seed):
    rng = np.random.default_rng(seed)
    model, x = made(Mixed()).to(dtype), normal(rng, 5, 6, 8, dtype=dtype)
    with torch.no_grad():
        expected = model(x)
        with bridge.batch_invariant() as counted:
            output = model(x)
            assert all(same_bits(model(x[i : i + 1])[0], output[i]) for i in range(5))
    assert (dict(counted.unsure), dict(counted.left)) == ({}, {})
    # Halves are rounded between layers, in different places.
    allowed = 16 * tolerances.pytorch_error(numpy_name(dtype), float(expected.abs().max()))
    assert float((output.double() - expected.double()).abs().max()) <= allowed


@pytest.mark.parametrize(
    ("options", "image"),
    [
        ((3, 5, 4, 4), (3, 16, 16)),
        ((3, 5, (3, 2), (2, 1), (1, 0)), (3, 9, 8)),
        ((2, 4, 3, 1, 1, 1, 1, False), (2, 7, 7)),
    ],
)
def test_convolutions(options, image, seed):
    layer, x = made(nn.Conv2d(*options)), normal(np.random.default_rng(seed), 5, *image)
    line, y = made(nn.Conv1d(4, 6, 3, 2, 1)), normal(np.random.default_rng(seed), 5, 4, 21)
    with torch.no_grad():
        for model, given in ((layer, x), (line, y)):
            expected = model(given)
            with bridge.batch_invariant() as counted:
                output = model(given)
                assert all(same_bits(model(given[i : i + 1])[0], output[i]) for i in range(5))
            assert (counted.taken, dict(counted.unsure)) == (6, {})
            assert float((output - expected).abs().max()) <= tolerances.pytorch_error(
                "float32", 4.0
            )


UNSURE = {
    "aten::convolution": lambda x: functional.conv1d(x, torch.ones(6, 1, 3), groups=6),
    "aten::rand_like": torch.rand_like,
    "aten::_fft_r2c": torch.fft.rfft,
    "aten::mm": lambda x: x[0].to(torch.complex64) @ x[0].to(torch.complex64).T,
    "aten::sum": lambda x: torch.cat([x.flatten()] * 30).sum(),
    "aten::var": lambda x: x.var(-1),
    "aten::sigmoid": lambda x: torch.sigmoid(x, out=torch.empty_like(x)),
    "aten::index_add": lambda x: torch.zeros(3, WIDTH).index_add(0, torch.zeros(6).long(), x[0]),
}


@pytest.mark.parametrize("name", UNSURE)
def test_what_may_depend_on_the_batch_is_named(name, seed):
    x = normal(np.random.default_rng(seed), 7, 6, WIDTH)
    torch.manual_seed(0)
    expected = UNSURE[name](x)
    torch.manual_seed(0)
    with bridge.batch_invariant() as counted:
        output = UNSURE[name](x)
    assert torch.equal(output, expected)
    assert set(counted.unsure) == {name}
    assert f"unsure: 1 {name}" in repr(counted)


def test_gradients_go_through_products(seed):
    model, x = made(nn.Linear(WIDTH, 4)), normal(np.random.default_rng(seed), 5, WIDTH)
    model(x).square().sum().backward()
    expected = model.weight.grad.clone()
    model.weight.grad = None
    with bridge.batch_invariant() as counted:
        output = model(x)
        output.square().sum().backward()
    assert counted.taken > 1
    size = float(expected.abs().max())
    apart = float((model.weight.grad - expected).abs().max())
    assert apart <= tolerances.pytorch_error("float32", size)
    with torch.no_grad(), bridge.batch_invariant():
        assert same_bits(model(x), output)


def test_nothing_is_left_behind(seed):
    model, x = made(Mixed()), normal(np.random.default_rng(seed), 5, 6, 8)
    with torch.no_grad():
        expected = model(x)
        with pytest.raises(KeyError), bridge.batch_invariant():
            raise KeyError
        with bridge.patch() as outer, bridge.batch_invariant() as inner:
            model(x)
        assert same_bits(model(x), expected)
    assert outer.taken == inner.taken > model.CALLS
    assert not torch.overrides._get_current_function_mode_stack()
    assert torch._C._len_torch_dispatch_stack() == 0


def test_in_place_and_strided_results_stay_where_they_are(seed):
    x = normal(np.random.default_rng(seed), 5, 6, WIDTH)
    with bridge.batch_invariant():
        for given in (x, x.transpose(0, 1), x[:, ::2], x.expand(2, 5, 6, WIDTH)):
            result = functional.silu(given)
            assert result.stride() == torch.empty_like(given).stride()
            assert same_bits(result[..., 3], functional.silu(given[..., 3].contiguous()))
        strided = x.clone()[:, :, 1::2]
        expected = functional.silu(strided)
        assert functional.silu(strided, inplace=True) is strided
        assert same_bits(strided, expected)
        for write in (lambda x: x.clone().abs_().pow_(1.7), lambda x: x[:, ::2].clone().sigmoid_()):
            assert same_bits(write(x)[3], write(x[3:4])[0])
        powers = 2.0**x
        assert same_bits(powers[1, 2, 3:5], 2.0 ** x[1, 2, 3:5])


ONE_NUMBER = {"clamp": (-1, 1), "clamp_max": (0.5,), "clamp_min": (0.5,), "pow": (1.7,),
              "leaky_relu": (), "threshold": (0.1, 0.0), "rsub": (1.1,), "round": ()}  # fmt: skip
TWO = ("add", "div", "floor_divide", "fmod", "maximum", "minimum", "mul", "remainder", "sub")
WEIGHTED = {"addcmul": 1.3, "addcdiv": 1.3, "lerp": 0.3}
ROWS = {
    "_log_softmax": (-1, False), "cumprod": (-1,), "cumsum": (-1,), "linalg_vector_norm": (2, [-1]),
    "logsumexp": ([-1],), "mean": ([-1],), "norm": (2, [-1]), "prod": (-1,), "sum": ([-1],),
    "native_layer_norm": None, "native_group_norm": None, "_fused_rms_norm": None,
    "_native_batch_norm_legit_no_training": None, "embedding": None,
}  # fmt: skip


def calls(name, x):
    """The results of an operation, along the rows of `x`."""
    function, width = getattr(torch.ops.aten, name), x.shape[-1]
    ones = torch.linspace(0.5, 2, width, dtype=x.dtype)
    positive = name in ("log", "log10", "log2", "log1p", "sqrt", "rsqrt", "pow", "acosh")
    x = x.abs() + (1 if name == "acosh" else 0.1) if positive else x
    x = torch.tanh(x) * 0.9 if name in ("acos", "asin", "atanh") else x
    special = {
        "native_layer_norm": lambda: function(x, [width], ones, ones, 1e-5),
        "native_group_norm": lambda: function(x, ones, ones, len(x), width, 1, 1, 1e-5),
        "_fused_rms_norm": lambda: function(x, [width], ones, 1e-5),
        "_native_batch_norm_legit_no_training": lambda: function(
            x, ones, ones, ones, ones, 0.1, 1e-5
        ),
        "embedding": lambda: function(x.T.contiguous().T, torch.arange(len(x))),
    }
    if name in special:
        output = special[name]()
    elif name in TWO:
        output = function(x, x.flip(-1))
    elif name in WEIGHTED:
        more = () if name == "lerp" else (x.flip(-1) + 9,)
        key = {} if name == "lerp" else {"value": WEIGHTED[name]}
        last = (WEIGHTED[name],) if name == "lerp" else ()
        output = function(x, x.flip(-1) + 8, *more, *last, **key)
    else:
        output = function(x, *(ROWS.get(name) or ONE_NUMBER.get(name, ())))
    results = output if isinstance(output, tuple) else (output,)
    return [y for y in results if y.dim() and len(y) == len(x)]


NAMES = sorted(
    {*operations.NUMBERS.split(), *operations.ROWS.split(), *operations.WHOLE_VECTORS}
    - {"nan_to_num"}
)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_what_torch_computes_by_row_it_does(name, dtype, seed):
    """Rows alone, in batches, at the end of a thread's share, of every float type."""
    rng = np.random.default_rng(seed)
    tried = 0
    for rows, width in ((40, WIDTH), (7, 64), (1200, 61)):
        x = normal(rng, rows, width, dtype=dtype) * 2
        with bridge.batch_invariant() as counted:
            expected = calls(name, x)
            parts = [[0], [rows - 1], [3, 4, 5], list(range(2, min(rows, 31)))]
            for part in parts:
                for one, other in zip(expected, calls(name, x[part]), strict=True):
                    assert torch.equal(one[part].nan_to_num(), other.nan_to_num()), (rows, part)
                    tried += 1
            for threads in (1, 3):
                torch.set_num_threads(threads)
                for one, other in zip(expected, calls(name, x), strict=True):
                    assert torch.equal(one.nan_to_num(), other.nan_to_num()), (rows, threads)
        assert dict(counted.unsure) == {}
    assert tried > 0


def test_a_model_is_checked(seed):
    model, x = made(Mixed()), normal(np.random.default_rng(seed), 5, 6, 8)
    with bridge.batch_invariant():
        report = bridge.check_batch_invariance(model, x)
    assert report
    assert str(report).endswith("the same bits as in the whole batch")
    assert report.rows == 5
    assert {"alone", "permuted", "one thread"} <= set(report.runs)


class Depending(nn.Module):
    """A layer in the middle that looks at the whole batch."""

    def __init__(self):
        super().__init__()
        self.before, self.after = nn.Identity(), nn.Tanh()
        self.culprit = Centred()

    def forward(self, x, scale=1.0):
        return {"y": self.after(self.culprit(self.before(x)) * scale), "number": 3}


class Centred(nn.Module):
    def forward(self, x):
        return (x - x.mean(0)).flatten(0, 1)


@pytest.mark.parametrize("spelling", ["tensor", "arguments", "keywords"])
def test_the_first_module_that_depends_on_the_batch_is_named(spelling, seed):
    x = normal(np.random.default_rng(seed), 5, 6, 8)
    given = {"tensor": x, "arguments": (x, 2.0), "keywords": {"x": x, "scale": 2.0}}[spelling]
    report = bridge.check_batch_invariance(Depending(), given)
    assert not report
    alone = report.differences[0]
    assert (alone.run, alone.rows, alone.module) == ("alone", (0, 1, 2, 3, 4), "culprit")
    assert alone.bits > alone.numbers > 200
    assert 0.1 < alone.largest <= 2
    assert "alone: 5 rows differ [0, 1, 2, 3, 4]" in str(report)
    assert "first in culprit" in str(report)
    assert torch.get_num_threads() == 2


def test_a_batch_is_needed():
    for wrong in (torch.ones(1, 3), torch.tensor(3.0), (), {"x": 3}):
        with pytest.raises(ValueError, match="at least two rows"):
            bridge.check_batch_invariance(nn.Identity(), wrong)
    with pytest.raises(TypeError):
        bridge.check_batch_invariance(nn.Identity(), "words")


@pytest.mark.parametrize("name", ["check", "invariant", "routing"])
def test_examples_of_docstrings(name):
    module = importlib.import_module(f"fastattn.bridges.torch.{name}")
    found = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert found.attempted > 2
    assert found.failed == 0


def test_operators_that_take_functions_are_named():
    x = torch.ones(3, 4)
    with torch.no_grad(), bridge.batch_invariant() as counted:
        y = torch.cond(torch.tensor(True), lambda x: x + 1, lambda x: x - 1, (x,))
    assert (y == 2).all()
    assert dict(counted.unsure) == {"cond": 1}
