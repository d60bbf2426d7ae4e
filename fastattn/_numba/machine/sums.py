"""Sums over many features, which err no more the longer they are.

A tile sums a run of features, and adds its chains one after another. Runs are added here, with what
each sum loses kept beside it.
"""

from fastattn._core.constants import FEATURE_RUN, PANEL_KEYS

from ..compiler.compile import device
from .emit import LANES
from .memory import load, stack_room, store
from .simd import cast, item_size, splat, unless_nan
from .two_floats import paired

# Elements of the largest result that a tile is asked for: eight rows, a panel wide.
_MOST_SUMS = 8 * PANEL_KEYS
_ROOM = 3 * 8 * _MOST_SUMS


@device(inlined=True)
def room_for_sums():
    """Room for the sums of all runs before, for their errors, and for the run under way.

    Each takes a third of it, as large in float32 as in float64.
    """
    return stack_room(_ROOM)


@device
def settled(total, error):
    """What a sum and its error are worth.

    Infinity, of which nothing is lost but NaN, and NaN stay what they are.
    """
    return unless_nan(total + error, total)


@device
def run_target(room, first):
    """Where in the room a tile puts the sums of the run that begins at feature `first`."""
    return room if first == 0 else room + 16 * _MOST_SUMS


@device
def end_run(tag, room, rows, width, depth, stop, c, c_stride):
    """Add the run that ends at feature `stop`, `rows` of `width` bytes, to those before.

    At the end of all `depth` features write the result to `c`.
    """
    if stop <= FEATURE_RUN:
        return
    for place in range(0, rows * width, LANES * item_size(tag)):
        totals, errors = room + place, room + 8 * _MOST_SUMS + place
        error = splat(cast(tag, 0.0))
        if stop > 2 * FEATURE_RUN:
            error = load(tag, errors)
        total, lost = paired(load(tag, totals), load(tag, room + 16 * _MOST_SUMS + place))
        error = error + lost
        if stop < depth:
            store(totals, total)
            store(errors, error)
        else:
            row, column = divmod(place, width)
            store(c + row * c_stride + column, settled(total, error))
