/* What an array of NumPy is, without NumPy's headers: this part of the object is its ABI. */

#ifndef FASTATTN_ARRAYS_H
#define FASTATTN_ARRAYS_H

#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    PyObject_HEAD
    char *data;
    int nd;
    Py_ssize_t *dims, *strides;
    PyObject *base, *descr;
    int flags;
} array_fields;

enum { WRITEABLE = 0x400, MOST_DIMS = 8 };

static inline array_fields *fields(PyObject *array) { return (array_fields *) array; }

/* How an array lies, whatever its memory is; the dtype is kept alive by whoever keeps this. */
typedef struct {
    int nd; /* -1: no array */
    Py_ssize_t dims[MOST_DIMS], strides[MOST_DIMS];
    Py_ssize_t itemsize;
    PyObject *descr;
} array_layout;

static inline int has_layout(const array_layout *layout, PyObject *array) {
    const array_fields *it = fields(array);
    if (layout->nd != it->nd || layout->descr != it->descr)
        return 0;
    for (int axis = 0; axis < it->nd; axis++)
        if (layout->dims[axis] != it->dims[axis] || layout->strides[axis] != it->strides[axis])
            return 0;
    return 1;
}

/* Of an array of at most MOST_DIMS. */
static inline void note_layout(array_layout *layout, PyObject *array, Py_ssize_t itemsize) {
    const array_fields *it = fields(array);
    layout->nd = it->nd;
    layout->descr = it->descr;
    layout->itemsize = itemsize;
    memcpy(layout->dims, it->dims, it->nd * sizeof *it->dims);
    memcpy(layout->strides, it->strides, it->nd * sizeof *it->strides);
}

static inline uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * UINT64_C(0x9E3779B97F4A7C15);
    return hash ^ (hash >> 29);
}

static inline uint64_t bits_of(double number) {
    uint64_t bits;
    memcpy(&bits, &number, sizeof bits);
    return bits;
}

static inline uint64_t hash_layout(uint64_t hash, PyObject *array) {
    const array_fields *it = fields(array);
    hash = mix(hash, (uint64_t) (uintptr_t) it->descr);
    for (int axis = 0; axis < it->nd; axis++)
        hash = mix(hash, (uint64_t) it->dims[axis] ^ (uint64_t) it->strides[axis] << 32);
    return hash;
}

/* The bytes from the first element to behind the last one; none where there is no element. */
static inline void extent(const array_layout *layout, PyObject *array, char **low, char **high) {
    *low = *high = fields(array)->data;
    for (int axis = 0; axis < layout->nd; axis++) {
        Py_ssize_t most = (layout->dims[axis] - 1) * layout->strides[axis];
        if (most < 0 && layout->dims[axis] > 0)
            *low += most;
        else if (layout->dims[axis] > 0)
            *high += most;
        else {
            *high = *low;
            return;
        }
    }
    *high += layout->itemsize;
}

static inline int may_overlap(
    const array_layout *one, PyObject *first, const array_layout *other, PyObject *second
) {
    char *low, *high, *from, *to;
    extent(one, first, &low, &high);
    extent(other, second, &from, &to);
    return low < to && from < high;
}

/* Scratch of calls, kept for the next ones: fresh pages cost more than a small call. Who takes or
 * gives holds the interpreter's lock. */
enum { KEPT_BUFFERS = 8, KEPT_BYTES = 4 << 20 };

static struct {
    void *memory;
    size_t size;
} kept_buffers[KEPT_BUFFERS];

static int buffers_kept;

static inline void *take_buffer(size_t *size) {
    if (buffers_kept > 0) {
        buffers_kept--;
        if (kept_buffers[buffers_kept].size >= *size) {
            *size = kept_buffers[buffers_kept].size;
            return kept_buffers[buffers_kept].memory;
        }
        free(kept_buffers[buffers_kept].memory);
    }
    void *memory;
    return posix_memalign(&memory, 64, *size) == 0 ? memory : NULL;
}

static inline void give_buffer(void *memory, size_t size) {
    if (size <= KEPT_BYTES && buffers_kept < KEPT_BUFFERS) {
        kept_buffers[buffers_kept].memory = memory;
        kept_buffers[buffers_kept].size = size;
        buffers_kept++;
    } else
        free(memory);
}

#endif
