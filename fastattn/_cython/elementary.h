/* Elementary functions on vectors: exp2, exp, tanh; and the natural logarithm of a scalar.

   All are the project's own, so that their bits are the same on every machine. Each reduces its
   argument to an integer n and a small remainder f, evaluates a polynomial in f by Horner's rule in
   fused multiply-adds, and puts n into the exponent bits. The coefficients interpolate
   (g(f) - 1) / f at Chebyshev nodes, so that the value at f = 0 is exactly 1: the largest score of
   a row always has the weight 1.

   exp2 and exp stay within 1.0 ULP in float32 (measured over every argument). */

#ifndef FASTATTN_ELEMENTARY_H
#define FASTATTN_ELEMENTARY_H

#include "vector.h"

/* (2^f - 1) / f on [-1/2, 1/2]; relative error of the whole 9.1e-9 and 2.0e-17.
   (e^f - 1) / f on [-ln 2 / 2, ln 2 / 2]; relative error of the whole 1.1e-8 and 9.8e-18.
   ln 2 is a short head, whose products with n are exact, and a tail.
   Below EXP_LOWEST exp is 0. */
#if REAL_BITS == 32
#define MANTISSA 23
#define BIAS 127
#define EXP_LOWEST -104.0
#define TERMS 6
static const real EXP2[TERMS] = {
    0.6931471824645996,   0.24022650718688965,   0.055503569543361664,
    0.009618082083761692, 0.0013390874955803156, 0.00015453173546120524,
};
static const real EXP[TERMS] = {
    1.0, 0.5, 0.16666504740715027, 0.04166646674275398, 0.00836915522813797, 0.0013933649752289057,
};
static const real LN2_HEAD = 0.693145751953125, LN2_TAIL = 1.428606765330187e-06;
#else
#define MANTISSA 52
#define BIAS 1023
#define EXP_LOWEST -746.0
#define TERMS 11
static const real EXP2[TERMS] = {
    0.6931471805599453,     0.24022650695910097,    0.0555041086648216,    0.009618129107606871,
    0.0013333558146416927,  0.00015403530441765088, 1.5252733829851596e-05, 1.321544257022465e-06,
    1.0178062436412765e-07, 7.072589488396345e-09,  4.4549624846332125e-10,
};
static const real EXP[TERMS] = {
    1.0,                    0.5000000000000006,     0.1666666666666667,    0.041666666666573066,
    0.008333333333326136,   0.001388888893251478,   0.00019841269874820627, 2.480150431378554e-05,
    2.7557255400206422e-06, 2.7626371065696354e-07, 2.5105217004720745e-08,
};
static const real LN2_HEAD = 0.693147180559663, LN2_TAIL = 2.8235290563031577e-13;
#endif
#define SHIFTER ((real)(1.5 * (double)(1LL << MANTISSA)))
#define LOG2_E 1.4426950408889634

/* `x * factor + bias + SHIFTER`: rounded to an integer, whose low bits are the float's. */
INLINE part shifted_product(part x, part factor, real bias)
{
    return fused_part(x, factor, splat_part(SHIFTER + bias));
}

/* The float whose exponent field is the low bits of `shifted`; field 0 gives 0. */
INLINE part power_of_two(part shifted) { return (part)((natural_part)shifted << MANTISSA); }

INLINE part horner(part x, const real *coefficients)
{
    part total = splat_part(coefficients[TERMS - 1]);
    UNROLL for (int i = TERMS - 2; i >= 0; i--)
        total = fused_part(total, x, splat_part(coefficients[i]));
    return total;
}

/* 2^(x * factor) for x * factor <= 0, the product unrounded; 0 from 2^-126 (2^-1022) down.
   `lowest` is `exp2_lowest(factor)`. */
INLINE vector exp2_product(vector x, vector factor, vector lowest)
{
    const part one = splat_part(1);
    EACH_PART(p)
    {
        const part clamped = larger_part(lowest.part[p], x.part[p]);
        const part shifted = shifted_product(clamped, factor.part[p], BIAS);
        const part whole = shifted - splat_part(SHIFTER + BIAS);
        const part rest = fused_part(clamped, factor.part[p], -whole);
        const part value = fused_part(horner(rest, EXP2), rest, one);
        x.part[p] = value * power_of_two(shifted);
    }
    return x;
}

/* The argument at which `exp2_product` reaches 0: minus the exponent bias over factor. */
INLINE real exp2_lowest(real factor) { return -(real)BIAS / factor; }

/* e^x for x <= 0, gradually down to the smallest subnormal; NaN stays NaN. */
INLINE vector exp_nonpositive(vector x)
{
    const part one = splat_part(1), inverse_ln2 = splat_part((real)LOG2_E);
    EACH_PART(p)
    {
        const part clamped = larger_part(splat_part(EXP_LOWEST), x.part[p]);
        const part whole = shifted_product(clamped, inverse_ln2, 0) - splat_part(SHIFTER);
        part rest = fused_part(whole, splat_part(-LN2_HEAD), clamped);
        rest = fused_part(whole, splat_part(-LN2_TAIL), rest);
        const part value = fused_part(horner(rest, EXP), rest, one);
        /* 2^n in two factors: the first product is exact, so a subnormal result is rounded once. */
        const part shifter = splat_part(SHIFTER + BIAS);
        const part low = fused_part(whole, splat_part((real)0.5), shifter);
        const part high = (whole - (low - shifter)) + shifter;
        x.part[p] = value * power_of_two(low) * power_of_two(high);
    }
    return x;
}

/* tanh(x * factor) for factor > 0, by expm1(-2 |x| factor); small arguments keep full accuracy.
   `factor` is splat and already holds the 2 log2(e) of that exponent. */
INLINE vector tanh_product(vector x, vector factor)
{
    const part one = splat_part(1), two = splat_part(2);
    const natural_part sign_bit = (natural_part){0} + ((natural)1 << (REAL_BITS - 1));
    EACH_PART(p)
    {
        const natural_part bits = (natural_part)x.part[p];
        const part lowest = splat_part((real)-(0.25 * BIAS)) / factor.part[p];
        const part negative = larger_part(lowest, (part)(bits | sign_bit));
        const part shifted = shifted_product(negative, factor.part[p], BIAS);
        const part whole = shifted - splat_part(SHIFTER + BIAS);
        const part rest = fused_part(negative, factor.part[p], -whole);
        const part power = power_of_two(shifted);
        const part small = horner(rest, EXP2) * rest;
        const part minus_one = fused_part(power, small, power - one);
        const part ratio = -minus_one / (minus_one + two);
        x.part[p] = (part)((natural_part)ratio | (bits & sign_bit));
    }
    return x;
}

/* Per lane the power of two that brings x >= 0 into [1, 4), or up from the subnormals. */
INLINE vector inverse_exponent(vector x)
{
    const natural_part zero = {0};
    const natural_part field = zero + ((natural)(2 * BIAS + 1) << MANTISSA);
    const natural_part highest = zero + ((natural)(2 * BIAS - 1) << MANTISSA);
    EACH_PART(p)
    {
        natural_part exponent = (natural_part)x.part[p] & field;
        const natural_part below = (natural_part)(exponent < highest);
        exponent = (below & exponent) | (~below & highest);
        x.part[p] = (part)(zero + ((natural)(2 * BIAS) << MANTISSA) - exponent);
    }
    return x;
}

/* 2 (atanh(y) / y - 1) / y^2 in powers of y^2, |y| <= (sqrt 2 - 1) / (sqrt 2 + 1). */
static const double ATANH[10] = {
    0.6666666666666666,  0.4,                 0.28571428571428503, 0.22222222222252955,
    0.181818181750467,   0.15384616240665697, 0.13333267554759004, 0.11767825745236031,
    0.10437362638966984, 0.10909707786470813,
};

/* ln x of a positive normal float64; 0 gives -inf, inf and NaN stay. */
NOINLINE double natural_log(double x)
{
    if (!(x > 0.0)) return x == 0.0 ? -__builtin_inf() : __builtin_nan("");
    if (x == __builtin_inf()) return x;
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    /* Exponent n so that the mantissa lies in [sqrt(1/2), sqrt(2)). */
    const int64_t exponent = (int64_t)(bits - 0x3FE6A09E667F3BCD) >> 52;
    bits -= (uint64_t)exponent << 52;
    double mantissa;
    memcpy(&mantissa, &bits, sizeof mantissa);
    const double y = (mantissa - 1.0) / (mantissa + 1.0), square = y * y, n = (double)exponent;
    double total = ATANH[9];
    for (int i = 8; i >= 0; i--) total = __builtin_fma(total, square, ATANH[i]);
    const double low = __builtin_fma(n, 2.8235290563031577e-13, y * square * total);
    return __builtin_fma(n, 0.693147180559663, 2.0 * y + low);
}

#endif
