"""Layouts under `batch_invariant`: results lie as torch's do, and bits are those of any layout."""

import itertools

import numpy as np
import pytest
import tolerances
from tensors import functional, nn, normal, numpy_name, same_bits, torch

import fastattn

bridge = fastattn.bridges.torch
FORMATS = (torch.contiguous_format, torch.channels_last)
LAID_OUT = {
    "contiguous": lambda x: x,
    "batch second": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "turned": lambda x: x.mT.contiguous().mT,
    "every other": lambda x: x.repeat_interleave(2, 1)[:, ::2],
}
HANDLED = {
    "softmax": lambda x, w: x.softmax(-1),
    "softmax along rows": lambda x, w: x.softmax(1),
    "bmm": lambda x, w: torch.bmm(x, x.mT),
    "baddbmm": lambda x, w: torch.baddbmm(w[:6, :1].expand(5, 6, 6), x, x.mT),
    "mm": lambda x, w: x[0] @ w,
    "addmm": lambda x, w: torch.addmm(w[0], x[0], w),
    "matmul": lambda x, w: x @ w,
    "linear": lambda x, w: functional.linear(x, w.T, w[0]),
    "mv": lambda x, w: x[0] @ w[:, 0],
    "addmv": lambda x, w: torch.addmv(x[0, :, 0], x[0], w[:, 0]),
    "dot": lambda x, w: torch.dot(x[0, 0], w[:, 0]),
}


@pytest.mark.parametrize("name", HANDLED)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_products_lie_as_torchs(name, mode, seed):
    rng = np.random.default_rng(seed)
    w = normal(rng, 8, 7)
    for lay in LAID_OUT.values():
        x = lay(normal(rng, 5, 6, 8))
        with mode():
            expected = HANDLED[name](x, w)
            with bridge.batch_invariant() as counted:
                assert HANDLED[name](x, w).stride() == expected.stride()
        assert counted.taken > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_convolutions_lie_as_torchs(dtype, seed):
    rng = np.random.default_rng(seed)
    for channels, size, batch in itertools.product((3, 1), (3, 1), (2, 1)):
        for one, other in itertools.product(FORMATS, FORMATS):
            x = normal(rng, batch, channels, 9, 8, dtype=dtype).contiguous(memory_format=one)
            w = normal(rng, 5, channels, size, size, dtype=dtype).contiguous(memory_format=other)
            with torch.no_grad():
                expected = functional.conv2d(x, w)
                with bridge.batch_invariant():
                    assert functional.conv2d(x, w).stride() == expected.stride()
    x = normal(rng, 2, 3, 6, 5, 4, dtype=dtype)
    w = normal(rng, 4, 3, 2, 2, 2, dtype=dtype)
    for given in (x, x.contiguous(memory_format=torch.channels_last_3d)):
        expected = functional.conv3d(given, w)
        with bridge.batch_invariant():
            assert functional.conv3d(given, w).stride() == expected.stride()


def test_a_network_takes_views_of_what_it_convolves(seed):
    x = normal(np.random.default_rng(seed), 3, 1, 9, 9)
    conv = nn.Conv2d(1, 4, 3)
    with torch.no_grad(), bridge.batch_invariant():
        y = torch.max_pool2d(conv(x), 2)
        assert y.view(x.size(0), -1).shape == (3, 36)


# Rows are along the second axis: results of what lies in memory as it comes.
LAYS = {
    "sum": lambda x: x.sum(0),
    "sum, kept": lambda x: x.sum(0, keepdim=True)[0],
    "mean": lambda x: x.mean(0),
    "mean of two": lambda x: x.unflatten(0, (-1, 2 - x.shape[0] % 2)).mean((0, 1)),
    "prod": lambda x: (x / 9 + 1).prod(0),
    "norm": lambda x: x.norm(dim=0),
    "norm 3": lambda x: torch.linalg.vector_norm(x, 3, 0),
    "logsumexp": lambda x: x.logsumexp(0),
    "log_softmax": lambda x: x.log_softmax(0)[3],
    "add": lambda x: torch.add(x, x.flip(0), alpha=0.37)[0],
    "sub": lambda x: torch.sub(x, x.flip(0), alpha=0.37)[0],
    "sub_": lambda x: x.clone().sub_(x.flip(0), alpha=0.37)[0],
    "rsub": lambda x: torch.rsub(x, x.flip(0), alpha=0.37)[0],
    "add a number": lambda x: torch.add(x, 0.3, alpha=0.37)[0],
}


@pytest.mark.parametrize("name", LAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_that_do_not_lie_last_have_their_bits(name, dtype, seed):
    rng = np.random.default_rng(seed)
    for shape in ((100, 17), (100, 7, 37), (33, 40, 8)):
        x = normal(rng, *shape, dtype=dtype)
        with torch.no_grad(), bridge.batch_invariant() as counted:
            whole = LAYS[name](x)
            for i in range(shape[1]):
                alone = LAYS[name](x[:, i : i + 1].contiguous())
                assert same_bits(alone[0], whole[i]), (shape, i)
        assert dict(counted.unsure) == {}
        expected = LAYS[name](x.double())
        allowed = tolerances.pytorch_error(numpy_name(dtype), float(expected.abs().max()))
        assert whole.dtype is dtype
        assert float((whole - expected).abs().max()) <= 4 * allowed


def test_groups_of_channels_that_lie_side_by_side(seed):
    x = normal(np.random.default_rng(seed), 5, 8, 40, 40)
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        expected = functional.group_norm(given, 4)
        with bridge.batch_invariant() as counted:
            whole = functional.group_norm(given, 4)
            assert all(
                same_bits(functional.group_norm(given[i : i + 1].contiguous(), 4)[0], whole[i])
                for i in range(5)
            )
        assert (dict(counted.unsure), whole.stride()) == ({}, expected.stride())


def test_rows_that_are_shared_out_are_named(seed):
    x = normal(np.random.default_rng(seed), 40_000)
    for name in ("logsumexp", "sum", "mean"):
        with bridge.batch_invariant() as counted:
            getattr(x, name)(0)
        assert dict(counted.unsure) == {f"aten::{name}": 1}
