/* Forward through a block of steps, for one direction of one layer.
 *
 * First the input product bias + W_ih x of the whole block, then, step by step, the stages of the cell. Without a tape, all blocks
 * reuse one block of gates, so inference and training run the same code.
 *
 * Order of a sum: bias_ih + bias_hh, then the features of x in order, then the units of h in order.
 * Aliasing: x, y, gates, c and aux do not overlap.
 */
#pragma once

#include "schedule.h"

/* Whether a product of some columns of the gates buffer may be written up to a whole vector: after it there is only padding. */
static int is_whole(const shape *s, int first, int count)
{
    if (s->H_gate % LANES == 0) return 1;
    return first + count == s->columns && first * s->H_gate + round_up(count * s->H_gate, LANES) <= s->gates_row;
}

static product input_product(const direction *d, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t slot, range rows)
{
    product p = {.rows = rows_of_block(d, t0, t1, rows),
                 .K = d->K,
                 .columns = d->s.gates * d->s.H_gate,
                 .b = d->w.w_ih,
                 .from = FROM_ROW,
                 .start = d->w.bias,
                 .whole = is_whole(&d->s, 0, d->s.gates)};
    p.a = window(&d->x, t0, rows);
    p.c = window(&d->gates, slot, rows);
    return p;
}

/* The product of a stage, for any step; aim() sets the step. */
static product stage_product(const direction *d, int i, range rows)
{
    const stage *g = &d->s.cell->stage[i];
    product p = {.rows = rows.end - rows.begin, .K = stage_source(&d->s, g), .columns = stage_columns(&d->s, g, 0), .b = d->w.w[i]};
    p.a = g->from_aux ? d->aux : d->y;
    p.c = g->count ? d->gates : d->y;
    p.a.N = p.c.N = p.rows;
    p.from = g->count ? FROM_C : FROM_ZERO;
    p.whole = g->count && is_whole(&d->s, g->first, g->count);
    return p;
}

/* Points the operands of a product at step t of some rows; slot is the step of d->gates. Only members that change are written: building
 * the product again for each step would cost 20 ns, a sixth of a step of an RNN with H = 64. */
static void aim(product *p, const direction *d, const stage *g, ptrdiff_t t, ptrdiff_t slot, range rows)
{
    p->rows = rows.end - rows.begin;
    if (g->from_aux) view_from(&p->a, &d->aux, t, rows.begin);
    else if (t) view_from(&p->a, &d->y, t - 1, rows.begin);
    else view_from(&p->a, &d->h0, 0, rows.begin);
    view_from(&p->c, g->count ? &d->gates : &d->y, g->count ? slot : t, rows.begin);
    if (g->count) p->c.at += g->first * d->s.H_gate;
    p->from_last = from_last(t);
}

/* Columns without an input product start from their bias. */
static void fill_bias_columns(const direction *d, ptrdiff_t t, ptrdiff_t slot, range rows, range units)
{
    size_t bytes = (size_t)(units.end - units.begin) * sizeof(REAL);
    for (int b = d->s.gates; b < d->s.columns; b++) {
        ptrdiff_t j = b * d->s.H_gate + units.begin;
        range taking = rows_taking(d, t, rows);
        for (ptrdiff_t n = taking.begin; n < taking.end; n++) memcpy(row_at(&d->gates, slot, n) + j, d->w.bias + j, bytes);
    }
}

/* Whether a worker's part of a stage's product covers exactly the columns of its units: gates must begin at whole vectors. */
static int has_own_columns(const direction *d, const stage *g)
{
    return g->count && d->s.H_gate % LANES == 0;
}

static void multiply_stage(const direction *d, const product *p, const stage *g, const share *own, poller *w)
{
    range units = columns_of(d->s.H_gate, own->k, own->n);
    if (own->n == 1 || !has_own_columns(d, g)) {
        multiply(p, all_tiles(p), columns_of(p->columns, own->k, own->n), w);
        return;
    }
    for (int i = 0; i < g->count; i++) {
        ptrdiff_t gate = p->from_last ? g->count - 1 - i : i;
        range columns = {gate * d->s.H_gate + units.begin, gate * d->s.H_gate + units.end};
        multiply(p, all_tiles(p), columns, w);
    }
}

static void forward_block(const direction *d, const worker *w, ptrdiff_t t0, ptrdiff_t t1, range all_rows)
{
    const cell *cell = d->s.cell;
    const int stages = d->s.stages;
    ptrdiff_t first = d->keeps && d->s.keeps_gates ? 0 : t0;
    share own = take_share(d, w, rows_taking(d, t0, all_rows));
    if (!own.n) return;
    range rows = own.rows, units = columns_of(d->s.H, own.k, own.n);
    product input = input_product(d, t0, t1, t0 - first, rows);
    multiply(&input, all_tiles(&input), columns_of(input.columns, own.k, own.n), w->poller);
    if (*w->stopped) return;
    for (ptrdiff_t t = t0; t < t1; t++) fill_bias_columns(d, t, t - first, rows, units);
    if (own.n > 1) barrier(w);
    product p[MOST_STAGES];
    for (int i = 0; i < stages; i++) p[i] = stage_product(d, i, rows);
    for (ptrdiff_t t = t0; t < t1; t++) {
        rows = rows_taking(d, t, rows);
        if (rows.begin == rows.end) return;
        for (int i = 0; i < stages; i++) {
            const stage *g = &cell->stage[i];
            aim(&p[i], d, g, t, t - first, rows);
            multiply_stage(d, &p[i], g, &own, w->poller);
            if (own.n > 1 && !has_own_columns(d, g)) barrier(w);
            if (!g->forward) continue;
            for (ptrdiff_t r = rows.begin; r < rows.end; r++) {
                if (should_stop(w->poller, POINT_WORK * d->s.H_row)) return;
                point at;
                point_at(&at, d, t, t - first, r);
                g->forward(&at, units);
            }
            if (own.n > 1) barrier(w);
        }
    }
}
