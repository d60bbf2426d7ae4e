"""Ctrl-C while the command ``fastattn`` starts and ends: one line at most, and no traceback.

Importing NumPy and this package takes most of the time in which a small command ends. Whatever is
interrupted in there would print a traceback, or an error that nobody can catch: so until `main` has
control, the interrupt ends the process where it is. When `main` has its exit code, all is done and
said, and what is left is the interpreter's end, which lasts: there the interrupt changes nothing.
Only in the process of the command, and only where Python's own handler would be called; others do
not even import `signal`, which takes most of a millisecond.
"""

import os
import sys

_guarded = False  # this process is the command; under -m it has another name when it runs
_WORDS = b"fastattn: interrupted while it was starting; nothing was done\n"


def guard_start() -> None:
    """Answer Ctrl-C with a line from now on, if this process is the command."""
    global _guarded
    if not _is_command():
        return
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        _guarded = True
        signal.signal(signal.SIGINT, _end)


def started() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again."""
    import signal

    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def ended() -> None:
    """Let Ctrl-C be too late from now on, if this process is the command."""
    import signal

    if _guarded and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def forget_interrupts() -> None:
    """Let the exit code be the one that is asked for, after an interrupt that was answered.

    CPython notes that an interrupt left the text of an `exec`, as `dataclasses` and `namedtuple`
    run some, wherever it was caught then; and a process under ``-m`` ends by SIGINT at last, with
    whatever code. The next text makes it forget.
    """
    exec("")


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
