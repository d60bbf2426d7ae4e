# cython: language_level=3
"""Where the compiled kernels are, and what runs them: all of it without the interpreter's lock."""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcpy

cdef extern from "pool.h" nogil:
    void run_on_this_thread(int64_t kernel, int64_t call, int64_t first, int64_t stop)
    void run_on_threads(
        int64_t kernel, int64_t call, int64_t first, int64_t stop, int64_t workers
    )

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
        ATTENTION_WORDS
        RECORD_STRIDE
        DATA_OFFSET
        QUERY_WORD
        KEY_WORD
        VALUE_WORD
        MASK_WORD
        OUTPUT_WORD
        LSE_WORD
        SCRATCH_WORD
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


cdef inline void _place(int64_t *call, int word, int64_t array) noexcept nogil:
    """Store where the array begins whose Python object is there; 0: no array, nothing stored."""
    if array != 0:
        call[word] = (<int64_t *> (array + DATA_OFFSET))[0]


def again(
    int64_t entry, int64_t tasks, int64_t template, int64_t call,
    int64_t query, int64_t key, int64_t value, int64_t mask, int64_t output, int64_t lse,
):
    """Fill the record at `call`, the workers' scratch right behind it, and run `tasks` tasks."""
    cdef int64_t *words = <int64_t *> call
    with nogil:
        memcpy(words, <void *> template, 8 * ATTENTION_WORDS)
        _place(words, QUERY_WORD, query)
        _place(words, KEY_WORD, key)
        _place(words, VALUE_WORD, value)
        _place(words, MASK_WORD, mask)
        _place(words, OUTPUT_WORD, output)
        _place(words, LSE_WORD, lse)
        words[SCRATCH_WORD] = call + RECORD_STRIDE
        if tasks > 0:
            run_on_this_thread(entry, call, 0, tasks)
