"""Tiles for few rows that read keys and values of a small storage type where they lie.

Many rows share the work of staging: keys widened and transposed once, then read by all. With few
rows that work is most of the time, and storing its result and loading it again the rest of it.
Here sixteen keys are transposed in registers, as 32-bit words that hold two halves or four int8
each, taken apart into features and multiplied at once; values are widened as they are loaded. Each
element of a result is the same chain of fused multiply-adds as in `tile`.
"""

from itertools import islice

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastattn._core.constants import DECODE_BYTES, DECODE_FEATURES, DECODE_ROWS, FEATURE_CHAIN

from .emit import (
    I32,
    I64,
    LANES,
    Loop,
    dot_ir,
    fma_ir,
    load_ir,
    outlined,
    prefetch_ir,
    shuffle_ir,
    splat_ir,
    store_ir,
    vector_ir,
)
from .memory import fours_of_rows, strides_of_four, transposed
from .storage import BFLOAT, HALF, INT8, parts_of_words, widened

_FLOATS = vector_ir(types.float32)
_WORDS = ir.VectorType(I32, LANES)
_ZERO = ir.Constant(_FLOATS, [0.0] * LANES)

# Bytes of a key that one step of a score tile takes, and the cache lines that two sixteens of keys
# have for it; and how many steps make a line.
STEP_BYTES = DECODE_BYTES
_STEP_LINES = 2 * LANES * STEP_BYTES // 64
_LINE_STEPS = 64 // STEP_BYTES

# Beside the storage types: bfloat16 that is multiplied as it is, in pairs of neighbours of the sum.
PAIRS = 15

# What the steps of a score tile ask for, in bytes a byte of a key that lies in a run.
RUN_AHEAD = 64 * _STEP_LINES // STEP_BYTES

# Vectors of a row of values.
STRIP = DECODE_FEATURES // LANES


def item_of(code):
    """Bytes of an element of a small storage type."""
    return 1 if code == INT8 else 2


def _call_chosen(context, builder, name, emit, args, codes=(HALF, BFLOAT, INT8)):
    """Call the tile that `emit` makes for the storage type and the rows in front of the arguments.

    Chosen here, not in Python code of the callers, which would take long to compile.
    """
    code, rows, *rest = args
    end = builder.append_basic_block(f"{name}.end")
    shapes = [(kind, count) for kind in codes for count in (1, DECODE_ROWS)]
    choice = builder.switch(builder.add(builder.shl(code, I64(8)), rows), end)
    for kind, count in shapes:
        arm = builder.append_basic_block(f"{name}.{kind}.{count}")
        choice.add_case(I64((kind << 8) + count), arm)
        builder.position_at_end(arm)

        def emit_tile(inner, values, shape=(kind, count)):
            emit(inner, *shape, values)

        kinds = [value.type for value in rest]
        whole = f"fastattn.{name}.{kind}.{count}"
        outlined(context, builder, whole, kinds, ir.VoidType(), emit_tile, rest)
        builder.branch(end)
    builder.position_at_end(end)


def _scaled(builder, words, scale, tiny):
    """The four int8 of each of sixteen words, times its row's scale.

    `scale` is that over 2^24 unless `tiny`: an int8 on top of its word is so much larger, and needs
    no shift to spread its sign.
    """
    if tiny:
        return [builder.fmul(x, scale) for x in parts_of_words(builder, words, INT8)]
    small = ir.VectorType(ir.IntType(8), 4 * LANES)
    stored, zeros = builder.bitcast(words, small), ir.Constant(small, [0] * (4 * LANES))
    features = []
    for place in range(4):
        order = [index for i in range(LANES) for index in (*[4 * LANES] * 3, 4 * i + place)]
        top = builder.bitcast(shuffle_ir(builder, stored, zeros, order), _WORDS)
        features.append(builder.fmul(builder.sitofp(top, _FLOATS), scale))
    return features


def _sixteen_keys(builder, code, starts, scale, tiny):
    """The features in sixteen bytes of sixteen keys, a vector of floats each, or of pairs."""
    rows = [load_ir(builder, start, ir.VectorType(I32, 4)) for start in starts]
    features = []
    for words in transposed(builder, rows):
        if code == INT8:
            features += _scaled(builder, words, scale, tiny)
        elif code == PAIRS:
            features.append(words)
        else:
            features += parts_of_words(builder, words, code)
    return features


def _emit_scores(builder, code, rows, args):
    """Emit the scores of `rows` queries and two sixteens of keys."""
    if code != INT8:
        _emit_scores_of(builder, code, rows, args, [None, None], tiny=False)
        return
    places = (builder.add(args[4], I64(4 * LANES * group)) for group in range(2))
    scales = [load_ir(builder, place, _FLOATS) for place in places]
    # A 2^24th of a scale so small, yet not 0, may lose bits.
    below = ir.Constant(_FLOATS, [2.0**-102] * LANES)
    found = [
        builder.and_(
            builder.fcmp_ordered("<", scale, below), builder.fcmp_unordered("!=", scale, _ZERO)
        )
        for scale in scales
    ]
    lanes = builder.bitcast(builder.or_(*found), ir.IntType(LANES))
    is_tiny = builder.icmp_unsigned("!=", lanes, ir.Constant(ir.IntType(LANES), 0))
    with builder.if_else(is_tiny, likely=False) as (then, otherwise):
        with then:
            _emit_scores_of(builder, code, rows, args, scales, tiny=True)
        with otherwise:
            part = ir.Constant(_FLOATS, [2.0**-24] * LANES)
            parts = [builder.fmul(scale, part) for scale in scales]
            _emit_scores_of(builder, code, rows, args, parts, tiny=False)


def _emit_scores_of(builder, code, rows, args, scales, *, tiny):
    """Emit the loop over the bytes of keys, with their scales at hand."""
    source, *strides, _, a, a_stride, c, c_stride, size, run, fetch = args
    row_stride = strides[0]
    step, element, link = STEP_BYTES // item_of(code), ir.FloatType(), fma_ir
    if code == PAIRS:
        step, element, link = STEP_BYTES // 4, I32, dot_ir
    cells = [(row, group) for row in range(rows) for group in range(2)]
    bases, within_four = fours_of_rows(builder, source, strides, 2 * LANES)
    # Keys without gaps are asked for line by line, in the order of memory: the machine then guesses
    # what is next. Else a line of every fourth key, the next keys in the next steps.
    gap = builder.select(run, I64(64), builder.mul(row_stride, I64(_LINE_STEPS)))
    move = builder.select(run, I64(64 * _STEP_LINES), row_stride)
    turned = builder.select(run, move, builder.sub(builder.add(move, I64(64)), gap))

    whole = Loop(builder, [I64(0), a, fetch, *bases, ir.Constant(ir.IntType(1), 0)])
    *begin, accumulate = whole.values
    stop = builder.add(begin[0], I64(FEATURE_CHAIN * (4 if code == PAIRS else item_of(code))))
    stop = builder.select(builder.icmp_signed("<", stop, size), stop, size)
    chain = Loop(builder, [*begin, *[_ZERO] * len(cells)])
    byte, query, fetched, *rest = chain.values
    bases, sums = rest[: len(bases)], rest[len(bases) :]
    starts = [builder.add(base, offset) for base in bases for offset in within_four]
    groups = [
        _sixteen_keys(builder, code, starts[LANES * i : LANES * (i + 1)], scale, tiny)
        for i, scale in enumerate(scales)
    ]
    lines = iter(range(_STEP_LINES))
    for e in range(step):
        for row in range(rows):
            # Evenly: requests in a burst fill the core's line buffers, and loads wait behind them.
            for line in islice(lines, _due(e * rows + row, step * rows)):
                prefetch_ir(builder, builder.add(fetched, builder.mul(gap, I64(line))))
            place = builder.add(query, builder.mul(a_stride, I64(row)))
            wide = splat_ir(builder, load_ir(builder, builder.add(place, I64(4 * e)), element))
            for group in range(2):
                cell = row * 2 + group
                sums[cell] = link(builder, wide, groups[group][e], sums[cell])
    following = builder.add(byte, I64(STEP_BYTES))
    within = builder.and_(following, I64(STEP_BYTES * _LINE_STEPS - 1))
    moved = builder.select(builder.icmp_signed("==", within, I64(0)), turned, move)
    after = [following, builder.add(query, I64(4 * step)), builder.add(fetched, moved)]
    after += [builder.add(base, I64(STEP_BYTES)) for base in bases]
    chain.close([*after, *sums], builder.icmp_signed("<", following, stop))
    for (row, group), total in zip(cells, sums, strict=True):
        place = builder.add(c, builder.mul(c_stride, I64(row)))
        _put_sum(builder, builder.add(place, I64(4 * LANES * group)), total, accumulate)
    more = ir.Constant(ir.IntType(1), 1)
    whole.close([*after, more], builder.icmp_signed("<", following, size))


def _due(link, links):
    """How many of a step's lines to ask for at one of its `links`, to be done at the last."""
    return (link + 1) * _STEP_LINES // links - link * _STEP_LINES // links


def _put_sum(builder, place, total, accumulate):
    """Store a vector of sums, or add it to what stands there."""
    added = builder.fadd(load_ir(builder, place, _FLOATS), total)
    store_ir(builder, place, builder.select(accumulate, added, total))


@intrinsic
def small_scores(
    typing_context, code, rows, source, row_stride, scales, a, a_stride, c, c_stride, size, run,
    fetch,
):  # fmt: skip
    """C = scores in float32 of `rows` queries at `a` and of two sixteens of keys at `source`.

    `rows` is 1 or `DECODE_ROWS`. Of each key `size` bytes take part, a multiple of `STEP_BYTES`, of
    the small storage type `code`, and int8 have a scale each; strides in bytes. Meanwhile the keys
    at `fetch` are asked for, which lie like these: without gaps if they are a `run`.
    """
    sig = types.void(*[types.int64] * 10, types.boolean, types.int64)

    def codegen(context, builder, sig, args):
        code, rows, source, row_stride, *rest = args
        chosen = [code, rows, source, *strides_of_four(builder, row_stride), *rest]
        _call_chosen(context, builder, "small_scores", _emit_scores, chosen)
        return context.get_dummy_value()

    return sig, codegen


def _value_vectors(builder, code, address, scale):
    """A strip of a value row, as vectors of floats, in the order of `_in_order`."""
    if code == BFLOAT:
        found = []
        for pair in range(STRIP // 2):
            words = load_ir(builder, builder.add(address, I64(64 * pair)), _WORDS)
            found += parts_of_words(builder, words, code)
        return found
    size = LANES * item_of(code)
    places = (builder.add(address, I64(size * vector)) for vector in range(STRIP))
    found = [widened(builder, place, code) for place in places]
    return [builder.fmul(vector, scale) for vector in found] if code == INT8 else found


def _in_order(builder, code, sums):
    """Vectors of consecutive columns from those of one row's strip."""
    if code not in (BFLOAT, PAIRS):
        return sums
    # Even columns stand in one vector, odd ones in the next.
    ordered = []
    for even, odd in zip(sums[::2], sums[1::2], strict=True):
        for half in (0, LANES // 2):
            order = [lane for i in range(half, half + LANES // 2) for lane in (i, LANES + i)]
            ordered.append(shuffle_ir(builder, even, odd, order))
    return ordered


def _emit_fused(builder, code, rows, args):
    """Emit C[rows, STRIP * 16] (+)= sum over depth of A[rows, depth] times value rows."""
    a, a_stride, b, b_stride, scales, c, c_stride, depth, accumulate, fetch, fetch_stride = args
    loop = Loop(builder, [I64(0), b, fetch, *[_ZERO] * (rows * STRIP)])
    index, b_row, fetched, *sums = loop.values
    offset = builder.shl(index, I64(2))
    scale = None
    if code == INT8:
        place = builder.add(scales, offset)
        scale = splat_ir(builder, load_ir(builder, place, ir.FloatType()))
    values = _value_vectors(builder, code, b_row, scale)
    for line in range(0, STRIP * LANES * item_of(code), 64):
        prefetch_ir(builder, builder.add(fetched, I64(line)))
    for row in range(rows):
        place = builder.add(builder.add(a, builder.mul(a_stride, I64(row))), offset)
        wide = splat_ir(builder, load_ir(builder, place, ir.FloatType()))
        for vector in range(STRIP):
            cell = row * STRIP + vector
            sums[cell] = fma_ir(builder, wide, values[vector], sums[cell])
    following = builder.add(index, I64(1))
    moved = builder.add(b_row, b_stride), builder.add(fetched, fetch_stride)
    loop.close([following, *moved, *sums], builder.icmp_signed("<", following, depth))
    _put_strips(builder, code, rows, sums, c, c_stride, accumulate)


def _put_strips(builder, code, rows, sums, c, c_stride, accumulate):
    """Store the sums of a strip of each row, or add them to what stands there."""
    for row in range(rows):
        ordered = _in_order(builder, code, sums[row * STRIP : (row + 1) * STRIP])
        for vector, total in enumerate(ordered):
            place = builder.add(c, builder.mul(c_stride, I64(row)))
            _put_sum(builder, builder.add(place, I64(4 * LANES * vector)), total, accumulate)


@intrinsic
def small_fused(
    typing_context, code, rows, a, a_stride, b, b_stride, scales, c, c_stride, depth, accumulate,
    fetch, fetch_stride,
):  # fmt: skip
    """C (+)= A times B in float32; B has `STRIP` vectors of the small storage type `code` a row.

    As `product_tile`, with `rows` 1 or `DECODE_ROWS`, a depth of at least one, and for int8 a scale
    a row of B. Each step asks for the lines of a strip at `fetch`, and moves on by `fetch_stride`.
    """
    sig = types.void(*[types.int64] * 10, types.boolean, *[types.int64] * 2)

    def codegen(context, builder, sig, args):
        _call_chosen(context, builder, "small_fused", _emit_fused, args)
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def small_pair_scores(
    typing_context, rows, source, row_stride, a, a_stride, c, c_stride, size, run, fetch
):
    """As `small_scores`, of bfloat16 pairs of features: `size` bytes of queries and keys."""
    sig = types.void(*[types.int64] * 8, types.boolean, types.int64)

    def codegen(context, builder, sig, args):
        rows, source, row_stride, *rest = args
        chosen = [I64(PAIRS), rows, source, *strides_of_four(builder, row_stride), I64(0), *rest]
        _call_chosen(context, builder, "small_scores", _emit_pair_scores, chosen, [PAIRS])
        return context.get_dummy_value()

    return sig, codegen


def _emit_pair_scores(builder, code, rows, args):
    _emit_scores_of(builder, code, rows, args, [None, None], tiny=False)


def _value_pairs(builder, first, second, is_pair):
    """A strip of two value rows as vectors of pairs, in the order of `_in_order`; see `is_pair`."""
    low, high = (splat_ir(builder, I32(mask)) for mask in (0xFFFF, -0x10000))
    sixteen, none = splat_ir(builder, I32(16)), ir.Constant(_WORDS, [0] * LANES)
    found = []
    for pair in range(STRIP // 2):
        x, y = (
            load_ir(builder, builder.add(row, I64(64 * pair)), _WORDS) for row in (first, second)
        )
        y = builder.select(is_pair, y, none)
        found.append(builder.or_(builder.and_(x, low), builder.shl(y, sixteen)))
        found.append(builder.or_(builder.lshr(x, sixteen), builder.and_(y, high)))
    return found


def _emit_fused_pairs(builder, code, rows, args):
    """Emit C[rows, STRIP * 16] (+)= sum over pairs of A times pairs of value rows."""
    a, a_stride, b, b_stride, c, c_stride, depth, accumulate, fetch, fetch_stride = args
    loop = Loop(builder, [I64(0), b, fetch, *[_ZERO] * (rows * STRIP)])
    index, b_row, fetched, *sums = loop.values
    key = builder.shl(index, I64(1))
    # An odd number of rows ends in half a pair: the row again, and nothing of it taken.
    is_pair = builder.icmp_signed("<", builder.add(key, I64(1)), depth)
    second = builder.add(b_row, builder.select(is_pair, b_stride, I64(0)))
    values = _value_pairs(builder, b_row, second, is_pair)
    for near in (fetched, builder.add(fetched, fetch_stride)):
        for line in range(0, STRIP * LANES * 2, 64):
            prefetch_ir(builder, builder.add(near, I64(line)))
    offset = builder.shl(index, I64(2))
    for row in range(rows):
        place = builder.add(builder.add(a, builder.mul(a_stride, I64(row))), offset)
        wide = splat_ir(builder, load_ir(builder, place, I32))
        for vector in range(STRIP):
            cell = row * STRIP + vector
            sums[cell] = dot_ir(builder, wide, values[vector], sums[cell])
    moved = [
        builder.add(address, builder.shl(stride, I64(1)))
        for address, stride in ((b_row, b_stride), (fetched, fetch_stride))
    ]
    following = builder.add(index, I64(1))
    again = builder.icmp_signed("<", builder.shl(following, I64(1)), depth)
    loop.close([following, *moved, *sums], again)
    _put_strips(builder, code, rows, sums, c, c_stride, accumulate)


@intrinsic
def small_pair_fused(
    typing_context, rows, a, a_stride, b, b_stride, c, c_stride, depth, accumulate, fetch,
    fetch_stride,
):  # fmt: skip
    """As `small_fused`, of bfloat16: `depth` rows of B in pairs, and pairs of weights in A."""
    sig = types.void(*[types.int64] * 8, types.boolean, *[types.int64] * 2)

    def codegen(context, builder, sig, args):
        chosen = [I64(PAIRS), *args]
        _call_chosen(context, builder, "small_fused", _emit_fused_pairs, chosen, [PAIRS])
        return context.get_dummy_value()

    return sig, codegen
