"""Ctrl-C in the midst of a call, and how long it may take to be answered."""

import signal
import time

import children
import pytest

# Generous, since the machine may be busy: the promise is a quarter of a second.
ANSWER_SECONDS = 2.0


def interrupt(child):
    """Send SIGINT to a child that has started its call; return how long the answer took."""
    if child.stdout.readline() == "started\n":
        time.sleep(0.7)
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        if child.stdout.readline() == "interrupted\n":
            return time.monotonic() - sent
    child.kill()
    pytest.fail("not started or not interrupted\n" + "\n".join(children.rest(child)))
    return None
