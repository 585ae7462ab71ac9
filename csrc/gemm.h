/* Products of matrices: packing, the one micro-kernel, and the loops around it.
 *
 *   C[r, j] = start[r, j] + sum over k = 0 .. K-1, in this order, of A[r, k] * B[k, j]
 *
 * Every element is one chain of muladd() over k in rising order, whatever the tile it falls into: so the bits of a row of C depend
 * on nothing but that row of A. Error: at most K roundings of the running sum, as with any plain loop (with the fused instruction the
 * products are exact).
 *
 * B is packed into panels of TILE_VECS vectors side by side, [panel][k][column], the last panel narrower by whole vectors and filled
 * up with zeros. A tile of up to 6 rows x TILE_VECS vectors of C stays in registers over the whole chain: per k it loads TILE_VECS
 * vectors and 6 numbers for 6 * TILE_VECS multiply-adds. Rows are dealt evenly over the tiles, so that none is left with one row. Where
 * there is but one, and panels are narrow, several panels are taken at a time: less than four chains at a time would leave the
 * multiply-adds waiting for each other (AVX2, LSTM N = 1 H = 256: 0.66 of the time).
 * A is read along its rows, or, where a product runs over the rows of a matrix (gradients of weights), from tiles packed down its columns.
 */
#ifndef RNNFAST_GEMM_H
#define RNNFAST_GEMM_H

#include "pool.h"
#include "rnnfast.h"
#include "simd.h"

enum {
    TILE_ROWS = 6,
    TILE_COLUMNS = TILE_VECS * LANES,
    ROW_PANELS = TILE_VECS < 4 ? 8 / TILE_VECS : 1, /* panels at a time for a single row */
    POLL_WORK = 1 << 24,         /* multiply-adds between two looks for a wish to stop: some milliseconds at the slowest */
    GROUP_ROWS = 32 * TILE_ROWS, /* rows whose places are worked out at a time */
    FAR_BYTES = 1 << 19          /* packed matrices from this size on are not counted on to be in the second-level cache */
};

/* What a thread knows of a wish to stop. Only the calling thread asks; all see the answer in *stopped. */
typedef struct {
    rnnfast_flag *stopped;
    const rnnfast_poll *poll; /* NULL on the other threads */
    ptrdiff_t left;
} watch;

/* Once the answer was yes it stays so. */
static int stop_after(watch *w, ptrdiff_t work)
{
    w->left -= work;
    if (w->left > 0) return 0;
    if (!*w->stopped && w->poll && w->poll->stop && w->poll->stop(w->poll->context)) *w->stopped = 1;
    w->left = *w->stopped ? 0 : POLL_WORK;
    return *w->stopped;
}

static ptrdiff_t at_most(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}

static ptrdiff_t greatest(ptrdiff_t a, ptrdiff_t b)
{
    return a > b ? a : b;
}

static ptrdiff_t round_up(ptrdiff_t a, ptrdiff_t to)
{
    return (a + to - 1) / to * to;
}

/* Part k of n of a range, as begin and end: parts differ by one at most. */
typedef struct {
    ptrdiff_t begin, end;
} range;

static range part(ptrdiff_t total, ptrdiff_t k, ptrdiff_t n)
{
    if (n == 1) {
        range all = {0, total};
        return all;
    }
    ptrdiff_t each = total / n, more = total % n;
    range p = {k * each + at_most(k, more), (k + 1) * each + at_most(k + 1, more)};
    return p;
}

/* Rows that come in steps of N: row n of step s begins at at + s * step + n * row.
 *
 * Where begin is not NULL, steps have fewer and fewer rows: row n of step s is entry begin[s] - begin[0] + n. Entries lie one after the
 * other, `row` apart, or, where places is not NULL, each at a step and row as above. As the rows of a product these are rows from ..
 * from + N - 1 of each step, as far as there are any. */
typedef struct {
    REAL *at;
    ptrdiff_t N, step, row;
    const ptrdiff_t *begin;
    const rnnfast_place *places;
    ptrdiff_t from;
} grid;

static REAL *entry_at(const grid *g, ptrdiff_t i)
{
    return g->places ? g->at + g->places[i].step * g->step + g->places[i].row * g->row : g->at + i * g->row;
}

/* Row r of all, counted through the steps. */
static REAL *row_at(const grid *g, ptrdiff_t r)
{
    return g->begin ? entry_at(g, r) : g->at + r / g->N * g->step + r % g->N * g->row;
}

static grid plain_rows(const REAL *at, ptrdiff_t row)
{
    grid g = {.at = (REAL *)at, .N = PTRDIFF_MAX, .row = row};
    return g;
}

static ptrdiff_t tiles_of(ptrdiff_t rows)
{
    return (rows + TILE_ROWS - 1) / TILE_ROWS;
}

static ptrdiff_t panels_of(ptrdiff_t columns)
{
    return (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
}

/* Numbers that K x columns take when packed. */
static ptrdiff_t packed_size(ptrdiff_t K, ptrdiff_t columns)
{
    return K * round_up(columns, LANES);
}

/* One row k of a K x columns matrix into its place in the panels. */
static void pack_row(REAL *packed, ptrdiff_t K, ptrdiff_t k, ptrdiff_t columns, const REAL *row)
{
    for (ptrdiff_t j = 0; j < columns; j += TILE_COLUMNS) {
        ptrdiff_t some = at_most(TILE_COLUMNS, columns - j), width = round_up(some, LANES);
        REAL *to = packed + j * K + k * width;
        ptrdiff_t i = 0;
        for (; i + LANES <= some; i += LANES) store(to + i, load(row + j + i));
        if (i < some) store(to + i, load_part(row + j + i, some - i));
    }
}

/* Some columns i0 .. i1-1 of a panel from rows of `from`, `apart` numbers apart, number by number for k0 .. k1-1. */
static void pack_numbers(REAL *panel, ptrdiff_t width, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t k0, ptrdiff_t k1, const REAL *from,
                         ptrdiff_t apart)
{
    for (ptrdiff_t i = i0; i < i1; i++)
        for (ptrdiff_t k = k0; k < k1; k++) panel[k * width + i] = from[(i - i0) * apart + k];
}

/* The same for as many whole squares of LANES columns by LANES numbers as there are. Measured by profile, LSTM training
 * with H = 128: packing takes a quarter of the time, 0.7% of all in place of 3.1%. */
static void pack_squares(REAL *panel, ptrdiff_t width, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t K, const REAL *from, ptrdiff_t apart)
{
#if defined(HAS_TRANSPOSE)
    for (ptrdiff_t k = 0; k + LANES <= K; k += LANES)
        for (ptrdiff_t i = i0; i + LANES <= i1; i += LANES) {
            vec square[LANES];
            for (int r = 0; r < LANES; r++) square[r] = load(from + (i - i0 + r) * apart + k);
            transpose(square);
            for (int r = 0; r < LANES; r++) store(panel + (k + r) * width + i, square[r]);
        }
#else
    pack_numbers(panel, width, i0, i0 + (i1 - i0) / LANES * LANES, 0, K / LANES * LANES, from, apart);
#endif
}

/* Columns j0 .. j0+count-1 of a K x columns matrix, each given as a row of `from` ([count, K], rows apart by `apart`). j0 may be any. */
static void pack_columns(REAL *packed, ptrdiff_t K, ptrdiff_t columns, ptrdiff_t j0, ptrdiff_t count, const REAL *from, ptrdiff_t apart)
{
    for (ptrdiff_t j = j0; j < j0 + count;) {
        ptrdiff_t first = j / TILE_COLUMNS * TILE_COLUMNS;
        ptrdiff_t width = round_up(at_most(TILE_COLUMNS, columns - first), LANES);
        ptrdiff_t i0 = j - first, i1 = at_most(TILE_COLUMNS, j0 + count - first);
        ptrdiff_t whole_i = i0 + (i1 - i0) / LANES * LANES, whole_K = K / LANES * LANES;
        REAL *panel = packed + first * K;
        const REAL *rows = from + (j - j0) * apart;
        pack_squares(panel, width, i0, i1, K, rows, apart);
        pack_numbers(panel, width, i0, whole_i, whole_K, K, rows, apart);
        pack_numbers(panel, width, whole_i, i1, 0, K, rows + (whole_i - i0) * apart, apart);
        j = first + i1;
    }
}

/* The columns beyond the last one, up to a whole vector. */
static void pack_padding(REAL *packed, ptrdiff_t K, ptrdiff_t columns)
{
    ptrdiff_t first = columns / TILE_COLUMNS * TILE_COLUMNS, width = round_up(columns - first, LANES);
    REAL *panel = packed + first * K;
    for (ptrdiff_t k = 0; k < K; k++)
        for (ptrdiff_t j = columns - first; j < width; j++) panel[k * width + j] = 0;
}

INLINE void copy_tile(const int R, REAL *to, ptrdiff_t K, const REAL *from, ptrdiff_t apart)
{
    for (ptrdiff_t k = 0; k < K; k++) memcpy(to + k * R, from + k * apart, (size_t)R * sizeof(REAL));
}

/* Columns of a K-row matrix (rows apart by `apart`) as the rows of A, tile by tile: [tile][k][row of the tile]. */
static void pack_tiles(REAL *tiles, ptrdiff_t K, ptrdiff_t columns, const REAL *from, ptrdiff_t apart, range which)
{
    for (ptrdiff_t i = which.begin; i < which.end; i++) {
        range rows = part(columns, i, tiles_of(columns));
        REAL *to = tiles + rows.begin * K;
        const REAL *at = from + rows.begin;
        switch (rows.end - rows.begin) {
        case 1: copy_tile(1, to, K, at, apart); break;
        case 2: copy_tile(2, to, K, at, apart); break;
        case 3: copy_tile(3, to, K, at, apart); break;
        case 4: copy_tile(4, to, K, at, apart); break;
        case 5: copy_tile(5, to, K, at, apart); break;
        default: copy_tile(6, to, K, at, apart);
        }
    }
}

/* What the micro-kernel works on: a[m][k * a_step] is A[m, k], b[k * b_step] row k of B; c[m] + j is where row m of the tile goes.
 * b_panel: from one panel to the next.
 * start: where all rows start from; NULL: each from what is in c. plus: what is added to row m at the end is at plus[m] + j; NULL:
 * nothing. fetch: K vectors to bring near meanwhile; NULL: none. */
typedef struct {
    ptrdiff_t K, a_step, b_step, b_panel, j;
    REAL *const *a, *const *c, *const *plus;
    const REAL *b, *start, *fetch;
} operands;

/* The micro-kernel: R rows x V vectors, of one panel or, for one row, of several. */
INLINE void tile(const int R, const int V, const operands *o)
{
    const REAL *b = o->b, *start = o->start, *fetch = o->fetch, *a[TILE_ROWS];
    const int fetches = fetch != NULL;
    ptrdiff_t K = o->K, a_step = o->a_step, b_step = o->b_step, b_panel = o->b_panel, i = 0;
    vec sum[TILE_ROWS][ROW_PANELS * TILE_VECS];
#pragma GCC unroll 6
    for (int m = 0; m < R; m++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sum[m][v] = load((start ? start : o->c[m] + o->j) + v * LANES);
#pragma GCC unroll 6
    for (int m = 0; m < R; m++) a[m] = o->a[m];
    do { /* K >= 1; with a loop that might not run at all gcc would move the sums through memory */
        vec bs[ROW_PANELS * TILE_VECS];
        if (fetches && R > 2) fetch_ahead(fetch), fetch += LANES;
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) bs[v] = load(b + v / TILE_VECS * b_panel + v % TILE_VECS * LANES);
#pragma GCC unroll 6
        for (int m = 0; m < R; m++) {
            vec am = broadcast(a[m][i]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sum[m][v] = muladd(am, bs[v], sum[m][v]);
        }
        i += a_step;
        b += b_step;
    } while (--K);
#pragma GCC unroll 6
    for (int m = 0; m < R; m++)
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            ptrdiff_t j = o->j + v * LANES;
            store(o->c[m] + j, o->plus ? load(o->plus[m] + j) + sum[m][v] : sum[m][v]);
        }
}

INLINE void strip(const int R, ptrdiff_t V, const operands *o)
{
    switch (V) {
#if TILE_VECS == 4
    case 4: tile(R, 4, o); break;
    case 3: tile(R, 3, o); break;
#endif
    case 2: tile(R, 2, o); break;
    default: tile(R, 1, o);
    }
}

static void strip_1(ptrdiff_t V, const operands *o)
{
    if (ROW_PANELS > 1 && V == ROW_PANELS * TILE_VECS) tile(1, ROW_PANELS * TILE_VECS, o);
    else strip(1, V, o);
}

static void strip_2(ptrdiff_t V, const operands *o)
{
    strip(2, V, o);
}

static void strip_3(ptrdiff_t V, const operands *o)
{
    strip(3, V, o);
}

static void strip_4(ptrdiff_t V, const operands *o)
{
    strip(4, V, o);
}

static void strip_5(ptrdiff_t V, const operands *o)
{
    strip(5, V, o);
}

static void strip_6(ptrdiff_t V, const operands *o)
{
    strip(6, V, o);
}

static void (*const strips[TILE_ROWS])(ptrdiff_t V, const operands *) = {strip_1, strip_2, strip_3, strip_4, strip_5, strip_6};

typedef struct {
    ptrdiff_t rows, K, columns;
    grid a;
    const REAL *tiles; /* A in packed tiles instead; a is not looked at then */
    const REAL *b;     /* packed */
    enum { FROM_ZERO, FROM_ROW, FROM_C } from;
    const REAL *start; /* FROM_ROW: the same start for every row, room for whole vectors */
    grid c, plus;      /* plus.at NULL: nothing is added at the end; it may be c */
    int whole;         /* rows of C have room for whole vectors */
    int from_last;     /* begin with the last panel */
} product;

/* A tile of R rows whose last vector is not to be written, or added to, as a whole goes through a tile aside. */
static void multiply_aside(const operands *o, ptrdiff_t R, ptrdiff_t some)
{
    REAL aside[TILE_ROWS * TILE_COLUMNS], *rows[TILE_ROWS];
    operands here = *o;
    here.j = 0;
    here.c = rows;
    here.plus = NULL;
    for (ptrdiff_t m = 0; m < R; m++) {
        rows[m] = aside + m * TILE_COLUMNS;
        if (!o->start) memcpy(rows[m], o->c[m] + o->j, (size_t)some * sizeof(REAL));
    }
    strips[R - 1](round_up(some, LANES) / LANES, &here);
    for (ptrdiff_t m = 0; m < R; m++)
        for (ptrdiff_t i = o->j; i < o->j + some; i++) o->c[m][i] = o->plus ? o->plus[m][i] + rows[m][i - o->j] : rows[m][i - o->j];
}

/* Some tiles of rows, and where their rows are. */
typedef struct {
    ptrdiff_t tiles, each, more; /* rows of a tile, and how many of the first have one more */
    REAL *a[GROUP_ROWS], *c[GROUP_ROWS], *plus[GROUP_ROWS];
} group;

static void place_entries(REAL **places, const grid *g, ptrdiff_t first, ptrdiff_t count)
{
    for (const ptrdiff_t *begin = g->begin; count; begin++) {
        ptrdiff_t here = at_most(begin[1] - begin[0] - g->from, g->N);
        if (first >= here) {
            first -= greatest(here, 0);
            continue;
        }
        ptrdiff_t some = at_most(here - first, count), entry = begin[0] - g->begin[0] + g->from + first;
        for (ptrdiff_t i = 0; i < some; i++) *places++ = entry_at(g, entry + i);
        count -= some;
        first = 0;
    }
}

static void place_rows(REAL **places, const grid *g, ptrdiff_t first, ptrdiff_t count)
{
    if (g->begin) {
        place_entries(places, g, first, count);
        return;
    }
    REAL *at = first ? row_at(g, first) : g->at;
    for (ptrdiff_t i = 0, n = first ? first % g->N : 0; i < count; i++) {
        places[i] = at;
        at += g->row;
        if (++n == g->N) n = 0, at += g->step - g->N * g->row;
    }
}

static void gather_rows(group *g, const product *p, ptrdiff_t first, ptrdiff_t end)
{
    ptrdiff_t count = tiles_of(p->rows), each = p->rows, more = 0, r = 0;
    if (count > 1) each = p->rows / count, more = p->rows - each * count;
    if (first) r = first * each + at_most(first, more);
    g->tiles = end - first;
    g->each = each;
    g->more = more > first ? more - first : 0;
    ptrdiff_t rows = g->tiles * each + at_most(g->tiles, g->more);
    place_rows(g->c, &p->c, r, rows);
    if (p->plus.at) place_rows(g->plus, &p->plus, r, rows);
    if (!p->tiles) {
        place_rows(g->a, &p->a, r, rows);
        return;
    }
    for (ptrdiff_t t = 0, i = 0; t < g->tiles; t++)
        for (ptrdiff_t R = each + (t < g->more), m = 0; m < R; m++, i++) g->a[i] = (REAL *)p->tiles + (r + i - m) * p->K + m;
}

/* A group of tiles by the columns of a panel, or of ROW_PANELS for one row, that fall into a range, which begins at a whole vector. The
 * first tiles fetch the panel that comes next (NULL: none), a vector of each of its rows a tile: else the first tile of a panel alone
 * would wait for all of it. Measured where weights come from the third-level cache (LSTM, H = 1024, batches of 16 and 32): 0.87 of the
 * time. What a tile is added to is fetched before it is computed: gradients of weights in 0.87 of the time for H = 512 and 1024. */
static void multiply_panel(const product *p, const group *g, ptrdiff_t first, range columns, const REAL *next, watch *w)
{
    static const REAL zeros[ROW_PANELS * TILE_COLUMNS];
    const ptrdiff_t j = columns.begin, some = columns.end - j, width = round_up(some, LANES);
    const int aside = width > some && (!p->whole || p->plus.at);
    operands o = {.K = p->K, .a_step = 1, .b_panel = p->K * TILE_COLUMNS, .j = j, .a = g->a, .c = g->c};
    o.b = p->b + first * p->K + j - first;
    o.b_step = round_up(at_most(TILE_COLUMNS, p->columns - first), LANES);
    o.start = p->from == FROM_C ? NULL : p->from == FROM_ROW ? p->start + j : zeros;
    if (p->plus.at) o.plus = g->plus;
    for (ptrdiff_t t = 0; t < g->tiles; t++) {
        const ptrdiff_t R = g->each + (t < g->more);
        if (stop_after(w, R * p->K * width)) return;
        if (p->tiles) o.a_step = R;
        for (ptrdiff_t m = 0; o.plus && m < R; m++)
            for (ptrdiff_t v = 0; v < width; v += LANES) fetch_to_write(o.plus[m] + j + v);
        o.fetch = next && t < TILE_VECS ? next + t * p->K * LANES : NULL;
        if (aside) multiply_aside(&o, R, some);
        else strips[R - 1](width / LANES, &o);
        o.a += R;
        o.c += R;
        if (o.plus) o.plus += R;
    }
}

/* Some tiles and columns of a product; the range of columns begins at a whole vector. */
static void multiply(const product *p, range tiles, range columns, watch *w)
{
    ptrdiff_t begin = columns.begin / TILE_COLUMNS, end = panels_of(columns.end);
    int is_far = p->K * p->columns >= FAR_BYTES / (ptrdiff_t)sizeof(REAL);
    for (ptrdiff_t t = tiles.begin; t < tiles.end && columns.begin < columns.end; t += GROUP_ROWS / TILE_ROWS) {
        group g;
        gather_rows(&g, p, t, at_most(t + GROUP_ROWS / TILE_ROWS, tiles.end));
        for (ptrdiff_t i = begin, some; i < end; i += some) {
            ptrdiff_t panel = p->from_last ? end - 1 - (i - begin) : i, first = p->from_last ? panel - (ROW_PANELS - 1) : panel;
            int together = ROW_PANELS > 1 && p->rows == 1 && first * TILE_COLUMNS >= columns.begin &&
                           (first + ROW_PANELS) * TILE_COLUMNS <= columns.end;
            some = together ? ROW_PANELS : 1;
            if (!together) first = panel;
            range here = {greatest(first * TILE_COLUMNS, columns.begin), at_most((first + some) * TILE_COLUMNS, columns.end)};
            ptrdiff_t after = (p->from_last ? first - 1 : first + 1) * TILE_COLUMNS;
            int is_whole = after >= begin * TILE_COLUMNS && after + TILE_COLUMNS <= p->columns;
            multiply_panel(p, &g, first * TILE_COLUMNS, here, is_far && is_whole ? p->b + after * p->K : NULL, w);
        }
    }
}

static range all_tiles(const product *p)
{
    range r = {0, tiles_of(p->rows)};
    return r;
}

static range all_columns(const product *p)
{
    range r = {0, p->columns};
    return r;
}

#endif
