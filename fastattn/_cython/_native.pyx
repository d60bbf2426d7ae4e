# cython: language_level=3, boundscheck=False, wraparound=False
"""Where the compiled kernels are, what runs them, without the interpreter's lock, and kept calls."""

from cpython.object cimport PyObject, PyObject_Hash
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

import numpy

from fastattn._core.kept import DictCalls

cdef extern from "arrays.h" nogil:
    enum:
        WRITEABLE
        MOST_DIMS
    ctypedef struct array_fields:
        char *data
        int nd
        Py_ssize_t *dims
        Py_ssize_t *strides
        PyObject *descr
        int flags
    ctypedef struct array_layout:
        int nd
    array_fields *fields(PyObject *array)
    int has_layout(const array_layout *layout, PyObject *array)
    void note_layout(array_layout *layout, PyObject *array, Py_ssize_t itemsize)
    uint64_t mix(uint64_t hash, uint64_t word)
    uint64_t hash_layout(uint64_t hash, PyObject *array)
    int may_overlap(
        const array_layout *one, PyObject *first, const array_layout *other, PyObject *second
    )
    uint64_t bits_of(double number)
    void *take_buffer(size_t *size)
    void give_buffer(void *memory, size_t size)

cdef extern from "pool.h" nogil:
    void run_on_this_thread(int64_t kernel, int64_t call, int64_t first, int64_t stop)
    void run_on_threads(
        int64_t kernel, int64_t call, int64_t first, int64_t stop, int64_t workers
    )

cdef extern from "team.h" nogil:
    void run_on_team(
        int64_t parallel, int64_t kernel, int64_t call, int64_t first, int64_t stop, int64_t workers
    )

cdef extern from "blas.h" nogil:
    bint take_blas(int64_t set, int most, int threads)
    void leave_blas()
    bint has_blas()
    bint is_pool_busy()

cdef extern from "levels.h" nogil:
    ctypedef struct compiled_kernel:
        const char *level
        const char *name
        const void *entry
    uint64_t features_here()
    int runs_with(uint64_t features, const compiled_kernel *kernel)

cdef extern from "words.h" nogil:
    const compiled_kernel kernels[]
    const int kernel_count
    enum:
        FORM_WORDS
        WORDS_WORD
        SCRATCH_WORD_WORD
        RECORD_BYTES_WORD
        PLACE_0_WORD
        FORM_PLACES
        WORDS_DIGEST
        SOURCES_DIGEST


def built_from():
    """The digests of what the kernels were built from: `words.digest` and `words.sources`."""
    return <int64_t> WORDS_DIGEST, <int64_t> SOURCES_DIGEST


def built_levels():
    """The kinds of machine that kernels were compiled for, best first."""
    return tuple(dict.fromkeys(kernels[i].level.decode() for i in range(kernel_count)))


def entry_addresses(str level):
    """The addresses of a level's kernels, by name: of those that this CPU can run."""
    cdef uint64_t features = features_here()
    return {
        kernels[i].name.decode(): <int64_t> kernels[i].entry
        for i in range(kernel_count)
        if kernels[i].level.decode() == level and runs_with(features, &kernels[i])
    }


def supported_levels():
    """Those of the levels that this CPU is."""
    return tuple(level for level in built_levels() if entry_addresses(level))


def run_serially(int64_t entry, int64_t call, int64_t first, int64_t stop):
    """Run tasks ``first`` to ``stop`` on this thread."""
    with nogil:
        run_on_this_thread(entry, call, first, stop)


def run_parallel(int64_t entry, int64_t call, int64_t first, int64_t stop, int64_t workers):
    """Run tasks ``first`` to ``stop`` on as many workers as told; one such run at a time."""
    with nogil:
        run_on_threads(entry, call, first, stop, workers)


def run_together(
    int64_t parallel, int64_t entry, int64_t call, int64_t first, int64_t stop, int64_t workers
):
    """Run tasks ``first`` to ``stop`` on the team that the function at `parallel` enters."""
    with nogil:
        run_on_team(parallel, entry, call, first, stop, workers)


def is_busy():
    """Whether somebody runs on the threads at the moment: a call, or BLAS."""
    return is_pool_busy()


def share_blas(int64_t setter, int most, int threads):
    """Have an OpenBLAS run its jobs on the threads; returns whether there are enough of them.

    `setter` is where its ``set_threads_callback_function`` is; it has room for `most` threads.
    """
    cdef bint enough
    with nogil:
        enough = take_blas(setter, most, threads)
    return enough


def unshare_blas():
    """Let it run them on its own threads."""
    with nogil:
        leave_blas()


def shares_blas():
    """Whether it runs them here."""
    return has_blas()


cdef inline void _fill(const int64_t *form, int64_t *call, PyObject **objects) noexcept nogil:
    """Copy the record of a form; store where the arrays begin whose Python objects are there."""
    cdef int place
    memcpy(call, form + <int64_t> FORM_WORDS, 8 * form[<int> WORDS_WORD])
    for place in range(FORM_PLACES):
        if objects[place] != NULL:
            call[form[<int> PLACE_0_WORD + place]] = <int64_t> fields(objects[place]).data
    call[form[<int> SCRATCH_WORD_WORD]] = <int64_t> call + form[<int> RECORD_BYTES_WORD]


def again(
    int64_t entry, int64_t tasks, int64_t form, int64_t call,
    int64_t first, int64_t second, int64_t third, int64_t fourth, int64_t fifth, int64_t sixth,
):
    """Fill the record at `call`, the workers' scratch right behind it, and run `tasks` tasks."""
    cdef PyObject *objects[6]
    objects[0], objects[1], objects[2] = <PyObject *> first, <PyObject *> second, <PyObject *> third
    objects[3], objects[4], objects[5] = <PyObject *> fourth, <PyObject *> fifth, <PyObject *> sixth
    with nogil:
        _fill(<int64_t *> form, <int64_t *> call, objects)
        if tasks > 0:
            run_on_this_thread(entry, call, 0, tasks)


cdef object _ndarray = numpy.ndarray
cdef object _empty = numpy.empty


def knows_arrays():
    """Whether arrays are what `arrays.h` says: looked at in some, of which no two are alike."""
    whole = numpy.arange(24.0, dtype=numpy.float32).reshape(2, 3, 4)
    fixed = whole[::-1, 1:]
    fixed.flags.writeable = False
    for array in (whole, fixed, numpy.zeros((0, 7), numpy.int8), numpy.array(3.0)):
        it = fields(<PyObject *> array)
        address = array.__array_interface__["data"][0]
        if <size_t> it.data != address or it.descr != <PyObject *> array.dtype:
            return False
        if it.nd != array.ndim or bool(it.flags & WRITEABLE) != array.flags.writeable:
            return False
        if tuple([it.dims[axis] for axis in range(it.nd)]) != array.shape:
            return False
        if tuple([it.strides[axis] for axis in range(it.nd)]) != array.strides:
            return False
    return True


cdef bint _same(object one, object other):
    """Whether two options in one spelling each are the same, signs of zeros included."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    cdef Py_ssize_t i, count
    if type(one) is tuple:
        count = len(<tuple> one)
        if len(<tuple> other) != count:
            return False
        for i in range(count):
            if not _same((<tuple> one)[i], (<tuple> other)[i]):
                return False
        return True
    if type(one) is float:
        return bits_of(one) == bits_of(other)
    return one == other


cdef uint64_t _hash_options(uint64_t hash, tuple options) except? 0:
    """Mix in options; numbers by their bits, which no float environment makes equal."""
    for option in options:
        if type(option) is float:
            hash = mix(hash, bits_of(option))
        elif type(option) is tuple:
            hash = _hash_options(hash, <tuple> option)
        else:
            hash = mix(hash, <uint64_t> PyObject_Hash(option))
    return hash


cdef class _Kept:
    """A kept call: how its arrays lie, and all that it takes to do it to others."""

    cdef uint64_t hash
    cdef tuple options, dtypes, shapes
    cdef int64_t threads
    cdef array_layout operands[4]
    cdef array_layout out
    cdef int count
    cdef bint in_place
    cdef object repeat, launcher, plan, form_array
    cdef bint native
    cdef int64_t entry, small
    cdef const int64_t *form
    cdef size_t size


cdef int _LARGEST = 1024  # entries; the table has room for twice as many


cdef class Calls:
    """`fastattn._core.kept.DictCalls` without the interpreter's steps from lookup to launch."""

    cdef list table
    cdef int count, most
    cdef object others  # calls that a dict keeps: see `keep`

    def __cinit__(self, int most=_LARGEST):
        self.most = min(most, _LARGEST)
        self.others = DictCalls(most)
        self.clear()

    def __len__(self):
        return self.count + len(self.others)

    def clear(self):
        """Forget all."""
        self.table = [None] * 2 * _LARGEST
        self.count = 0
        self.others.clear()

    def find(
        self, tuple options, int64_t threads, out, first, second=None, third=None, fourth=None
    ):
        """Do a call that was kept on these arrays; None if there is no such call."""
        cdef PyObject *operands[4]
        operands[0], operands[1] = <PyObject *> first, <PyObject *> second
        operands[2], operands[3] = <PyObject *> third, <PyObject *> fourth
        cdef uint64_t hash = _hash(options, threads, out, operands)
        if hash == 0:
            return None
        cdef _Kept kept = self.seek(hash, options, threads, out, operands)
        if kept is None:
            if len(self.others) == 0:
                return None
            return self.others.find(options, threads, out, first, second, third, fourth)
        cdef int i
        if out is not None:
            for i in range(4):
                if operands[i] != <PyObject *> None and not (i == 0 and kept.in_place):
                    if may_overlap(&kept.out, <PyObject *> out, &kept.operands[i], operands[i]):
                        return None
            result = out
        else:
            result = _empty(<object> kept.shapes[0], <object> kept.dtypes[0])
        other = None
        if len(kept.shapes) == 2:
            other = _empty(<object> kept.shapes[1], <object> kept.dtypes[1])
        if kept.native:
            _run(kept, operands, result, other)
        else:
            given = (first, second, third, fourth)[: kept.count]
            kept.repeat(*given, result, *([] if other is None else [other]))
        return result if other is None else (result, other)

    cdef _Kept seek(
        self, uint64_t hash, tuple options, int64_t threads, out, PyObject **operands
    ):
        cdef Py_ssize_t at = hash % (2 * _LARGEST)
        cdef _Kept kept
        while True:
            found = self.table[at]
            if found is None:
                return None
            kept = <_Kept> found
            if kept.hash == hash and _matches(kept, options, threads, out, operands):
                return kept
            at = (at + 1) % (2 * _LARGEST)

    def keep(self, tuple options, int64_t threads, out, tuple given, made):
        """Keep a call; `made` is a `fastattn._core.kept.Kept`.

        Dtypes are told apart by their objects, of which NumPy has one each for those it makes
        itself. Of other byte orders every array has its own: a dict finds those that are equal. So
        it does where there are more dims than a layout has.
        """
        cdef PyObject *operands[4]
        cdef int i
        for i in range(4):
            operands[i] = <PyObject *> (given[i] if i < len(given) else None)
        cdef uint64_t hash = _hash(options, threads, out, operands)
        if hash == 0 or self.seek(hash, options, threads, out, operands) is not None:
            return
        if len(given) > 4 or len(given) + len(made.results) > FORM_PLACES or len(made.results) > 2:
            raise ValueError(f"a call of {len(given)} operands, {len(made.results)} results")
        for array in (*given, out):
            if array is not None and not _is_common(array):
                self.others.keep(options, threads, out, given, made)
                return
        cdef _Kept kept = _Kept.__new__(_Kept)
        alive = [dtype for _, dtype in made.results]
        for i in range(4):
            kept.operands[i].nd = -1
            if operands[i] != <PyObject *> None:
                dtype = (<object> operands[i]).dtype
                alive.append(dtype)
                note_layout(&kept.operands[i], operands[i], dtype.itemsize)
        kept.out.nd = -1
        if out is not None:
            alive.append(out.dtype)
            note_layout(&kept.out, <PyObject *> out, out.dtype.itemsize)
            if not out.flags.writeable:
                return
        kept.in_place = out is not None and <PyObject *> out == operands[0]
        kept.hash, kept.options, kept.threads, kept.count = hash, options, threads, len(given)
        kept.shapes = tuple([shape for shape, _ in made.results])
        kept.dtypes = tuple(alive)
        repeat = kept.repeat = made.repeat
        kept.native = getattr(repeat, "fill", None) is again
        if kept.native:
            kept.form_array, kept.launcher, kept.plan = repeat.form, repeat.launcher, repeat.plan
            kept.form = <const int64_t *> <size_t> repeat.form.ctypes.data
            kept.entry, kept.small, kept.size = repeat.entry.address, repeat.small, repeat.size
        if self.count >= self.most:
            self.clear()
        cdef Py_ssize_t at = hash % (2 * _LARGEST)
        while self.table[at] is not None:
            at = (at + 1) % (2 * _LARGEST)
        self.table[at] = kept
        self.count += 1


cdef bint _is_common(object array):
    """Whether a layout holds an array, and NumPy has one object for its dtype."""
    dtype = array.dtype
    return array.ndim <= MOST_DIMS and dtype is numpy.dtype(dtype.str)


cdef uint64_t _hash(tuple options, int64_t threads, out, PyObject **operands) except? 0:
    """Digest a call; 0 where it is not one of plain arrays."""
    cdef uint64_t hash = _hash_options(mix(1, <uint64_t> threads), options)
    cdef int i
    for i in range(4):
        if operands[i] != <PyObject *> None:
            if type(<object> operands[i]) is not _ndarray:
                return 0
            hash = hash_layout(hash, operands[i])
    if out is not None:
        if type(out) is not _ndarray:
            return 0
        hash = hash_layout(hash, <PyObject *> out)
    return hash or 1


cdef bint _matches(_Kept kept, tuple options, int64_t threads, out, PyObject **operands):
    cdef int i
    if kept.threads != threads or not _same(kept.options, options):
        return False
    for i in range(4):
        if operands[i] == <PyObject *> None:
            if kept.operands[i].nd >= 0:
                return False
        elif not has_layout(&kept.operands[i], operands[i]):
            return False
    if out is None:
        return kept.out.nd < 0
    cdef bint in_place = <PyObject *> out == operands[0]
    if kept.in_place != in_place or not fields(<PyObject *> out).flags & WRITEABLE:
        return False
    return has_layout(&kept.out, <PyObject *> out)


cdef _run(_Kept kept, PyObject **operands, result, other):
    """Fill the record in front of its scratch and run it."""
    cdef PyObject *objects[6]
    cdef int i
    for i in range(FORM_PLACES):
        objects[i] = NULL
    for i in range(kept.count):
        if operands[i] != <PyObject *> None:
            objects[i] = operands[i]
    objects[kept.count] = <PyObject *> result
    if other is not None:
        objects[kept.count + 1] = <PyObject *> other
    cdef size_t size = kept.size
    cdef void *call = take_buffer(&size)
    if call == NULL:
        raise MemoryError(f"{kept.size} bytes of scratch")
    cdef int64_t small = kept.small
    try:
        with nogil:
            _fill(kept.form, <int64_t *> call, objects)
            if small > 0:
                run_on_this_thread(kept.entry, <int64_t> call, 0, small)
        if small == 0:
            kept.launcher.run_at(kept.repeat.entry, <int64_t> call, *kept.plan)
    finally:
        give_buffer(call, size)
