"""Faults to seed into linear maps and packed weights; as in `faults`."""

_TESTS = "tests/contract/test_linear.py -k '{}'"
_KERNEL = "_numba/stages/linear.py"

LINEAR_FAULTS = {
    "the_first_run_takes_all_features": (
        _KERNEL,
        "        target = sums if run == 0 else scratch + call.at_run\n",
        "        target = sums\n",
        "plain: linear, runs, 7",
    ),
    "stretches_begin_anew": (
        _KERNEL,
        "depth, place, first > run,",
        "depth, place, False,",
        "plain: linear, stretches",
    ),
    "runs_are_chained": (
        _KERNEL,
        "depth, place, first > run,",
        "depth, place, first > 0,",
        "plain: linear, runs, 7",
    ),
    "a_bias_begins_at_the_first_column": (
        _KERNEL,
        "        place = call.bias + first_column * call.bias_step\n",
        "        place = call.bias\n",
        "plain: linear, tasks",
    ),
    "the_last_panel_is_read_where_it_lies": (
        _KERNEL,
        "call.weight_way == WEIGHTS_DECODE and columns - column >= PANEL_KEYS",
        "call.weight_way == WEIGHTS_DECODE and columns - column >= 1",
        "plain: linear, float32, 3",
    ),
    "halves_in_panels_are_read_as_floats": (
        _KERNEL,
        "        if call.weight_code == native_code(tag):\n",
        "        if call.weight_code >= native_code(tag):\n",
        "plain: linear, float16, 7, packed",
    ),
    "panels_begin_at_their_first_feature": (
        _KERNEL,
        "(column // PANEL_KEYS * call.depth + first) * line",
        "(column // PANEL_KEYS * call.depth) * line",
        "plain: linear, stretches, packed",
    ),
    "rows_read_in_place_are_chained_in_stretches": (
        "_engine/linear.py",
        "    elif way == WEIGHTS_DECODE or (way == WEIGHTS_IN_PANELS and rows <= TILE_ROWS):\n",
        "    elif way == WEIGHTS_IN_PANELS and rows <= TILE_ROWS:\n",
        _TESTS.format("itself_alone and float32"),
    ),
    "tasks_are_as_long_as_features_are_many": (
        "_engine/linear.py",
        "task_rows * task_columns * depth > _TASK_PRODUCTS",
        "False",
        "tests/engine/test_linear_tasks.py",
    ),
    "packed_weights_are_told_apart_by_their_panels": (
        "linear.py",
        '    options = "linear", backends.choose(backend), outputs\n',
        '    options = "linear", backends.choose(backend), outputs is None\n',
        _TESTS.format("told_apart"),
    ),
    "a_packed_weight_can_be_written_to": (
        "linear.py",
        "    panels.flags.writeable = False\n",
        "",
        _TESTS.format("a_copy_and_stays"),
    ),
    "rows_that_lie_apart_are_not_copied": (
        "_engine/linear.py",
        "if weight.size < _WORTH_A_COPY or",
        "if True or",
        "tests/engine/test_linear_tasks.py -k apart",
    ),
}
