"""Faults to seed into allocation; entries as in `faults`."""

_REAL = "tests/budgets/test_allocate.py"
_UNITS = "tests/budgets/test_allocate_units.py"
_EXTREMES = "tests/budgets/test_allocate_extremes.py"

ALLOCATION_FAULTS = {
    "amounts_rounded_with_theta_alone": (
        "_numba/budgets/allocation.py",
        "        amount = amount + error\n",
        "",
        "plain: allocate, far theta, 1e-09",
    ),
    "free_amounts_rounded_with_theta_alone": (
        "_numba/budgets/allocation.py",
        "        amount = amount + (fma(theta, weight, zero - amount) + rest * weight)\n",
        "",
        "plain: allocate, of sixteens",
    ),
    "rows_side_by_side_take_the_first_row_s_theta": (
        "_numba/budgets/allocation.py",
        "            theta, rest = load_float64(totals, r), load_float64(totals, LANES + r)\n",
        "            theta, rest = load_float64(totals, 0), load_float64(totals, LANES)\n",
        "plain: allocate, minus 0, None",
    ),
    "sums_in_one_part": (
        "_numba/budgets/receivers.py",
        "    first = (number + at[0]) - at[0]\n",
        "    first = number\n",
        "plain: allocate, of sixteens",
    ),
    "sums_cut_by_the_heaviest_of_all": (
        "_numba/budgets/allocation.py",
        "    factor = factor_near_one(largest)\n",
        "    factor = 1.0\n",
        "plain: allocate, one heavy",
    ),
    "receivers_without_weight_have_their_cap": (
        "_numba/budgets/allocation.py",
        "        cap = select_above(load(TAG, weights + i), zero, cap, low)\n",
        "",
        "plain: allocate, nothing",
    ),
    "a_hidden_weight_counts": (
        "_numba/budgets/receivers.py",
        "        if allowed == 0 or load_as(TAG, BOOL, allowed + i * call.allowed_step) != 0.0:\n",
        "        if True:\n",
        "plain: allocate one on_unspent upper lower where, float64 small",
    ),
    "equal_claims_by_rounding": (
        "_numba/budgets/apportion.py",
        "    if abs(more) <= EQUAL * a:\n",
        "    if more == 0.0 and a == 0.0:\n",
        "plain: allocate, sainte_lague, on the border",
    ),
    "remainders_compared_in_floats": (
        "_numba/budgets/apportion.py",
        "abs(more) <= load_float64(scratch + call.at_spare, 0)",
        "more != more",
        "plain: allocate, largest_remainder, on the border",
    ),
    "remainders_of_large_budgets_compared_like_small": (
        "_numba/budgets/apportion.py",
        "max(EQUAL, EQUAL_OF_BUDGET * budget)",
        "EQUAL",
        f"{_EXTREMES} -k numba",
    ),
    "remainders_parted_at_the_wrong_place": (
        "_numba/budgets/apportion.py",
        "        if above == units and lane_max(nearest) < -NEAR:\n",
        "        if above >= units and lane_max(nearest) < -NEAR:\n",
        "plain: allocate, largest_remainder, near ties",
    ),
    "who_is_at_a_cap_has_a_remainder": (
        "_numba/budgets/apportion.py",
        "        part = select_above(zero, over, part, zero)\n",
        "",
        "plain: allocate, largest_remainder, half units",
    ),
    "squares_of_small_weights_vanish": (
        "_numba/budgets/apportion.py",
        "    if max(weight, other_weight) < TINY:\n",
        "    if max(weight, other_weight) < 0.0:\n",
        "plain: allocate, huntington_hill, small claims, 1e-290",
    ),
    "units_beyond_the_cap": (
        "_numba/budgets/apportion.py",
        "    under = amount < load_float64(scratch + call.at_upper, i) * inverse\n",
        "    under = amount <= load_float64(scratch + call.at_upper, i) * inverse\n",
        "plain: allocate, sainte_lague, small claims, 1e-120",
    ),
    "the_heap_forgets_the_second_child": (
        "_numba/budgets/apportion.py",
        "        if child + 1 < size:\n",
        "        if child + 1 < 0:\n",
        "plain: allocate, largest_remainder, ties",
    ),
    "units_never_taken_back": (
        "_numba/budgets/apportion.py",
        "        elif total > budget:\n",
        "        elif total > budget + 1.0:\n",
        "plain: allocate, huntington_hill, on the border",
    ),
    "the_last_unit_counts_as_a_last_place": (
        "_numba/budgets/allocation.py",
        "        slack = min(SLACK, budget) if call.method == REAL_AMOUNTS else 0.0\n",
        "        slack = min(SLACK, budget)\n",
        f"{_EXTREMES} -k numba",
    ),
    "integers_are_counted_in_floats": (
        "units.py",
        '        return self.is_int and x.dtype.kind in "biu"\n',
        "        return False\n",
        f"{_UNITS} -k reference",
    ),
    "cents_are_multiples_of_a_float": (
        "units.py",
        "parts if parts > 1 and 1 / parts == self.size else None",
        "None",
        f"{_UNITS} -k reference",
    ),
    "budget_of_the_first_row_for_all": (
        "_engine/allocation.py",
        "if array is None else array.strides[: len(outer)])",
        "if array is None or array.ndim == len(outer) else array.strides[: len(outer)])",
        f"{_REAL} -k numba",
    ),
    "minus_zero_is_read_as_it_is": (
        "_numba/budgets/receivers.py",
        "store(target + whole, rest + zero)",
        "store(target + whole, rest)",
        f"{_EXTREMES} -k 'minus and numba'",
    ),
    "a_budget_of_minus_zero_is_read_as_it_is": (
        "_numba/budgets/allocation.py",
        "operand_offset(call, BUDGET, row), 0) + 0.0\n",
        "operand_offset(call, BUDGET, row), 0)\n",
        "plain: allocate, minus 0, None, bounds",
    ),
}
