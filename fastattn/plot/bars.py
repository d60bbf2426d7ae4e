"""How the bars of an `AllocationDisplay` are drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.plot import figures, labels
from fastattn.plot.blocks import block_length, vector_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FONT = labels.FONT
BAR = 0.62  # of the room between two receivers
CAP, SHARE, UNSPENT = "#222222", "#ee6677", "#d9d9d9"
_INCHES = 0.21  # of a bar and its gap
_TALLEST = 7.0
_WIDTHS = {1: 3.6, 2: 2.5, 3: 1.8, 4: 1.4}


class Amounts(NamedTuple):
    """What is drawn: amounts (..., n), what stands beside them, and the names of both axes."""

    allocation: np.ndarray
    lower: np.ndarray | None
    upper: np.ndarray | None
    weights: np.ndarray | None
    unspent: np.ndarray | None
    labels: list[str] | None
    row_labels: list[str] | None


class Style(NamedTuple):
    """The arguments of `AllocationDisplay.plot`."""

    sort: bool
    color: str
    include_values: bool | None
    max_bars: int
    xlabel: str
    title: str | None


class Row(NamedTuple):
    """What one panel shows; caps are NaN where there are none, `unspent` where it is not known."""

    amounts: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    share: np.ndarray
    order: np.ndarray
    spent: float
    unspent: float


class Layout(NamedTuple):
    """How the panels of a figure of its own stand, and the inches of each."""

    rows: int
    columns: int
    width: float
    height: float


class Drawn(NamedTuple):
    """What became of them: one of `axes`, `bars` and `order` per row, in a figure."""

    figure: Figure
    axes: np.ndarray
    bars: list[Any]
    order: list[np.ndarray]
    block: int


def draw(data: Amounts, ax: Any, style: Style) -> Drawn:
    """Draw all rows onto given axes, or into a figure of their own."""
    shape = data.allocation.shape
    count, receivers = math.prod(shape[:-1]), shape[-1]
    figures.check_panels(count, "rows", "draw some of them, as in `allocation[:9]`")
    panels = max(count, 1)
    block = block_length(receivers, style.max_bars)
    rows = _rows(data, block, style.sort) if 0 not in shape else []
    slots = -(-receivers // block) + any(row.unspent > 0 for row in rows)
    if ax is None:
        layout = _layout(panels, slots)
        figure = _figure(data, layout, style)
        axes = figures.grid(figure, panels, layout.columns)
    else:
        axes = figures.given_axes(ax, panels, "rows")
        figure = figures.root(axes[0])
        layout = Layout(1, 1, *figures.inches(axes[0]))
    if not rows:
        _draw_nothing(axes, shape)
        return Drawn(figure, axes, [], [], block)
    right = _right_end(rows)
    drawn_bars = []
    for panel, row in zip(axes, rows, strict=True):
        drawn_bars.append(_bars(panel, row, style))
        _marks(panel, row, right, layout.height / max(slots, 1))
        panel.set(xlim=(0, right), ylim=(slots - 0.5, -0.5))
        _values(panel, row, layout, slots, style, data.allocation.dtype.kind in "iub")
    _name_axes(data, axes, rows, layout, style, own=ax is None)
    _titles(data, axes, rows, block, style, own=ax is None)
    _explain(figure, axes, rows, right, own=ax is None)
    return Drawn(figure, axes, drawn_bars, [row.order for row in rows], block)


def _layout(panels: int, slots: int) -> Layout:
    columns = {1: 1, 2: 2, 3: 3, 4: 2}.get(panels, 3 if panels <= 9 else 4)
    rows = -(-panels // columns)
    height = min(max(slots, 1) * _INCHES, _TALLEST / rows)
    return Layout(rows, columns, _WIDTHS[columns], max(height, 0.4))


def _figure(data: Amounts, layout: Layout, style: Style) -> Any:
    beside = 0.35 + labels.width_of(data.labels)  # names on the left
    names = layout.columns if style.sort else 1  # sorted panels each need their own
    width = layout.columns * (layout.width + 0.55) + names * beside
    height = layout.rows * (layout.height + 0.3) + 0.95
    return figures.new_figure(width, height)


def _draw_nothing(axes: np.ndarray, shape: tuple[int, ...]) -> None:
    text = f"nothing to show: an allocation\nof shape {shape}"
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=FONT, transform=ax.transAxes)


def _rows(data: Amounts, block: int, sort: bool) -> list[Row]:
    """Cut the data into panels: shares worked out, sorted, shortened."""
    receivers = data.allocation.shape[-1]

    def each(values: np.ndarray | None) -> list[np.ndarray]:
        absent = np.full(receivers, np.nan)
        count = data.allocation.size // receivers
        return [absent] * count if values is None else list(values.reshape(-1, receivers))

    allocation = each(data.allocation)
    rest = [math.nan] * len(allocation) if data.unspent is None else data.unspent.ravel()
    rows = []
    for given, low, high, weights, unspent in zip(
        allocation,
        each(data.lower),
        each(data.upper),
        each(data.weights),
        rest,
        strict=True,
    ):
        order = np.argsort(-given.astype(np.float64), kind="stable") if sort else None
        order = np.arange(receivers) if order is None else order
        spent = math.fsum(given.tolist())
        budget = spent + (0.0 if math.isnan(unspent) else unspent)
        heaviest = float(np.nanmax(weights, initial=0.0))
        parts = weights / (heaviest or np.nan)  # whose sum does not overflow
        share = budget * (parts / np.nansum(parts)) if heaviest > 0 else parts
        bound = np.where(np.isfinite(high), high, np.nan)
        amounts, lower, upper, shares = (
            vector_means(values[order], block) for values in (given, low, bound, share)
        )
        firsts = order[::block]
        rows.append(Row(amounts, lower, upper, shares, firsts, spent, float(unspent)))
    return rows


def _right_end(rows: list[Row]) -> float:
    """Return the end of the scale: all amounts and shares, and caps unless they lie far out."""
    largest = max(
        np.nanmax([*row.amounts, *row.lower, *row.share, row.unspent], initial=0.0) for row in rows
    )
    near = [np.nanmax(row.upper[row.upper <= 1.5 * largest], initial=0.0) for row in rows]
    with np.errstate(under="ignore"):
        return 1.04 * float(max(largest, *near)) or 1.0


def _bars(ax: Axes, row: Row, style: Style) -> Any:
    places = np.arange(len(row.amounts))
    drawn = ax.barh(places, row.amounts, height=BAR, color=style.color, zorder=2)
    if row.unspent > 0:
        ax.barh(
            [len(places)],
            [row.unspent],
            height=BAR,
            color=UNSPENT,
            edgecolor="#777777",
            hatch="//////",
            linewidth=0.6,
            zorder=2,
        )
    return drawn


def _marks(ax: Axes, row: Row, right: float, inches: float) -> None:
    """Bracket each bar by its caps, and cross it by its share."""
    from matplotlib.path import Path

    tall = 72 * inches * BAR * 1.3  # points from end to end of a bracket
    foot = min(0.5, 4.5 / tall)
    bracket = np.array([[foot, 1.0], [0.0, 1.0], [0.0, -1.0], [foot, -1.0]])
    places = np.arange(len(row.amounts))
    for values, side, name in ((row.lower, 1, "lower"), (row.upper, -1, "upper")):
        # A lower cap of 0 is the axis itself.
        shown = (values > 0) & (values <= right) if side > 0 else values <= right
        if shown.any():
            ax.scatter(
                values[shown],
                places[shown],
                s=tall**2,
                marker=Path(bracket * (side, 1)),
                facecolors="none",
                edgecolors=CAP,
                linewidths=min(1.1, tall / 6),
                zorder=4,
                clip_on=False,
                label=name,
            )
    shown = np.isfinite(row.share)
    if shown.any():
        half = 0.5 * BAR * 1.15
        ax.vlines(
            row.share[shown],
            places[shown] - half,
            places[shown] + half,
            colors=SHARE,
            linewidths=1.2,
            zorder=3,
            label="share",
        )


def _values(ax: Axes, row: Row, layout: Layout, slots: int, style: Style, whole: bool) -> None:
    """Write the amounts in a column beside the panel."""
    fits = layout.height / slots >= 1.2 * FONT / 72
    if not (fits if style.include_values is None else style.include_values):
        return
    written = [*row.amounts, row.unspent] if row.unspent > 0 else row.amounts
    for place, amount in enumerate(written):
        ax.text(
            1.015,
            place,
            number(amount, whole),
            va="center",
            fontsize=FONT,
            transform=ax.get_yaxis_transform(),
        )


def number(amount: float, whole: bool = False) -> str:
    """Return an amount in few characters."""
    if (whole and amount == int(amount)) or amount == 0:
        return f"{int(amount)}" if amount < 1e7 else f"{amount:.4g}"
    if 1e4 <= amount < 1e7:
        return f"{amount:.0f}"
    return f"{amount:.4g}"


def _name_axes(
    data: Amounts,
    axes: np.ndarray,
    rows: list[Row],
    layout: Layout,
    style: Style,
    own: bool,
) -> None:
    for n, (ax, row) in enumerate(zip(axes, rows, strict=True)):
        first = not own or style.sort or n % layout.columns == 0
        last = not own or n + layout.columns >= len(axes)
        names = data.labels or [str(i) for i in range(data.allocation.shape[-1])]
        shown = [names[i] for i in row.order]
        step = labels.thinning(len(shown), layout.height, 1.2 * FONT / 72)
        ticks = list(range(0, len(shown), step))
        texts = shown[::step]
        if any(other.unspent > 0 for other in rows):
            # All panels of a line share their names, so each has this place if one needs it;
            # the last name would run into this one where names are thinned.
            keep = [t for t in ticks if len(shown) - t >= step]
            ticks, texts = [*keep, len(shown)], [*texts[: len(keep)], "unspent"]
        ax.set_yticks(ticks, labels=texts, parse_math=False)
        ax.tick_params(labelsize=FONT, length=0, axis="y", labelleft=first)
        ax.tick_params(labelsize=FONT, length=2, axis="x", labelbottom=last)
        ax.locator_params(axis="x", nbins=max(2, int(layout.width / 0.5)))
        if last:
            ax.set_xlabel(style.xlabel, fontsize=FONT + 1)
        if step > 1 and first:
            ax.set_ylabel(f"every {labels.ordinal(step)} bar labelled", fontsize=FONT)
        ax.grid(axis="x", color="#e5e5e5", linewidth=0.5, zorder=0)
        ax.set_axisbelow(True)
        ax.spines[["top", "right", "left"]].set_visible(False)
        ax.spines["bottom"].set_linewidth(0.5)
        ax.axvline(0, color="#444444", linewidth=0.7, zorder=5)


def _titles(
    data: Amounts, axes: np.ndarray, rows: list[Row], block: int, style: Style, own: bool
) -> None:
    """Say for each row what was spent and what was left, and above all what a bar means."""
    said = [style.title] if style.title else []
    if block > 1:
        said.append(f"{data.allocation.shape[-1]} receivers, each bar the mean of {block}")
    above = "\n".join(said)
    if own and len(axes) > 1 and above:
        figures.root(axes[0]).suptitle(above, fontsize=FONT + 2)
        above = ""
    outer = data.allocation.shape[:-1]
    whole = data.allocation.dtype.kind in "iub"
    for n, (ax, row) in enumerate(zip(axes, rows, strict=True)):
        name = ""
        if data.row_labels is not None:
            name = f"{data.row_labels[n]}: "
        elif len(axes) > 1:
            index = tuple(int(i) for i in np.unravel_index(n, outer))
            name = f"row {index[0] if len(index) == 1 else index}: "
        line = f"{name}{number(row.spent, whole)} spent"
        if not math.isnan(row.unspent):
            line += f", {number(row.unspent, whole)} unspent"
        ax.set_title(
            "\n".join(part for part in (above, line) if part),
            fontsize=FONT + 1,
            pad=4,
            parse_math=False,
        )


def _explain(figure: Any, axes: np.ndarray, rows: list[Row], right: float, own: bool) -> None:
    """Say in a legend what the marks are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    def line(marker: str, color: str, label: str) -> Line2D:
        return Line2D([], [], linestyle="", marker=marker, color=color, label=label, markersize=7)

    beyond = sum(int((row.upper > right).sum()) for row in rows)
    upper = any((row.upper <= right).any() for row in rows)
    handles: list[Any] = []
    if any((row.lower > 0).any() for row in rows):
        handles.append(line("$[$", CAP, "lower cap"))
    if upper or beyond:
        out = f" ({beyond} beyond the edge)" if beyond else ""
        handles.append(line("$]$", CAP, f"upper cap{out}"))
    if any(np.isfinite(row.share).any() for row in rows):
        handles.append(line("|", SHARE, "share by weight"))
    if any(row.unspent > 0 for row in rows):
        handles.append(
            Patch(facecolor=UNSPENT, edgecolor="#777777", hatch="//////", label="unspent")
        )
    if not handles:
        return
    options: dict[str, Any] = {"fontsize": FONT, "frameon": False, "handletextpad": 0.3}
    if own:
        columns = len(handles) if len(axes) > 1 or len(handles) < 3 else 2
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, **options)
    else:
        axes[-1].legend(handles=handles, loc="best", **options)
