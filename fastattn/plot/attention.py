"""The picture of attention weights: a heat map for each head."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn.plot import figures, heatmap, labels

if TYPE_CHECKING:
    from matplotlib.colorbar import Colorbar
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

__all__ = ["AttentionDisplay"]


class AttentionDisplay:
    """Heat maps of attention weights, one per head, on one scale of colours.

    Usually made by `from_weights` or `from_attention`, which draw at once. Cells that cannot be
    attended to are grey and hatched, which a legend says; axes longer than the picture can show are
    cut into blocks, each drawn as the mean of its visible cells, which the title says.

    Parameters
    ----------
    weights : array_like, shape (..., L, S) or (S,)
        Finite numbers, one per query and key; all dims before the last two count as heads. A
        pandas DataFrame brings its labels along; what a masked array hides is hidden.
    query_labels : sequence of length L, optional
        Names of the rows: strings, numbers, dates, a pandas index.
    key_labels : sequence of length S, optional
        Names of the columns.
    hidden : array_like of bool or "zeros", optional
        Cells that could not be attended to, broadcast to `weights`; "zeros": where a weight is
        exactly 0.
    head_labels : sequence, optional
        Names of the heads, written above them; None: their indices.

    Attributes
    ----------
    figure_ : matplotlib Figure
        What was drawn; known to pyplot only if the axes were.
    axes_ : ndarray of Axes
        One per head.
    im_ : ndarray of AxesImage
        One per head; none where there is nothing to show.
    text_ : list of list of Text
        Per head the numbers written into cells; empty where they do not fit.
    colorbar_ : Colorbar or None
        The one for all heads.
    block_ : tuple of int
        How many queries and keys each cell is the mean of.

    Raises
    ------
    ValueError
        If there is not one label for each row, column or head, `hidden` does not broadcast, or
        weights are a single number.
    TypeError
        If weights are no real numbers, or `hidden` is not bool.

    See Also
    --------
    AllocationDisplay : How a budget was shared out.

    Examples
    --------
    >>> from fastattn.plot import AttentionDisplay
    >>> display = AttentionDisplay.from_weights(
    ...     [[0.9, 0.1], [0.2, 0.8]], query_labels=["der", "Hund"], key_labels=["the", "dog"]
    ... )
    >>> display.figure_.savefig("weights.png")  # doctest: +SKIP
    """

    figure_: Figure
    axes_: np.ndarray
    im_: np.ndarray
    text_: list[list[Any]]
    colorbar_: Colorbar | None
    block_: tuple[int, int]

    def __init__(
        self,
        weights: ArrayLike,
        *,
        query_labels: Any = None,
        key_labels: Any = None,
        hidden: ArrayLike | None = None,
        head_labels: Any = None,
    ) -> None:
        self.weights = _as_weights(weights)
        shape = self.weights.shape
        self.hidden = _as_hidden(hidden, weights, self.weights)
        framed = hasattr(weights, "columns") and hasattr(weights, "index")
        if framed and query_labels is None:
            query_labels = getattr(weights, "index", None)
        if framed and key_labels is None:
            key_labels = getattr(weights, "columns", None)
        self.query_labels = labels.texts("query_labels", query_labels, shape[-2], "queries")
        self.key_labels = labels.texts("key_labels", key_labels, shape[-1], "keys")
        self._own = False  # whether plot has made the figure
        heads = math.prod(shape[:-2])
        self.head_labels = labels.texts("head_labels", head_labels, heads, "heads")

    @classmethod
    def from_weights(
        cls,
        weights: ArrayLike,
        *,
        query_labels: Any = None,
        key_labels: Any = None,
        hidden: ArrayLike | None = None,
        head_labels: Any = None,
        ax: Any = None,
        **options: Any,
    ) -> AttentionDisplay:
        """Draw weights that are there already.

        Parameters
        ----------
        weights, query_labels, key_labels, hidden, head_labels
            As for the class.
        ax, **options
            As for `plot`.

        Returns
        -------
        AttentionDisplay
            With the picture in `figure_`.

        Raises
        ------
        ImportError, ValueError, TypeError
            As the class and `plot` do.
        """
        display = cls(
            weights,
            query_labels=query_labels,
            key_labels=key_labels,
            hidden=hidden,
            head_labels=head_labels,
        )
        return display.plot(ax, **options)

    @classmethod
    def from_attention(
        cls,
        query: ArrayLike,
        key: ArrayLike,
        *,
        query_labels: Any = None,
        key_labels: Any = None,
        head_labels: Any = None,
        ax: Any = None,
        plot_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> AttentionDisplay:
        """Draw the weights that `fastattn.attention` gives, and mark what its options hide.

        Parameters
        ----------
        query : array_like, shape (..., L, E)
            Queries.
        key : array_like, shape (..., S, E)
            Keys.
        query_labels, key_labels, head_labels
            As for the class; labels of a pandas DataFrame are used.
        ax : Axes or array of Axes, optional
            As for `plot`.
        plot_options : dict, optional
            Further arguments of `plot`.
        **options
            Options of `fastattn.attention`: ``causal=True``, ``mask=``, ``scale=``, ...

        Returns
        -------
        AttentionDisplay
            With the picture in `figure_`.

        Raises
        ------
        ImportError, ValueError, TypeError
            As `fastattn.attention`, the class and `plot` do.
        """
        if query_labels is None and hasattr(query, "columns"):
            query_labels = getattr(query, "index", None)
        if key_labels is None and hasattr(key, "columns"):
            key_labels = getattr(key, "index", None)
        weights, hidden = _attended(query, key, options)
        display = cls(
            weights,
            query_labels=query_labels,
            key_labels=key_labels,
            hidden=hidden,
            head_labels=head_labels,
        )
        return display.plot(ax, **(plot_options or {}))

    def plot(
        self,
        ax: Any = None,
        *,
        cmap: str | Colormap = "magma_r",
        vmin: float | None = None,
        vmax: float | None = None,
        include_values: bool | None = None,
        colorbar: bool = True,
        max_cells: int | None = None,
        title: str | None = None,
    ) -> AttentionDisplay:
        """Draw the heat maps.

        Parameters
        ----------
        ax : Axes or array of Axes, optional
            Axes to draw on, one per head. None: a new figure, outside pyplot.
        cmap : str or Colormap
            Colours; the default runs evenly from light to dark, on paper too.
        vmin, vmax : float, optional
            Ends of the colour scale; None: 0 (or less, where a weight is) and the largest cell.
        include_values : bool, optional
            Write the numbers into the cells; None: where they fit.
        colorbar : bool
            Draw the colour bar.
        max_cells : int, optional
            At most so many cells along an axis; None: a hundred per inch.
        title : str, optional
            Stands above the heads, before what is said of blocks.

        Returns
        -------
        AttentionDisplay
            This one.

        Raises
        ------
        ImportError
            When Matplotlib is missing.
        ValueError
            When there are more heads than axes, or than a picture can show.
        """
        figures.require_matplotlib()
        style = heatmap.Style(cmap, vmin, vmax, include_values, colorbar, max_cells, title)
        data = heatmap.Heads(
            self.weights, self.hidden, self.query_labels, self.key_labels, self.head_labels
        )
        drawn = heatmap.draw(data, ax, style)
        self.figure_, self.axes_, self.im_ = drawn.figure, drawn.axes, drawn.images
        self.text_, self.colorbar_, self.block_ = drawn.texts, drawn.colorbar, drawn.block
        self._own = ax is None
        return self

    def _repr_png_(self) -> bytes | None:
        """Show a figure of its own in a notebook; one of pyplot's is shown by pyplot."""
        return figures.png(self.figure_) if self._own else None


def _as_weights(weights: Any) -> np.ndarray:
    """Return weights as an array of at least two dims, not copied, or say what is wrong."""
    array = np.asarray(weights)
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise TypeError(
            f"weights of shape {array.shape} have dtype {array.dtype}; real numbers are needed: "
            "`np.asarray(weights, dtype=np.float64)`"
        )
    if array.ndim == 0:
        raise ValueError("weights must have a dim of keys, at least (S,); found a single number")
    return array[None] if array.ndim == 1 else array


def _as_hidden(hidden: Any, given: Any, weights: np.ndarray) -> np.ndarray:
    """Return which cells are hidden, in the weights' shape."""
    if hidden is None and isinstance(given, np.ma.MaskedArray):
        hidden = np.ma.getmaskarray(given)
    if hidden is None:
        hidden = False
    elif isinstance(hidden, str):
        if hidden != "zeros":
            raise ValueError(f'hidden must be an array of bool, "zeros" or None, not {hidden!r}')
        hidden = weights == 0
    array = np.asarray(hidden)
    if array.dtype != bool:
        raise TypeError(
            f"hidden of shape {array.shape} has dtype {array.dtype}; it must be bool, True where "
            "nothing can be seen (`np.asarray(hidden, bool)`; of a mask that may attend, the "
            "opposite)"
        )
    try:
        return np.broadcast_to(array, weights.shape)
    except ValueError:
        raise ValueError(
            f"hidden of shape {array.shape} does not broadcast to the weights' {weights.shape}"
        ) from None


def _attended(query: Any, key: Any, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return the weights of a call to attention, and which of them its options hide."""
    import fastattn

    options = {**options, "return_weights": True}
    for name in ("out", "return_lse"):
        if options.pop(name, None) not in (None, False):
            raise ValueError(f"{name} has no part in a picture: leave it out")
    value = np.zeros((*np.shape(key)[:-1], 0), np.float32)
    _, weights = fastattn.attention(query, key, value, **options)
    # Vectors without features see the same keys, all with one weight: what is 0 there is hidden,
    # and not merely small. What only moves scores is left out; a mask keeps its -inf.
    for name in ("scale", "softcap", "alibi_slopes", "sinks", "similarity"):
        options.pop(name, None)
    mask = options.pop("mask", None)
    if mask is not None:
        mask = np.asarray(mask)
        options["mask"] = mask if mask.dtype == bool else ~np.isneginf(mask.astype(np.float64))
    blank = np.zeros((*np.shape(query)[:-1], 0), np.float32)
    _, evenly = fastattn.attention(blank, value, value, **options)
    return weights, evenly == 0
