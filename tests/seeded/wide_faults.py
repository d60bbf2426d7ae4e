"""Faults to seed into sums over features, norms and cosines."""

_SUMS = "tests/contract/test_wide.py::test_{} -k numba"
_ONE_SIGN = _SUMS.format("sums_of_one_sign_keep_their_digits")
_SQUARES = _SUMS.format("squares_of_a_million_equal_differences")
_WAYS = _SUMS.format("every_way_to_a_score_sums_alike")
_SAME = (
    "tests/stages/test_similarity.py::test_bits_depend_on_one_query_and_one_key"
    " -k 'float32 and 300'"
)
_SYMMETRY = _SUMS.format("similarity_of_a_set_with_itself_is_symmetric")

WIDE_FAULTS = {
    "features_in_one_chain": (
        "_core/constants.py",
        "FEATURE_CHAIN = 64",
        "FEATURE_CHAIN = 1 << 40",
        _ONE_SIGN,
    ),
    "squares_in_long_chains": (
        "_core/constants.py",
        "SQUARE_CHAIN = 16",
        "SQUARE_CHAIN = 128",
        _ONE_SIGN,
    ),
    "runs_forget_what_their_sums_lose": (
        "_numba/machine/sums.py",
        "        error = error + lost\n",
        "",
        "plain: attention, very wide, in place",
    ),
    "infinite_sums_are_settled_as_nan": (
        "_numba/machine/sums.py",
        "    return unless_nan(total + error, total)",
        "    return total + error",
        _SUMS.format("what_overflows_is_infinite_and_nan_is_nan"),
    ),
    "few_rows_of_halves_cut_elsewhere": (
        "_numba/machine/tile_small.py",
        "I64(FEATURE_CHAIN * (4 if code == PAIRS else item_of(code)))",
        "I64(FEATURE_CHAIN * 4)",
        _WAYS,
    ),
    "chains_of_values_as_short_as_those_of_features": (
        "_numba/machine/tile.py",
        "_border(builder, begin[0], chain_length, depth)",
        "_border(builder, begin[0], I64(FEATURE_CHAIN), depth)",
        _WAYS,
    ),
    "few_rows_cut_elsewhere": (
        "_numba/machine/tile.py",
        "FEATURE_CHAIN * item), width)",
        "2 * FEATURE_CHAIN * item), width)",
        _WAYS,
    ),
    "squares_of_keys_in_one_chain": (
        "_numba/operands/pack.py",
        "        chain = chains + e % LANES * size",
        "        chain = chains",
        "plain: similarity cosine, float64 small",
    ),
    "cosines_of_similarity_beyond_one": (
        "_numba/stages/similarity.py",
        "            if call.metric == COSINE:\n",
        "            if call.metric < 0:\n",
        "plain: similarity, cosines of a set with itself",
    ),
    "cosines_of_whole_panels_beyond_one": (
        "_numba/stages/similarity.py",
        "        most = abs(largest_cosine(tag, factors))",
        "        most = cast(tag, np.inf)",
        "plain: similarity, cosines of a set with itself",
    ),
    "chains_of_final_scores_forgotten": (
        "_numba/machine/tile.py",
        "_merged(builder, adding, linked, lambda: _added(builder, room, linked))",
        "linked",
        _SAME,
    ),
    "groups_of_rows_overlap": (
        "_numba/machine/tile.py",
        "below = [builder.mul(stride, I64(rows)) for",
        "below = [builder.mul(stride, I64(rows - 1)) for",
        _SAME,
    ),
    "cosines_of_attention_beyond_one": (
        "_numba/steps/blocks.py",
        "        if call.metric == COSINE:\n",
        "        if False:\n",
        "plain: attention, cosines of a set with itself, 1.0",
    ),
    "cosines_clamped_beside_their_power_of_two": (
        "_numba/steps/score.py",
        "    return cast(tag, factors.query_first) * cast(tag, factors.query_second)",
        "    return cast(tag, 1.0)",
        "plain: similarity, streamed",
    ),
}
