/* Generic cells: any activations, clipped pre-activations, and LSTMs with peepholes or with f = 1 - i, as the ONNX standard defines them.
 *
 *   rnn    h = f(a)
 *   lstm   i = f(a_i + p_i c_before), f = f(a_f + p_f c_before) or 1 - i, g = g(a_g), c = f c_before + i g,
 *          o = f(a_o + p_o c), h = o h(c)
 *   gru    r, z = f(a), n = g(a), h = (1 - z) n + z h_before, with either position of the reset gate
 *
 * where a are the pre-activations of cells.h, and each function clips its argument to -clip .. clip first.
 * Layout: the columns are those of cells.h, but the gates buffer keeps pre-activations, because the slope of a function like max(0, x)
 * does not always follow from its output. Backward computes the functions again.
 * Sources: F. Gers and J. Schmidhuber, "Recurrent nets that time and count", 2000 (peepholes); K. Greff et al., "LSTM: a search space
 * odyssey", 2017 (coupled gates); the operators RNN, LSTM and GRU of the ONNX standard.
 */
#pragma once

#include "cell.h"

INLINE vec absolute(vec x)
{
    return from_bits(to_bits(x) ^ sign_bit(x));
}

INLINE vec clipped(const cell_options *options, vec x)
{
    if (!(options->clip > 0)) return x;
    return lesser(broadcast(options->clip), greater(broadcast(-options->clip), x)); /* this order propagates NaN */
}

/* f(x), for x clipped already. */
static vec apply(const rnnfast_activation *f, vec x)
{
    vec alpha = broadcast((REAL)f->alpha), beta = broadcast((REAL)f->beta), zero = broadcast(0), one = broadcast(1);
    switch (f->function) {
    case RNNFAST_SIGMOID: return sigmoid(x);
    case RNNFAST_TANH: return hyperbolic_tangent(x);
    case RNNFAST_RELU: return greater(zero, x);
    case RNNFAST_AFFINE: return muladd(alpha, x, beta);
    case RNNFAST_LEAKY_RELU: return select(less_equal(zero, x), x, alpha * x);
    case RNNFAST_THRESHOLDED_RELU: return select(less_equal(alpha, x), x, lesser(zero, greater(zero, x))); /* 0, or NaN */
    case RNNFAST_SCALED_TANH: return alpha * hyperbolic_tangent(beta * x);
    case RNNFAST_HARD_SIGMOID: return lesser(one, greater(zero, muladd(alpha, x, beta)));
    case RNNFAST_ELU: return select(less_equal(zero, x), x, alpha * exponential(lesser(zero, x), 1));
    case RNNFAST_SOFTSIGN: return x / (one + absolute(x));
    default: return softplus(x);
    }
}

/* f'(x), for x clipped already. At a corner, the slope of the side where the function is constant, else of the side x >= corner. */
static vec slope(const rnnfast_activation *f, vec x)
{
    vec alpha = broadcast((REAL)f->alpha), beta = broadcast((REAL)f->beta), zero = broadcast(0), one = broadcast(1), y;
    switch (f->function) {
    case RNNFAST_SIGMOID: return sigmoid_slope(sigmoid(x));
    case RNNFAST_TANH: return tanh_slope(hyperbolic_tangent(x));
    case RNNFAST_RELU: return select(less_equal(x, zero), zero, one);
    case RNNFAST_AFFINE: return alpha;
    case RNNFAST_LEAKY_RELU: return select(less_equal(zero, x), one, alpha);
    case RNNFAST_THRESHOLDED_RELU: return select(less_equal(alpha, x), one, zero);
    case RNNFAST_SCALED_TANH: return alpha * beta * tanh_slope(hyperbolic_tangent(beta * x));
    case RNNFAST_HARD_SIGMOID:
        y = muladd(alpha, x, beta);
        return select(less_equal(y, zero), zero, select(less_equal(one, y), zero, alpha));
    case RNNFAST_ELU: return select(less_equal(zero, x), one, alpha * exponential(lesser(zero, x), 0));
    case RNNFAST_SOFTSIGN: y = one / (one + absolute(x)); return y * y;
    default: return sigmoid(x);
    }
}

/* Function k (0: f, 1: g, 2: h) of a pre-activation. */
INLINE vec activated(const cell_options *options, int k, vec a)
{
    return apply(&options->functions[k], clipped(options, a));
}

INLINE vec activated_slope(const cell_options *options, int k, vec a)
{
    vec inside = slope(&options->functions[k], clipped(options, a)), limit = broadcast(options->clip);
    if (!(options->clip > 0)) return inside;
    return select(less_equal(limit, absolute(a)), broadcast(0), inside);
}

/* ---- RNN ---- */

static void generic_rnn_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put(p->h + j, activated(p->options, 0, get_gate(p->gates + j, lanes)), lanes);
}

static void generic_rnn_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units)
        put(p->dgates + j, get(p->dh + j, lanes) * activated_slope(p->options, 0, get_gate(p->gates + j, lanes)), lanes);
}

/* ---- LSTM ---- */

static void generic_lstm_forward(const point *p, range units)
{
    const cell_options *options = p->options;
    ptrdiff_t H = p->H, G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        REAL *gates = p->gates + j;
        vec c_before = get(p->c_before + j, lanes), a_i = get_gate(gates, lanes), a_f = get_gate(gates + G, lanes),
            a_o = get_gate(gates + 3 * G, lanes);
        if (options->extra) {
            a_i = muladd(get(options->extra + j, lanes), c_before, a_i);
            a_f = muladd(get(options->extra + H + j, lanes), c_before, a_f);
            put_gate(gates, a_i, lanes);
            put_gate(gates + G, a_f, lanes);
        }
        vec i = activated(options, 0, a_i), f = options->coupled ? broadcast(1) - i : activated(options, 0, a_f);
        vec c = muladd(f, c_before, i * activated(options, 1, get_gate(gates + 2 * G, lanes)));
        if (options->extra) {
            a_o = muladd(get(options->extra + 2 * H + j, lanes), c, a_o);
            put_gate(gates + 3 * G, a_o, lanes);
        }
        put(p->c + j, c, lanes);
        put(p->h + j, activated(options, 0, a_o) * activated(options, 2, c), lanes);
    }
}

static void generic_lstm_backward(const point *p, range units)
{
    const cell_options *options = p->options;
    ptrdiff_t H = p->H, G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        REAL *dgates = p->dgates + j;
        vec a_i = get_gate(gates, lanes), a_f = get_gate(gates + G, lanes), a_g = get_gate(gates + 2 * G, lanes),
            a_o = get_gate(gates + 3 * G, lanes);
        vec c_before = get(p->c_before + j, lanes), c = get(p->c + j, lanes), dh = get(p->dh + j, lanes), dc = get(p->dc + j, lanes);
        vec i = activated(options, 0, a_i), f = options->coupled ? broadcast(1) - i : activated(options, 0, a_f);
        vec da_o = dh * activated(options, 2, c) * activated_slope(options, 0, a_o);
        dc = muladd(dh * activated(options, 0, a_o), activated_slope(options, 2, c), dc);
        if (options->extra) dc = muladd(da_o, get(options->extra + 2 * H + j, lanes), dc);
        vec g = activated(options, 1, a_g);
        vec da_i = dc * (options->coupled ? g - c_before : g) * activated_slope(options, 0, a_i);
        vec da_f = options->coupled ? broadcast(0) : dc * c_before * activated_slope(options, 0, a_f);
        put(dgates, da_i, lanes);
        put(dgates + H, da_f, lanes);
        put(dgates + 2 * H, dc * i * activated_slope(options, 1, a_g), lanes);
        put(dgates + 3 * H, da_o, lanes);
        dc = dc * f;
        if (options->extra) {
            dc = muladd(da_i, get(options->extra + j, lanes), dc);
            dc = muladd(da_f, get(options->extra + H + j, lanes), dc);
        }
        put(p->dc + j, dc, lanes);
    }
}

/* Peepholes of i and f see c before the step, that of o sees c. */
static void generic_lstm_peephole_terms(const point *rows, ptrdiff_t R, range units, REAL *sums)
{
    ptrdiff_t H = rows->H;
    FOR_UNITS (j, lanes, units) {
        vec i = get(sums + j, lanes), f = get(sums + H + j, lanes), o = get(sums + 2 * H + j, lanes);
        for (ptrdiff_t r = 0; r < R; r++) {
            const REAL *dgates = rows[r].dgates + j;
            vec c_before = get(rows[r].c_before + j, lanes);
            i = muladd(get(dgates, lanes), c_before, i);
            f = muladd(get(dgates + H, lanes), c_before, f);
            o = muladd(get(dgates + 3 * H, lanes), get(rows[r].c + j, lanes), o);
        }
        put(sums + j, i, lanes);
        put(sums + H + j, f, lanes);
        put(sums + 2 * H + j, o, lanes);
    }
}

/* ---- GRU, reset after the product ---- */

static void generic_gru_forward(const point *p, range units)
{
    ptrdiff_t G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        vec r = activated(p->options, 0, get_gate(gates + G, lanes)), z = activated(p->options, 0, get_gate(gates + 2 * G, lanes));
        vec n = activated(p->options, 1, muladd(r, get_gate(gates + 3 * G, lanes), get_gate(gates, lanes)));
        put(p->h + j, gru_mix(z, n, get(p->h_before + j, lanes)), lanes);
    }
}

static void generic_gru_backward(const point *p, range units)
{
    const cell_options *options = p->options;
    ptrdiff_t H = p->H, G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        REAL *dgates = p->dgates + j;
        vec a_r = get_gate(gates + G, lanes), a_z = get_gate(gates + 2 * G, lanes), q = get_gate(gates + 3 * G, lanes);
        vec r = activated(options, 0, a_r), z = activated(options, 0, a_z), a_n = muladd(r, q, get_gate(gates, lanes));
        vec dh = get(p->dh + j, lanes), dn = dh * (broadcast(1) - z) * activated_slope(options, 1, a_n);
        put(dgates, dn, lanes);
        put(dgates + H, dn * q * activated_slope(options, 0, a_r), lanes);
        put(dgates + 2 * H, dh * (get(p->h_before + j, lanes) - activated(options, 1, a_n)) * activated_slope(options, 0, a_z), lanes);
        put(dgates + 3 * H, dn * r, lanes);
        put(p->dh + j, dh * z, lanes);
    }
}

/* ---- GRU, reset before the product ---- */

static void generic_gru_before_reset_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units)
        put(p->aux + j, activated(p->options, 0, get_gate(p->gates + j, lanes)) * get(p->h_before + j, lanes), lanes);
}

static void generic_gru_before_reset_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) {
        vec a_r = get_gate(p->gates + j, lanes), daux = get(p->daux + j, lanes);
        put(p->dgates + j, daux * get(p->h_before + j, lanes) * activated_slope(p->options, 0, a_r), lanes);
        put(p->dh + j, muladd(daux, activated(p->options, 0, a_r), get(p->dh + j, lanes)), lanes);
    }
}

static void generic_gru_before_mix_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        vec z = activated(p->options, 0, get_gate(gates + p->H_gate, lanes)),
            n = activated(p->options, 1, get_gate(gates + 2 * p->H_gate, lanes));
        put(p->h + j, gru_mix(z, n, get(p->h_before + j, lanes)), lanes);
    }
}

static void generic_gru_before_mix_backward(const point *p, range units)
{
    const cell_options *options = p->options;
    FOR_UNITS (j, lanes, units) {
        vec a_z = get_gate(p->gates + p->H_gate + j, lanes), a_n = get_gate(p->gates + 2 * p->H_gate + j, lanes),
            z = activated(options, 0, a_z);
        vec dh = get(p->dh + j, lanes), n = activated(options, 1, a_n);
        put(p->dgates + p->H + j, dh * (get(p->h_before + j, lanes) - n) * activated_slope(options, 0, a_z), lanes);
        put(p->dgates + 2 * p->H + j, dh * (broadcast(1) - z) * activated_slope(options, 1, a_n), lanes);
        put(p->dh + j, dh * z, lanes);
    }
}
