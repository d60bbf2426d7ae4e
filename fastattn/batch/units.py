"""Sizes in bytes as people write them: 512M, 2G."""

import re

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_size(text: str) -> int:
    """Read a size such as ``512M`` (powers of 1024; ``MB`` and ``MiB`` mean the same).

    Parameters
    ----------
    text : str
        A positive number with an optional unit K, M, G or T; without one, bytes.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    ValueError
        When the text is no such size, or less than one byte.

    Examples
    --------
    >>> parse_size("1.5G")
    1610612736
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    size = int(float(match[1]) * _UNITS[match[2]]) if match and len(match[1]) < 30 else 0
    if size < 1:
        raise ValueError(f"{text!r} is not a size; write it like 512M or 2G")
    return size


def format_size(size: float) -> str:
    """Write a size in the largest unit that leaves at least one.

    Examples
    --------
    >>> format_size(1610612736), format_size(700)
    ('1.5 GiB', '700 bytes')
    """
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        scale = _UNITS[unit[0].lower()]
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{int(size)} bytes"
