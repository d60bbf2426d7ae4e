"""Tensors as arrays, without copies, and what is refused."""

import pytest
from imports import fresh
from tensors import torch

import fastattn
from fastattn.bridges.torch.tensors import array_of

bridge = fastattn.bridges.torch
DTYPES = ["float32", "float64", "float16", "bfloat16", "int8", "int32", "int64", "bool"]


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("layout", ["plain", "transposed", "every other", "empty", "scalar"])
def test_tensors_and_arrays_share_their_memory(name, layout):
    x = torch.arange(40).reshape(5, 8).to(getattr(torch, name))
    x = {
        "plain": lambda: x,
        "transposed": lambda: x.T,
        "every other": lambda: x[1::2, ::3],
        "empty": lambda: x[:0],
        "scalar": lambda: x[1, 2],
    }[layout]()
    array = array_of(x)
    assert array.shape == x.shape
    assert array.dtype.name == name
    assert array.astype(float).tolist() == x.double().tolist()
    if x.numel():
        assert array.ctypes.data == x.data_ptr()
        array[...] = 1
        assert bool((x == 1).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_taken_where_no_gradient_is_recorded(dtype):
    weight = torch.nn.Parameter(torch.ones(3, 4, dtype=dtype))
    assert array_of(weight).ctypes.data == weight.data_ptr()
    x = torch.ones(2, 4, dtype=dtype)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert bridge.linear(x, weight).tolist() == [[4.0] * 3] * 2
            assert bridge.scaled_dot_product_attention(weight, weight, weight).shape == (3, 4)


@pytest.mark.parametrize("place", range(3))
def test_a_gradient_that_would_be_recorded_is_refused(place):
    operands = [torch.ones(1, 2, 3, 4) for _ in range(3)]
    operands[place].requires_grad_()
    for function in (
        bridge.scaled_dot_product_attention,
        lambda *operands: torch.ops.fastattn.attention(*operands),
    ):
        with pytest.raises(RuntimeError, match=r"`torch\.no_grad\(\)` or `torch\.inference_mode"):
            function(*operands)
    with pytest.raises(RuntimeError, match=r"torch\.no_grad\(\)"):
        bridge.linear(torch.ones(2, 4), torch.nn.Parameter(torch.ones(3, 4)))
    with pytest.raises(RuntimeError, match=r"torch\.no_grad\(\)"):
        torch.ops.fastattn.linear(torch.ones(2, 4), torch.nn.Parameter(torch.ones(3, 4)))
    detached = [x.detach() for x in operands]
    assert bridge.scaled_dot_product_attention(*detached).shape == (1, 2, 3, 4)


def test_what_is_no_strided_tensor_of_floats_on_the_cpu_is_refused():
    x = torch.ones(2, 3)
    cases = {
        "device": (x.to("meta"), TypeError),
        "to_sparse": (x.to_sparse(), TypeError),
        "int64": (x.long(), TypeError),
        "complex64": (x.to(torch.complex64), TypeError),
    }
    for text, (wrong, kind) in cases.items():
        for call in (
            lambda wrong: bridge.scaled_dot_product_attention(wrong, wrong, wrong),
            lambda wrong: bridge.linear(wrong, wrong),
        ):
            with pytest.raises(kind) as caught:
                call(wrong)
            assert text in str(caught.value) or text == "to_sparse"


def test_bridges_load_their_library_when_they_are_used():
    code = (
        "import sys, fastattn; fastattn.bridges; dir(fastattn.bridges);"
        "before = 'torch' in sys.modules; fastattn.bridges.torch.patch;"
        "print(before, 'torch' in sys.modules)"
    )
    assert fresh(code) == "False True"


def test_results_of_inference_mode_are_such():
    with torch.inference_mode():
        x = torch.ones(1, 2, 3, 4)
        assert bridge.scaled_dot_product_attention(x, x, x).is_inference()
        assert bridge.linear(x, x[0, 0]).is_inference()
    assert bridge.linear(x, x[0, 0]).shape == (1, 2, 3, 3)
