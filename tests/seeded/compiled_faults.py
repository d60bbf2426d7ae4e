"""Faults to seed into the compiled path: drivers, threads, the choice of backend.

Its kernels are compiled from those of the Numba backend, whose faults stand elsewhere.
"""

_CITIZEN = "tests/cython/test_compiled.py"
_FORKS = f"{_CITIZEN} -k forked"
_POOL = "tests/cython/test_pool.py"

COMPILED_FAULTS = {
    "machine_code_is_optimised_again": (
        "_numba/compiler/linking.py",
        "    if not isinstance(result.library, _LinkedLibrary):",
        "    if False:",
        "tests/compiler/test_linking.py -k compiles_nothing_ahead",
    ),
    "subnormal_exponentials_are_cut_off": (
        "_numba/machine/emit.py",
        "    every, nearest = ir.Constant(kinds[3], -1), I32(4)",
        "    every, nearest = ir.Constant(kinds[3], -1), I32(11)",
        "tests/machine/test_elementary.py -k no_instruction_scales",
    ),
    "forked_child_counts_on_threads_it_does_not_have": (
        "_cython/pool.h",
        "    pool.started = 0;\n",
        "",
        _FORKS,
    ),
    "float_environment_of_others_kept": (
        "_cython/pool.h",
        "    _mm_setcsr(0x1F80);",
        "    _mm_setcsr(saved);",
        f"{_CITIZEN} -k float_environment",
    ),
    "threads_sleep_at_once": (
        "_cython/pool.h",
        "enum { LOOK_FOR_RUN = 1000000,",
        "enum { LOOK_FOR_RUN = 0,",
        f"{_CITIZEN} -k look_for",
    ),
    "threads_never_sleep": (
        "_cython/pool.h",
        "enum { LOOK_FOR_RUN = 1000000,",
        "enum { LOOK_FOR_RUN = INT64_MAX / 2,",
        f"{_CITIZEN} -k look_for",
    ),
    "a_run_waits_for_threads_that_have_not_come": (
        "_cython/pool.h",
        "const uint32_t all = (uint32_t)joined(run);",
        "const uint32_t all = (uint32_t)(run >> COUNT_BITS & MOST_THREADS);",
        f"{_POOL} -k nobody_who_has_not_come",
    ),
    "a_run_ends_before_those_who_joined_it_have_left": (
        "_cython/pool.h",
        "    if (all == 0) return;\n",
        "    return;\n",
        f"{_POOL} -k every_task",
    ),
    "who_comes_late_joins_a_closed_run": (
        "_cython/pool.h",
        "return !(run & CLOSED) && joined(run)",
        "return joined(run)",
        f"{_POOL} -k every_task",
    ),
    "a_thread_sleeps_through_a_run": (
        "_cython/pool.h",
        "        if (number_of(run) == seen) sleep_on(&pool.bell, bell);\n",
        "        sleep_on(&pool.bell, bell);\n",
        f"{_POOL} -k every_task",
    ),
    "threads_never_let_go": (
        "_engine/launcher.py",
        "            token.clear()\n",
        "            pass\n",
        f"{_CITIZEN} -k interrupts",
    ),
    "repeated_call_overwrites_its_scratch": (
        "_engine/template.py",
        "record_bytes = padded(8 * len(record.words), 64)",
        "record_bytes = 64",
        f"{_CITIZEN} -k share",
    ),
    "memo_writes_over_what_it_reads": (
        "_cython/arrays.h",
        "    return low < to && from < high;",
        "    return 0;",
        "tests/core/test_repeats.py -k overlaps",
    ),
    "memo_writes_to_what_is_read_only": (
        "_cython/_native.pyx",
        "kept.in_place != in_place or not fields(<PyObject *> out).flags & WRITEABLE",
        "kept.in_place != in_place",
        "tests/core/test_repeats.py -k fails_again",
    ),
    "memo_keeps_a_call_for_every_object_of_a_dtype": (
        "_cython/_native.pyx",
        "return array.ndim <= MOST_DIMS and dtype is numpy.dtype(dtype.str)",
        "return array.ndim <= MOST_DIMS",
        "tests/core/test_repeats.py -k whatever_object",
    ),
    "missing_kernels_are_an_error_of_every_call": (
        "_core/backends.py",
        "            _missing[name] = str(error)\n",
        "            raise\n",
        f"{_CITIZEN} -k level_that_is_not_there",
    ),
    "features_of_kernels_are_looked_for_by_halves": (
        "_cython/words.py",
        'for name in features.split(",") if name]',
        'for name in features.split(",")[:10] if name]',
        "tests/cython/test_build.py -k every_feature",
    ),
    "a_feature_is_looked_for_in_a_wrong_place": (
        "_cython/levels.h",
        "X(f16c, BASIC_C, 29)",
        "X(f16c, BASIC_C, 16)",
        "tests/cython/test_build.py -k every_feature",
    ),
    "hidden_kernels_are_not_looked_for": (
        "_cython/backend.py",
        "if room != _HERE and any(",
        "if room == _HERE and any(",
        "tests/cython/test_hidden_kernels.py -k once",
    ),
}
