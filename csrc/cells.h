/* The cells: for each its pointwise parts, forward next to backward.
 *
 *   rnn         h                                                       (slope from h itself, so gates are not kept)
 *   lstm        i f g o                                                 Hochreiter & Schmidhuber 1997, Gers et al. 2000
 *   gru         n r z q     q = W_hn h + b_hn, n = tanh(... + r * q)    Cho et al. 2014, as torch has it (reset after the product)
 *   gru before  r z n       n = tanh(... + W_hn (r * h))                Cho et al. 2014 (a second product in the middle of the step)
 *
 * In a column a pre-activation is replaced by its activation.
 */
#ifndef RNNFAST_CELLS_H
#define RNNFAST_CELLS_H

#include "any_cells.h"

/* ---- rnn ---- */

INLINE void rnn_tanh_forward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    put(p->h + j, hyperbolic_tangent(get(p->gates + j, n)), n);
}

INLINE void rnn_tanh_backward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    put(p->dgates + j, get(p->dh + j, n) * tanh_slope(get(p->h + j, n)), n);
}

INLINE void rnn_relu_forward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    put(p->h + j, greater(broadcast(0), get(p->gates + j, n)), n); /* in this order NaN passes */
}

INLINE void rnn_relu_backward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    vec zero = broadcast(0);
    put(p->dgates + j, select(less_equal(get(p->h + j, n), zero), zero, get(p->dh + j, n)), n);
}

static void rnn_tanh_forward(const point *p, range units)
{
    for_units(p, units, rnn_tanh_forward_at);
}

static void rnn_tanh_backward(const point *p, range units)
{
    for_units(p, units, rnn_tanh_backward_at);
}

static void rnn_relu_forward(const point *p, range units)
{
    for_units(p, units, rnn_relu_forward_at);
}

static void rnn_relu_backward(const point *p, range units)
{
    for_units(p, units, rnn_relu_backward_at);
}

/* ---- lstm: c = f c_before + i g, h = o tanh(c) ---- */

INLINE void lstm_forward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    REAL *gates = p->gates + j;
    ptrdiff_t H = p->H;
    vec i = sigmoid(get(gates, n)), f = sigmoid(get(gates + H, n)), g = hyperbolic_tangent(get(gates + 2 * H, n));
    vec o = sigmoid(get(gates + 3 * H, n)), c = muladd(f, get(p->c_before + j, n), i * g);
    put(gates, i, n);
    put(gates + H, f, n);
    put(gates + 2 * H, g, n);
    put(gates + 3 * H, o, n);
    put(p->c + j, c, n);
    put(p->h + j, o * hyperbolic_tangent(c), n);
}

INLINE void lstm_backward_at(const point *p, ptrdiff_t j, ptrdiff_t n)
{
    const REAL *gates = p->gates + j;
    REAL *dgates = p->dgates + j;
    ptrdiff_t H = p->H;
    vec i = get(gates, n), f = get(gates + H, n), g = get(gates + 2 * H, n), o = get(gates + 3 * H, n);
    vec dh = get(p->dh + j, n), tanh_c = hyperbolic_tangent(get(p->c + j, n));
    vec dc = muladd(dh * o, tanh_slope(tanh_c), get(p->dc + j, n));
    put(dgates, dc * g * sigmoid_slope(i), n);
    put(dgates + H, dc * get(p->c_before + j, n) * sigmoid_slope(f), n);
    put(dgates + 2 * H, dc * i * tanh_slope(g), n);
    put(dgates + 3 * H, dh * tanh_c * sigmoid_slope(o), n);
    put(p->dc + j, dc * f, n);
}

static void lstm_forward(const point *p, range units)
{
    for_units(p, units, lstm_forward_at);
}

static void lstm_backward(const point *p, range units)
{
    for_units(p, units, lstm_backward_at);
}

/* ---- gru: h = (1 - z) n + z h_before ---- */

INLINE void gru_forward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    REAL *gates = p->gates + j;
    ptrdiff_t H = p->H;
    vec r = sigmoid(get(gates + H, some)), z = sigmoid(get(gates + 2 * H, some));
    vec n = hyperbolic_tangent(muladd(r, get(gates + 3 * H, some), get(gates, some)));
    put(gates, n, some);
    put(gates + H, r, some);
    put(gates + 2 * H, z, some);
    put(p->h + j, gru_mix(z, n, get(p->h_before + j, some)), some);
}

INLINE void gru_backward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    const REAL *gates = p->gates + j;
    REAL *dgates = p->dgates + j;
    ptrdiff_t H = p->H;
    vec n = get(gates, some), r = get(gates + H, some), z = get(gates + 2 * H, some), q = get(gates + 3 * H, some);
    vec dh = get(p->dh + j, some), dn = dh * (broadcast(1) - z) * tanh_slope(n);
    put(dgates, dn, some);
    put(dgates + H, dn * q * sigmoid_slope(r), some);
    put(dgates + 2 * H, dh * (get(p->h_before + j, some) - n) * sigmoid_slope(z), some);
    put(dgates + 3 * H, dn * r, some);
    put(p->dh + j, dh * z, some);
}

static void gru_forward(const point *p, range units)
{
    for_units(p, units, gru_forward_at);
}

static void gru_backward(const point *p, range units)
{
    for_units(p, units, gru_backward_at);
}

/* ---- gru with reset before the product: r and z, then n ---- */

INLINE void gru_before_reset_forward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    REAL *gates = p->gates + j;
    vec r = sigmoid(get(gates, some));
    put(gates, r, some);
    put(gates + p->H, sigmoid(get(gates + p->H, some)), some);
    put(p->aux + j, r * get(p->h_before + j, some), some);
}

INLINE void gru_before_reset_backward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    vec r = get(p->gates + j, some), daux = get(p->daux + j, some);
    put(p->dgates + j, daux * get(p->h_before + j, some) * sigmoid_slope(r), some);
    put(p->dh + j, muladd(daux, r, get(p->dh + j, some)), some);
}

INLINE void gru_before_mix_forward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    REAL *gates = p->gates + j;
    vec z = get(gates + p->H, some), n = hyperbolic_tangent(get(gates + 2 * p->H, some));
    put(gates + 2 * p->H, n, some);
    put(p->h + j, gru_mix(z, n, get(p->h_before + j, some)), some);
}

INLINE void gru_before_mix_backward_at(const point *p, ptrdiff_t j, ptrdiff_t some)
{
    const REAL *gates = p->gates + j;
    vec z = get(gates + p->H, some), n = get(gates + 2 * p->H, some), dh = get(p->dh + j, some);
    put(p->dgates + p->H + j, dh * (get(p->h_before + j, some) - n) * sigmoid_slope(z), some);
    put(p->dgates + 2 * p->H + j, dh * (broadcast(1) - z) * tanh_slope(n), some);
    put(p->dh + j, dh * z, some);
}

static void gru_before_reset_forward(const point *p, range units)
{
    for_units(p, units, gru_before_reset_forward_at);
}

static void gru_before_reset_backward(const point *p, range units)
{
    for_units(p, units, gru_before_reset_backward_at);
}

static void gru_before_mix_forward(const point *p, range units)
{
    for_units(p, units, gru_before_mix_forward_at);
}

static void gru_before_mix_backward(const point *p, range units)
{
    for_units(p, units, gru_before_mix_backward_at);
}

/* ---- the registry ---- */

/* The parts of a cell side by side, which clang-format would put one below the other. */
/* clang-format off */
static const cell cells[RNNFAST_CELLS] = {
    [RNNFAST_RNN_TANH] = {
        .info = {.name = "rnn_tanh", .gates = "h", .columns = 1, .generic = RNNFAST_GENERIC_RNN},
        .ih = {0, -1, -1, -1}, .hh = {0, -1, -1, -1}, .stages = 1,
        .stage = {{.count = 1, .forward = rnn_tanh_forward, .backward = rnn_tanh_backward}}},
    [RNNFAST_RNN_RELU] = {
        .info = {.name = "rnn_relu", .gates = "h", .columns = 1, .generic = RNNFAST_GENERIC_RNN},
        .ih = {0, -1, -1, -1}, .hh = {0, -1, -1, -1}, .stages = 1,
        .stage = {{.count = 1, .forward = rnn_relu_forward, .backward = rnn_relu_backward}}},
    [RNNFAST_LSTM] = {
        .info = {.name = "lstm", .gates = "ifgo", .columns = 4, .keeps_gates = 1, .has_c = 1, .supports_projection = 1,
                 .generic = RNNFAST_GENERIC_LSTM},
        .ih = {0, 1, 2, 3}, .hh = {0, 1, 2, 3}, .stages = 1,
        .stage = {{.count = 4, .forward = lstm_forward, .backward = lstm_backward}, {.from_aux = 1}}},
    [RNNFAST_GRU] = {
        .info = {.name = "gru", .gates = "rzn", .columns = 4, .keeps_gates = 1, .generic = RNNFAST_GENERIC_GRU},
        .ih = {2, 0, 1, -1}, .hh = {-1, 0, 1, 2}, .stages = 1,
        .stage = {{.first = 1, .count = 3, .keeps_dh = 1, .forward = gru_forward, .backward = gru_backward}}},
    [RNNFAST_GRU_RESET_BEFORE] = {
        .info = {.name = "gru_reset_before", .gates = "rzn", .columns = 3, .keeps_gates = 1, .keeps_aux = 1,
                 .generic = RNNFAST_GENERIC_GRU_RESET_BEFORE},
        .ih = {0, 1, 2, -1}, .hh = {0, 1, 2, -1}, .stages = 2,
        .stage = {{.count = 2, .keeps_dh = 1, .forward = gru_before_reset_forward, .backward = gru_before_reset_backward},
                  {.from_aux = 1, .first = 2, .count = 1, .forward = gru_before_mix_forward, .backward = gru_before_mix_backward}}},
    [RNNFAST_GENERIC_RNN] = {
        .info = {.name = "generic_rnn", .gates = "h", .columns = 1, .keeps_gates = 1, .generic = RNNFAST_GENERIC_RNN},
        .ih = {0, -1, -1, -1}, .hh = {0, -1, -1, -1}, .stages = 1,
        .stage = {{.count = 1, .forward = any_rnn_forward, .backward = any_rnn_backward}}},
    [RNNFAST_GENERIC_LSTM] = {
        .info = {.name = "generic_lstm", .gates = "ifgo", .columns = 4, .keeps_gates = 1, .has_c = 1, .supports_projection = 1,
                 .generic = RNNFAST_GENERIC_LSTM, .extra = "peephole", .extra_rows = 3, .extra_is_optional = 1, .extra_is_trained = 1},
        .ih = {0, 1, 2, 3}, .hh = {0, 1, 2, 3}, .stages = 1,
        .stage = {{.count = 4, .forward = any_lstm_forward, .backward = any_lstm_backward}, {.from_aux = 1}}},
    [RNNFAST_GENERIC_GRU] = {
        .info = {.name = "generic_gru", .gates = "rzn", .columns = 4, .keeps_gates = 1, .generic = RNNFAST_GENERIC_GRU},
        .ih = {2, 0, 1, -1}, .hh = {-1, 0, 1, 2}, .stages = 1,
        .stage = {{.first = 1, .count = 3, .keeps_dh = 1, .forward = any_gru_forward, .backward = any_gru_backward}}},
    [RNNFAST_GENERIC_GRU_RESET_BEFORE] = {
        .info = {.name = "generic_gru_reset_before", .gates = "rzn", .columns = 3, .keeps_gates = 1, .keeps_aux = 1,
                 .generic = RNNFAST_GENERIC_GRU_RESET_BEFORE},
        .ih = {0, 1, 2, -1}, .hh = {0, 1, 2, -1}, .stages = 2,
        .stage = {{.count = 2, .keeps_dh = 1, .forward = any_gru_before_reset_forward, .backward = any_gru_before_reset_backward},
                  {.from_aux = 1, .first = 2, .count = 1, .forward = any_gru_before_mix_forward,
                   .backward = any_gru_before_mix_backward}}},
};
/* clang-format on */

static const rnnfast_cell_info *cell_info(rnnfast_cell which)
{
    return (unsigned)which < RNNFAST_CELLS ? &cells[which].info : NULL;
}

/* The cell of a stack; with a projection its output goes to aux, and a last stage makes h of that. */
static cell cell_of(const rnnfast_stack *s)
{
    cell c = cells[s->cell];
    c.gates = (int)strlen(c.info.gates);
    c.width = c.info.columns;
    c.keeps_gates = c.info.keeps_gates;
    c.has_c = c.info.has_c;
    c.has_aux = c.info.keeps_aux;
    if (s->P != s->H) {
        c.has_aux = 1;
        c.stages++;
    }
    return c;
}

#endif
