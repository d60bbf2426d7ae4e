"""The register tile: a few rows times a few vectors of columns, accumulated in registers.

Both products of attention are this tile, and linear maps. Scores are query rows times a panel of
packed keys; the fused output is weight rows times value rows. Each element of the result is a chain
of fused multiply-adds over the depth, in order, or the sum of several, cut by constants: how many
rows and vectors a tile has changes no bit.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastattn._core.constants import FEATURE_CHAIN, SQUARE_CHAIN

from .emit import (
    I64,
    LANES,
    Loop,
    dot_ir,
    element_ir,
    fma_ir,
    item_bytes,
    load_ir,
    opaque_ir,
    outlined,
    pointer_ir,
    prefetch_ir,
    splat_ir,
    store_ir,
    vector_ir,
)
from .memory import fours_of_rows, strides_of_four, transposed

_FALSE, _TRUE = (ir.Constant(ir.IntType(1), bit) for bit in (0, 1))


def _emit_tile(builder, element, rows, vectors, step, args, fetched=None, finish=None):
    """Emit C[rows, vectors * 16] (+)= sum over depth of step(A[rows, depth], B[depth, ...]).

    So for `groups` times `rows` rows, one group after the other. `step(builder, a, b, total)` is
    one link of the chain of an accumulator. `fetched` (fetch, fetch_stride, whole): each step also
    asks for a cache line that somebody will need, or for as many as a row of B has (`whole`): the
    first at `fetch`, the next ones `fetch_stride` apart. `finish(builder, results, places)` stores
    what is final, if that is no plain store.

    The accumulators live in SSA values that circulate as phis, never in memory.
    """
    a, a_stride, b, b_stride, c, c_stride, depth, chain_length, groups, accumulate = args
    fetch, fetch_stride, whole = fetched or (I64(0), I64(0), False)
    item = item_bytes(element)
    packed = vector_ir(element)
    kind = vector_ir(types.float32) if element is types.int32 else packed
    zero = ir.Constant(kind, [0.0] * LANES)
    below = [builder.mul(stride, I64(rows)) for stride in (a_stride, c_stride)]

    def at(address, stride, row, vector=0):
        offset = builder.mul(stride, ir.Constant(I64, row))
        offset = builder.add(offset, ir.Constant(I64, vector * LANES * item))
        return builder.add(address, offset)

    def next_group(loop, *following):
        left, a_group, c_group, *_ = loop.values
        left = builder.sub(left, I64(1))
        moved = [builder.add(*pair) for pair in zip((a_group, c_group), below, strict=True)]
        loop.close([left, *moved, *following], builder.icmp_signed(">", left, I64(0)))

    cells = [(row, vector) for row in range(rows) for vector in range(vectors)]
    # Sums of chains, until they are final, where C takes nothing but that.
    room = _stack_places(builder, kind, len(cells)) if finish else None
    with builder.if_then(builder.icmp_signed("<=", depth, I64(0))):
        with builder.if_then(builder.not_(accumulate)):
            group = Loop(builder, [groups, a, c])
            for row, vector in cells:
                store_ir(builder, at(group.values[2], c_stride, row, vector), zero)
            next_group(group)
        builder.ret_void()

    group = Loop(builder, [groups, a, c, fetch])
    _, a_group, c_group, fetch_group = group.values
    a_rows = [at(a_group, a_stride, row) for row in range(rows)]
    places = [at(c_group, c_stride, row, vector) for row, vector in cells]
    whole_depth = Loop(builder, [I64(0), b, fetch_group, accumulate])
    *begin, adding = whole_depth.values
    stop = _border(builder, begin[0], chain_length, depth)
    chain = Loop(builder, [*begin, *[zero] * len(cells)])
    index, b_row, line, *sums = chain.values
    # Before the loads: LLVM takes it for a store, across which no load joins its multiplication.
    if fetched:
        for beyond in range(0, vectors * LANES * item if whole else 1, 64):
            prefetch_ir(builder, builder.add(line, I64(beyond)))
    columns = [
        load_ir(builder, builder.add(b_row, I64(vector * LANES * item)), packed)
        for vector in range(vectors)
    ]
    offset = builder.mul(index, I64(item))
    linked = []
    for row in range(rows):
        scalar = load_ir(builder, builder.add(a_rows[row], offset), element_ir(element))
        wide = splat_ir(builder, scalar)
        for vector in range(vectors):
            old = sums[row * vectors + vector]
            linked.append(step(builder, wide, columns[vector], old))
    steps = (index, I64(1)), (b_row, b_stride), (line, fetch_stride)
    after = [builder.add(*pair) for pair in steps]
    chain.close([*after, *linked], builder.icmp_signed("<", after[0], stop))
    again = builder.icmp_signed("<", after[0], depth)
    if finish:
        totals = _merged(builder, adding, linked, lambda: _added(builder, room, linked))
        with builder.if_else(again) as (more, done):
            with more:
                _store_all(builder, room, totals)
            with done:
                finish(builder, totals, places)
    else:
        with builder.if_else(adding) as (add, put):
            with add:
                for place, result in zip(places, linked, strict=True):
                    store_ir(builder, place, builder.fadd(load_ir(builder, place, kind), result))
            with put:
                _store_all(builder, places, linked)
    whole_depth.close([*after, _TRUE], again)
    # Groups read the same rows of B: what was asked for with those is asked for again.
    next_group(group, fetch if whole else after[2])


def _stack_places(builder, kind, count):
    place = builder.alloca(ir.ArrayType(kind, count))
    place.align = 64
    first = builder.ptrtoint(place, I64)
    size = kind.count * (4 if isinstance(kind.element, ir.FloatType) else 8)
    return [builder.add(first, I64(i * size)) for i in range(count)]


def _store_all(builder, places, values):
    for place, value in zip(places, values, strict=True):
        store_ir(builder, place, value)


def _added(builder, places, values):
    pairs = zip(places, values, strict=True)
    return [builder.fadd(load_ir(builder, place, value.type), value) for place, value in pairs]


def _merged(builder, condition, values, emit):
    """What `emit()` makes of values where a condition holds, else the values."""
    before = builder.block
    with builder.if_then(condition):
        changed, inside = emit(), builder.block
    merged = []
    for value, other in zip(values, changed, strict=True):
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        phi.add_incoming(other, inside)
        merged.append(phi)
    return merged


def _border(builder, first, length, end):
    """Where a stretch of a depth ends, which begins at `first`."""
    stop = builder.add(first, length)
    return builder.select(builder.icmp_signed("<", stop, end), stop, end)


def _dot_step(builder, wide, column, total):
    return dot_ir(builder, wide, column, total)


def _product_step(builder, wide, column, total):
    return fma_ir(builder, wide, column, total)


@intrinsic(prefer_literal=True)
def product_tile(
    typing_context, tag, rows, vectors, whole, a, a_stride, b, b_stride, c, c_stride, depth, chain,
    groups, accumulate, fetch, fetch_stride,
):  # fmt: skip
    """C (+)= A times B over `depth`; strides in bytes; `rows`, `vectors` and `whole` literal.

    A and C have `groups` times `rows` rows, at least one group: all in one call, since between two
    of them the stores of what is passed would wait for those of the first one's results. Requires A
    readable for its rows x depth, B for depth x (vectors * 16), C for its rows x (vectors * 16); C
    overlaps neither. Every chain of `chain` steps starts from zero; C holds their sum, and what it
    held before where `accumulate` is true. Each step asks for the cache line at `fetch`, or for one
    per vector of float32 (`whole`), and moves on by `fetch_stride`; nothing need be there. With an
    int32 as `tag`, elements of A and B are pairs of bfloat16, and C is of float32.
    """
    sig = types.void(
        tag, rows, vectors, whole, *[types.int64] * 9, types.boolean, *[types.int64] * 2
    )
    shape = rows.literal_value, vectors.literal_value, whole.literal_value
    step = _dot_step if tag is types.int32 else _product_step

    def emit(builder, args):
        *product, fetch, fetch_stride = args
        fetched = fetch, fetch_stride, shape[2]
        _emit_tile(builder, tag, *shape[:2], step, product, fetched)

    def codegen(context, builder, sig, args):
        name = f"fastattn.product_tile.{tag}.{shape}"
        kinds = [I64] * 9 + [ir.IntType(1), I64, I64]
        outlined(context, builder, name, kinds, ir.VoidType(), emit, args[4:])
        return context.get_dummy_value()

    return sig, codegen


def _emit_final(builder, totals, places, most, streamed):
    """Emit the stores of final scores, those beyond plus and minus `most` brought there."""
    kind = totals[0].type

    def clamp():
        upper = splat_ir(builder, most)
        lower = splat_ir(builder, builder.fneg(most))
        kept = []
        for total in totals:
            total = builder.select(builder.fcmp_ordered("<", total, lower), lower, total)
            kept.append(builder.select(builder.fcmp_ordered(">", total, upper), upper, total))
        return kept

    bounded = builder.fcmp_ordered("<", most, ir.Constant(most.type, float("inf")))
    totals = _merged(builder, bounded, totals, clamp)
    with builder.if_else(streamed) as (past, plain):
        with past:
            for place, total in zip(places, totals, strict=True):
                written = builder.store(total, pointer_ir(builder, place, kind), align=64)
                mark = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
                written.set_metadata("nontemporal", mark)
        with plain:
            _store_all(builder, places, totals)


@intrinsic(prefer_literal=True)
def final_tile(
    typing_context, tag, rows, vectors, a, a_stride, b, b_stride, c, c_stride, depth, groups, most,
    streamed,
):  # fmt: skip
    """C = A times B as `product_tile`, each element written once, and kept within `most`.

    Plus and minus `most` (not negative; infinity for none) bound it; NaN stays NaN. Where
    `streamed`, C goes past the caches, and its rows begin at multiples of 64.
    """
    sig = types.void(tag, rows, vectors, *[types.int64] * 8, tag, types.boolean)
    shape = rows.literal_value, vectors.literal_value

    def emit(builder, args):
        *product, groups, most, streamed = args
        product += [I64(FEATURE_CHAIN), groups]

        def finish(builder, totals, places):
            _emit_final(builder, totals, places, most, streamed)

        _emit_tile(builder, tag, *shape, _product_step, [*product, _FALSE], finish=finish)

    def codegen(context, builder, sig, args):
        name = f"fastattn.final_tile.{tag}.{shape}"
        kinds = [I64] * 8 + [element_ir(tag), ir.IntType(1)]
        outlined(context, builder, name, kinds, ir.VoidType(), emit, args[3:])
        return context.get_dummy_value()

    return sig, codegen


def _emit_distances(builder, element, rows, factor, args):
    """Emit C[rows, 16] = -(sum over depth of (A - B) squared), or of its product with `factor`."""
    a, a_stride, b, b_stride, c, c_stride, depth = args
    item, kind = item_bytes(element), vector_ir(element)
    zeros = [ir.Constant(kind, [0.0] * LANES)] * rows
    a_rows, c_rows = (
        [builder.add(start, builder.mul(stride, I64(row))) for row in range(rows)]
        for start, stride in ((a, a_stride), (c, c_stride))
    )
    whole = Loop(builder, [I64(0), b, _FALSE])
    *begin, adding = whole.values
    stop = _border(builder, begin[0], I64(FEATURE_CHAIN), depth)
    some = Loop(builder, [*begin, *zeros])
    first, b_first, *sums = some.values
    end = _border(builder, first, I64(SQUARE_CHAIN), stop)
    chain = Loop(builder, [first, b_first, *zeros])
    index, b_row, *totals = chain.values
    column = load_ir(builder, b_row, kind)
    offset = builder.mul(index, I64(item))
    linked = []
    for place, total in zip(a_rows, totals, strict=True):
        scalar = load_ir(builder, builder.add(place, offset), element_ir(element))
        difference = builder.fsub(splat_ir(builder, scalar), column)
        if factor is not None:
            difference = builder.fmul(difference, factor)
        linked.append(fma_ir(builder, difference, difference, total))
    after = [builder.add(index, I64(1)), builder.add(b_row, b_stride)]
    chain.close([*after, *linked], builder.icmp_signed("<", after[0], end))
    added = [builder.fadd(old, new) for old, new in zip(sums, linked, strict=True)]
    some.close([*after, *added], builder.icmp_signed("<", after[0], stop))
    for place, total in zip(c_rows, added, strict=True):
        negative = builder.fsub(zeros[0], total)
        longer = builder.fadd(load_ir(builder, place, kind), negative)
        store_ir(builder, place, builder.select(adding, longer, negative))
    whole.close([*after, _TRUE], builder.icmp_signed("<", after[0], depth))


@intrinsic(prefer_literal=True)
def distance_tile(typing_context, tag, rows, factor, a, a_stride, b, b_stride, c, c_stride, depth):
    """C = -(sum over `depth` of ((A - B) factor) squared), of sixteen columns.

    A chain is itself the sum of chains of `SQUARE_CHAIN` squares. Otherwise as `product_tile`.
    """
    sig = types.void(tag, rows, tag, *[types.int64] * 7)
    count = rows.literal_value

    def emit(builder, args):
        factor, *rest = args
        *_, c, c_stride, depth = rest
        with builder.if_then(builder.icmp_signed("<=", depth, I64(0))):
            for row in range(count):
                place = builder.add(c, builder.mul(c_stride, I64(row)))
                store_ir(builder, place, ir.Constant(vector_ir(tag), [0.0] * LANES))
            builder.ret_void()
        plain = builder.fcmp_ordered("==", factor, ir.Constant(factor.type, 1.0))
        with builder.if_else(plain) as (then, otherwise):
            with then:
                _emit_distances(builder, tag, count, None, rest)
            with otherwise:
                _emit_distances(builder, tag, count, splat_ir(builder, factor), rest)

    def codegen(context, builder, sig, args):
        name = f"fastattn.distance_tile.{tag}.{count}"
        kinds = [element_ir(tag)] + [I64] * 7
        outlined(context, builder, name, kinds, ir.VoidType(), emit, args[2:])
        return context.get_dummy_value()

    return sig, codegen


def _emit_scores(builder, element, rows, args):
    """Emit C[rows, 16] = A[rows, depth] times the transpose of B[16, depth], depth in fours."""
    a, a_stride, b, *steps, c, c_stride, depth, fetch, beyond, line_stride, step_stride = args
    item, kind = item_bytes(element), vector_ir(element)
    bases, steps = fours_of_rows(builder, b, steps, LANES)
    a_rows = [builder.add(a, builder.mul(a_stride, I64(row))) for row in range(rows)]
    c_rows = [builder.add(c, builder.mul(c_stride, I64(row))) for row in range(rows)]
    width = builder.mul(depth, I64(item))
    # Lines are asked for in columns of sixteen: where four steps of the depth end, the next begins.
    turn = builder.sub(I64(64), builder.mul(step_stride, I64(3)))
    turn = builder.select(builder.icmp_signed("==", line_stride, I64(64)), step_stride, turn)
    whole = Loop(builder, [I64(0), fetch, _FALSE])
    *begin, adding = whole.values
    stop = _border(builder, begin[0], I64(FEATURE_CHAIN * item), width)
    chain = Loop(builder, [*begin, *[ir.Constant(kind, [0.0] * LANES)] * rows])
    offset, fetched, *linked = chain.values
    for line in range(4):
        near = builder.add(fetched, builder.mul(line_stride, I64(line)))
        prefetch_ir(builder, near, nearest=True)
        prefetch_ir(builder, builder.add(near, beyond))
    quads = [
        load_ir(builder, builder.add(base, step), vector_ir(element, 4))
        for base in [opaque_ir(builder, builder.add(base, offset)) for base in bases]
        for step in steps
    ]
    for column, keys in enumerate(transposed(builder, quads)):
        place = builder.add(offset, I64(column * item))
        for row in range(rows):
            scalar = load_ir(builder, builder.add(a_rows[row], place), element_ir(element))
            linked[row] = fma_ir(builder, splat_ir(builder, scalar), keys, linked[row])
    after = builder.add(offset, I64(4 * item))
    last = builder.icmp_signed("==", builder.and_(after, I64(16 * item - 1)), I64(0))
    moved = [builder.add(fetched, builder.select(last, turn, step_stride))]
    chain.close([after, *moved, *linked], builder.icmp_signed("<", after, stop))
    for place, result in zip(c_rows, linked, strict=True):
        longer = builder.fadd(load_ir(builder, place, kind), result)
        store_ir(builder, place, builder.select(adding, longer, result))
    whole.close([after, *moved, _TRUE], builder.icmp_signed("<", after, width))


@intrinsic(prefer_literal=True)
def score_sixteen(
    typing_context, tag, rows, a, a_stride, b, b_stride, c, c_stride, depth, fetch, beyond,
    line_stride, step_stride,
):  # fmt: skip
    """C = A times the transpose of B: `rows` (literal) rows against the sixteen rows of B.

    Strides in bytes; `depth` is a multiple of four and not 0. Each four of its steps ask for four
    cache lines, `line_stride` apart, from `fetch` on, to the nearest cache, and for those `beyond`
    further to the second: asked for in two steps they come a fifth faster from memory. Nothing need
    be there.
    """
    sig = types.void(tag, rows, *[types.int64] * 11)
    count = rows.literal_value

    def emit(builder, args):
        _emit_scores(builder, tag, count, args)

    def codegen(context, builder, sig, args):
        name = f"fastattn.score_sixteen.{tag}.{count}"
        a, a_stride, b, b_stride, *rest = args[2:]
        whole = [a, a_stride, b, *strides_of_four(builder, b_stride), *rest]
        outlined(context, builder, name, [I64] * len(whole), ir.VoidType(), emit, whole)
        return context.get_dummy_value()

    return sig, codegen
