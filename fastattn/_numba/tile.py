"""The register tile: a few rows times a few vectors of columns, accumulated in registers.

Both products of attention are this tile. Scores are query rows times a panel of packed keys; the
fused output is weight rows times value rows. Each element of the result is one chain of fused
multiply-adds over the depth, in order: how many rows and vectors a tile has changes no bit.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .emit import (
    I64,
    LANES,
    dot_ir,
    element_ir,
    fma_ir,
    item_bytes,
    load_ir,
    outlined,
    prefetch_ir,
    splat_ir,
    store_ir,
    vector_ir,
)
from .memory import transposed


def _emit_tile(builder, element, rows, vectors, whole, step, args):
    """Emit C[rows, vectors * 16] (+)= sum over depth of step(A[rows, depth], B[depth, ...]).

    `step(builder, a, b, total)` is one link of the chain of an accumulator. Each step also asks for
    a cache line that somebody will need, or for as many as a row of B has (`whole`): the first at
    `fetch`, the next ones `fetch_stride` apart.

    The accumulators live in SSA values that circulate as phis, never in memory.
    """
    a, a_stride, b, b_stride, c, c_stride, depth, accumulate, fetch, fetch_stride = args
    item = item_bytes(element)
    packed = vector_ir(element)
    kind = vector_ir(types.float32) if element is types.int32 else packed
    zero = ir.Constant(kind, [0.0] * LANES)

    def at(address, stride, row, vector=0):
        offset = builder.mul(stride, ir.Constant(I64, row))
        offset = builder.add(offset, ir.Constant(I64, vector * LANES * item))
        return builder.add(address, offset)

    cells = [(row, vector) for row in range(rows) for vector in range(vectors)]
    a_rows = [at(a, a_stride, row) for row in range(rows)]
    head = builder.block
    body, done, add, put, out = (
        builder.function.append_basic_block(f"tile.{part}")
        for part in ("body", "done", "add", "put", "out")
    )
    nothing = builder.icmp_signed("<=", depth, I64(0))
    builder.cbranch(nothing, done, body)

    builder.position_at_end(body)
    index, b_row, fetched = (builder.phi(I64) for _ in range(3))
    sums = [builder.phi(kind) for _ in cells]
    columns = [
        load_ir(builder, builder.add(b_row, I64(vector * LANES * item)), packed)
        for vector in range(vectors)
    ]
    for line in range(0, vectors * LANES * item if whole else 1, 64):
        prefetch_ir(builder, builder.add(fetched, I64(line)))
    offset = builder.mul(index, I64(item))
    linked = []
    for row in range(rows):
        scalar = load_ir(builder, builder.add(a_rows[row], offset), element_ir(element))
        wide = splat_ir(builder, scalar)
        for vector in range(vectors):
            old = sums[row * vectors + vector]
            linked.append(step(builder, wide, columns[vector], old))
    moving = [index, b_row, fetched, *sums]
    first = [I64(0), b, fetch, *[zero] * len(cells)]
    steps = (index, I64(1)), (b_row, b_stride), (fetched, fetch_stride)
    after = [*(builder.add(*pair) for pair in steps), *linked]
    for phi, start, new in zip(moving, first, after, strict=True):
        phi.add_incoming(start, head)
        phi.add_incoming(new, body)
    builder.cbranch(builder.icmp_signed("<", after[0], depth), body, done)

    builder.position_at_end(done)
    results = [_phi(builder, (zero, head), (new, body)) for new in linked]
    places = [at(c, c_stride, row, vector) for row, vector in cells]
    builder.cbranch(accumulate, add, put)

    builder.position_at_end(add)
    for place, result in zip(places, results, strict=True):
        store_ir(builder, place, builder.fadd(load_ir(builder, place, kind), result))
    builder.branch(out)

    builder.position_at_end(put)
    for place, result in zip(places, results, strict=True):
        store_ir(builder, place, result)
    builder.branch(out)
    builder.position_at_end(out)


def _phi(builder, *incoming):
    phi = builder.phi(incoming[0][0].type)
    for value, block in incoming:
        phi.add_incoming(value, block)
    return phi


def _dot_step(builder, wide, column, total):
    return dot_ir(builder, wide, column, total)


def _product_step(builder, wide, column, total):
    return fma_ir(builder, wide, column, total)


@intrinsic(prefer_literal=True)
def product_tile(
    typing_context, tag, rows, vectors, whole, a, a_stride, b, b_stride, c, c_stride, depth,
    accumulate, fetch, fetch_stride,
):  # fmt: skip
    """C (+)= A times B over `depth`; strides in bytes; `rows`, `vectors` and `whole` literal.

    Requires A readable for rows x depth, B for depth x (vectors * 16), C for rows x (vectors * 16);
    C overlaps neither. The chain starts from zero; where `accumulate` is true it is added to C.
    Each step asks for the cache line at `fetch`, or for one per vector of float32 (`whole`), and
    moves on by `fetch_stride`; nothing need be there. With an int32 as `tag`, elements of A and B
    are pairs of bfloat16, and C is of float32.
    """
    sig = types.void(
        tag, rows, vectors, whole, *[types.int64] * 7, types.boolean, *[types.int64] * 2
    )
    shape = rows.literal_value, vectors.literal_value, whole.literal_value
    step = _dot_step if tag is types.int32 else _product_step

    def emit(builder, args):
        _emit_tile(builder, tag, *shape, step, args)

    def codegen(context, builder, sig, args):
        name = f"fastattn.product_tile.{tag}.{shape}"
        kinds = [I64] * 7 + [ir.IntType(1), I64, I64]
        outlined(context, builder, name, kinds, ir.VoidType(), emit, args[4:])
        return context.get_dummy_value()

    return sig, codegen


@intrinsic(prefer_literal=True)
def distance_tile(
    typing_context, tag, rows, vectors, factor, a, a_stride, b, b_stride, c, c_stride, depth
):
    """C = sum over `depth` of ((A - B) factor) squared; otherwise as `product_tile`."""
    sig = types.void(tag, rows, vectors, tag, *[types.int64] * 7)
    shape = rows.literal_value, vectors.literal_value

    def emit(builder, args):
        factor = splat_ir(builder, args[0])

        def step(builder, wide, column, total):
            difference = builder.fmul(builder.fsub(wide, column), factor)
            return fma_ir(builder, difference, difference, total)

        from_zero = ir.Constant(ir.IntType(1), 0)
        nothing_new = args[1], I64(0)
        _emit_tile(builder, tag, *shape, 0, step, [*args[1:], from_zero, *nothing_new])

    def codegen(context, builder, sig, args):
        name = f"fastattn.distance_tile.{tag}.{shape[0]}.{shape[1]}"
        kinds = [element_ir(tag)] + [I64] * 7
        outlined(context, builder, name, kinds, ir.VoidType(), emit, args[3:])
        return context.get_dummy_value()

    return sig, codegen


def _emit_scores(builder, element, rows, args):
    """Emit C[rows, 16] = A[rows, depth] times the transpose of B[16, depth], depth in fours."""
    a, a_stride, b, b_stride, c, c_stride, depth, fetch, beyond, line_stride, step_stride = args
    item, kind = item_bytes(element), vector_ir(element)
    # Four rows hang on each of four addresses: sixteen addresses would not fit into registers.
    bases = [builder.add(b, builder.mul(b_stride, I64(4 * i))) for i in range(4)]
    steps = [I64(0), b_stride, builder.mul(b_stride, I64(2)), builder.mul(b_stride, I64(3))]
    a_rows = [builder.add(a, builder.mul(a_stride, I64(row))) for row in range(rows)]
    c_rows = [builder.add(c, builder.mul(c_stride, I64(row))) for row in range(rows)]
    width = builder.mul(depth, I64(item))
    # Lines are asked for in columns of sixteen: where four steps of the depth end, the next begins.
    turn = builder.sub(I64(64), builder.mul(step_stride, I64(3)))
    turn = builder.select(builder.icmp_signed("==", line_stride, I64(64)), step_stride, turn)
    head = builder.block
    body, out = (builder.function.append_basic_block(f"sixteen.{part}") for part in ("body", "out"))
    builder.branch(body)

    builder.position_at_end(body)
    offset, fetched = builder.phi(I64), builder.phi(I64)
    sums = [builder.phi(kind) for _ in range(rows)]
    for line in range(4):
        near = builder.add(fetched, builder.mul(line_stride, I64(line)))
        prefetch_ir(builder, near, nearest=True)
        prefetch_ir(builder, builder.add(near, beyond))
    quads = [
        load_ir(builder, builder.add(builder.add(base, offset), step), vector_ir(element, 4))
        for base in bases
        for step in steps
    ]
    linked = list(sums)
    for column, keys in enumerate(transposed(builder, quads)):
        place = builder.add(offset, I64(column * item))
        for row in range(rows):
            scalar = load_ir(builder, builder.add(a_rows[row], place), element_ir(element))
            linked[row] = fma_ir(builder, splat_ir(builder, scalar), keys, linked[row])
    after = builder.add(offset, I64(4 * item))
    last = builder.icmp_signed("==", builder.and_(after, I64(16 * item - 1)), I64(0))
    moved = builder.add(fetched, builder.select(last, turn, step_stride))
    zero = ir.Constant(kind, [0.0] * LANES)
    starts = [I64(0), fetch, *[zero] * rows]
    for phi, start, new in zip(
        [offset, fetched, *sums], starts, [after, moved, *linked], strict=True
    ):
        phi.add_incoming(start, head)
        phi.add_incoming(new, body)
    builder.cbranch(builder.icmp_signed("<", after, width), body, out)

    builder.position_at_end(out)
    for place, result in zip(c_rows, linked, strict=True):
        store_ir(builder, place, result)


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
        outlined(context, builder, name, [I64] * 11, ir.VoidType(), emit, args[2:])
        return context.get_dummy_value()

    return sig, codegen
