/* The engine of one element type and instruction set: the table that a stub exports.
 *
 * A stub (f32_avx2.c ...) defines REAL_BITS, LANES, TILE_VECS, ISA and TABLE, and includes this file. Everything but TABLE is static, so
 * the same source is compiled once for each stub, with the stub's flags. Includes run one way: engine -> {stack, linear, weights} ->
 * {forward, backward, problem} -> schedule -> {layout, gemm} -> {arena, cells, packing} -> {activations, view, poll} -> {simd, range}.
 */
#ifndef RNNFAST_ENGINE_H
#define RNNFAST_ENGINE_H

#include "linear.h"
#include "stack.h"
#include "weights.h"

/* c of each step, from the tape. */
static void cells_of_tape(const rnnfast_problem *p, void *out)
{
    call c = {.problem = p, .s = shape_of(&p->stack)};
    c.e = extent_of(p->T, p->N, p->order, c.s.D);
    c.tape = count_tape(&c.s, &c.e, p->tape);
    for (ptrdiff_t state = 0; state < c.s.L * c.s.D; state++) {
        int which = (int)(state % c.s.D);
        direction *d = &c.d[which];
        set_direction(&c, d, state / c.s.D, which);
        view to = as_taken(p, view_of((REAL *)out + state * p->T * p->N * c.s.H, p->N, p->N * c.s.H, c.s.H), which);
        for (ptrdiff_t t = 0; t < d->T; t++)
            for (ptrdiff_t n = 0; n < rows_at(d, t); n++) memcpy(row_at(&to, t, n), row_at(&d->c, t, n), (size_t)c.s.H * sizeof(REAL));
    }
    remove_red_zones(p->tape, tape_offset(&c.tape, &c.s, c.s.L * c.s.D));
}

/* Adds dy at masked steps to the dy whose output they repeat. */
static void fold(const rnnfast_problem *p, void *dy)
{
    ptrdiff_t P = p->stack.P;
    for (ptrdiff_t i = 0; i < p->order->masked_count; i++) {
        const rnnfast_masked_step *m = &p->order->masked[i];
        REAL *of_row = (REAL *)dy + m->position.row * p->dy_row, *from = of_row + m->position.step * p->dy_step;
        for (int which = 0; which < p->stack.directions; which++, from += P, of_row += P) {
            ptrdiff_t step = is_reverse(p, which) ? m->after : m->before;
            if (step < 0) continue;
            for (ptrdiff_t j = 0; j < P; j++) of_row[step * p->dy_step + j] += from[j];
        }
    }
}

static void sigmoid_of_array(const void *a, void *out, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        ptrdiff_t lanes = min_of(LANES, (ptrdiff_t)(count - i));
        put((REAL *)out + i, sigmoid(get((const REAL *)a + i, lanes)), lanes);
    }
}

static void tanh_of_array(const void *a, void *out, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        ptrdiff_t lanes = min_of(LANES, (ptrdiff_t)(count - i));
        put((REAL *)out + i, hyperbolic_tangent(get((const REAL *)a + i, lanes)), lanes);
    }
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
};

#endif
