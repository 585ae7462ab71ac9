/* Products with narrow weights (rnnfast_weights), widened to full ones.
 *
 * Narrow weights represent full ones, q: those of RNNFAST_BFLOAT16 are the upper halves of q, those of RNNFAST_INT8 are integers.
 *
 *   RNNFAST_BFLOAT16    C[r, j] = start[r, j] + sum over k = 0 .. K-1, in this order, of A[r, k] * q[k, j], as in gemm.h
 *   RNNFAST_INT8        C[r, j] = start[r, j] + scale[j] * (sum over k = 0 .. K-1, in this order, of A[r, k] * q[k, j])
 *
 * Layout: packing.h. A is never packed in tiles, and nothing is added at the end. An integer is multiplied where it lies, in
 * the upper byte of an element, and the sum of the terms divided by 2^24 at the end. So sums overflow where the sum of the magnitudes of
 * A[r, k] * q[k, j] exceeds 2^104.
 * Error: as in gemm.h, and for RNNFAST_INT8 one rounding more. Every element is one chain, whichever of the two ways computes it, so each
 * row of C depends bitwise only on that row of A.
 * Cost: a single row widens weights in registers and multiplies them at once: bfloat16 takes one instruction more for each vector, int8
 * two. More rows would repeat that. They multiply by a part of a panel that is widened before, in the micro-kernel, and take up to 30 kB of
 * stack for it.
 */
#pragma once

#include "gemm.h"

enum {
    WIDENED_ROWS = 64, /* rows of a panel that are widened at a time: up to 16 kB */
    NARROW_TILES = 8   /* of rows that share them */
};

/* The scales of integers. */
INLINE const REAL *scales_of(const product *p)
{
    return p->b + depth_of(p->weights, p->K) * round_up(p->columns, LANES);
}

/* A vector of the weights that are part i of their elements. */
INLINE vec widened(const int W, const REAL *b, int i, const int is_constant)
{
    if (W == RNNFAST_INT8) return from_byte(to_bits(load(b)), i, is_constant);
    return from_bits(i ? to_bits(load(b)) & 0xffff0000 : to_bits(load(b)) << 16);
}

/* Where a row's sums start from column j on. */
INLINE const REAL *start_of(const product *p, const REAL *c, ptrdiff_t j)
{
    return p->from == FROM_C ? c + j : p->from == FROM_ROW ? p->start + j : no_start;
}

/* Where row 0 of B has column j, in its panel. */
INLINE const REAL *column_of(const int W, const product *p, ptrdiff_t j)
{
    const ptrdiff_t first = j / TILE_COLUMNS * TILE_COLUMNS;
    return p->b + first * depth_of(W, p->K) + j - first;
}

/* From row to row of the panel with column j. */
INLINE ptrdiff_t width_of(const product *p, ptrdiff_t j)
{
    return round_up(min_of(TILE_COLUMNS, p->columns - j / TILE_COLUMNS * TILE_COLUMNS), LANES);
}

/* ---- a single row ---- */

/* Adds the terms of part i of the elements at b, in V vectors of panels that are b_panel apart. */
INLINE void add_part(const int W, const int V, vec sum[ROW_VECS], REAL a, const REAL *b, ptrdiff_t b_panel, int i, const int is_constant)
{
#pragma GCC unroll 8
    for (int v = 0; v < V; v++)
        sum[v] = muladd(broadcast(a), widened(W, b + v / TILE_VECS * b_panel + v % TILE_VECS * LANES, i, is_constant), sum[v]);
}

/* V vectors from column j on: whole panels, or a vector of one. */
INLINE void multiply_narrow_tile(const int W, const int V, const product *p, const REAL *a, REAL *c, ptrdiff_t j, ptrdiff_t end)
{
    const int parts = parts_of_element(W);
    const ptrdiff_t b_panel = depth_of(W, p->K) * TILE_COLUMNS, b_step = V < TILE_VECS ? width_of(p, j) : TILE_COLUMNS;
    const ptrdiff_t lanes = V == 1 ? min_of(end - j, LANES) : LANES; /* panels are whole */
    const REAL *b = column_of(W, p, j), *start = start_of(p, c, j);
    vec sum[ROW_VECS];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sum[v] = W == RNNFAST_INT8 ? (vec){0} : get(start + v * LANES, lanes);
    for (ptrdiff_t k = p->K / parts; k; k--, b += b_step, a += parts) {
#pragma GCC unroll 4
        for (int i = 0; i < parts; i++) add_part(W, V, sum, a[i], b, b_panel, i, 1);
    }
#pragma GCC unroll 1
    for (int i = 0; i < p->K % parts; i++) add_part(W, V, sum, a[i], b, b_panel, i, 0);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
        if (W == RNNFAST_INT8) sum[v] = scaled(sum[v], load(scales_of(p) + j + v * LANES), get(start + v * LANES, lanes));
        put(c + j + v * LANES, sum[v], lanes);
    }
}

/* Some columns: vectors up to a panel, groups of panels, then single panels and vectors. */
INLINE void multiply_narrow_columns(const int W, const product *p, const REAL *a, REAL *c, range columns, poller *w)
{
    const ptrdiff_t wide = ROW_VECS * LANES, begin = min_of(round_up(columns.begin, TILE_COLUMNS), columns.end);
    const ptrdiff_t groups = (columns.end - begin) / wide, rest = begin + groups * wide, work = (p->K + MOVE_WORK) * wide;
    for (ptrdiff_t j = groups && begin == columns.begin ? rest : columns.begin; j < columns.end;) {
        const int is_panel = j % TILE_COLUMNS == 0 && j + TILE_COLUMNS <= columns.end;
        if (is_panel) multiply_narrow_tile(W, TILE_VECS, p, a, c, j, columns.end);
        else multiply_narrow_tile(W, 1, p, a, c, j, columns.end);
        j += is_panel ? TILE_COLUMNS : LANES;
        if (j == begin) j = rest;
    }
    for (ptrdiff_t i = 0; i < groups && !should_stop(w, work); i++)
        multiply_narrow_tile(W, ROW_VECS, p, a, c, begin + (p->from_last ? groups - 1 - i : i) * wide, columns.end);
}

SEPARATE void multiply_bfloat16_columns(const product *p, const REAL *a, REAL *c, range columns, poller *w)
{
    multiply_narrow_columns(RNNFAST_BFLOAT16, p, a, c, columns, w);
}

SEPARATE void multiply_int8_columns(const product *p, const REAL *a, REAL *c, range columns, poller *w)
{
    multiply_narrow_columns(RNNFAST_INT8, p, a, c, columns, w);
}

static void multiply_narrow_row(const product *p, const REAL *a, REAL *c, range columns, poller *w)
{
    if (p->weights == RNNFAST_INT8) multiply_int8_columns(p, a, c, columns, w);
    else multiply_bfloat16_columns(p, a, c, columns, w);
}

/* ---- more rows ---- */

/* Widens rows k .. k+count-1 of B, where k is the first part of an element, in vectors from b on: [k][width]. */
INLINE void widen(const int W, REAL *to, const REAL *b, ptrdiff_t b_step, ptrdiff_t count, ptrdiff_t width)
{
    const int parts = parts_of_element(W);
    for (ptrdiff_t k = 0; k < count; k += parts, b += b_step, to += parts * width)
        for (ptrdiff_t v = 0; v < width; v += LANES) {
#pragma GCC unroll 4
            for (int i = 0; i < parts; i++) /* rows past the last are scratch: the panel has room for whole elements */
                store(to + i * width + v, widened(W, b + v, i, 1));
        }
}

/* Multiplies a group of tiles by some columns of a panel. The sums are collected in scratch, which is aligned. */
static void multiply_widened(const product *p, const tile_group *g, range columns)
{
    vec panel[WIDENED_ROWS * TILE_VECS], sum[NARROW_TILES * TILE_ROWS * TILE_VECS];
    REAL *a[NARROW_TILES * TILE_ROWS], *to[NARROW_TILES * TILE_ROWS];
    const int is_int8 = p->weights == RNNFAST_INT8, parts = parts_of_element(p->weights);
    const ptrdiff_t count = columns.end - columns.begin, width = round_up(count, LANES),
                    rows = g->tiles * g->each + min_of(g->tiles, g->more);
    const REAL *b = column_of(p->weights, p, columns.begin);
    const ptrdiff_t b_step = width_of(p, columns.begin), vectors = max_of(TILE_VECS / parts, 1);
    operands o = {.a_step = 1, .b_step = width, .a = a, .c = to, .b = (const REAL *)panel};
    for (ptrdiff_t m = 0; m < rows; m++) {
        a[m] = g->a[m];
        to[m] = (REAL *)sum + m * width;
        for (ptrdiff_t v = 0; v < width; v += LANES)
            store(to[m] + v, is_int8 ? (vec){0} : get(start_of(p, g->c[m], columns.begin + v), min_of(count - v, LANES)));
    }
    for (ptrdiff_t k = 0; k < p->K; k += WIDENED_ROWS, b += WIDENED_ROWS / parts * b_step) {
        const REAL *next = k + WIDENED_ROWS < p->K ? b + WIDENED_ROWS / parts * b_step : NULL;
        o.K = min_of(WIDENED_ROWS, p->K - k);
        if (is_int8) widen(RNNFAST_INT8, (REAL *)panel, b, b_step, o.K, width);
        else widen(RNNFAST_BFLOAT16, (REAL *)panel, b, b_step, o.K, width);
        for (ptrdiff_t t = 0, m = 0; t < g->tiles; t++) {
            const ptrdiff_t R = g->each + (t < g->more);
            o.a = a + m;
            o.c = to + m;
            o.fetch = next && t < vectors ? next + t * WIDENED_ROWS * LANES : NULL;
            strips[R - 1](width / LANES, &o);
            m += R;
        }
        for (ptrdiff_t m = 0; m < rows; m++) a[m] += o.K;
    }
    for (ptrdiff_t m = 0; m < rows; m++)
        for (ptrdiff_t v = 0, j = columns.begin; v < width; v += LANES, j += LANES) {
            const ptrdiff_t lanes = min_of(count - v, LANES);
            vec s = load(to[m] + v), start = get(start_of(p, g->c[m], j), lanes);
            if (is_int8) s = scaled(s, load(scales_of(p) + j), start);
            put(g->c[m] + j, s, lanes);
        }
}

static void multiply_narrow(const product *p, range tiles, range columns, poller *w)
{
    const ptrdiff_t begin = columns.begin / TILE_COLUMNS, end = panels_of(columns.end);
    for (ptrdiff_t t = tiles.begin; t < tiles.end && columns.begin < columns.end; t += NARROW_TILES) {
        tile_group g;
        find_rows(&g, p, t, min_of(t + NARROW_TILES, tiles.end));
        const ptrdiff_t rows = g.tiles * g.each + min_of(g.tiles, g.more), work = rows * (p->K + MOVE_WORK) * TILE_COLUMNS;
        if (rows == 1) {
            multiply_narrow_row(p, g.a[0], g.c[0], columns, w);
            continue;
        }
        for (ptrdiff_t i = begin; i < end && !should_stop(w, work); i++) {
            const ptrdiff_t panel = p->from_last ? end - 1 - (i - begin) : i;
            multiply_widened(p, &g, (range){max_of(panel * TILE_COLUMNS, columns.begin), min_of((panel + 1) * TILE_COLUMNS, columns.end)});
        }
    }
}
