"""Faults to seed in ragged batches, ALiBi, sinks and documents; entries as in `faults`."""

_BIASES = "tests/contract/test_biases.py::test_"
ALIBI = _BIASES + "alibi_counts_from_the_position_of_the_query -k numba-600"
SINKS = _BIASES + "sinks_of_any_size -k numba"
EMPTY_SINKS = _BIASES + "empty_rows_give_the_sink -k numba"
DOCUMENTS = _BIASES + "documents_with_borders_at_tiles -k numba"
NUMBERS_OF_HEADS = _BIASES + "grouped_heads_have_numbers_of_their_own[numba]"
BIAS_REFUSED = _BIASES + "what_cannot_work_is_refused -k "
REFERENCE_OPTIONS = "tests/reference/test_reference_options.py"

_RAGGED = "tests/contract/test_varlen.py::test_"
ONE_ROW_EACH = _RAGGED + "single_option[numba-one_row_each]"
GATHERED = _RAGGED + "single_option[numba-gathered]"
OFFSETS = _RAGGED + "single_option[numba-causal_offsets]"
OF_NOBODY = _RAGGED + "single_option[numba-rows_of_nobody]"
RAGGED_DOCUMENTS = _RAGGED + "single_option[numba-documents]"
MANY_SEQUENCES = _RAGGED + "more_sequences_than_rows_of_a_plan[numba]"
# Refused before any kernel is looked for: the reference, which compiles nothing, shows it.
REFUSED = _RAGGED + "what_cannot_work_is_refused_before_anything_is_written -k "

_RAGGED_BITS = "tests/contract/test_varlen_bits.py::test_"
LONG_ONE = _RAGGED_BITS + "long_sequence_among_many_short_ones[numba-40-150-causal]"
LONG_GATHERED = _RAGGED_BITS + "long_sequence_among_many_short_ones[numba-40-150-gathered]"
WAVES = _RAGGED_BITS + "beyond_what_is_planned_at_a_time[numba]"

GATHERED_AT_A_PAGE = (
    "tests/operands/test_varlen_guard_pages.py::test_nothing_outside_the_arrays_is_touched"
    "[numba-float32-int32-segment]"
)

RAGGED_FAULTS = {
    # ALiBi.
    "alibi_added": (
        "_numba/steps/score.py",
        "steepness = splat(cast(tag, 0.0) - slope)",
        "steepness = splat(slope)",
        "plain: cache, int8, 2 rows, (40,), 16 and 64 {'alibi_slopes': 0.1, 'sinks': 0.2}",
    ),
    "alibi_distance_signed": (
        "_numba/steps/score.py",
        "away = absolute(splat(cast(tag, distance - column)) - lane_floats(tag))",
        "away = splat(cast(tag, distance - column)) - lane_floats(tag)",
        "plain: attention, alibi_at_offset",
    ),
    "alibi_without_offset": (
        "_numba/steps/blocks.py",
        "position = i + load_int64(call.entry_offsets + head * call.offsets_head, 0)",
        "position = i",
        "plain: cache, int8, 2 rows, (40,), 16 and 64 {'alibi_slopes': 0.1, 'sinks': 0.2}",
    ),
    "alibi_counts_from_each_segment": (
        "_numba/steps/blocks.py",
        "bias_row(tag, row, low, high_padded, position - start, slope)",
        "bias_row(tag, row, low, high_padded, position, slope)",
        "plain: attention, numbers of grouped heads",
    ),
    "alibi_slope_of_the_first_head": (
        "_numba/steps/blocks.py",
        "call.entry_alibi + head * call.alibi_head",
        "call.entry_alibi",
        "plain: attention, numbers of grouped heads",
    ),
    # Sinks.
    "sink_scaled": (
        "_numba/steps/finish.py",
        "sink = load_scalar(tag, place)",
        "sink = load_scalar(tag, place) * cast(tag, scale)",
        "plain: attention, sinks",
    ),
    "sink_folded_twice": (
        "_numba/steps/finish.py",
        "        return row_sum + weight, rest + weight, one\n",
        "        return row_sum + weight + weight, rest + weight + weight, one\n",
        "plain: cache, int8, 2 rows, (40,), 16 and 64 {'alibi_slopes': 0.1, 'sinks': 0.2}",
    ),
    "sink_left_out_of_empty_rows": (
        "_numba/steps/finish.py",
        "if sink != -np.inf:",
        "if sink != -np.inf and row_max != -np.inf:",
        "plain: attention heads, float32 tiny",
    ),
    "maximum_met_by_the_sink_as_it_was_scored": (
        "_numba/steps/finish.py",
        "lead = fma(base, scale, -np.float64(sink))",
        "lead = base - np.float64(sink)",
        "plain: attention, sinks",
    ),
    "sink_of_the_first_head": (
        "_numba/steps/finish.py",
        "operand_offset(call, SINKS, entry_index) + head * call.sinks_head",
        "operand_offset(call, SINKS, entry_index)",
        "plain: attention, numbers of grouped heads",
    ),
    # Documents.
    "documents_not_compared_at_the_tail": (
        "_numba/steps/score.py",
        "for column in range(whole, high):",
        "for column in range(whole, high - 1):",
        "plain: attention, documents per head",
    ),
    "documents_narrowed_by_a_panel_too_many": (
        "_numba/steps/spans.py",
        "high = (high - 1) // PANEL_KEYS * PANEL_KEYS",
        "high = (high - 1) // PANEL_KEYS * PANEL_KEYS - PANEL_KEYS",
        DOCUMENTS,
    ),
    "documents_panel_begins_one_too_late": (
        "_numba/steps/spans.py",
        "low = (low // PANEL_KEYS + 1) * PANEL_KEYS",
        "low = (low // PANEL_KEYS + 2) * PANEL_KEYS",
        "plain: attention, documents, middle",
    ),
    "documents_last_id_of_a_panel_unread": (
        "_numba/steps/spans.py",
        "for j in range(first + 1, stop):",
        "for j in range(first + 1, stop - 1):",
        DOCUMENTS,
    ),
    "documents_of_the_first_sequence": (
        "_numba/operands/heads.py",
        "shared.key_ids + 8 * first_key",
        "shared.key_ids",
        "plain: varlen, options",
    ),
    # Ragged batches.
    "last_query_of_a_sequence_missing": (
        "_numba/operands/heads.py",
        "queries = load_int64(shared.query_splits, sequence + 1) - first_query",
        "queries = load_int64(shared.query_splits, sequence + 1) - first_query - 1",
        "plain: varlen, tables of columns",
    ),
    "last_key_of_a_sequence_missing": (
        "_numba/operands/heads.py",
        "keys = load_int64(shared.key_splits, sequence + 1) - first_key",
        "keys = max(load_int64(shared.key_splits, sequence + 1) - first_key - 1, 0)",
        "plain: varlen, tables of columns",
    ),
    "keys_of_a_sequence_begin_one_late": (
        "_numba/operands/heads.py",
        "shared.key + first_key * shared.key_row",
        "shared.key + min(first_key + 1, shared.keys - keys) * shared.key_row",
        "plain: varlen, many rows, float32",
    ),
    "indices_of_the_first_sequence": (
        "_numba/operands/heads.py",
        "shared.indices + first_key * shared.index_bytes",
        "shared.indices",
        "plain: varlen, tables of columns",
    ),
    "int32_indices_read_as_int64": (
        "_numba/operands/places.py",
        "if call.index_bytes == 4:",
        "if call.index_bytes == 0:",
        "plain: varlen, tables of columns",
    ),
    "gathered_rows_follow_one_another": (
        "_numba/operands/places.py",
        "if r == 0 or call.indices != 0 or j % PAGE_KEYS == 0:",
        "if r == 0 or j % PAGE_KEYS == 0:",
        "plain: varlen, tables of columns",
    ),
    "indices_read_behind_the_list": (
        "_numba/operands/places.py",
        "later = min(later, call.listed - 1)",
        "later += 0",
        "plain: varlen, tables of columns",
    ),
    "offset_of_the_first_sequence": (
        "_numba/operands/heads.py",
        "shared.offsets + 8 * sequence * shared.offsets_step",
        "shared.offsets",
        "plain: varlen, options",
    ),
    "sequence_found_one_too_early": (
        "_numba/operands/heads.py",
        "        if load_int64(shared.first_task, middle) <= task:",
        "        if load_int64(shared.first_task, middle) < task:",
        "plain: varlen, tables of columns",
    ),
    "last_task_in_no_bundle": (
        "_engine/plan_ragged.py",
        "borders = np.unique(np.concatenate([[0], cuts, [tasks]]))",
        "borders = np.unique(np.concatenate([[0], cuts, [tasks - 1]]))",
        ONE_ROW_EACH,
    ),
    "rows_of_nobody_left_as_they_were": (
        "varlen.py",
        "for outside in (slice(None, first), slice(last, None)):",
        "for outside in (slice(None, first),):",
        OF_NOBODY,
    ),
    "overlapping_ragged_out_written_in_place": (
        "varlen.py",
        "inputs = (problem.query, problem.key, problem.value, place.indices)",
        "inputs = (problem.query,)",
        _RAGGED + "out_may_overlap_an_input -k numba",
    ),
    "long_sequence_with_the_offset_of_the_first": (
        "_engine/ragged.py",
        "int(offset[sequence]) if",
        "int(offset[0]) if",
        LONG_ONE,
    ),
    "long_sequence_gathers_what_the_first_does": (
        "_engine/ragged.py",
        "Gathered(indices[keys], key.shape[-2])",
        "Gathered(indices[: keys.stop - keys.start], key.shape[-2])",
        LONG_GATHERED,
    ),
    "long_sequence_of_the_first_wave": (
        "_engine/ragged.py",
        "for sequence in plan.alone + wave.start:",
        "for sequence in plan.alone:",
        WAVES,
    ),
    "offsets_of_the_first_wave": (
        "_engine/ragged.py",
        "np.array(offset[wave] if",
        "np.array(offset[: wave.stop - wave.start] if",
        WAVES,
    ),
    # What is refused.
    "decreasing_splits_let_through": (
        "_core/ragged.py",
        "np.flatnonzero(splits[1:] < splits[:-1])",
        "np.flatnonzero(splits[1:] < 0)",
        REFUSED + "'reference-decreasing'",
    ),
    "splits_beyond_the_keys_let_through": (
        "_core/ragged.py",
        "splits[-1] > total",
        "splits[-1] > total + 1",
        REFUSED + "'reference and beyond'",
    ),
    "index_behind_the_table_let_through": (
        "_core/ragged.py",
        "int(used.max()) < rows",
        "int(used.max()) <= rows",
        REFUSED + "'reference-index'",
    ),
    "negative_index_wraps": (
        "_core/ragged.py",
        "int(used.min()) >= 0",
        "int(used.min()) >= -1",
        REFUSED + "'reference-index'",
    ),
    "one_side_of_the_documents_let_through": (
        "_core/visibility.py",
        "if (query_segments is None) != (key_segments is None):",
        "if query_segments is not None and key_segments is None:",
        BIAS_REFUSED + "'reference and documents'",
    ),
    "infinite_sink_let_through": (
        "_core/arrays.py",
        "wrong &= numbers != -np.inf",
        "wrong &= np.isnan(numbers)",
        BIAS_REFUSED + "'reference and sink'",
    ),
    # The reference.
    "reference_alibi_added": (
        "reference/attention.py",
        "final = final - per_head(alibi_slopes)",
        "final = final + per_head(alibi_slopes)",
        REFERENCE_OPTIONS,
    ),
    "reference_distance_signed": (
        "reference/attention.py",
        "np.abs(position[..., None] - np.arange(keys))",
        "position[..., None] - np.arange(keys)",
        REFERENCE_OPTIONS,
    ),
    "reference_forgets_the_indices": (
        "reference/varlen.py",
        "keys = listed if key_indices is None else np.asarray(key_indices)[listed]",
        "keys = listed",
        REFERENCE_OPTIONS,
    ),
    "reference_offset_of_the_first_sequence": (
        "reference/varlen.py",
        "offsets[sequence]",
        "offsets[0]",
        REFERENCE_OPTIONS,
    ),
}
