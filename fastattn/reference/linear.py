"""Linear maps: the layer of that name in neural networks."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["linear"]


def linear(x: ArrayLike, weight: ArrayLike, bias: ArrayLike | None = None) -> NDArray[np.float64]:
    """Compute ``x @ weight.T + bias``.

    Parameters
    ----------
    x : array_like, (..., K)
    weight : array_like, (N, K)
    bias : array_like, (N,), optional

    Returns
    -------
    float64 array (..., N)

    Examples
    --------
    >>> linear([1.0, 2.0], [[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], [0.5, 0.0, 0.0])
    array([11.5, 17. , 23. ])
    """
    with np.errstate(all="ignore"):
        product: NDArray[np.float64]
        product = np.asarray(x, np.float64) @ np.asarray(weight, np.float64).T
        return product if bias is None else product + np.asarray(bias, np.float64)
