"""Ctrl-C is answered within a quarter of a second, and the next call works."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import children
import pytest
from interrupts import ANSWER_SECONDS, interrupt

pytestmark = pytest.mark.skipif(os.name != "posix", reason="SIGINT is POSIX's")


_LONG_CALL = """
    import numba
    import toy_kernels as toy
    from fastattn._numba.compiler import launch
    workers, wrong = {workers}, {wrong}
    toy.Call(40).run(1e-3, 2)  # compiled before the signal
    call = toy.long_call(60.0, tasks=10_000)
    print("started", flush=True)
    try:
        call.run(60.0 / 10_000 * wrong, workers)
        print("never interrupted")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    assert 0 < call.done.sum() < 10_000
    assert not launch._layer.owner
    toy.long_call(0.1).run(0.1 / 40, 2).assert_done()
    print("works again")
"""


def test_a_line_that_came_together_with_another_is_kept():
    child = children.start('print("one"); print("two")')
    child.wait(60)
    assert child.stdout.readline() == "one\n"
    assert children.finish(child) == "two\n"


@pytest.mark.parametrize("wrong", [0.5, 1.0])
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_is_answered_in_time(workers, wrong):
    child = children.start(_LONG_CALL.format(workers=workers, wrong=wrong))
    seconds = interrupt(child)
    assert children.finish(child).strip() == "works again"
    assert seconds <= ANSWER_SECONDS, seconds


_LONG_ATTENTION = """
    import numpy as np
    import fastattn
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((3, 1, 12, 16384, 64), dtype=np.float32)
    few = inputs[..., :1000, :]
    expected = fastattn.attention(*few)
    print("started", flush=True)
    try:
        fastattn.attention(*inputs, threads={threads})
        print("never interrupted")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    assert fastattn.attention(*few).tobytes() == expected.tobytes()
    print("works again")
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_attention_answers_ctrl_c(exact_backend, threads):
    code = _LONG_ATTENTION.format(threads=threads)
    child = children.start(code, FASTATTN_BACKEND=exact_backend, **children.WITH_KERNELS)
    seconds = interrupt(child)
    assert children.finish(child).strip() == "works again"
    assert seconds <= ANSWER_SECONDS, seconds


_LONG_LINEAR = """
    import numpy as np
    import fastattn
    x, weight = (np.random.default_rng(0).random((n, 4096), np.float32) for n in (32768, 4096))
    weight = {weight}
    few = fastattn.linear(x[:1000], weight)
    print("started", flush=True)
    try:
        fastattn.linear(x, weight, threads={threads})
        print("never interrupted")
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    assert fastattn.linear(x[:1000], weight).tobytes() == few.tobytes()
    print("works again")
"""


@pytest.mark.parametrize("weight", ["weight", "fastattn.pack_linear(weight)"])
@pytest.mark.parametrize("threads", [1, 2])
def test_linear_answers_ctrl_c(exact_backend, threads, weight):
    code = _LONG_LINEAR.format(threads=threads, weight=weight)
    child = children.start(code, FASTATTN_BACKEND=exact_backend, **children.WITH_KERNELS)
    seconds = interrupt(child)
    assert children.finish(child).strip() == "works again"
    assert seconds <= ANSWER_SECONDS, seconds


def test_interrupts_at_any_moment_leave_everything_usable():
    """Interrupts swept through the code around the compiled calls."""
    code = """
        import signal
        import toy_kernels as toy
        from fastattn._numba.compiler import launch
        toy.Call(40).run(1e-3, 2)
        parallel = launch.serial_reason() is None
        interrupted = 0
        for repeat in range(300):
            try:
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                signal.setitimer(signal.ITIMER_REAL, 20e-6 + 1e-6 * repeat)
                while True:
                    toy.Call(8, 10).run(1e-4, 2)
            except KeyboardInterrupt:
                interrupted += 1
            assert not launch._layer.owner, repeat
        assert interrupted == 300
        call = toy.long_call(0.1).run(0.1 / 40, 2)
        call.assert_done()
        assert call.workers() == [0, 1] or not parallel
    """
    children.run(code)


# Lets Ctrl-C arrive at the import of one module after another while the command starts: as often as
# there are modules, without waiting for the right moment.
_STARTING = """
    import os, runpy, signal, sys
    at, way = int(sys.argv[1]), sys.argv[2]

    class Finder:
        seen = 0

        def find_spec(self, name, path=None, target=None):
            if self.seen or name.startswith("fastattn._core"):  # the first that takes time
                self.seen += 1
            if self.seen == at + 1:
                os.kill(os.getpid(), signal.SIGINT)

    sys.meta_path.insert(0, finder := Finder())
    sys.argv[:] = ["fastattn", "info"]
    if way == "module":
        # As the interpreter does it for -m.
        sys.orig_argv = [sys.executable, "-m", "fastattn", "info"]
        sys.argv[0] = "-m"
        import fastattn
        sys.argv[0] = fastattn.__file__
        from fastattn.__main__ import main
    else:
        from fastattn.cli import main
    code = main()
    print("modules", finder.seen)
    sys.exit(code)
"""


_SAID = {
    "fastattn: interrupted while it was starting; nothing was done\n",
    "fastattn: interrupted\n",
}


def _starting(at, way, **options):
    return subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(_STARTING), str(at), way],
        env=children.environment(FASTATTN_BACKEND="reference"),
        capture_output=True,
        text=True,
        timeout=children.PATIENCE,
        check=False,
        **options,
    )


@pytest.mark.parametrize("way", ["script", "module"])
def test_ctrl_c_while_the_command_starts_is_one_line(way):
    alone = _starting(10**6, way)
    modules = int(alone.stdout.split()[-1])
    assert alone.returncode == 0
    assert modules > 100
    words = set()
    for at in (0, 1, 7, modules // 3, modules // 2, modules - 60, modules - 10):
        done = _starting(at, way)
        assert done.returncode == 130, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        words.add(done.stderr)
    assert words == _SAID


# Before the interpreter looks for the module MARK, it does what THEN says.
_SITE = """
    import os, sys

    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == os.environ["MARK"]:
                sys.meta_path.remove(self)
                exec(os.environ["THEN"])

    sys.meta_path.insert(0, Finder())
"""
# What CPython says when it interrupts a callback that it made itself, as imports have some: nobody
# can catch that, and the program goes on.
_LOST = re.compile(r"Exception ignored in: .*^KeyboardInterrupt: ?\n", re.S | re.M)


def _command(folder, mark, then, **options):
    """Start the command as it is started by hand, with something to happen at a mark."""
    (folder / "sitecustomize.py").write_text(textwrap.dedent(_SITE))
    path = os.pathsep.join([str(folder), str(children.PACKAGES)])
    return subprocess.Popen(
        [sys.executable, "-m", "fastattn", "info"],
        env=children.environment(
            FASTATTN_BACKEND="reference", PYTHONPATH=path, MARK=mark, THEN=then
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_ctrl_c_at_any_time_of_the_whole_command(tmp_path):
    """With the clock, from the first line of ours until the process is gone.

    What the interpreter does before is not ours: the command says when it is past that.
    """
    alone = lasted = None
    parts = 12
    for part in range(-1, parts):
        told, tell = os.pipe()
        then = f"os.write({tell}, b'x')"
        child = _command(tmp_path, "fastattn._core", then, pass_fds=[tell])
        os.close(tell)
        assert os.read(told, 1) == b"x", child.communicate()
        os.close(told)
        if part < 0:  # how long it takes, on this machine, now
            begun = time.monotonic()
            alone, errors = child.communicate(timeout=children.PATIENCE)
            lasted = time.monotonic() - begun
            assert (child.returncode, errors) == (0, "")
            continue
        time.sleep(lasted * part / parts)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=children.PATIENCE)
        if child.returncode == 0:
            assert output == alone
            assert not errors or _LOST.fullmatch(errors), errors  # all was done already, or:
        else:
            assert child.returncode == 130, errors
            assert errors in _SAID


def test_ctrl_c_when_all_is_done_changes_nothing(tmp_path):
    """The interpreter's end takes a good part of a short command."""
    then = "import atexit, signal; atexit.register(signal.raise_signal, signal.SIGINT)"
    child = _command(tmp_path, "fastattn._core", then)
    output, errors = child.communicate(timeout=children.PATIENCE)
    assert output.startswith("versions:")
    assert (child.returncode, errors) == (0, "")


def test_an_interrupt_that_left_an_exec_ends_with_the_code_too(tmp_path):
    """CPython remembers it under -m, and would end by SIGINT though the interrupt was answered."""
    child = _command(tmp_path, "fastattn.reference.tiled", "raise KeyboardInterrupt")
    output, errors = child.communicate(timeout=children.PATIENCE)
    assert (child.returncode, errors) == (130, "fastattn: interrupted\n"), output


def test_a_library_keeps_its_ctrl_c():
    """Only the command's own process answers by itself, and not where Ctrl-C was ignored."""
    code = """
        import signal, sys
        before = signal.getsignal(signal.SIGINT)
        {first}
        import fastattn
        assert signal.getsignal(signal.SIGINT) is {expected}
    """
    children.run(code.format(first="", expected="before"))
    ignore = "sys.argv[0] = 'fastattn'; signal.signal(signal.SIGINT, signal.SIG_IGN)"
    children.run(code.format(first=ignore, expected="signal.SIG_IGN"))
    children.run(code.format(first="sys.argv = ['/usr/bin/fastattn.py']", expected="before"))
    children.run(code.format(first="del sys.argv", expected="before"))
