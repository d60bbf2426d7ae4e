"""Pictures of attention and of allocations, in the way of scikit-learn's displays.

A display holds its data; ``plot`` draws them, onto given axes or into a figure of its own, which
never passes through pyplot: no window opens, and nobody's current figure changes. Matplotlib (the
extra ``plot``) is imported when something is drawn.
"""

from fastattn.plot.allocation import AllocationDisplay
from fastattn.plot.attention import AttentionDisplay

__all__ = ["AllocationDisplay", "AttentionDisplay"]
