"""How far a job is, for whoever watches: a tqdm bar, plain lines, or nothing."""

import time
from contextlib import suppress
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """What a runner tells while it works."""

    def begin(self, total: int, done: int) -> None:
        """`done` of `total` output rows are there already."""

    def advance(self, rows: int) -> None:
        """So many more rows are finished and safe."""

    def end(self) -> None:
        """Stop: the work is over, or was broken off."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Notes:
    """No progress, only notes, to a stream that is no terminal (or to nobody)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream

    def begin(self, total: int, done: int) -> None:
        """Say nothing."""

    def advance(self, rows: int) -> None:
        """Say nothing."""

    def end(self) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Write one line."""
        if self.stream is not None:
            with suppress(OSError):  # a stream that is full or gone must not end a job
                print(f"fastattn: {text}", file=self.stream, flush=True)


class Lines(Notes):
    """A line of text every two seconds, for a terminal without tqdm."""

    def begin(self, total: int, done: int) -> None:
        """Start the clock."""
        self._total, self._done, self._first = total, done, done
        self._start = self._shown = time.monotonic()

    def advance(self, rows: int) -> None:
        """Write a line when the last one is old, or the work is finished."""
        self._done += rows
        now = time.monotonic()
        if now - self._shown >= 2.0 or self._done == self._total:
            self._shown = now
            rate = (self._done - self._first) / max(now - self._start, 1e-9)
            self.note(f"{self._done} of {self._total} rows, {rate:.4g} rows/s")


class Bar(Notes):
    """A tqdm bar on a terminal."""

    def __init__(self, stream: TextIO, tqdm: Any) -> None:
        super().__init__(stream)
        self._tqdm = tqdm
        self._bar: Any = None

    def begin(self, total: int, done: int) -> None:
        """Show the bar."""
        self._bar = self._tqdm(
            total=total, initial=done, unit="row", unit_scale=True, file=self.stream
        )

    def advance(self, rows: int) -> None:
        """Move the bar."""
        self._bar.update(rows)

    def end(self) -> None:
        """Leave the bar as it is and go to the next line."""
        if self._bar is not None:
            self._bar.close()


def progress_on(stream: TextIO) -> Progress:
    """Choose what suits the stream: a bar or lines on a terminal, notes alone elsewhere."""
    if not stream.isatty():
        return Notes(stream)
    try:
        from tqdm import tqdm
    except ImportError:
        return Lines(stream)
    return Bar(stream, tqdm)
