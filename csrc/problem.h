/* From the caller's problem to the call that the engine runs: views of arrays and tape, the workspace, and the directions of a layer.
 *
 * Aliasing: views refer to the caller's memory and own nothing. Cost: a few hundred instructions per call and direction of a layer.
 */
#ifndef RNNFAST_PROBLEM_H
#define RNNFAST_PROBLEM_H

#include "schedule.h"

/* ---- views of the caller's arrays and of the tape ---- */

/* The state of a layer and direction in [L*D, N, columns]; if there is none, a row of zeros for all rows. */
static view state_of(const void *states, ptrdiff_t which, ptrdiff_t N, ptrdiff_t columns, const REAL *zeros)
{
    return states ? view_of((const REAL *)states + which * N * columns, N, 0, columns) : view_of(zeros, N, 0, 0);
}

static int is_reverse(const rnnfast_problem *p, int which)
{
    return p->stack.directions == 2 ? which == 1 : p->stack.reverse;
}

/* Rows one after the other, in the order in which a direction takes them. */
static view in_order(const rnnfast_problem *p, const extent *e, const REAL *at, ptrdiff_t row)
{
    view v = view_of(at, e->N, e->N * row, row);
    if (p->order) v.begin = p->order->begin;
    return v;
}

/* An array like x, as a direction takes its steps. Between layers of one direction, rows are in that order already. */
static view as_taken(const rnnfast_problem *p, view v, int which)
{
    int reverse = is_reverse(p, which);
    if (!p->order) return reverse ? reversed(v, p->T) : v;
    if (!v.begin) {
        v.begin = p->order->begin;
        v.positions = p->order->positions[reverse];
    }
    return v;
}

/* An array like x, for work that may take the rows in any order. */
static view in_any_order(const rnnfast_problem *p, view v)
{
    return p->order ? as_taken(p, v, 0) : v;
}

/* Outputs of a layer before the last, or their gradient. */
static view between_layers(const call *c, const REAL *at)
{
    const rnnfast_problem *p = c->problem;
    ptrdiff_t columns = c->s.D * c->s.P;
    return p->order && c->s.D == 1 ? in_order(p, &c->e, at, columns) : view_of(at, p->N, p->N * columns, columns);
}

/* Outputs of a layer before the last: on the tape, or in one of two buffers in turn. */
static view layer_output(const call *c, ptrdiff_t layer)
{
    return between_layers(c, c->tape.base ? place_output(&c->tape, &c->s, &c->e, layer) : c->work.between[layer % 2]);
}

/* ---- calls ---- */

static double stack_work(const shape *s, const extent *e)
{
    double of_row = (double)s->gates * s->H * (s->I + s->P + (s->L - 1.0) * (s->D + 1.0) * s->P);
    return of_row * s->D * e->rows;
}

static workspace place_workspace(const call *c, void *base, workspace (*lay_out)(arena *, const shape *, const extent *))
{
    arena a = {base, 0, 0};
#if !defined(NDEBUG)
    arena counted = {0};
    lay_out(&counted, &c->s, &c->e);
    a.limit = counted.used;
#endif
    return lay_out(&a, &c->s, &c->e);
}

static void check_promises(const rnnfast_problem *p)
{
    assert(p->T >= 1 && p->N >= 1 && p->threads >= 1);
    assert(p->stack.directions == 1 || (p->stack.directions == 2 && !p->stack.reverse));
    assert((uintptr_t)p->workspace % RNNFAST_ALIGNMENT == 0);
    (void)p;
}

static void start_stack(call *c, const rnnfast_problem *p, workspace (*lay_out)(arena *, const shape *, const extent *))
{
    check_promises(p);
    c->problem = p;
    c->stopped = 0;
    c->s = shape_of(&p->stack);
    c->e = extent_of(p->T, p->N, p->order, c->s.D);
    c->tape.base = NULL;
    if (p->tape) c->tape = count_tape(&c->s, &c->e, p->tape);
    c->work = place_workspace(c, p->workspace, lay_out);
    memset(c->work.zeros, 0, (size_t)c->s.H_row * sizeof(REAL));
    start(c, p->threads, stack_work(&c->s, &c->e), &p->poll);
}

static void finish_stack(call *c, workspace (*lay_out)(arena *, const shape *, const extent *))
{
    finish(c);
#if defined(HAS_RED_ZONES)
    arena counted = {0};
    lay_out(&counted, &c->s, &c->e);
    remove_red_zones(c->problem->workspace, counted.used);
    if (c->tape.base) remove_red_zones(c->tape.base, tape_offset(&c->tape, &c->s, c->s.L * c->s.D));
    remove_red_zones(c->packed.base, packed_offset(&c->packed, &c->s, c->s.L, 0));
#else
    (void)lay_out;
#endif
}

/* What forward and backward share: shape, initial states, and the tape if there is one. */
static void set_direction(call *c, direction *d, ptrdiff_t layer, int which)
{
    const rnnfast_problem *p = c->problem;
    const shape *s = &c->s;
    const extent *e = &c->e;
    ptrdiff_t state = layer * s->D + which;
    memset(d, 0, sizeof *d);
    d->s = *s;
    d->T = e->T;
    d->N = e->N;
    d->K = input_width(s, layer);
    d->keeps = p->tape != NULL;
    if (p->order) d->begin = p->order->begin;
    d->options.functions = p->stack.activations[s->D == 2 ? which : 0];
    d->options.clip = (REAL)p->stack.clip;
    d->options.coupled = p->stack.coupled;
    d->own = &c->work.of[which];
    d->h0 = state_of(p->h0, state, e->N, s->P, c->work.zeros);
    d->c0 = state_of(p->c0, state, e->N, s->H, c->work.zeros);
    if (p->tape) {
        kept k = place_kept(&c->tape, s, e, state);
        if (k.gates) d->gates = in_order(p, e, k.gates, s->gates_row);
        if (k.c) d->c = in_order(p, e, k.c, s->H_row);
        if (k.aux) d->aux = in_order(p, e, k.aux, s->H_row);
    }
}

#endif
