"""Figures beside pyplot: made with a canvas of their own, or those of the axes that were given."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, cast

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 64
INSTALL = "install it with `pip install matplotlib`"


def require_matplotlib() -> None:
    """Raise an ImportError that names the extra when Matplotlib is missing."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"pictures are drawn by Matplotlib, which cannot be imported ({error}); {INSTALL}"
        ) from error


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that pyplot knows nothing of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="compressed", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def grid(figure: Figure, panels: int, columns: int) -> np.ndarray:
    """Return so many axes in rows of `columns`, as a flat array."""
    places = figure.add_gridspec(-(-panels // columns), columns)
    axes = [figure.add_subplot(places[n // columns, n % columns]) for n in range(panels)]
    return flat(axes)


def given_axes(ax: Any, panels: int, what: str) -> np.ndarray:
    """Check the axes that a caller gave: one, or one for each panel."""
    axes = np.asarray(ax, dtype=object).reshape(-1)
    if len(axes) != panels:
        raise ValueError(
            f"{panels} {what} are to be drawn, and ax holds {len(axes)}: pass as many axes "
            f"(`plt.subplots(1, {panels})[1]`), fewer {what}, or `ax=None` for a figure of their "
            "own"
        )
    return axes


def root(ax: Axes) -> Figure:
    """Return the whole figure that axes lie in, past any subfigure."""
    figure = ax.get_figure()
    while (above := getattr(figure, "figure", figure)) is not figure:
        figure = above
    return cast("Figure", figure)


def inches(ax: Axes) -> tuple[float, float]:
    """Return width and height of axes as they stand."""
    figure = root(ax)
    box = ax.get_window_extent()
    return box.width / figure.dpi, box.height / figure.dpi


def check_panels(panels: int, what: str, way_out: str) -> None:
    """Refuse more panels than anybody could look at."""
    if panels > MOST_PANELS:
        raise ValueError(
            f"{panels} {what} are more than the {MOST_PANELS} that one picture shows: {way_out}"
        )


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def flat(things: list[Any]) -> np.ndarray:
    """Return a list as a flat array of objects."""
    array = np.empty(len(things), dtype=object)
    array[:] = things
    return array
