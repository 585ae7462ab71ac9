/* The cells: the pointwise parts of each, forward next to backward, and the registry.
 *
 * Layout, columns of the gates buffer (a is a pre-activation, bias + W_ih x + W_hh h_before; forward replaces it by its activation):
 *
 *   rnn                    a
 *   leaky rnn              a          h = (1 - alpha) h_before + alpha f(a), also known as continuous-time RNN (CTRNN): H. Jaeger et al.,
 *                                     "Optimization and applications of echo state networks with leaky-integrator neurons", 2007
 *   lstm                   i f g o    Hochreiter & Schmidhuber 1997, Gers et al. 2000
 *   gru                    n r z q    q = W_hn h + b_hn, n = tanh(... + r * q): reset after the product, as torch defines it
 *   gru, reset before      r z n      n = tanh(... + W_hn (r * h)): Cho et al. 2014, with a second product in the middle of the step
 *
 * alpha is the leaky RNN's extra, [1, H], and has no gradient. With alpha = 1 and finite h, results are bitwise equal to the plain RNN.
 * Aliasing and error: cell.h and activations.h.
 */
#pragma once

#include "elementwise_cells.h"
#include "generic_cells.h"

/* ---- RNN: h = f(a); the slope comes from h itself, so gates are not kept ---- */

static void rnn_tanh_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put(p->h + j, hyperbolic_tangent(get_gate(p->gates + j, lanes)), lanes);
}

static void rnn_tanh_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put(p->dgates + j, get(p->dh + j, lanes) * tanh_slope(get(p->h + j, lanes)), lanes);
}

static void rnn_relu_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put(p->h + j, relu(get_gate(p->gates + j, lanes)), lanes);
}

static void rnn_relu_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put(p->dgates + j, relu_gradient(get(p->dh + j, lanes), get(p->h + j, lanes)), lanes);
}

/* ---- leaky RNN: gates keep f(a), from which the slope comes ---- */

INLINE void put_leaky(const point *p, ptrdiff_t j, ptrdiff_t lanes, vec activation)
{
    vec alpha = get(p->options->extra + j, lanes);
    put_gate(p->gates + j, activation, lanes);
    put(p->h + j, muladd(broadcast(1) - alpha, get(p->h_before + j, lanes), alpha * activation), lanes);
}

/* Leaves in dh the share that h_before has in h; returns the gradient of f(a). */
INLINE vec take_leaky_gradient(const point *p, ptrdiff_t j, ptrdiff_t lanes)
{
    vec alpha = get(p->options->extra + j, lanes), dh = get(p->dh + j, lanes);
    put(p->dh + j, (broadcast(1) - alpha) * dh, lanes);
    return alpha * dh;
}

static void rnn_tanh_leaky_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put_leaky(p, j, lanes, hyperbolic_tangent(get_gate(p->gates + j, lanes)));
}

static void rnn_tanh_leaky_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put(p->dgates + j, take_leaky_gradient(p, j, lanes) * tanh_slope(get_gate(p->gates + j, lanes)), lanes);
}

static void rnn_relu_leaky_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put_leaky(p, j, lanes, relu(get_gate(p->gates + j, lanes)));
}

static void rnn_relu_leaky_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) put(p->dgates + j, relu_gradient(take_leaky_gradient(p, j, lanes), get_gate(p->gates + j, lanes)), lanes);
}

/* ---- LSTM: c = f c_before + i g, h = o tanh(c) ---- */

static void lstm_forward(const point *p, range units)
{
    ptrdiff_t G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        REAL *gates = p->gates + j;
        vec i = sigmoid(get_gate(gates, lanes)), f = sigmoid(get_gate(gates + G, lanes)),
            g = hyperbolic_tangent(get_gate(gates + 2 * G, lanes));
        vec o = sigmoid(get_gate(gates + 3 * G, lanes)), c = muladd(f, get(p->c_before + j, lanes), i * g);
        put_gate(gates, i, lanes);
        put_gate(gates + G, f, lanes);
        put_gate(gates + 2 * G, g, lanes);
        put_gate(gates + 3 * G, o, lanes);
        put(p->c + j, c, lanes);
        put(p->h + j, o * hyperbolic_tangent(c), lanes);
    }
}

static void lstm_backward(const point *p, range units)
{
    ptrdiff_t H = p->H, G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        REAL *dgates = p->dgates + j;
        vec i = get_gate(gates, lanes), f = get_gate(gates + G, lanes), g = get_gate(gates + 2 * G, lanes),
            o = get_gate(gates + 3 * G, lanes);
        vec dh = get(p->dh + j, lanes), tanh_c = hyperbolic_tangent(get(p->c + j, lanes));
        vec dc = muladd(dh * o, tanh_slope(tanh_c), get(p->dc + j, lanes));
        put(dgates, dc * g * sigmoid_slope(i), lanes);
        put(dgates + H, dc * get(p->c_before + j, lanes) * sigmoid_slope(f), lanes);
        put(dgates + 2 * H, dc * i * tanh_slope(g), lanes);
        put(dgates + 3 * H, dh * tanh_c * sigmoid_slope(o), lanes);
        put(p->dc + j, dc * f, lanes);
    }
}

/* ---- GRU: h = (1 - z) n + z h_before ---- */

static void gru_forward(const point *p, range units)
{
    ptrdiff_t G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        REAL *gates = p->gates + j;
        vec r = sigmoid(get_gate(gates + G, lanes)), z = sigmoid(get_gate(gates + 2 * G, lanes));
        vec n = hyperbolic_tangent(muladd(r, get_gate(gates + 3 * G, lanes), get_gate(gates, lanes)));
        put_gate(gates, n, lanes);
        put_gate(gates + G, r, lanes);
        put_gate(gates + 2 * G, z, lanes);
        put(p->h + j, gru_mix(z, n, get(p->h_before + j, lanes)), lanes);
    }
}

static void gru_backward(const point *p, range units)
{
    ptrdiff_t H = p->H, G = p->H_gate;
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        REAL *dgates = p->dgates + j;
        vec n = get_gate(gates, lanes), r = get_gate(gates + G, lanes), z = get_gate(gates + 2 * G, lanes),
            q = get_gate(gates + 3 * G, lanes);
        vec dh = get(p->dh + j, lanes), dn = dh * (broadcast(1) - z) * tanh_slope(n);
        put(dgates, dn, lanes);
        put(dgates + H, dn * q * sigmoid_slope(r), lanes);
        put(dgates + 2 * H, dh * (get(p->h_before + j, lanes) - n) * sigmoid_slope(z), lanes);
        put(dgates + 3 * H, dn * r, lanes);
        put(p->dh + j, dh * z, lanes);
    }
}

/* ---- GRU, reset before the product: first r and z, then n ---- */

static void gru_before_reset_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) {
        REAL *gates = p->gates + j;
        vec r = sigmoid(get_gate(gates, lanes));
        put_gate(gates, r, lanes);
        put_gate(gates + p->H_gate, sigmoid(get_gate(gates + p->H_gate, lanes)), lanes);
        put(p->aux + j, r * get(p->h_before + j, lanes), lanes);
    }
}

static void gru_before_reset_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) {
        vec r = get_gate(p->gates + j, lanes), daux = get(p->daux + j, lanes);
        put(p->dgates + j, daux * get(p->h_before + j, lanes) * sigmoid_slope(r), lanes);
        put(p->dh + j, muladd(daux, r, get(p->dh + j, lanes)), lanes);
    }
}

static void gru_before_mix_forward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) {
        REAL *gates = p->gates + j;
        vec z = get_gate(gates + p->H_gate, lanes), n = hyperbolic_tangent(get_gate(gates + 2 * p->H_gate, lanes));
        put_gate(gates + 2 * p->H_gate, n, lanes);
        put(p->h + j, gru_mix(z, n, get(p->h_before + j, lanes)), lanes);
    }
}

static void gru_before_mix_backward(const point *p, range units)
{
    FOR_UNITS (j, lanes, units) {
        const REAL *gates = p->gates + j;
        vec z = get_gate(gates + p->H_gate, lanes), n = get_gate(gates + 2 * p->H_gate, lanes), dh = get(p->dh + j, lanes);
        put(p->dgates + p->H + j, dh * (get(p->h_before + j, lanes) - n) * sigmoid_slope(z), lanes);
        put(p->dgates + 2 * p->H + j, dh * (broadcast(1) - z) * tanh_slope(n), lanes);
        put(p->dh + j, dh * z, lanes);
    }
}

/* ---- the registry: the single source of a cell's properties ---- */

/* clang-format would put each part of an entry on a separate line. */
/* clang-format off */
static const cell cells[RNNFAST_CELLS] = {
    [RNNFAST_RNN_TANH] = {
        .info = {.name = "rnn_tanh", .gates = "h", .functions = "tanh", .columns = 1, .generic = RNNFAST_GENERIC_RNN},
        .ih = {0}, .hh = {0}, .stages = 1, .stage = {{.count = 1, .forward = rnn_tanh_forward, .backward = rnn_tanh_backward}}},
    [RNNFAST_RNN_RELU] = {
        .info = {.name = "rnn_relu", .gates = "h", .functions = "relu", .columns = 1, .generic = RNNFAST_GENERIC_RNN},
        .ih = {0}, .hh = {0}, .stages = 1, .stage = {{.count = 1, .forward = rnn_relu_forward, .backward = rnn_relu_backward}}},
    [RNNFAST_LSTM] = {
        .info = {.name = "lstm", .gates = "ifgo", .functions = "sigmoid tanh tanh", .columns = 4, .keeps_gates = 1, .has_c = 1,
                 .supports_projection = 1, .generic = RNNFAST_GENERIC_LSTM},
        .ih = {0, 1, 2, 3}, .hh = {0, 1, 2, 3}, .stages = 1,
        .stage = {{.count = 4, .forward = lstm_forward, .backward = lstm_backward}, {.from_aux = 1}}},
    [RNNFAST_GRU] = {
        .info = {.name = "gru", .gates = "rzn", .functions = "sigmoid tanh", .columns = 4, .keeps_gates = 1,
                 .generic = RNNFAST_GENERIC_GRU},
        .ih = {2, 0, 1, -1}, .hh = {-1, 0, 1, 2}, .stages = 1,
        .stage = {{.first = 1, .count = 3, .keeps_dh = 1, .forward = gru_forward, .backward = gru_backward}}},
    [RNNFAST_GRU_RESET_BEFORE] = {
        .info = {.name = "gru_reset_before", .gates = "rzn", .functions = "sigmoid tanh", .columns = 3, .keeps_gates = 1, .keeps_aux = 1,
                 .generic = RNNFAST_GENERIC_GRU_RESET_BEFORE},
        .ih = {0, 1, 2}, .hh = {0, 1, 2}, .stages = 2,
        .stage = {{.count = 2, .keeps_dh = 1, .forward = gru_before_reset_forward, .backward = gru_before_reset_backward},
                  {.from_aux = 1, .first = 2, .count = 1, .forward = gru_before_mix_forward, .backward = gru_before_mix_backward}}},
    [RNNFAST_GENERIC_RNN] = {
        .info = {.name = "generic_rnn", .gates = "h", .columns = 1, .keeps_gates = 1, .generic = RNNFAST_GENERIC_RNN},
        .ih = {0}, .hh = {0}, .stages = 1, .stage = {{.count = 1, .forward = generic_rnn_forward, .backward = generic_rnn_backward}}},
    [RNNFAST_GENERIC_LSTM] = {
        .info = {.name = "generic_lstm", .gates = "ifgo", .columns = 4, .keeps_gates = 1, .has_c = 1, .supports_projection = 1,
                 .generic = RNNFAST_GENERIC_LSTM, .extra = "peephole", .extra_rows = 3, .extra_is_optional = 1, .extra_is_trained = 1},
        .ih = {0, 1, 2, 3}, .hh = {0, 1, 2, 3}, .stages = 1,
        .stage = {{.count = 4, .forward = generic_lstm_forward, .backward = generic_lstm_backward}, {.from_aux = 1}},
        .add_extra_terms = generic_lstm_peephole_terms},
    [RNNFAST_GENERIC_GRU] = {
        .info = {.name = "generic_gru", .gates = "rzn", .columns = 4, .keeps_gates = 1, .generic = RNNFAST_GENERIC_GRU},
        .ih = {2, 0, 1, -1}, .hh = {-1, 0, 1, 2}, .stages = 1,
        .stage = {{.first = 1, .count = 3, .keeps_dh = 1, .forward = generic_gru_forward, .backward = generic_gru_backward}}},
    [RNNFAST_GENERIC_GRU_RESET_BEFORE] = {
        .info = {.name = "generic_gru_reset_before", .gates = "rzn", .columns = 3, .keeps_gates = 1, .keeps_aux = 1,
                 .generic = RNNFAST_GENERIC_GRU_RESET_BEFORE},
        .ih = {0, 1, 2}, .hh = {0, 1, 2}, .stages = 2,
        .stage = {{.count = 2, .keeps_dh = 1, .forward = generic_gru_before_reset_forward, .backward = generic_gru_before_reset_backward},
                  {.from_aux = 1, .first = 2, .count = 1, .forward = generic_gru_before_mix_forward,
                   .backward = generic_gru_before_mix_backward}}},
    [RNNFAST_RNN_TANH_LEAKY] = {
        .info = {.name = "rnn_tanh_leaky", .gates = "h", .functions = "tanh", .columns = 1, .keeps_gates = 1,
                 .generic = RNNFAST_CELLS, .extra = "leak", .extra_rows = 1},
        .ih = {0}, .hh = {0}, .stages = 1,
        .stage = {{.count = 1, .keeps_dh = 1, .forward = rnn_tanh_leaky_forward, .backward = rnn_tanh_leaky_backward}}},
    [RNNFAST_RNN_RELU_LEAKY] = {
        .info = {.name = "rnn_relu_leaky", .gates = "h", .functions = "relu", .columns = 1, .keeps_gates = 1,
                 .generic = RNNFAST_CELLS, .extra = "leak", .extra_rows = 1},
        .ih = {0}, .hh = {0}, .stages = 1,
        .stage = {{.count = 1, .keeps_dh = 1, .forward = rnn_relu_leaky_forward, .backward = rnn_relu_leaky_backward}}},
    [RNNFAST_MINGRU] = {
        .info = {.name = "mingru", .gates = "un", .functions = "sigmoid affine", .columns = 2, .keeps_gates = 1,
                 .generic = RNNFAST_CELLS, .elementwise = 1},
        .ih = {0, 1}, .hh = {-1, -1}, .stages = 1,
        .stage = {{.keeps_dh = 1, .forward = mingru_forward, .backward = mingru_backward}}},
    [RNNFAST_MINGRU_POSITIVE] = {
        .info = {.name = "mingru_positive", .gates = "un", .functions = "sigmoid", .columns = 2, .keeps_gates = 1,
                 .generic = RNNFAST_CELLS, .elementwise = 1},
        .ih = {0, 1}, .hh = {-1, -1}, .stages = 1,
        .stage = {{.keeps_dh = 1, .forward = mingru_positive_forward, .backward = mingru_positive_backward}}},
    [RNNFAST_MINLSTM] = {
        .info = {.name = "minlstm", .gates = "fin", .functions = "sigmoid affine", .columns = 3, .keeps_gates = 1,
                 .generic = RNNFAST_CELLS, .elementwise = 1},
        .ih = {0, 1, 2}, .hh = {-1, -1, -1}, .stages = 1,
        .stage = {{.keeps_dh = 1, .forward = minlstm_forward, .backward = minlstm_backward}}},
    [RNNFAST_MINLSTM_POSITIVE] = {
        .info = {.name = "minlstm_positive", .gates = "fin", .functions = "sigmoid", .columns = 3, .keeps_gates = 1,
                 .generic = RNNFAST_CELLS, .elementwise = 1},
        .ih = {0, 1, 2}, .hh = {-1, -1, -1}, .stages = 1,
        .stage = {{.keeps_dh = 1, .forward = minlstm_positive_forward, .backward = minlstm_positive_backward}}},
    [RNNFAST_SRU] = {
        .info = {.name = "sru", .gates = "frn", .functions = "sigmoid affine", .columns = 3, .keeps_gates = 1, .has_c = 1,
                 .generic = RNNFAST_CELLS, .extra = "peephole", .extra_rows = 2, .extra_is_trained = 1, .elementwise = 1, .reads_x = 1},
        .ih = {0, 1, 2}, .hh = {-1, -1, -1}, .stages = 1,
        .stage = {{.keeps_dh = 1, .forward = sru_forward, .backward = sru_backward}}, .add_extra_terms = sru_peephole_terms},
    [RNNFAST_SRU_LINEAR] = {
        .info = {.name = "sru_linear", .gates = "frns", .functions = "sigmoid affine", .columns = 4, .keeps_gates = 1, .has_c = 1,
                 .generic = RNNFAST_CELLS, .extra = "peephole", .extra_rows = 2, .extra_is_trained = 1, .elementwise = 1},
        .ih = {0, 1, 2, 3}, .hh = {-1, -1, -1, -1}, .stages = 1,
        .stage = {{.keeps_dh = 1, .forward = sru_linear_forward, .backward = sru_linear_backward}},
        .add_extra_terms = sru_peephole_terms},
    [RNNFAST_INDRNN_TANH] = {
        .info = {.name = "indrnn_tanh", .gates = "h", .functions = "tanh", .columns = 1, .generic = RNNFAST_CELLS,
                 .extra = "recurrent", .extra_rows = 1, .extra_is_trained = 1, .elementwise = 1},
        .ih = {0}, .hh = {-1}, .stages = 1,
        .stage = {{.keeps_dh = 1, .forward = indrnn_tanh_forward, .backward = indrnn_tanh_backward}},
        .add_extra_terms = indrnn_recurrent_terms},
    [RNNFAST_INDRNN_RELU] = {
        .info = {.name = "indrnn_relu", .gates = "h", .functions = "relu", .columns = 1, .generic = RNNFAST_CELLS,
                 .extra = "recurrent", .extra_rows = 1, .extra_is_trained = 1, .elementwise = 1},
        .ih = {0}, .hh = {-1}, .stages = 1,
        .stage = {{.keeps_dh = 1, .forward = indrnn_relu_forward, .backward = indrnn_relu_backward}},
        .add_extra_terms = indrnn_recurrent_terms},
};
/* clang-format on */

static const rnnfast_cell_info *cell_info(rnnfast_cell which)
{
    return (unsigned)which < RNNFAST_CELLS ? &cells[which].info : NULL;
}
