/* The steps of the optimizers, on n contiguous elements of a parameter and of its moments, which are updated in place.
 *
 * A stub (optimizers_f32.c, optimizers_f64.c) defines REAL_BITS, LANES and TABLE, and includes this file for the functions, too.
 * Options are double for both element types. Aliasing: arrays may only be the same as a whole. Error: each operation rounds once and none
 * is fused, so the bits are those of the same expressions in NumPy.
 */
#pragma once

#include <stddef.h>

typedef struct { /* the functions of an element type */
    /* options: momentum, lr; the buffer is optional */
    void (*sgd)(void *parameter, const void *gradient, void *buffer, ptrdiff_t n, const double *options);
    /* options: beta1, 1 - beta1, beta2, 1 - beta2, eps, lr */
    void (*adam)(void *parameter, const void *gradient, void *first, void *second, ptrdiff_t n, const double *options);
} rnnfast_optimizers;

extern const rnnfast_optimizers rnnfast_optimizers_f32, rnnfast_optimizers_f64;

#if defined(TABLE)
#include "float_mode.h"
#include "simd.h"

/* IEEE 754 requires the exactly rounded root, unlike the other mathematical functions, so it does not depend on the C library. By way of
 * double it is exactly rounded for float, too. */
double sqrt(double);

static void sgd(void *parameter, const void *gradient, void *buffer, ptrdiff_t n, const double *options)
{
    const float_mode caller = enter_float_mode();
    REAL *p = parameter, *b = buffer;
    const REAL *g = gradient;
    const REAL momentum = (REAL)options[0], lr = (REAL)options[1];
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL change = g[i];
        if (b) b[i] = change += b[i] * momentum;
        p[i] -= change * lr;
    }
    leave_float_mode(caller);
}

static void adam(void *parameter, const void *gradient, void *first, void *second, ptrdiff_t n, const double *options)
{
    const float_mode caller = enter_float_mode();
    REAL *p = parameter, *m = first, *v = second;
    const REAL *g = gradient;
    const REAL beta1 = (REAL)options[0], rest1 = (REAL)options[1], beta2 = (REAL)options[2], rest2 = (REAL)options[3];
    const REAL eps = (REAL)options[4], lr = (REAL)options[5];
    for (ptrdiff_t i = 0; i < n; i++) {
        m[i] = m[i] * beta1 + g[i] * rest1;
        v[i] = v[i] * beta2 + g[i] * rest2 * g[i];
        p[i] -= m[i] / ((REAL)sqrt((double)v[i]) + eps) * lr;
    }
    leave_float_mode(caller);
}

const rnnfast_optimizers TABLE = {sgd, adam};
#endif
