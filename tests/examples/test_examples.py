"""The examples find what they say, alike on every run, and draw it."""

import json
import os
import sys

import numpy as np
import pytest

from fastattn.batch import JobError, runner
from fastattn.cli import main
from fastattn.examples import EXAMPLES, speech, translation
from fastattn.examples.article import run_article
from fastattn.examples.language import run_language
from fastattn.examples.recommender import generate, held_out_ranks, run_recommender
from fastattn.examples.tickets import run_tickets


def drawn(report, folder):
    """Save the pictures of a report; return their sizes in pixels by name."""
    image = pytest.importorskip("matplotlib.image")
    paths = report.save(str(folder))
    pictures = {os.path.basename(path): image.imread(path) for path in paths}
    assert all(np.unique(picture).size > 2 for picture in pictures.values()), "a picture is empty"
    return {name: picture.shape[:2] for name, picture in pictures.items()}


def test_article(tmp_path):
    report = run_article()
    assert "query has E = 3 features and key E = 2" in report.refusal
    np.testing.assert_allclose(report.cosines, [0.84366, 0.97780, 1.00000], atol=5e-6)
    np.testing.assert_allclose(report.weights, [0.30186, 0.34520, 0.35294], atol=5e-6)
    np.testing.assert_allclose(np.sum(report.weighted, axis=0), report.output, rtol=1e-15)
    np.testing.assert_allclose(report.hours, 10 * np.array(report.weights), rtol=1e-15)
    assert report.whole_hours == [3, 3, 4]
    assert report.capped_hours == [4, 4, 2]
    assert report.max_error < 1e-15
    assert list(drawn(report, tmp_path)) == ["article.png"]
    with pytest.raises(JobError, match="give --overwrite"):
        report.save(str(tmp_path))


def test_recommender(tmp_path):
    report = run_recommender(worlds=2, threads=1)
    assert report.test_users == 1800
    assert report.ndcg_gain[0] > 0.1
    assert report.auc_attention[0] > report.auc_mean[0] + 0.05
    # Who likes one genre alone is told by the mean as well; who likes six is not.
    alike, apart = (report.by_likes_attention[n] - report.by_likes_mean[n] for n in (0, 5))
    assert abs(alike) < 0.05
    assert apart > 0.1
    assert 0 < report.ndcg_gain_roomy[0] < report.ndcg_gain[0] / 2
    assert list(drawn(report, tmp_path)) == ["recommender.png"]


def test_ties_count_against_the_recommender():
    assert held_out_ranks(np.array([[1.0, 1.0, 0.5], [1.0, 2.0, 1.5]])).tolist() == [1, 2]


def test_monotonic_attention_never_goes_back():
    heard = speech.generate(0, 4)
    times = speech.follow(heard, (6, 8), 0.3, threads=1)
    assert (np.diff(times, axis=1) >= 0).all()
    assert (np.diff(times, axis=1) > 0).mean() > 0.3


def test_the_recommender_is_not_told_the_answer():
    world = generate(0)
    for user, (begin, end) in enumerate(zip(world.splits, world.splits[1:], strict=False)):
        history, candidates = world.seen[begin:end], world.candidates[user]
        assert not np.isin(candidates, history).any()
        assert len(np.unique(candidates)) == len(candidates)


def test_language(tmp_path):
    pytest.importorskip("sklearn")
    report = run_language(threads=1)
    assert report.alignment["with ALiBi"] > 0.99
    assert report.alignment["diagonal"] < 0.6 < report.alignment["without ALiBi"] < 0.95
    assert report.texts > 500
    accuracy = report.accuracy
    assert accuracy["attention pooling"] > accuracy["mean pooling"] > 2 / 7
    np.testing.assert_allclose(
        report.gain[0],
        accuracy["attention pooling"] - accuracy["mean pooling"],
        rtol=1e-12,
    )
    assert report.gain[0] > report.gain[1] > 0
    agrees, asked = report.module_agrees
    assert agrees == asked > 50
    assert list(drawn(report, tmp_path)) == [
        "language-alignment.png",
        "language-pooling.png",
    ]


def test_numbers_are_written_out_with_their_alignment():
    pair = translation.write_out(301_021)
    assert " ".join(pair.english) == "three hundred one thousand twenty one"
    assert " ".join(pair.german) == "drei hundert ein tausend ein und zwanzig"
    assert pair.source == [0, 1, 2, 3, 5, -1, 4]
    assert translation.write_out(101).german == ["ein", "hundert", "eins"]
    assert translation.write_out(16).english == ["sixteen"]
    for pair in translation.sentences(200, seed=3):
        dictionary = {
            (german, pair.english[place])
            for german, place in zip(pair.german, pair.source, strict=True)
            if place >= 0
        }
        assert all(
            translation.GERMAN[german] == translation.ENGLISH[english] or german == "eins"
            for german, english in dictionary
        )


def test_speech(tmp_path, monkeypatch):
    for name, fewer in (("CHOOSING", 64), ("JUDGED", 96), ("_LONG", 4096)):
        monkeypatch.setattr(speech, name, fewer)
    report = speech.run_speech(threads=1, seed=1)  # a seed of which so few suffice
    frame, time = report.frame_error, report.time_error_ms
    assert frame["windowed attention"] < frame["moving average"] < frame["full attention"]
    assert frame["full attention"] < frame["as heard"] < 0.4
    assert report.frame_gain[0] > 2 * report.frame_gain[1]
    ways = ("monotonic attention", "attention in a band", "diagonal", "full attention")
    order = ["dynamic time warping", *ways]
    assert sorted(time, key=lambda way: time[way][0]) == order
    np.testing.assert_allclose(report.time_gain_ms[0], time[ways[1]][0] - time[ways[0]][0])
    assert report.time_gain_ms[0] > 2 * report.time_gain_ms[1]
    assert 0 < report.lost < 0.1
    assert report.cost["full_scores"] > 400 * report.cost["window_scores"]
    assert list(drawn(report, tmp_path)) == ["speech.png"]


def test_tickets(tmp_path):
    report = run_tickets()
    covered = {way: mean for way, (mean, _) in report.covered.items()}
    assert covered["equal split"] < covered["uncapped shares"] < covered["capped attention"]
    assert covered["capped attention"] < covered["greedy by share per hour"]
    # Capped attention hands out every hour that has work, in whole hours.
    assert report.unspent["capped attention"] == report.idle_at_best
    assert report.unspent["uncapped shares"] > 2 * report.idle_at_best
    # So do several reviewers who share the tickets; alone they meet at the same ones.
    np.testing.assert_allclose(report.unspent["reviewers together"], report.idle_at_best, rtol=1e-6)
    assert report.unspent["reviewers alone"] > 2 * report.idle_at_best
    assert covered["reviewers alone"] < covered["reviewers together"] < covered["capped attention"]
    assert list(drawn(report, tmp_path)) == ["tickets.png"]


def test_examples_of_the_command_line(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert set(EXAMPLES) >= {
        "article",
        "digits",
        "language",
        "recommender",
        "speech",
        "tickets",
    }
    assert main(["example", "article", "--json"]) == 0
    first = capsys.readouterr().out
    assert json.loads(first)["whole_hours"] == [3, 3, 4]
    folder = tmp_path / "pictures"
    assert main(["example", "article", "--json", "--threads", "1", "--out", str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out == first
    assert os.listdir(folder) == ["article.png"]
    assert str(folder / "article.png") in printed.err
    assert main(["example", "article", "--out", str(folder)]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert main(["example", "article", "--out", str(folder), "--overwrite"]) == 0
    assert "35.3%" in capsys.readouterr().out


def test_seeds_give_other_data_and_none_is_seed_0(capsys):
    printed = []
    for seed in ([], ["--seed=0"], ["--seed=1"]):
        assert main(["example", "tickets", "--json", *seed]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1]
    assert printed[0]["covered"] != printed[2]["covered"]
    with pytest.raises(SystemExit):
        main(["example", "article", "--seed=1"])


def test_examples_say_whether_their_data_are_real(capsys):
    for name in ("article", "tickets"):
        assert main(["example", name]) == 0
        assert capsys.readouterr().out.startswith("data  ")


def test_pictures_without_matplotlib(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["example", "article", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "`pip install matplotlib`" in printed.err
    assert os.listdir(tmp_path) == []


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
    assert "`pip install scikit-learn`" in printed.err
    assert printed.out == ""
