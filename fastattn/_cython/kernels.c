/* The kernels of one element type on one kind of machine.

   Compiled once for each: REAL_BITS (32 or 64) is the element type, the compiler's -march the
   machine, and TABLE the name of the table of entries by which the drivers know them. */

#if REAL_BITS == 64
#include "allocation.h"
#define HAND_OUT hand_out
#else
#define HAND_OUT 0 /* amounts are float64 */
#endif
#include "attention.h"
#include "fuse.h"
#include "similarity.h"
#include "softmax.h"

typedef void entry(int64_t call_address, int64_t worker);

const struct entry_table {
    entry *attend, *fold, *compare, *fuse, *normalise, *hand_out;
} TABLE = {attend, fold, compare, fuse, normalise, HAND_OUT};
