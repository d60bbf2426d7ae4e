"""Wrong lines in kernels, seeded in memory: plain kernels show each, and where it goes wrong."""

import re

import calls
import pytest
from conftest import AUTOMATIC
from plain.cases import CASES
from plain.faults import FAULTS
from plain.floats import Fault
from plain.runs import Runs, compiled_results

BY_NAME = {case.name: case for case in CASES}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_seen(fault):
    runs = Runs({fault.file: (fault.original, fault.broken)})
    case = BY_NAME[fault.case]
    if fault.message is None:
        found, expected = runs.results(case), compiled_results(case, AUTOMATIC)
        with pytest.raises(AssertionError, match=re.escape(case.name)):
            calls.assert_same(found, expected, case.name)
    else:
        with pytest.raises(Fault, match=fault.message):
            runs.results(case)


def test_cases_of_faults_pass_without_them():
    """Otherwise their going red would mean nothing."""
    runs = Runs()
    for name in {fault.case for fault in FAULTS}:
        calls.assert_same(
            runs.results(BY_NAME[name]), compiled_results(BY_NAME[name], AUTOMATIC), name
        )
