"""Faults to seed into scales, one or one per head, and scores of unusual size; as in `faults`."""

_TESTS = "tests/contract/test_scales.py -k '{}'"
_AGAIN = _TESTS.format("way_to_score and {}")
_SIZES = _TESTS.format("exact_arithmetic and dot and {}")
_EACH = _TESTS.format("each_head and dot-float32 and {}")

SCALE_FAULTS = {
    "rows_that_lose_bits_keep_their_products": (
        "_numba/steps/score_again.py",
        "    if took == 0:\n        return True\n",
        "    if took == 0:\n        return False\n",
        "plain: attention, float32, scale -0.3, cap None",
    ),
    "panels_of_pairs_taken_for_those_of_floats": (
        "_numba/steps/bfloat16_pairs.py",
        '    """Panels of floats are not what the tiles read."""\n    return 0',
        '    """Panels of floats are not what the tiles read."""\n    return 1',
        "plain: attention, pairs, scale 0.125, many",
    ),
    "the_power_goes_onto_the_key_where_that_loses_bits": (
        "_numba/steps/score_again.py",
        "    own = select_above(lost_of_key, zero, own, number)\n"
        "    other = select_above(lost_of_key, zero, other, scaled_key)\n",
        "    own, other = number, scaled_key\n",
        "plain: similarity, two workers",
    ),
    "panels_of_floats_leave_those_of_pairs_as_they_were": (
        "_numba/steps/score_again.py",
        "                for other in range(_PANELS):",
        "                for other in range(panel, panel + 1):",
        "plain: attention, pairs, panels in the place of others",
    ),
    "sums_that_spill_are_not_looked_for": (
        "_numba/steps/score_again.py",
        "    return grown and not all_finite(tag, scores, count)",
        "    return False",
        "plain: attention, float32, 2 rows that spill, cap None",
    ),
    "rows_that_took_the_power_are_summed_with_it_again": (
        "_numba/steps/score_again.py",
        "number * back_second * back_first, key\n",
        "number, key\n",
        "plain: similarity, few sums that spill",
    ),
    "large_keys_are_taken_for_small_ones": (
        "_numba/steps/score_again.py",
        "    return not largest_query * largest * call.features <= largest_finite(tag) / 2.0",
        "    return False",
        "plain: attention, float32, 30 rows that spill, cap None",
    ),
    "nan_hides_how_large_others_are": (
        "_numba/steps/score_again.py",
        "larger(absolute(keep_lanes(first, 0, left, none)), largest)",
        "larger(largest, absolute(keep_lanes(first, 0, left, none)))",
        "tests/contract/test_spilt_sums.py -k 'nan_hides_no_size and numba'",
    ),
    "chains_summed_again_begin_at_a_zero": (
        "_numba/steps/score_again.py",
        "            run = chain if e % FEATURE_RUN < FEATURE_CHAIN else run + chain",
        "            run = run + chain",
        "tests/contract/test_spilt_sums.py -k 'zeros_have and numba-float32-dot'",
    ),
    "powers_above_1_go_unsaid": (
        "_engine/describe.py",
        "    return abs(factors[first] * factors[second]) > most",
        "    return False",
        "tests/contract/test_spilt_sums.py -k 'on_the_way and numba-2.0-float32'",
    ),
    "powers_beyond_the_range_are_cut_off": (
        "_engine/describe.py",
        "    waiting = min(max(waiting, -2 * most), 2 * most)\n",
        "    waiting = 0\n",
        _SIZES.format("numba"),
    ),
    "heads_of_a_group_share_the_scale_of_the_first": (
        "_numba/operands/record.py",
        "call.entry_factors + row // call.queries * call.factors_head",
        "call.entry_factors",
        "plain: attention, a scale per grouped head",
    ),
    "heads_of_a_group_are_folded_with_the_scale_of_the_first": (
        "_numba/operands/record.py",
        "        place += head * call.factors_head\n",
        "",
        _TESTS.format("states and numba-dot"),
    ),
    "weights_of_all_heads_with_the_factor_of_the_first": (
        "_numba/steps/blocks.py",
        "                factor = row_factor(tag, factors_of(call, first_row + block + r))\n"
        "                lowest = exp2_lowest(factor)\n",
        "                pass\n",
        "plain: attention, a scale per grouped head",
    ),
    "distances_of_a_group_share_keys": (
        "_engine/apart.py",
        'problem.options.similarity != "euclidean" or groups == 1',
        'problem.options.similarity != "" or groups == 1',
        _TESTS.format("each_head and euclidean-float32"),
    ),
    "scales_by_head_are_kept_by_shape": (
        "_core/scales.py",
        "    return Scales(shape, numbers.tobytes())",
        "    return _kept.setdefault(shape, Scales(shape, numbers.tobytes()))\n\n\n_kept: Any = {}",
        _TESTS.format("written_to_afterwards"),
    ),
    "subnormal_scales_are_told_apart_by_their_hash": (
        "_core/scales.py",
        "return number if is_normal else",
        "return number if number - number == 0.0 else",
        "tests/contract/test_environment.py -k 'told_apart and numba-scale-dict'",
    ),
    "caps_that_count_as_zeros_are_refused": (
        "_core/scales.py",
        "    return x > 0.0 or struct",
        "    return x > 0.0 or 0.0 * struct",
        "tests/contract/test_environment.py -k 'told_apart and numba-softcap-dict'",
    ),
    "similarities_share_the_scale_of_the_first": (
        "_numba/stages/similarity.py",
        "    if call.factors:\n",
        "    if call.factors == -1:\n",
        "plain: similarity, scales",
    ),
}
