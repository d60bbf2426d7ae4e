"""The examples do what they say, on real data."""

import json
import os
import sys

import numpy as np
import pytest

from fastattn.batch import runner
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


def test_digits_that_fail_leave_nothing(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    arguments = ["example", "digits", "--dir", str(tmp_path)]
    assert main([*arguments, "--max-memory", "1k"]) == 2
    assert os.listdir(tmp_path) == []
    computed = []

    def interrupted(*given):
        if computed:
            raise KeyboardInterrupt
        computed.append(attend(*given))
        return computed[0]

    attend = runner.attend_whole
    monkeypatch.setattr(runner, "attend_whole", interrupted)
    assert main(arguments) == 130
    assert os.listdir(tmp_path) == []
    assert "--resume" not in capsys.readouterr().err


def test_digits_without_scikit_learn(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert main(["example", "digits"]) == 1
    printed = capsys.readouterr()
    assert 'pip install "fastattn[examples]"' in printed.err
    assert printed.out == ""
