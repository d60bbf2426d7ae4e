"""Cases on plain kernels, each once, and what compiled kernels make of them."""

import contextlib

import calls
from pairs import backend_of, multiplies

import fastattn

from .backend import Plain, on_plain_kernels, widening
from .cases import CASES
from .steps import STEPS

__all__ = ["Runs", "can_compare", "compiled_results"]


class Runs:
    """Plain kernels, and the results of the cases that ran on them."""

    def __init__(self, edits=None):
        self.plain = Plain(edits)
        self._results = {}

    def results(self, case):
        """Run a case, or remember how it went."""
        if case.name not in self._results:
            with _ways(case, self.plain.engine), on_plain_kernels(self.plain):
                self._results[case.name] = calls.results(case.call)
        return self._results[case.name]

    def missed(self):
        """What of the kernels no case or step reaches; runs those that did not run yet."""
        for case in CASES:
            self.results(case)
        for step in STEPS:
            step(self.plain)
        return self.plain.coverage.missed()


@contextlib.contextmanager
def _ways(case, engine):
    with case.settings(), widening(engine) if case.widens else contextlib.nullcontext():
        calls.forget()
        yield


def can_compare(case, compiled):
    """Whether a compiled backend takes the same way here: not all CPUs multiply bfloat16."""
    return not case.pairs or multiplies(compiled)


def compiled_results(case, compiled):
    """What a case gives on a compiled backend."""
    with _ways(case, backend_of(compiled).backend), fastattn.use_backend(compiled):
        return calls.results(case.call)
