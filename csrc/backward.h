/* Backward through a block of steps, for one direction of one layer, and the gradients of its parameters.
 *
 * Steps run from last to first. Each runs the stages in reverse: a stage's pointwise part, then its product, if any, which turns dgates
 * into dh. Then dx and the sums for the weight gradients are computed for the whole block.
 *
 * Order of the sums: a weight gradient consists of chains over at most SUM_ROWS rows (step by step, rows of the batch within a step).
 * Each chain starts from zero, and chains are added from the last block to the first. Their boundaries depend on T and N only.
 * Aliasing: the tape is only read. Gradients of parameters accumulate; dx, dh and dc are assigned.
 */
#pragma once

#include "zoneout.h"

enum { POINTS = 16 }; /* rows whose addresses are computed at a time for sums of the extras */

/* Whether the gradient of h_before has a share in dh before the product that computes the rest. */
static int adds_to_dh(const direction *d, const stage *g)
{
    return !g->from_aux && (g->keeps_dh || d->s.zones);
}

static product stage_product_back(const direction *d, int i, range rows)
{
    const stage *g = &d->s.cell->stage[i];
    product p = {.K = stage_columns(&d->s, g, 1), .columns = stage_source(&d->s, g), .b = d->w.w[i], .whole = 1};
    p.from = adds_to_dh(d, g) ? FROM_C : FROM_ZERO;
    p.a = g->count ? d->dgates : window(d->dh_out, 0, rows);
    p.c = window(g->from_aux ? &d->daux : &d->dh, 0, rows);
    p.a.N = rows.end - rows.begin;
    if (is_masked(d, g)) p.from = FROM_ZERO, p.c = window(&d->masked, 0, rows); /* mask_rows_back() does the rest */
    else if (i == 0 && d->dy.at) p.plus = d->dy, p.plus.N = p.a.N;
    return p;
}

/* Points a product at step t of some rows. The product that computes dh adds the dy of the step that reads it. */
static void aim_back(product *p, const direction *d, int i, ptrdiff_t t, ptrdiff_t slot, range rows)
{
    const stage *g = &d->s.cell->stage[i];
    p->rows = rows.end - rows.begin;
    if (g->count) {
        view_from(&p->a, &d->dgates, slot, rows.begin);
        p->a.at += g->first * d->s.H;
    }
    if (i == 0 && !is_masked(d, g)) {
        if (t && d->dy.at) view_from(&p->plus, &d->dy, t - 1, rows.begin);
        else p->plus.at = NULL;
    }
    p->from_last = from_last(slot);
}

/* After a product that reads masked rows: their gradient, times their masks, in place of or in addition to dh or daux, and dy. */
SEPARATE void mask_rows_back(const direction *d, int i, ptrdiff_t t, range rows, range columns, poller *w)
{
    const stage *g = &d->s.cell->stage[i];
    for (ptrdiff_t r = rows.begin; r < rows.end && !should_stop(w, MOVE_WORK * d->s.P); r++) {
        const REAL *from = row_at(&d->masked, 0, r), *mask = row_at(&d->masks, 0, r);
        const REAL *dy = i == 0 && t && d->dy.at ? row_at(&d->dy, t - 1, r) : NULL;
        REAL *to = row_at(g->from_aux ? &d->daux : &d->dh, 0, r);
        FOR_UNITS (j, lanes, columns) {
            vec sum = get(from + j, lanes) * get(mask + j, lanes);
            if (adds_to_dh(d, g)) sum = sum + get(to + j, lanes);
            put(to + j, dy ? sum + get(dy + j, lanes) : sum, lanes);
        }
    }
}

static product input_product_back(const direction *d, ptrdiff_t t0, ptrdiff_t t1, range rows)
{
    product p = {.rows = rows_of_block(d, t0, t1, rows), .K = d->s.gates * d->s.H, .columns = d->K, .b = d->w.w_ih};
    p.from = d->s.reads_x ? FROM_C : FROM_ZERO;
    p.a = window(&d->dgates, 0, rows);
    p.c = window(&d->dx, t0, rows);
    return p;
}

/* dh += dy for the rows to whose dh no product has added it: those whose last step is t, or without products all rows. */
static void add_dy(const direction *d, ptrdiff_t t, range rows, range columns, poller *w)
{
    ptrdiff_t first = d->s.elementwise ? rows.begin : max_of(rows.begin, rows_at(d, t + 1));
    for (ptrdiff_t n = first; d->dy.at && n < rows.end && !should_stop(w, MOVE_WORK * d->s.P); n++) {
        REAL *dh = row_at(&d->dh, 0, n);
        const REAL *dy = row_at(&d->dy, t, n);
        for (ptrdiff_t j = columns.begin; j < columns.end; j++) dh[j] += dy[j];
    }
}

static void step_back(const direction *d, const worker *w, product *p, ptrdiff_t t, ptrdiff_t slot, const share *own)
{
    const cell *cell = d->s.cell;
    range rows = rows_taking(d, t, own->rows), units = columns_of(d->s.H, own->k, own->n), of_P = columns_of(d->s.P, own->k, own->n);
    ptrdiff_t gates_slot = d->s.keeps_gates ? t : 0;
    if (rows.begin == rows.end) return;
    if (d->begin || t == d->T - 1 || d->s.elementwise) add_dy(d, t, rows, of_P, w->poller);
    if (d->dh_of_all.at) copy_rows(&d->dh_of_all, t, &d->dh, rows, of_P);
    if (d->s.zones) split_gradients(d, t, rows, units, of_P, w->poller);
    if (d->s.projects) copy_rows(&d->dh_steps, slot, d->dh_out, rows, of_P); /* for the gradient of weight_hr */
    for (int i = d->s.stages - 1; i >= 0; i--) {
        for (ptrdiff_t r = rows.begin; cell->stage[i].backward && r < rows.end; r++) {
            if (should_stop(w->poller, POINT_WORK * d->s.H_row)) return;
            point at;
            point_at(&at, d, t, gates_slot, r);
            at.dgates = row_at(&d->dgates, slot, r);
            at.daux = row_at(&d->daux, 0, r);
            at.dh = d->s.projects ? at.daux : row_at(d->dh_out, 0, r);
            at.dc = row_at(d->dc_out, 0, r);
            if (d->s.reads_x) at.dx = row_at(&d->dx, t, r);
            cell->stage[i].backward(&at, units);
        }
        if (d->s.zones && i == 0) join_gradients(d, rows, units, w->poller);
        if (!has_product(&cell->stage[i])) continue;
        if (own->n > 1) barrier(w);
        aim_back(&p[i], d, i, t, slot, rows);
        range columns = columns_of(p[i].columns, own->k, own->n);
        multiply(&p[i], all_tiles(&p[i]), columns, w->poller);
        if (is_masked(d, &cell->stage[i])) mask_rows_back(d, i, t, rows, columns, w->poller);
    }
}

static void backward_block(const direction *d, const worker *w, ptrdiff_t t0, ptrdiff_t t1, range all_rows)
{
    share own = take_share(d, w, rows_taking(d, t0, all_rows));
    if (!own.n) return;
    product p[MOST_STAGES], input = input_product_back(d, t0, t1, own.rows);
    for (int i = 0; i < d->s.stages; i++)
        if (has_product(&d->s.cell->stage[i])) p[i] = stage_product_back(d, i, own.rows);
    for (ptrdiff_t t = t1 - 1; t >= t0 && !*w->stopped; t--) step_back(d, w, p, t, t - t0, &own);
    if (own.n > 1 && d->s.elementwise) barrier(w);
    multiply(&input, all_tiles(&input), columns_of(input.columns, own.k, own.n), w->poller);
}

/* ---- gradients of parameters ---- */

/* dW[j, i] += sum over rows r of d[r, j] * source[r, i], with d in tiles and the source in panels; `which` selects the tiles. */
static void add_outer(const REAL *tiles, ptrdiff_t rows, ptrdiff_t R, const REAL *panels, ptrdiff_t columns, REAL *dw, range which,
                      poller *w)
{
    product p = {.rows = rows, .K = R, .columns = columns, .tiles = tiles, .b = panels, .from = FROM_ZERO};
    p.c = p.plus = matrix_view(dw, columns);
    multiply(&p, which, (range){0, columns}, w);
}

/* db[j] += sum over rows of d[r, j], for one or two biases (NULL: no bias). */
static void add_columns(const REAL *d, ptrdiff_t apart, ptrdiff_t R, range columns, REAL *db, REAL *second_db, poller *w)
{
    FOR_UNITS (j, lanes, columns) {
        if (should_stop(w, MOVE_WORK * R * LANES)) return;
        vec sum = broadcast(0);
        for (ptrdiff_t r = 0; r < R; r++) sum = sum + get(d + r * apart + j, lanes);
        if (db) put(db + j, get(db + j, lanes) + sum, lanes);
        if (second_db) put(second_db + j, get(second_db + j, lanes) + sum, lanes);
    }
}

/* dextra += sum over R rows of the terms of the extras, one chain over all rows for each unit. */
static void add_extras(const direction *d, ptrdiff_t t, ptrdiff_t r0, ptrdiff_t R, range units, REAL *dextra)
{
    REAL *sums = d->own->extra_sums;
    ptrdiff_t H = d->s.H, rows = d->s.extra / H, n = r0;
    size_t bytes = (size_t)(units.end - units.begin) * sizeof(REAL);
    for (ptrdiff_t row = 0; row < rows; row++) memset(sums + row * H + units.begin, 0, bytes);
    for (ptrdiff_t first = 0, some; first < R; first += some) {
        point at[POINTS];
        some = min_of(R - first, POINTS);
        for (ptrdiff_t r = 0; r < some; r++, n++) {
            while (n >= rows_at(d, t)) n -= rows_at(d, t++);
            point_at(&at[r], d, t, t, n);
            at[r].dgates = d->dgates.at + (r0 + first + r) * d->dgates.row;
        }
        d->s.cell->add_extra_terms(at, some, units, sums);
    }
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t j = row * H + units.begin; j < row * H + units.end; j++) dextra[j] += sums[j];
}

/* Adds the gradients of all parameters from rows r0 .. r0+R-1 of the block of steps that begins at t0. */
static void sum_rows(const direction *d, const worker *w, ptrdiff_t t0, ptrdiff_t r0, ptrdiff_t R)
{
    const cell *cell = d->s.cell;
    const scratch *own = d->own;
    REAL *dw_ih = d->gradients[0], *dw_hh = d->gradients[1], *db_ih = d->gradients[2], *db_hh = d->gradients[3];
    REAL *dw_hr = d->gradients[4], *dextra = d->gradients[5];
    ptrdiff_t H = d->s.H, P = d->s.P, K = d->K;
    const REAL *dgates = d->dgates.at + r0 * d->dgates.row;
    range tiles = part(tiles_of(H), w->k, w->n), units = columns_of(H, w->k, w->n), tiles_of_P = part(tiles_of(P), w->k, w->n);
    range rows = part(R, w->k, w->n);
    ptrdiff_t t = t0, n = r0 + rows.begin;
    for (ptrdiff_t r = rows.begin; r < rows.end && !should_stop(w->poller, MOVE_WORK * (K + P)); r++, n++) {
        while (n >= rows_at(d, t)) n -= rows_at(d, t++);
        pack_row(own->x_panels, R, r, K, row_at(&d->x, t, n));
        const REAL *mask = d->masks.at ? row_at(&d->masks, 0, n) : NULL, *of_aux = d->s.projects ? NULL : mask;
        if (!d->s.elementwise) pack_masked_row(own->h_panels, R, r, P, before(&d->y, &d->h0, t, n), mask);
        if (d->s.keeps_aux) pack_masked_row(own->aux_panels, R, r, H, row_at(&d->aux, t, n), of_aux);
    }
    for (int b = 0; b < d->s.columns; b++) pack_tiles(own->gate_tiles + R * b * H, R, H, dgates + b * H, d->dgates.row, tiles, w->poller);
    if (d->s.projects) pack_tiles(own->dh_tiles, R, P, d->dh_steps.at + r0 * d->dh_steps.row, d->dh_steps.row, tiles_of_P, w->poller);
    barrier(w);
    for (int b = 0; b < d->s.columns; b++) {
        int ih = cell->ih[b], hh = cell->hh[b];
        if (ih >= 0) add_outer(own->gate_tiles + R * b * H, H, R, own->x_panels, K, dw_ih + ih * H * K, tiles, w->poller);
        REAL *to_ih = db_ih && ih >= 0 ? db_ih + ih * H : NULL, *to_hh = db_hh && hh >= 0 ? db_hh + hh * H : NULL;
        add_columns(dgates + b * H, d->dgates.row, R, units, to_ih, to_hh, w->poller);
    }
    for (int i = 0; i < d->s.stages; i++) {
        const stage *g = &cell->stage[i];
        if (!has_product(g)) continue;
        const REAL *source = g->from_aux ? own->aux_panels : own->h_panels;
        ptrdiff_t columns = stage_source(&d->s, g);
        for (int b = g->first; b < g->first + g->count; b++)
            add_outer(own->gate_tiles + R * b * H, H, R, source, columns, dw_hh + cell->hh[b] * H * columns, tiles, w->poller);
        if (!g->count) add_outer(own->dh_tiles, P, R, source, columns, dw_hr, tiles_of_P, w->poller);
    }
    if (dextra && cell->add_extra_terms) add_extras(d, t0, r0, R, units, dextra);
    barrier(w);
}
