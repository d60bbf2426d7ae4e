"""Faults to seed into how operands are read, and by whom multiplied; entries as in `faults`."""

_WAY = "tests/engine/test_way.py -k {}"

WAY_FAULTS = {
    "the_last_variant_that_fits_is_taken": (
        "_engine/variants.py",
        "for one in VARIANTS if one.name in products",
        "for one in reversed(VARIANTS) if one.name in products",
        _WAY.format("who_goes"),
    ),
    "a_step_of_another_name": (
        "_numba/operands/variant.py",
        'query_element = step("query_element")',
        'query_element = step("panels_stay")',
        "tests/stages/test_similarity.py::test_nothing_between_the_rows_of_a_result_is_written",
    ),
    "the_next_number_of_a_query_scored_again": (
        "_numba/steps/floats.py",
        "    return load_scalar(tag, row + i * item_size(tag))",
        "    return load_scalar(tag, row + (i ^ 1) * item_size(tag))",
        "plain: attention, float32, scale 0.25, cap None",
    ),
    "rests_not_folded_between_tasks": (
        "_numba/stages/fold.py",
        "                if keeping:\n",
        "                if not keeping:\n",
        "plain: attention, split keys, causal, lse",
    ),
    "five_rows_are_few": (
        "_engine/way.py",
        "    lambda one, rows: rows > DECODE_ROWS,",
        "    lambda one, rows: rows > DECODE_ROWS + 1,",
        _WAY.format("who_goes"),
    ),
    "rows_of_tables_taken_for_neighbours": (
        "_engine/way.py",
        "    if one.gathered:\n",
        "    if one.gathered and one.paged:\n",
        _WAY.format("ragged_calls"),
    ),
    "explain_tells_another_way_than_the_record": (
        "_engine/way.py",
        '            "value_way": VALUE_WAYS.index(self.values),',
        '            "value_way": VALUE_WAYS.index("staged"),',
        _WAY.format("that_explain_tells"),
    ),
    "no_room_for_values_that_are_staged": (
        "_engine/way.py",
        '        return self.values != "in place"',
        '        return self.values == "late"',
        _WAY.format("'finds_its_scratch and odd'"),
    ),
    "kernels_go_a_way_of_their_own": (
        "_numba/steps/blocks.py",
        "    elif call.key_way == KEYS_DECODE:",
        "    elif call.task_rows <= 2:",
        _WAY.format("that_explain_tells"),
    ),
    "small_values_read_where_others_lie": (
        "_numba/steps/blocks.py",
        "    if call.value_way == VALUES_DECODE_SMALL:",
        "    if call.value_way >= VALUES_DECODE_SMALL - 1:",
        "plain: attention, float16, 2 rows, 40 keys, 7 and 9 features",
    ),
    "the_last_few_keys_of_a_segment_read_with_those_of_another": (
        "_numba/steps/decode.py",
        "    if j < segment * SEGMENT_KEYS:\n        return -1\n",
        "",
        "plain: attention, 2 rows, 515 keys, 4 and 16 features",
        r"writes \d+ bytes out of bounds: .* at_query",
    ),
    "sixteen_keys_across_two_pages": (
        "_numba/steps/decode.py",
        "j // PAGE_KEYS != last // PAGE_KEYS",
        "j // PAGE_KEYS > last // PAGE_KEYS",
        "plain: cache, float32, 1 rows, (128,), 8 and 16 ",
        r"reads \d+ bytes out of bounds: .* key_pages",
    ),
}
