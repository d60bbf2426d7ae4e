"""The suite can fail: wrong lines seeded into the package turn what is named beside them red."""

import importlib.util
import random
import re
from pathlib import Path

import calls
import pytest
from conftest import BASE_SEED, EXACT
from faults import FAULTS, ROOT, is_seen, run_tests
from pairs import can_multiply
from plain.cases import CASES
from plain.floats import Fault as MemoryFault
from plain.runs import Runs

SEEN = "tests failed, or the child was killed"
CASE = {case.name: case for case in CASES}
AT_ONCE = [fault for fault in FAULTS if fault.case]
IN_A_CHILD = [fault for fault in FAULTS if not fault.case]
# The default run draws some of each; the same ones for the same seed.
_DRAWN = random.Random(BASE_SEED)
SOME = {fault.name for fault in _DRAWN.sample(AT_ONCE, 30)} | {
    fault.name
    for some, number in (
        ([fault for fault in IN_A_CHILD if not (fault.is_in_kernels or fault.is_compiled)], 3),
        ([fault for fault in IN_A_CHILD if fault.is_in_kernels and not fault.is_compiled], 1),
    )
    for fault in _DRAWN.sample(some, number)
}
ROOMS = ("machine", "operands", "steps", "stages", "budgets")


def each(faults):
    """A test of each: those that were not drawn are long."""
    marks = {True: (), False: (pytest.mark.long,)}
    cases = [pytest.param(one, id=one.name, marks=marks[one.name in SOME]) for one in faults]
    return pytest.mark.parametrize("fault", cases)


by_name = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)


def test_there_are_enough_faults_and_all_have_names():
    assert len(FAULTS) >= 20
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_every_file_of_the_kernels_has_a_fault():
    kernels = ROOT / "fastattn" / "_numba"
    files = {
        f"_numba/{room}/{path.name}"
        for room in ROOMS
        for path in Path(kernels / room).glob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(files - {fault.file for fault in FAULTS}) == []


@by_name
def test_fault_still_applies(fault):
    """Its piece of source is there, once, and the broken file is Python."""
    assert fault.source().count(fault.original) == 1, (
        f"{fault.file} was changed: find the new form of this line for tests/seeded:\n"
        f"{fault.original}"
    )
    if fault.file.endswith(".py"):
        compile(fault.seeded(), fault.file, "exec")
    assert fault.seeded() != fault.source()


@by_name
def test_what_shall_see_a_fault_exists(fault):
    """A test named in vain runs nothing, and what runs nothing sees nothing."""
    if fault.case:
        assert fault.case in CASE
        return
    for place, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", fault.tests):
        text = (ROOT / place).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text, f"{place} has no test {name}"


@pytest.fixture(scope="module")
def sound():
    """Plain kernels without a fault."""
    return Runs()


@each(AT_ONCE)
def test_fault_is_seen_at_once(sound, fault):
    broken = Runs({Path(fault.file).name: (fault.original, fault.broken)})
    case = CASE[fault.case]
    expected = sound.results(case)
    kinds = MemoryFault if fault.message else (MemoryFault, AssertionError)
    with pytest.raises(kinds, match=fault.message or None):
        calls.assert_same(broken.results(case), expected, case.name)


@each(IN_A_CHILD)
def test_fault_is_seen(fault):
    if fault.needs_pairs and not all(map(can_multiply, EXACT)):
        pytest.skip("this CPU does not multiply bfloat16")
    if fault.needs_torch:
        pytest.importorskip("torch", reason="what bridges do is seen where torch is")
    child = run_tests(fault, fault.tests)
    assert is_seen(child), f"{SEEN}: no; exit code {child.returncode}\n{child.stdout[-3000:]}"
    print(re.findall(r"FAILED (\S+)", child.stdout)[:1])


@pytest.mark.long
def test_without_a_fault_the_same_tests_pass():
    """Otherwise their going red would mean nothing."""
    torch = importlib.util.find_spec("torch")
    tests = sorted({fault.tests for fault in IN_A_CHILD if torch or not fault.needs_torch})
    for selection in tests:
        child = run_tests(None, selection)
        assert child.returncode == 0, f"{selection}\n{child.stdout[-3000:]}"
