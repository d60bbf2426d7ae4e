"""Versions, and a description of the machine and the installation for bug reports."""

from __future__ import annotations

import os
import platform
import sys
from typing import get_args

from fastattn._core.annotations import ConfigMode
from fastattn._core.threads import resolve

__all__ = ["NUMERICS_VERSION", "VERSION", "configuration", "show_config"]

VERSION = "0.1.0"

# Raised by one whenever any bit of any result of a compiled backend may change. A batch job
# records it, so that a resumed job never joins two arithmetics in one file.
NUMERICS_VERSION = 7


def configuration() -> dict[str, dict[str, object]]:
    """Collect versions, machine, threads and backends, section by section."""
    # importlib.metadata costs 20 ms: only this function needs it, so only this function pays.
    from importlib.metadata import PackageNotFoundError, version

    from fastattn._core import backends, sharing

    versions: dict[str, object] = {
        "fastattn": VERSION,
        "numerics_version": NUMERICS_VERSION,
        "python": sys.version.split()[0],
    }
    for package in ("numpy", "numba", "llvmlite"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    cores: object = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        cores = f"{len(os.sched_getaffinity(0))} of {cores} in the affinity mask"
    return {
        "versions": versions,
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": cores,
            "threads": _threads(),
            "whose threads": sharing.describe(),
        },
        "backends": {name: backends.describe(name) for name in backends.KNOWN},
    }


def _threads() -> object:
    try:
        return resolve()
    except ValueError as error:  # a report on a wrong setting must not fail on it
        return str(error)


def show_config(mode: ConfigMode = "stdout") -> dict[str, dict[str, object]] | None:
    """Print, or return, what fastattn runs on: the text to paste into a bug report.

    Parameters
    ----------
    mode : {"stdout", "dicts"}
        Print the sections, or return them as a dict of dicts.

    Returns
    -------
    dict or None
        The sections ``versions``, ``machine`` and ``backends`` with ``mode="dicts"``; None when
        printed.

    Raises
    ------
    ValueError
        If `mode` is neither word.

    Examples
    --------
    >>> import fastattn
    >>> sections = fastattn.show_config(mode="dicts")
    >>> sections["versions"]["fastattn"] == fastattn.__version__
    True
    """
    if mode not in get_args(ConfigMode):
        raise ValueError(f'mode must be "stdout" or "dicts", not {mode!r}')
    sections = configuration()
    if mode == "dicts":
        return sections
    for title, entries in sections.items():
        print(f"{title}:")
        for name, entry in entries.items():
            print(f"  {name}: {entry}")
    return None
