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

from fastattn._core.kept import Bounded
from fastattn._core.options import HEAD, Extras, Options, heads, rows_of
from fastattn._core.pages import Pages, PageTable
from fastattn._core.recipe import Recipe, signature
from fastattn._core.scales import is_small

if TYPE_CHECKING:
    from fastattn._core.execution import Execution, Step

__all__ = ["Call", "describe", "keep", "repeat"]

Call = tuple[Any, ...]

# For all caches, since a decoder has one per layer.
_steps: Bounded[tuple[Step, Recipe]] = Bounded()
_PER_HEAD = rows_of(HEAD)
# Where a described call has the shapes of their arrays, and what stands there if there are none.
_HEADS, _NO_HEADS = slice(1, 1 + len(_PER_HEAD)), (None,) * len(_PER_HEAD)
_CAUSAL, _WEIGHTS = map(Options._fields.index, ("causal", "return_weights"))


def describe(
    operands: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None],
    extras: Extras,
    options: tuple[Any, ...],
    *others: Any,
) -> Call | None:
    """Describe a call, key and value as long as full pages; None if it must be planned each time.

    `others` are what its plan depends on beside the signature. ``causal=True``, in any spelling, is
    an error unless there are as many queries as keys.
    """
    if (
        operands[3] is not None
        or options[_CAUSAL] is True
        or options[_WEIGHTS]
        or extras.query_offset is not None
        or extras.query_segments is not None
        or extras.key_segments is not None
    ):
        return None
    return (
        signature(*operands, options, True, False, extras.alibi_slopes is not None),
        *[None if x is None else x.shape for x in heads(extras)],
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
    lengths = table.lengths
    laid_out = {"key_lengths": lengths}
    if made.alignment == "bottom_right":
        laid_out["query_offset"] = lengths - made.rows
    if call[_HEADS] != _NO_HEADS:
        for row, x in zip(_PER_HEAD, heads(extras), strict=True):
            if x is not None:
                laid_out[row.name] = row.check(x, made.batch, made.dtype)
    step(query, pages, table.longest, laid_out, output, lse)
    return made.deliver(output, lse, weights, out)


def keep(call: Call, execution: Execution, made: Recipe) -> None:
    """Keep a planned call for later steps, if its backend can do others like it."""
    prepare = getattr(execution, "step", None)
    step = None if prepare is None else prepare()
    if step is not None and is_small(made.options.scale):
        _steps.keep(call, (step, made))
