"""How a call finds its backend and what it remembers: choice, the seam of small calls, settings."""

import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from conftest import AUTOMATIC, HERE

import fastattn
from fastattn import _core
from fastattn._core import backends, kept, recipe

face = sys.modules["fastattn.attention"]
X = np.ones((1, 4, 16, 32), np.float32)


class Planned:
    """An execution of a backend that counts what is asked of it."""

    backend, plan, scratch_bytes = "numba", "a plan", 0

    def __init__(self, problem, threads, seen):
        self.problem, self.threads, self.seen, self.refusals = problem, threads, seen, {}

    def run(self, output, lse, weights):
        self.seen.append(("run", output.shape, lse is None or lse.shape, weights is None))
        output[...] = 1.0

    def repeat(self, output):
        return lambda *arrays: self.seen.append(("repeat", *arrays)) or arrays[4].fill(2.0)


@pytest.fixture
def seen(monkeypatch):
    """Put a counting backend in the place of every other; what it saw."""
    seen = []
    backend = types.SimpleNamespace(
        name="numba",
        refusal=lambda problem: None,
        prepare_attention=lambda problem, threads: (
            seen.append(("prepare", problem, threads)) or Planned(problem, threads, seen)
        ),
    )
    monkeypatch.setitem(backends._loaded, "numba", backend)
    monkeypatch.setattr(backends, "_AUTOMATIC", ("numba",))
    monkeypatch.setattr(kept, "calls", kept.calls)
    monkeypatch.setattr(kept, "find", kept.find)
    kept.use(type(kept.calls)(8))
    return seen


def test_a_second_call_of_the_same_signature_repeats_the_plan(seen):
    assert (fastattn.attention(X, X, X) == 1.0).all()
    assert [what for what, *_ in seen] == ["prepare", "run"]
    assert seen[1] == ("run", (1, 4, 1, 16, 32), True, True)
    y = X.copy()
    output, lse = fastattn.attention(X, y, X, return_lse=True)
    assert [what for what, *_ in seen] == ["prepare", "run"] * 2, "another option, another plan"
    del seen[:]
    output, lse = fastattn.attention(X, y, X, return_lse=True)
    assert (output == 2.0).all()
    ((what, query, key, value, mask, result, sums),) = seen
    assert what == "repeat"
    assert query is X
    assert key is y
    assert value is X
    assert mask is None
    assert result is output
    assert sums is lse
    assert lse.shape == (1, 4, 16)


OTHERS = {
    "shape": ((X[:, :3],) * 3, {}),
    "strides": ((np.asfortranarray(X), X, X), {}),
    "dtype": ((X, X, X.astype(np.float64)), {}),
    "byte order": ((X, X.astype(X.dtype.newbyteorder()), X), {}),
    "similarity": ((X, X, X), {"similarity": "cosine"}),
    "scale": ((X, X, X), {"scale": 3.0}),
    "mask": ((X, X, X), {"mask": np.ones((16, 16), bool)}),
    "float mask": ((X, X, X), {"mask": np.full((16, 16), 0.5)}),
    "causal": ((X, X, X), {"causal": True}),
    "window": ((X, X, X), {"window": (3, None)}),
    "softcap": ((X, X, X), {"softcap": 3.0}),
    "gqa": ((X, X[:, :2], X[:, :2]), {"enable_gqa": True}),
    "lse": ((X, X, X), {"return_lse": True}),
    "weights": ((X, X, X), {"return_weights": True}),
    "threads": ((X, X, X), {"threads": 1}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_whatever_differs_is_planned_anew(seen, other, monkeypatch):
    monkeypatch.setattr(face, "resolve", lambda threads: threads or 2)
    operands, options = OTHERS[other]
    fastattn.attention(X, X, X)
    fastattn.attention(*operands, **options)
    assert [what for what, *_ in seen] == ["prepare", "run"] * 2
    fastattn.attention(*operands, **options)
    fastattn.attention(X, X, X)
    assert [what for what, *_ in seen][4:] == ["repeat"] * 2


@pytest.mark.parametrize("option", ["key_lengths", "query_offset"])
def test_calls_with_per_batch_arrays_are_never_repeated(seen, option):
    for length in (16, 7):
        fastattn.attention(X, X, X, causal=True, **{"query_offset": 0, option: length})
        assert np.all(getattr(seen[-2][1].extras, option) == length)
    assert [what for what, *_ in seen] == ["prepare", "run"] * 2


def test_out_that_cannot_be_written_straight_goes_the_long_way(seen):
    fastattn.attention(X, X, X)
    del seen[:]
    good = np.empty_like(X)
    for _ in range(2):
        assert fastattn.attention(X, X, X, out=good) is good
    assert [what for what, *_ in seen] == ["prepare", "run", "repeat"]
    assert seen[2][5] is good
    del seen[:]
    strided = np.empty((1, 4, 16, 64), np.float32)[..., ::2]
    for _ in range(2):
        assert fastattn.attention(X, X, X, out=strided) is strided
    assert (strided == 2.0).all()
    assert [what for what, *_ in seen] == ["prepare", "run", "repeat"]
    assert seen[2][5] is strided
    # Computed aside: the call without `out` from above, once more.
    swapped, inside = X.astype(">f4"), X.copy()
    del seen[:]
    for query, out in ((X, swapped), (inside, inside)):
        assert fastattn.attention(query, X, X, out=out) is out
        assert (out == 2.0).all()
    assert [what for what, *_ in seen] == ["repeat"] * 2
    assert not any(np.shares_memory(call[5], inside) for call in seen)


def test_what_is_remembered_is_bounded(seen, monkeypatch):
    monkeypatch.setattr(recipe, "_recipes", kept.Bounded(8))
    for keys in range(1, 60):
        key = np.ones((keys, 4))
        fastattn.attention(np.ones((2, 4)), key, key)
        assert len(kept.calls) <= 8
        assert len(recipe._recipes) <= 8


def test_nothing_remembered_holds_an_array():
    query = np.ones((3, 4))
    before = sys.getrefcount(query)
    for backend in HERE:
        for _ in range(3):
            fastattn.attention(query, query, query, backend=backend)
    assert sys.getrefcount(query) == before


# --- which backend --------------------------------------------------------------------------------


def name_of(**options):
    return fastattn.explain([[1.0]], [[1.0]], [[1.0]], **options).backend


def test_who_decides_the_backend():
    assert name_of() == AUTOMATIC
    with fastattn.use_backend("reference"):
        assert name_of() == "reference"
        assert name_of(backend="numba") == "numba"
        with fastattn.use_backend("numba"):
            assert name_of() == "numba"
        with fastattn.use_backend(None):
            assert name_of() == AUTOMATIC
        assert name_of() == "reference"
    assert name_of() == AUTOMATIC


def test_a_block_that_fails_gives_the_backend_back():
    with pytest.raises(ZeroDivisionError), fastattn.use_backend("reference"):
        1 / 0  # noqa: B018
    assert name_of() == AUTOMATIC


def test_the_choice_is_a_context_variable():
    names = []
    with fastattn.use_backend("reference"):
        thread = threading.Thread(target=lambda: names.append(name_of()))
        thread.start()
        thread.join()
    assert names == [AUTOMATIC]


def child(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
        cwd=os.path.dirname(os.path.dirname(fastattn.__file__)),
    )


NAME = "import fastattn; print(fastattn.explain([[1.0]], [[1.0]], [[1.0]]{}).backend)"


def test_the_environment_chooses():
    result = child(NAME.format(""), FASTATTN_BACKEND="reference")
    assert result.stdout.strip() == "reference", result.stderr
    result = child(NAME.format(", backend='numba'"), FASTATTN_BACKEND="reference")
    assert result.stdout.strip() == "numba", result.stderr


def test_a_wrong_name_in_the_environment_is_told_at_the_call_not_at_import():
    result = child("import fastattn; print('imported'); " + NAME.format(""), FASTATTN_BACKEND="gpu")
    assert result.returncode == 1
    assert result.stdout.strip() == "imported"
    assert "FASTATTN_BACKEND names the unknown backend 'gpu'" in result.stderr


def test_explain_shows_the_object_that_runs(seen):
    execution = fastattn.explain(X, X, X)
    assert isinstance(execution, Planned)
    assert execution.refusals == {}
    fastattn.attention(X, X, X)
    prepared = [entry for entry in seen if entry[0] == "prepare"]
    assert len(prepared) == 2
    assert prepared[0][1]._replace(query=0, key=0, value=0) == prepared[1][1]._replace(
        query=0, key=0, value=0
    )


def test_threads_reach_the_backend(seen, monkeypatch):
    monkeypatch.setattr(_core.threads, "_machine", None)
    fastattn.attention(X, X, X, threads=1)
    assert seen[0][2] == 1
    fastattn.attention(X, X, X, threads=10**6)
    assert seen[2][2] == _core.threads.resolve(10**6) <= (os.cpu_count() or 1)


def test_config_prints_what_it_returns(capsys):
    sections = fastattn.show_config(mode="dicts")
    assert list(sections) == ["versions", "machine", "backends"]
    assert sections["versions"]["numpy"] == np.__version__
    assert sections["versions"]["numerics_version"] == fastattn.numerics_version
    assert set(sections["backends"]) == {"cython", "numba", "reference"}
    assert fastattn.show_config() is None
    printed = capsys.readouterr().out
    for title, entries in sections.items():
        assert f"{title}:\n" in printed
        for name, entry in entries.items():
            assert f"  {name}: {entry}\n" in printed
