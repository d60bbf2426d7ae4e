/* The kernels of one element type on one kind of machine.

   Compiled once for each: REAL_BITS (32 or 64) is the element type, the compiler's -march the
   machine, and TABLE the name of the table of entries by which the drivers know them. Once more with
   IN_PAIRS, for machines that multiply pairs of bfloat16: attention alone (see `TWIN`). */

#if REAL_BITS == 64
#include "allocation.h"
#include "shared.h"
#define HAND_OUT hand_out
#define SHARE share
#else
#define HAND_OUT 0 /* amounts are float64 */
#define SHARE 0
#endif
#include "attention.h"
#if !defined(IN_PAIRS)
#include "fuse.h"
#include "similarity.h"
#include "softmax.h"
#endif
#include "table.h"

#if defined(__FAST_MATH__) || __FINITE_MATH_ONLY__
#error "the compiler was told to take liberties with floats, which changes results"
#endif
_Static_assert(sizeof 1.0 == 8, "the compiler was told to shorten constants, which changes results");

extern const entry_table TABLE;
#if defined(IN_PAIRS)
const entry_table TABLE = {.attend = attend};
#else
const entry_table TABLE = {attend, fold, compare, fuse, normalise, HAND_OUT, SHARE};
#endif
