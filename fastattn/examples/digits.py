"""Cosine attention as a classifier: handwritten digits attend to labelled ones.

Training images are keys, their labels (one-hot) are values, test images are queries: the output of
attention is then a probability for each class, a kernel regression on the unit sphere. The images
are the 1797 digits of 8 x 8 pixels from the UCI repository that scikit-learn ships.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

import fastattn
from fastattn import reference
from fastattn.batch import Interrupted, Job, Progress, Summary, UsageError, run_job
from fastattn.batch.errors import named
from fastattn.batch.manifest import discard_unfinished
from fastattn.batch.writers import final_path, write_whole
from fastattn.examples.report import Report, name_axes, needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLIT = "a quarter of the images held out, stratified by digit, seed {}"
_SCALES = (8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
_CHUNK_ROWS = 100  # so that there are several: chunks must not show in the result


@dataclass(frozen=True)
class DigitsReport(Report):
    """What the example found.

    Attributes
    ----------
    accuracy : float
        Share of held-out images whose most probable class is theirs.
    scale : float
        Chosen on the training images alone.
    rows_per_second : float
        Of the whole job, reading and syncing included.
    max_error : float
        Largest difference from `fastattn.reference` in float64.
    equal_bits : bool
        Whether the job's output equals one call in memory, bit by bit.
    """

    accuracy: float
    test_images: int
    training_images: int
    split: str
    scale: float
    rows_per_second: float
    max_error: float
    equal_bits: bool
    folder: str | None
    job: Summary
    _classes: np.ndarray
    _labels: np.ndarray

    @property
    def failed(self) -> bool:
        """Whether the job's output has other bits than one call in memory."""
        return not self.equal_bits

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return super().as_dict() | {"job": asdict(self.job)}

    def lines(self) -> dict[str, str]:
        """Return what was found, in words."""
        equal = "equals" if self.equal_bits else "DIFFERS FROM"
        lines = {
            "data": "real: 1797 handwritten digits that scikit-learn ships",
            "keys": f"{self.training_images} training images, cosine, scale {self.scale:g} "
            "(least leave-one-out log loss on them)",
            "throughput": f"{self.test_images / self.job.compute_seconds:.4g} images/s computed, "
            f"{self.rows_per_second:.4g} with {self.job.chunks} chunks synced to disk one by one "
            f"({self.job.seconds:.3g} s), backend {self.job.backend}",
            "max error": f"{self.max_error:.2e} against the float64 reference",
            "bits": f"the job's output {equal} one call in memory",
            "accuracy": f"{self.accuracy:.4f} on {self.test_images} images ({self.split})",
        }
        return lines | ({"files": self.folder} if self.folder else {})

    def figures(self) -> dict[str, Figure]:
        """Draw which classes the images of each digit attend to, on average."""
        from fastattn.plot import AttentionDisplay

        attended = [self._classes[self._labels == digit].mean(axis=0) for digit in range(10)]
        display = AttentionDisplay.from_weights(
            np.round(attended, 3),
            query_labels=list(range(10)),
            key_labels=list(range(10)),
            title="Attention of held-out digits, mean of each class",
        )
        name_axes(display, "held-out images of a", "training images of a")
        return {"digits": display.figure_}


def run_digits(
    folder: str | None = None,
    *,
    overwrite: bool = False,
    max_memory: int = 1 << 30,
    seed: int = 0,
    threads: int | None = None,
    backend: str | None = None,
    progress: Progress | None = None,
) -> DigitsReport:
    """Classify the held-out digits with an offline job, and check what it wrote.

    Parameters
    ----------
    folder : str, optional
        Where the inputs and the output stay; None: a temporary folder, removed at the end.
    overwrite : bool
        Replace files that are there already.
    seed : int
        Of the choice of the held-out images.
    max_memory, threads, backend, progress
        As for `fastattn.batch.Job` and `fastattn.batch.run_job`.

    Returns
    -------
    DigitsReport
        Accuracy, throughput, error, and whether the bits are those of one call.

    Raises
    ------
    JobError
        When scikit-learn is missing, or a file cannot be written.
    """
    train, train_labels, test, test_labels = load_digits(seed)
    values = np.eye(10, dtype=np.float32)[train_labels]
    options: dict[str, Any] = {"similarity": "cosine", "threads": threads, "backend": backend}
    with contextlib.ExitStack() as stack:
        place = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="fastattn-"))
        arrays = {"query": test, "key": train, "value": values}
        paths = _paths(place, arrays, overwrite)
        stack.enter_context(_nothing_left_on_failure(paths))
        for name, array in arrays.items():
            contents = io.BytesIO()
            np.save(contents, array, allow_pickle=False)
            write_whole(final_path(paths[name]), contents.getbuffer(), overwrite)
        options["scale"] = choose_scale(train, values, options)
        job = Job(
            **paths,
            **options,
            max_memory=max_memory,
            chunk_rows=_CHUNK_ROWS,
            overwrite=overwrite,
        )
        summary = run_job(job, progress)
        with named(job.out, "be read"):
            output = np.load(job.out, allow_pickle=False)
    at_once = fastattn.attention(test, train, values, **options)
    meant = reference.attention(test, train, values, similarity="cosine", scale=options["scale"])
    return DigitsReport(
        accuracy=float(np.mean(output.argmax(axis=-1) == test_labels)),
        test_images=len(test),
        training_images=len(train),
        split=SPLIT.format(seed),
        scale=options["scale"],
        rows_per_second=summary.rows_per_second,
        max_error=float(np.abs(output - meant).max()),
        equal_bits=output.dtype == at_once.dtype and output.tobytes() == at_once.tobytes(),
        folder=folder,
        job=summary,
        _classes=output,
        _labels=test_labels,
    )


def load_digits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Load the digits, split: training images and labels, test images and labels."""
    needed("sklearn", "the digits come with scikit-learn")
    from sklearn import datasets, model_selection

    images, labels = datasets.load_digits(return_X_y=True)
    train, test, train_labels, test_labels = model_selection.train_test_split(
        images.astype(np.float32),
        labels,
        test_size=0.25,
        stratify=labels,
        random_state=seed % 2**32,  # scikit-learn takes no larger one
    )
    return train, train_labels, test, test_labels


def choose_scale(train: np.ndarray, values: np.ndarray, options: dict[str, Any]) -> float:
    """Choose the scale with the least leave-one-out log loss on the training images.

    Every training image attends to all the others: a mask hides it from itself.
    """
    others = ~np.eye(len(train), dtype=bool)

    def loss(scale: float) -> float:
        classes = fastattn.attention(
            train, train, values, mask=others, **{**options, "scale": scale}
        )
        of_the_true_one = np.einsum("ic,ic->i", classes, values, dtype=np.float64)
        return float(-np.log(np.maximum(of_the_true_one, 1e-9)).mean())

    return min(_SCALES, key=loss)


def _paths(folder: str, arrays: dict[str, np.ndarray], overwrite: bool) -> dict[str, Any]:
    with named(folder, "be created"):
        os.makedirs(folder, exist_ok=True)
    paths = {name: os.path.join(folder, f"{name}.npy") for name in (*arrays, "out")}
    for path in paths.values():
        if os.path.lexists(path) and not overwrite:
            raise UsageError(f"{path}: is there already; give --overwrite to replace it")
    return paths


@contextlib.contextmanager
def _nothing_left_on_failure(paths: dict[str, str]) -> Iterator[None]:
    """Remove inputs and unfinished output of a job that failed: a digits run is never resumed."""
    try:
        yield
    except BaseException as error:
        discard_unfinished(paths["out"])
        for path in (path for name, path in paths.items() if name != "out"):
            with contextlib.suppress(OSError):
                os.unlink(path)
        if isinstance(error, Interrupted):  # without its words on how to resume
            raise KeyboardInterrupt("interrupted; nothing was left behind") from error
        raise
