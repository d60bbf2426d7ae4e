"""Faults to seed in the key-value cache and in small dtypes; entries as in `faults`."""

_CACHE = "tests/face/test_cache_kv.py::test_"
PAGES = _CACHE + "lengths_around_pages_and_segments[numba-129-float32]"
_ENVIRONMENT = "tests/contract/test_environment.py::test_"
_HALF_WORDS = "tests/machine/test_half_words.py -k "
INT8_PAGES = _CACHE + "lengths_around_pages_and_segments[numba-129-int8]"
BEAMS = _CACHE + "beams[numba-float32]"
INT8_BEAMS = _CACHE + "beams[numba-int8]"
PAGES_GUARD = (
    "tests/operands/test_cache_guard_pages.py::"
    "test_nothing_outside_the_keys_is_read[numba-{}-edges]"
)
REJECTED = _CACHE + "rejected_tokens_are_gone[numba-129-float32]"
# Refused before any kernel is looked for: the reference, which compiles nothing, shows it.
CACHE_REFUSED = _CACHE + "what_does_not_fit_is_refused_and_changes_nothing -k "

_SERVING = "tests/face/test_cache_serving.py::test_"
_HISTORY = _SERVING + "any_history_of_a_server[numba-float32]"

_STEPS = "tests/engine/test_steps.py::test_"
_HALVES = "tests/contract/test_halves.py::test_"
TIES = _HALVES + "ties_go_to_even[numba-bfloat16]"
EVERY_FLOAT16 = _HALVES + "every_number_comes_back[numba-float16]"
HALVES_GUARD = (
    "tests/operands/test_varlen_guard_pages.py::test_nothing_outside_the_arrays_is_touched"
    "[numba-float16-packed-edges]"
)

HALVES_GUARD_ALONE = (
    "tests/operands/test_guard_pages.py::"
    "test_nothing_outside_the_arrays_is_touched[numba-float16-edges]"
)
_FEW = "tests/operands/test_decode_small.py::test_"
FEW_CACHES = _FEW + "caches[numba-{}-{}]"
FEW_SIZES = _FEW + "sizes[numba-{}-{}]"

CACHE_FAULTS = {
    # Pages.
    "page_begins_one_key_late": (
        "_numba/operands/places.py",
        "load_int64(pages, j // PAGE_KEYS) + j % PAGE_KEYS * row_stride",
        "load_int64(pages, max(j - 1, 0) // PAGE_KEYS) + j % PAGE_KEYS * row_stride",
        "plain: cache, int8, 1 rows, (130,), 20 and 16 ",
    ),
    "panel_from_pages_read_in_whole_vectors": (
        "_numba/operands/places.py",
        "whole = keys // LANES * LANES",
        "whole = (keys + LANES - 1) // LANES * LANES",
        "plain: attention, strided out, float16",
    ),
    "int8_scale_of_the_token_before": (
        "_numba/operands/places.py",
        "            scale += 4\n",
        "            scale += 4 * min(r, 1)\n",
        "plain: cache, int8, 1 rows, (130,), 20 and 16 ",
    ),
    "int8_scales_of_the_first_sixteen": (
        "_numba/machine/storage.py",
        "scale = scales + 4 * first",
        "scale = scales",
        "plain: cache, int8, 1 rows, (130,), 20 and 16 ",
    ),
    "int8_scales_of_the_first_head": (
        "_core/pages.py",
        'key_scale=addresses("key_scale")',
        'key_scale=np.repeat(addresses("key_scale")[..., :1, :], self.heads, -2)',
        INT8_PAGES,
    ),
    "int8_cut_off": (
        "_core/pages.py",
        "np.rint(x / safe)",
        "np.trunc(x / safe)",
        _CACHE + "int8_error_is_the_stated_one[reference]",
    ),
    "shared_page_written_in_place": (
        "_core/pages.py",
        "shared[shared] = self._uses[held[shared]] > 1",
        "shared[shared] = False",
        BEAMS,
    ),
    "copied_page_without_its_scales": (
        "_core/pages.py",
        "zip(self._chunks[one], self._chunks[other], strict=True)",
        "zip(self._chunks[one][:2], self._chunks[other][:2], strict=True)",
        INT8_BEAMS,
    ),
    "reorder_keeps_the_lengths": (
        "_core/pages.py",
        "        self.lengths = np.where(new, 0, lengths[sources])\n",
        "",
        BEAMS,
    ),
    "kept_addresses_outlive_a_reorder": (
        "_core/pages.py",
        "found[0] is not held or ",
        "",
        BEAMS,
    ),
    "truncate_drops_the_last_page": (
        "_core/pages.py",
        "kept = -(-lengths // PAGE_KEYS)",
        "kept = lengths // PAGE_KEYS",
        REJECTED,
    ),
    "truncate_keeps_a_page": (
        "_core/pages.py",
        "kept = -(-lengths // PAGE_KEYS)",
        "kept = lengths // PAGE_KEYS + 1",
        _CACHE + "pages_of_rejected_tokens_are_used_again[reference-lengths0]",
    ),
    "spare_room_outlives_a_reorder": (
        "_core/pages.py",
        "self._spare, self._tails = 0, None\n        new = sources",
        "new = sources",
        _STEPS + "writing_nothing_does_not_end_sharing[numba-1]",
    ),
    "interrupted_append_keeps_its_room": (
        "_core/pages.py",
        "            self._spare -= new  # first: an interrupt in between then leaves too little\n"
        "            self.lengths = self.lengths + new\n",
        "            self.lengths = self.lengths + new\n            self._spare -= new\n",
        "tests/engine/test_steps.py -k interrupted_change",
    ),
    "page_without_tokens_held": (
        "_core/pages.py",
        "same_page & (lengths % PAGE_KEYS > 0)",
        "same_page",
        _CACHE + "pages_of_rejected_tokens_are_used_again[reference-lengths1]",
    ),
    "tokens_go_on_in_the_page_before": (
        "_core/pages.py",
        "            self._tails = None\n",
        "",
        _CACHE + "any_history[numba-float32]",
    ),
    "copies_attend_to_the_pages_of_the_first": (
        "_core/pages.py",
        '"_found": None, "_tails"',
        '"_tails"',
        "tests/face/test_cache_copies.py::test_copies_go_their_own_way -k 'numba and float32'",
    ),
    # Sequences that come and go, pages that are given back.
    "new_sequences_hold_pages_of_others": (
        "_core/pages.py",
        "np.where(new[:, None], -1, held[sources])",
        "held[sources]",
        _SERVING + "finished_sequences_leave_their_memory_to_others[reference]",
    ),
    "a_page_more_is_given_back": (
        "_core/pages.py",
        "gone = np.maximum(positions, 0) // PAGE_KEYS",
        "gone = -(-np.maximum(positions, 0) // PAGE_KEYS)",
        _SERVING + "what_a_window_hides_is_given_back[numba-float32]",
    ),
    "queries_before_the_last_lose_their_window": (
        "_core/pages.py",
        "stop - max(new, 1) - self.window",
        "stop - 1 - self.window",
        _SERVING + "what_a_window_hides_is_given_back[numba-float32]",
    ),
    "what_was_given_back_is_forgotten_by_those_who_go_on": (
        "_core/pages.py",
        "self.dropped = np.where(new, 0, self.dropped[sources])",
        "self.dropped = None",
        _HISTORY,
    ),
    "pages_moved_together_lose_their_order": (
        "_core/pages.py",
        "np.searchsorted(used, self._pages)",
        "len(used) - 1 - np.searchsorted(used, self._pages)",
        _SERVING + "a_long_text_is_freed_by_the_first_token_behind_it[numba]",
    ),
    "memory_of_a_long_text_kept": (
        "_core/pages.py",
        "        if self.window is not None:\n            self._free()\n",
        "",
        _SERVING + "a_long_text_is_freed_by_the_first_token_behind_it[reference]",
    ),
    "pages_wait_for_the_end_of_one": (
        "_core/pages.py",
        " and self._fresh > 0",
        "",
        _SERVING + "a_long_text_is_freed_by_the_first_token_behind_it[reference]",
    ),
    "failed_append_gives_back": (
        "_core/pages.py",
        "                self._pages, self.dropped = before\n",
        "",
        _SERVING + "no_memory_leaves_the_sequences_as_they_were[reference]",
    ),
    "the_first_row_alone_is_asked_what_it_sees": (
        "_core/stored.py",
        "np.minimum(gone + before - offset, rows)",
        "np.minimum(gone + before - offset, 1)",
        _SERVING + "what_was_given_back_is_not_attended_to -k reference",
    ),
    "windows_to_the_right_see_no_key_behind": (
        "_core/stored.py",
        "np.maximum(-offset - behind, 0)",
        "np.maximum(-offset, 0)",
        _SERVING + "what_was_given_back_is_not_attended_to -k reference",
    ),
    "the_window_of_a_cache_is_forgotten": (
        "cache.py",
        "window = self.window if window is None else window",
        "window = window",
        _SERVING + "what_a_window_hides_is_given_back[reference-float32]",
    ),
    # Steps of a decoder, planned once a page.
    "step_with_the_offsets_of_its_plan": (
        "_core/steps.py",
        "= lengths - made.rows\n",
        "= lengths * 0\n",
        _STEPS + "growing[numba-plain-float32]",
    ),
    "steps_of_all_kinds_of_storage_alike": (
        "cache.py",
        "options, self.dtype, wanted",
        "options, wanted",
        _STEPS + "any_history_of_several_caches[numba]",
    ),
    "step_keeps_the_sinks_of_its_plan": (
        "_engine/template.py",
        "for name, array in extras.items()}",
        'for name, array in extras.items() if name != "sinks"}',
        _STEPS + "slopes_and_sinks_are_those_of_the_step[numba]",
    ),
    "steps_that_may_be_ambiguous_kept": (
        "_core/steps.py",
        "or options[_CAUSAL] is True",
        "or False",
        _STEPS + "what_is_as_long_as_the_keys_is_planned_each_time[numba]",
    ),
    # Small dtypes.
    "bfloat16_cut_off": (
        "_numba/machine/storage.py",
        "rounded = builder.add(builder.add(bits, wide(0x7FFF)), odd)",
        "rounded = bits",
        TIES,
    ),
    "bfloat16_ties_away_from_zero": (
        "_numba/machine/storage.py",
        "rounded = builder.add(builder.add(bits, wide(0x7FFF)), odd)",
        "rounded = builder.add(bits, wide(0x8000))",
        TIES,
    ),
    "bfloat16_nan_rounded_like_a_number": (
        "_numba/machine/storage.py",
        "chosen = builder.select(is_nan, quiet, rounded)",
        "chosen = rounded",
        _HALVES + "nan_of_any_payload_stays_nan -k numba-bfloat16",
    ),
    "float16_infinity_saturated": (
        "_numba/machine/storage.py",
        "    if code == HALF:\n        return halves_rounded(builder, floats)",
        "    if code == HALF:\n"
        "        largest = splat_ir(builder, ir.FloatType()(65504.0))\n"
        '        above = builder.fcmp_ordered(">", floats, largest)\n'
        "        floats = builder.select(above, largest, floats)\n"
        "        return halves_rounded(builder, floats)",
        EVERY_FLOAT16,
    ),
    "halves_rounded_up_in_integers": (
        "_numba/machine/emit.py",
        "builder.add(odd, number(0xFFF))",
        "builder.add(odd, number(0x1000))",
        _HALF_WORDS + "rounded",
    ),
    "subnormal_halves_widened_as_normal_ones": (
        "_numba/machine/emit.py",
        'builder.icmp_signed("<", magnitude, number(0x400)), small, normal',
        'builder.icmp_signed("<", magnitude, number(0x1)), small, normal',
        _HALF_WORDS + "widened",
    ),
    "int8_products_in_the_type_of_the_query": (
        "_numba/machine/storage.py",
        "product = load_as(np.float32(0), INT8, source + i) * scale",
        "product = load_as(tag, INT8, source + i) * cast(tag, scale)",
        _CACHE + "queries_of_any_dtype_see_what_dense_shows[numba-int8-float64]",
    ),
    "the_callers_errors_are_raised": (
        "_core/environment.py",
        'np.errstate(all="ignore")',
        'np.errstate(under="ignore")',
        _ENVIRONMENT + "neither_flushing_to_zero_nor_raising_changes_a_call -k float16-huge",
    ),
    "flushing_to_zero_goes_on": (
        "_core/environment.py",
        "self._library = None if _is_default() else _library()",
        "self._library = None",
        _ENVIRONMENT + "neither_flushing_to_zero_nor_raising_changes_a_call -k float32-small",
    ),
    "flushing_without_zeros_for_subnormals_goes_unnoticed": (
        "_core/environment.py",
        "_SMALLEST_NORMAL * _HALF != 0.0",
        "_SMALLEST_NORMAL * _ONE != 0.0",
        _ENVIRONMENT + "an_environment_is_given_back",
    ),
    "the_callers_environment_is_lost": (
        "_core/environment.py",
        "            self._library.fesetenv(self._saved)\n",
        "            pass\n",
        _ENVIRONMENT + "an_environment_is_given_back",
    ),
    "halves_of_a_word_swapped": (
        "_numba/machine/storage.py",
        "for half in (low, high)]",
        "for half in (high, low)]",
        "tests/stages/test_halves_stages.py -k 'test_stages and numba and bfloat16'",
    ),
    "last_features_of_halves_overrun": (
        "_numba/machine/storage.py",
        "feature = min(feature, features - step)",
        "feature = min(feature, features)",
        "plain: similarity, dot, float16",
    ),
    "rounded_row_overruns": (
        "_numba/machine/storage.py",
        "    whole = count // LANES * LANES\n    i = 0\n    if code == native_code(tag):",
        "    whole = (count + LANES - 1) // LANES * LANES\n    i = 0\n"
        "    if code == native_code(tag):",
        "plain: attention, float16, 2 rows, 40 keys, 7 and 9 features",
    ),
    # Few rows, against what lies in storage.
    "few_rows_take_odd_columns_for_even": (
        "_numba/machine/tile_small.py",
        "for lane in (i, LANES + i)]",
        "for lane in (LANES + i, i)]",
        FEW_SIZES.format("bfloat16", 1),
    ),
    "few_rows_score_with_the_scales_of_the_first_sixteen": (
        "_numba/machine/tile_small.py",
        "I64(4 * LANES * group)) for group in range(2))\n    scales",
        "I64(0 * LANES * group)) for group in range(2))\n    scales",
        FEW_CACHES.format("int8", 4),
    ),
    "few_rows_lose_bits_of_tiny_scales": (
        "_numba/machine/tile_small.py",
        "[2.0**-102] * LANES",
        "[0.0] * LANES",
        _FEW + "tiny_scales[numba-4]",
    ),
    "few_rows_fuse_with_the_scale_of_the_neighbour": (
        "_numba/machine/tile_small.py",
        "place = builder.add(scales, offset)",
        "place = builder.add(scales, builder.and_(offset, I64(-8)))",
        FEW_CACHES.format("int8", 1),
    ),
    "few_rows_read_behind_the_last_key": (
        "_numba/steps/decode_small.py",
        "if j + GROUP_KEYS > call.keys:\n        source",
        "if j + GROUP_KEYS > call.keys + LANES:\n        source",
        HALVES_GUARD_ALONE,
    ),
    "few_rows_read_scales_behind_the_last_key": (
        "_numba/steps/decode_small.py",
        "            scales = source + GROUP_KEYS * size\n",
        "            scales += 0\n",
        PAGES_GUARD.format("int8"),
    ),
    "few_rows_lose_the_last_key": (
        "_numba/operands/places.py",
        "j = min(first + r, call.keys - 1)",
        "j = min(first + r, max(call.keys - 2, 0))",
        "plain: attention, halves in rows apart",
    ),
    "few_rows_fuse_in_chains_of_a_page_and_a_step": (
        "_numba/steps/decode_small.py",
        "keys = min(high, (first // FUSE_KEYS + 1) * FUSE_KEYS) - first",
        "keys = min(high, (first // FUSE_KEYS + 1) * FUSE_KEYS + GROUP_KEYS) - first",
        "plain: cache, int8, 1 rows, (140, 3), 16 and 64 ",
    ),
    # What is refused.
    "truncate_beyond_let_through": (
        "cache.py",
        "np.flatnonzero(found > self._table.lengths)",
        "np.flatnonzero(found > self._table.longest)",
        CACHE_REFUSED + "'reference and truncate'",
    ),
    "reorder_beyond_let_through": (
        "_core/stored.py",
        "| (found >= entries)",
        "| (found > entries)",
        CACHE_REFUSED + "'reference and reorder'",
    ),
    "int8_nan_let_through": (
        "_core/stored.py",
        "not float(np.abs(array).max(initial=0)) <= _LARGEST",
        "float(np.abs(array).max(initial=0)) > _LARGEST",
        _CACHE + "int8_refuses_what_it_cannot_hold -k reference",
    ),
}
