"""Faults to seed into what the face takes, refuses and says; see `faults`."""

_FOREIGN = "tests/face/test_face_foreign.py"
_LIMITS = "tests/face/test_face_limits.py"
_ADVICE = "tests/face/test_advice.py"

FACE_FAULTS: dict[str, tuple[str, str, str, str]] = {
    "bfloat16_tensors_read_as_integers": (
        "_core/foreign.py",
        "return array.view(bfloat16()) if half else array",
        "return array",
        f"{_FOREIGN} -k bfloat16_tensors_are",
    ),
    "a_sign_kept_apart_is_lost": (
        "_core/foreign.py",
        'if hasattr(x, "is_neg") and x.is_neg():',
        "if False:",
        f"{_FOREIGN} -k never_lost",
    ),
    "what_is_read_only_is_asked_for_the_old_way": (
        "_core/foreign.py",
        "x.__dlpack__(max_version=_VERSION)",
        "x.__dlpack__()",
        f"{_FOREIGN} -k read_only",
    ),
    "the_newer_form_is_read_as_the_older": (
        "_core/foreign.py",
        "_VERSIONED: 32}",
        "_VERSIONED: 0}",
        f"{_FOREIGN} -k bfloat16_tensors_are",
    ),
    "memory_of_other_devices_is_read": (
        "_core/foreign.py",
        "_READABLE = (1, 3, 11, 13)",
        "_READABLE = (1, 2, 3, 10, 11, 13)",
        f"{_FOREIGN} -k other_devices",
    ),
    "unknown_names_pass": (
        "fusion.py",
        "        names.refuse(fuse, unknown)",
        "        pass",
        f"{_FOREIGN} -k 'unknown_names and fuse'",
    ),
    "python_complains_of_what_is_missing_first": (
        "_core/names.py",
        "    written.__defaults__ = (*[MISSING] * len(needed), *(written.__defaults__ or ()))\n",
        "",
        f"{_FOREIGN} -k 'flash_attention'",
    ),
    "the_catch_of_names_is_shown": (
        "_core/names.py",
        "if p.kind is not p.VAR_KEYWORD",
        "if p.name",
        f"{_FOREIGN} -k signatures",
    ),
    "splits_may_leave_rows_out": (
        "_core/ragged.py",
        "if not partial and (splits[0] > 0 or splits[-1] < total):",
        "if not partial and splits[0] > 0:",
        "tests/contract/test_varlen.py -k 'refused and reference and early'",
    ),
    "dims_as_numpy_broadcasts_them": (
        "_core/recipe.py",
        "outer = broadcast_shapes(query[:-3], key[:-3], value[:-3])",
        "outer = np.broadcast_shapes(query[:-3], key[:-3], value[:-3])",
        f"{_LIMITS} -k 'more_dims and reference'",
    ),
    "one_dim_too_many": (
        "_core/arrays.py",
        "MOST_DIMS = 62",
        "MOST_DIMS = 64",
        f"{_LIMITS} -k too_many_dims",
    ),
    "sizes_beyond_the_addresses": (
        "_core/arrays.py",
        "if size > sys.maxsize:",
        "if size < 0:",
        f"{_LIMITS} -k address_space",
    ),
    "zeros_and_ones_judged_by_a_sample": (
        "_core/masks.py",
        "        if not _only_zeros_and_ones(block):",
        "        if False:",
        f"{_LIMITS} -k anywhere",
    ),
    "masks_of_zeros_are_warned_of": (
        "_core/masks.py",
        "    if not has_ones:",
        "    if False:",
        f"{_LIMITS} -k zeros_and_ones_is",
    ),
    "heads_of_a_cache_unchecked": (
        "_core/stored.py",
        "if shape[-3] % heads if heads else shape[-3]:",
        "if heads < 0:",
        f"{_LIMITS} -k about_the_cache",
    ),
    # Advice that does not work.
    "advice_that_numpy_refuses": (
        "_core/arrays.py",
        "`{name}.view(ml_dtypes.bfloat16)`",
        "`{name}.astype(np.float64)`",
        f"{_ADVICE} -k raw",
    ),
    "advice_with_an_axis_too_few": (
        "_core/layouts.py",
        "`np.asarray(mask)[:, None, None, :]`",
        "`np.asarray(mask)[:, None, :]`",
        f"{_ADVICE} -k 'batch and row and keys'",
    ),
    "advice_beside_the_backticks": (
        "_core/layouts.py",
        "`np.asarray(mask)[:, None, None, :]`",
        "np.asarray(mask)[:, None, None, :]",
        f"{_ADVICE} -k backticks",
    ),
    "advice_that_nobody_tried": (
        "similarity.py",
        '{shown}; their "\n            "last axes must match"',
        '{shown}; their "\n            "last axes must match: `query.T`"',
        f"{_ADVICE} -k among_them",
    ),
    "a_hint_that_the_index_does_not_have": (
        "plot/figures.py",
        "`pip install matplotlib`",
        "`pip install fastattn[plot]`",
        f"{_ADVICE} -k Matplotlib",
    ),
    "an_option_that_does_not_help": (
        "batch/unfinished.py",
        "or --overwrite instead of --resume to start",
        "or --overwrite to start",
        f"{_ADVICE} -k less_memory",
    ),
    "a_shortened_window_takes_one_number": (
        "arguments.py",
        'not "--window".startswith(word)',
        'word not in ("--", "--window")',
        "tests/face/test_cli.py -k exponent",
    ),
    "arrays_of_bools_are_numbers": (
        "_core/arrays.py",
        "if given_dtype(x, array) == np.bool_:",
        "if False:",
        "tests/face/test_face_bools.py",
    ),
    "a_bool_in_an_array_is_a_number": (
        "_core/arrays.py",
        'isinstance(x, bool) or str(getattr(x, "dtype", "")) in ("bool", "torch.bool")',
        "isinstance(x, bool)",
        "tests/face/test_face_bools.py",
    ),
    "a_slow_module_is_imported": (
        "_core/masks.py",
        "import os\nimport sys\n",
        "import os\nimport pathlib\nimport sys\n",
        "tests/house/test_walls.py -k first_call",
    ),
    "all_operations_are_imported": (
        "_engine/operations.py",
        "from .launcher import Entry, Launcher\n",
        "from . import shared\nfrom .launcher import Entry, Launcher\n",
        "tests/house/test_walls.py -k first_call",
    ),
    "a_signature_that_checkers_do_not_see": (
        "fusion.py",
        "    reduce: bool = True,\n",
        "    reduce: object = True,\n",
        "tests/typed -k stub",
    ),
    "a_table_of_words_lacks_one": (
        "_core/options.py",
        "get_args(Similarity)\n",
        "get_args(Similarity)[:3]\n",
        "tests/typed -k tables",
    ),
    "a_bool_among_numbers_counts_as_one": (
        "_core/arrays.py",
        "if nested or kinds & {bool, np.bool_} else",
        "if False else",
        "tests/face/test_face_bools.py -k some",
    ),
    "a_strided_out_is_kept_as_if_it_were_not": (
        "_engine/attention.py",
        "record = make_record(problem, plan, in_entries(problem, output, 2))",
        "record = make_record(problem, plan, np.empty(output.shape, output.dtype))",
        "tests/core/test_repeats.py -k attention",
    ),
}
