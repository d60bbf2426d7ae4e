"""The command line: exit codes, what goes to stdout and what to stderr, and no traceback."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import children
import jobs
import numpy as np
import pytest

import fastattn
from fastattn.batch import progress
from fastattn.cli import main


@pytest.fixture
def command(tmp_path):
    """The arguments of a small job."""
    jobs.save(tmp_path, jobs.arrays())
    files = [f"--{role}={tmp_path}/{role}.npy" for role in ("query", "key", "value")]
    return ["run", *files, f"--out={tmp_path}/out.npy"]


def code_of(arguments):
    """The exit code, whichever way argparse ends."""
    try:
        return main(arguments)
    except SystemExit as end:
        return end.code


def process(arguments, **options):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "fastattn", *arguments],
        text=True,
        timeout=children.PATIENCE,
        check=False,
        **{
            "env": children.environment(),
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        | options,
    )


def test_json_on_stdout_and_words_on_stderr(command, tmp_path):
    done = process([*command, "--json", "--lse-out", str(tmp_path / "lse.npy"), "--chunk-rows=37"])
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert summary["chunks"] == 12
    assert summary["shapes"]["out"] == [3, 4, 37, 5]
    assert summary["numerics_version"] == fastattn.numerics_version
    assert len(summary["checksum"]) == len(summary["lse_checksum"]) == 64
    assert done.stderr.startswith("fastattn: wrote ")
    assert done.stderr.count("\n") == 1  # no terminal, no progress
    output, lse = fastattn.attention(**jobs.arrays(), return_lse=True)
    assert jobs.same_bits(np.load(tmp_path / "out.npy"), output)
    assert jobs.same_bits(np.load(tmp_path / "lse.npy"), lse)


def test_every_option_reaches_the_call(tmp_path, capsys):
    random = np.random.default_rng(1)
    inputs = jobs.arrays((2, 6, 20, 8), (2, 3, 30, 8)) | {
        "mask": random.random((20, 30)) < 0.8,
        "query_offset": random.integers(0, 12, (2, 6)),
        "key_lengths": random.integers(20, 31, (2, 1)),
        "query_segments": random.integers(0, 3, 20),
        "key_segments": random.integers(0, 3, (2, 1, 30)),
        "sinks": random.standard_normal((2, 1)),
    }
    jobs.save(tmp_path, inputs)
    arguments = ["run", f"--out={tmp_path}/out.npy", "--enable-gqa", "--causal", "--threads=1"]
    arguments += [f"--{role.replace('_', '-')}={tmp_path}/{role}.npy" for role in inputs]
    arguments += ["--similarity=cosine", "--softcap=3", "--backend=numba"]
    arguments += ["--scale", "-4.5,1,0,2.5,3,9"]
    arguments += ["--alibi-slopes", "-.5,0.25,1e-3,0,1,2"]
    arguments += ["--window", "9", "none", f"--lse-out={tmp_path}/lse.npy", "--return-lse"]
    assert main([*arguments, "--max-memory=64M"]) == 0, capsys.readouterr().err
    expected = fastattn.attention(
        **inputs,
        enable_gqa=True,
        causal=True,
        similarity="cosine",
        scale=[[-4.5, 1, 0, 2.5, 3, 9]],
        softcap=3,
        window=(9, None),
        alibi_slopes=[-0.5, 0.25, 1e-3, 0, 1, 2],
        return_lse=True,
        backend="numba",
    )
    assert jobs.same_bits(np.load(tmp_path / "out.npy"), expected[0])
    assert jobs.same_bits(np.load(tmp_path / "lse.npy"), expected[1])
    assert capsys.readouterr().out == ""


def test_numbers_stand_where_files_may(command, tmp_path, capsys):
    assert main([*command, "--causal=true", "--query-offset", "-3", "--key-lengths=40"]) == 0
    expected = fastattn.attention(**jobs.arrays(), causal=True, query_offset=-3, key_lengths=40)
    assert jobs.same_bits(np.load(tmp_path / "out.npy"), expected)


def test_raw_items_are_bfloat16_when_told_so(command, tmp_path, capsys):
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    inputs = jobs.arrays(dtype=bfloat16)
    jobs.save(tmp_path, inputs)
    assert main(command) == 1
    assert "give --bfloat16" in capsys.readouterr().err
    assert main([*command, "--bfloat16", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"
    expected = fastattn.attention(**inputs)
    assert jobs.same_bits(np.load(tmp_path / "out.npy").view(bfloat16), expected)


USAGE = {
    "no command": ([], "COMMAND"),
    "unknown command": (["walk"], "walk"),
    "unknown option": (["run", "--sideways"], "--query"),
    "infinite scale": (["run", "--scale=inf"], "'inf' is not a finite number"),
    "no number": (["run", "--scale=big"], "'big' is not a finite number"),
    "a scale that is infinite": (["run", "--scale=1,-inf"], "'-inf' is not a finite number"),
    "negative cap": (["run", "--softcap=-1"], "'-1' is not positive"),
    "similarity": (["run", "--similarity=manhattan"], "manhattan"),
    "causal": (["run", "--causal=left"], "left"),
    "window": (["run", "--window", "1", "two"], "'two' is neither"),
    "one window side": (["run", "--window", "1"], "window"),
    "slopes": (["run", "--alibi-slopes=1,,2"], "neither numbers separated by commas nor a file"),
    "sinks": (["run", "--sinks=-1,x"], "'-1,x' is neither"),
    "size": (["run", "--max-memory=lots"], "write it like 512M or 2G"),
    "threads": (["run", "--threads=0"], "at least 1"),
    "chunk rows": (["run", "--chunk-rows=-4"], "at least 1"),
    "example": (["example"], "EXAMPLE"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage_errors_end_with_2(case, capsys):
    arguments, text = USAGE[case]
    assert code_of(arguments) == 2
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.out == ""


REFUSED = {
    "lse without a file": (["--return-lse"], 2, "--lse-out FILE"),
    "missing file": (["--mask=absent.npy"], 1, "mask file absent.npy: cannot be opened: No such"),
    "no .npy": ([f"--mask={__file__}"], 1, "expected a .npy file, found a file that begins with"),
    "a folder": (["--mask=/"], 1, "found a folder"),
    "no folder": (["--out=/absent/out.npy"], 1, "/absent does not exist"),
    "causal": (["--causal"], 2, "or `--causal --query-offset n`, with n the"),
    "offsets": (["--causal=top_left", "--query-offset=1"], 2, "or write `--causal` beside it"),
    "length": (["--key-lengths=99"], 2, "--key-lengths holds 99, outside 0..S = 45: `np.clip(key_"),
    "memory": (["--max-memory=1k"], 2, "give --max-memory"),
    "backend": (["--backend=fortran"], 2, "'fortran'"),
    "offset": (["--causal", f"--query-offset={10**30}"], 2, "outside"),
    "output is input": (["--out={folder}/key.npy", "--overwrite"], 2, "would be written to"),
    "output exists": (["--out={folder}/there.npy"], 2, "give --overwrite to replace it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_finding_and_leave_nothing(case, command, tmp_path, capsys):
    arguments, code, text = REFUSED[case]
    (tmp_path / "there.npy").write_text("mine")
    arguments = [word.format(folder=tmp_path) for word in arguments]
    assert code_of([*command, *arguments, "--json"]) == code
    printed = capsys.readouterr()
    assert text in printed.err
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert jobs.names(tmp_path) == {"there.npy"}
    assert (tmp_path / "there.npy").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--help"], 0),
        (["run", "--help"], 0),
        (["--version"], 0),
        (["run", "--scale=big"], 2),
        (["run", "--query=absent", "--key=absent", "--value=absent", "--out=out.npy"], 1),
        (["run", "--query=q", "--key=k", "--value=v", "--out=o"], 2),
    ],
)
def test_no_compiler_is_loaded_to_say_no(arguments, code, tmp_path):
    np.save(tmp_path / "q.npy", np.zeros((3, 4), np.float32))
    np.save(tmp_path / "k.npy", np.zeros((3, 5), np.float32))
    np.save(tmp_path / "v.npy", np.zeros((3, 5), np.float32))
    for name in "qkv":
        os.rename(tmp_path / f"{name}.npy", tmp_path / name)
    program = """
        import sys
        sys.modules["numba"] = sys.modules["llvmlite"] = None  # importing them fails
        from fastattn.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env=children.environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=children.PATIENCE,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (code == 0)


def test_info(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr()
    assert fastattn.__version__ in printed.out
    assert main(["info", "--json"]) == 0
    sections = json.loads(capsys.readouterr().out)
    assert sections["versions"]["numerics_version"] == fastattn.numerics_version


@pytest.mark.parametrize(("setting", "told"), [("", "kernel cache {}/"), ("0", "cache none: sw")])
def test_info_says_where_kernels_are_kept(setting, told, tmp_path):
    environment = children.environment(FASTATTN_CACHE=setting, FASTATTN_CACHE_DIR=tmp_path)
    done = process(["info"], env=environment)
    assert told.format(tmp_path) in done.stdout
    assert "threading layer not started yet" in done.stdout


def test_warmup(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(fastattn, "warmup", lambda: called.append(True))
    assert main(["warmup"]) == 0
    assert called
    assert capsys.readouterr().out == ""


def test_stdout_that_cannot_be_written(command):
    with open("/dev/full", "w") as full:
        done = process([*command, "--json", "--backend=reference"], stdout=full)
    assert done.returncode == 1
    assert "stdout cannot be written: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_stderr_that_cannot_be_written_does_not_matter(command, tmp_path):
    with open("/dev/full", "w") as full:
        done = process([*command, "--backend=reference"], stderr=full)
    assert done.returncode == 0
    assert jobs.names(tmp_path) == {"out.npy"}


@pytest.mark.parametrize("closed", [(2,), (1, 2), (0, 1, 2)])
def test_closed_streams_give_their_descriptors_to_no_output(command, tmp_path, closed):
    """Something that writes to descriptor 2 whatever it is would else write into an output."""
    code = f"""
        import os, sys
        from fastattn.batch import runner
        attend = runner.attend_whole
        def noisy(*given):
            for descriptor in {closed}:
                if descriptor:
                    os.write(descriptor, b"noise")
            return attend(*given)
        runner.attend_whole = noisy
        from fastattn.cli import main
        code = main({[*command, "--backend=reference", "--json"]!r})
        open({str(tmp_path / "code")!r}, "w").write(str(code))
    """
    shell = f'exec {" ".join(f"{n}>&-" for n in closed)}; exec "$@"'
    subprocess.run(
        ["sh", "-c", shell, "sh", sys.executable, "-c", textwrap.dedent(code)],
        env=children.environment(),
        stdout=subprocess.DEVNULL,
        timeout=children.PATIENCE,
        check=False,
    )
    assert (tmp_path / "code").read_text() == "0"
    expected = fastattn.attention(**jobs.arrays(), backend="reference")
    assert jobs.same_bits(np.load(tmp_path / "out.npy"), expected)


def test_negative_numbers_with_an_exponent(command, tmp_path, capsys):
    assert main([*command, "--scale", "-1.5e-1"]) == 0, capsys.readouterr().err
    expected = fastattn.attention(**jobs.arrays(), scale=-0.15)
    assert jobs.same_bits(np.load(tmp_path / "out.npy"), expected)
    # An option may be abbreviated, that of two numbers too.
    assert code_of([*command, "--windo", "-5", "3"]) == 2
    assert "'-5' is neither a distance" in capsys.readouterr().err
    assert code_of([*command, "--scale", "-inf"]) == 2
    assert "'-inf' is not a finite number" in capsys.readouterr().err
    assert code_of([*command, "--scale", "--json"]) == 2
    assert "expected one argument" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "text"),
    [("warmup", 1, "Number of threads"), ("info", 0, "NUMBA_NUM_THREADS must be")],
)
def test_a_setting_with_which_numba_cannot_be_imported(command, code, text):
    done = process(
        [command], env=children.environment(NUMBA_NUM_THREADS="0", FASTATTN_BACKEND="numba")
    )
    assert done.returncode == code
    assert text in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


SLOW = """
    import sys, time
    from fastattn.batch import runner
    attend = runner.attend_whole
    def slowly(*given):
        time.sleep(0.1)
        return attend(*given)
    runner.attend_whole = slowly
    from fastattn.cli import main
    sys.exit(main(sys.argv[1:]))
"""


def test_ctrl_c_says_how_to_go_on(command, tmp_path):
    arguments = [*command, "--chunk-rows=37", "--backend=reference"]
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW), *arguments],
        env=children.environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    manifest = tmp_path / "out.npy.part.manifest"
    deadline = time.monotonic() + children.PATIENCE
    while not (manifest.exists() and manifest.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=children.PATIENCE)
    assert child.returncode == 130, err
    assert out == ""
    assert "finished chunks are kept: run the same command with --resume" in err
    assert "Traceback" not in err
    assert "out.npy" not in jobs.names(tmp_path)
    assert main([*arguments, "--resume"]) == 0
    assert jobs.names(tmp_path) == {"out.npy"}


def test_ctrl_c_before_the_first_chunk_leaves_nothing(command, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastattn.batch.runner.attend_whole", interrupted)
    assert main(command) == 130
    assert "nothing was left behind" in capsys.readouterr().err
    assert jobs.names(tmp_path) == set()


class Terminal:
    """A stream that says it is a terminal."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


def shown(stream):
    display = progress.progress_on(stream)
    display.begin(100, 20)
    display.advance(30)
    display.advance(50)
    display.end()
    return display


def test_a_bar_where_tqdm_is():
    pytest.importorskip("tqdm")
    terminal = Terminal()
    assert isinstance(shown(terminal), progress.Bar)
    assert "100/100" in terminal.text


def test_lines_where_tqdm_is_not(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    terminal = Terminal()
    assert isinstance(shown(terminal), progress.Lines)
    assert "100 of 100 rows" in terminal.text


def test_nothing_where_nobody_watches(capsys):
    assert isinstance(shown(sys.stderr), progress.Notes)
    assert capsys.readouterr().err == ""
