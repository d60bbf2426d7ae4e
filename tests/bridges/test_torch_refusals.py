"""Torch still refuses what it refuses; what its sizes order is named; counts end with blocks."""

import contextlib

import pytest
from tensors import functional, torch

import fastattn
from fastattn.bridges.torch.counting import counting

bridge = fastattn.bridges.torch


def ones(*shape):
    return torch.ones(*shape)


WRONG = {
    "matmul": lambda: ones(3, 4) @ ones(5, 6),
    "addmm": lambda: torch.addmm(ones(6), ones(3, 4), ones(5, 6)),
    "mv": lambda: torch.mv(ones(3, 4), ones(5)),
    "dot": lambda: torch.dot(ones(3), ones(4)),
    "bmm of one and three": lambda: torch.bmm(ones(1, 4, 5), ones(3, 5, 6)),
    "bmm of three and one": lambda: torch.bmm(ones(3, 4, 5), ones(1, 5, 6)),
    "linear": lambda: functional.linear(ones(3, 4), torch.nn.Parameter(ones(6, 5))),
    "a bias": lambda: functional.linear(ones(3, 4), ones(6, 4), ones(5)),
    "channels": lambda: torch.nn.Conv1d(2, 4, 5)(ones(2, 3, 9)),
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_shapes_are_refused_in_torchs_words(name, mode):
    with mode(), pytest.raises(RuntimeError) as expected:
        WRONG[name]()
    with mode(), bridge.batch_invariant(), pytest.raises(RuntimeError) as found:
        WRONG[name]()
    assert str(found.value) == str(expected.value)


ORDERED = {
    "multi_dot": lambda x: torch.linalg.multi_dot([x, ones(20, 300), ones(300, 4)]),
    "chain_matmul": lambda x: torch.chain_matmul(x, ones(20, 300), ones(300, 4)),
    "einsum": lambda x: torch.einsum("ab,bc,cd->ad", x, ones(20, 300), ones(300, 4)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ORDERED)
def test_products_whose_order_depends_on_sizes_are_named(name):
    with torch.no_grad(), bridge.batch_invariant() as counted:
        ORDERED[name](ones(7, 20))
    assert counted.unsure[name] == 1


def test_einsum_of_two_has_one_order():
    with torch.no_grad(), bridge.batch_invariant() as counted:
        torch.einsum("ab,bc->ac", ones(7, 20), ones(20, 9))
    assert not counted.unsure


def test_blocks_that_end_in_another_order_count_no_more():
    x = ones(1, 2, 3, 4)
    first, second = contextlib.ExitStack(), contextlib.ExitStack()
    one = first.enter_context(counting())
    other = second.enter_context(counting())
    first.close()
    bridge.scaled_dot_product_attention(x, x, x)
    second.close()
    bridge.scaled_dot_product_attention(x, x, x)
    assert (one.taken, other.taken) == (0, 1)
