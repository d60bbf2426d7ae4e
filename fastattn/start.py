"""Ctrl-C while the command ``fastattn`` starts: one line and exit code 130.

Importing NumPy and this package takes most of the time in which a small command ends. Whatever is
interrupted in there would print a traceback, or an error that nobody can catch: so until `main` has
control, the interrupt ends the process where it is. Only in the process of the command, and only
where Python's own handler would be called.
"""

import os
import signal
import sys

_WORDS = b"fastattn: interrupted while it was starting; nothing was done\n"


def guard_start() -> None:
    """Answer Ctrl-C with a line from now on, if this process is the command."""
    if _is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def started() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _is_command() -> bool:
    words: list[str] = getattr(sys, "argv", None) or [""]
    if words[0] == "-m":  # the interpreter is looking for the module, whose name it has had already
        module: str = sys.orig_argv[-len(words)]
        return module in ("fastattn", "-mfastattn")
    return os.path.basename(words[0]) == "fastattn"


def _end(signal_number: int, frame: object) -> None:
    try:
        os.write(2, _WORDS)
    finally:
        os._exit(130)
