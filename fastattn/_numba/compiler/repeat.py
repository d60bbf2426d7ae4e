"""A small call once more, on other arrays: one compiled call does all of it."""

from fastattn._engine.layouts import DATA_OFFSET, FORM

from . import compile, launch
from .native import load_int64, store_int64

__all__ = ["DRIVERS", "again"]

_WORDS, _SCRATCH_WORD, _RECORD_BYTES, _PLACE = (
    FORM.word[field] for field in ("words", "scratch_word", "record_bytes", "place_0")
)
_HEAD = len(FORM.word)


@compile.device
def _place(form, call, number, array_object):
    """Store where the array begins whose Python object is there; 0: no array, nothing stored."""
    if array_object != 0:
        word = load_int64(form, _PLACE + number)
        store_int64(call, word, load_int64(array_object + DATA_OFFSET, 0))


@compile.driver("void(int64, int64, int64, int64, int64, int64, int64, int64, int64, int64)")
def again(entry_address, tasks, form, call, first, second, third, fourth, fifth, sixth):
    """Fill the record at `call`, the workers' scratch right behind it, and run `tasks` tasks."""
    for word in range(load_int64(form, _WORDS)):
        store_int64(call, word, load_int64(form, _HEAD + word))
    _place(form, call, 0, first)
    _place(form, call, 1, second)
    _place(form, call, 2, third)
    _place(form, call, 3, fourth)
    _place(form, call, 4, fifth)
    _place(form, call, 5, sixth)
    store_int64(call, load_int64(form, _SCRATCH_WORD), call + load_int64(form, _RECORD_BYTES))
    if tasks > 0:
        launch.run_serially(entry_address, call, 0, tasks)


DRIVERS = (again,)
