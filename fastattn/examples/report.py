"""What every example hands back: figures for people and for programs, and pictures."""

from __future__ import annotations

import io
import os
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np

from fastattn.batch import JobError
from fastattn.batch.errors import named
from fastattn.batch.writers import final_path, refuse_existing, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a module is called where it is installed from, if not as itself.
_PACKAGES = {"sklearn": "scikit-learn"}


class Report:
    """A base of the frozen dataclasses in which the examples report.

    Fields whose names begin with an underscore are there for the pictures alone.
    """

    @property
    def failed(self) -> bool:
        """Whether what the example found is not what it must find."""
        return False

    def lines(self) -> dict[str, str]:
        """Return what was found, in words, by a short label each."""
        raise NotImplementedError

    def figures(self) -> dict[str, Figure]:
        """Draw the pictures, by their names."""
        raise NotImplementedError

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        shown = (field.name for field in fields(self) if field.name[0] != "_")  # type: ignore[arg-type]
        return {name: getattr(self, name) for name in shown}

    def __str__(self) -> str:
        return "\n".join(f"{label:<11} {text}" for label, text in self.lines().items())

    def save(self, folder: str, *, overwrite: bool = False) -> list[str]:
        """Write the pictures into a folder as PNG; each appears when it is whole.

        Parameters
        ----------
        folder : str
            Made where it does not exist.
        overwrite : bool
            Replace files that are there already.

        Returns
        -------
        list of str
            The paths written.

        Raises
        ------
        JobError
            When Matplotlib is missing, or a file is there already or cannot be written.
        """
        needed("matplotlib", "the pictures are drawn by Matplotlib")
        with named(folder, "be created"):
            os.makedirs(folder, exist_ok=True)
        figures = self.figures()
        paths = [os.path.join(folder, f"{name}.png") for name in figures]
        targets = [final_path(path) for path in paths]
        for target in targets:
            refuse_existing(target, overwrite)
        for target, figure in zip(targets, figures.values(), strict=True):
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=110)
            write_whole(target, picture.getbuffer(), overwrite)
        return paths


def needed(module: str, why: str) -> None:
    """Raise `JobError` with the way out when a library cannot be imported."""
    from importlib import import_module

    try:
        import_module(module)
    except ImportError as error:
        raise JobError(
            f"{why}, which cannot be imported ({error}); install it with "
            f"`pip install {_PACKAGES.get(module, module)}`"
        ) from error


def mean_and_error(samples: np.ndarray) -> tuple[float, float]:
    """Return the mean of independent repetitions and its standard error."""
    return float(samples.mean()), float(samples.std(ddof=1) / np.sqrt(len(samples)))


def name_axes(display: Any, rows: str, columns: str) -> None:
    """Say what the rows and columns of an `AttentionDisplay` are."""
    for axes in display.axes_.flat:
        axes.set_xlabel(columns)
    display.axes_.flat[0].set_ylabel(rows)


def numbers(values: Any, digits: int) -> str:
    """Return numbers side by side, with so many digits behind the point."""
    return " ".join(f"{value:.{digits}f}" for value in np.ravel(values))
