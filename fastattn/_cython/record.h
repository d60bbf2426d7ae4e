/* What kernels of every operation read from their records: `words.h` says what stands where. */

#ifndef FASTATTN_RECORD_H
#define FASTATTN_RECORD_H

#include "memory.h"
#include "words.h"

/* Byte offset of one entry in an operand with any batch strides; see `operand_offset`. */
static int64_t entry_offset(int64_t rank, int64_t shape, int64_t strides, int64_t operand,
                            int64_t entry)
{
    int64_t offset = 0;
    strides += 8 * operand * rank;
    for (int64_t axis = rank - 1; axis > 0; axis--) {
        const int64_t size = load_int64(shape, axis);
        offset += entry % size * load_int64(strides, axis);
        entry /= size;
    }
    /* The first dim needs no division, and most calls have no other. */
    if (rank > 0) offset += entry * load_int64(strides, 0);
    return offset;
}

/* The same for the record of any operation; operands are counted as its stride table has them. */
#define operand_offset(call, operand, entry) \
    entry_offset((call)->entry_rank, (call)->entry_shape, (call)->entry_strides, operand, entry)

#endif
