"""Labels of rows, columns and bars: taken from whatever holds them, thinned where they are many."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axis import Axis

FONT = 7.0  # points: what a printed page can still be read at
_INCH = 72.0
_LONGEST = 28  # characters; the rest becomes an ellipsis
_CHARACTER = 0.58  # mean width of one in font sizes, DejaVu Sans


def texts(name: str, labels: Any, count: int, what: str) -> list[str] | None:
    """Return labels (a list, an array, a pandas index) as text, or None where there are none.

    Raises
    ------
    ValueError
        When their number is not `count`.
    """
    if labels is None:
        return None
    array = np.asarray(labels)
    if array.dtype.kind == "M":
        array = np.datetime_as_string(array, unit="auto")  # days where nothing has hours
    if array.shape != (count,):
        found = f"{len(array)} labels" if array.ndim == 1 else f"shape {array.shape}"
        raise ValueError(
            f"{name} must have one label for each of the {count} {what}, found {found}"
        )
    return [_one_line(str(label)) for label in array.tolist()]


def _one_line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def width_of(labels: list[str] | None) -> float:
    """Estimate the inches that the longest label takes."""
    return max(map(len, labels or ["000"]), default=0) * _CHARACTER * FONT / _INCH


def thinning(cells: int, inches: float, needed: float) -> int:
    """Return k such that every k-th label has the inches it needs."""
    return max(1, math.ceil(needed * cells / max(inches, 1e-3) - 1e-9))


def ordinal(number: int) -> str:
    """Return 2nd, 3rd, 4th, ..."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 <= number % 100 <= 20 else ending}"


def mark(axis: Axis, labels: list[str] | None, inches: float, cells: int, along_x: bool) -> int:
    """Put labels or numbers on an axis whose cells lie at 0, 1, ..., and return the thinning.

    Along x labels lie flat where they all fit, and stand upright where they do not.
    """
    from matplotlib.ticker import MaxNLocator

    line = 1.25 * FONT / _INCH
    upright, step = False, 1
    if labels is None:
        most = min(6, max(1, int(inches / 0.35)))
        axis.set_major_locator(MaxNLocator(most, integer=True, min_n_ticks=1))
    else:
        flat = width_of(labels) + 0.06
        upright = along_x and flat * cells > inches
        needed = flat if along_x and not upright else line
        step = thinning(cells, inches, needed)
        # A dollar sign in a label is a dollar sign, not mathematics.
        axis.set_ticks(np.arange(0, cells, step), labels=labels[::step], parse_math=False)
    axis.set_tick_params(labelsize=FONT, labelrotation=90 if upright else 0, length=2)
    return step
