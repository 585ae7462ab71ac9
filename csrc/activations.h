/* sigmoid and tanh of every lane, and their slopes computed from their outputs; exponential, ELU's e^x - 1 and softplus.
 *
 * All use e^y = 2^n e^h with integer n and small h, and the even function R = (h/2) coth(h/2), a short series in h^2, because
 * e^h = (R + h/2) / (R - h/2). With S = 2^n one division is enough:
 *
 *     sigmoid(x) = 1 / (1 + e^y)      = a / (a + S b)    y = -x       a = R - h/2, b = a + h
 *     tanh |x| = (e^y - 1)/(e^y + 1)  = u / (u + 2 b)    y = 2 |x|    b = R - h/2, u = S h + (S - 1) b
 *     e^x      = S (b + h) / b                           y = x
 *     e^x - 1  = u / b                                   y = x
 *
 * softplus(x) = max(0, x) + log(1 + t) with t = e^-|x|, and log(1 + t) = 2 atanh(z) with z = t / (2 + t), or ln 2 + 2 atanh(z) with
 * z = (t - 1) / (t + 3) for larger t: |z| < 0.172, so a short power series is enough.
 *
 * The error of R nearly cancels in these quotients. For small x tanh has S = 1, hence u = h, without cancellation.
 *
 * Error, largest over all float32 inputs: sigmoid 2.03 ulp where its result is normal (a subnormal result may be 0), tanh 2.00 ulp;
 * float64, largest of a sample: 1.9 and 2.3 ulp. Samples of both types: e^x 1.6 ulp, e^x - 1 2.4 ulp,
 * softplus 3.5 ulp. docs/accuracy.md has the measurements. Exact: sigmoid(-inf) = 0, sigmoid(0) = 1/2, sigmoid(inf) = 1,
 * tanh(+-inf) = +-1, tanh(+-0) = +-0; tanh is exactly odd. NaN gives NaN.
 * Cost, besides one division: 13 operations (sigmoid) and 16 (tanh) for float32, 16 and 19 for float64. No table or branch. No libm,
 * so that the bits do not depend on the C library.
 * Source: Cody and Waite, Software Manual for the Elementary Functions (1980), for n and h. The series is minimax in the relative
 * error of e^h for |h| <= ln2 / 2 (5.1e-10 for float32, 1.7e-19 for float64), found by Remez exchange with 50 digits.
 */
#pragma once

#include "simd.h"

#if REAL_BITS == 32
#define FRACTION_BITS 23
#define EXPONENT_BIAS 127
#define LN2_HIGH 0x1.62e4p-1 /* few enough bits that n * LN2_HIGH is exact */
#define LN2_LOW 0x1.7f7d1cp-20
#define SIGMOID_LOWEST -88.5 /* here S is infinite: sigmoid is 0 */
#define SIGMOID_HIGHEST 88.0 /* here S is zero: sigmoid is 1 */
#define TANH_HIGHEST 10.0    /* tanh already rounds to 1 below this */
#define TANH_STEPS 2.72      /* less than 2 log2 e, so n goes from 1 to 2 only where tanh > 1/2 and its ulp is larger */
static const REAL coth_series[] = {0x1.555514p-2, -0x1.6a8b9ep-6};
#define ATANH_TERMS 4
#else
#define FRACTION_BITS 52
#define EXPONENT_BIAS 1023
#define LN2_HIGH 0x1.62e42fefa4p-1
#define LN2_LOW -0x1.8432a1b0e2634p-43
#define SIGMOID_LOWEST -709.5
#define SIGMOID_HIGHEST 709.0
#define TANH_HIGHEST 20.0
#define TANH_STEPS (2 * LOG2E)
static const REAL coth_series[] = {0x1.555555555552dp-2, -0x1.6c16c16bda28bp-6, 0x1.1566aac0f23f9p-9, -0x1.bbd3ab9b7b834p-13,
                                   0x1.63494a77a0a62p-16};
#define ATANH_TERMS 9
#endif
static const REAL atanh_series[] = {(REAL)1 / 3,  (REAL)1 / 5,  (REAL)1 / 7,  (REAL)1 / 9, (REAL)1 / 11,
                                    (REAL)1 / 13, (REAL)1 / 15, (REAL)1 / 17, (REAL)1 / 19};
#define COTH_TERMS ((int)(sizeof coth_series / sizeof *coth_series))
#define LOG2E 0x1.71547652b82fep+0
#define LN2 0x1.62e42fefa39efp-1

/* Adding this constant rounds to an integer n; the last bits of the sum are the exponent field of 2^n. */
#define ROUNDER ((REAL)(1.5 * (double)((int64_t)1 << FRACTION_BITS) + EXPONENT_BIAS))

INLINE vec power_of_two(vec rounded)
{
    return from_bits(to_bits(rounded) << FRACTION_BITS);
}

/* factor (scale r) coth(scale r). The scale, 1 or 1/2, is folded into the coefficients without rounding. */
INLINE vec times_coth(vec r, REAL scale, REAL factor)
{
    REAL coefficients[COTH_TERMS], power = factor;
    for (int i = 0; i < COTH_TERMS; i++) coefficients[i] = coth_series[i] * (power *= scale * scale);
    vec square = r * r, sum = broadcast(coefficients[COTH_TERMS - 1]);
    for (int i = COTH_TERMS - 2; i >= 0; i--) sum = muladd(square, sum, broadcast(coefficients[i]));
    return muladd(square, sum, broadcast(factor));
}

INLINE vec sigmoid(vec x)
{
    /* With this factor a and b stay between 0.7 and 1, in one binade: smaller errors, and a monotone tail. */
    const REAL factor = (REAL)0.84;
    const vec lowest = broadcast((REAL)SIGMOID_LOWEST), highest = broadcast((REAL)SIGMOID_HIGHEST);
    x = lesser(highest, greater(lowest, x)); /* with this order of operands, NaN propagates */
    vec rounded = muladd(x, broadcast((REAL)-LOG2E), broadcast(ROUNDER));
    vec n = rounded - broadcast(ROUNDER);
    vec r = muladd(n, broadcast((REAL)LN2_LOW), muladd(n, broadcast((REAL)LN2_HIGH), x)); /* -h */
    vec a = muladd(r, broadcast(factor / 2), times_coth(r, (REAL)0.5, factor));
    vec b = muladd(r, broadcast(-factor), a);
    return a / muladd(power_of_two(rounded), b, a);
}

INLINE vec hyperbolic_tangent(vec x)
{
    const vec highest = broadcast((REAL)TANH_HIGHEST);
    ivec sign = sign_bit(x);
    x = from_bits(to_bits(x) ^ sign);
    x = lesser(highest, x);
    vec rounded = muladd(x, broadcast((REAL)TANH_STEPS), broadcast(ROUNDER));
    vec n = rounded - broadcast(ROUNDER);
    vec r = muladd(n, broadcast((REAL)(-LN2 / 2)), x); /* h / 2; its error matters less the larger n is, so one product is enough */
    vec S = power_of_two(rounded);
    vec b = times_coth(r, 1, 1) - r;
    vec u = muladd(S - broadcast(1), b, S * (r + r));
    return from_bits(to_bits(u / muladd(broadcast(2), b, u)) | sign);
}

/* For x <= 0: e^x, or with `less_one` e^x - 1 without cancellation. A subnormal e^x may be 0. */
INLINE vec exponential(vec x, int less_one)
{
    x = greater(broadcast((REAL)-SIGMOID_HIGHEST), x);
    vec rounded = muladd(x, broadcast((REAL)LOG2E), broadcast(ROUNDER));
    vec n = rounded - broadcast(ROUNDER);
    vec h = muladd(n, broadcast((REAL)-LN2_LOW), muladd(n, broadcast((REAL)-LN2_HIGH), x));
    vec S = power_of_two(rounded);
    vec b = muladd(h, broadcast((REAL)-0.5), times_coth(h, (REAL)0.5, 1));
    return (less_one ? muladd(S - broadcast(1), b, S * h) : S * (b + h)) / b;
}

/* log(1 + e^x) */
INLINE vec softplus(vec x)
{
    const vec zero = broadcast(0), one = broadcast(1);
    vec t = exponential(from_bits(to_bits(x) | sign_bit(broadcast(-(REAL)1))), 0);
    ivec is_small = less_equal(t, broadcast((REAL)0.41421356));
    vec z = select(is_small, t, t - one) / (t + select(is_small, broadcast(2), broadcast(3)));
    vec square = z * z, sum = broadcast(atanh_series[ATANH_TERMS - 1]);
    for (int i = ATANH_TERMS - 2; i >= 0; i--) sum = muladd(square, sum, broadcast(atanh_series[i]));
    vec logarithm = muladd(z + z, square * sum, z + z) + select(is_small, zero, broadcast((REAL)LN2));
    return greater(zero, x) + logarithm;
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
