/* Pairs: a number as the sum of two floats, the second at most half a last place of the first. */

#ifndef FASTATTN_PAIRS_H
#define FASTATTN_PAIRS_H

#include "vector.h"

typedef struct {
    real number, rest;
} pair;

/* `a + b` of any two floats, exactly. */
INLINE pair paired(real a, real b)
{
    const real total = a + b, other = total - a;
    return (pair){total, (a - (total - other)) + (b - other)};
}

INLINE bool is_below(pair a, pair b)
{
    return a.number < b.number || (a.number == b.number && a.rest < b.rest);
}

/* `a * b` of two floats, exactly. */
INLINE pair exact_product(real a, real b)
{
    const real product = a * b;
    return (pair){product, FUSED(a, b, -product)};
}

INLINE pair product_of_pairs(pair a, pair b)
{
    const pair product = exact_product(a.number, b.number);
    return (pair){product.number, product.rest + (a.number * b.rest + a.rest * b.number)};
}

/* A number less a pair. */
INLINE pair less_pair(real number, pair a)
{
    const pair total = paired(number, -a.number);
    return paired(total.number, total.rest - a.rest);
}

INLINE pair quotient_of_pairs(pair a, pair b)
{
    const real first = a.number / b.number;
    const real rest = FUSED(-first, b.number, a.number) + (a.rest - first * b.rest);
    return paired(first, rest / b.number);
}

#endif
