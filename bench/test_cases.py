"""Every contender on every case, under pytest-benchmark: one group per case.

``pytest bench -k "prefill and torch"`` chooses by name; ``--benchmark-save``, ``-compare``,
``-json`` and ``-histogram`` work as in any other suite. Ratios are better taken from
``python -m bench``, which interleaves the contenders.
"""

from __future__ import annotations

import pytest

from bench.cases import CASES, Case
from bench.contenders import CONTENDERS

PAIRS = [
    pytest.param(case, name, id=f"{case.name}-{name}")
    for case in CASES
    for name, contender in CONTENDERS.items()
    if case.operation in contender.prepare
]


@pytest.mark.filterwarnings("ignore")  # what a peer warns of is not ours to fail on
@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_case(race, case: Case, name: str) -> None:
    race(case, name)
