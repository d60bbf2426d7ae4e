"""How the heat maps of an `AttentionDisplay` are drawn."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fastattn.plot import figures, labels
from fastattn.plot.blocks import Blocks, block_means

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.text import Text

FONT = labels.FONT
HIDDEN_FILL, HIDDEN_LINES = "#d9d9d9", "#a8a8a8"
NOT_FINITE = "#00a2a2"  # a hue that no colour map of light and dark has
_CELLS_PER_INCH = 100
_MOST_HATCHED = 4000  # stretches of hidden cells; beyond, grey alone
_VALUES_UP_TO = 200  # cells, and each as large as a number:
_VALUE_INCHES = 0.3
_WIDTHS = {1: 4.6, 2: 2.9, 3: 2.0, 4: 1.55, 6: 1.05, 8: 0.8}  # inches of a head, by heads abreast
_TALLEST = 8.0  # inches of all heads
_SLIMMEST = 6.0  # beyond this ratio of the sides, cells are no longer square
_CELL = 0.7  # inches at most
_NARROW = 2.5  # inches that hold no title beside a legend


class Heads(NamedTuple):
    """What is drawn: the weights (..., L, S) of all heads, which are hidden, and all names."""

    weights: np.ndarray
    hidden: np.ndarray
    query_labels: list[str] | None
    key_labels: list[str] | None
    head_labels: list[str] | None


class Style(NamedTuple):
    """The arguments of `AttentionDisplay.plot`."""

    cmap: str | Colormap
    vmin: float | None
    vmax: float | None
    include_values: bool | None
    colorbar: bool
    max_cells: int | None
    title: str | None


class Layout(NamedTuple):
    """How the heads of a figure of its own stand, and the inches of each."""

    rows: int
    columns: int
    width: float
    height: float


class Drawn(NamedTuple):
    """What became of them: one of `axes`, `images` and `texts` per head, in a figure."""

    figure: Figure
    axes: np.ndarray
    images: np.ndarray
    texts: list[list[Text]]
    colorbar: Colorbar | None
    block: tuple[int, int]


def draw(data: Heads, ax: Any, style: Style) -> Drawn:
    """Draw all heads onto given axes, or into a figure of their own."""
    length, width = data.weights.shape[-2:]
    heads = math.prod(data.weights.shape[:-2])
    figures.check_panels(heads, "heads", "draw some of them, as in `weights[:, :8]`")
    panels = max(heads, 1)
    if ax is None:
        layout = _layout(panels, length, width)
        figure = _figure(data, layout)
        axes = figures.grid(figure, panels, layout.columns)
    else:
        axes = figures.given_axes(ax, panels, "heads")
        figure = figures.root(axes[0])
        layout = Layout(1, 1, *figures.inches(axes[0]))
    if 0 in data.weights.shape:
        _draw_nothing(axes, data.weights.shape)
        return Drawn(figure, axes, np.empty(0, object), [], None, (1, 1))
    blocks = _blocks(data, layout, style)
    block = (blocks[0].rows, blocks[0].columns)
    limits = _limits(blocks, style)
    images = [_heat_map(axes[n], blocks[n], (length, width), limits, style) for n in range(heads)]
    texts = [_values(axes[n], blocks[n], images[n], layout, style) for n in range(heads)]
    _name_axes(data, axes, layout, own=ax is None)
    _name_heads(data, axes, block, style, own=ax is None)
    colorbar = None
    if style.colorbar:
        extend = _beyond(blocks, limits)
        colorbar = _colour_bar(figure, images[0], axes, layout, extend)
    _explain(figure, axes, blocks, own=ax is None)
    return Drawn(figure, axes, figures.flat(images), texts, colorbar, block)


def _layout(heads: int, length: int, width: int) -> Layout:
    ratio = max(length, 1) / max(width, 1)
    if ratio < 1 / _SLIMMEST and heads <= 8:
        columns = 1  # long rows lie below one another
    else:
        columns = {1: 1, 2: 2, 3: 3, 4: 2}.get(heads, 4 if heads <= 16 else 6 if heads <= 36 else 8)
    rows = -(-heads // columns)
    inches = min(_WIDTHS[columns], max(width, 1) * _CELL)
    if 1 / _SLIMMEST <= ratio <= _SLIMMEST:
        height = inches * ratio
    else:
        height = min(max(inches * ratio, 0.35), 0.8 * _TALLEST / rows)
        inches = max(inches, 0.35)
    shrink = min(1.0, _TALLEST / (rows * height))
    return Layout(rows, columns, inches * shrink, height * shrink)


def _figure(data: Heads, layout: Layout) -> Figure:
    """Make a figure as large as the heads and all that is written around them."""
    left = 0.45 + labels.width_of(data.query_labels)
    keys = labels.width_of(data.key_labels)
    flat = keys * data.weights.shape[-1] <= layout.width
    below = 0.45 + (0.1 if flat else keys) + 0.22 * bool(data.hidden.any())
    width = left + layout.columns * (layout.width + 0.15) + 0.75
    height = below + layout.rows * (layout.height + 0.22) + 0.2
    return figures.new_figure(max(width, 3.0), height)


def _draw_nothing(axes: np.ndarray, shape: tuple[int, ...]) -> None:
    text = f"nothing to show: weights of shape {shape}"
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel("key", fontsize=FONT + 1)
        ax.set_ylabel("query", fontsize=FONT + 1)
        ax.text(0.5, 0.5, text, ha="center", va="center", fontsize=FONT, transform=ax.transAxes)


def _blocks(data: Heads, layout: Layout, style: Style) -> list[Blocks]:
    most_rows = style.max_cells or max(1, int(layout.height * _CELLS_PER_INCH))
    most_columns = style.max_cells or max(1, int(layout.width * _CELLS_PER_INCH))
    shape = (-1, *data.weights.shape[-2:])
    weights, hidden = data.weights.reshape(shape), data.hidden.reshape(shape)
    return [
        block_means(head, veil, most_rows, most_columns)
        for head, veil in zip(weights, hidden, strict=True)
    ]


def _limits(blocks: list[Blocks], style: Style) -> tuple[float, float]:
    """Return the ends of the colour scale, which all heads share."""
    shown = np.concatenate([block.means[~block.hidden] for block in blocks])
    shown = shown[np.isfinite(shown)]
    lowest = min(0.0, shown.min(initial=0.0)) if style.vmin is None else style.vmin
    highest = shown.max(initial=lowest) if style.vmax is None else style.vmax
    return float(lowest), float(highest if highest > lowest else lowest + 1.0)


def _heat_map(
    ax: Axes, block: Blocks, shape: tuple[int, int], limits: tuple[float, float], style: Style
) -> AxesImage:
    from matplotlib import colormaps

    colours = colormaps.get_cmap(style.cmap).with_extremes(bad=NOT_FINITE)
    shown = np.ma.array(block.means, mask=block.hidden | ~np.isfinite(block.means))
    rows, columns = block.means.shape
    # The last block may be shorter; its cell keeps the size of the others and is cut at the end.
    extent = (-0.5, columns * block.columns - 0.5, rows * block.rows - 0.5, -0.5)
    options: dict[str, Any] = {"extent": extent, "origin": "upper", "interpolation": "nearest"}
    image = ax.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1], **options)
    _veil(ax, block, options)
    ax.set(xlim=(-0.5, shape[1] - 0.5), ylim=(shape[0] - 0.5, -0.5))
    slim = not 1 / _SLIMMEST <= shape[0] / shape[1] <= _SLIMMEST
    ax.set_aspect("auto" if slim else "equal")
    for spine in ax.spines.values():
        spine.set_linewidth(0.5)
    return image


def _veil(ax: Axes, block: Blocks, options: dict[str, Any]) -> None:
    """Cover the hidden cells in grey, and hatch them where that can still be seen."""
    from matplotlib.colors import to_rgba
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    if not block.hidden.any():
        return
    grey = np.zeros((*block.hidden.shape, 4))
    grey[block.hidden] = to_rgba(HIDDEN_FILL)
    ax.imshow(grey, **options)
    edges = np.diff(np.pad(block.hidden.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    row, first = np.nonzero(edges == 1)
    _, last = np.nonzero(edges == -1)
    if len(row) > _MOST_HATCHED:
        return
    left, right = first * block.columns - 0.5, last * block.columns - 0.5
    top, bottom = row * block.rows - 0.5, (row + 1) * block.rows - 0.5
    # One path for all stretches, so that the lines run on from one to the next.
    corners = np.stack(
        [left, top, right, top, right, bottom, left, bottom, left, top], axis=-1
    ).reshape(-1, 2)
    codes = np.tile([Path.MOVETO, *[Path.LINETO] * 3, Path.CLOSEPOLY], len(row))
    ax.add_patch(
        PathPatch(
            Path(corners, codes),
            facecolor="none",
            edgecolor=HIDDEN_LINES,
            hatch="//////",
            linewidth=0,
            label="hidden",
        )
    )


def _values(ax: Axes, block: Blocks, image: AxesImage, layout: Layout, style: Style) -> list[Text]:
    """Write the numbers into the cells, dark on light and light on dark."""
    rows, columns = block.means.shape
    fits = (
        rows * columns <= _VALUES_UP_TO
        and min(layout.width / columns, 1.6 * layout.height / rows) >= _VALUE_INCHES
    )
    if not (fits if style.include_values is None else style.include_values):
        return []
    # One form for all, by the largest: what is tiny beside it reads 0.00.
    low, high = image.get_clim()
    form = ".2f" if 0.1 <= max(abs(low), abs(high)) < 100 else ".1e"
    texts = []
    for row, column in zip(*np.nonzero(~block.hidden & np.isfinite(block.means)), strict=True):
        mean = block.means[row, column]
        red, green, blue, _ = image.cmap(image.norm(mean))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        texts.append(
            ax.text(
                (column + 0.5) * block.columns - 0.5,
                (row + 0.5) * block.rows - 0.5,
                format(mean, form),
                ha="center",
                va="center",
                fontsize=FONT,
                color="white" if dark else "black",
            )
        )
    return texts


def _name_axes(data: Heads, axes: np.ndarray, layout: Layout, own: bool) -> None:
    """Label queries on the left and keys below, only at the outer heads of a grid."""
    length, width = data.weights.shape[-2:]
    for n, ax in enumerate(axes):
        first = not own or n % layout.columns == 0
        last = not own or n + layout.columns >= len(axes)
        every = labels.mark(ax.yaxis, data.query_labels, layout.height, length, False)
        ax.set_ylabel(_axis_title("query", every) if first else "", fontsize=FONT + 1)
        every = labels.mark(ax.xaxis, data.key_labels, layout.width, width, True)
        ax.set_xlabel(_axis_title("key", every) if last else "", fontsize=FONT + 1)
        ax.tick_params(labelleft=first, labelbottom=last)


def _axis_title(name: str, every: int) -> str:
    return name if every == 1 else f"{name} (every {labels.ordinal(every)} labelled)"


def _name_heads(
    data: Heads, axes: np.ndarray, block: tuple[int, int], style: Style, own: bool
) -> None:
    """Write what each head is called, and what a cell of a shortened axis means."""
    length, width = data.weights.shape[-2:]
    said = [style.title] if style.title else []
    if block != (1, 1):
        rows, columns = block
        said.append(f"{length} by {width} weights, each cell the mean of {rows} by {columns}")
    above = "\n".join(said)
    if own and len(axes) > 1 and above:
        figures.root(axes[0]).suptitle(above, fontsize=FONT + 2)
        above = ""
    outer = data.weights.shape[:-2]
    for n, ax in enumerate(axes):
        name = ""
        if data.head_labels is not None:
            name = data.head_labels[n]
        elif len(axes) > 1:
            index = tuple(int(i) for i in np.unravel_index(n, outer))
            while len(index) > 1 and outer[len(outer) - len(index)] == 1:
                index = index[1:]
            name = f"head {index[0] if len(index) == 1 else index}"
        title = "\n".join(line for line in (above, name) if line)
        # In narrow axes of the caller's the legend would run into it.
        aside = not own and figures.inches(ax)[0] < _NARROW and bool(data.hidden.any())
        ax.set_title(
            title, loc="left" if aside else "center", fontsize=FONT + 1, pad=3, parse_math=False
        )


def _beyond(blocks: list[Blocks], limits: tuple[float, float]) -> str:
    """Say at which ends of the colour scale cells lie beyond it, in Matplotlib's words."""
    shown = np.concatenate([block.means[~block.hidden] for block in blocks])
    shown = shown[np.isfinite(shown)]
    below, above = (shown < limits[0]).any(), (shown > limits[1]).any()
    return ("both" if above else "min") if below else "max" if above else "neither"


def _colour_bar(
    figure: Figure, image: AxesImage, axes: np.ndarray, layout: Layout, extend: str
) -> Colorbar:
    """Draw the one bar for all heads: beside them, or below where they are flat."""
    from matplotlib.ticker import MaxNLocator

    flat = layout.rows * layout.height < 1.3
    bar = figure.colorbar(
        image,
        ax=list(axes),
        location="bottom" if flat else "right",
        fraction=0.05,
        aspect=40 if flat else 25,
        shrink=0.6 if flat else 1.0,
        pad=0.02,
        extend=extend,
        # Numbers lie along a flat bar, and small weights are long ones.
        ticks=MaxNLocator(4, steps=[1, 2, 5, 10]) if flat else None,
    )
    bar.set_label("weight", fontsize=FONT + 1)
    bar.ax.tick_params(labelsize=FONT, length=2)
    bar.outline.set_linewidth(0.5)
    return bar


def _explain(figure: Figure, axes: np.ndarray, blocks: list[Blocks], own: bool) -> None:
    """Say in a legend what is neither a weight nor white."""
    from matplotlib.patches import Patch

    handles = []
    if any(block.hidden.any() for block in blocks):
        handles.append(
            Patch(
                facecolor=HIDDEN_FILL,
                edgecolor=HIDDEN_LINES,
                hatch="//////",
                linewidth=0.5,
                label="hidden",
            )
        )
    if any((~block.hidden & ~np.isfinite(block.means)).any() for block in blocks):
        handles.append(Patch(facecolor=NOT_FINITE, label="NaN or infinite"))
    if not handles:
        return
    options: dict[str, Any] = {"fontsize": FONT, "frameon": False, "ncols": len(handles)}
    if own:
        figure.legend(handles=handles, loc="outside lower right", **options)
    else:
        # Above the last head's right corner: the one place where no label can be.
        axes[-1].legend(
            handles=handles, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2, **options
        )
