/* Forward through a block of steps, for one direction of one layer.
 *
 * First the input product bias + W_ih x of the whole block, then, step by step, the stages of the cell. Without a tape, all blocks
 * reuse one block of gates, so inference and training run the same code. A row that a worker has to itself takes its steps without lists
 * of rows (forward_row), by the same products and pointwise parts.
 *
 * With recurrent dropout, products with weight_hh read copies of their rows times a mask. The mask of a row, unit and direction is the same
 * for all steps: Y. Gal and Z. Ghahramani, "A theoretically grounded application of dropout in recurrent neural networks", 2016.
 *
 * Order of a sum: bias_ih + bias_hh, then the features of x in order, then the units of h in order.
 * Aliasing: x, y, gates, c and aux do not overlap.
 */
#pragma once

#include "zoneout.h"

enum { FEW_FEATURES = 8 }; /* of x that a single row multiplies step by step */

/* Whether a product of some columns of the gates buffer may be written up to a whole vector: after it there is only padding. */
static int is_whole(const shape *s, int first, int count)
{
    if (s->H_gate % LANES == 0) return 1;
    return first + count == s->columns && first * s->H_gate + round_up(count * s->H_gate, LANES) <= s->gates_row;
}

/* The input product of a layer with K features, without rows. */
static product input_product(const shape *s, const weights *w, ptrdiff_t K)
{
    product p = {.K = K, .columns = s->gates * s->H_gate, .b = w->w_ih, .weights = s->weights, .from = FROM_ROW, .start = w->bias};
    p.whole = is_whole(s, 0, s->gates);
    return p;
}

/* The product of a stage, without rows. */
static product stage_product(const shape *s, const weights *w, int i)
{
    const stage *g = &s->cell->stage[i];
    product p = {.K = stage_source(s, g), .columns = stage_columns(s, g, 0), .b = w->w[i], .from = g->count ? FROM_C : FROM_ZERO};
    p.weights = s->weights;
    p.whole = g->count && is_whole(s, g->first, g->count);
    return p;
}

/* Gives a stage's product some rows, at any step; aim() sets the step. */
static void set_rows(product *p, const direction *d, const stage *g, range rows)
{
    p->rows = rows.end - rows.begin;
    p->a = g->from_aux ? d->aux : d->y;
    p->c = g->count ? d->gates : *d->h_out;
    p->a.N = p->c.N = p->rows;
}

/* Points the operands of a product at step t of some rows; slot is the step of d->gates. Only members that change are written: building
 * the product again for each step would cost 20 ns, a sixth of a step of an RNN with H = 64. */
static void aim(product *p, const direction *d, const stage *g, ptrdiff_t t, ptrdiff_t slot, range rows)
{
    p->rows = rows.end - rows.begin;
    if (g->from_aux) view_from(&p->a, &d->aux, t, rows.begin);
    else if (t) view_from(&p->a, &d->y, t - 1, rows.begin);
    else view_from(&p->a, &d->h0, 0, rows.begin);
    view_from(&p->c, g->count ? &d->gates : d->h_out, g->count ? slot : t, rows.begin);
    if (g->count) p->c.at += g->first * d->s.H_gate;
    p->from_last = from_last(t);
}

/* Columns of a row without an input product start from their bias. */
static void fill_bias_columns(const shape *s, REAL *gates, const REAL *bias, range units)
{
    for (int b = s->gates; b < s->columns; b++)
        for (ptrdiff_t j = units.begin, at = b * s->H_gate + j; j < units.end; j += LANES, at += LANES) {
            ptrdiff_t lanes = min_of(LANES, units.end - j);
            put_gate(gates + at, get_gate(bias + at, lanes), lanes);
        }
}

/* Whether a worker's part of a stage's product covers exactly the columns of its units: gates must begin at whole vectors. */
static int has_own_columns(const direction *d, const stage *g)
{
    return g->count && d->s.H_gate % LANES == 0;
}

/* Points a product at copies of its rows times their masks. The workers that share the units write them together. This function and
 * mask_rows_back() are separate to keep vectors out of the frames of the time loops, which gcc 12 misaligns under AddressSanitizer with
 * detect_stack_use_after_return. */
SEPARATE void mask_rows(product *p, const direction *d, const stage *g, ptrdiff_t t, range rows, const share *own, const worker *w)
{
    const range columns = columns_of(p->K, own->k, own->n);
    for (ptrdiff_t r = rows.begin; r < rows.end && !should_stop(w->poller, MOVE_WORK * p->K); r++) {
        const REAL *from = g->from_aux ? row_at(&d->aux, t, r) : before(&d->y, &d->h0, t, r), *mask = row_at(&d->masks, 0, r);
        REAL *to = row_at(&d->masked, 0, r);
        FOR_UNITS (j, lanes, columns) put(to + j, get(from + j, lanes) * get(mask + j, lanes), lanes);
    }
    view_from(&p->a, &d->masked, 0, rows.begin);
    if (own->n > 1) barrier(w);
}

static void multiply_stage(const direction *d, const product *p, const stage *g, const share *own, poller *w)
{
    range units = columns_of(d->s.H_gate, own->k, own->n);
    if (own->n == 1 || !has_own_columns(d, g)) {
        multiply_weights(p, all_tiles(p), columns_of(p->columns, own->k, own->n), w);
        return;
    }
    for (int i = 0; i < g->count; i++) {
        ptrdiff_t gate = p->from_last ? g->count - 1 - i : i;
        range columns = {gate * d->s.H_gate + units.begin, gate * d->s.H_gate + units.end};
        multiply_weights(p, all_tiles(p), columns, w);
    }
}

/* ---- a single row ---- */

/* The products of a step. */
typedef struct {
    product input, stages[MOST_STAGES];
} products;

static products products_of(const shape *s, const weights *w, ptrdiff_t K)
{
    products p = {.input = input_product(s, w, K)};
    for (int i = 0; i < s->stages; i++)
        if (has_product(&s->cell->stage[i])) p.stages[i] = stage_product(s, w, i);
    return p;
}

/* A step of a row. x: multiplied by W_ih as well, unless it is NULL; gates then hold bias + W_ih x. A projection goes to `projected`. */
static void step_row(const shape *s, products *p, const point *at, const REAL *x, REAL *projected, int reads_from_last, poller *w)
{
    const range units = {0, s->H};
    fill_bias_columns(s, at->gates, p->input.start, units);
    for (int i = 0; i < s->stages; i++) {
        const stage *g = &s->cell->stage[i];
        product *stage = &p->stages[i];
        const REAL *source = g->from_aux ? at->aux : at->h_before;
        REAL *to = g->count ? at->gates + g->first * s->H_gate : projected;
        stage->from_last = reads_from_last;
        if (!has_product(g)) {
            if (x) multiply_row_weights(&p->input, x, at->gates, w);
        } else if (i == 0 && x) multiply_row_weights_twice(&p->input, x, at->gates, stage, source, to, w);
        else multiply_row_weights(stage, source, to, w);
        if (g->forward) g->forward(at, units);
    }
}

/* Row n of a batch without an order takes the steps t0 .. t1-1; slot: the step of d->gates that has the gates of t0. A step multiplies its
 * own x if that is short; otherwise W_ih is read once for the whole block. */
static void forward_row(const direction *d, const worker *w, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t slot, ptrdiff_t n)
{
    const shape *s = &d->s;
    const int in_steps = d->K <= FEW_FEATURES || t1 - t0 == 1;
    const ptrdiff_t x_step = d->x.step, y_step = d->y.step, gates_step = d->gates.step, aux_step = d->aux.step, c_step = d->c.step;
    const REAL *x = row_at(&d->x, t0, n);
    REAL *y = row_at(&d->y, t0, n);
    products p = products_of(s, &d->w, d->K);
    if (!in_steps) {
        product input = p.input;
        input.rows = t1 - t0;
        input.a = window(&d->x, t0, (range){n, n + 1});
        input.c = window(&d->gates, slot, (range){n, n + 1});
        multiply_weights(&input, all_tiles(&input), (range){0, input.columns}, w->poller);
    }
    point at = {0};
    point_at(&at, d, t0, slot, n);
    for (ptrdiff_t t = t0; t < t1 && !should_stop(w->poller, POINT_WORK * s->H_row); t++) {
        step_row(s, &p, &at, in_steps ? x : NULL, y, from_last(t), w->poller);
        at.h_before = y;
        x += x_step;
        y += y_step;
        at.gates += gates_step;
        at.aux += aux_step;
        at.h = s->projects ? at.aux : y;
        if (s->reads_x) at.x = x;
        if (!s->has_c) continue; /* no offset is added to NULL */
        at.c_before = at.c;
        at.c += c_step;
    }
}

/* ---- any rows ---- */

static void forward_block(const direction *d, const worker *w, ptrdiff_t t0, ptrdiff_t t1, range all_rows)
{
    const cell *cell = d->s.cell;
    const int stages = d->s.stages;
    ptrdiff_t first = d->keeps && d->s.keeps_gates ? 0 : t0;
    share own = take_share(d, w, rows_taking(d, t0, all_rows));
    if (!own.n) return;
    range rows = own.rows, units = columns_of(d->s.H, own.k, own.n);
    if (!d->begin && !d->masks.at && !d->s.zones && own.n == 1 && rows.end - rows.begin == 1) {
        forward_row(d, w, t0, t1, t0 - first, rows.begin);
        return;
    }
    products p = products_of(&d->s, &d->w, d->K);
    p.input.rows = rows_of_block(d, t0, t1, rows);
    p.input.a = window(&d->x, t0, rows);
    p.input.c = window(&d->gates, t0 - first, rows);
    multiply_weights(&p.input, all_tiles(&p.input), columns_of(p.input.columns, own.k, own.n), w->poller);
    if (*w->stopped) return;
    for (ptrdiff_t t = t0; t < t1 && d->s.gates < d->s.columns; t++) {
        range taking = rows_taking(d, t, rows);
        for (ptrdiff_t n = taking.begin; n < taking.end; n++) fill_bias_columns(&d->s, row_at(&d->gates, t - first, n), d->w.bias, units);
    }
    if (own.n > 1) barrier(w);
    for (int i = 0; i < stages; i++)
        if (has_product(&cell->stage[i])) set_rows(&p.stages[i], d, &cell->stage[i], rows);
    for (ptrdiff_t t = t0; t < t1; t++) {
        rows = rows_taking(d, t, rows);
        if (rows.begin == rows.end) return;
        for (int i = 0; i < stages; i++) {
            const stage *g = &cell->stage[i];
            if (has_product(g)) {
                aim(&p.stages[i], d, g, t, t - first, rows);
                if (is_masked(d, g)) mask_rows(&p.stages[i], d, g, t, rows, &own, w);
                multiply_stage(d, &p.stages[i], g, &own, w->poller);
                if (own.n > 1 && !has_own_columns(d, g)) barrier(w);
            }
            if (!g->forward) continue;
            for (ptrdiff_t r = rows.begin; r < rows.end; r++) {
                if (should_stop(w->poller, POINT_WORK * d->s.H_row)) return;
                point at;
                point_at(&at, d, t, t - first, r);
                g->forward(&at, units);
            }
            if (own.n > 1 && !d->s.elementwise) barrier(w);
        }
        if (d->s.zones) zone_out(d, t, rows, &own, w);
    }
}
