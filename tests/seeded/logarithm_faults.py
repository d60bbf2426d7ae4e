"""Faults to seed in weights with sinks and in logarithms of sums; entries as in `faults`."""

_WEIGHTS = "tests/contract/test_weights.py::test_"
_LOGARITHMS = "tests/stages/test_logarithms.py::test_"
AT_ANY_SIZE = _WEIGHTS + "weights_are_outputs_at_any_size_of_score -k numba-beside"
SMALL_REST = _LOGARITHMS + "a_rest_below_the_last_place_of_one_counts -k numba"
EVERY_WAY = _LOGARITHMS + "bits_of_peaked_rows_are_the_same_every_way -k numba"
OF_ATTENTION = _LOGARITHMS + "lse_of_attention_near_zero -k numba"
OVER_SEGMENTS = _LOGARITHMS + "lse_near_zero_over_segments_states_and_splits -k numba"
SINKS_NEAR_ZERO = _LOGARITHMS + "lse_near_zero_with_sinks -k numba"
HALVES = _LOGARITHMS + "lse_of_halves_near_zero -k numba"
SIGNS = _LOGARITHMS + "factors_of_every_sign_as_scipy_has_them -k numba"
HIDDEN_FACTORS = _LOGARITHMS + "factors_with_scale_and_mask -k numba"
FACTOR_DTYPES = _LOGARITHMS + "factors_take_part_in_the_dtype_as_in_scipy -k reference"
LOGARITHM = "tests/machine/test_elementary.py::test_logarithm_of_a_sum_and_a_base"

LOGARITHM_FAULTS = {
    "exponentials_of_long_rows_not_taken_once_more": (
        "_numba/stages/weigh.py",
        "            if not keep:\n"
        "                weigh_segment(tag, scores, own, maximum, True, weights, ahead)\n",
        "",
        "plain: logsumexp, segments",
    ),
    # Weights with sinks.
    "weights_without_the_share_of_the_sink": (
        "_numba/steps/finish.py",
        "wide, lowest) * left / total",
        "wide, lowest) / total",
        "plain: attention, sinks",
    ),
    "sink_met_by_a_rounded_maximum": (
        "_numba/steps/finish.py",
        "lead = fma(base, scale, -np.float64(sink))",
        "lead = np.float64(cast(tag, base * scale)) - np.float64(sink)",
        "plain: attention, sinks",
    ),
    # The rest of a sum, in attention.
    "rest_from_the_rounded_sum": (
        "_numba/steps/normalise.py",
        "        rest = rest_of_weights(tag, scores, low, high)\n",
        "        rest = row_sum - cast(tag, 1.0)\n",
        "plain: attention, key_length",
    ),
    "rest_with_the_maximum": (
        "_numba/steps/normalise.py",
        "total = total + select_equal(weight, cast(tag, 1.0), zero, weight)",
        "total = total + weight",
        "plain: attention, key_length",
    ),
    "rest_of_pairs_from_the_rounded_sum": (
        "_numba/steps/bfloat16_pairs.py",
        "        rest = lane_sum(total)\n",
        "        rest = row_sum - cast(tag, 1.0)\n",
        HALVES,
    ),
    "rest_of_a_smaller_segment_forgotten": (
        "_numba/steps/normalise.py",
        "rest = fma(segment_sum, gain, load_scalar(tag, rest_place))",
        "rest = load_scalar(tag, rest_place)",
        "plain: attention, split keys, causal, lse",
    ),
    "rest_below_a_larger_segment_forgotten": (
        "_numba/steps/normalise.py",
        "rest = fma(old_sum, correction(tag, old_max, segment_max, factor), segment_rest)",
        "rest = segment_rest",
        "plain: attention, split keys",
    ),
    "rest_not_kept_by_states": (
        "_engine/states.py",
        "    record.set(keeps_rest=1)  # `finish` may ask for the log-sum-exp\n",
        "",
        OVER_SEGMENTS,
    ),
    "sink_left_out_of_the_rest": (
        "_numba/steps/finish.py",
        "return row_sum + weight, rest + weight, one",
        "return row_sum + weight, rest, one",
        "plain: attention, sinks",
    ),
    # The rest of a sum, in logsumexp and log_softmax.
    "maximum_not_set_apart": (
        "_numba/stages/weigh.py",
        "if factors or (others >= cast(tag, 1.0) and others < cast(tag, WHOLE_SUM)):",
        "if factors:",
        "plain: log_softmax, segments",
    ),
    "maximum_not_set_apart_across_the_lanes": (
        "_numba/stages/weigh.py",
        "if lane_max(below) >= cast(tag, 1.0):",
        "if lane_max(below) >= cast(tag, 2.0):",
        "plain: log_softmax, late, mask",
    ),
    "chunks_forget_the_maxima": (
        "_numba/stages/weigh.py",
        "            store_scalar(sums + offset, at_max)\n",
        "            store_scalar(sums + offset, cast(tag, 0.0))\n",
        "plain: log_softmax, in chunks, 1",
    ),
    "logarithm_of_the_rounded_sum": (
        "_numba/machine/logarithm.py",
        "above, above_rest = paired(mantissa - one, rest)",
        "above, above_rest = paired(mantissa - one, rest - rest)",
        "plain: log_softmax, late, mask",
    ),
    "quotient_of_the_logarithm_rounded": (
        "_numba/machine/logarithm.py",
        "(twice_rest + base_rest)",
        "base_rest",
        "plain: log_softmax, float64, axis 0",
    ),
    # Maxima and logarithms that cancel.
    "cancelled_rows_not_looked_at": (
        "_numba/stages/softmax_finish.py",
        "    if not is_near_zero(lse, row_max, factors):\n",
        "    if lse == lse:\n",
        "plain: logsumexp, float64, one cancelled",
    ),
    "cancelled_rows_beside_others_not_looked_at": (
        "_numba/stages/softmax_finish.py",
        "bound = absolute(base) * splat(NEAR)",
        "bound = splat(0.0)",
        "plain: logsumexp, float32, cancelled",
    ),
    "second_numbers_of_exponentials_forgotten": (
        "_numba/stages/near_zero.py",
        "paired(total, error + (lost + rest))",
        "paired(total, error + lost)",
        "plain: logsumexp, float64, cancelled",
    ),
    "what_coefficients_lack_forgotten": (
        "_numba/machine/exponential.py",
        "(lost + alike(x, INVERSE_RESTS[i]))",
        "lost",
        "plain: logsumexp, float64, cancelled",
    ),
    "products_with_a_scale_rounded": (
        "_numba/stages/near_zero.py",
        "number, rest = times(number, call.rest)",
        "number = number * call.rest",
        "plain: logsumexp, float64, cancelled with scale 0.3",
    ),
    "sums_with_a_mask_rounded": (
        "_numba/stages/near_zero.py",
        "                    rest += lost\n",
        "",
        "plain: logsumexp, float64, cancelled with scale 0.3",
    ),
    "negative_sums_taken_for_positive": (
        "_numba/stages/near_zero.py",
        "lack, rest = 1.0 if is_negative else -1.0, 0.0",
        "lack, rest = -1.0, 0.0",
        "plain: logsumexp, float64, cancelled, b -1",
    ),
    "factors_that_cancel_each_other_not_looked_at": (
        "_numba/stages/near_zero.py",
        "    if factors != 0 and size < 1.0:\n        size = 1.0\n",
        "",
        "plain: logsumexp, float64, b that cancel",
    ),
    "a_piece_forgets_those_before": (
        "_numba/stages/near_zero.py",
        "    total, error = load(wide, sums), load(wide, sums + 8 * LANES)\n",
        "    total, error = zero, zero\n",
        "plain: logsumexp, float32, cancelled in pieces",
    ),
    "rows_of_a_block_share_their_sums": (
        "_numba/stages/near_zero.py",
        "call.near_sums + (place + r) * 2",
        "call.near_sums + place * 2",
        "plain: logsumexp, float64, cancelled in pieces across",
    ),
    "long_rows_near_zero_taken_at_once": (
        "_engine/normalize.py",
        "        record.point(near=near)\n",
        "",
        "tests/stages/test_near_zero.py -k in_pieces",
    ),
    # Factors.
    "factors_of_the_maxima_forgotten": (
        "_numba/stages/weigh.py",
        "select_equal(weight, one, factor, zero)",
        "select_equal(weight, one, splat(one), zero)",
        "plain: logsumexp, b, of a subnormal sum",
    ),
    "sign_of_infinite_terms_lost": (
        "_numba/stages/softmax.py",
        "total += np.inf * factor if score < np.inf else score * factor",
        "total += np.inf * abs(factor) if score < np.inf else score * abs(factor)",
        "plain: logsumexp, b, infinite terms",
    ),
    "factor_of_zero_hides_nothing": (
        "_numba/stages/gather.py",
        "store(scores + offset, select_equal(factor, zero, splat(hidden), score))",
        "store(scores + offset, score)",
        "plain: logsumexp, b, not finite",
    ),
    "factor_of_a_hidden_key_seen": (
        "_numba/stages/gather.py",
        "store(target + offset, select_equal(score, hidden, splat(zero), factor))",
        "store(target + offset, factor)",
        "plain: logsumexp, b, masked",
    ),
    "small_integers_promote_like_large_ones": (
        "_core/reduced.py",
        "dtype = np.result_type(factors.dtype, np.float16)",
        "dtype = np.dtype(np.float64)",
        FACTOR_DTYPES,
    ),
    "rows_with_far_factors_change_the_others": (
        "_core/reduced.py",
        "    beyond = _is_far(factors).any(axis=-1)\n",
        "    beyond = np.full(factors.shape[:-1], _is_far(factors).any())\n",
        "tests/stages/test_logarithms.py -k 'far_factors and reference'",
    ),
}
