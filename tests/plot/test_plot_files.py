"""``fastattn plot``: a picture that is whole or not there; errors that name file and finding."""

import os
import signal
import subprocess
import sys
import textwrap

import children
import numpy as np
import pytest

from fastattn.batch import writers
from fastattn.cli import main
from fastattn.plot import files

pytest.importorskip("matplotlib")


@pytest.fixture
def folder(tmp_path):
    """Some files, and the folder they lie in."""
    weights = np.random.default_rng(0).dirichlet(np.ones(4), (2, 3, 3)).astype(np.float32)
    np.save(tmp_path / "w.npy", weights)
    np.save(tmp_path / "f.npy", np.asfortranarray(weights))
    np.save(tmp_path / "flat.npy", weights[0, 0])
    np.save(tmp_path / "line.npy", weights[0, 0, 0])
    np.save(tmp_path / "number.npy", np.float32(1))
    np.save(tmp_path / "complex.npy", weights * 1j)
    np.save(tmp_path / "hidden.npy", np.eye(3, 4, dtype=bool))
    np.save(tmp_path / "many.npy", np.ones((1, 65, 1, 1)))
    (tmp_path / "words.txt").write_text("eins\nzwei\ndrei, und\nvier\n")
    (tmp_path / "there.png").write_text("mine")
    (tmp_path / "hard.png").hardlink_to(tmp_path / "there.png")
    return tmp_path


def test_the_picture_is_of_the_heads_asked_for(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    weights = np.load("w.npy")
    shown = []
    draw = files.AttentionDisplay.from_weights
    monkeypatch.setattr(
        files.AttentionDisplay,
        "from_weights",
        lambda *a, **k: shown.append(draw(*a, **k)) or shown[-1],
    )
    options = ["--batch=1", "--head=2,0", "--hidden=hidden.npy", "--key-labels=words.txt"]
    for source in ("w.npy", "f.npy"):
        assert main(["plot", source, "o.png", "--overwrite", *options, "--query-labels=a,b,c"]) == 0
        np.testing.assert_array_equal(shown[-1].weights, weights[1, [2, 0]])
        assert [ax.get_title() for ax in shown[-1].axes_] == ["head 2", "head 0"]
        assert shown[-1].key_labels == ["eins", "zwei", "drei, und", "vier"]
        assert shown[-1].query_labels == ["a", "b", "c"]
        np.testing.assert_array_equal(shown[-1].hidden, np.broadcast_to(np.eye(3, 4), (2, 3, 4)))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "fastattn: wrote o.png\n" * 2
    assert (folder / "o.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("source", "out", "start"),
    [("flat", "o.pdf", b"%PDF"), ("line", "o.svg", b"<?xml"), ("flat", "O.PNG", b"\x89PNG")],
)
def test_formats(source, out, start, folder):
    assert main(["plot", f"{folder}/{source}.npy", f"{folder}/{out}", "--hidden", "zeros"]) == 0
    assert (folder / out).read_bytes().startswith(start)
    assert not list(folder.glob("*.part"))


def test_dpi_says_how_large_a_png_is(folder):
    image = pytest.importorskip("matplotlib.image")
    sizes = []
    for dpi in (60, 120):
        out = f"{folder}/{dpi}.png"
        assert main(["plot", f"{folder}/flat.npy", out, f"--dpi={dpi}"]) == 0
        sizes.append(image.imread(out).shape[1])
    assert abs(sizes[1] - 2 * sizes[0]) <= 2


REFUSED = {
    "missing": ("absent.npy o.png", 1, "weights file absent.npy: cannot be opened: No such"),
    "no npy": ("words.txt o.png", 1, "weights file words.txt: expected a .npy file, found a file"),
    "format": ("w.npy o.gif", 2, "output o.gif: a name that ends in .png"),
    "no folder": ("w.npy absent/o.png", 1, "absent does not exist"),
    "there": ("flat.npy there.png", 2, "give --overwrite to replace it"),
    "input": ("there.png there.png --overwrite", 2, "the weights file there.png would be written"),
    "hard link": (
        "hard.png there.png --overwrite",
        2,
        "weights file hard.png would be written",
    ),
    "batch": ("w.npy o.png", 2, "found 2 in shape (2, 3, 3, 4); choose one with --batch, 0 to 1"),
    "batches": ("w.npy o.png --batch=2", 2, "choose one with --batch, 0 to 1"),
    "head": ("w.npy o.png --batch=0 --head=3", 2, "no head 3, the 3 heads of shape (2, 3, 3, 4)"),
    "no heads": (
        "flat.npy o.png --head=0",
        2,
        "heads can be chosen of weights (..., H, L, S) alone",
    ),
    "not a head": ("w.npy o.png --head=-1", 2, "'-1' is not a whole number of at least 0"),
    "many": ("many.npy o.png", 2, "65 heads in shape (1, 65, 1, 1) are more than the 64"),
    "number": ("number.npy o.png", 2, "expected weights, at least (S,), found a single number"),
    "complex": ("complex.npy o.png", 2, "expected real numbers, found dtype complex64"),
    "labels": ("flat.npy o.png --key-labels=a,b", 2, "flat.npy: key_labels must have one label"),
    "no labels": ("flat.npy o.png --labels=absent", 1, "labels file absent: cannot be read: No"),
    "no text": ("flat.npy o.png --labels=number.npy", 1, "expected lines of text in UTF-8"),
    "hidden": ("flat.npy o.png --hidden=flat.npy", 2, "expected bool, True where nothing"),
    "hidden shape": ("line.npy o.png --hidden=hidden.npy", 2, "(3, 4) does not broadcast to the"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_finding_and_leave_nothing(case, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    arguments, code, text = REFUSED[case]
    before = sorted(folder.iterdir())
    try:
        found = main(["plot", *arguments.split()])
    except SystemExit as end:
        found = end.code
    printed = capsys.readouterr()
    assert text in printed.err
    assert found == code
    assert printed.out == ""
    assert sorted(folder.iterdir()) == before
    assert (folder / "there.png").read_text() == "mine"


def test_a_disk_that_is_full_leaves_the_old_picture(folder, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writers.os, "pwrite", full)
    before = sorted(folder.iterdir())
    assert main(["plot", f"{folder}/flat.npy", f"{folder}/there.png", "--overwrite"]) == 1
    assert "No space left on device; free some space" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before
    assert (folder / "there.png").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("nameless", [True, False])
def test_a_file_is_whole_or_not_there(overwrite, nameless, folder, monkeypatch):
    """Also where the file system knows no files without a name."""
    if not nameless:
        monkeypatch.delattr(writers.os, "O_TMPFILE")
    before = sorted(folder.iterdir())
    path = folder / ("there.png" if overwrite else "new.png")
    writers.write_whole(str(path), b"whole" * 1000, overwrite)
    assert path.read_bytes() == b"whole" * 1000
    assert sorted(folder.iterdir()) == sorted({*before, path})
    assert path.stat().st_mode == (folder / "words.txt").stat().st_mode


def test_a_killed_program_leaves_no_half_picture(folder):
    code = """
        import os, signal, sys
        from fastattn.batch import writers
        writers.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        writers.write_whole(sys.argv[1], b"half", overwrite=True)
    """
    try:
        os.close(os.open(folder, os.O_RDWR | os.O_TMPFILE))
    except OSError:
        pytest.skip("this file system knows no files without a name")
    before = sorted(folder.iterdir())
    killed = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder / "there.png")],
        env=children.environment(),
        timeout=children.PATIENCE,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert sorted(folder.iterdir()) == before
    assert (folder / "there.png").read_text() == "mine"


def test_a_picture_that_appears_meanwhile_is_kept(folder, monkeypatch, capsys):
    picture = folder / "o.png"
    link = writers.os.link

    def late(*paths, **options):
        picture.write_text("theirs")
        link(*paths, **options)

    monkeypatch.setattr(writers.os, "link", late)
    assert main(["plot", f"{folder}/flat.npy", str(picture)]) == 2
    assert "give --overwrite to replace it" in capsys.readouterr().err
    assert picture.read_text() == "theirs"
    assert not list(folder.glob("*.part"))
