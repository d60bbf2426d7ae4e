"""What `check_batch_invariance` compares: rows along any axis, and what has none is told."""

import numpy as np
import pytest
from tensors import nn, normal, torch

import fastattn

check = fastattn.bridges.torch.check_batch_invariance


class Written(nn.Module):
    """A model written as a function."""

    def __init__(self, write):
        super().__init__()
        self.write = write

    def forward(self, x):
        return self.write(x)


def depending(x):
    """Rows that look at how many there are."""
    return x * (1 + len(x) / 8)


AXES = {
    "first": lambda x: x,
    "second": lambda x: x.transpose(0, 1).contiguous(),
    "last": lambda x: x.movedim(0, -1).contiguous(),
    "first two as one": lambda x: x.flatten(0, 1),
    "first two as one, time first": lambda x: x.transpose(0, 1).flatten(0, 1),
    "in a dict": lambda x: {"y": x.transpose(0, 1), "n": 3},
    "beside a constant": lambda x: (torch.tensor(2.5), x),
    "no float": lambda x: (x > 0.1).movedim(0, 2),
}


@pytest.mark.parametrize("name", AXES)
@pytest.mark.parametrize("length", [4, 5, 10])
def test_rows_lie_along_any_axis(name, length, seed):
    x = normal(np.random.default_rng(seed), 5, length, 6)
    report = check(Written(AXES[name]), x)
    assert report, report
    assert report.uncompared == ()
    if name != "no float":
        wrong = check(Written(lambda x: AXES[name](depending(x))), x)
        assert [one.run for one in wrong.differences][:2] == ["alone", "in batches of 2"]
        assert wrong.differences[0].rows == (0, 1, 2, 3, 4)
        assert wrong.differences[0].largest > 0.1


def test_a_row_that_differs_is_found_along_its_axis(seed):
    def write(x):
        y = x.clone()
        if len(x) > 1:
            y[x[:, 0, 0] == 7] += 1
        return y.transpose(0, 1).flatten(0, 1)

    x = normal(np.random.default_rng(seed), 5, 4, 6)
    x[3, 0, 0] = 7
    report = check(Written(write), x)
    assert report.differences[0].rows == (3,)
    assert report.differences[0].numbers == 24


def test_what_has_no_rows_is_told(seed):
    x = normal(np.random.default_rng(seed), 5, 4, 6)
    for write, places in ((lambda x: x.sum(), (0,)), (lambda x: (x, x.mean(0)), (1,)),
                          (lambda x: [*x], (0, 1, 2, 3, 4))):  # fmt: skip
        report = check(Written(write), x)
        assert not report
        assert report.uncompared == places
        assert f"not compared, for they have no rows: outputs {list(places)}" in str(report)


def test_zeros_of_any_sign_and_nans_are_equal(seed):
    def write(x):
        y = x.clone()
        y[:, 0] = -0.0 if len(x) > 1 else 0.0
        y[:, 1] = torch.tensor([0x7FC00001 if len(x) > 1 else 0x7FC00000]).int().view(x.dtype)
        return y

    assert check(Written(write), normal(np.random.default_rng(seed), 5, 4))
