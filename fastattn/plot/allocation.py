"""The picture of an allocation: who got how much, between which caps, and what is left."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn import AllocationResult, SharedAllocation
from fastattn.plot import bars, figures, labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

__all__ = ["AllocationDisplay"]

# Sums of amounts stay within float64, and what Matplotlib adds for ticks and margins does too.
_LARGEST = 1e300


class AllocationDisplay:
    """Bars of what every receiver got, with its caps, and what was not spent.

    Usually made by `from_allocation`, which draws at once. Each row of an allocation is a panel of
    its own, all on one scale of amounts.

    Parameters
    ----------
    allocation : array_like, shape (..., n)
        Amounts, finite and at least 0. A pandas Series or DataFrame brings its labels along.
    lower, upper : array_like, optional
        Caps, broadcast to `allocation`; drawn as brackets. An infinite upper cap is none.
    weights : array_like, optional
        What was allocated by, broadcast to `allocation`. A thin line marks each receiver's share
        by weight alone: what it would have got of all that was given out or left, without caps.
    labels : sequence of length n, optional
        Names of the receivers.
    row_labels : sequence, optional
        Names of the rows; None: their indices.
    unspent : array_like, optional
        What caps left of each row's budget, as ``on_unspent="keep"`` reports it.

    Attributes
    ----------
    figure_ : matplotlib Figure
        What was drawn; known to pyplot only if the axes were.
    axes_ : ndarray of Axes
        One per row.
    bars_ : list of BarContainer
        One per row, the receivers as they are drawn.
    order_ : list of ndarray
        Per row, which receivers its bars are, from above; blocks' first ones where they were cut.
    block_ : int
        How many receivers each bar is the mean of.

    Raises
    ------
    ValueError
        If an amount is negative or not finite, there is not one label for each receiver or row, or
        what stands beside the amounts does not broadcast to them.
    TypeError
        If amounts are no real numbers.

    See Also
    --------
    AttentionDisplay : Weights as heat maps.

    Examples
    --------
    >>> from fastattn.plot import AllocationDisplay
    >>> display = AllocationDisplay.from_allocation(
    ...     [5, 3, 2], upper=[9, 9, 2], weights=[0.33, 0.33, 0.34], labels=["A", "B", "C"]
    ... )
    >>> display.figure_.savefig("hours.png")  # doctest: +SKIP
    """

    figure_: Figure
    axes_: np.ndarray
    bars_: list[Any]
    order_: list[np.ndarray]
    block_: int

    def __init__(
        self,
        allocation: ArrayLike,
        *,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        labels: Any = None,
        row_labels: Any = None,
        unspent: ArrayLike | None = None,
    ) -> None:
        self.allocation = _amounts(allocation)
        shape = self.allocation.shape
        rows = math.prod(shape[:-1])
        names, row_names = _labels_of(allocation)
        self.labels = _texts("labels", labels, names, shape[-1], "receivers")
        self.row_labels = _texts("row_labels", row_labels, row_names, rows, "rows")
        self.lower = _beside("lower", lower, shape, shape)
        self.upper = _beside("upper", upper, shape, shape)
        self.weights = _beside("weights", weights, shape, shape)
        self.unspent = _beside("unspent", unspent, shape[:-1], shape)
        for name in ("allocation", "lower", "unspent"):
            _check_drawable(name, getattr(self, name))
        self._own = False  # whether plot has made the figure

    @classmethod
    def from_allocation(
        cls,
        allocation: Any,
        *,
        lower: ArrayLike | None = None,
        upper: ArrayLike | None = None,
        weights: ArrayLike | None = None,
        labels: Any = None,
        row_labels: Any = None,
        unspent: ArrayLike | None = None,
        ax: Any = None,
        **options: Any,
    ) -> AllocationDisplay:
        """Draw what `fastattn.allocate` returned.

        Parameters
        ----------
        allocation
            As for the class; or an `AllocationResult`, whose weights and unspent rest are drawn
            too, or a `SharedAllocation`.
        lower, upper, weights, labels, row_labels, unspent
            As for the class.
        ax, **options
            As for `plot`.

        Returns
        -------
        AllocationDisplay
            With the picture in `figure_`.

        Raises
        ------
        ImportError, ValueError, TypeError
            As the class and `plot` do.
        """
        if isinstance(allocation, AllocationResult):
            weights = allocation.weights if weights is None else weights
            unspent = allocation.unspent if unspent is None else unspent
            allocation = allocation.allocation
        elif isinstance(allocation, SharedAllocation):
            allocation = allocation.allocation
        display = cls(
            allocation,
            lower=lower,
            upper=upper,
            weights=weights,
            labels=labels,
            row_labels=row_labels,
            unspent=unspent,
        )
        return display.plot(ax, **options)

    def plot(
        self,
        ax: Any = None,
        *,
        sort: bool = False,
        color: str = "#4477aa",
        include_values: bool | None = None,
        max_bars: int = 150,
        xlabel: str = "amount",
        title: str | None = None,
    ) -> AllocationDisplay:
        """Draw the bars.

        Parameters
        ----------
        ax : Axes or array of Axes, optional
            Axes to draw on, one per row. None: a new figure, outside pyplot.
        sort : bool
            The largest amounts first; equal ones keep their order.
        color : str
            Of the bars.
        include_values : bool, optional
            Write the amounts beside the bars; None: where they fit.
        max_bars : int
            More receivers than this are drawn in blocks, each bar a mean, which the title says.
        xlabel : str
            What the amounts are, say hours.
        title : str, optional
            Stands above the rows, before what is said of budgets and blocks.

        Returns
        -------
        AllocationDisplay
            This one.

        Raises
        ------
        ImportError
            When Matplotlib is missing.
        ValueError
            When there are more rows than axes, or than a picture can show.
        """
        figures.require_matplotlib()
        style = bars.Style(sort, color, include_values, max_bars, xlabel, title)
        data = bars.Amounts(
            self.allocation,
            self.lower,
            self.upper,
            self.weights,
            self.unspent,
            self.labels,
            self.row_labels,
        )
        drawn = bars.draw(data, ax, style)
        self.figure_, self.axes_ = drawn.figure, drawn.axes
        self.bars_, self.order_, self.block_ = drawn.bars, drawn.order, drawn.block
        self._own = ax is None
        return self

    def _repr_png_(self) -> bytes | None:
        """Show a figure of its own in a notebook; one of pyplot's is shown by pyplot."""
        return figures.png(self.figure_) if self._own else None


def _amounts(allocation: Any) -> np.ndarray:
    array = np.asarray(allocation)
    if array.dtype.kind not in "fiub" or isinstance(allocation, np.ma.MaskedArray):
        raise TypeError(
            f"allocation of shape {array.shape} has dtype {array.dtype}; plain real numbers are "
            "needed: `np.asarray(allocation, dtype=np.float64)`"
        )
    if array.ndim == 0:
        raise ValueError("allocation must have a dim of receivers, (n,); found a single number")
    wrong = ~(np.isfinite(array) & (array >= 0))
    if wrong.any():
        index = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"allocation holds {array[index]} at {index}; amounts are finite and at least 0: "
            "draw what fastattn.allocate returned"
        )
    return array


def _labels_of(allocation: Any) -> tuple[Any, Any]:
    """Return the labels of receivers and rows that a Series or a DataFrame has."""
    index = getattr(allocation, "index", None)
    if index is None or callable(index):  # a list has a method of that name
        return None, None
    columns = getattr(allocation, "columns", None)
    return (index, None) if columns is None else (columns, index)


def _texts(name: str, given: Any, found: Any, count: int, what: str) -> list[str] | None:
    return labels.texts(name, found if given is None else given, count, what)


def _beside(
    name: str, values: Any, shape: tuple[int, ...], whole: tuple[int, ...]
) -> np.ndarray | None:
    """Return what stands beside the amounts as float64 in `shape`, or None."""
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float64)
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise ValueError(
            f"{name} of shape {array.shape} does not broadcast to {shape}; the allocation's shape "
            f"is {whole}"
        ) from None


def _check_drawable(name: str, amounts: np.ndarray | None) -> None:
    largest = 0.0 if amounts is None else float(np.max(amounts, initial=0.0))
    if largest > _LARGEST:
        raise ValueError(
            f"{name} holds {largest:.4g}, and no axis can be drawn beyond {_LARGEST:g}: pass all "
            f"amounts in a larger unit, `np.asarray({name}) / 1e300`"
        )
