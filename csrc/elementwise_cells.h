/* Elementwise cells: each unit depends on its own state alone, and steps need no matrix product.
 *
 * Layout, columns of the gates buffer (a is a pre-activation, bias + W_ih x; forward replaces it by its activation, except in minLSTM):
 *
 *   minGRU     u n        h = (1 - u) h_before + u n; n = a, or positive: n = a + 1/2 where a >= 0, else sigmoid(a)
 *   minLSTM    f i n      s = f / (f + i), h = s h_before + (1 - s) n, with n as above
 *   SRU        f r n s    f, r = sigmoid(a + v c_before), c = f c_before + (1 - f) n, h = r c + (1 - r) x, or (linear) s in place of x
 *   IndRNN     a          h = f(a + w h_before)
 *
 * v [2, H] and w [1, H] are extras with gradients. u is the z of the source, renamed because z keeps the state in every GRU here.
 * Two cells that differ by a flag share a function, compiled once: a branch for each vector costs less than a larger library.
 * Aliasing and error: cell.h and activations.h. The s of minLSTM has an error of a few ulp even where f and i vanish.
 * Sources: L. Feng et al., "Were RNNs all we needed?", 2024; T. Lei et al., "Simple recurrent units for highly parallelizable recurrence",
 * 2018; S. Li et al., "Independently recurrent neural network (IndRNN): building a longer and deeper RNN", 2018.
 */
#pragma once

#include "cell.h"

/* g of minimal cells in the logarithmic domain: x + 1/2 where x >= 0, else sigmoid(x), always positive. */
INLINE vec positive(vec x)
{
    return select(less_equal(broadcast(0), x), x + broadcast((REAL)0.5), sigmoid(x));
}

/* The slope of g, from its output. */
INLINE vec positive_slope(vec g)
{
    return select(less_equal(broadcast((REAL)0.5), g), broadcast(1), sigmoid_slope(g));
}

/* ---- minGRU: h = (1 - u) h_before + u n ---- */

SEPARATE void mingru_step(const point *p, range units, int is_positive)
{
    FOR_UNITS (j, lanes, units) {
        REAL *gates = p->gates + j;
        vec u = sigmoid(get_gate(gates, lanes)), n = get_gate(gates + p->H_gate, lanes), h_before = get(p->h_before + j, lanes);
        if (is_positive) n = positive(n);
        put_gate(gates, u, lanes);
        put_gate(gates + p->H_gate, n, lanes);
        put(p->h + j, muladd(u, n - h_before, h_before), lanes);
    }
}

SEPARATE void mingru_gradient(const point *p, range units, int is_positive)
{
    FOR_UNITS (j, lanes, units) {
        vec u = get_gate(p->gates + j, lanes), n = get_gate(p->gates + p->H_gate + j, lanes), dh = get(p->dh + j, lanes), dn = dh * u;
        put(p->dgates + j, dh * (n - get(p->h_before + j, lanes)) * sigmoid_slope(u), lanes);
        put(p->dgates + p->H + j, is_positive ? dn * positive_slope(n) : dn, lanes);
        put(p->dh + j, dh - dn, lanes);
    }
}

static void mingru_forward(const point *p, range units)
{
    mingru_step(p, units, 0);
}

static void mingru_backward(const point *p, range units)
{
    mingru_gradient(p, units, 0);
}

static void mingru_positive_forward(const point *p, range units)
{
    mingru_step(p, units, 1);
}

static void mingru_positive_backward(const point *p, range units)
{
    mingru_gradient(p, units, 1);
}

/* ---- minLSTM: h = s h_before + (1 - s) n with s = f / (f + i); gates keep pre-activations ---- */

/* s for f = sigmoid(a) and i = sigmoid(b), without a quotient of vanishing numbers: (1 + e^-b) / (2 + e^-a + e^-b), where both parts are
 * divided by the largest of the powers. */
INLINE vec minlstm_share(vec a, vec b)
{
    vec least = lesser(lesser(b, a), broadcast(0));
    vec one = exponential(least, 0), of_a = exponential(least - a, 0), of_b = exponential(least - b, 0);
    vec kept = one + of_b;
    return kept / (kept + (one + of_a));
}

SEPARATE void minlstm_step(const point *p, range units, int is_positive)
{
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        vec s = minlstm_share(get_gate(gates, lanes), get_gate(gates + p->H_gate, lanes)), n = get_gate(gates + 2 * p->H_gate, lanes);
        if (is_positive) n = positive(n);
        put(p->h + j, muladd(s, get(p->h_before + j, lanes) - n, n), lanes);
    }
}

SEPARATE void minlstm_gradient(const point *p, range units, int is_positive)
{
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        REAL *dgates = p->dgates + j;
        vec a = get_gate(gates, lanes), b = get_gate(gates + p->H_gate, lanes), n = get_gate(gates + 2 * p->H_gate, lanes);
        vec s = minlstm_share(a, b), dh = get(p->dh + j, lanes), dn = dh * (broadcast(1) - s);
        if (is_positive) {
            n = positive(n);
            put(dgates + 2 * p->H, dn * positive_slope(n), lanes);
        } else {
            put(dgates + 2 * p->H, dn, lanes);
        }
        vec ds = dn * s * (get(p->h_before + j, lanes) - n); /* of log f, and with the other sign of log i */
        put(dgates, ds * sigmoid(-a), lanes);
        put(dgates + p->H, -ds * sigmoid(-b), lanes);
        put(p->dh + j, dh * s, lanes);
    }
}

static void minlstm_forward(const point *p, range units)
{
    minlstm_step(p, units, 0);
}

static void minlstm_backward(const point *p, range units)
{
    minlstm_gradient(p, units, 0);
}

static void minlstm_positive_forward(const point *p, range units)
{
    minlstm_step(p, units, 1);
}

static void minlstm_positive_backward(const point *p, range units)
{
    minlstm_gradient(p, units, 1);
}

/* ---- SRU: c = f c_before + (1 - f) n, h = r c + (1 - r) x; or with a product of x in place of x ---- */

SEPARATE void sru_step(const point *p, range units, int is_linear)
{
    const REAL *peephole = p->options->extra;
    ptrdiff_t G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        REAL *gates = p->gates + j;
        vec c_before = get(p->c_before + j, lanes), n = get_gate(gates + 2 * G, lanes);
        vec f = sigmoid(muladd(get(peephole + j, lanes), c_before, get_gate(gates, lanes)));
        vec r = sigmoid(muladd(get(peephole + p->H + j, lanes), c_before, get_gate(gates + G, lanes)));
        vec c = muladd(f, c_before - n, n), x = is_linear ? get_gate(gates + 3 * G, lanes) : get(p->x + j, lanes);
        put_gate(gates, f, lanes);
        put_gate(gates + G, r, lanes);
        put(p->c + j, c, lanes);
        put(p->h + j, muladd(r, c - x, x), lanes);
    }
}

SEPARATE void sru_gradient(const point *p, range units, int is_linear)
{
    const REAL *peephole = p->options->extra;
    ptrdiff_t H = p->H, G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        REAL *dgates = p->dgates + j;
        vec f = get_gate(gates, lanes), r = get_gate(gates + G, lanes), n = get_gate(gates + 2 * G, lanes), dh = get(p->dh + j, lanes);
        vec x = is_linear ? get_gate(gates + 3 * G, lanes) : get(p->x + j, lanes), dx = dh * (broadcast(1) - r);
        vec dr = dh * (get(p->c + j, lanes) - x) * sigmoid_slope(r), dc = muladd(dh, r, get(p->dc + j, lanes));
        vec df = dc * (get(p->c_before + j, lanes) - n) * sigmoid_slope(f);
        put(dgates, df, lanes);
        put(dgates + H, dr, lanes);
        put(dgates + 2 * H, dc * (broadcast(1) - f), lanes);
        put(is_linear ? dgates + 3 * H : p->dx + j, dx, lanes);
        dc = muladd(df, get(peephole + j, lanes), dc * f);
        put(p->dc + j, muladd(dr, get(peephole + H + j, lanes), dc), lanes);
        put(p->dh + j, broadcast(0), lanes); /* h_before is not used */
    }
}

static void sru_forward(const point *p, range units)
{
    sru_step(p, units, 0);
}

static void sru_backward(const point *p, range units)
{
    sru_gradient(p, units, 0);
}

static void sru_linear_forward(const point *p, range units)
{
    sru_step(p, units, 1);
}

static void sru_linear_backward(const point *p, range units)
{
    sru_gradient(p, units, 1);
}

/* Both peepholes see c before the step. */
static void sru_peephole_terms(const point *rows, ptrdiff_t R, range units, REAL *sums)
{
    ptrdiff_t H = rows->H;
    FOR_UNITS (j, lanes, units) {
        vec f = get(sums + j, lanes), r = get(sums + H + j, lanes);
        for (ptrdiff_t row = 0; row < R; row++) {
            vec c_before = get(rows[row].c_before + j, lanes);
            f = muladd(get(rows[row].dgates + j, lanes), c_before, f);
            r = muladd(get(rows[row].dgates + H + j, lanes), c_before, r);
        }
        put(sums + j, f, lanes);
        put(sums + H + j, r, lanes);
    }
}

/* ---- IndRNN: h = f(a + w h_before); the slope comes from h itself ---- */

INLINE vec indrnn_sum(const point *p, ptrdiff_t j, ptrdiff_t lanes)
{
    return muladd(get(p->options->extra + j, lanes), get(p->h_before + j, lanes), get_gate(p->gates + j, lanes));
}

INLINE void put_indrnn_gradient(const point *p, ptrdiff_t j, ptrdiff_t lanes, vec da)
{
    put(p->dgates + j, da, lanes);
    put(p->dh + j, da * get(p->options->extra + j, lanes), lanes);
}

static void indrnn_tanh_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put(p->h + j, hyperbolic_tangent(indrnn_sum(p, j, lanes)), lanes);
}

static void indrnn_tanh_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put_indrnn_gradient(p, j, lanes, get(p->dh + j, lanes) * tanh_slope(get(p->h + j, lanes)));
}

static void indrnn_relu_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put(p->h + j, relu(indrnn_sum(p, j, lanes)), lanes);
}

static void indrnn_relu_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put_indrnn_gradient(p, j, lanes, relu_gradient(get(p->dh + j, lanes), get(p->h + j, lanes)));
}

static void indrnn_recurrent_terms(const point *rows, ptrdiff_t R, range units, REAL *sums)
{
    FOR_UNITS (j, lanes, units) {
        vec sum = get(sums + j, lanes);
        for (ptrdiff_t row = 0; row < R; row++) sum = muladd(get(rows[row].dgates + j, lanes), get(rows[row].h_before + j, lanes), sum);
        put(sums + j, sum, lanes);
    }
}
