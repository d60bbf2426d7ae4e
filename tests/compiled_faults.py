"""Faults to seed into the compiled path: kernels in C, threads, the choice of backend."""

_CITIZEN = "tests/test_compiled.py"
_DIGEST = f"{_CITIZEN}::test_both_compilers_give_the_same_bits"
_LEVELS = f"{_CITIZEN}::test_every_level_of_this_cpu_has_the_same_bits"
_GUARDS = "tests/test_guard_pages.py -k float32"
_HIDDEN = "tests/test_edges.py::test_hidden_contents_never_reach_the_result -k cython"
_PAIRS = "tests/test_bfloat16_dot.py -k 'these_tests or {}'"
_FORKS = f"{_CITIZEN} -k forked"

COMPILED_FAULTS = {
    "compiled_lanes_added_in_another_order": (
        "_cython/vector.h",
        "UNROLL for (int half = PARTS / 2; half >= 1; half /= 2)",
        "UNROLL for (int half = 1; half <= PARTS / 2; half *= 2)",
        _LEVELS,
    ),
    "compiled_product_rounded_twice": (
        "_cython/elementary.h",
        "        total = fused_part(total, x, splat_part(coefficients[i]));",
        "        total = total * x + splat_part(coefficients[i]);",
        _DIGEST,
    ),
    "compiled_fold_forgets_the_correction": (
        "_cython/rows.h",
        "fused(old, wide_keep, times(load(row + offset), wide_gain))",
        "fused(old, wide_keep, load(row + offset))",
        "tests/test_conformance.py::test_single_option -k cython",
    ),
    "compiled_chains_begin_at_the_first_visible_key": (
        "_cython/rows.h",
        "        p.depth = words_of(smaller_of(high, (chunk + 1) * FUSE_KEYS) - first);",
        "        p.depth = words_of(smaller_of(high - first, FUSE_KEYS));",
        "tests/test_bits.py::test_relation -k cython",
    ),
    "compiled_hidden_values_are_not_looked_for": (
        "_cython/attention.h",
        "    if (any_nan_in_row(result, block->rows * width)) {",
        "    if (false && any_nan_in_row(result, block->rows * width)) {",
        _HIDDEN,
    ),
    "compiled_last_panel_read_whole": (
        "_cython/places.h",
        "keys = smaller_of(call->keys - first, PANEL_KEYS);",
        "keys = PANEL_KEYS;",
        _GUARDS,
    ),
    "compiled_last_keys_read_beyond_the_end": (
        "_cython/unpacked.h",
        "        const int64_t j = smaller_of(start + column, call->keys - LANES);",
        "        const int64_t j = start + column;",
        _GUARDS,
    ),
    "compiled_few_rows_lose_bits_of_tiny_scales": (
        "_cython/direct.h",
        "scale < splat_part(0x1p-102f)",
        "scale < splat_part(0)",
        "tests/test_few_rows.py::test_tiny_scales -k cython",
    ),
    "compiled_rows_with_other_ends_taken_for_alike": (
        "_cython/attention.h",
        "exact && range.begin == first.begin && range.end == first.end;",
        "exact && range.begin == first.begin;",
        "tests/test_conformance.py::test_single_option -k cython",
    ),
    "compiled_heads_share_a_slope": (
        "_cython/blocks.h",
        "load_real(call->entry_alibi + head * call->alibi_head)",
        "load_real(call->entry_alibi)",
        "tests/test_biases.py -k cython",
    ),
    "compiled_few_rows_take_second_weights_for_first": (
        "_cython/direct.h",
        "splat_pairs(a + row * a_stride + k * ITEM / FACTORS)",
        "splat_pairs(a + row * a_stride + k * ITEM / FACTORS + 2)",
        _PAIRS.format("sizes"),
    ),
    "compiled_hidden_half_of_a_pair_is_multiplied": (
        "_cython/paired_rows.h",
        "                if (score == HIDDEN) continue;\n",
        "",
        _PAIRS.format("hidden"),
    ),
    "forked_child_counts_on_threads_it_does_not_have": (
        "_cython/pool.h",
        "    pool.started = 0;\n",
        "",
        _FORKS,
    ),
    "float_environment_of_others_kept": (
        "_cython/pool.h",
        "    _mm_setcsr(0x1F80);",
        "    _mm_setcsr(saved);",
        f"{_CITIZEN} -k float_environment",
    ),
    "threads_never_let_go": (
        "_engine/launcher.py",
        "            token.clear()\n",
        "            pass\n",
        f"{_CITIZEN} -k interrupts",
    ),
    "repeated_call_overwrites_its_scratch": (
        "_engine/layouts.py",
        "RECORD_STRIDE = -(-8 * len(ATTENTION.word) // 64) * 64",
        "RECORD_STRIDE = 64",
        f"{_CITIZEN} -k share",
    ),
    "missing_kernels_are_an_error_of_every_call": (
        "_core/backends.py",
        "            _missing[name] = str(error)\n",
        "            raise\n",
        f"{_CITIZEN} -k level_that_is_not_there",
    ),
}
