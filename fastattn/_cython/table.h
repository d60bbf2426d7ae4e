/* The kernels of one element type on one kind of machine, as the drivers know them. */

#ifndef FASTATTN_TABLE_H
#define FASTATTN_TABLE_H

#include <stdint.h>

/* Take tasks of the call, whose record begins at the address, until none is left. */
typedef void kernel_entry(int64_t call_address, int64_t worker);

typedef struct {
    kernel_entry *attend, *fold, *compare, *fuse, *normalise, *hand_out, *share;
} entry_table;

#endif
