"""Faults to seed into shared allocation; entries as in `faults`."""

_SHARED = "tests/budgets/test_allocate_shared.py"
_TIES = "tests/budgets/test_allocate_shared_ties.py"
_APART = "tests/budgets/test_allocate_shared_apart.py"

SHARED_FAULTS = {
    "rows_behind_their_receivers_count_as_done": (
        "_numba/budgets/shared.py",
        "    return max(lane_sum(moved) / budget, behind)\n",
        "    return lane_sum(moved) / budget\n",
        "plain: shared, 1 workers",
    ),
    "rows_that_do_not_exist_spend": (
        "_numba/budgets/shared.py",
        "spend_budget(call, row + 3, lane_sum(d), changes) if rows > 3 else 0.0",
        "spend_budget(call, row + min(rows - 1, 3), lane_sum(d), changes)",
        "plain: shared, 1 workers",
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
    "those_who_lack_spend_like_the_others": (
        "_engine/saturation.py",
        "            if behind.any() and not behind.all():\n",
        "            if False:\n",
        f"{_TIES} -k 'whole and numba'",
    ),
    "cells_that_carry_nothing_are_kept": (
        "_engine/saturation.py",
        "                usable[place] = block.joined(products)\n",
        "                usable[place] = wanted[place]\n",
        f"{_TIES} -k 'large and numba'",
    ),
    "columns_with_room_are_not_one": (
        "_engine/saturation.py",
        "            passes[:nodes, nodes] = is_open\n",
        "",
        f"{_TIES} -k begins",
    ),
    "a_flow_stops_at_its_first_ways": (
        "_engine/saturation.py",
        "        while pushed:\n",
        "        for _ in range(1):\n",
        f"{_TIES} -k 'whole and numba'",
    ),
    "ground_beyond_a_node_is_lost": (
        "_engine/newton.py",
        "            ground[p + 1 :] += part * ground[p]\n",
        "",
        f"{_TIES} -k elimination",
    ),
    "a_panel_changes_no_other": (
        "_engine/newton.py",
        "            linked[stop:, stop:] += products(part.T, links.T)\n",
        "",
        f"{_TIES} -k elimination",
    ),
    "columns_never_grow_again": (
        "_engine/newton.py",
        "        full: np.ndarray = totals * self.growth > self._capacities\n",
        "        full: np.ndarray = totals * self.growth >= 0\n",
        f"{_TIES} -k 'real and numba'",
    ),
    "the_mean_of_a_column_hides_who_has_more": (
        "_engine/shared.py",
        "                slow |= violation > tol\n",
        "                violation = 0.0\n",
        f"{_TIES} -k 'chains and numba'",
    ),
    "shared_weights_of_minus_zero_stay": (
        "_numba/budgets/shared.py",
        "load(np.float64(0), call.column_factors + 8 * column) + zero\n",
        "load(np.float64(0), call.column_factors + 8 * column)\n",
        f"{_TIES} -k 'minus and numba'",
    ),
    "columns_turn_where_rows_do_not_see_it": (
        "_engine/newton.py",
        "            self.amounts[:, turning] *= factors\n"
        "            self.growth[turning] /= factors\n",
        "",
        f"{_APART} -k numba",
    ),
    "rounds_that_drift_are_waited_for": (
        "_engine/shared.py",
        "(tol if further >= iteration else _MUCH * tol)",
        "(_MUCH * tol)",
        f"{_APART} -k 'drifts and numba'",
    ),
    "ties_are_taken_for_slow_rounds": (
        "_engine/shared.py",
        "further > _TIE * iteration:",
        "further > iteration:",
        f"{_TIES} -k do_not_wait",
    ),
}
