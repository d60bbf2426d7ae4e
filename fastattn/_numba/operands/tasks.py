"""What the stages' kernels share: taking tasks, and storing finished rows of scratch."""

from ..compiler.compile import device
from ..compiler.native import atomic_next
from ..machine.emit import LANES
from ..machine.halves import round_line
from ..machine.memory import (
    load,
    load_scalar,
    native_code,
    store,
    store_first,
    store_scalar,
    stream,
)
from ..machine.simd import item_size


@device(inlined=True)
def take_tasks(tag, call, call_address, worker, task):
    """Run `task(tag, call, number, scratch)` with the next number until none is left."""
    scratch = call.scratch + worker * call.scratch_stride
    number = atomic_next(call_address)
    while number < call.stop_task:
        task(tag, call, number, scratch)
        number = atomic_next(call_address)


@device
def put_row(tag, code, source, columns, target, step, streamed):
    """Store a padded row of scratch into a result whose elements are `step` bytes apart.

    They are of the tag's type or halves, as the storage code says.

    Where `streamed`, `target` is a multiple of 64 and `step` that of contiguous elements.
    """
    item = item_size(tag)
    if code != native_code(tag):
        round_line(tag, code, source, columns, target, step)
        return
    if step != item:
        for column in range(columns):
            store_scalar(target + column * step, load_scalar(tag, source + column * item))
        return
    whole = columns // LANES * LANES
    for column in range(0, whole, LANES):
        values = load(tag, source + column * item)
        if streamed:
            stream(target + column * item, values)
        else:
            store(target + column * item, values)
    if whole < columns:
        place = target + whole * item
        store_first(place, load(tag, source + whole * item), columns - whole)
