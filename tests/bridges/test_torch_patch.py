"""`patch`: programs as they are, led here, counted; eagerly, compiled, profiled, in threads."""

import os
import threading

import numpy as np
import pytest
import tolerances
from tensors import Mixed, bound_early, functional, made, nn, normal, same_bits, torch

import fastattn

bridge = fastattn.bridges.torch
attend = functional.scaled_dot_product_attention


@pytest.fixture
def model():
    return made(Mixed())


@pytest.fixture
def x(seed):
    return normal(np.random.default_rng(seed), 3, 5, 8)


def close(one, other):
    return float((one - other).abs().max()) <= tolerances.pytorch_error("float32", 1.0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_unmodified_model_runs_here(model, x, mode):
    with mode():
        expected = model(x)
        with bridge.patch() as counted:
            output = model(x)
    assert (counted.taken, dict(counted.left)) == (model.CALLS, {})
    assert close(output, expected)


def test_nothing_is_left_behind(model, x):
    enabled = torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        expected = model(x)
        with bridge.patch() as counted:
            pass
        with pytest.raises(KeyError), bridge.patch():
            raise KeyError
        assert same_bits(model(x), expected)
    assert counted.taken == 0
    assert torch.backends.mha.get_fastpath_enabled() is enabled
    assert not torch.overrides._get_current_function_mode_stack()
    assert functional.scaled_dot_product_attention is attend is bound_early


class Mine(torch.Tensor):
    """A tensor of somebody's own."""


LEFT = {
    "dropout": lambda x: attend(x, x, x, dropout_p=0.5),
    "gradient": lambda x: attend(x.clone().requires_grad_(), x, x),
    "device": lambda x: attend(*(x.to("meta"),) * 3),
    "mask with is_causal": lambda x: attend(
        *(x[None].expand(2, -1, -1, -1),) * 3, torch.ones(5, 5, dtype=torch.bool), is_causal=True
    ),
    "subclass": lambda x: attend(x.as_subclass(Mine), x, x),
    "scale": lambda x: attend(x, x, x, scale=float("inf")),
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_is_left_is_counted_by_reason(reason, x):
    torch.manual_seed(0)
    expected = LEFT[reason](x)
    torch.manual_seed(0)
    with bridge.patch() as counted:
        output = LEFT[reason](x)
    assert (counted.taken, dict(counted.left)) == (0, {reason: 1})
    assert output.requires_grad == expected.requires_grad
    assert type(output) is type(expected)
    output, expected = (y.as_subclass(torch.Tensor).nan_to_num() for y in (output, expected))
    assert output.is_meta or torch.equal(output, expected)
    assert reason in repr(counted)


def test_what_is_wrong_is_said_by_torch(x):
    for wrong in ((x, x.double(), x), (x, x[..., :3], x), (x.int(), x.int(), x.int())):
        with pytest.raises(RuntimeError) as expected:
            attend(*wrong)
        with bridge.patch() as counted, pytest.raises(RuntimeError) as caught:
            attend(*wrong)
        assert str(caught.value) == str(expected.value)
        assert sum(counted.left.values()) == 1
    with bridge.patch(), pytest.raises(TypeError):
        attend(x)


def test_counts_nest_and_are_of_one_thread(x):
    found = []

    def elsewhere():
        attend(x, x, x)
        with bridge.patch() as counted:
            attend(x, x, x)
        found.append(counted.taken)

    with bridge.patch() as outer:
        attend(x, x, x)
        with bridge.patch() as inner:
            attend(x, x, x)
            attend(x, x, x, dropout_p=0.1)
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        attend(x, x, x)
    assert (outer.taken, dict(outer.left)) == (3, {"dropout": 1})
    assert (inner.taken, dict(inner.left)) == (1, {"dropout": 1})
    assert found == [1]


def test_autocast_is_followed(x):
    heads = x[None].expand(2, -1, -1, -1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = attend(heads, heads, heads)
        with bridge.patch() as counted:
            output = attend(heads, heads, heads)
    assert counted.taken == 1
    assert output.dtype is expected.dtype is torch.bfloat16
    assert float((output - expected).abs().max()) <= tolerances.pytorch_error("bfloat16", 4.0)


@pytest.mark.parametrize("mask", ["none", "padding", "causal"])
def test_torchs_encoder_with_masks(mask, x):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    encoder = made(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    options = {
        "none": {},
        "padding": {"src_key_padding_mask": torch.tensor([[False] * 3 + [True] * 2] * 3)},
        "causal": {"mask": nn.Transformer.generate_square_subsequent_mask(5), "is_causal": True},
    }[mask]
    with torch.no_grad():
        expected = encoder(x, **options)
        with bridge.patch() as counted:
            output = encoder(x, **options)
    assert (counted.taken, dict(counted.left)) == (2, {})
    rows = slice(0, 3) if mask == "padding" else slice(None)
    assert close(output[:, rows], expected[:, rows])


BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.long)]


@pytest.mark.parametrize("compiler", BACKENDS)
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_keeps_its_graph_whole(compiler, model, x):
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=compiler, fullgraph=True)
    with torch.no_grad():
        expected = model(x)
        with bridge.patch() as counted:
            for _ in range(2):
                assert close(compiled(x), expected)
            assert counted.taken == 2 * model.CALLS
            # Other sizes, by one more compilation at most.
            for rows in (2, 3, 4):
                longer = normal(np.random.default_rng(rows), rows, 4 + rows, 8)
                assert close(compiled(longer), model(longer))
        assert (counted.taken, dict(counted.left)) == (8 * model.CALLS, {})
        assert close(compiled(x), expected)
    assert counted.taken == 8 * model.CALLS


@pytest.mark.filterwarnings("ignore")
def test_what_a_compiled_model_leaves_is_counted(x):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: attend(x, x, x, dropout_p=0.5), backend="eager")
    with torch.no_grad(), bridge.patch() as counted:
        compiled(x)
    assert counted.taken == 0
    assert set(counted.left) == {"dropout"}


@pytest.mark.filterwarnings("ignore")
def test_functions_called_by_themselves_compile(x):
    torch._dynamo.reset()
    weight = torch.nn.Parameter(torch.ones(4, 8))

    def both(x):
        return bridge.linear(bridge.scaled_dot_product_attention(x, x, x), weight)

    with torch.no_grad():
        assert same_bits(torch.compile(both, backend="aot_eager", fullgraph=True)(x), both(x))


@pytest.mark.parametrize("operator", ["attention", "attention, all options", "linear"])
def test_operators_pass_torchs_own_checks(operator, seed):
    rng = np.random.default_rng(seed)
    x = normal(rng, 2, 4, 3, 8)
    samples = {
        "attention": ("attention", (x, x, x)),
        "attention, all options": (
            "attention",
            (x.transpose(1, 2), x[:, :1], x[:, :1, :, :5], None, True, 0.3, True),
        ),
        "linear": ("linear", (x, x[0, 0], torch.ones(3))),
    }
    name, arguments = samples[operator]
    if name == "attention" and len(arguments) > 3:
        arguments = (x, x[:, :1], x[:, :1, :, :5], None, True, 0.3, True)
    found = torch.library.opcheck(getattr(torch.ops.fastattn, name).default, arguments)
    assert set(found.values()) == {"SUCCESS"}
    assert len(found) >= 4


@pytest.mark.filterwarnings("ignore")
def test_a_profiler_sees_operators_by_their_names(x):
    with torch.no_grad(), torch.profiler.profile() as profile, bridge.patch():
        attend(x, x, x)
        bridge.linear(x, torch.ones(4, 8))
    seen = {event.key for event in profile.key_averages()}
    assert {"fastattn::attention", "fastattn::linear"} <= seen


def test_tracers_see_operators(x):
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(lambda x: bridge.scaled_dot_product_attention(x, x, x))(x)
    assert "fastattn.attention" in graph.code
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
        assert bridge.scaled_dot_product_attention(fake, fake, fake).shape == x.shape


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_child_goes_on(model, x):
    with torch.no_grad(), bridge.patch():
        expected = model(x)
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            os._exit(0 if close(model(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
