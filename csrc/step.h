/* A prepared step: everything but the arithmetic of one step is done in advance, in memory of the caller.
 *
 * A single row in one direction goes through the layers by forward.h's step_row(). More rows, two directions, or zoneout are a call of
 * forward() with one step and one thread, whose arguments are kept.
 *
 * Layout: the prepared_step, a step_layer for each layer, then the workspace of forward(), of which a single row uses the gates and aux.
 * Aliasing: h_n may be h0, and c_n may be c0; y and x overlap nothing. Pointwise parts write h and c where they read h_before and c_before.
 * Cost: besides its products and pointwise parts, a step of a layer takes some hundred instructions. No memory is allocated, no lock
 * taken, no thread woken and no system call made.
 */
#pragma once

#include "stack.h"

/* A layer, of a single row. */
typedef struct {
    products products;
    cell_options options;
} step_layer;

typedef struct {
    shape s;
    int is_single;
    int steps; /* so far, modulo 2 */
    REAL *gates, *aux, *zeros;
    step_layer *layers;
    rnnfast_problem problem; /* of any rows */
} prepared_step;

/* Lengths of the parts before the workspace, in elements. */
static ptrdiff_t elements_of(size_t bytes)
{
    return padded((ptrdiff_t)(bytes / sizeof(REAL)) + 1, ALIGN);
}

static ptrdiff_t length_of_layers(const rnnfast_stack *stack)
{
    return times(stack->layers, elements_of(sizeof(step_layer)));
}

COMPACT int step_size(const rnnfast_stack *stack, ptrdiff_t N, size_t *bytes)
{
    rnnfast_sizes of_call;
    if (sizes(stack, 1, N, NULL, &of_call)) return 1;
    ptrdiff_t before = plus(elements_of(sizeof(prepared_step)), length_of_layers(stack));
    ptrdiff_t all = plus(before, (ptrdiff_t)(of_call.forward_workspace / sizeof(REAL)));
    *bytes = (size_t)all * sizeof(REAL);
    return all == MAX_ELEMENTS;
}

COMPACT void prepare_step(const rnnfast_stack *stack, ptrdiff_t N, const void *packed, void *memory)
{
    assert(memory && (uintptr_t)memory % RNNFAST_ALIGNMENT == 0);
    prepared_step *p = memory;
    REAL *layers = (REAL *)memory + elements_of(sizeof *p), *rest = layers + length_of_layers(stack);
    memset(p, 0, sizeof *p);
    p->s = shape_of(stack);
    p->is_single = N == 1 && stack->directions == 1 && !p->s.zones;
    p->layers = (step_layer *)(void *)layers;
    p->problem = (rnnfast_problem){.stack = *stack, .T = 1, .N = N, .threads = 1, .workspace = rest, .packed = packed};
    p->problem.x_step = p->problem.x_row = stack->I;
    p->problem.y_step = p->problem.y_row = stack->P * stack->directions;
    if (!p->is_single) return;
    const shape *s = &p->s;
    extent e = extent_of(1, 1, NULL, 1);
    parts weights_of_layers = parts_of_weights(s, packed, 0);
    workspace work;
    arena a = {rest, 0, MAX_ELEMENTS};
    lay_out_workspace(&work, &a, s, &e, 0);
    p->gates = work.of[0].gates;
    p->aux = work.of[0].aux;
    p->zeros = work.zeros;
    memset(p->zeros, 0, (size_t)s->H_row * sizeof(REAL));
    for (ptrdiff_t layer = 0; layer < s->L; layer++) {
        step_layer *l = &p->layers[layer];
        weights w = weights_at(&weights_of_layers, s, layer, 0, 0);
        l->products = products_of(s, &w, input_width(s, layer));
        l->options = (cell_options){p->problem.stack.activations[0], (REAL)stack->clip, stack->coupled, w.extra};
    }
    remove_red_zones(rest, a.used);
    remove_red_zones(packed, length_of(&weights_of_layers));
}

/* The arrays of a step, one after the other for all layers and rows. */
static void step_rows(const prepared_step *prepared, const rnnfast_step *arrays)
{
    rnnfast_problem p = prepared->problem;
    p.x = arrays->x;
    p.y = arrays->y;
    p.h0 = arrays->h0;
    p.c0 = arrays->c0;
    p.h_n = arrays->h_n;
    p.c_n = arrays->c_n;
    forward(&p);
}

static void step_single_row(prepared_step *p, const rnnfast_step *arrays)
{
    rnnfast_flag stopped = 0;
    poller w = start_poller(&stopped, NULL);
    const shape *s = &p->s;
    const REAL *x = arrays->x, *h0 = arrays->h0, *c0 = arrays->c0;
    REAL *h_n = arrays->h_n, *c_n = arrays->c_n;
    p->steps = !p->steps;
    for (ptrdiff_t layer = 0; layer < s->L; layer++) {
        step_layer *l = &p->layers[layer];
        REAL *h = layer == s->L - 1 ? arrays->y : h_n;
        point at = {.H = s->H, .H_gate = s->H_gate, .gates = p->gates, .aux = p->aux, .options = &l->options};
        at.h = s->projects ? p->aux : h;
        at.h_before = h0 ? h0 : p->zeros;
        at.c_before = c0 ? c0 : p->zeros;
        at.c = c_n;
        at.x = x;
        step_row(s, &l->products, &at, x, h, p->steps, &w);
        x = h;
        if (layer == s->L - 1)
            FOR_UNITS (j, lanes, ((range){0, s->P})) put(h_n + j, get(h + j, lanes), lanes);
        h_n += s->P;
        if (h0) h0 += s->P;
        if (!s->has_c) continue;
        c_n += s->H;
        if (c0) c0 += s->H;
    }
    finish_poller(&w);
}

static void step(void *prepared, const rnnfast_step *arrays)
{
    prepared_step *p = prepared;
    if (p->is_single) step_single_row(p, arrays);
    else step_rows(p, arrays);
}
