/* Stacks: forward and backward over layers, directions and blocks of steps.
 *
 * Forward, for each layer: chunks of rows of the batch, and for each chunk blocks of steps (forward.h), both directions at once.
 * Backward, for each layer from the last: blocks of steps from the last, each through time first and then for its sums (backward.h).
 * The outputs of a layer are the input of the next; dropout masks are applied between them. Sequences of a ragged batch go from the
 * longest to the shortest, so the first rows of a step are those that take it and no row leaves a hole.
 *
 * Layout: layout.h. Order of the sum of two directions' dx: the forward one's plus the reverse one's.
 */
#ifndef RNNFAST_STACK_H
#define RNNFAST_STACK_H

#include "backward.h"
#include "forward.h"
#include "problem.h"

enum { CHUNK_ROWS = 128 }; /* rows of a batch that go through time together, so that their gates stay in cache */

/* ---- masks between layers ---- */

/* The masks of the input of a layer. */
static view masks_of(const rnnfast_problem *p, ptrdiff_t layer, ptrdiff_t columns)
{
    const REAL *at = (const REAL *)p->masks + (layer - 1) * p->T * p->N * columns;
    return in_any_order(p, view_of(at, p->N, p->N * columns, columns));
}

static void mask_run(void *argument, int k, int n)
{
    call *c = argument;
    ptrdiff_t columns = c->s.D * c->s.P;
    view masks = masks_of(c->problem, c->layer, columns);
    range own = part(c->e.rows, k, n);
    worker w;
    join(&w, c, k, n);
    for (ptrdiff_t r = own.begin; r < own.end && !should_stop(w.poller, MOVE_WORK * columns); r++) {
        const REAL *from = nth_row(&c->unmasked, r), *mask = nth_row(&masks, r);
        REAL *to = nth_row(&c->masked, r);
        for (ptrdiff_t i = 0; i < columns; i++) to[i] = from[i] * mask[i];
    }
}

/* The input of a layer: the outputs of the layer below, times their mask if there are masks. Written to `to`, which may be y.at. */
static view masked_input(call *c, ptrdiff_t layer, view y, REAL *to)
{
    view masked = y;
    if (!c->problem->masks) return y;
    masked.at = to;
    c->layer = layer;
    c->unmasked = in_any_order(c->problem, y);
    c->masked = in_any_order(c->problem, masked);
    run(c, mask_run);
    return masked;
}

/* ---- forward ---- */

static void forward_run(void *argument, int k, int n)
{
    call *c = argument;
    worker w;
    join(&w, c, k, n);
    for (ptrdiff_t which = w.directions.begin; which < w.directions.end; which++) forward_block(&c->d[which], &w, c->t0, c->t1, c->rows);
}

static void set_forward(call *c, ptrdiff_t layer, int which, view x, view y)
{
    const rnnfast_problem *p = c->problem;
    const shape *s = &c->s;
    const extent *e = &c->e;
    ptrdiff_t state = layer * s->D + which;
    direction *d = &c->d[which];
    set_direction(c, d, layer, which);
    d->x = as_taken(p, x, which);
    d->y = shifted(as_taken(p, y, which), which * s->P);
    d->h_n = state_of(p->h_n, state, e->N, s->P, NULL);
    d->c_n = state_of(p->c_n, state, e->N, s->H, NULL);
    d->w = place_packed(&c->packed, s, layer, which, lay_out_packed);
    d->options.extra = d->w.extra;
    if (!d->gates.at) d->gates = in_order(p, e, d->own->gates, s->gates_row);
    if (!d->keeps) {
        d->c = view_of(d->c_n.at, e->N, 0, s->H);
        d->aux = view_of(d->own->aux, e->N, 0, s->H_row);
    }
}

/* Copies for each row the state after the last step that it takes, or the initial state if it takes none. */
static void take_last(const direction *d)
{
    ptrdiff_t end = d->N;
    for (ptrdiff_t t = d->begin ? 0 : d->T; end; t++) {
        ptrdiff_t begin = rows_at(d, t);
        for (ptrdiff_t n = begin; n < end; n++) {
            memmove(row_at(&d->h_n, 0, n), before(&d->y, &d->h0, t, n), (size_t)d->s.P * sizeof(REAL));
            if (d->s.has_c) memmove(row_at(&d->c_n, 0, n), before(&d->c, &d->c0, t, n), (size_t)d->s.H * sizeof(REAL));
        }
        end = begin;
    }
}

static void forward(const rnnfast_problem *p)
{
    call c;
    start_stack(&c, p, lay_out_forward);
    c.packed = count_packed(&c.s, p->packed, lay_out_packed);
    const shape *s = &c.s;
    ptrdiff_t N = c.e.N, rows = forward_rows(s), chunk = CHUNK_ROWS * (c.group ? c.group : 1);
    view x = view_of(p->x, p->N, p->x_step, p->x_row);
    for (ptrdiff_t layer = 0; layer < s->L && !c.stopped; layer++) {
        int last = layer == s->L - 1;
        view y = last ? view_of(p->y, p->N, p->y_step, p->y_row) : layer_output(&c, layer);
        for (int which = 0; which < s->D; which++) set_forward(&c, layer, which, x, y);
        const direction *d = c.d;
        for (c.rows.begin = 0; c.rows.begin < N; c.rows.begin = c.rows.end) {
            c.rows.end = min_of(c.rows.begin + chunk, N);
            for (c.t0 = 0; c.rows.begin < rows_at(d, c.t0); c.t0 = c.t1) {
                c.t1 = block_end(d, c.t0, rows);
                for (int which = 0; d->begin && which < s->D; which++)
                    if (!d->keeps || !s->keeps_gates) c.d[which].gates.begin = d->begin + c.t0;
                run(&c, forward_run);
            }
        }
        for (int which = 0; which < s->D; which++) take_last(&c.d[which]);
        if (!last) x = masked_input(&c, layer + 1, y, p->tape ? c.work.masked : y.at);
    }
    finish_stack(&c, lay_out_forward);
}

/* ---- backward ---- */

static void backward_run(void *argument, int k, int n)
{
    call *c = argument;
    worker w;
    join(&w, c, k, n);
    for (ptrdiff_t which = w.directions.begin; which < w.directions.end; which++) backward_block(&c->d[which], &w, c->t0, c->t1, c->rows);
}

static void sum_run(void *argument, int k, int n)
{
    call *c = argument;
    ptrdiff_t total = rows_between(c->d, c->t0, c->t1);
    worker w;
    join(&w, c, k, n);
    for (ptrdiff_t which = w.directions.begin; which < w.directions.end; which++)
        for (ptrdiff_t r = 0; r < total && !*w.stopped; r += SUM_ROWS) sum_rows(&c->d[which], &w, c->t0, r, min_of(SUM_ROWS, total - r));
}

/* Adds up dx of both directions and applies the mask of the layer below. */
static void finish_dx_run(void *argument, int k, int n)
{
    call *c = argument;
    const rnnfast_problem *p = c->problem;
    ptrdiff_t K = c->d[0].K;
    int masked = c->layer && p->masks;
    view masks = masked ? masks_of(p, c->layer, K) : c->dx;
    range own = part(c->e.rows, k, n);
    worker w;
    join(&w, c, k, n);
    for (ptrdiff_t r = own.begin; r < own.end && !should_stop(w.poller, MOVE_WORK * K); r++) {
        REAL *to = nth_row(&c->dx, r);
        const REAL *other = c->s.D == 2 ? nth_row(&c->second_dx, r) : NULL, *mask = masked ? nth_row(&masks, r) : NULL;
        for (ptrdiff_t i = 0; other && i < K; i++) to[i] += other[i];
        for (ptrdiff_t i = 0; mask && i < K; i++) to[i] *= mask[i];
    }
}

static void set_backward(call *c, ptrdiff_t layer, int which, view x, view y, view dy, view dx)
{
    const rnnfast_problem *p = c->problem;
    const shape *s = &c->s;
    const extent *e = &c->e;
    ptrdiff_t N = e->N, state = layer * s->D + which;
    void *const *gradients = p->dparameters + RNNFAST_KINDS * state;
    range all = {0, N};
    direction *d = &c->d[which];
    const scratch *own = &c->work.of[which];
    set_direction(c, d, layer, which);
    d->x = as_taken(p, x, which);
    d->y = shifted(as_taken(p, y, which), which * s->P);
    d->dx = as_taken(p, dx, which);
    if (dy.at) d->dy = shifted(as_taken(p, dy, which), which * s->P);
    if (p->dh) d->dh_of_all = as_taken(p, view_of((REAL *)p->dh + state * p->dh_state, p->N, p->dh_step, p->dh_row), which);
    d->dh0 = state_of(p->dh0, state, N, s->P, NULL);
    d->dc0 = state_of(p->dc0, state, N, s->H, NULL);
    d->w = place_packed(&c->packed, s, layer, which, lay_out_packed_back);
    d->options.extra = d->w.extra;
    d->dgates = in_order(p, e, own->dgates, s->gates_row);
    if (s->projects) d->dh_steps = in_order(p, e, own->dh_steps, s->P_row);
    d->dh = view_of(own->dh, N, 0, s->P_row);
    d->dc = view_of(own->dc, N, 0, s->H_row);
    d->daux = view_of(own->daux, N, 0, s->H_row);
    d->dw_ih = gradients[0];
    d->dw_hh = gradients[1];
    d->db_ih = gradients[2];
    d->db_hh = gradients[3];
    d->dw_hr = gradients[4];
    d->dextra = gradients[5];
    copy_rows(d->dh, state_of(p->dh_n, state, N, s->P, c->work.zeros), s->P, all);
    if (s->has_c) copy_rows(d->dc, state_of(p->dc_n, state, N, s->H, c->work.zeros), s->H, all);
}

/* The start of the block of steps that ends at t1. */
static ptrdiff_t block_begin(const rnnfast_problem *p, ptrdiff_t t1, ptrdiff_t *block)
{
    if (p->order) return p->order->edges[--*block];
    ptrdiff_t steps = SUM_ROWS > p->N ? SUM_ROWS / p->N : 1;
    return (t1 - 1) / steps * steps;
}

static void backward(const rnnfast_problem *p)
{
    call c;
    start_stack(&c, p, lay_out_backward);
    c.packed = count_packed(&c.s, p->packed_back, lay_out_packed_back);
    const shape *s = &c.s;
    range all = {0, c.e.N};
    view dy = view_of(p->dy, p->N, p->dy_step, p->dy_row);
    c.rows = all;
    for (ptrdiff_t layer = s->L - 1; layer >= 0 && !c.stopped; layer--) {
        ptrdiff_t K = input_width(s, layer);
        view y = layer < s->L - 1 ? layer_output(&c, layer) : view_of(p->y, p->N, p->y_step, p->y_row);
        view x = layer ? masked_input(&c, layer, layer_output(&c, layer - 1), c.work.masked) : view_of(p->x, p->N, p->x_step, p->x_row);
        view dx = layer ? between_layers(&c, c.work.between[s->L > 2 ? layer % 2 : 0]) : view_of(p->dx, p->N, p->dx_step, p->dx_row);
        view second_dx = view_of(c.work.second_dx, p->N, p->N * K, K);
        for (int which = 0; which < s->D; which++) set_backward(&c, layer, which, x, y, dy, which ? second_dx : dx);
        ptrdiff_t block = p->order ? p->order->blocks : 0;
        for (c.t1 = c.e.T; c.t1 > 0; c.t1 = c.t0) {
            c.t0 = block_begin(p, c.t1, &block);
            for (int which = 0; p->order && which < s->D; which++)
                c.d[which].dgates.begin = c.d[which].dh_steps.begin = p->order->begin + c.t0;
            run(&c, backward_run);
            run(&c, sum_run);
        }
        for (int which = 0; which < s->D; which++) {
            const direction *d = &c.d[which];
            copy_rows(d->dh0, d->dh, s->P, all);
            if (s->has_c) copy_rows(d->dc0, d->dc, s->H, all);
        }
        c.layer = layer;
        c.dx = in_any_order(p, dx);
        c.second_dx = in_any_order(p, second_dx);
        dy = dx;
        if (s->D == 2 || (layer && p->masks)) run(&c, finish_dx_run);
    }
    finish_stack(&c, lay_out_backward);
}

#endif
