"""Faults to seed into vectors, loads and stores, pairs of floats; entries as in `faults`."""

_VECTORS = "tests/machine/test_vectors.py -k this_machine"
_WORDS = "tests/contract/test_bfloat16_dot.py -k numba"

MACHINE_FAULTS = {
    "lanes_added_as_neighbours": (
        "_numba/machine/simd.py",
        "        low = shuffle_ir(builder, vector, vector, range(half))\n"
        "        high = shuffle_ir(builder, vector, vector, range(half, 2 * half))\n",
        "        low = shuffle_ir(builder, vector, vector, range(0, 2 * half, 2))\n"
        "        high = shuffle_ir(builder, vector, vector, range(1, 2 * half, 2))\n",
        _VECTORS,
    ),
    "nan_passed_over_by_the_larger": (
        "_numba/machine/simd.py",
        'return builder.select(builder.fcmp_ordered(">", a, b), a, b)',
        'return builder.select(builder.fcmp_ordered("<", a, b), b, a)',
        _VECTORS,
    ),
    "borders_of_lanes_wrap": (
        "_numba/machine/simd.py",
        '            edge = builder.select(builder.icmp_signed(">", edge, high), high, edge)\n',
        "",
        _VECTORS,
    ),
    "one_lane_too_many_written": (
        "_numba/machine/memory.py",
        'return builder.icmp_signed("<", lane_numbers(element), splat_ir(builder, count))',
        'return builder.icmp_signed("<=", lane_numbers(element), splat_ir(builder, count))',
        _VECTORS,
    ),
    "bytes_are_never_swapped": (
        "_numba/machine/memory.py",
        "    if swapped and size > 1:\n",
        "    if swapped and size > 2:\n",
        _VECTORS,
    ),
    "rows_that_are_not_there_are_read": (
        "_numba/machine/memory.py",
        'builder.select(builder.icmp_signed("<", row, last_row), row, last_row)',
        'builder.select(builder.icmp_signed("<=", row, last_row), row, last_row)\n'
        "                row = ir.Constant(I64, r)",
        _VECTORS,
    ),
    "the_other_half_of_a_word_first": (
        "_numba/machine/bfloat16.py",
        "for row in args[1:])",
        "for row in args[:0:-1])",
        _WORDS,
    ),
    "rests_of_a_sum_lost": (
        "_numba/machine/two_floats.py",
        "return total, (a - (total - other)) + (b - other)",
        "return total, (a - (total - other)) - (b - other)",
        "plain: allocate, far theta, 1e-09",
    ),
    "last_sixteen_of_a_line_begin_late": (
        "_numba/machine/halves.py",
        "LANES, target + last * item_size(tag))",
        "LANES, target + whole * item_size(tag))",
        "plain: softmax, float16, axis 0",
    ),
    "last_chain_of_a_segment_forgotten": (
        "_numba/stages/fuse.py",
        "    for first in range(0, keys, FUSE_KEYS):",
        "    for first in range(0, max(keys - FUSE_KEYS, 1), FUSE_KEYS):",
        "plain: fuse, segments",
    ),
    "halves_converted_by_functions_that_are_not_there": (
        "_numba/machine/emit.py",
        'CONVERTS_HALVES = "+f16c" in _features() or',
        "CONVERTS_HALVES = True or",
        "tests/compiler/test_cpu_names.py",
    ),
}
