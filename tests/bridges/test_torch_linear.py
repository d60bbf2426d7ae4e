"""`linear` against torch's, and the weights it keeps packed: never stale, never alive too long."""

import copy
import gc
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tolerances
from tensors import FLOATS, functional, laid_out, normal, numpy_name, same_bits, torch

import fastattn
from fastattn.bridges.torch import packs

bridge = fastattn.bridges.torch


@pytest.fixture(autouse=True)
def nothing_kept():
    packs.forget_weights()
    with torch.no_grad(), packs.keeping():
        yield
    packs.forget_weights()


def parameter(rng, *shape, dtype=torch.float32):
    return torch.nn.Parameter(normal(rng, *shape, dtype=dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,), (2, 0, 3)])
def test_it_gives_what_torch_gives(dtype, shape, seed):
    rng = np.random.default_rng(seed)
    for outputs, features in ((3, 5), (70, 33), (1, 1), (0, 4), (4, 0)):
        x = laid_out(rng, normal(rng, *shape, features, dtype=dtype))
        weight, bias = (
            normal(rng, outputs, features, dtype=dtype),
            normal(rng, outputs, dtype=dtype),
        )
        for more in ((), (bias,)):
            expected = torch.nn.functional.linear(x, weight, *more)
            for given in (weight, laid_out(rng, weight), torch.nn.Parameter(weight)):
                output = bridge.linear(x, given, *more)
                assert output.shape == expected.shape
                assert output.dtype is dtype
                apart = (output.double() - expected.double()).abs().max() if output.numel() else 0
                assert apart <= tolerances.pytorch_error(numpy_name(dtype), 4 * features**0.5)
                assert same_bits(output, torch.ops.fastattn.linear(x, given, *more))


def test_a_row_has_the_bits_it_has_alone(seed):
    rng = np.random.default_rng(seed)
    x, weight, bias = normal(rng, 50, 300), parameter(rng, 70, 300), parameter(rng, 70)
    whole = bridge.linear(x, weight, bias)
    assert same_bits(whole, torch.stack([bridge.linear(row, weight, bias) for row in x]))
    assert same_bits(whole, bridge.linear(x, weight.detach(), bias))


def test_parameters_are_packed_once(monkeypatch):
    calls, pack = [], fastattn.pack_linear
    monkeypatch.setattr(fastattn, "pack_linear", lambda weight: calls.append(1) or pack(weight))
    weight, x = torch.nn.Parameter(torch.ones(3, 4)), torch.ones(2, 4)
    for _ in range(3):
        bridge.linear(x, weight)
        torch.ops.fastattn.linear(x, weight)
    assert len(calls) == 1
    bridge.linear(x, weight.detach().clone())  # of no Parameter
    assert len(calls) == 1
    assert packs.kept_bytes() == 64 * 4 * 4


def _optimizer(kind=torch.optim.SGD, **options):
    def step(weight):
        optimizer = kind([weight], lr=0.5, **options)
        weight.grad = torch.zeros_like(weight)
        weight.grad[2:3, 5:9] = 1
        optimizer.step()

    return step


def _swap_rows(weight):
    weight.data[[2, 3]] = weight.data[[3, 2]]


CHANGES = {
    "copy_": lambda weight: weight.copy_(torch.rand_like(weight)),
    "add_": lambda weight: weight.add_(1),
    "one element": lambda weight: weight[3].__setitem__(20, 9.0),
    "a detached alias": lambda weight: weight.detach()[2].fill_(3),
    "init": lambda weight: torch.nn.init.ones_(weight),
    "foreach": lambda weight: torch._foreach_mul_([weight], 3),
    "optimizer": _optimizer(),
    "fused SGD": _optimizer(fused=True),
    "fused AdamW": _optimizer(torch.optim.AdamW, fused=True, weight_decay=0.0),
    ".data of one element": lambda weight: weight.data[1].__setitem__(7, 9.0),
    ".data, one bit": lambda weight: weight.data[1, 7:8].view(torch.int32).add_(1 << 20),
    ".data, rows swapped": _swap_rows,
    "numpy, one element": lambda weight: weight.detach().numpy().__setitem__((2, 11), 5.0),
    ".data scaled": lambda weight: weight.data.mul_(0.5),
    ".data copied": lambda weight: weight.data.copy_(torch.rand(weight.shape)),
    ".data replaced": lambda weight: setattr(weight, "data", torch.rand(weight.shape)),
    ".data averaged": lambda weight: weight.data.lerp_(torch.ones(weight.shape), 0.1),
    "numpy": lambda weight: weight.detach().numpy().__imul__(2),
    "other memory": lambda weight: weight.set_(torch.rand(weight.shape)),
    "another shape": lambda weight: weight.set_(torch.rand(5, 30)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("product", [bridge.linear, functional.linear])
def test_a_change_between_blocks_is_seen(change, turned, product, seed):
    rng = np.random.default_rng(seed)
    weight = torch.nn.Parameter(normal(rng, 30, 20).T if turned else normal(rng, 20, 30))
    x = normal(rng, 4, 30)
    with bridge.batch_invariant():
        before = product(x, weight)
        assert packs.kept_bytes()
    CHANGES[change](weight)
    with bridge.batch_invariant():
        after = product(x, weight)
    assert same_bits(after, bridge.linear(x, weight.detach()))
    assert not torch.equal(after[:, :5], before[:, :5])


@pytest.mark.parametrize("change", [name for name in CHANGES if "numpy" not in name])
def test_a_change_within_a_block_is_seen(change, seed):
    rng = np.random.default_rng(seed)
    weight, x = parameter(rng, 20, 30), normal(rng, 4, 30)
    with bridge.batch_invariant():
        before = functional.linear(x, weight)
        CHANGES[change](weight)
        after = functional.linear(x, weight)
    assert same_bits(after, bridge.linear(x, weight.detach()))
    assert not torch.equal(after[:, :5], before[:, :5])


def test_a_state_dict_that_is_loaded_is_seen(seed):
    rng = np.random.default_rng(seed)
    layer, x = torch.nn.Linear(30, 20), normal(rng, 4, 30)
    for assign in (False, True):
        bridge.linear(x, layer.weight)
        other = {"weight": normal(rng, 20, 30), "bias": normal(rng, 20)}
        layer.load_state_dict(other, assign=assign)
        expected = bridge.linear(x, other["weight"])
        assert same_bits(bridge.linear(x, layer.weight), expected)


def test_what_numpy_writes_within_a_block_is_seen_when_told():
    weight, x = torch.nn.Parameter(torch.ones(200, 300)), torch.ones(1, 300)
    with bridge.batch_invariant():
        functional.linear(x, weight)
        weight.detach().numpy()[1, 150] = 7
        bridge.forget_weights()
        assert functional.linear(x, weight)[0, 1] == 306


def test_nothing_is_kept_outside_of_blocks():
    weight, found = torch.nn.Parameter(torch.ones(20, 30)), []

    def work():
        with torch.no_grad():
            found.append(bridge.linear(torch.ones(1, 30), weight))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found[0][0, 0] == 30
    assert packs.kept_bytes() == 0


@pytest.mark.parametrize("requires_grad", [False, True])
def test_what_is_kept_goes_with_the_parameter(requires_grad):
    weight = torch.nn.Parameter(torch.ones(20, 30), requires_grad=requires_grad)
    bridge.linear(torch.ones(2, 30), weight)
    bridge.linear(torch.ones(2, 30), weight[:10])
    assert len(packs._packs) == 2
    del weight
    gc.collect()
    assert not packs._packs


def test_memory_that_a_parameter_had_is_let_go():
    weight = torch.nn.Parameter(torch.ones(20, 30))
    for number in range(5):
        weight.data = torch.full((20, 30), float(number))
        assert bridge.linear(torch.ones(1, 30), weight)[0, 0] == 30 * number
    assert len(packs._packs) == 1


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(packs, "_MOST_BYTES", 10_000)
    weights = [torch.nn.Parameter(torch.full((64, 30), float(i))) for i in range(4)]
    for _ in range(2):
        for i, weight in enumerate(weights):
            assert bridge.linear(torch.ones(1, 30), weight)[0, 0] == 30 * i
    assert packs.kept_bytes() == 64 * 30 * 4


def test_models_copy_and_pickle_after_use():
    layer = torch.nn.Linear(30, 20)
    bridge.linear(torch.ones(2, 30), layer.weight)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        other.weight.mul_(2)
        expected = bridge.linear(torch.ones(2, 30), layer.weight) * 2
        assert same_bits(bridge.linear(torch.ones(2, 30), other.weight), expected)


def test_threads_share_what_is_kept():
    weights = [torch.nn.Parameter(torch.full((20, 30), float(i))) for i in range(8)]

    def work(turn):
        with torch.no_grad(), packs.keeping():
            return [float(bridge.linear(torch.ones(1, 30), w)[0, 0]) for w in weights]

    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(work, range(40)):
            assert found == [30.0 * i for i in range(8)]
    assert len(packs._packs) == 8


def test_what_does_not_fit_is_refused():
    x, weight = torch.ones(2, 4), torch.ones(3, 4)
    for wrong, kind in (
        ((x, weight.T), ValueError),
        ((x, weight[0]), ValueError),
        ((x[0, 0], weight), ValueError),
        ((x, weight, torch.ones(4)), ValueError),
        ((x, weight.double()), TypeError),
        ((x, weight, torch.ones(3).half()), TypeError),
    ):
        with pytest.raises(kind):
            bridge.linear(*wrong)
