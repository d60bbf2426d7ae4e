/* Handing out budgets: proportional amounts within bounds, or whole units of them (apportion.h).

   Steps for a row: pack (into scratch, scaled by powers of two that bring the largest weight and
   the budget near 1; what makes no sense is noticed), share (find theta), spend (amounts, or whole
   units), store. Always in float64.

   No order of the receivers changes a bit. A sum cuts each number at fixed places into three parts
   that add up exactly in any order, so lanes add as they like; a sum, and theta, is a pair. */

#ifndef FASTATTN_ALLOCATION_H
#define FASTATTN_ALLOCATION_H

#include "apportion.h"
#include "storage.h"

enum {
    HANDED_WEIGHTS,
    HANDED_BUDGET,
    HANDED_LOWER,
    HANDED_UPPER,
    HANDED_ALLOWED,
    HANDED_OUTPUT,
    HANDED_UNSPENT
};

/* Scaled weights are at least this, lest the smallest become nothing. */
#define LEAST_WEIGHT 0x1p-1000
/* One last place of a scaled budget: real amounts may miss it by that, and bounds too. */
#define SLACK 0x1p-52
/* What is missing of a budget by no more than this part is nothing: sums are no more exact, and
   where one receiver takes nearly all, only halvings would come closer. */
#define NOTHING 0x1p-102
/* Where a receiver stands who is at a bound; those between have their weight there. */
#define AT_CAP -1
#define AT_LOW -2
/* Rows are few lines long, too short for the machine's own prefetching. */
#define AHEAD 2048
/* Newton's steps are a handful, and bisection has a few hundred binary orders to search. */
#define MOST_STEPS 500

/* The scratch of a row. */
typedef struct {
    int64_t weights, lower, upper, standing;
} handed_row;

/* A sum under way: the lanes of each part add up exactly, in any order. */
typedef struct {
    vector first, second, third;
} parted_sum;

/* Where sums cut their numbers. Taken from the record once: a store might change it, for all that
   the compiler knows. */
INLINE parted_sum cuts_of(const allocation_call *call)
{
    return (parted_sum){splat(call->sum_first), splat(call->sum_second), splat(call->sum_third)};
}

INLINE parted_sum add_parted(parted_sum cut, parted_sum total, vector number)
{
    const vector first = minus(plus(number, cut.first), cut.first);
    number = minus(number, first);
    const vector second = minus(plus(number, cut.second), cut.second);
    const vector third = minus(plus(minus(number, second), cut.third), cut.third);
    total.first = plus(total.first, first);
    total.second = plus(total.second, second);
    total.third = plus(total.third, third);
    return total;
}

INLINE pair whole_sum(parted_sum total)
{
    return paired(lane_sum(total.first), lane_sum(total.second) + lane_sum(total.third));
}

/* One operand of a row as float64; 0 for who takes no part, and behind the row. */
static void pack_receivers(const allocation_call *call, int64_t code, int64_t source, int64_t step,
                           int64_t allowed, int64_t target)
{
    const int64_t receivers = call->receivers;
    if (!allowed && step == ITEM && code == FLOAT64_CODE) {
        for (int64_t i = 0; i < receivers; i += LANES) {
            prefetch(source + i * ITEM + AHEAD);
            prefetch(source + i * ITEM + AHEAD + 64);
            store(target + i * ITEM, load_first(source + i * ITEM, receivers - i, 0));
        }
        return;
    }
    for (int64_t i = 0; i < receivers; i++) {
        const bool part = !allowed || load_as(BOOL_CODE, allowed + i * call->allowed_step) != 0;
        store_real(target + i * ITEM, part ? load_as(code, source + i * step) : 0);
    }
    for (int64_t i = receivers; i % LANES; i++) store_real(target + i * ITEM, 0);
}

/* The same number for everybody. */
static void fill_row(const allocation_call *call, int64_t target, real number)
{
    for (int64_t i = 0; i < call->receivers * ITEM; i += VECTOR_STEP)
        store(target + i, splat(number));
}

/* One bound of a row: `fill` for everybody where there is no array. */
static void pack_bound(const allocation_call *call, int64_t array, int64_t operand, int64_t row,
                       int64_t step, int64_t allowed, real fill, int64_t target)
{
    if (array) {
        pack_receivers(call, FLOAT64_CODE, array + operand_offset(call, operand, row), step,
                       allowed, target);
        return;
    }
    fill_row(call, target, fill);
}

/* The power of two that brings a number of at least 0 near 1; below 4 in any case. */
static real factor_near_one(real number)
{
    integer bits;
    memcpy(&bits, &number, sizeof bits);
    bits = larger_of(2046 - (bits >> 52), 1) << 52;
    memcpy(&number, &bits, sizeof bits);
    return number;
}

/* Step pack: scale the weights; returns their sum, NaN where one makes no sense. */
INLINE pair scale_weights(const allocation_call *call, int64_t weights)
{
    const vector zero = splat(0), nan = splat(NOT_A_NUMBER), least = splat(LEAST_WEIGHT);
    vector wrong = zero, largest = zero;
    const int64_t stop = weights + call->receivers * ITEM;
    for (int64_t place = weights; place < stop; place += VECTOR_STEP) {
        const vector weight = load(place);
        const vector negative = select_above(zero, weight, nan, zero);
        wrong = plus(plus(wrong, minus(weight, weight)), negative);
        largest = larger(largest, weight);
    }
    if (any_nan(wrong)) return (pair){NOT_A_NUMBER, 0};
    const vector factor = splat(factor_near_one(lane_max(largest)));
    const parted_sum cut = cuts_of(call);
    parted_sum total = {zero, zero, zero};
    for (int64_t place = weights; place < stop; place += VECTOR_STEP) {
        vector weight = load(place);
        weight = select_above(weight, zero, larger(times(weight, factor), least), zero);
        store(place, weight);
        total = add_parted(cut, total, weight);
    }
    return whole_sum(total);
}

/* Step pack: scale the bounds, and cut caps that no amount can reach.

   Stores the sums of the least and of the most, the first NaN where a bound makes no sense. */
INLINE void scale_bounds(const allocation_call *call, handed_row at, real factor, real budget,
                         pair *least, pair *most)
{
    const parted_sum cut = cuts_of(call);
    const int64_t size = call->receivers * ITEM;
    const vector zero = splat(0), nan = splat(NOT_A_NUMBER), beyond = splat(BEYOND);
    vector wrong = zero;
    parted_sum least_sum = {zero, zero, zero}, most_sum = {zero, zero, zero};
    for (int64_t i = 0; i < size; i += VECTOR_STEP) {
        vector low = load(at.lower + i), cap = load(at.upper + i);
        wrong = plus(plus(wrong, minus(low, low)), select_above(zero, low, nan, zero));
        wrong = plus(plus(wrong, select_above(low, cap, nan, zero)),
                     select_above(cap, beyond, zero, minus(cap, cap)));
        low = times(low, splat(factor)), cap = times(cap, splat(factor));
        low = select_above(low, beyond, beyond, low);
        cap = select_above(cap, splat(budget), splat(budget), cap);
        store(at.lower + i, low);
        store(at.upper + i, cap);
        if (call->lower) least_sum = add_parted(cut, least_sum, low);
        cap = select_above(load(at.weights + i), zero, cap, low);
        most_sum = add_parted(cut, most_sum, cap);
    }
    *least = any_nan(wrong) ? (pair){NOT_A_NUMBER, 0} : whole_sum(least_sum);
    *most = whole_sum(most_sum);
}

/* Per lane the amount at theta and its error, and by how much it is over and under its bounds. */
typedef struct {
    vector amount, error, over, under;
} shared_amount;

INLINE shared_amount amount_at(pair theta, vector weight, vector low, vector cap)
{
    const vector zero = splat(0), beyond = splat(BEYOND), share = splat(theta.number);
    shared_amount result;
    const vector amount = times(share, weight);
    result.amount = select_above(amount, beyond, beyond, amount);
    result.error = plus(fused(share, weight, minus(zero, result.amount)),
                        times(splat(theta.rest), weight));
    result.over = plus(minus(result.amount, cap), result.error);
    result.under = minus(minus(low, result.amount), result.error);
    return result;
}

/* Where everybody stands at theta: the weight of who is between the bounds, else which bound.

   Returns the largest weight between the bounds; `moved`: whether anybody stands elsewhere than
   the scratch said before. */
INLINE real stand_at(const allocation_call *call, handed_row at, pair theta, bool *moved)
{
    const vector zero = splat(0), at_cap = splat(AT_CAP), at_low = splat(AT_LOW);
    const int64_t size = call->receivers * ITEM;
    vector largest = zero;
    *moved = false;
    for (int64_t i = 0; i < size; i += VECTOR_STEP) {
        const vector weight = load(at.weights + i), before = load(at.standing + i);
        const shared_amount a = amount_at(theta, weight, load(at.lower + i), load(at.upper + i));
        vector standing = select_above(a.under, zero, at_low, weight);
        standing = select_above(a.over, zero, at_cap, standing);
        if (!same_lanes(standing, before)) *moved = true;
        store(at.standing + i, standing);
        largest = larger(largest, standing);
    }
    return lane_max(largest);
}

/* Weights of who is between the bounds, and amounts of who is at one: two pairs.

   The largest weight between them says where its sum is to be cut. Others may be heavier by any
   number of orders. */
INLINE void sums_of(const allocation_call *call, handed_row at, real largest, pair *free,
                    pair *bound)
{
    const parted_sum cut = cuts_of(call);
    const int64_t size = call->receivers * ITEM;
    const vector zero = splat(0), beside = splat((real)0.5 * (AT_CAP + AT_LOW));
    const real factor = factor_near_one(largest), inverse = 1 / factor;
    parted_sum bound_sum = {zero, zero, zero}, free_sum = {zero, zero, zero};
    for (int64_t i = 0; i < size; i += VECTOR_STEP) {
        const vector standing = load(at.standing + i);
        vector amount = select_above(standing, beside, load(at.upper + i), load(at.lower + i));
        amount = select_above(zero, standing, amount, zero);
        bound_sum = add_parted(cut, bound_sum, amount);
        free_sum = add_parted(cut, free_sum, times(larger(standing, zero), splat(factor)));
    }
    *bound = whole_sum(bound_sum);
    *free = whole_sum(free_sum);
    *free = (pair){free->number * inverse, free->rest * inverse};
}

/* A point between two thetas, in few steps of any number of binary orders. */
static real middle(real low, real high)
{
    if (high == -HIDDEN) return 16 * low > 0x1p-1000 ? 16 * low : 0x1p-1000;
    if (low == 0) return high / 16;
    if (high > 16 * low) return SQUARE_ROOT(low) * SQUARE_ROOT(high);
    return (real)0.5 * (low + high);
}

/* Step share: the theta that spends the budget, from a first guess.

   The sum of the amounts is piecewise linear and does not fall. Newton's step solves it for who is
   between the bounds now; where that leaves the bracket, bisect. Who is at a bound may change
   between two floats that are neighbours, hence the bracket of pairs. Nobody moved since a step
   was solved: it would be solved again. */
static pair find_theta(const allocation_call *call, handed_row at, real budget, pair theta)
{
    pair low = {0, 0}, high = {-HIDDEN, 0};
    bool solved = false;
    for (int step = 0; step < MOST_STEPS; step++) {
        pair free, bound, following = {-1, 0};
        bool moved;
        const real largest = stand_at(call, at, theta, &moved);
        if (solved && !moved) break;
        sums_of(call, at, largest, &free, &bound);
        const pair open = less_pair(budget, bound);
        real missing = open.number;
        if (free.number > 0) {
            following = quotient_of_pairs(open, free);
            missing = (following.number - theta.number) + (following.rest - theta.rest);
            missing *= free.number;
        }
        if (__builtin_fabs(missing) <= NOTHING * budget) break;
        if (missing > 0)
            low = theta;
        else
            high = theta;
        theta = following;
        solved = is_below(low, theta) && is_below(theta, high);
        if (solved) continue;
        theta = (pair){middle(low.number, high.number), 0};
        if (low.number < theta.number && theta.number < high.number) continue;
        const real gap = (high.number - low.number) + (high.rest - low.rest);
        theta = paired(low.number, low.rest + (real)0.5 * gap);
        if (!(is_below(low, theta) && is_below(theta, high))) break;
    }
    return theta;
}

/* Steps spend and store: real amounts, rounded once, or all that caps allow. */
INLINE void spend(const allocation_call *call, handed_row at, pair theta, bool at_caps,
                  real inverse, int64_t output)
{
    const vector zero = splat(0);
    for (int64_t i = 0; i < call->receivers; i += LANES) {
        const vector weight = load(at.weights + i * ITEM);
        vector amount = times(splat(theta.number), weight);
        if (call->bounded) {
            const vector low = load(at.lower + i * ITEM), cap = load(at.upper + i * ITEM);
            const shared_amount a = amount_at(theta, weight, low, cap);
            amount = select_above(a.over, zero, cap, plus(a.amount, a.error));
            amount = select_above(a.under, zero, low, amount);
            if (at_caps) amount = select_above(weight, zero, cap, low);
        } else {
            amount = plus(amount, plus(fused(splat(theta.number), weight, minus(zero, amount)),
                                       times(splat(theta.rest), weight)));
        }
        amount = times(amount, splat(inverse));
        const int64_t count = smaller_of(call->receivers - i, LANES);
        if (call->output_step == ITEM) {
            store_first(output + i * ITEM, amount, count);
            continue;
        }
        store(at.weights + i * ITEM, amount);
        for (int64_t j = i; j < i + count; j++)
            store_real(output + j * call->output_step, load_real(at.weights + j * ITEM));
    }
}

/* All steps for one row; returns what is left of its budget, NaN if the row makes no sense. */
static real hand_out_row(const allocation_call *call, int64_t row, int64_t scratch)
{
    const handed_row at = {scratch + call->at_weights, scratch + call->at_lower,
                           scratch + call->at_upper, scratch + call->at_amounts};
    const int64_t allowed =
        call->allowed ? call->allowed + operand_offset(call, HANDED_ALLOWED, row) : 0;
    pack_receivers(call, call->weights_code,
                   call->weights + operand_offset(call, HANDED_WEIGHTS, row), call->weights_step,
                   allowed, at.weights);
    const pair total = scale_weights(call, at.weights);
    const real given = load_real(call->budget + operand_offset(call, HANDED_BUDGET, row));
    const real factor = factor_near_one(given), budget = given * factor, inverse = 1 / factor;
    real left = 0;
    bool at_caps = false, at_least = false;
    if (call->bounded) {
        pack_bound(call, call->lower, HANDED_LOWER, row, call->lower_step, allowed, 0, at.lower);
        pack_bound(call, call->upper, HANDED_UPPER, row, call->upper_step, allowed, -HIDDEN,
                   at.upper);
        pair least, most;
        scale_bounds(call, at, factor, budget, &least, &most);
        const real slack =
            call->method != REAL_AMOUNTS ? 0 : SLACK < budget ? SLACK : budget;
        const real short_by = (least.number - budget) + least.rest;
        if (!(short_by <= slack)) return NOT_A_NUMBER;
        left = less_pair(budget, most).number;
        at_caps = left >= 0, at_least = short_by >= 0;
        if (left <= slack) left = 0;
    } else {
        at_caps = total.number == 0;
        if (at_caps) left = budget;
        if (call->method != REAL_AMOUNTS) {
            fill_row(call, at.lower, 0);
            fill_row(call, at.upper, budget);
        }
    }
    if (!(total.number >= 0)) return NOT_A_NUMBER;
    pair theta = {0, 0};
    if (total.number > 0 && !at_caps && !at_least) {
        theta = quotient_of_pairs((pair){budget, 0}, total);
        if (call->bounded) theta = find_theta(call, at, budget, theta);
    }
    const int64_t output = call->output + operand_offset(call, HANDED_OUTPUT, row);
    if (call->method == REAL_AMOUNTS)
        spend(call, at, theta, at_caps, inverse, output);
    else
        apportion(call, scratch, theta, at_caps, inverse, given, output);
    return left * inverse;
}

/* Take tasks until none is left: some rows each. */
static void hand_out(int64_t call_address, int64_t worker)
{
    const allocation_call *const call = (const allocation_call *)call_address;
    const int64_t scratch = call->scratch + worker * call->scratch_stride;
    int64_t task;
    while ((task = atomic_next(call_address)) < call->stop_task) {
        const int64_t first = task * call->task_rows;
        const int64_t stop = smaller_of(first + call->task_rows, call->rows);
        for (int64_t row = first; row < stop; row++)
            store_real(call->unspent + operand_offset(call, HANDED_UNSPENT, row),
                       hand_out_row(call, row, scratch));
    }
}

#endif
