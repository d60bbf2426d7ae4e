"""Small calls of every operation on plain kernels and checked memory, with the compiled bits.

`plain` says what that is. What a kernel does wrong with memory is an error of the call.
"""

import calls
import pytest
from conftest import AUTOMATIC
from plain.cases import CASES
from plain.reasons import without_reason, without_use
from plain.runs import Runs, can_compare, compiled_results


@pytest.fixture(scope="module")
def runs():
    return Runs()


def test_cases_have_names_of_their_own():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(runs, case):
    found = runs.results(case)
    if can_compare(case, AUTOMATIC):
        calls.assert_same(found, compiled_results(case, AUTOMATIC), case.name)


def test_calls_run_on_plain_kernels(runs):
    """Or all of the above would compare the compiled kernels with themselves."""
    launcher = runs.plain.launcher
    before = launcher.launches
    fresh = Runs()
    fresh.results(CASES[0])
    assert launcher.launches == before
    assert fresh.plain.launcher.launches > 0
    assert sum(fresh.plain.coverage.ran) > 500


def test_what_no_case_reaches_has_a_reason(runs):
    missed = runs.missed()
    wrong = [str(place) for place in without_reason(missed)]
    assert not wrong, (
        "no case of plain/cases.py reaches, and plain/reasons.py does not say why:\n"
        + ("\n".join(wrong))
    )
    stale = without_use(missed)
    assert not stale, f"plain/reasons.py excuses what is reached, or gone: {stale}"
