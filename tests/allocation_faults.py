"""Faults to seed into allocation; entries as in `faults`."""

_REAL = "tests/test_allocate.py"
_UNITS = "tests/test_allocate_units.py"
_EXTREMES = "tests/test_allocate_extremes.py"

ALLOCATION_FAULTS = {
    "amounts_rounded_with_theta_alone": (
        "_numba/budgets/allocation.py",
        "        amount = amount + error\n",
        "",
        f"{_REAL} -k numba",
    ),
    "free_amounts_rounded_with_theta_alone": (
        "_numba/budgets/allocation.py",
        "        amount = amount + (fma(theta, weight, zero - amount) + rest * weight)\n",
        "",
        f"{_REAL} -k numba",
    ),
    "rows_side_by_side_take_the_first_row_s_theta": (
        "_numba/budgets/allocation.py",
        "            theta, rest = load_float64(totals, r), load_float64(totals, LANES + r)\n",
        "            theta, rest = load_float64(totals, 0), load_float64(totals, LANES)\n",
        f"{_REAL} -k numba",
    ),
    "sums_in_one_part": (
        "_numba/budgets/receivers.py",
        "    first = (number + at[0]) - at[0]\n",
        "    first = number\n",
        f"{_REAL} -k numba",
    ),
    "sums_cut_by_the_heaviest_of_all": (
        "_numba/budgets/allocation.py",
        "    factor = factor_near_one(largest)\n",
        "    factor = 1.0\n",
        f"{_REAL} -k numba",
    ),
    "receivers_without_weight_have_their_cap": (
        "_numba/budgets/allocation.py",
        "        cap = select_above(load(TAG, weights + i), zero, cap, low)\n",
        "",
        f"{_REAL} {_UNITS} -k numba",
    ),
    "a_hidden_weight_counts": (
        "_numba/budgets/receivers.py",
        "        if allowed == 0 or load_as(TAG, BOOL, allowed + i * call.allowed_step) != 0.0:\n",
        "        if True:\n",
        f"{_REAL} -k numba",
    ),
    "equal_claims_by_rounding": (
        "_numba/budgets/apportion.py",
        "    if abs(more) <= EQUAL * a:\n",
        "    if more == 0.0 and a == 0.0:\n",
        f"{_UNITS} -k numba",
    ),
    "remainders_compared_in_floats": (
        "_numba/budgets/apportion.py",
        "abs(more) <= load_float64(scratch + call.at_spare, 0)",
        "more != more",
        f"{_UNITS} -k numba",
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
        f"{_UNITS} -k numba",
    ),
    "who_is_at_a_cap_has_a_remainder": (
        "_numba/budgets/apportion.py",
        "        part = select_above(zero, over, part, zero)\n",
        "",
        f"{_UNITS} -k numba",
    ),
    "squares_of_small_weights_vanish": (
        "_numba/budgets/apportion.py",
        "    if max(weight, other_weight) < TINY:\n",
        "    if max(weight, other_weight) < 0.0:\n",
        f"{_EXTREMES} -k numba",
    ),
    "units_beyond_the_cap": (
        "_numba/budgets/apportion.py",
        "    under = amount < load_float64(scratch + call.at_upper, i) * inverse\n",
        "    under = amount <= load_float64(scratch + call.at_upper, i) * inverse\n",
        f"{_UNITS} -k numba",
    ),
    "the_heap_forgets_the_second_child": (
        "_numba/budgets/apportion.py",
        "        if child + 1 < size:\n",
        "        if child + 1 < 0:\n",
        f"{_UNITS} -k numba",
    ),
    "units_never_taken_back": (
        "_numba/budgets/apportion.py",
        "        elif total > budget:\n",
        "        elif total > budget + 1.0:\n",
        f"{_UNITS} -k numba",
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
        f"{_EXTREMES} -k 'minus and numba'",
    ),
}
