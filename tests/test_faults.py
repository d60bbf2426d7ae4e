"""The suite can fail: wrong lines seeded into the package turn the named tests red."""

import re

import pytest
from conftest import EXACT
from faults import FAULTS, ROOT, is_seen, run_tests
from pairs import can_multiply

by_name = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)

SEEN = "tests failed, or the child was killed"


def test_there_are_enough_faults_and_all_have_names():
    assert len(FAULTS) >= 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


@by_name
def test_fault_still_applies(fault):
    """Its piece of source is there, once, and the broken file is Python."""
    assert fault.source().count(fault.original) == 1, (
        f"{fault.file} was changed: find the new form of this line for tests/faults.py:\n"
        f"{fault.original}"
    )
    if fault.file.endswith(".py"):
        compile(fault.seeded(), fault.file, "exec")
    assert fault.seeded() != fault.source()


@by_name
def test_the_tests_that_shall_see_a_fault_exist(fault):
    """A test named in vain runs nothing, and what runs nothing sees nothing."""
    for place, name in re.findall(r"(tests/\w+\.py)(?:::(\w+))?", fault.tests):
        text = (ROOT / place).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text, f"{place} has no test {name}"


@pytest.mark.long
@by_name
def test_fault_is_seen(fault):
    if fault.needs_pairs and not all(map(can_multiply, EXACT)):
        pytest.skip("this CPU does not multiply bfloat16")
    child = run_tests(fault, fault.tests)
    assert is_seen(child), f"{SEEN}: no; exit code {child.returncode}\n{child.stdout[-3000:]}"
    print(re.findall(r"FAILED (\S+)", child.stdout)[:1])


@pytest.mark.long
def test_without_a_fault_the_same_tests_pass():
    """Otherwise their going red would mean nothing."""
    tests = sorted({fault.tests for fault in FAULTS})
    for selection in tests:
        child = run_tests(None, selection)
        assert child.returncode == 0, f"{selection}\n{child.stdout[-3000:]}"
