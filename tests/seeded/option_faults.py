"""Faults to seed into the way of options from the face to the kernels; see `faults`."""

_OPTIONS = "tests/core/test_options.py"

OPTION_FAULTS: dict[str, tuple[str, str, str, str]] = {
    "options_pass_unchecked": (
        "_core/options.py",
        'spelt.append(f"{name} if {passes} else check_{name}({name})")',
        "spelt.append(name)",
        f"{_OPTIONS} -k 'written_check'",
    ),
    "true_passes_for_a_number": (
        "_core/options.py",
        'f" or {name} is True" * (neutral is False)',
        'f" or {name} is True"',
        f"{_OPTIONS} -k 'written_check'",
    ),
    "a_cache_forgets_the_cap": (
        "cache.py",
        "similarity, scale, causal, window, softcap, True,",
        "similarity, scale, causal, window, None, True,",
        f"{_OPTIONS} -k 'every_form and softcap'",
    ),
    "attention_forgets_sinks": (
        "attention.py",
        "alibi_slopes, sinks\n        )\n    options = spelt(",
        "alibi_slopes, None\n        )\n    options = spelt(",
        f"{_OPTIONS} -k 'every_form and sinks'",
    ),
    "extras_in_another_order": (
        "attention.py",
        "query_offset, key_lengths, query_segments, key_segments, alibi_slopes, sinks\n        )",
        "key_lengths, query_offset, query_segments, key_segments, alibi_slopes, sinks\n        )",
        "tests/face/test_face_calls.py -k per_batch_arrays",
    ),
    "explain_has_a_default_of_its_own": (
        "attention.py",
        "    return_weights: bool = False,\n    out: np.ndarray | None = None,\n"
        "    backend: BackendName | None = None,\n    threads: int | None = None,\n"
        "    **unknown: Never,\n) -> Execution:",
        "    return_weights: bool = True,\n    out: np.ndarray | None = None,\n"
        "    backend: BackendName | None = None,\n    threads: int | None = None,\n"
        "    **unknown: Never,\n) -> Execution:",
        f"{_OPTIONS} -k signatures",
    ),
    "states_of_other_caps_merge": (
        "state.py",
        'if name not in ("scale", "enable_gqa")',
        'if name not in ("scale", "enable_gqa", "softcap")',
        "tests/face/test_face_stage_errors.py -k do_not_belong_together",
    ),
    "ids_of_queries_cut_like_those_of_keys": (
        "_engine/ragged.py",
        "ids = ids[rows if row.kind == QUERY else keys]",
        "ids = ids[keys]",
        "tests/contract/test_varlen_bits.py -k 'long_sequence_among and 40-150-gathered'",
    ),
    "sequences_take_ids_for_heads": (
        "_engine/apart.py",
        "kinds = (HEAD,) if isinstance(place, Packed) else (HEAD, SEQUENCE, QUERY, KEY)",
        "kinds = (HEAD, SEQUENCE, QUERY, KEY)",
        "tests/contract/test_scales.py -k 'ragged_heads and euclidean-True'",
    ),
    "a_job_hands_on_half_of_the_options": (
        "batch/inputs.py",
        "{name: getattr(self.job, name) for name in OPTIONS}",
        "{name: getattr(self.job, name) for name in OPTIONS[::2]}",
        "tests/batch/test_batch_job.py",
    ),
    "negative_numbers_are_options": (
        "arguments.py",
        "_takes_one(words[-1]) and",
        "_takes_one(words[0]) and",
        "tests/face/test_cli.py",
    ),
}
