"""Faults to seed into shared allocation; entries as in `faults`."""

_SHARED = "tests/test_allocate_shared.py"

SHARED_FAULTS = {
    "rows_behind_their_receivers_count_as_done": (
        "_numba/shared.py",
        "    return max(lane_sum(moved) / budget, behind)\n",
        "    return lane_sum(moved) / budget\n",
        f"{_SHARED} -k 'tiny and numba'",
    ),
    "rows_that_do_not_exist_spend": (
        "_numba/shared.py",
        "spend_budget(call, row + 3, lane_sum(d), changes) if rows > 3 else 0.0",
        "spend_budget(call, row + min(rows - 1, 3), lane_sum(d), changes)",
        f"{_SHARED} -k 'closed and numba'",
    ),
    "sums_above_their_bounds_stay": (
        "_engine/shared.py",
        "        if exceeds.any() or (rows < 1).any():\n",
        "        if exceeds.all():\n",
        f"{_SHARED} -k 'large_matrices and numba'",
    ),
    "factors_are_never_absorbed": (
        "_engine/shared.py",
        "        if factor > _LARGEST_FACTOR:\n",
        "        if factor < 0:\n",
        f"{_SHARED} -k 'overflow and numba'",
    ),
    "rounds_judged_once_and_never_again": (
        "_engine/shared.py",
        "            test_at = iteration + max(1, iteration // _PATIENCE)\n",
        "            test_at = max_iter\n",
        f"{_SHARED} -k 'tiny and numba'",
    ),
}
