"""Small calls of every operation on plain kernels and checked memory, with the compiled bits.

`plain` says what that is. What a kernel does wrong with memory is an error of the call.
"""

import calls
import numpy as np
import pytest
import ragged
import strategies
from conftest import AUTOMATIC

import fastattn
from plain.case import Case
from plain.cases import CASES
from plain.reasons import NOT_LOADED, NOT_TWINNED, without_reason, without_use
from plain.runs import Runs, can_compare, compiled_results
from plain.steps import STEPS


@pytest.fixture(scope="module")
def runs():
    return Runs()


def test_cases_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES)


def assert_compiled(runs, case):
    """Run a case on plain kernels and, if this machine does the same, compare."""
    found = runs.results(case)
    if can_compare(case, AUTOMATIC):
        calls.assert_same(found, compiled_results(case, AUTOMATIC), case.name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(runs, case):
    assert_compiled(runs, case)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_step(runs, step):
    step(runs.plain)


def drawn(seed: int) -> list[Case]:
    """A small call with any three features, and a ragged one with any."""
    rng = np.random.default_rng(seed)
    sizes = {
        "rows": int(rng.choice((1, 2, 4, 5, 6, 7, 25))),
        "keys": int(rng.choice((1, 3, 15, 16, 17, 33, 64, 65, 129))),
        "features": int(rng.integers(1, 34)),
        "value_features": int(rng.integers(1, 34)),
        "batch": (2, 2),
    }
    dense = strategies.case(strategies.random_features(rng, 3), seed=seed, **sizes)
    asked = {"return_lse": bool(rng.integers(2)), "return_weights": bool(rng.integers(2))}
    listed = ragged.ragged([str(rng.choice(list(ragged.RAGGED_FEATURES)))], seed=seed)
    return [
        Case(str(dense), lambda: fastattn.attention(*dense.arrays, **dense.options, **asked)),
        Case(str(listed), lambda: fastattn.attention_varlen(*listed.arguments, **listed.options)),
    ]


@pytest.mark.long
def test_calls_that_nobody_thought_of(runs, seed):
    for number in range(300):
        for case in drawn(seed + number):
            assert_compiled(runs, case)


def test_calls_run_on_plain_kernels(runs):
    """Or all of the above would compare the compiled kernels with themselves."""
    launcher = runs.plain.launcher
    before = launcher.launches
    fresh = Runs()
    fresh.results(CASES[0])
    assert launcher.launches == before
    assert fresh.plain.launcher.launches > 0
    assert sum(fresh.plain.coverage.ran) > 500


def test_all_of_the_kernels_is_loaded_and_has_twins(runs):
    assert runs.plain.world.not_loaded() == sorted(NOT_LOADED)
    assert runs.plain.world.not_twinned() == sorted(NOT_TWINNED)


def test_what_no_case_reaches_has_a_reason(runs):
    missed = runs.missed()
    wrong = [str(place) for place in without_reason(missed)]
    assert not wrong, (
        "no case of plain/cases.py reaches, and plain/reasons.py does not say why:\n"
        + ("\n".join(wrong))
    )
    stale = without_use(missed)
    assert not stale, f"plain/reasons.py excuses what is reached, or gone: {stale}"
