"""Workers that take turns: one runs at a time, and goes on when the others have had a task."""

import threading

import numpy as np

__all__ = ["run_in_turns"]


def run_in_turns(function, call, memory, workers):
    """Run a kernel's entry as so many workers, which hand over before each of their tasks."""
    if workers == 1:
        function(call, 0)
        return
    turns = _Turns(workers, memory)
    threads = [
        threading.Thread(target=turns.run, args=(function, call, worker), daemon=True)
        for worker in range(workers)
    ]
    memory.next_worker, memory.workers = turns.pass_on, workers
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if turns.error is not None:
        raise turns.error


class _Turns:
    def __init__(self, workers, memory):
        self.memory, self.error = memory, None
        self.waiting = list(range(workers))  # the first of them runs
        self.changed = threading.Condition()

    def run(self, function, call, worker):
        self._wait(worker)
        try:
            with np.errstate(all="ignore"):
                function(call, worker)
        except BaseException as error:  # the caller's thread raises it
            self.error = self.error or error
        with self.changed:
            self.waiting.remove(worker)
            self.changed.notify_all()

    def pass_on(self):
        worker = self.memory.worker
        with self.changed:
            self.waiting.append(self.waiting.pop(0))
            self.changed.notify_all()
        self._wait(worker)

    def _wait(self, worker):
        with self.changed:
            self.changed.wait_for(lambda: self.waiting[0] == worker)
            self.memory.worker = worker
        if self.error is not None:
            raise RuntimeError("another worker has failed")
