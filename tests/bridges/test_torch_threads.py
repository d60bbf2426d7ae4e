"""Whose threads serve bridged calls: torch's own, as many as torch has, with the same bits."""

import children
import numpy as np
import pytest
import tolerances
from tensors import functional, normal, torch

import fastattn
from fastattn._core import threads as counts
from fastattn._engine import company
from fastattn.bridges.torch import threads

bridge = fastattn.bridges.torch


@pytest.fixture(autouse=True)
def two_of_torch(monkeypatch):
    """As many as there are in the tests of any machine, and nobody else among the masters."""
    monkeypatch.setattr(counts, "_affinity", lambda: 4)
    monkeypatch.setattr(counts, "_machine", None)
    monkeypatch.setattr(company, "_masters", company.Masters())
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    monkeypatch.undo()
    counts._forget()


@pytest.fixture
def inputs(seed):
    return [normal(np.random.default_rng(seed), 1, 8, 500, 64) for _ in range(3)]


@pytest.fixture
def runs(monkeypatch):
    """Where parallel runs went, in their order: the address of a team, or None."""
    found = []
    company_of = company.OnTeam.run_parallel

    def run_parallel(self, *arguments):
        found.append(self._team.parallel)
        return company_of(self, *arguments)

    monkeypatch.setattr(company.OnTeam, "run_parallel", run_parallel)
    return found


needs_openmp = pytest.mark.skipif(threads._parallel == 0, reason="this torch has no GOMP_parallel")


@needs_openmp
def test_calls_run_on_the_team_of_torch_and_have_the_same_bits(inputs, runs, monkeypatch):
    expected = fastattn.attention(*(one.numpy() for one in inputs), threads=1)
    with torch.no_grad():
        assert np.array_equal(bridge.scaled_dot_product_attention(*inputs).numpy(), expected)
        assert runs == [threads._parallel]
        monkeypatch.setattr(threads, "_team", threads.Team(2, 0))
        assert np.array_equal(bridge.scaled_dot_product_attention(*inputs).numpy(), expected)
    assert len(runs) == 1


def test_the_number_is_torchs_unless_fastattn_was_told():
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        assert threads.run(counts.resolve) == number
    with fastattn.threads(2):
        assert threads.run(counts.resolve) == 2
    fastattn.set_threads(1)
    assert threads.run(counts.resolve) == 1
    assert threads.run(counts.resolve, 4) == 4
    fastattn.set_threads(None)
    assert counts.team() is None


@needs_openmp
def test_one_thread_of_torch_enters_no_team(inputs, runs):
    torch.set_num_threads(1)
    with torch.no_grad():
        bridge.scaled_dot_product_attention(*inputs)
    assert runs == []


@needs_openmp
def test_torchs_team_keeps_its_size(inputs):
    """A team that changes its size ends threads and starts others."""
    code = """
import os, torch, fastattn
from fastattn.bridges.torch import threads
torch.set_num_threads(2)
bridge = fastattn.bridges.torch
inputs = torch.randn(3, 1, 8, 500, 64)
wide = torch.randn(1000, 3000)
def tasks():
    return set(os.listdir("/proc/self/task"))
with torch.no_grad():
    torch.nn.functional.gelu(wide)
    before = tasks()
    for _ in range(5):
        bridge.scaled_dot_product_attention(*inputs)
        torch.nn.functional.gelu(wide)
    assert tasks() == before, "threads were started or ended"
"""
    children.run(code, FASTATTN_BACKEND="cython", OPENBLAS_NUM_THREADS="1")


def test_a_forked_child_and_other_threads_attend(inputs):
    code = """
import torch, fastattn
from threading import Thread
from fastattn.bridges.torch import threads
torch.set_num_threads(2)
bridge = fastattn.bridges.torch
inputs = torch.randn(3, 1, 8, 500, 64)
def attend():
    with torch.no_grad():
        return bridge.scaled_dot_product_attention(*inputs).numpy().tobytes()
expected = attend()
def compute():
    assert attend() == expected
def without():
    assert threads._parallel == 0
    compute()
assert in_child(without) == 0
assert in_child(lambda: in_child(without) == 0) == 0
compute()
failures = []
def work():
    try:
        for _ in range(10):
            compute()
    except BaseException as error:
        failures.append(error)
workers = [Thread(target=work) for _ in range(8)]
for worker in workers: worker.start()
for worker in workers: worker.join()
assert not failures, failures
assert in_child(without) == 0
"""
    children.run(children.IN_CHILD + code, FASTATTN_BACKEND="cython")


def test_a_torch_without_openmp_is_served_by_our_own(monkeypatch, inputs, runs):
    monkeypatch.setattr(torch.__config__, "parallel_info", lambda: "parallel backend: native")
    assert threads._find_openmp() == 0
    monkeypatch.setattr(threads, "_parallel", 0)
    monkeypatch.setattr(threads, "_team", threads.Team(1, 0))
    with torch.no_grad():
        found = bridge.scaled_dot_product_attention(*inputs)
        expected = functional.scaled_dot_product_attention(*inputs)
    assert float((found - expected).abs().max()) <= tolerances.pytorch_error("float32", 1.0)
    assert runs == []
