"""Faults to seed into bfloat16 multiplied as it is; entries as in `faults`."""

_DOT = "tests/contract/test_bfloat16_dot.py -k 'these_tests or {}'"

PAIR_FAULTS = {
    "pairs_keep_the_sum_of_rounded_weights": (
        "_numba/steps/bfloat16_pairs.py",
        "store(place, load(tag, place) * factor)",
        "store(place, load(tag, place))",
        "plain: attention, pairs, 1 rows, 70 keys, 8 and 64 features",
    ),
    "pairs_lose_the_last_key_of_an_odd_number": (
        "_numba/steps/bfloat16_pairs.py",
        "(keys + 1) // 2, FUSE_KEYS, count, first > begin, False,",
        "max(keys // 2, 1), FUSE_KEYS, count, first > begin, False,",
        "plain: attention, pairs, 2 rows, 41 keys, 7 and 9 features",
    ),
    "pairs_leave_the_bytes_of_others_as_they_lie": (
        "_numba/steps/bfloat16_pairs.py",
        "store_scalar(target + 1, load_scalar(BYTE, source))",
        "store_scalar(target + 1, load_scalar(BYTE, source + 1))",
        "plain: attention, pairs, swapped",
    ),
    "pairs_take_a_hidden_half": (
        "_numba/steps/bfloat16_pairs.py",
        "wide, lowest), taken | _SECOND",
        "wide, lowest), 0xFFFFFFFF",
        "plain: attention, pairs, hidden inf, 20",
    ),
    "pairs_round_queries_as_they_scale_them": (
        "_numba/steps/bfloat16_pairs.py",
        "        exact &= same_lanes(rounded(scaled), scaled)\n",
        "",
        _DOT.format("cancel"),
    ),
    "few_rows_of_pairs_read_behind_the_last_key": (
        "_numba/machine/tile_small.py",
        "builder.add(b_row, builder.select(is_pair, b_stride, I64(0)))\n"
        "    values = _value_pairs(builder, b_row, second, is_pair)",
        "builder.add(b_row, b_stride)\n"
        "    values = _value_pairs(builder, b_row, second, ir.Constant(ir.IntType(1), 1))",
        _DOT.format("(outside and numba)"),
    ),
    "few_rows_of_pairs_take_the_first_half_twice": (
        "_numba/machine/tile_small.py",
        "        y = builder.select(is_pair, y, none)\n",
        "        y = builder.select(is_pair, x, none)\n",
        _DOT.format("sizes"),
    ),
    "pairs_of_cosines": (
        "_engine/bfloat16.py",
        'not in ("dot", "scaled_dot")',
        'not in ("dot", "scaled_dot", "cosine")',
        _DOT.format("options_decide"),
    ),
    "switch_ignored_where_pairs_are_faster": (
        "_engine/bfloat16.py",
        'able and asked != "0" and (asked == "1" or _is_faster())',
        'able and (asked == "1" or _is_faster())',
        "tests/contract/test_bfloat16_dot.py -k who_takes",
    ),
}
