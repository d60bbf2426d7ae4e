"""Faults for `test_plain_faults`: of what a compiled kernel shows in silence, if at all."""

from typing import NamedTuple


class SeededFault(NamedTuple):
    """One wrong piece of a file, a case that meets it, and what is said then."""

    name: str
    file: str  # its name, wherever the file is
    original: str
    broken: str
    case: str
    message: str | None  # None: nothing is wrong with memory, but the bits


FAULTS = [
    SeededFault(
        "a_whole_vector_at_the_end_of_a_row",
        "weigh.py",
        "        second = larger(load_first(place + whole * item, keys - whole, hidden), second)",
        "        second = larger(load(tag, place + whole * item), second)",
        "softmax, long, strided out",
        r"reads 64 bytes",
    ),
    SeededFault(
        "a_row_too_far",
        "storage.py",
        "    while i < count:\n        store_scalar(target + i * item, load_as",
        "    while i <= count:\n        store_scalar(target + i * item, load_as",
        "attention, values swapped",
        r"reads 4 bytes .*(out of bounds|of no element)|writes .* out of bounds",
    ),
    SeededFault(
        "a_tail_that_is_one_short",
        "tasks.py",
        "        store_first(place, load(tag, source + whole * item), columns - whole)",
        "        store_first(place, load(tag, source + whole * item), columns - whole - 1)",
        "similarity, dot, float32",
        None,
    ),
    SeededFault(
        "a_tail_that_is_one_long",
        "tasks.py",
        "        store_first(place, load(tag, source + whole * item), columns - whole)",
        "        store_first(place, load(tag, source + whole * item), columns - whole + 1)",
        "similarity, dot, float32",
        r"writes 28 bytes out of bounds",
    ),
    SeededFault(
        "padding_of_values_not_cleared",
        "places.py",
        "    if features % LANES != 0:\n        for row in range(count):",
        "    if features % LANES > 100:\n        for row in range(count):",
        "attention, values swapped",
        r"decides by lanes that were never written",
    ),
    SeededFault(
        "keys_behind_the_last_not_hidden",
        "score.py",
        "    if end < high:\n        first = low",
        "    if end < high - 100:\n        first = low",
        "attention, 1 rows, 70 keys, 9 and 70 features",
        None,
    ),
    SeededFault(
        "a_running_state_not_begun",
        "attention.py",
        "        store_scalar(words + 8 * (RUNNING_MAX * step + r), cast(tag, -np.inf))\n",
        "",
        "attention, documents, none",
        r"decides by a number that was never written",
    ),
    SeededFault(
        "rows_that_do_not_exist_asked_for_NaN",
        "softmax.py",
        "        if any_nan(keep_lanes(doubtful, 0, count, zero)):",
        "        if any_nan(doubtful):",
        "softmax, halves, columns",
        r"decides by lanes that were never written",
    ),
    SeededFault(
        "rows_that_do_not_exist_set_apart",
        "weigh.py",
        "        if lane_max(below) >= cast(tag, 1.0):",
        "        if lane_max(select_above(bound, others, others, zero)) >= cast(tag, 1.0):",
        "logsumexp, halves, columns",
        r"decides by a number that was never written",
    ),
    SeededFault(
        "a_first_step_compared_with_nothing",
        "allocation.py",
        "        if solved and same:",
        "        if same and solved:",
        "allocate, capped",
        r"decides by lanes that were never written",
    ),
    SeededFault(
        "scratch_of_another_worker",
        "tasks.py",
        "    scratch = call.scratch + worker * call.scratch_stride",
        "    scratch = call.scratch",
        "similarity, two workers",
        r"worker 1 writes scratch at_\w+ of worker 0",
    ),
    SeededFault(
        "rows_of_another_task",
        "allocation.py",
        "        stop = min(first + call.task_rows, call.rows)",
        "        stop = min(first + call.task_rows + 1, call.rows)",
        "allocate, plain, 2",
        r"worker \d writes \d+ bytes at \d+ of output, which worker \d wrote",
    ),
    SeededFault(
        "a_part_of_scratch_overrun",
        "pack.py",
        "        for first in range(0, inners, LANES):\n            start = source",
        "        for first in range(0, inners + LANES, LANES):\n            start = source",
        "attention, 4 rows, 64 keys, 9 and 64 features",
        r"out of bounds: .* scratch at_panels",
    ),
    SeededFault(
        "an_operand_written",
        "places.py",
        "        place = target + r * target_stride\n",
        "        place = source\n",
        "varlen, float32, indices int32, 1 workers",
        r"which is only read",
    ),
    SeededFault(
        "a_table_of_strides_of_another_operand",
        "record.py",
        "    strides = call.entry_strides + 8 * operand * call.entry_rank",
        "    strides = call.entry_strides + 8 * (operand + 20) * call.entry_rank",
        "attention, two entries",
        r"reads 8 bytes",
    ),
    SeededFault(
        "an_index_kept_within_less_than_the_table",
        "places.py",
        "    return min(max(index, 0), call.table_rows - 1)",
        "    return min(max(index, 0), call.table_rows - 30)",
        "varlen, float32, indices int32, 1 workers",
        None,
    ),
    SeededFault(
        "a_late_row_stored_too_far",
        "weigh.py",
        "    late = (keys - begin) // LANES * LANES",
        "    late = (keys - begin) // LANES * LANES + LANES",
        "softmax, late, long",
        r"reads 64 bytes out of bounds: .* scratch at_block",
    ),
    SeededFault(
        "logarithms_of_rows_that_do_not_exist",
        "softmax_finish.py",
        "large, small = load_first(parts, count, 1.0), load_first(parts + LANES * 8, count, 0.0)",
        "large, small = load(0.0, parts), load(0.0, parts + LANES * 8)",
        "logsumexp, float16, axis 0",
        r"decides by lanes that were never written",
    ),
    SeededFault(
        "weights_behind_a_row",
        "receivers.py",
        "            rest = load_first(source + whole, (stop - whole) // ITEM, 0.0)",
        "            rest = load(TAG, source + whole)",
        "allocate, plain, 1",
        r"reads 128 bytes out of bounds: .* weights",
    ),
    SeededFault(
        "keys_behind_the_last_copied",
        "decode_small.py",
        "        j = min(first + r, call.keys - 1)",
        "        j = first + r",
        "attention, float16, 1 rows, 70 keys, 8 and 64 features",
        r"reads 8 bytes out of bounds: .* key",
    ),
    SeededFault(
        "two_roundings_for_one",
        "finish.py",
        "    remainder = fma(zero - quotient, total, weighted)",
        "    remainder = weighted - quotient * total",
        "attention, 7 rows, 48 keys, 9 and 48 features",
        None,
    ),
]
