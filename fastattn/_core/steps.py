"""Steps of decoding: calls on a cache, planned once for all lengths that end in the same page.

From one step to the next lengths grow, which decides where pages end, where queries stand and what
`explain` would say, but no shape that a caller sees. So a step is planned as if its last pages were
full (no bit depends on a plan), and kept under all that the plan depends on; a later step takes
the lengths, addresses and small arrays of its own call to it. Calls that carry something as long
as the keys are planned each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn._core.arrays import per_head
from fastattn._core.kept import Bounded
from fastattn._core.pages import Pages, PageTable
from fastattn._core.problem import Extras
from fastattn._core.recipe import Options, Recipe, signature
from fastattn._core.scales import is_small

if TYPE_CHECKING:
    from fastattn._core.execution import Execution, Step

__all__ = ["Call", "describe", "keep", "repeat"]

Call = tuple[Any, ...]

# For all caches, since a decoder has one per layer.
_steps: Bounded[tuple[Step, Recipe]] = Bounded()


def describe(
    operands: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None],
    extras: Extras,
    options: Options,
    *others: Any,
) -> Call | None:
    """Describe a call, key and value as long as full pages; None if it must be planned each time.

    `others` are what its plan depends on beside the signature. ``causal=True``, in any spelling, is
    an error unless there are as many queries as keys.
    """
    _, _, causal, _, _, _, _, return_weights = options
    if (
        operands[3] is not None
        or causal is True
        or return_weights
        or extras.query_offset is not None
        or extras.query_segments is not None
        or extras.key_segments is not None
    ):
        return None
    slopes, sinks = extras.alibi_slopes, extras.sinks
    return (
        signature(*operands, options, True, False, slopes is not None),
        None if slopes is None else slopes.shape,
        None if sinks is None else sinks.shape,
        *others,
    )


def repeat(
    call: Call, query: np.ndarray, table: PageTable, pages: Pages, extras: Extras, out: Any
) -> Any:
    """Do a call that was planned before, on the pages and lengths of now; None if it was not."""
    kept = _steps.get(call)
    if kept is None:
        return None
    step, made = kept
    output, lse, weights = made.allocate(out, (query,))
    if out is not None and not output.flags.c_contiguous:
        return None
    lengths, slopes, sinks = table.lengths, extras.alibi_slopes, extras.sinks
    step(
        query,
        pages,
        table.longest,
        lengths,
        lengths - made.rows if made.alignment == "bottom_right" else None,
        None if slopes is None else per_head("alibi_slopes", slopes, made.batch, made.dtype),
        None if sinks is None else per_head("sinks", sinks, made.batch, made.dtype, True),
        output,
        lse,
    )
    return made.deliver(output, lse, weights, out)


def keep(call: Call, execution: Execution, made: Recipe) -> None:
    """Keep a planned call for later steps, if its backend can do others like it."""
    prepare = getattr(execution, "step", None)
    step = None if prepare is None else prepare()
    if step is not None and is_small(made.scale):
        _steps.keep(call, (step, made))
