/* The engine of one element type and instruction set: the table that a stub exports, and its functions other than the time loops.
 *
 * A stub (f32_avx2.c ...) defines REAL_BITS, LANES, TILE_VECS, ISA and TABLE, and includes this file. Everything but TABLE is static, so
 * the same source is compiled once for each stub, with the stub's flags. Includes run one way: engine -> {step -> stack, linear} ->
 * {forward, backward} -> zoneout -> schedule -> {layout, products -> integers -> narrow -> gemm} -> {arena, caches, cells, packing} ->
 * {activations, view} -> simd.
 */
#pragma once

#include "linear.h"
#include "step.h"

/* ---- pack: weights in the order in which products read them, gates in the order of the cell's columns, biases summed ---- */

/* The matrices of gate b of n gates. */
static destination gate_of(const shape *s, REAL *packed, REAL *back, int b, int n)
{
    ptrdiff_t j0 = b * s->H_gate, columns = n * s->H_gate;
    return (destination){packed, back, columns, j0, b + 1 < n ? j0 + s->H_gate : round_up(columns, LANES), n * s->H, b * s->H, s->weights};
}

/* A worker's share of a layer and direction. The members of a form that is not requested are NULL. */
COMPACT void pack_direction(const shape *s, ptrdiff_t K, const void *const *parameters, const weights *packed, const weights *back,
                            const worker *w)
{
    const REAL *w_ih = parameters[0], *w_hh = parameters[1], *b_ih = parameters[2], *b_hh = parameters[3], *w_hr = parameters[4];
    const cell *cell = s->cell;
    ptrdiff_t H = s->H;
    int k = w->thread, n = w->threads;
    for (int b = 0; b < s->gates; b++) {
        destination to = gate_of(s, packed->w_ih, back->w_ih, b, s->gates);
        pack_weight(&to, K, H, w_ih + cell->ih[b] * H * K, k, n, w->poller);
    }
    for (int i = 0; i < s->stages; i++) {
        const stage *g = &cell->stage[i];
        ptrdiff_t source = stage_source(s, g);
        for (int b = 0; b < g->count; b++) {
            destination to = gate_of(s, packed->w[i], back->w[i], b, g->count);
            pack_weight(&to, source, H, w_hh + cell->hh[g->first + b] * H * source, k, n, w->poller);
        }
        if (g->count || !has_product(g)) continue;
        destination to = matrices_of(packed->w[i], back->w[i], s->P, s->weights);
        pack_weight(&to, source, s->P, w_hr, k, n, w->poller);
    }
    if (k) return;
    if (packed->bias) memset(packed->bias, 0, (size_t)s->gates_row * sizeof(REAL));
    for (int b = 0; packed->bias && b < s->columns; b++) {
        int ih = b_ih ? cell->ih[b] : -1, hh = b_hh ? cell->hh[b] : -1;
        for (ptrdiff_t j = 0; j < H; j++)
            packed->bias[b * s->H_gate + j] = (ih < 0 ? 0 : b_ih[ih * H + j]) + (hh < 0 ? 0 : b_hh[hh * H + j]);
    }
    if (packed->extra) memcpy(packed->extra, parameters[5], (size_t)s->extra * sizeof(REAL));
    if (back->extra) memcpy(back->extra, parameters[5], (size_t)s->extra * sizeof(REAL));
}

static void pack_task(call *c, const worker *w)
{
    const shape *s = &c->s;
    for (ptrdiff_t layer = 0; layer < s->L; layer++)
        for (ptrdiff_t d = 0; d < s->D; d++) {
            const void *const *parameters = c->parameters + RNNFAST_KINDS * (layer * s->D + d);
            weights packed = {0}, back = {0};
            if (c->packed.base) packed = weights_at(&c->packed, s, layer, d, 0);
            if (c->packed_back.base) back = weights_at(&c->packed_back, s, layer, d, 1);
            pack_direction(s, input_width(s, layer), parameters, &packed, &back, w);
        }
}

COMPACT void pack(const rnnfast_stack *stack, const void *const *parameters, void *packed, void *packed_back, int threads,
                  rnnfast_poll poll)
{
    call c;
    c.s = shape_of(stack);
    c.parameters = parameters;
    c.packed = parts_of_weights(&c.s, packed, 0);
    c.packed_back = parts_of_weights(&c.s, packed_back, 1);
    start(&c, threads, (double)MOVE_WORK * length_of(&c.packed), &poll);
    run(&c, pack_task);
    finish(&c);
    remove_red_zones(packed, length_of(&c.packed));
    remove_red_zones(packed_back, length_of(&c.packed_back));
}

/* ---- ensembles ----
 *
 * Members are dealt to the threads in rounds, so that a worker that comes late joins at the next round. Each member is a call with one
 * thread, which does not use the group. Cost: besides the calls, a copy of the problem for each member. */

enum {
    ROUNDS = 8,
    MEMBER_WORK = 1 << 16 /* multiply-adds that take as long as the set-up of a member's call: about 2 us */
};

static void *of_member(const void *at, ptrdiff_t stride, ptrdiff_t m)
{
    return at ? (char *)at + m * stride : NULL;
}

/* The poll of a member's call. Only the calling thread's worker asks the caller. */
static int is_member_stopped(void *context)
{
    const worker *w = context;
    if (!*w->stopped && is_stop_requested(w->poller)) *w->poller->stopped = 1;
    return *w->stopped;
}

static rnnfast_problem problem_of(const rnnfast_members *all, ptrdiff_t m, const worker *w)
{
    rnnfast_problem p = all->problem;
    p.threads = 1;
    p.poll = (rnnfast_poll){is_member_stopped, (void *)w};
    p.workspace = of_member(p.workspace, all->workspace, w->thread);
    p.x = of_member(p.x, all->x, m);
    p.y = of_member(p.y, all->y, m);
    p.h0 = of_member(p.h0, all->h, m);
    p.c0 = of_member(p.c0, all->c, m);
    p.h_n = of_member(p.h_n, all->h, m);
    p.c_n = of_member(p.c_n, all->c, m);
    p.dh_n = of_member(p.dh_n, all->h, m);
    p.dc_n = of_member(p.dc_n, all->c, m);
    p.dh0 = of_member(p.dh0, all->h, m);
    p.dc0 = of_member(p.dc0, all->c, m);
    p.tape = of_member(p.tape, all->tape, m);
    p.packed = of_member(p.packed, all->packed, m);
    p.packed_back = of_member(p.packed_back, all->packed_back, m);
    p.dy = of_member(p.dy, all->dy, m);
    p.dx = of_member(p.dx, all->dx, m);
    if (p.dparameters) p.dparameters += m * RNNFAST_KINDS * p.stack.layers * p.stack.directions;
    return p;
}

/* Multiply-adds that take as long as a member. */
static double member_work(const rnnfast_problem *p)
{
    const rnnfast_stack *s = &p->stack;
    return MEMBER_WORK + (double)p->T * p->N * s->layers * s->directions * s->H * (s->I + s->P) * 4;
}

/* Forward, or, if there is a dx to write, backward. */
COMPACT void members_task(call *c, const worker *w)
{
    const rnnfast_members *all = c->members;
    const range own = part(c->rows.end - c->rows.begin, w->thread, w->threads);
    const double work = member_work(&all->problem);
    for (ptrdiff_t m = c->rows.begin + own.begin; m < c->rows.begin + own.end; m++) {
        rnnfast_problem p = problem_of(all, m, w);
        const void *const *parameters = all->parameters ? all->parameters + m * RNNFAST_KINDS * p.stack.layers * p.stack.directions : NULL;
        if (parameters) pack(&p.stack, parameters, (void *)p.packed, (void *)p.packed_back, 1, p.poll);
        if (p.dx) backward(&p);
        else forward(&p);
        if (should_stop(w->poller, work < POLL_WORK ? (ptrdiff_t)work : POLL_WORK)) return;
    }
}

static void run_members(const rnnfast_members *all)
{
    call c;
    c.s = shape_of(&all->problem.stack);
    c.members = all;
    start(&c, all->problem.threads, all->members * member_work(&all->problem), &all->problem.poll);
    const ptrdiff_t members = max_of(max_of(all->members / ROUNDS, c.group), 1);
    for (c.rows.begin = 0; c.rows.begin < all->members && !c.stopped; c.rows.begin = c.rows.end) {
        c.rows.end = min_of(c.rows.begin + members, all->members);
        run(&c, members_task);
    }
    finish(&c);
}

/* ---- the rest of the table ---- */

/* c of each step, from the tape. */
COMPACT void cells_of_tape(const rnnfast_problem *p, void *out)
{
    rnnfast_flag stopped = 0;
    poller w = start_poller(&stopped, &p->poll);
    shape s = shape_of(&p->stack);
    extent e = extent_of(p->T, p->N, p->order, s.D);
    parts tape = parts_of_tape(&s, &e, p->tape);
    for (ptrdiff_t state = 0; state < s.L * s.D; state++) {
        view from = in_order(p, &e, kept_at(&tape, &s, &e, state).c, s.H_row);
        view to = as_taken(p, like_x(p, (REAL *)out + state * p->T * p->N * s.H, s.H), (int)(state % s.D));
        for (ptrdiff_t r = 0; r < e.rows && !should_stop(&w, MOVE_WORK * (s.H + 1)); r++)
            memcpy(nth_row(&to, r), nth_row(&from, r), (size_t)s.H * sizeof(REAL));
    }
    finish_poller(&w);
    remove_red_zones(p->tape, length_of(&tape));
}

/* Adds dy at masked steps to the dy whose output they repeat. */
static void fold(const rnnfast_problem *p, void *dy)
{
    rnnfast_flag stopped = 0;
    poller w = start_poller(&stopped, &p->poll);
    ptrdiff_t P = p->stack.P;
    for (ptrdiff_t i = 0; i < p->order->masked_count && !should_stop(&w, MOVE_WORK * (P + 1)); i++) {
        const rnnfast_masked_step *m = &p->order->masked[i];
        REAL *of_row = (REAL *)dy + m->position.row * p->dy_row, *from = of_row + m->position.step * p->dy_step;
        for (int which = 0; which < p->stack.directions; which++, from += P, of_row += P) {
            ptrdiff_t step = is_reverse(p, which) ? m->after : m->before;
            if (step < 0) continue;
            for (ptrdiff_t j = 0; j < P; j++) of_row[step * p->dy_step + j] += from[j];
        }
    }
    finish_poller(&w);
}

static void sigmoid_of_array(const void *a, void *out, size_t count)
{
    range all = {0, (ptrdiff_t)count};
    float_mode caller = enter_float_mode();
    FOR_UNITS (j, lanes, all) put((REAL *)out + j, sigmoid(get((const REAL *)a + j, lanes)), lanes);
    leave_float_mode(caller);
}

static void tanh_of_array(const void *a, void *out, size_t count)
{
    range all = {0, (ptrdiff_t)count};
    float_mode caller = enter_float_mode();
    FOR_UNITS (j, lanes, all) put((REAL *)out + j, hyperbolic_tangent(get((const REAL *)a + j, lanes)), lanes);
    leave_float_mode(caller);
}

extern const rnnfast_table TABLE;
const rnnfast_table TABLE = {
    .isa = ISA,
    .item = sizeof(REAL),
    .cell_info = cell_info,
    .sizes = sizes,
    .pack = pack,
    .forward = forward,
    .backward = backward,
    .cells = cells_of_tape,
    .fold = fold,
    .linear_sizes = linear_sizes,
    .linear_pack = linear_pack,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
    .sigmoid = sigmoid_of_array,
    .tanh = tanh_of_array,
    .step_size = step_size,
    .prepare_step = prepare_step,
    .step = step,
    .members = run_members,
};
