/* The steps of the optimizers, on n contiguous elements of a parameter and of its moments, which are updated in place.
 *
 * A stub (optimizers_f32.c, optimizers_f64.c) defines REAL_BITS, LANES and TABLE, and includes this file for the functions, too.
 * Options are double for both element types. Aliasing: arrays may only be the same as a whole. Error: each operation rounds once and none
 * is fused, so the bits are those of the same expressions in NumPy.
 */
#pragma once

#include <stddef.h>

/* Optional moments may be NULL. */
typedef void rnnfast_update(void *parameter, const void *gradient, void *const *moments, ptrdiff_t n, const double *options);

/* The kinds, with their moments; and their options:
 *   sgd       momentum_buffer (optional); momentum, lr, decay, nesterov (0 or 1)
 *   adam      exp_avg, exp_avg_sq; beta1, 1 - beta1, beta2, 1 - beta2, eps, lr, decay, factor of the parameter (decoupled decay)
 *   rmsprop   square_avg, grad_avg (optional), momentum_buffer (optional); alpha, 1 - alpha, eps, momentum, lr, decay
 * decay is that of L2 regularization: decay * parameter is added to the gradient, unless decay is 0.
 */
typedef enum { RNNFAST_SGD, RNNFAST_ADAM, RNNFAST_RMSPROP, RNNFAST_OPTIMIZERS } rnnfast_optimizer;

enum { RNNFAST_MOMENTS = 3, RNNFAST_OPTIMIZER_OPTIONS = 8 }; /* at most */

extern rnnfast_update *const rnnfast_optimizers_f32[RNNFAST_OPTIMIZERS], *const rnnfast_optimizers_f64[RNNFAST_OPTIMIZERS];

#if defined(TABLE)
#include "float_mode.h"
#include "simd.h"

/* IEEE 754 requires the exactly rounded root, unlike the other mathematical functions, so it does not depend on the C library. By way of
 * double it is exactly rounded for float, too. */
double sqrt(double);

static void sgd(void *parameter, const void *gradient, void *const *moments, ptrdiff_t n, const double *options)
{
    const float_mode caller = enter_float_mode();
    REAL *p = parameter, *b = moments[0];
    const REAL *g = gradient;
    const REAL momentum = (REAL)options[0], lr = (REAL)options[1], decay = (REAL)options[2];
    const int nesterov = options[3] > 0;
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL change = g[i];
        if (decay > 0) change += p[i] * decay;
        if (b) {
            b[i] = change + b[i] * momentum;
            change = nesterov ? change + b[i] * momentum : b[i];
        }
        p[i] -= change * lr;
    }
    leave_float_mode(caller);
}

static void adam(void *parameter, const void *gradient, void *const *moments, ptrdiff_t n, const double *options)
{
    const float_mode caller = enter_float_mode();
    REAL *p = parameter, *m = moments[0], *v = moments[1];
    const REAL *g = gradient;
    const REAL beta1 = (REAL)options[0], rest1 = (REAL)options[1], beta2 = (REAL)options[2], rest2 = (REAL)options[3];
    const REAL eps = (REAL)options[4], lr = (REAL)options[5], decay = (REAL)options[6], factor = (REAL)options[7];
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL slope = g[i];
        if (decay > 0) slope += p[i] * decay;
        m[i] = m[i] * beta1 + slope * rest1;
        v[i] = v[i] * beta2 + slope * rest2 * slope;
        p[i] = p[i] * factor - m[i] / ((REAL)sqrt((double)v[i]) + eps) * lr;
    }
    leave_float_mode(caller);
}

static void rmsprop(void *parameter, const void *gradient, void *const *moments, ptrdiff_t n, const double *options)
{
    const float_mode caller = enter_float_mode();
    REAL *p = parameter, *v = moments[0], *m = moments[1], *b = moments[2];
    const REAL *g = gradient;
    const REAL alpha = (REAL)options[0], rest = (REAL)options[1], eps = (REAL)options[2];
    const REAL momentum = (REAL)options[3], lr = (REAL)options[4], decay = (REAL)options[5];
    for (ptrdiff_t i = 0; i < n; i++) {
        REAL slope = g[i];
        if (decay > 0) slope += p[i] * decay;
        REAL square = v[i] = v[i] * alpha + slope * rest * slope;
        if (m) {
            m[i] = m[i] * alpha + slope * rest;
            square -= m[i] * m[i];
            if (square < 0) square = 0; /* a variance of 0, rounded */
        }
        REAL change = slope / ((REAL)sqrt((double)square) + eps);
        if (b) b[i] = change += b[i] * momentum;
        p[i] -= change * lr;
    }
    leave_float_mode(caller);
}

rnnfast_update *const TABLE[RNNFAST_OPTIMIZERS] = {sgd, adam, rmsprop};
#endif
