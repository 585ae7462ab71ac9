/* The cells with any activations, their inputs clipped, and LSTMs with peepholes or with f = 1 - i, as the ONNX standard has them.
 *
 *   rnn    h = f(a)
 *   lstm   i = f(a_i + p_i c_before), f = f(a_f + p_f c_before) or 1 - i, g = g(a_g), c = f c_before + i g,
 *          o = f(a_o + p_o c), h = o h(c)
 *   gru    r, z = f(a), n = g(a), h = (1 - z) n + z h_before, with either place of the reset gate
 *
 * where a are the pre-activations of cells.h, and each function first keeps what it is given from -clip to clip. The gates buffer keeps
 * the pre-activations, as the slope of a function like max(0, x) is not always to be had from its output, and backward applies the
 * functions again. ELU and softplus go through libm, number by number.
 * Sources: F. Gers and J. Schmidhuber, "Recurrent nets that time and count", 2000 (peepholes); K. Greff et al., "LSTM: a search space
 * odyssey", 2017 (coupled gates); the operators RNN, LSTM and GRU of the ONNX standard.
 */
#ifndef RNNFAST_ANY_CELLS_H
#define RNNFAST_ANY_CELLS_H

#include "cell.h"

#include <math.h>

INLINE vec each(vec x, REAL alpha, double (*function)(double x, double alpha))
{
    REAL lanes[LANES];
    store(lanes, x);
    for (int i = 0; i < LANES; i++) lanes[i] = (REAL)function((double)lanes[i], (double)alpha);
    return load(lanes);
}

static double elu(double x, double alpha)
{
    return x >= 0 ? x : alpha * expm1(x);
}

static double elu_slope(double x, double alpha)
{
    return x >= 0 ? 1 : alpha * exp(x);
}

static double softplus(double x, double alpha)
{
    (void)alpha;
    return x > 0 ? x + log1p(exp(-x)) : log1p(exp(x));
}

INLINE vec absolute(vec x)
{
    return from_bits(to_bits(x) ^ sign_bit(x));
}

INLINE vec clipped(const variant *any, vec x)
{
    if (!(any->clip > 0)) return x;
    return lesser(broadcast(any->clip), greater(broadcast(-any->clip), x)); /* in this order NaN passes */
}

/* Function f of x, which is clipped. */
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
    case RNNFAST_ELU: return each(x, (REAL)f->alpha, elu);
    case RNNFAST_SOFTSIGN: return x / (one + absolute(x));
    default: return each(x, 0, softplus);
    }
}

/* Its slope there. Where it has a corner, that of the side on which the function stays the lower. */
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
    case RNNFAST_ELU: return each(x, (REAL)f->alpha, elu_slope);
    case RNNFAST_SOFTSIGN: y = one / (one + absolute(x)); return y * y;
    default: return sigmoid(x);
    }
}

/* Function k of 0 f, 1 g, 2 h. */
INLINE vec activated(const variant *any, int k, vec a)
{
    return apply(&any->functions[k], clipped(any, a));
}

INLINE vec activated_slope(const variant *any, int k, vec a)
{
    vec inside = slope(&any->functions[k], clipped(any, a)), limit = broadcast(any->clip);
    if (!(any->clip > 0)) return inside;
    return select(less_equal(limit, absolute(a)), broadcast(0), inside);
}

/* ---- rnn ---- */

INLINE void any_rnn_forward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    put(p->h + j, activated(p->any, 0, get(p->gates + j, n)), n);
}

INLINE void any_rnn_backward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    put(p->dgates + j, get(p->dh + j, n) * activated_slope(p->any, 0, get(p->gates + j, n)), n);
}

static void any_rnn_forward(const point *p, range units)
{
    for_units(p, units, any_rnn_forward_at);
}

static void any_rnn_backward(const point *p, range units)
{
    for_units(p, units, any_rnn_backward_at);
}

/* ---- lstm ---- */

INLINE void any_lstm_forward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    const variant *any = p->any;
    REAL *gates = p->gates + j;
    ptrdiff_t H = p->H;
    vec c_before = get(p->c_before + j, n), a_i = get(gates, n), a_f = get(gates + H, n), a_o = get(gates + 3 * H, n);
    if (any->peephole) {
        a_i = muladd(get(any->peephole + j, n), c_before, a_i);
        a_f = muladd(get(any->peephole + H + j, n), c_before, a_f);
        put(gates, a_i, n);
        put(gates + H, a_f, n);
    }
    vec i = activated(any, 0, a_i), f = any->coupled ? broadcast(1) - i : activated(any, 0, a_f);
    vec c = muladd(f, c_before, i * activated(any, 1, get(gates + 2 * H, n)));
    if (any->peephole) {
        a_o = muladd(get(any->peephole + 2 * H + j, n), c, a_o);
        put(gates + 3 * H, a_o, n);
    }
    put(p->c + j, c, n);
    put(p->h + j, activated(any, 0, a_o) * activated(any, 2, c), n);
}

INLINE void any_lstm_backward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    const variant *any = p->any;
    const REAL *gates = p->gates + j;
    REAL *dgates = p->dgates + j;
    ptrdiff_t H = p->H;
    vec a_i = get(gates, n), a_f = get(gates + H, n), a_g = get(gates + 2 * H, n), a_o = get(gates + 3 * H, n);
    vec c_before = get(p->c_before + j, n), c = get(p->c + j, n), dh = get(p->dh + j, n), dc = get(p->dc + j, n);
    vec i = activated(any, 0, a_i), f = any->coupled ? broadcast(1) - i : activated(any, 0, a_f);
    vec da_o = dh * activated(any, 2, c) * activated_slope(any, 0, a_o);
    dc = muladd(dh * activated(any, 0, a_o), activated_slope(any, 2, c), dc);
    if (any->peephole) dc = muladd(da_o, get(any->peephole + 2 * H + j, n), dc);
    vec g = activated(any, 1, a_g);
    vec da_i = dc * (any->coupled ? g - c_before : g) * activated_slope(any, 0, a_i);
    vec da_f = any->coupled ? broadcast(0) : dc * c_before * activated_slope(any, 0, a_f);
    put(dgates, da_i, n);
    put(dgates + H, da_f, n);
    put(dgates + 2 * H, dc * i * activated_slope(any, 1, a_g), n);
    put(dgates + 3 * H, da_o, n);
    dc = dc * f;
    if (any->peephole) {
        dc = muladd(da_i, get(any->peephole + j, n), dc);
        dc = muladd(da_f, get(any->peephole + H + j, n), dc);
    }
    put(p->dc + j, dc, n);
}

static void any_lstm_forward(const point *p, range units)
{
    for_units(p, units, any_lstm_forward_at);
}

static void any_lstm_backward(const point *p, range units)
{
    for_units(p, units, any_lstm_backward_at);
}

/* ---- gru, reset after the product ---- */

INLINE void any_gru_forward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    const REAL *gates = p->gates + j;
    ptrdiff_t H = p->H;
    vec r = activated(p->any, 0, get(gates + H, some)), z = activated(p->any, 0, get(gates + 2 * H, some));
    vec n = activated(p->any, 1, muladd(r, get(gates + 3 * H, some), get(gates, some)));
    put(p->h + j, gru_mix(z, n, get(p->h_before + j, some)), some);
}

INLINE void any_gru_backward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    const variant *any = p->any;
    const REAL *gates = p->gates + j;
    REAL *dgates = p->dgates + j;
    ptrdiff_t H = p->H;
    vec a_r = get(gates + H, some), a_z = get(gates + 2 * H, some), q = get(gates + 3 * H, some);
    vec r = activated(any, 0, a_r), z = activated(any, 0, a_z), a_n = muladd(r, q, get(gates, some));
    vec dh = get(p->dh + j, some), dn = dh * (broadcast(1) - z) * activated_slope(any, 1, a_n);
    put(dgates, dn, some);
    put(dgates + H, dn * q * activated_slope(any, 0, a_r), some);
    put(dgates + 2 * H, dh * (get(p->h_before + j, some) - activated(any, 1, a_n)) * activated_slope(any, 0, a_z), some);
    put(dgates + 3 * H, dn * r, some);
    put(p->dh + j, dh * z, some);
}

static void any_gru_forward(const point *p, range units)
{
    for_units(p, units, any_gru_forward_at);
}

static void any_gru_backward(const point *p, range units)
{
    for_units(p, units, any_gru_backward_at);
}

/* ---- gru, reset before the product ---- */

INLINE void any_gru_before_reset_forward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    put(p->aux + j, activated(p->any, 0, get(p->gates + j, some)) * get(p->h_before + j, some), some);
}

INLINE void any_gru_before_reset_backward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    vec a_r = get(p->gates + j, some), daux = get(p->daux + j, some);
    put(p->dgates + j, daux * get(p->h_before + j, some) * activated_slope(p->any, 0, a_r), some);
    put(p->dh + j, muladd(daux, activated(p->any, 0, a_r), get(p->dh + j, some)), some);
}

INLINE void any_gru_before_mix_forward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    const REAL *gates = p->gates + j;
    vec z = activated(p->any, 0, get(gates + p->H, some)), n = activated(p->any, 1, get(gates + 2 * p->H, some));
    put(p->h + j, gru_mix(z, n, get(p->h_before + j, some)), some);
}

INLINE void any_gru_before_mix_backward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    const variant *any = p->any;
    vec a_z = get(p->gates + p->H + j, some), a_n = get(p->gates + 2 * p->H + j, some), z = activated(any, 0, a_z);
    vec dh = get(p->dh + j, some), n = activated(any, 1, a_n);
    put(p->dgates + p->H + j, dh * (get(p->h_before + j, some) - n) * activated_slope(any, 0, a_z), some);
    put(p->dgates + 2 * p->H + j, dh * (broadcast(1) - z) * activated_slope(any, 1, a_n), some);
    put(p->dh + j, dh * z, some);
}

static void any_gru_before_reset_forward(const point *p, range units)
{
    for_units(p, units, any_gru_before_reset_forward_at);
}

static void any_gru_before_reset_backward(const point *p, range units)
{
    for_units(p, units, any_gru_before_reset_backward_at);
}

static void any_gru_before_mix_forward(const point *p, range units)
{
    for_units(p, units, any_gru_before_mix_forward_at);
}

static void any_gru_before_mix_backward(const point *p, range units)
{
    for_units(p, units, any_gru_before_mix_backward_at);
}

#endif
