/* Leaky RNNs, also known as continuous-time RNNs (CTRNN): h = (1 - alpha) h_before + alpha f(a), f tanh or max(0, a), alpha per unit.
 *
 * Layout: one column, a = bias + W_ih x + W_hh h_before; forward replaces it by f(a), from which backward computes the slope. alpha is
 * the cell's extra, [1, H], and has no gradient.
 * Error: cell.h. With alpha = 1 and finite h, results are those of the plain RNN to the bit.
 * Source: H. Jaeger et al., "Optimization and applications of echo state networks with leaky-integrator neurons", 2007.
 */
#ifndef RNNFAST_LEAKY_CELLS_H
#define RNNFAST_LEAKY_CELLS_H

#include "cell.h"

INLINE vec leak(const point *p, ptrdiff_t j, ptrdiff_t lanes)
{
    return get(p->options->extra + j, lanes);
}

INLINE void put_leaky(const point *p, ptrdiff_t j, ptrdiff_t lanes, vec activation)
{
    vec alpha = leak(p, j, lanes);
    put(p->gates + j, activation, lanes);
    put(p->h + j, muladd(broadcast(1) - alpha, get(p->h_before + j, lanes), alpha * activation), lanes);
}

/* Leaves in dh the share that h_before has in h. */
INLINE vec take_leaky_gradient(const point *p, ptrdiff_t j, ptrdiff_t lanes)
{
    vec alpha = leak(p, j, lanes), dh = get(p->dh + j, lanes);
    put(p->dh + j, (broadcast(1) - alpha) * dh, lanes);
    return alpha * dh;
}

static void rnn_tanh_leaky_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put_leaky(p, j, lanes, hyperbolic_tangent(get(p->gates + j, lanes)));
}

static void rnn_tanh_leaky_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) {
        vec dh = take_leaky_gradient(p, j, lanes);
        put(p->dgates + j, dh * tanh_slope(get(p->gates + j, lanes)), lanes);
    }
}

static void rnn_relu_leaky_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put_leaky(p, j, lanes, greater(broadcast(0), get(p->gates + j, lanes)));
}

static void rnn_relu_leaky_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) {
        vec dh = take_leaky_gradient(p, j, lanes), zero = broadcast(0);
        put(p->dgates + j, select(less_equal(get(p->gates + j, lanes), zero), zero, dh), lanes);
    }
}

#endif
