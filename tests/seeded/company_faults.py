"""Faults to seed into threads in company: those of other libraries, and theirs on ours."""

_COMPANY = "tests/engine/test_company.py"
_SHARING = "tests/cython/test_sharing.py"
_COUNTS = "tests/core/test_threads.py"

COMPANY_FAULTS = {
    "a_child_enters_its_parents_team": (
        "_engine/company.py",
        "    _lost.update(_met)\n",
        "    pass\n",
        f"{_COMPANY} -k forked",
    ),
    "every_thread_becomes_master_of_a_team": (
        "_engine/company.py",
        "        if len(self.others) >= _MOST_MASTERS:\n            return False\n",
        "",
        f"{_COMPANY} -k masters",
    ),
    "who_is_one_too_many_on_a_team_takes_tasks": (
        "_cython/team.h",
        "    if (worker < run->workers) enter_kernel",
        "    enter_kernel",
        f"{_COMPANY} -k same_bits",
    ),
    "jobs_of_blas_have_the_float_environment_of_kernels": (
        "_cython/blas.h",
        "    _mm_setcsr(run->environment);\n",
        "",
        f"{_SHARING} -k environment",
    ),
    "a_forked_child_leaves_its_blas_to_threads_it_does_not_have": (
        "_cython/blas.h",
        "blas.set = NULL;\n    atomic_store(&pool.patience, LOOK_FOR_RUN);\n}\n\n/* Take",
        "blas.set(run_blas);\n}\n\n/* Take",
        f"{_SHARING} -k forked",
    ),
    "jobs_of_blas_wait_for_each_other_one_by_one": (
        "_cython/blas.h",
        "    const int others = (int)run->jobs - 1;\n    const bool enough",
        "    const int others = 0;\n    const bool enough",
        f"{_SHARING} -k after",
    ),
    "the_bridge_to_torch_counts_on_its_team_in_a_child": (
        "bridges/torch/threads.py",
        "    _parallel = 0\n    _team = Team(1, 0)\n",
        "    pass\n",
        "tests/bridges/test_torch_threads.py -k forked",
    ),
    "the_setting_of_openmp_comes_before_ours": (
        "_core/threads.py",
        "    if ours:\n",
        "    if ours and not shared:\n",
        f"{_COUNTS} -k precedence",
    ),
    "a_block_of_threads_outlives_its_error": (
        "_core/threads.py",
        "    try:\n        yield\n    finally:\n        _scope.reset(token)\n",
        "    yield\n    _scope.reset(token)\n",
        f"{_COUNTS} -k blocks",
    ),
}
