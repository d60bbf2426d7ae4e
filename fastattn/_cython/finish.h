/* Finish: divide by the sum, write output, log-sum-exp and weights. */

#ifndef FASTATTN_FINISH_H
#define FASTATTN_FINISH_H

#include "blocks.h"

/* `weighted / total`, rounded once, given the rounded inverse of the total.

   Newton's correction of the quotient: as exact as a division (Markstein), and a fifth of the time
   of one of vectors. An infinite quotient needs none and would become NaN. */
INLINE vector divided(vector weighted, vector total, vector inverse)
{
    const vector quotient = times(weighted, inverse);
    const vector remainder = fused(minus(splat(0), quotient), total, weighted);
    return unless_nan(fused(remainder, inverse, quotient), quotient);
}

/* Divide by the sum and round; an empty row gives 0. Overwrites `running`. */
static void write_output(const attention_call *call, real row_max, real row_sum, int64_t running,
                         int64_t target)
{
    const int64_t features = call->value_features;
    const bool in_place = call->output_feature == ITEM && call->output_code == NATIVE_CODE;
    const int64_t whole = in_place ? features / LANES * LANES : 0;
    if (row_max == HIDDEN) {
        row_sum = 1;
        clear_row(running, 0, padded(features));
    }
    const vector total = splat(row_sum), inverse = splat(1 / row_sum);
    for (int64_t e = 0; e < whole; e += LANES)
        store(target + e * ITEM, divided(load(running + e * ITEM), total, inverse));
    for (int64_t e = whole; e < features; e += LANES) {
        const vector result = divided(load(running + e * ITEM), total, inverse);
        if (in_place)
            store_first(target + e * ITEM, result, features - e);
        else
            store(running + e * ITEM, result);
    }
    if (!in_place)
        round_row(call->output_code, running, features, target, call->output_feature);
}

/* Fold a sink into a row's running state: weight without a value. Overwrites `zeros`. */
static void fold_sink(const attention_call *call, row_state state, real sink, int64_t zeros)
{
    const int64_t width = padded(call->value_features);
    clear_row(zeros, 0, width);
    fold_row(state, sink, 1, zeros, width * ITEM, (real)LOG2_E);
}

/* Write the output and the log-sum-exp of query i of a head, from its state.

   The state takes the sink in, its maximum as scored again; overwrites its output and `zeros`. */
static void finish_row(const attention_call *call, int64_t entry, int64_t head, int64_t i,
                       row_state state, bool exact, int64_t zeros)
{
    /* What turns a maximum, as scored, into a final score. */
    double scale = !call->shaped && exact ? call->rest : 1.0, unit = 1.0;
    if (call->sinks) {
        const int64_t place = call->sinks + operand_offset(call, SINKS_OPERAND, entry);
        const real sink = load_real(place + head * call->sinks_head);
        if (sink != HIDDEN) {
            /* A sink is a final score: fold in that unit. */
            store_real(state.max, (real)((double)load_real(state.max) * scale));
            fold_sink(call, state, sink, zeros);
            unit = scale, scale = 1.0;
        }
    }
    const real row_max = load_real(state.max), row_sum = load_real(state.sum);
    const int64_t output = call->output + operand_offset(call, OUTPUT_OPERAND, entry);
    write_output(call, row_max, row_sum, state.output,
                 output + head * call->output_head + i * call->output_row);
    if (call->lse) {
        double lse = -__builtin_inf();
        if (row_max != HIDDEN) lse = natural_log((double)row_sum) + (double)row_max * scale;
        const int64_t target = call->lse + operand_offset(call, LSE_OPERAND, entry);
        store_real(target + head * call->lse_head + i * call->lse_row, (real)lse);
    }
    store_real(state.max, (real)((double)row_max / unit));
}

/* Turn the scores of a row, keys begin to end, into weights; other keys have none.

   A hidden key has the weight 0 even in a row of NaN. */
static void finish_weights(const attention_call *call, int64_t target, int64_t begin, int64_t end,
                           real row_max, real row_sum, real factor)
{
    const vector zero = splat(0), maximum = splat(row_max), total = splat(row_sum);
    const vector wide = splat(factor), lowest = splat(exp2_lowest(factor));
    if (row_max == HIDDEN) end = begin;
    for (int64_t column = 0; column < begin; column += LANES)
        store_first(target + column * ITEM, zero, begin - column);
    for (int64_t column = end; column < call->keys; column += LANES)
        store_first(target + column * ITEM, zero, call->keys - column);
    for (int64_t column = begin; column < end; column += LANES) {
        const int64_t place = target + column * ITEM;
        const vector score = load_first(place, end - column, HIDDEN);
        const vector weight = over(exp2_product(minus(score, maximum), wide, lowest), total);
        store_first(place, select_equal(score, HIDDEN, zero, weight), end - column);
    }
}

#endif
