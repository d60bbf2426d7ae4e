"""Whole units of a budget: how many of them an amount comes to, and what so many amount to."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastattn._core.arrays import is_bool

__all__ = ["MOST_UNITS", "Unit"]

MOST_UNITS = 2**52  # sums of amounts rounded up must be exact too
# A quotient of floats this close to a whole number is that number, as a part of it, since 0.3 / 0.1
# is three units; but a quarter of a unit is none of the last places of any.
_WHOLE = 4 * 2.0**-52
_LEAST_FRACTION = 0.25


class Unit:
    """What a budget is handed out in whole multiples of.

    Integers that are counted in an integer unit are divided exactly; all else is counted in
    floats. A unit that is the float of one part of a whole, 0.01 say, is that part: 57 of them are
    57 / 100, the float nearest to 0.57, and not 57 times that float.
    """

    def __init__(self, unit: Any) -> None:
        wrong = f"unit must be one positive number, not {unit!r}; None hands out any amounts"
        if is_bool(unit) or isinstance(unit, (str, bytes)) or np.ndim(unit) != 0:
            raise TypeError(wrong)
        self.size: float
        if isinstance(unit, (int, np.integer)):
            self.size = int(unit)
        else:
            try:
                self.size = float(unit)
            except (TypeError, ValueError) as error:
                raise TypeError(wrong) from error
        self.is_int = type(self.size) is int
        if not 0 < self.size < (2**63 if self.is_int else np.inf):
            raise ValueError(
                f"unit must be positive and finite, and below 2**63 if it is an int, not {unit!r}"
            )
        parts = round(1 / self.size) if self.size > 1 / MOST_UNITS else 0
        self.parts = parts if parts > 1 and 1 / parts == self.size else None

    def _divides(self, x: np.ndarray) -> bool:
        return self.is_int and x.dtype.kind in "biu"

    def counts(self, x: np.ndarray, towards: np.ufunc) -> np.ndarray:
        """Count the units in amounts, as float64, rounded by `np.floor` or `np.ceil`."""
        if self._divides(x):
            wide = _wide(x)
            whole = wide // self.size
            if towards is np.ceil:
                whole += wide % self.size != 0
            return whole.astype(np.float64)
        units = np.asarray(x, np.float64) / self.size
        nearest = np.rint(units)
        return np.where(_is_near(units, nearest), nearest, towards(units))

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Count the whole units in amounts, and tell what is beside them, in the dtype of `x`."""
        counts = self.counts(x, np.floor)
        if self._divides(x):
            return counts, _wide(x) % self.size
        units = np.asarray(x, np.float64) / self.size
        rest = np.where(_is_near(units, counts), 0.0, x - self.amounts(counts))
        return counts, rest

    def amounts(self, counts: np.ndarray) -> np.ndarray:
        """Tell what so many units amount to: int64 for an int unit, else float64."""
        if self.is_int:
            return counts.astype(np.int64) * self.size
        return counts / self.parts if self.parts else counts * self.size

    def shown(self, count: float) -> Any:
        """Tell what so many units amount to, for a message: whole numbers as such."""
        if self.is_int and abs(count) < np.inf:
            return int(count) * self.size
        return float(count / self.parts if self.parts else count * self.size)


def _wide(x: np.ndarray) -> np.ndarray:
    return x.astype(np.uint64 if x.dtype.kind == "u" else np.int64)


def _is_near(units: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Tell which quotients are next to a whole number, as far as their last places tell."""
    close = np.minimum(_WHOLE * np.maximum(whole, 1), _LEAST_FRACTION)
    near: np.ndarray = np.abs(units - whole) <= close
    return near
