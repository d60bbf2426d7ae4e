"""The examples do what they say, on real data."""

import json
import sys

import numpy as np
import pytest

from fastattn.cli import main


def test_digits(tmp_path, capsys):
    pytest.importorskip("sklearn")
    assert main(["example", "digits", "--dir", str(tmp_path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["accuracy"] > 0.97
    assert report["equal_bits"] is True
    assert report["max_error"] < 1e-4
    assert report["job"]["chunks"] == 5
    assert report["scale"] not in (8.0, 512.0)  # the best lies within what was tried
    assert np.load(tmp_path / "query.npy").shape == (450, 64)
    assert np.load(tmp_path / "key.npy").shape == (1347, 64)
    output = np.load(tmp_path / "out.npy")
    np.testing.assert_allclose(output.sum(axis=-1), 1.0, rtol=1e-5)

    assert main(["example", "digits", "--dir", str(tmp_path)]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert main(["example", "digits", "--dir", str(tmp_path), "--overwrite"]) == 0
    assert "equals one call in memory" in capsys.readouterr().out


def test_digits_without_scikit_learn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["example", "digits"]) == 1
    printed = capsys.readouterr()
    assert 'pip install "fastattn[examples]"' in printed.err
    assert printed.out == ""
