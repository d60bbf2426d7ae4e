"""Faults to seed into the multi-head module, the pictures and examples; entries as in `faults`."""

_MODULE, _PLOT = "tests/face/test_multihead.py", "tests/plot/test_plot.py"
_MODELS = "tests/face/test_multihead_models.py"
_EXAMPLES = "tests/examples/test_examples.py"

MODULE_FAULTS = {
    "keys_take_the_weights_of_values": (
        "projections.py",
        "result = maps.map(part, rows",
        'result = maps.map("value" if part == "key" else part, rows',
        f"{_MODULE} -k kept_answers",
    ),
    "the_added_key_of_zeros_scores_one": (
        "projections.py",
        "scores.append(np.zeros_like(lse))",
        "scores.append(np.ones_like(lse))",
        f"{_MODULE} -k kept_answers",
    ),
    "mean_of_heads_is_their_sum": (
        "projections.py",
        "    total /= heads\n",
        "",
        f"{_MODULE} -k kept_answers",
    ),
    "numbers_per_sequence_count_as_per_head": (
        "projections.py",
        "return array[..., None]",
        "return array[None]",
        f"{_MODULE} -k broadcast",
    ),
    "halves_are_written_unrounded": (
        "projections.py",
        "direct = target if result_dtype == dtype else None",
        "direct = target",
        f"{_MODULE} -k stored_where_asked",
    ),
    "biases_stand_in_the_wrong_rows": (
        "parameters.py",
        'part: fitting(f"{part}_bias", len(weights[part]))',
        'part: found[f"{part}_bias"]',
        "tests/face/test_multihead_weights.py -k named",
    ),
    "heads_of_keys_are_not_shared": (
        "projections.py",
        "*heads, enable_gqa=grouped,",
        "*heads, enable_gqa=False,",
        f"{_MODELS} -k llama",
    ),
    "llamas_weights_pass_without_rotation": (
        "parameters.py",
        '("rotary_emb.",), rotary=True)',
        '("rotary_emb.",))',
        f"{_MODELS} -k rotat",
    ),
    "a_module_with_lengths_first_is_taken_as_another": (
        "parameters.py",
        "module.add_zero_attn, module.batch_first",
        "module.add_zero_attn, True",
        f"{_MODELS} -k from_module",
    ),
    "hidden_weights_count_in_blocks": (
        "plot/blocks.py",
        "part = np.where(seen, part, 0.0)",
        "pass",
        f"{_PLOT} -k means_of_visible",
    ),
    "hatching_ignores_the_blocks": (
        "plot/heatmap.py",
        "first * block.columns - 0.5, last * block.columns - 0.5",
        "first - 0.5, last - 0.5",
        f"{_PLOT} -k stand_where",
    ),
    "small_weights_pass_for_hidden": (
        "plot/attention.py",
        '"softcap", "alibi_slopes", "sinks"',
        '"softcap", "alibi_slopes"',
        f"{_PLOT} -k not_small_weights",
    ),
    "bars_are_sorted_and_their_caps_are_not": (
        "plot/bars.py",
        "vector_means(values[order], block) for values in",
        "vector_means(values, block) for values in",
        f"{_PLOT} -k sorted",
    ),
    "pictures_have_their_name_at_once": (
        "batch/folders.py",
        'os.O_TMPFILE | os.O_CLOEXEC\n            descriptor = os.open(".",',
        "os.O_CREAT | os.O_CLOEXEC\n            descriptor = os.open(spare,",
        "tests/plot/test_plot_files.py -k killed",
    ),
    "monotonic_attention_goes_back": (
        "examples/speech.py",
        "now = np.maximum(now, ahead[:, 0, 0])",
        "now = ahead[:, 0, 0]",
        f"{_EXAMPLES} -k never_goes_back",
    ),
    "ties_count_for_the_recommender": (
        "examples/recommender.py",
        "scores[:, 1:] >= scores",
        "scores[:, 1:] > scores",
        f"{_EXAMPLES} -k ties_count",
    ),
    "hours_beyond_a_review_count": (
        "examples/tickets.py",
        "np.minimum(hours, today.needed) for",
        "hours for",
        f"{_EXAMPLES} -k tickets",
    ),
}
