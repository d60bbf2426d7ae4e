"""The cases of masks that hide or show whole stretches: their work, and every contender on them."""

from __future__ import annotations

import numpy as np
import pytest
from test_bench import test_a_contender_agrees_with_the_judge as agree

from bench import cases
from bench.contenders import CONTENDERS

KINDS = ("causal", "blocks", "padding")
CASES = {
    kind: cases.attention(
        f"t-mask-{kind}", batch=(2, 4), queries=150, keys=150, features=16, mask=kind
    )
    for kind in KINDS
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [n for n, one in CONTENDERS.items() if "attention" in one.prepare])
def test_a_contender_takes_the_mask(name: str, kind: str) -> None:
    agree(CASES[kind], name)


@pytest.mark.parametrize("kind", ["blocks", "padding"])
def test_work_counts_what_a_mask_shows(kind: str) -> None:
    mask = np.broadcast_to(CASES[kind].inputs()["mask"], (2, 4, 150, 150))
    assert 0 < mask.sum() < mask.size
    assert CASES[kind].flops == 4 * mask.sum() * 16
