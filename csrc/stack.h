/* Stacks: forward and backward over layers, directions and blocks of steps.
 *
 * Forward, for each layer: chunks of rows of the batch, and for each chunk blocks of steps (forward.h), both directions at once.
 * Backward, for each layer from the last: blocks of steps from the last, each first through time and then for its sums (backward.h).
 * The outputs of a layer are the input of the next; dropout masks are applied between them. Sequences of a ragged batch are sorted
 * from longest to shortest, so the rows that take a step are always the first ones, without gaps.
 *
 * Layout: layout.h. Order of the sum of two directions' dx: the forward one's plus the reverse one's.
 * Aliasing: views refer to the caller's memory and own nothing. Cost: a few hundred instructions per call and direction of a layer.
 */
#pragma once

#include "backward.h"
#include "forward.h"

/* ---- views of the caller's arrays and of the tape ----
 *
 * Inlined, with one expression for each member: a view that is returned from branches would be stored member by member and then copied
 * as whole vectors, which waits for the stores. Measured: 30 such copies take 80 ns, a fifth of a step of an RNN with H = 8. */

/* The state of a layer and direction in [L*D, N, columns], or, without a state, a row of zeros shared by all rows. */
INLINE view state_of(const void *states, ptrdiff_t which, ptrdiff_t N, ptrdiff_t columns, const REAL *zeros)
{
    return view_of(states ? (const REAL *)states + which * N * columns : zeros, N, 0, states ? columns : 0);
}

static int is_reverse(const rnnfast_problem *p, int which)
{
    return p->stack.directions == 2 ? which == 1 : p->stack.reverse;
}

/* Consecutive rows, in the order in which a direction processes them. `at` may be NULL. */
INLINE view in_order(const rnnfast_problem *p, const extent *e, const REAL *at, ptrdiff_t row)
{
    if (!at) row = 0; /* no offset is ever added to NULL */
    view v = {.at = (REAL *)at, .N = e->N, .step = e->N * row, .row = row, .begin = p->order ? p->order->begin : NULL};
    return v;
}

/* An array like x, with steps in the order of a direction. Between layers of one direction, a ragged batch is already in that order. */
INLINE view as_taken(const rnnfast_problem *p, view v, int which)
{
    const rnnfast_order *o = v.begin ? NULL : p->order;
    int reverse = is_reverse(p, which), turned = reverse && !p->order && v.at;
    view taken = {.at = turned ? v.at + (p->T - 1) * v.step : v.at,
                  .N = v.N,
                  .step = turned ? -v.step : v.step,
                  .row = v.row,
                  .begin = o ? o->begin : v.begin,
                  .positions = o ? o->positions[reverse] : v.positions,
                  .from = v.from};
    return taken;
}

/* An array [T, N, columns] like x. */
static view like_x(const rnnfast_problem *p, const void *at, ptrdiff_t columns)
{
    return view_of(at, p->N, p->N * columns, columns);
}

/* Outputs of a layer before the last, or their gradient. */
static view between_layers(const call *c, const REAL *at)
{
    ptrdiff_t columns = c->s.D * c->s.P;
    return c->problem->order && c->s.D == 1 ? in_order(c->problem, &c->e, at, columns) : like_x(c->problem, at, columns);
}

/* Outputs of a layer before the last: on the tape, or in one of two buffers in turn. */
static view layer_output(const call *c, ptrdiff_t layer)
{
    return between_layers(c, c->tape.base ? output_at(&c->tape, &c->s, &c->e, layer) : c->work.between[layer % 2]);
}

/* ---- calls ---- */

INLINE void start_stack(call *c, const rnnfast_problem *p, int back)
{
    assert(p->T >= 1 && p->N >= 1 && p->threads >= 1);
    assert(p->stack.directions == 1 || (p->stack.directions == 2 && !p->stack.reverse));
    assert(p->workspace && (uintptr_t)p->workspace % RNNFAST_ALIGNMENT == 0);
    c->problem = p;
    c->s = shape_of(&p->stack);
    c->e = extent_of(p->T, p->N, p->order, c->s.D);
    c->packed = parts_of_weights(&c->s, back ? p->packed_back : p->packed, back);
    c->tape = p->tape ? parts_of_tape(&c->s, &c->e, p->tape) : (parts){0};
    arena a = {p->workspace, 0, 0};
#if !defined(NDEBUG)
    arena counted = {0};
    lay_out_workspace(&c->work, &counted, &c->s, &c->e, back);
    a.limit = counted.used;
#endif
    lay_out_workspace(&c->work, &a, &c->s, &c->e, back);
    c->work_used = a.used;
    memset(c->work.zeros, 0, (size_t)c->s.H_row * sizeof(REAL));
    const shape *s = &c->s;
    double products_of_row = (double)s->gates * s->H * (s->I + s->P + (s->L - 1.0) * (s->D + 1.0) * s->P);
    start(c, p->threads, products_of_row * s->D * c->e.rows, &p->poll);
}

static void finish_stack(const call *c)
{
    finish(c);
    remove_red_zones(c->problem->workspace, c->work_used);
    if (c->tape.base) remove_red_zones(c->tape.base, length_of(&c->tape));
    remove_red_zones(c->packed.base, length_of(&c->packed));
}

/* Sets the members of zoneout. */
COMPACT void set_zoneout(call *c, direction *d, const kept *k, ptrdiff_t state, int which)
{
    const rnnfast_problem *p = c->problem;
    const shape *s = &c->s;
    const extent *e = &c->e;
    const ptrdiff_t bytes = RNNFAST_ZONEOUT_BYTES(s->P) + (s->has_c ? RNNFAST_ZONEOUT_BYTES(s->H) : 0);
    const char *masks = p->zoneout_masks;
    if (masks) masks += state * p->T * p->N * bytes;
    d->zoneout_masks = as_taken(p, like_x(p, masks, bytes / (ptrdiff_t)sizeof(REAL)), which);
    d->zoneout[0] = (REAL)p->stack.zoneout_h;
    d->zoneout[1] = (REAL)p->stack.zoneout_c;
    d->h_new = d->dh_new = view_of(d->own->new_states, e->N, 0, s->H_row);
    d->c_new = d->dc_new = view_of(d->own->new_states + e->N * s->H_row, e->N, 0, s->H_row);
    assert(s->keeps_gates || !s->has_c);
    if (k->new_state) *(s->has_c ? &d->c_new : &d->h_new) = in_order(p, e, k->new_state, s->H_row);
    d->h_out = &d->h_new;
    d->c_out = &d->c_new;
    d->dh_out = &d->dh_new;
    d->dc_out = &d->dc_new;
}

/* Sets the members that forward and backward share. */
INLINE direction *set_direction(call *c, ptrdiff_t layer, int which, view x, view y, weights w)
{
    const rnnfast_problem *p = c->problem;
    const shape *s = &c->s;
    const extent *e = &c->e;
    ptrdiff_t state = layer * s->D + which;
    kept k = {0};
    if (p->tape) k = kept_at(&c->tape, s, e, state);
    direction *d = &c->d[which];
    d->s = *s;
    d->T = e->T;
    d->N = e->N;
    d->K = input_width(s, layer);
    d->keeps = p->tape != NULL;
    d->begin = p->order ? p->order->begin : NULL;
    d->w = w;
    d->options = (cell_options){p->stack.activations[s->D == 2 ? which : 0], (REAL)p->stack.clip, p->stack.coupled, w.extra};
    d->own = &c->work.of[which];
    d->x = as_taken(p, x, which);
    d->y = shifted(as_taken(p, y, which), which * s->P);
    d->h0 = state_of(p->h0, state, e->N, s->P, c->work.zeros);
    d->c0 = state_of(p->c0, state, e->N, s->H, c->work.zeros);
    d->masks = state_of(p->recurrent_masks, state, e->N, s->P, NULL);
    d->masked = view_of(d->own->masked, e->N, 0, s->P_row);
    d->gates = in_order(p, e, k.gates, s->gates_row);
    d->c = in_order(p, e, k.c, s->H_row);
    d->aux = in_order(p, e, k.aux ? k.aux : c->work.zeros, k.aux ? s->H_row : 0);
    d->h_out = &d->y;
    d->c_out = &d->c;
    d->dh_out = &d->dh;
    d->dc_out = &d->dc;
    if (s->zones) set_zoneout(c, d, &k, state, which);
    return d;
}

/* ---- between layers: to = (from + other) * mask ---- */

static void combine_task(call *c, const worker *w)
{
    const range own = part(c->e.rows, w->thread, w->threads), all = {0, c->columns};
    for (ptrdiff_t r = own.begin; r < own.end && !should_stop(w->poller, MOVE_WORK * c->columns); r++) {
        REAL *to = nth_row(&c->to, r);
        const REAL *from = nth_row(&c->from, r);
        if (c->other.at) {
            const REAL *other = nth_row(&c->other, r);
            FOR_UNITS (i, lanes, all) put(to + i, get(from + i, lanes) + get(other + i, lanes), lanes);
            from = to;
        }
        if (c->mask.at) {
            const REAL *mask = nth_row(&c->mask, r);
            FOR_UNITS (i, lanes, all) put(to + i, get(from + i, lanes) * get(mask + i, lanes), lanes);
        }
    }
}

/* Arrays like the input of a layer, or its gradient. other.at may be NULL; the mask is that of the layer's input, if there is one. `to`
 * may be `from`; with neither other nor mask it must be. */
static void combine(call *c, ptrdiff_t layer, view to, view from, view other)
{
    const rnnfast_problem *p = c->problem;
    const REAL *masks = layer ? p->masks : NULL;
    c->columns = input_width(&c->s, layer);
    if (masks) masks += (layer - 1) * p->masks_layer;
    if (!masks && !other.at) return;
    c->to = as_taken(p, to, 0);
    c->from = as_taken(p, from, 0);
    c->other = as_taken(p, other, 0);
    c->mask = as_taken(p, view_of(masks, p->N, p->masks_step, p->masks_row), 0);
    run(c, combine_task);
}

/* The input of a layer: the outputs y of the layer below, times their mask if there are masks. Written to `to`, which may be y.at. */
static view masked_input(call *c, ptrdiff_t layer, view y, REAL *to)
{
    view masked = y, none = {0};
    if (c->problem->masks) masked.at = to;
    combine(c, layer, masked, y, none);
    return masked;
}

/* Copies a state of some rows. */
static void copy_state(const view *to, const view *from, range rows, ptrdiff_t columns, poller *w)
{
    for (ptrdiff_t n = rows.begin; n < rows.end && !should_stop(w, MOVE_WORK * columns); n++)
        copy_rows(to, 0, from, (range){n, n + 1}, (range){0, columns});
}

/* ---- forward ---- */

static void forward_task(call *c, const worker *w)
{
    for (ptrdiff_t which = w->directions.begin; which < w->directions.end; which++) forward_block(&c->d[which], w, c->t0, c->t1, c->rows);
}

static void set_forward(call *c, ptrdiff_t layer, int which, view x, view y)
{
    const rnnfast_problem *p = c->problem;
    const shape *s = &c->s;
    const extent *e = &c->e;
    ptrdiff_t state = layer * s->D + which;
    direction *d = set_direction(c, layer, which, x, y, weights_at(&c->packed, s, layer, which, 0));
    d->h_n = state_of(p->h_n, state, e->N, s->P, NULL);
    d->c_n = state_of(p->c_n, state, e->N, s->H, NULL);
    if (!d->gates.at) d->gates = in_order(p, e, d->own->gates, s->gates_row);
    if (!d->keeps) {
        d->c = view_of(d->c_n.at, e->N, 0, s->H);
        d->aux = view_of(d->own->aux, e->N, 0, s->H_row);
    }
}

/* Copies for each row the state after the last step that it takes, or the initial state if it takes none. */
static void take_last(const direction *d, poller *w)
{
    ptrdiff_t end = d->N;
    for (ptrdiff_t t = d->begin ? 0 : d->T; end; t++) {
        ptrdiff_t begin = rows_at(d, t);
        for (ptrdiff_t n = begin; n < end && !should_stop(w, MOVE_WORK * (d->s.P + d->s.H)); n++) {
            memmove(row_at(&d->h_n, 0, n), before(&d->y, &d->h0, t, n), (size_t)d->s.P * sizeof(REAL));
            if (d->s.has_c) memmove(row_at(&d->c_n, 0, n), before(&d->c, &d->c0, t, n), (size_t)d->s.H * sizeof(REAL));
        }
        end = begin;
    }
}

static void forward(const rnnfast_problem *p)
{
    call c;
    start_stack(&c, p, 0);
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
                run(&c, forward_task);
            }
        }
        for (int which = 0; which < s->D; which++) take_last(&c.d[which], &c.poller);
        if (!last) x = masked_input(&c, layer + 1, y, p->tape ? c.work.masked : y.at);
    }
    finish_stack(&c);
}

/* ---- backward ---- */

static void backward_task(call *c, const worker *w)
{
    for (ptrdiff_t which = w->directions.begin; which < w->directions.end; which++) backward_block(&c->d[which], w, c->t0, c->t1, c->rows);
}

static void sum_task(call *c, const worker *w)
{
    ptrdiff_t total = rows_between(c->d, c->t0, c->t1);
    for (ptrdiff_t which = w->directions.begin; which < w->directions.end; which++)
        for (ptrdiff_t r = 0; r < total && !*w->stopped; r += SUM_ROWS) sum_rows(&c->d[which], w, c->t0, r, min_of(SUM_ROWS, total - r));
}

static void set_backward(call *c, ptrdiff_t layer, int which, view x, view y, view dy, view dx)
{
    const rnnfast_problem *p = c->problem;
    const shape *s = &c->s;
    const scratch *own = &c->work.of[which];
    ptrdiff_t N = c->e.N, state = layer * s->D + which;
    direction *d = set_direction(c, layer, which, x, y, weights_at(&c->packed, s, layer, which, 1));
    if (!d->gates.at) d->gates = in_order(p, &c->e, c->work.zeros, 0);
    d->dx = as_taken(p, dx, which);
    d->dy = shifted(as_taken(p, dy, which), which * s->P);
    d->dh_of_all = as_taken(p, shifted(view_of(p->dh, p->N, p->dh_step, p->dh_row), state * p->dh_state), which);
    d->dh0 = state_of(p->dh0, state, N, s->P, NULL);
    d->dc0 = state_of(p->dc0, state, N, s->H, NULL);
    d->dgates = in_order(p, &c->e, own->dgates, s->dgates_row);
    d->dh_steps = in_order(p, &c->e, own->dh_steps, s->P_row);
    d->dh = view_of(own->dh, N, 0, s->P_row);
    d->dc = view_of(own->dc, N, 0, s->H_row);
    d->daux = view_of(own->daux, N, 0, s->H_row);
    d->gradients = p->dparameters + RNNFAST_KINDS * state;
    view dh_n = state_of(p->dh_n, state, N, s->P, c->work.zeros), dc_n = state_of(p->dc_n, state, N, s->H, c->work.zeros);
    copy_state(&d->dh, &dh_n, c->rows, s->P, &c->poller);
    if (s->has_c) copy_state(&d->dc, &dc_n, c->rows, s->H, &c->poller);
}

/* The start of the block of steps that ends at t1. */
static ptrdiff_t block_begin(const rnnfast_problem *p, ptrdiff_t t1, ptrdiff_t *block)
{
    if (p->order) return p->order->edges[--*block];
    ptrdiff_t steps = SUM_ROWS > p->N ? SUM_ROWS / p->N : 1;
    return (t1 - 1) / steps * steps;
}

COMPACT void backward(const rnnfast_problem *p)
{
    call c;
    start_stack(&c, p, 1);
    c.rows = (range){0, c.e.N};
    const shape *s = &c.s;
    view dy = view_of(p->dy, p->N, p->dy_step, p->dy_row);
    for (ptrdiff_t layer = s->L - 1; layer >= 0 && !c.stopped; layer--) {
        view y = layer < s->L - 1 ? layer_output(&c, layer) : view_of(p->y, p->N, p->y_step, p->y_row);
        view x = layer ? masked_input(&c, layer, layer_output(&c, layer - 1), c.work.masked) : view_of(p->x, p->N, p->x_step, p->x_row);
        view dx = layer ? between_layers(&c, c.work.between[s->L > 2 ? layer % 2 : 0]) : view_of(p->dx, p->N, p->dx_step, p->dx_row);
        view second_dx = like_x(p, c.work.second_dx, input_width(s, layer));
        for (int which = 0; which < s->D; which++) set_backward(&c, layer, which, x, y, dy, which ? second_dx : dx);
        ptrdiff_t block = p->order ? p->order->blocks : 0;
        for (c.t1 = c.e.T; c.t1 > 0; c.t1 = c.t0) {
            c.t0 = block_begin(p, c.t1, &block);
            for (int which = 0; p->order && which < s->D; which++)
                c.d[which].dgates.begin = c.d[which].dh_steps.begin = p->order->begin + c.t0;
            run(&c, backward_task);
            run(&c, sum_task);
        }
        for (int which = 0; which < s->D; which++) {
            const direction *d = &c.d[which];
            copy_state(&d->dh0, &d->dh, c.rows, s->P, &c.poller);
            if (s->has_c) copy_state(&d->dc0, &d->dc, c.rows, s->H, &c.poller);
        }
        combine(&c, layer, dx, dx, second_dx);
        dy = dx;
    }
    finish_stack(&c);
}
