"""One pool of threads for NumPy's BLAS and fastattn, and whose threads serve.

The threads are those of the compiled backend, which is asked by name.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from typing import Any

__all__ = ["Sharing", "describe", "share_threads"]

_MODULE = "fastattn._cython.blas"


@dataclass(frozen=True, repr=False)
class Sharing:
    """What `share_threads` could do; as text, a sentence that says so."""

    shared: bool
    blas: str
    reason: str | None

    def __repr__(self) -> str:
        """Say it in a sentence."""
        if self.shared:
            return f"NumPy's BLAS runs its jobs on fastattn's threads: {self.blas}"
        return f"NumPy's BLAS keeps its own threads: {self.reason or 'as was asked for'}"


def share_threads(share: bool = True) -> Sharing:
    """Let NumPy's BLAS and fastattn share one pool of threads, in this process.

    The threads of OpenBLAS, NumPy's usual BLAS, look out for work for tens of milliseconds after a
    product. What fastattn computes right after it shares the cores with them, and takes up to
    twice as long. On one pool nobody is in the way of the other; a product takes as long as before,
    and has the same bits.

    Parameters
    ----------
    share
        False lets BLAS have threads of its own again.

    Returns
    -------
    Sharing
        ``shared``: whether they share now; ``blas``: NumPy's BLAS in its own words; ``reason``: why
        they do not, or None. Only an OpenBLAS with threads of its own, not OpenMP's, has the
        callback that this takes (since 0.3.27, so that of NumPy's wheels), and only the compiled
        backend has threads to share. Calling it again does no harm.

    Raises
    ------
    TypeError
        If ``share`` is neither True nor False.

    Notes
    -----
    It is off until somebody calls this: the threads then look out for work for 30 ms after the
    last, as those of OpenBLAS do, instead of one, and are in the way of whatever else computes.
    After longer pauses the first product waits until they are awake, up to 8 ms on a small virtual
    machine.
    Products of several Python threads take turns. A forked child does not share until it calls
    this. SciPy brings an OpenBLAS of its own, which is left alone.

    Examples
    --------
    >>> import fastattn
    >>> sharing = fastattn.share_threads()
    >>> sharing.shared or sharing.reason is not None
    True
    >>> fastattn.share_threads(False)
    NumPy's BLAS keeps its own threads: as was asked for
    """
    if type(share) is not bool:
        raise TypeError(f"share must be True or False, got {share!r}")
    blas: Any = sys.modules.get(_MODULE)
    if not share:
        if blas is not None:
            blas.unshare()
        return Sharing(False, "", None)
    try:
        blas = import_module(_MODULE)
    except ImportError:
        reason = "only compiled kernels (backend cython) have threads that it could share"
        return Sharing(False, "", reason)
    name, refusal = blas.share()
    return Sharing(refusal is None, name, refusal)


def describe() -> str:
    """Say whose threads serve."""
    blas: Any = sys.modules.get(_MODULE)
    if blas is not None and blas.shared():
        return "fastattn's own, on which NumPy's BLAS runs too"
    return "fastattn's own; NumPy's BLAS has others (fastattn.share_threads lets them share)"
