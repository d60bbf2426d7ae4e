"""Faults to seed: what the suite must notice. Run by `test_faults.py`, or by hand one at a time.

``python tests/seeded/faults.py`` lists them; with names behind it, it seeds those, each by itself,
and runs what must go red. Each room's stand in a file of its own beside this one.

A fault names a file of the package, a piece of it that occurs once, what to put there, and what
must go red: tests, run on a copy of the package, or, as ``plain: NAME``, a case of `plain.cases`,
run on plain kernels that get the fault as they are loaded, which takes a second. The working tree
is never touched.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from allocation_faults import ALLOCATION_FAULTS
from batch_faults import BATCH_FAULTS
from bridge_faults import BRIDGE_FAULTS
from cache_faults import CACHE_FAULTS
from company_faults import COMPANY_FAULTS
from compiled_faults import COMPILED_FAULTS
from face_faults import FACE_FAULTS
from linear_faults import LINEAR_FAULTS
from logarithm_faults import LOGARITHM_FAULTS
from machine_faults import MACHINE_FAULTS
from mask_faults import MASK_FAULTS
from module_faults import MODULE_FAULTS
from option_faults import OPTION_FAULTS
from pair_faults import PAIR_FAULTS
from plain_faults import PLAIN_FAULTS
from ragged_faults import RAGGED_FAULTS
from scale_faults import SCALE_FAULTS
from shared_faults import SHARED_FAULTS
from way_faults import WAY_FAULTS
from wide_faults import WIDE_FAULTS

ROOT = Path(__file__).resolve().parents[2]
LONGEST_RUN = 1200
PLAIN = "plain: "


@dataclass(frozen=True)
class Fault:
    """One wrong line, and the tests that must notice it."""

    name: str
    file: str
    original: str
    broken: str
    tests: str
    message: str = ""  # of plain kernels, where not the bits but memory goes wrong

    @property
    def case(self) -> str:
        """The case of plain kernels that sees it, or nothing."""
        return self.tests.removeprefix(PLAIN) if self.tests.startswith(PLAIN) else ""

    @property
    def is_in_kernels(self) -> bool:
        """Whether it changes what is compiled, or may."""
        return self.file.startswith("_numba/") or self.file in (
            "_core/constants.py",
            "_engine/layouts.py",
        )

    @property
    def is_compiled(self) -> bool:
        """Whether it is to be seen in what is compiled ahead, which must be built anew then."""
        return self.file.startswith("_cython/") or (
            self.is_in_kernels and "test_compiled.py" in self.tests
        )

    @property
    def needs_pairs(self) -> bool:
        """Whether only CPUs that can multiply bfloat16 as it is run its tests."""
        return "bfloat16_dot" in self.tests or "compiled_pairs" in self.tests

    @property
    def needs_torch(self) -> bool:
        """Whether its tests are skipped where the libraries that bridges lead to are missing."""
        return self.tests.startswith("tests/bridges/")

    def source(self) -> str:
        return (ROOT / "fastattn" / self.file).read_text(encoding="utf-8")

    def seeded(self) -> str:
        """The file with the fault in it."""
        return self.source().replace(self.original, self.broken, 1)


def run_tests(fault: Fault | None, tests: str) -> subprocess.CompletedProcess:
    """Run tests on a copy of the package, with a fault in it or none."""
    with tempfile.TemporaryDirectory(prefix="fastattn-fault-") as folder:
        home = Path(folder)
        # What was compiled from other kernels would be refused; Numba's suffice to see the fault.
        stale = ["*.so"] if fault is not None and fault.is_in_kernels else []
        ignored = shutil.ignore_patterns("__pycache__", *stale)
        for room in ("fastattn", "tests"):
            shutil.copytree(ROOT / room, home / room, ignore=ignored)
        for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, home)
        if fault is not None:
            (home / "fastattn" / fault.file).write_text(fault.seeded(), encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(home)}
        if fault is not None and fault.is_in_kernels:
            # Broken kernels belong into no cache that anybody else reads.
            environment["FASTATTN_CACHE_DIR"] = str(home / "cache")
        if fault is not None and fault.is_compiled:
            build_kernels(home)
        options = ["-x", "-q", "--tb=line", "-p", "no:cacheprovider", "-m", "not long"]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *options, *shlex.split(tests)],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LONGEST_RUN,
            check=False,
        )


def build_kernels(home: Path) -> None:
    """Build the compiled kernels of a copy in its place, from what is compiled of them already."""
    if (ROOT / "build" / "kernels").is_dir():
        shutil.copytree(ROOT / "build" / "kernels", home / "build" / "kernels")
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"]
    built = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False)
    assert built.returncode == 0, f"the kernels with the fault cannot be built\n{built.stderr}"


def is_seen(child: subprocess.CompletedProcess) -> bool:
    """Tell whether tests failed, or a signal killed them.

    Exit codes 2 to 5 of pytest (interrupted, internal error, usage, nothing collected) prove
    nothing.
    """
    return child.returncode == 1 or child.returncode < 0


# Selections of tests, narrow because each run compiles the broken kernels.
OPTIONS = "tests/contract/test_conformance.py::test_single_option -k numba"
BITS = "tests/contract/test_bits.py::test_relation -k numba-threads-prefill"
HIDDEN = "tests/contract/test_edges.py::test_hidden_contents_never_reach_the_result -k numba"
HIDDEN_BY_BIAS = (
    "tests/contract/test_edges.py::test_float_mask_hides_whatever_the_score_is -k numba"
)
EMPTY = "tests/contract/test_edges.py::test_empty_rows_are_zero_with_lse_minus_infinity -k numba"
COSINE = "tests/contract/test_ranges.py::test_cosine_of_any_length -k numba"
MISFITS = "tests/contract/test_edges.py::test_shapes_that_do_not_fit_are_refused -k numba"
STATES = "tests/contract/test_conformance.py::test_states_and_merged_results -k numba"
GUARDS = "tests/operands/test_guard_pages.py -k float32"
LAYOUTS = "tests/contract/test_conformance.py::test_layout_of_each_operand -k numba"
REFUSALS = "tests/face/test_face_errors.py"
REFERENCE = "tests/reference/test_reference.py"

_FAULTS = {
    # Kernel arithmetic.
    "exp2_coefficient": (
        "_numba/machine/elementary.py",
        "        0.24022650718688965,",
        "        0.24020650718688965,",
        OPTIONS,
    ),
    "maximum_not_subtracted": (
        "_numba/steps/normalise.py",
        "weight = exp2_product(load(tag, place) - maximum, wide, lowest)",
        "weight = exp2_product(load(tag, place), wide, lowest)",
        "plain: cache, float32, 1 rows, (20,), 8 and 16 {'window': (5, 0)}",
    ),
    "segment_not_corrected_to_new_maximum": (
        "_numba/steps/normalise.py",
        "    gain = correction(tag, segment_max, new_max, factor)",
        "    gain = correction(tag, new_max, new_max, factor)",
        "plain: attention, causal rows of a late segment",
    ),
    "old_segments_not_corrected": (
        "_numba/steps/normalise.py",
        "    keep = correction(tag, old_max, new_max, factor)",
        "    keep = correction(tag, new_max, new_max, factor)",
        "plain: attention, causal rows of a late segment",
    ),
    "lse_without_scale": (
        "_numba/steps/finish.py",
        "base, base_rest = times(base, scale)",
        "base, base_rest = times(base, 1.0)",
        "plain: attention, pairs, 1 rows, 70 keys, 8 and 64 features",
    ),
    "weights_not_divided_by_their_sum": (
        "_numba/steps/finish.py",
        "wide, lowest) * left / total",
        "wide, lowest) * left",
        "plain: attention, pairs, 1 rows, 70 keys, 8 and 64 features, weights",
    ),
    "softcap_slope": (
        "_numba/steps/score.py",
        "2.8853900817779268 / call.softcap",
        "1.4426950408889634 / call.softcap",
        "plain: attention, float32, scale -0.3, cap 2.0",
    ),
    "key_norm_without_exponent": (
        "_numba/operands/pack.py",
        "value = load(tag, place + e * PANEL_KEYS * item) * exponent",
        "value = load(tag, place + e * PANEL_KEYS * item)",
        "plain: similarity cosine, float32 tiny",
    ),
    "power_of_scale_doubled": (
        "_engine/describe.py",
        "rest, exponent = 2.0 * mantissa, exponent - 1",
        "rest, exponent = 2.0 * mantissa, exponent",
        OPTIONS,
    ),
    # Borders.
    "window_right_exclusive": (
        "_numba/stages/attention.py",
        "position + call.right + 1",
        "position + call.right",
        "plain: cache, float32, 1 rows, (20,), 8 and 16 {'window': (5, 0)}",
    ),
    "window_left_exclusive": (
        "_numba/stages/attention.py",
        "max(0, position - call.left)",
        "max(0, position - call.left + 1)",
        "plain: cache, float32, 1 rows, (20,), 8 and 16 {'window': (5, 0)}",
    ),
    "last_lanes_not_hidden": (
        "_numba/steps/score.py",
        "    if end < high:\n",
        "    if end + LANES <= high:\n",
        "plain: cache, float32, 1 rows, (20,), 8 and 16 {'window': (5, 0)}",
    ),
    "row_copied_in_whole_vectors": (
        "_numba/machine/storage.py",
        "    whole = count // LANES * LANES\n    i = 0\n    if code == native_code(tag) and stride",
        "    whole = (count + LANES - 1) // LANES * LANES\n    i = 0\n"
        "    if code == native_code(tag) and stride",
        "plain: similarity dot, float32 tiny",
    ),
    "transposed_tail_overruns": (
        "_numba/operands/pack.py",
        "outer = min(outer, outers - 4)",
        "outer = min(outer, outers)",
        "plain: similarity dot, float32 tiny",
    ),
    "lanes_start_at_first_visible_key": (
        "_numba/steps/spans.py",
        "low = max(low - start, 0) // LANES * LANES",
        "low = max(low - start, 0)",
        "plain: attention, window of one row",
    ),
    # Masks and what is hidden.
    "bool_mask_inverted_off_the_fast_path": (
        "_numba/steps/score.py",
        "            if bias == 0.0:",
        "            if bias != 0.0:",
        "plain: merge_states, of results",
    ),
    "float_mask_cannot_hide_nan": (
        "_numba/steps/score.py",
        "select_equal(bias, hidden, bias, score)",
        "score",
        HIDDEN_BY_BIAS,
    ),
    "hidden_values_take_part": (
        "_numba/steps/normalise.py",
        "            if score != -np.inf:",
        "            if score == score:",
        "plain: attention, hidden NaN, values of sixteens",
    ),
    "nan_never_looked_for": (
        "_numba/stages/attention.py",
        "if not any_nan_in_row(tag, result, rows * padded(call.value_features) * item):",
        "if rows > 0:",
        "plain: attention, hidden NaN, values of sixteens",
    ),
    "rows_with_other_ends_taken_for_alike": (
        "_numba/stages/attention.py",
        "alike &= exact and begin == first_begin and end == first_end",
        "alike &= exact and begin == first_begin",
        "plain: cache, int8, 2 rows, (40,), 16 and 64 {'alibi_slopes': 0.1, 'sinks': 0.2}",
    ),
    "last_keys_read_beyond_the_end": (
        "_numba/steps/decode.py",
        "    if j + LANES <= call.keys:\n        return j\n",
        "    if j < call.keys:\n        return j\n",
        "plain: attention, keys in rows apart",
    ),
    "empty_row_divided": (
        "_numba/steps/finish.py",
        "    if row_max == -np.inf:\n        row_sum = cast",
        "    if row_max != row_max:\n        row_sum = cast",
        "plain: attention, no_keys",
    ),
    # Merge.
    "merged_parts_weigh_the_same": (
        "state.py",
        "if is_half(parts.dtype) else parts, mask=present)",
        "if is_half(parts.dtype) else parts * 0, mask=present)",
        STATES,
    ),
    "merge_with_or_without_slopes": (
        "state.py",
        "return ours is theirs",
        "return True",
        "tests/face/test_face_stage_errors.py",
    ),
    "merge_of_queries_that_stand_elsewhere": (
        "state.py",
        "problem.extras.query_offset + key_start * made.positioned",
        "0 * (problem.extras.query_offset + key_start * made.positioned)",
        "tests/face/test_face_stage_errors.py",
    ),
    "reference_merge_forgets_empty_parts": (
        "reference/fusion.py",
        "parts = np.where((lses == -np.inf)[..., None], 0.0, outputs * shares[..., None])",
        "parts = outputs * shares[..., None]",
        REFERENCE,
    ),
    "reference_segments_folded_twice": (
        "reference/tiled.py",
        "row_sum = left.row_sum * correction + right.row_sum * share",
        "row_sum = left.row_sum + right.row_sum * share",
        REFERENCE,
    ),
    # Plan and launch.
    "last_rows_have_no_task": (
        "_engine/plan.py",
        "    row_tasks = -(-rows // task_rows)",
        "    row_tasks = max(1, rows // task_rows)",
        BITS,
    ),
    "last_segment_has_no_task": (
        "_engine/plan.py",
        "    segments = max(1, -(-keys // SEGMENT_KEYS))",
        "    segments = max(1, keys // SEGMENT_KEYS)",
        OPTIONS,
    ),
    "slices_skip_a_task": (
        "_engine/launcher.py",
        "        first = stop\n",
        "        first = stop + 1\n",
        "tests/engine/test_launch.py",
    ),
    # Problem and validation.
    "bottom_right_off_by_one": (
        "_core/problem.py",
        "offset = (keys if lengths is None else lengths) - rows",
        "offset = (keys if lengths is None else lengths) - rows + 1",
        OPTIONS,
    ),
    "grouped_heads_interleaved": (
        "_core/layouts.py",
        "(*outer_strides, step * groups, step, *strides[dims:])",
        "(*outer_strides, step, step * groups, *strides[dims:])",
        OPTIONS,
    ),
    "padding_of_packed_values_left_as_it_was": (
        "_numba/operands/places.py",
        "    if features % LANES != 0:",
        "    if features < 0:",
        "plain: attention, keys in rows apart",
    ),
    "records_outgrow_their_room": (
        "_engine/plan.py",
        "RECORD_BYTES = padded(8 * len(ATTENTION.word), 64)",
        "RECORD_BYTES = 1024",
        "tests/engine/test_scratch.py -k fits",
    ),
    "an_operand_too_many_is_asked_for_ahead": (
        "_numba/operands/prefetch.py",
        "_OPERANDS = 4\n",
        "_OPERANDS = 5\n",
        "tests/engine/test_scratch.py -k fits",
    ),
    "overlapping_out_written_in_place": (
        "_core/arrays.py",
        "and not any(np.may_share_memory(out, x) for x in inputs if x is not None)",
        "and True",
        "tests/contract/test_bits.py::test_out_may_overlap_an_input -k numba-plain",
    ),
    "feature_mismatch_let_through": (
        "_core/recipe.py",
        "    if query[-1] != key[-1]:",
        "    if query[-1] > key[-1]:",
        MISFITS,
    ),
    "lengths_beyond_the_keys_let_through": (
        "_core/visibility.py",
        "int(array.max()) > largest",
        "int(array.max()) > largest + 1",
        REFUSALS,
    ),
}

_PLACES = (
    _FAULTS,
    RAGGED_FAULTS,
    SCALE_FAULTS,
    CACHE_FAULTS,
    PAIR_FAULTS,
    PLAIN_FAULTS,
    LINEAR_FAULTS,
    LOGARITHM_FAULTS,
    COMPANY_FAULTS,
    COMPILED_FAULTS,
    MACHINE_FAULTS,
    MASK_FAULTS,
    ALLOCATION_FAULTS,
    BATCH_FAULTS,
    BRIDGE_FAULTS,
    SHARED_FAULTS,
    MODULE_FAULTS,
    WAY_FAULTS,
    OPTION_FAULTS,
    WIDE_FAULTS,
    FACE_FAULTS,
)
_EVERY = [fault for place in _PLACES for fault in place.items()]
FAULTS = tuple(Fault(name, *fault) for name, fault in _EVERY)


def main() -> None:
    by_name = {fault.name: fault for fault in FAULTS}
    if len(sys.argv) == 1:
        for fault in FAULTS:
            print(f"{fault.name}: {fault.file}, seen by {fault.tests}")
    for name in sys.argv[1:]:
        tests = by_name[name].tests
        if by_name[name].case:
            tests = f"tests/seeded/test_faults.py -m '' -k 'once and {name}'"
        child = run_tests(None if by_name[name].case else by_name[name], tests)
        # Of a case it is that test which sees the fault, and passes.
        seen = child.returncode == 0 if by_name[name].case else is_seen(child)
        print(f"{child.stdout}{name}: {'seen' if seen else 'NOT SEEN'}", flush=True)


if __name__ == "__main__":
    main()
