/* What the stages' kernels share: storing finished rows of scratch. */

#ifndef FASTATTN_TASKS_H
#define FASTATTN_TASKS_H

#include "halves.h"

/* Store a padded row of scratch into a result whose elements are `step` bytes apart.

   They are reals or halves, as the storage code says. Where `streamed`, `target` is a multiple of
   64 and `step` that of contiguous elements. */
static void put_row(int64_t code, int64_t source, int64_t columns, int64_t target, int64_t step,
                    bool streamed)
{
    if (code != NATIVE_CODE) {
        round_line(code, source, columns, target, step);
        return;
    }
    if (step != ITEM) {
        for (int64_t column = 0; column < columns; column++)
            store_real(target + column * step, load_real(source + column * ITEM));
        return;
    }
    const int64_t whole = columns / LANES * LANES;
    for (int64_t column = 0; column < whole; column += LANES) {
        const vector values = load(source + column * ITEM);
        if (streamed)
            stream(target + column * ITEM, values);
        else
            store(target + column * ITEM, values);
    }
    if (whole < columns)
        store_first(target + whole * ITEM, load(source + whole * ITEM), columns - whole);
}

#endif
