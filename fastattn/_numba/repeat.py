"""A small call once more, on other arrays: one compiled call does all of it."""

from fastattn._engine.layouts import DATA_OFFSET, RECORD_STRIDE

from . import compile, launch
from .entries import copy_record
from .native import load_int64, store_int64
from .record import WORD

__all__ = ["DRIVERS", "again"]

_QUERY, _KEY, _VALUE, _MASK, _OUTPUT, _LSE, _SCRATCH = (
    WORD[field] for field in ("query", "key", "value", "mask", "output", "lse", "scratch")
)


@compile.device
def _place(call, word, array_object):
    """Store where the array begins whose Python object is there; 0: no array, nothing stored."""
    if array_object != 0:
        store_int64(call, word, load_int64(array_object + DATA_OFFSET, 0))


@compile.driver("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def again(entry_address, tasks, template, call, query, key, value, mask, output, lse):
    """Fill the record at `call`, the workers' scratch right behind it, and run `tasks` tasks."""
    copy_record(template, call)
    _place(call, _QUERY, query)
    _place(call, _KEY, key)
    _place(call, _VALUE, value)
    _place(call, _MASK, mask)
    _place(call, _OUTPUT, output)
    _place(call, _LSE, lse)
    store_int64(call, _SCRATCH, call + RECORD_STRIDE)
    if tasks > 0:
        launch.run_serially(entry_address, call, 0, tasks)


DRIVERS = (again,)
