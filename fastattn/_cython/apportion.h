/* Whole units: rounding the amounts of a row so that they add up to the budget.

   Largest remainder rounds down and gives the rest to the largest remainders. The divisor methods
   begin with each amount rounded by its own divisor, which is the state that handing out unit after
   unit passes through when it has given that many; from there they give, or take back, in order. A
   heap holds who is next. */

#ifndef FASTATTN_APPORTION_H
#define FASTATTN_APPORTION_H

#include "memory.h"
#include "pairs.h"
#include "record.h"

#define VECTOR_STEP (LANES * ITEM)

/* More than any scaled amount can be. */
#define BEYOND 4.0
/* Claims that differ by less than this part count as equal, and remainders that differ by less than
   this much of a unit, or than the last places of a pair as large as the budget. */
#define EQUAL 0x1p-80
#define EQUAL_OF_BUDGET 0x1p-98
/* The last places of squares and products of weights below this may be lost, of more than TINY
   times LARGE none is. */
#define TINY 0x1p-400
#define LARGE 0x1p600
/* Remainders this near another number may be equal to it. So many trials find the gap between those
   of a hundred receivers; more than that are sorted no slower. */
#define NEAR 0x1p-40
#define MOST_TRIALS 16

typedef enum { GIVE, TAKE } way_of_change;

/* The units of a row under way. */
typedef struct {
    const allocation_call *call;
    real equal; /* remainders that differ by no more are equal */
    int64_t weights, lower, upper, amounts, rests, errors, heap;
    real inverse; /* of the scale */
} unit_row;

INLINE real number_at(int64_t numbers, int64_t i) { return load_real(numbers + i * ITEM); }

/* Whether i's claim to one unit more than `given` comes before j's. */
static bool claims_before(int64_t method, real weight, real given, int64_t i, real other_weight,
                          real other_given, int64_t j)
{
    pair a, b;
    if (weight < TINY && other_weight < TINY) weight *= LARGE, other_weight *= LARGE;
    if (method == HUNTINGTON_HILL) {
        if (given == 0 || other_given == 0) {
            if (given != other_given) return given == 0;
            a = (pair){weight, 0}, b = (pair){other_weight, 0};
        } else {
            a = product_of_pairs(exact_product(weight, weight),
                                 exact_product(other_given, other_given + 1));
            b = product_of_pairs(exact_product(other_weight, other_weight),
                                 exact_product(given, given + 1));
        }
    } else {
        const real step = method == SAINTE_LAGUE ? 2 : 1;
        a = exact_product(weight, step * other_given + 1);
        b = exact_product(other_weight, step * given + 1);
    }
    const real more = (a.number - b.number) + (a.rest - b.rest);
    const real size = more < 0 ? -more : more;
    return size <= EQUAL * a.number ? i < j : more > 0;
}

/* Whether i is next before j, to be given a unit or to lose its last one. */
static bool comes_before(const unit_row *row, int64_t i, int64_t j, way_of_change way)
{
    const int64_t method = row->call->method;
    if (method == LARGEST_REMAINDER) {
        real more = number_at(row->rests, i) - number_at(row->rests, j);
        more += number_at(row->errors, i) - number_at(row->errors, j);
        const real size = more < 0 ? -more : more;
        return size <= row->equal ? i < j : more > 0;
    }
    const real a = number_at(row->amounts, i), b = number_at(row->amounts, j);
    const real weight = number_at(row->weights, i), other = number_at(row->weights, j);
    /* Who has the last claim loses first. */
    if (way == TAKE) return claims_before(method, other, b - 1, j, weight, a - 1, i);
    return claims_before(method, weight, a, i, other, b, j);
}

/* Let who stands at a place of the heap sink to where it belongs. */
static void sift_down(const unit_row *row, int64_t place, int64_t size, way_of_change way)
{
    const int64_t sinking = load_int64(row->heap, place);
    while (2 * place + 1 < size) {
        int64_t child = 2 * place + 1, best = load_int64(row->heap, child);
        if (child + 1 < size) {
            const int64_t other = load_int64(row->heap, child + 1);
            if (comes_before(row, other, best, way)) child++, best = other;
        }
        if (!comes_before(row, best, sinking, way)) break;
        store_int64(row->heap, place, best);
        place = child;
    }
    store_int64(row->heap, place, sinking);
}

/* Whether i can be given a unit, or can lose one. */
static bool may_change(const unit_row *row, int64_t i, way_of_change way)
{
    const real amount = number_at(row->amounts, i);
    if (way == TAKE) return amount > number_at(row->lower, i) * row->inverse;
    if (row->call->method == LARGEST_REMAINDER) return number_at(row->rests, i) > 0;
    return amount < number_at(row->upper, i) * row->inverse && number_at(row->weights, i) > 0;
}

/* Give units, or take them back, one after the other, in order. */
static void change(const unit_row *row, real units, way_of_change way)
{
    int64_t size = 0;
    for (int64_t i = 0; i < row->call->receivers; i++)
        if (may_change(row, i, way)) store_int64(row->heap, size++, i);
    for (int64_t place = size / 2 - 1; place >= 0; place--) sift_down(row, place, size, way);
    for (; units > 0 && size > 0; units--) {
        const int64_t i = load_int64(row->heap, 0);
        store_real(row->amounts + i * ITEM, number_at(row->amounts, i) + (way == TAKE ? -1 : 1));
        if (row->call->method == LARGEST_REMAINDER || !may_change(row, i, way))
            store_int64(row->heap, 0, load_int64(row->heap, --size));
        sift_down(row, 0, size, way);
    }
}

/* A number that so many remainders are above, and none near; 0 if a few trials find none.

   Where they lie evenly, as most do, the next trial is where a line says; each third one halves. */
static real parting(const unit_row *row, real units)
{
    const vector zero = splat(0), one = splat(1);
    const int64_t size = row->call->receivers * ITEM;
    real low = 0, high = 1, above_low = (real)row->call->receivers, above_high = 0;
    for (int trial = 0; trial < MOST_TRIALS; trial++) {
        real part = (real)0.5;
        if (trial % 3 < 2) part = (above_low - units - part) / (above_low - above_high);
        const real between = low + (high - low) * part;
        vector count = zero, nearest = splat(-1);
        for (int64_t i = 0; i < size; i += VECTOR_STEP) {
            const vector apart = minus(load(row->rests + i), splat(between));
            count = plus(count, select_above(apart, zero, one, zero));
            nearest = larger(nearest, minus(zero, absolute(apart)));
        }
        const real above = lane_sum(count);
        if (above == units && lane_max(nearest) < -NEAR) return between;
        if (above > units)
            low = between, above_low = above;
        else
            high = between, above_high = above;
    }
    return 0;
}

/* Give one unit each to the largest remainders; in order only where that matters. */
static void give_largest(const unit_row *row, real units)
{
    const vector between = splat(parting(row, units)), zero = splat(0), one = splat(1);
    if (first_lane(between) == 0) {
        change(row, units, GIVE);
        return;
    }
    for (int64_t i = 0; i < row->call->receivers * ITEM; i += VECTOR_STEP) {
        const vector more = select_above(load(row->rests + i), between, one, zero);
        store(row->amounts + i, plus(load(row->amounts + i), more));
    }
}

/* Whether i may change, and comes before the one found; -1: none was. */
static bool is_next(const unit_row *row, int64_t i, int64_t found, way_of_change way)
{
    return may_change(row, i, way) && (found < 0 || comes_before(row, i, found, way));
}

/* Move units whose order rounding had hidden: from the last claim to an earlier one.

   The first amounts are rounded by theta, whose own last place may hide the order of claims that
   are nearly equal. */
static void settle_units(const unit_row *row)
{
    for (int64_t moves = 0; moves < row->call->receivers; moves++) {
        int64_t first = -1, last = -1;
        for (int64_t i = 0; i < row->call->receivers; i++) {
            if (is_next(row, i, first, GIVE)) first = i;
            if (is_next(row, i, last, TAKE)) last = i;
        }
        if (first < 0 || last < 0 || first == last) return;
        const real given = number_at(row->amounts, first);
        const real taken = number_at(row->amounts, last) - 1;
        if (!claims_before(row->call->method, number_at(row->weights, first), given, first,
                           number_at(row->weights, last), taken, last))
            return;
        store_real(row->amounts + first * ITEM, given + 1);
        store_real(row->amounts + last * ITEM, taken);
    }
}

/* Round amounts by the method: `down`, of which `part` is left, or one more. */
INLINE vector round_amounts(int64_t method, vector whole, vector down, vector part)
{
    const vector more = plus(down, splat(1));
    switch (method) {
    case SAINTE_LAGUE:
        return select_above(part, splat((real)0.5), more, down);
    case HUNTINGTON_HILL:
        return select_above(times(whole, whole), times(down, more), more, down);
    default:
        return down;
    }
}

/* Round every amount by itself; returns how many units that takes. */
static real first_amounts(const unit_row *row, pair theta, bool at_caps)
{
    const vector zero = splat(0), one = splat(1), beyond = splat(BEYOND);
    const vector inverse = splat(row->inverse), share = splat(theta.number);
    vector total = zero;
    for (int64_t i = 0; i < row->call->receivers * ITEM; i += VECTOR_STEP) {
        const vector weight = load(row->weights + i);
        const vector low = load(row->lower + i), cap = load(row->upper + i);
        const vector least = times(low, inverse), most = times(cap, inverse);
        if (at_caps) {
            const vector amount = select_above(weight, zero, most, least);
            store(row->amounts + i, amount);
            continue;
        }
        vector whole = times(share, weight);
        whole = select_above(whole, beyond, beyond, whole);
        vector error = plus(fused(share, weight, minus(zero, whole)),
                            times(splat(theta.rest), weight));
        const vector over = plus(minus(whole, cap), error);
        const vector under = minus(minus(low, whole), error);
        whole = times(whole, inverse), error = times(error, inverse);
        vector down = rounded_down(whole);
        const vector above = minus(whole, down), sum = plus(above, error);
        const vector other = minus(sum, above);
        error = plus(minus(above, minus(sum, other)), minus(error, other));
        const vector part = select_above(zero, sum, plus(sum, one), sum);
        down = select_above(zero, sum, minus(down, one), down);
        vector amount = round_amounts(row->call->method, whole, down, part);
        amount = select_above(amount, most, most, amount);
        amount = select_above(least, amount, least, amount);
        /* Who is at a bound has no remainder. */
        amount = select_above(zero, over, amount, most);
        amount = select_above(zero, under, amount, least);
        const vector rest = select_above(zero, over, part, zero);
        store(row->rests + i, select_above(zero, under, rest, zero));
        store(row->errors + i, error);
        store(row->amounts + i, amount);
        total = plus(total, amount);
    }
    return lane_sum(total);
}

/* Step store: units as whole numbers, or as floats. */
static void store_units(const allocation_call *call, int64_t amounts, int64_t output)
{
    const integer_part unit = (integer_part){0} + call->unit_whole;
    for (int64_t i = 0; i < call->receivers; i += LANES) {
        const int64_t count = smaller_of(call->receivers - i, LANES);
        vector amount = load(amounts + i * ITEM);
        if (call->whole_numbers)
            EACH_PART(p)
                amount.part[p] = (part)(__builtin_convertvector(amount.part[p], integer_part) * unit);
        else
            amount = times(amount, splat(call->unit));
        if (call->output_step == ITEM) {
            store_first(output + i * ITEM, amount, count);
            continue;
        }
        store(amounts + i * ITEM, amount);
        for (int64_t j = i; j < i + count; j++)
            store_int64(output + j * call->output_step, 0, load_int64(amounts, j));
    }
}

/* Steps spend and store in whole units; `at_caps`: all that caps allow. */
static void apportion(const allocation_call *call, int64_t scratch, pair theta, bool at_caps,
                      real inverse, real budget, int64_t output)
{
    const unit_row row = {
        .call = call,
        .equal = EQUAL_OF_BUDGET * budget > EQUAL ? EQUAL_OF_BUDGET * budget : EQUAL,
        .weights = scratch + call->at_weights,
        .lower = scratch + call->at_lower,
        .upper = scratch + call->at_upper,
        .amounts = scratch + call->at_amounts,
        .rests = scratch + call->at_rests,
        .errors = scratch + call->at_errors,
        .heap = scratch + call->at_heap,
        .inverse = inverse,
    };
    const real total = first_amounts(&row, theta, at_caps);
    if (!at_caps) {
        if (total < budget && call->method == LARGEST_REMAINDER)
            give_largest(&row, budget - total);
        else if (total < budget)
            change(&row, budget - total, GIVE);
        else if (total > budget)
            change(&row, total - budget, TAKE);
        if (call->method != LARGEST_REMAINDER) settle_units(&row);
    }
    store_units(call, row.amounts, output);
}

#endif
