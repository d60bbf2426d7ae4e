"""Values of the command line's options, each read by a function that argparse calls."""

import argparse
import math
import os
from collections.abc import Sequence


def size(text: str) -> int:
    """Read a size in bytes, like 512M."""
    from fastattn.batch.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def finite(text: str) -> float:
    """Read a finite number."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return number


def positive(text: str) -> float:
    """Read a number above 0."""
    number = finite(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not positive")
    return number


def count(text: str) -> int:
    """Read a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def side(text: str) -> int | None:
    """Read one side of a window: a distance in keys, or None for 'none'."""
    if text.lower() == "none":
        return None
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a distance in keys nor 'none'")
    return int(text)


def integer_or_path(text: str) -> int | str:
    """Read a number, or leave the name of a file."""
    try:
        return int(text)
    except ValueError:
        return text


def numbers_or_path(text: str) -> tuple[float, ...] | str:
    """Read numbers separated by commas, or leave the name of a file."""
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        if "," in text and not os.path.exists(text):
            raise argparse.ArgumentTypeError(
                f"{text!r} is neither numbers separated by commas nor a file: {error}"
            ) from None
    return text


def scale(text: str) -> float | tuple[float, ...] | str:
    """Read a finite number, several separated by commas, or leave the name of a file."""
    numbers = numbers_or_path(text)
    if isinstance(numbers, str):
        if not os.path.exists(text):
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a finite number, nor several separated by commas, nor a file"
            )
        return text
    found = tuple(map(finite, text.split(",")))
    return found if len(found) > 1 else found[0]


def index(text: str) -> int:
    """Read a place, counted from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def indices(text: str) -> tuple[int, ...]:
    """Read places separated by commas."""
    return tuple(index(part) for part in text.split(","))


def joined(arguments: Sequence[str]) -> list[str]:
    """Join negative numbers to their option: argparse would take ``-1e3`` for one itself.

    Those of a window are two.
    """
    words: list[str] = []
    for argument in arguments:
        if words and _takes_one(words[-1]) and _is_negative(argument):
            words[-1] += "=" + argument
        else:
            words.append(argument)
    return words


def _takes_one(word: str) -> bool:
    # Options may be abbreviated: ``--win -5 3`` is a window too, and ``--`` the end of options.
    return word.startswith("--") and "=" not in word and not "--window".startswith(word)


def _is_negative(text: str) -> bool:
    try:
        return text.startswith("-") and not any(math.isnan(float(n)) for n in text.split(","))
    except ValueError:
        return False
