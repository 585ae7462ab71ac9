/* The readout y = x W' + b, by the same micro-kernel.
 *
 * Layout: packed is W in panels, then the bias padded to whole vectors; the workspace of backward is W in the form that dx reads, then dy
 * in tiles and x in panels for SUM_ROWS rows. Order of the sums: as in forward.h and backward.h, chains from the first row on.
 */
#pragma once

#include "backward.h"

typedef struct {
    REAL *w, *bias;
    REAL *tiles, *panels; /* backward only */
} linear_layout;

static linear_layout lay_out_linear(arena *a, const rnnfast_linear *p, int back)
{
    ptrdiff_t R = min_of(p->M, SUM_ROWS);
    linear_layout m = {.w = reserve_weight(a, p->I, p->O, back, (int)p->weights)};
    if (!back) m.bias = reserve(a, padded(p->O, LANES));
    if (back) m.tiles = reserve(a, times(R, padded(p->O, LANES)));
    if (back) m.panels = reserve(a, times(R, padded(p->I, LANES)));
    return m;
}

COMPACT int linear_sizes(const rnnfast_linear *p, size_t *packed, size_t *backward_workspace)
{
    arena forward = {0}, backward = {0};
    if (!has_weights(p->weights)) return 1;
    lay_out_linear(&forward, p, 0);
    lay_out_linear(&backward, p, 1);
    *packed = (size_t)forward.used * sizeof(REAL);
    *backward_workspace = (size_t)backward.used * sizeof(REAL);
    return max_of(max_of(forward.used, backward.used), times(p->M, plus(p->I, p->O))) == MAX_ELEMENTS;
}

static void pack_linear_task(call *c, const worker *w)
{
    const rnnfast_linear *p = c->linear;
    arena a = {p->packed, 0, MAX_ELEMENTS};
    linear_layout packed = lay_out_linear(&a, p, 0);
    destination to = matrices_of(packed.w, NULL, p->O, (int)p->weights);
    pack_weight(&to, p->I, p->O, p->weight, w->k, w->n, w->poller);
    if (w->k) return;
    memset(packed.bias, 0, (size_t)round_up(p->O, LANES) * sizeof(REAL));
    if (p->bias) memcpy(packed.bias, p->bias, (size_t)p->O * sizeof(REAL));
}

static void linear_forward_task(call *c, const worker *w)
{
    const rnnfast_linear *p = c->linear;
    arena a = {p->packed, 0, MAX_ELEMENTS};
    linear_layout packed = lay_out_linear(&a, p, 0);
    product y = {.rows = p->M, .K = p->I, .columns = p->O, .b = packed.w, .from = FROM_ROW, .start = packed.bias};
    y.weights = (int)p->weights;
    y.a = matrix_view(p->x, p->x_row);
    y.c = matrix_view(p->y, p->y_row);
    multiply_weights(&y, part(tiles_of(p->M), w->k, w->n), (range){0, p->O}, w->poller);
}

static void linear_backward_task(call *c, const worker *w)
{
    const rnnfast_linear *p = c->linear;
    arena a = {p->workspace, 0, MAX_ELEMENTS};
    linear_layout own = lay_out_linear(&a, p, 1);
    ptrdiff_t I = p->I, O = p->O;
    range tiles = part(tiles_of(O), w->k, w->n), columns = columns_of(O, w->k, w->n);
    destination to = matrices_of(NULL, own.w, O, RNNFAST_FULL);
    pack_weight(&to, I, O, p->weight, w->k, w->n, w->poller);
    barrier(w);
    product dx = {.rows = p->M, .K = O, .columns = I, .b = own.w, .from = FROM_ZERO};
    dx.a = matrix_view(p->dy, p->dy_row);
    dx.c = matrix_view(p->dx, p->dx_row);
    multiply(&dx, part(tiles_of(p->M), w->k, w->n), (range){0, I}, w->poller);
    for (ptrdiff_t r = 0; r < p->M && !*w->stopped; r += SUM_ROWS) {
        ptrdiff_t R = min_of(SUM_ROWS, p->M - r);
        const REAL *dy = (const REAL *)p->dy + r * p->dy_row, *x = (const REAL *)p->x + r * p->x_row;
        range rows = part(R, w->k, w->n);
        barrier(w);
        pack_tiles(own.tiles, R, O, dy, p->dy_row, tiles, w->poller);
        for (ptrdiff_t i = rows.begin; i < rows.end && !should_stop(w->poller, MOVE_WORK * I); i++)
            pack_row(own.panels, R, i, I, x + i * p->x_row);
        barrier(w);
        add_outer(own.tiles, O, R, own.panels, I, p->dweight, tiles, w->poller);
        add_columns(dy, p->dy_row, R, columns, p->dbias, NULL, w->poller);
    }
}

static void run_linear(const rnnfast_linear *p, double rows, void (*task)(call *, const worker *))
{
    call c;
    arena packed = {0}, workspace = {0};
    c.linear = p;
    c.s.D = 1;
    start(&c, p->threads, rows * p->I * p->O, &p->poll);
    run(&c, task);
    finish(&c);
    lay_out_linear(&packed, p, 0);
    lay_out_linear(&workspace, p, 1);
    remove_red_zones(p->packed, packed.used);
    remove_red_zones(p->workspace, workspace.used);
}

static void linear_pack(const rnnfast_linear *p)
{
    run_linear(p, MOVE_WORK, pack_linear_task);
}

static void linear_forward(const rnnfast_linear *p)
{
    run_linear(p, (double)p->M, linear_forward_task);
}

static void linear_backward(const rnnfast_linear *p)
{
    run_linear(p, (double)p->M, linear_backward_task);
}
