"""Pictures of attention and of allocations, in the way of scikit-learn's displays.

A display holds its data; ``plot`` draws them, onto given axes or into a figure of its own, which
never passes through pyplot: no window opens, and nobody's current figure changes. Matplotlib (the
extra ``plot``) is imported when something is drawn. One heat map per head on one scale, bars with
their caps; hidden cells are grey, long axes drawn in blocks, and the picture says both.
TensorBoard takes figures as they are: ``SummaryWriter.add_figure("attention", display.figure_)``.

attention.py allocation.py   the displays: checked data, and what was drawn
heatmap.py bars.py           how they are drawn: data and style in, what was drawn out
figures.py      beside pyplot        labels.py   thinned        blocks.py   means of blocks
files.py        from `.npy` to a picture, for the command line
"""

from fastattn.plot.allocation import AllocationDisplay
from fastattn.plot.attention import AttentionDisplay

__all__ = ["AllocationDisplay", "AttentionDisplay"]
