"""Faults to seed into what masks skip: panels found hidden or shown, and what lies between."""

_UNREAD = "tests/operands/test_hidden_tiles.py -k 'numba and {}'"

MASK_FAULTS = {
    "hidden_panels_scored_all_the_same": (
        "_numba/steps/shown.py",
        "        store_int64(span, SEEN, whole_panels(seen))",
        "        store_int64(span, SEEN, whole_panels(-1))",
        _UNREAD.format("float32-4"),
    ),
    "columns_before_and_behind_scored_all_the_same": (
        "_numba/steps/shown.py",
        "        seen, changed = find_shown(",
        "        seen, changed = (1 << 32) - 1, (1 << 32) - 1\n        found = find_shown(",
        _UNREAD.format("float64-70"),
    ),
    "panels_seen_at_their_end_lost": (
        "_numba/steps/shown.py",
        "    return ((some | some >> 2) & _FIRST_OF_PANELS) * _PANEL",
        "    return (some & _FIRST_OF_PANELS) * _PANEL",
        "plain: attention, tiles, bool",
    ),
    "stretches_that_begin_too_late": (
        "_numba/machine/flags.py",
        "    first = bit + trailing_zeros(word >> bit)",
        "    first = bit + 1 + trailing_zeros(word >> bit)",
        "plain: attention, tiles, two stretches",
    ),
    "sixteens_partly_hidden_count_as_shown": (
        "_numba/steps/shown.py",
        "            changes |= flags != _ALL_LANES",
        "            changes |= flags == 0",
        "plain: attention, tiles, bool",
    ),
    "biases_of_shown_keys_not_added": (
        "_numba/steps/shown.py",
        "            changes = changes or not same_lanes(bias, zero)",
        "            changes = changes or same_lanes(bias, hidden)",
        "plain: attention, tiles, numbers among zeros",
    ),
    "small_biases_not_added": (
        "_numba/steps/shown.py",
        "                changes |= hides or (not hides_only and bias != 0.0)",
        "                changes |= hides",
        "plain: attention, tiles, numbers among zeros by columns",
    ),
    "one_row_of_a_mask_looked_at": (
        "_numba/steps/shown.py",
        "        rows = 1 if call.mask_row == 0 else count",
        "        rows = 1",
        "plain: attention, tiles, bool",
    ),
    "masks_of_later_heads_not_looked_at": (
        "_numba/steps/shown.py",
        "        place = call.entry_mask + head * call.mask_head + i * call.mask_row",
        "        place = call.entry_mask + i * call.mask_row",
        "plain: attention, tiles, padding of grouped heads",
    ),
    "scores_between_panels_left_as_they_are": (
        "_numba/steps/shown.py",
        "            hide_columns(tag, call, rows, skipped, first, scratch)",
        "            hide_columns(tag, call, rows, skipped, first - LANES, scratch)",
        "plain: attention, tiles, few rows",
    ),
    "later_panels_take_the_place_of_earlier": (
        "_numba/steps/normalise.py",
        "                    first > begin,\n",
        "                    first > low,\n",
        "plain: attention, tiles, bool",
    ),
    "later_panels_of_few_halves_take_the_place": (
        "_numba/steps/decode_small.py",
        "keys, first > begin, fetch",
        "keys, first > low, fetch",
        "plain: attention, tiles, float16, 3 rows, 64 columns",
    ),
    "weights_of_hidden_panels_not_written": (
        "_numba/steps/shown.py",
        "        if call.weights:\n",
        "        if call.weights == 1:\n",
        "plain: attention, tiles, bool",
    ),
    "later_runs_of_a_mask_not_asked": (
        "_numba/steps/blocks.py",
        "                if not changed >> stop:",
        "                if changed:",
        "plain: attention, tiles, two stretches",
    ),
}
