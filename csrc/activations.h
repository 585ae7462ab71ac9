/* sigmoid and tanh of every lane, and their slopes from their outputs.
 *
 *     sigmoid(x) = 1 / (1 + e^-x)             x = n ln2 + r,    |r| <= ln2 / 2,   e^-x  = S e^-r,    S = 2^-n
 *                = (R + r) / ((R + r) + S (R - r)),             R = r coth(r / 2), a series in r^2
 *     tanh(x)    = (1 - e^-2x) / (1 + e^-2x)  x = n ln2/2 + s,  |s| <= ln2 / 4,   e^-2x = e^-2s / S, S = 2^n
 *                = ((1 + S) t - (1 - S)) / ((1 + S) - (1 - S) t),   t = tanh(s) = s (1 + a series in s^2)
 *
 * The second lines follow from e^r = (R + r) / (R - r) and from the sum rule of tanh. They hold for n of either sign, so neither
 * function needs |x|, and every rounding of tanh(-x) mirrors one of tanh(x).
 *
 * Limits: sigmoid(-inf) = 0, sigmoid(0) = 1/2, sigmoid(inf) = 1, tanh(+-inf) = +-1, tanh(+-0) = +-0 exactly; tanh is odd to the bit;
 * NaN gives NaN. Where sigmoid would be subnormal it may be 0, never below it.
 * Cost: float32 13 operations (sigmoid) and 15 (tanh), float64 16 and 18, and one division each. No table, no branch, no libm.
 * Source: Cody and Waite, Software Manual for the Elementary Functions (1980), for n and r; the series are minimax in relative
 * error, found by Remez exchange with 50 digits: relative error of e^r 5e-10 (float32), 2e-19 (float64), of t 1.6e-10, 4e-18.
 */
#ifndef RNNFAST_ACTIVATIONS_H
#define RNNFAST_ACTIVATIONS_H

#include "simd.h"

#if REAL_BITS == 32
#define FRACTION_BITS 23
#define EXPONENT_BIAS 127
#define LN2_HIGH 0x1.62e4p-1 /* few enough bits that n times it is exact */
#define LN2_LOW 0x1.7f7d1cp-20
#define SIGMOID_LOWEST -88.5 /* from here S is infinite and the result 0 */
#define SIGMOID_HIGHEST 88.0 /* S is zero: 1 */
#define TANH_HIGHEST 10.0    /* long since 1 */
static const REAL coth_series[] = {0x1.555514p-3, -0x1.6a8b9ep-9};
static const REAL tanh_series[] = {-0x1.55554ep-2, 0x1.1105cap-3, -0x1.afefdap-5};
#else
#define FRACTION_BITS 52
#define EXPONENT_BIAS 1023
#define LN2_HIGH 0x1.62e42fefa4p-1
#define LN2_LOW -0x1.8432a1b0e2634p-43
#define SIGMOID_LOWEST -709.5
#define SIGMOID_HIGHEST 709.0
#define TANH_HIGHEST 20.0
static const REAL coth_series[] = {0x1.555555555552dp-3, -0x1.6c16c16bda28bp-9, 0x1.1566aac0f23f9p-14,
                                   -0x1.bbd3ab9b7b834p-20, 0x1.63494a77a0a62p-25};
static const REAL tanh_series[] = {-0x1.55555555554bcp-2, 0x1.11111110e0a7ap-3, -0x1.ba1ba116e2705p-5,
                                   0x1.664ec9e45ed38p-6, -0x1.223c767df9d43p-7, 0x1.c3842e3c26c6bp-9};
#endif
#define LENGTH(array) ((int)(sizeof(array) / sizeof(*(array))))
#define LOG2E 0x1.71547652b82fep+0
#define LN2 0x1.62e42fefa39efp-1

/* A number so large that adding it rounds to whole numbers, whose last bits then hold the exponent field of 2^(what was added). */
#define ROUNDER (1.5 * (double)((int64_t)1 << FRACTION_BITS) + EXPONENT_BIAS)

INLINE vec power_of_two(vec rounded)
{
#if LANES == 1
    return from_bits((BITS)((uint64_t)to_bits(rounded) << FRACTION_BITS));
#else
    return from_bits(to_bits(rounded) << FRACTION_BITS);
#endif
}

/* first + w (c[0] + w (c[1] + ...)) */
INLINE vec series(REAL first, vec w, const REAL *c, int length)
{
    vec sum = broadcast(c[length - 1]);
    for (int i = length - 2; i >= 0; i--) sum = muladd(w, sum, broadcast(c[i]));
    return muladd(w, sum, broadcast(first));
}

/* NaN passes. */
INLINE vec clamp(vec x, REAL lowest, REAL highest)
{
    x = select(less(x, broadcast(lowest)), broadcast(lowest), x);
    return select(less(broadcast(highest), x), broadcast(highest), x);
}

INLINE vec sigmoid(vec x)
{
    x = clamp(x, (REAL)SIGMOID_LOWEST, (REAL)SIGMOID_HIGHEST);
    vec rounded = muladd(x, broadcast((REAL)-LOG2E), broadcast((REAL)ROUNDER));
    vec minus_n = rounded - broadcast((REAL)ROUNDER);
    vec r = muladd(minus_n, broadcast((REAL)LN2_HIGH), x);
    r = muladd(minus_n, broadcast((REAL)LN2_LOW), r);
    vec R = series(2, r * r, coth_series, LENGTH(coth_series));
    vec above = R + r;
    return above / muladd(power_of_two(rounded), R - r, above);
}

INLINE vec hyperbolic_tangent(vec x)
{
    x = clamp(x, (REAL)-TANH_HIGHEST, (REAL)TANH_HIGHEST);
    vec rounded = muladd(x, broadcast((REAL)(2 * LOG2E)), broadcast((REAL)ROUNDER));
    vec n = rounded - broadcast((REAL)ROUNDER);
    vec s = muladd(n, broadcast((REAL)(-LN2 / 2)), x); /* one step: where n is large enough to matter, tanh is flat */
    vec t = s * series(1, s * s, tanh_series, LENGTH(tanh_series));
    vec S = power_of_two(rounded);
    vec sum = broadcast(1) + S, difference = broadcast(1) - S; /* not S - 1: +0 is needed where S = 1 for tanh(-0) = -0 */
    return muladd(sum, t, -difference) / muladd(difference, -t, sum);
}

/* d sigmoid / dx where s = sigmoid(x) */
INLINE vec sigmoid_slope(vec s)
{
    return s * (broadcast(1) - s);
}

/* d tanh / dx where t = tanh(x) */
INLINE vec tanh_slope(vec t)
{
    return muladd(-t, t, broadcast(1));
}

#endif
