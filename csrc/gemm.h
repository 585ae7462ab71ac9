/* Matrix products: the one micro-kernel and the loops around it.
 *
 *   C[r, j] = start[r, j] + sum over k = 0 .. K-1, in this order, of A[r, k] * B[k, j]
 *
 * Layout: A by rows, or packed in tiles; B packed in panels (packing.h); C by rows. A and B do not overlap C.
 * Error: at most K roundings of the running sum, as in any plain loop (products are exact with the fused instruction). Every element is
 * one chain of muladd() over rising k, regardless of its tile, so each row of C depends bitwise only on that row of A.
 * Cost: a tile of up to 6 rows x TILE_VECS vectors of C stays in registers over the whole chain. Per k it loads TILE_VECS vectors and 6
 * elements for 6 * TILE_VECS multiply-adds. Rows are divided evenly over the tiles, so that no tile is left with a single row. Products
 * of few rows take several narrow panels at a time, because fewer than eight chains leave the multiply-adds waiting for one another:
 * those of two or three rows take pairs of panels (AVX2, GRU H = 200: 0.80 and 0.83 of the time), and those of a single row,
 * multiply_row(), which lists no rows, take four (LSTM H = 256: 0.66).
 */
#pragma once

#include "caches.h"
#include "packing.h"

enum {
    ROW_VECS = LANES == 1 ? TILE_VECS : 8,             /* of a single row at a time: whole panels */
    ROW_GROUP = TILE_VECS == 4 ? TILE_VECS : ROW_VECS, /* of a row of more vectors: wide panels one by one (H = 64: 0.86 of the time) */
    GROUP_ROWS = 32 * TILE_ROWS                        /* rows whose addresses are computed at a time */
};

/* The operands of one tile. A[m, k] is a[m][k * a_step]; row k of B begins at b[k * b_step], and the next panel b_panel elements
 * further; row m of the tile goes to c[m] + j. All rows start from `start`, or, if that is NULL, from the contents of c. If plus is not
 * NULL, plus[m] + j is added to row m at the end. fetch: K vectors to prefetch meanwhile, or NULL. */
typedef struct {
    ptrdiff_t K, a_step, b_step, b_panel, j;
    REAL *const *a, *const *c, *const *plus;
    const REAL *b, *start, *fetch;
} operands;

/* Elements from row to row of B, for vector v of V. A single row may take several panels, of which the last may be narrow. */
INLINE ptrdiff_t step_of_b(const int V, const int v, ptrdiff_t b_step)
{
    if (V <= TILE_VECS) return b_step;
    return v < V / TILE_VECS * TILE_VECS ? TILE_COLUMNS : V % TILE_VECS * LANES;
}

#define HAS_PAIRS (TILE_VECS == 2 && LANES > 1)

typedef vec sums[TILE_ROWS][ROW_VECS];

/* The micro-kernel: adds K terms to the sums of R rows x V vectors of one panel, or, for one row, of several. */
INLINE void accumulate(const int R, const int V, sums sum, ptrdiff_t K, REAL *const *rows, ptrdiff_t a_step, const REAL *b,
                       ptrdiff_t b_step, ptrdiff_t b_panel, const REAL *fetch)
{
    const int fetches = fetch != NULL;
    const REAL *a[TILE_ROWS];
    ptrdiff_t i = 0, k = 0;
#pragma GCC unroll 6
    for (int m = 0; m < R; m++) a[m] = rows[m];
    do {                        /* K >= 1; if the loop might not run at all, gcc would move the sums through memory */
        vec bs[ROW_VECS] = {0}; /* none of the zeros is used, but analysers do not see that */
        if (fetches && R > 2) prefetch(fetch, 0), fetch += LANES;
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) bs[v] = load(b + v / TILE_VECS * b_panel + v % TILE_VECS * LANES + k * step_of_b(V, v, b_step));
#pragma GCC unroll 6
        for (int m = 0; m < R; m++) {
            vec am = broadcast(a[m][i]);
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sum[m][v] = muladd(am, bs[v], sum[m][v]);
        }
        i += a_step;
    } while (++k < K);
}

INLINE void start_sums(const int V, vec sum[ROW_VECS], const REAL *from)
{
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) sum[v] = load(from + v * LANES);
}

INLINE void store_sums(const int V, REAL *to, const vec sum[ROW_VECS], const REAL *plus)
{
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(to + v * LANES, plus ? load(plus + v * LANES) + sum[v] : sum[v]);
}

INLINE void tile(const int R, const int V, const operands *o)
{
    const REAL *start = o->start;
    REAL *const *c = o->c, *const *plus = o->plus;
    const ptrdiff_t j = o->j;
    sums sum;
#pragma GCC unroll 6
    for (int m = 0; m < R; m++) start_sums(V, sum[m], start ? start : c[m] + j);
    accumulate(R, V, sum, o->K, o->a, o->a_step, o->b, o->b_step, o->b_panel, o->fetch);
#pragma GCC unroll 6
    for (int m = 0; m < R; m++) store_sums(V, c[m] + j, sum[m], plus ? plus[m] + j : NULL);
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
    strip(1, V, o);
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

/* A tile of two or three rows and a pair of panels. */
static void strip_of_pair(ptrdiff_t R, const operands *o)
{
#if HAS_PAIRS
    if (R == 2) tile(2, 2 * TILE_VECS, o);
    else tile(3, 2 * TILE_VECS, o);
#else
    (void)R, (void)o;
#endif
}

typedef struct {
    ptrdiff_t rows, K, columns;
    view a;
    const REAL *tiles; /* A packed in tiles; a is unused then */
    const REAL *b;     /* packed in panels */
    int weights;       /* the kind of b; here and in backward.h only RNNFAST_FULL, for others see products.h */
    enum { FROM_ZERO, FROM_ROW, FROM_C } from;
    const REAL *start; /* FROM_ROW: the same start for every row, of whole vectors */
    view c, plus;      /* plus is added at the end unless plus.at is NULL; it may be c */
    int whole;         /* the rows of C may be written up to a whole vector */
    int from_last;     /* begin with the last panel */
} product;

static const REAL no_start[ROW_VECS * LANES]; /* zeros */

/* The operands of tiles of some columns of one panel, or, for a single row, of several, but for the addresses of their rows. The range of
 * columns begins at a whole vector. */
INLINE operands operands_of(const product *p, range columns)
{
    const ptrdiff_t j = columns.begin, first = j / TILE_COLUMNS * TILE_COLUMNS;
    operands o = {.K = p->K, .a_step = 1, .b_panel = p->K * TILE_COLUMNS, .j = j};
    o.b = p->b + first * p->K + j - first;
    o.b_step = round_up(min_of(TILE_COLUMNS, p->columns - first), LANES);
    o.start = p->from == FROM_C ? NULL : p->from == FROM_ROW ? p->start + j : no_start;
    return o;
}

/* Computes a tile of R rows in scratch, because the last vector of C may not be written, or that of plus not be read, as a whole. */
static void multiply_edge_tile(const operands *o, ptrdiff_t R, ptrdiff_t columns)
{
    vec scratch[TILE_ROWS][TILE_VECS]; /* aligned */
    REAL *rows[TILE_ROWS];
    operands here = *o;
    here.j = 0;
    here.c = rows;
    here.plus = NULL;
    for (ptrdiff_t m = 0; m < R; m++) {
        rows[m] = (REAL *)scratch[m];
        if (!o->start) memcpy(rows[m], o->c[m] + o->j, (size_t)columns * sizeof(REAL));
    }
    strips[R - 1](round_up(columns, LANES) / LANES, &here);
    for (ptrdiff_t m = 0; m < R; m++)
        for (ptrdiff_t v = 0, at = o->j; v < columns; v += LANES, at += LANES) {
            const ptrdiff_t lanes = min_of(columns - v, LANES);
            const vec sum = load(rows[m] + v);
            put(o->c[m] + at, o->plus ? get(o->plus[m] + at, lanes) + sum : sum, lanes);
        }
}

/* A group of tiles, and the addresses of their rows. */
typedef struct {
    ptrdiff_t tiles, each, more; /* tiles have `each` rows, the first `more` of them one more */
    REAL *a[GROUP_ROWS], *c[GROUP_ROWS], *plus[GROUP_ROWS];
} tile_group;

static void list_ragged_rows(REAL **rows, const view *v, ptrdiff_t first, ptrdiff_t count)
{
    for (const ptrdiff_t *begin = v->begin; count; begin++) {
        ptrdiff_t here = min_of(begin[1] - begin[0] - v->from, v->N);
        if (first >= here) {
            first -= max_of(here, 0);
            continue;
        }
        ptrdiff_t some = min_of(here - first, count), entry = begin[0] - v->begin[0] + v->from + first;
        for (ptrdiff_t i = 0; i < some; i++) *rows++ = entry_at(v, entry + i);
        count -= some;
        first = 0;
    }
}

SEPARATE void list_rows(REAL **rows, const view *v, ptrdiff_t first, ptrdiff_t count)
{
    if (v->begin) {
        list_ragged_rows(rows, v, first, count);
        return;
    }
    REAL *at = first ? nth_row(v, first) : v->at;
    for (ptrdiff_t i = 0, n = first ? first % v->N : 0; i < count; i++) {
        *rows++ = at;
        at += v->row;
        if (++n == v->N) n = 0, at += v->step - v->N * v->row;
    }
}

static void find_rows(tile_group *g, const product *p, ptrdiff_t first, ptrdiff_t end)
{
    ptrdiff_t count = tiles_of(p->rows), each = p->rows, more = 0, r = 0;
    if (count > 1) each = p->rows / count, more = p->rows - each * count;
    if (first) r = first * each + min_of(first, more);
    g->tiles = end - first;
    g->each = each;
    g->more = more > first ? more - first : 0;
    ptrdiff_t rows = g->tiles * each + min_of(g->tiles, g->more);
    list_rows(g->c, &p->c, r, rows);
    if (p->plus.at) list_rows(g->plus, &p->plus, r, rows);
    if (!p->tiles) {
        list_rows(g->a, &p->a, r, rows);
        return;
    }
    for (ptrdiff_t t = 0, i = 0; t < g->tiles; t++)
        for (ptrdiff_t R = each + (t < g->more), m = 0; m < R; m++, i++) g->a[i] = (REAL *)p->tiles + (r + i - m) * p->K + m;
}

/* Whether the panel of index `panel` and its neighbour before or after it are whole, and a product takes both at once. */
static int is_pair(const product *p, range columns, ptrdiff_t panel, ptrdiff_t neighbour)
{
    return HAS_PAIRS && 2 <= p->rows && p->rows <= 3 && columns.begin <= min_of(panel, neighbour) * TILE_COLUMNS &&
           (max_of(panel, neighbour) + 1) * TILE_COLUMNS <= columns.end;
}

/* Multiplies a group of tiles by some columns of a panel, or by a pair of panels. The first tiles prefetch the next panel (NULL: none),
 * each a vector of all its rows: otherwise the first tile of a panel would wait for all of it. Measured where weights come from the
 * third-level cache (LSTM, H = 1024, batches of 16 and 32): 0.87 of the time. The rows of plus are prefetched before their tile: gradients
 * of weights take 0.87 of the time for H = 512 and 1024. */
static void multiply_panel(const product *p, const tile_group *g, range columns, const REAL *next, poller *w)
{
    const ptrdiff_t j = columns.begin, count = columns.end - j, width = round_up(count, LANES), work = (p->K + MOVE_WORK) * width;
    const int is_edge = width > count && (!p->whole || p->plus.at);
    operands o = operands_of(p, columns);
    o.a = g->a;
    o.c = g->c;
    if (p->plus.at) o.plus = g->plus;
    for (ptrdiff_t t = 0; t < g->tiles; t++) {
        const ptrdiff_t R = g->each + (t < g->more);
        if (should_stop(w, R * work)) return;
        if (p->tiles) o.a_step = R;
        for (ptrdiff_t m = 0; o.plus && m < R; m++)
            for (ptrdiff_t v = 0; v < width; v += LANES) prefetch(o.plus[m] + j + v, 1);
        o.fetch = next && t < TILE_VECS ? next + t * p->K * LANES : NULL;
        if (is_edge) multiply_edge_tile(&o, R, count);
        else if (HAS_PAIRS && width > TILE_COLUMNS) strip_of_pair(R, &o);
        else strips[R - 1](width / LANES, &o);
        o.a += R;
        o.c += R;
        if (o.plus) o.plus += R;
    }
}

/* ---- a single row ---- */

/* The operands of a product of a single row. `first` is NULL, or a product whose sums this one continues: FROM_ROW, with the same columns. */
typedef struct {
    const REAL *a, *first_a;
    REAL *c;
    const REAL *plus; /* may be NULL */
} row_operands;

/* V vectors from column j on: whole panels, or the last ones of the matrix. Everything is inlined, so the operands are in registers. */
INLINE void multiply_row_tile(const int V, const product *p, const product *first, const row_operands *r, const REAL *start, ptrdiff_t j)
{
    REAL *const a = (REAL *)r->a, *const first_a = (REAL *)r->first_a;
    sums sum;
    start_sums(V, sum[0], start == no_start ? start : start + j);
    if (first) accumulate(1, V, sum, first->K, &first_a, 1, first->b + j * first->K, V * LANES, first->K * TILE_COLUMNS, NULL);
    accumulate(1, V, sum, p->K, &a, 1, p->b + j * p->K, V * LANES, p->K * TILE_COLUMNS, NULL);
    store_sums(V, r->c + j, sum[0], r->plus ? r->plus + j : NULL);
}

/* Computes columns begin .. end-1: whole panels, or up to the last column, which may be written as a whole vector. The last vectors go
 * first, because the processor then computes their few chains beside those of the next ones. */
SEPARATE void multiply_panels_of_row(const product *p, const product *first, const row_operands *r, ptrdiff_t begin, ptrdiff_t end,
                                     poller *w)
{
    const size_t vectors = ((size_t)(end - begin) + LANES - 1) / LANES, groups = vectors < ROW_VECS ? 0 : vectors / ROW_GROUP;
    const ptrdiff_t rest = begin + (ptrdiff_t)groups * ROW_GROUP * LANES, work = (p->K + MOVE_WORK) * ROW_GROUP * LANES;
    const REAL *start = first ? first->start : p->from == FROM_C ? r->c : p->from == FROM_ROW ? p->start : no_start;
    switch (vectors - groups * ROW_GROUP) {
    case 1: multiply_row_tile(1, p, first, r, start, rest); break;
    case 2: multiply_row_tile(2, p, first, r, start, rest); break;
#if LANES > 1
    case 3: multiply_row_tile(3, p, first, r, start, rest); break;
    case 4: multiply_row_tile(4, p, first, r, start, rest); break;
    case 5: multiply_row_tile(5, p, first, r, start, rest); break;
    case 6: multiply_row_tile(6, p, first, r, start, rest); break;
    case 7: multiply_row_tile(7, p, first, r, start, rest); break;
#endif
    default: break;
    }
    for (size_t i = 0; i < groups && !should_stop(w, work); i++) {
        size_t group = p->from_last ? groups - 1 - i : i;
        multiply_row_tile(ROW_GROUP, p, first, r, start, begin + (ptrdiff_t)group * ROW_GROUP * LANES);
    }
}

/* Columns that begin or end within a panel, or within a vector that may not be written. */
static void multiply_edge_of_row(const product *p, const row_operands *r, range columns)
{
    REAL *const a = (REAL *)r->a, *const plus = (REAL *)r->plus;
    for (ptrdiff_t j = columns.begin, end; j < columns.end; j = end) {
        end = min_of((j / TILE_COLUMNS + 1) * TILE_COLUMNS, columns.end);
        operands o = operands_of(p, (range){j, end});
        o.a = &a;
        o.c = &r->c;
        if (plus) o.plus = &plus;
        if ((end - j) % LANES && (!p->whole || plus)) multiply_edge_tile(&o, 1, end - j);
        else strip_1(round_up(end - j, LANES) / LANES, &o);
    }
}

/* Whether the last vector of a product's rows may be written as a whole. */
INLINE int ends_whole(const product *p)
{
    return p->whole || p->columns % LANES == 0;
}

/* Computes some columns of a product of a single row. The range of columns begins at a whole vector. */
static void multiply_columns_of_row(const product *p, const row_operands *r, range columns, poller *w)
{
    const int is_whole = columns.end == p->columns && (r->plus ? p->columns % LANES == 0 : ends_whole(p));
    ptrdiff_t begin = min_of(round_up(columns.begin, TILE_COLUMNS), columns.end);
    ptrdiff_t end = is_whole ? columns.end : max_of(begin, columns.end / TILE_COLUMNS * TILE_COLUMNS);
    if (columns.begin < begin) multiply_edge_of_row(p, r, (range){columns.begin, begin});
    if (end < columns.end) multiply_edge_of_row(p, r, (range){end, columns.end});
    multiply_panels_of_row(p, NULL, r, begin, end, w);
}

/* Computes a whole product of a single row, c = a B. */
INLINE void multiply_row(const product *p, const REAL *a, REAL *c, poller *w)
{
    row_operands r = {.a = a, .c = c};
    if (ends_whole(p)) multiply_panels_of_row(p, NULL, &r, 0, p->columns, w);
    else multiply_columns_of_row(p, &r, (range){0, p->columns}, w);
}

/* Computes two products of a single row, of which the second continues the sums of the first, one after the other or at once. */
INLINE void multiply_row_twice(const product *first, const REAL *first_a, REAL *first_c, const product *p, const REAL *a, REAL *c,
                               poller *w)
{
    row_operands r = {.a = a, .first_a = first_a, .c = c};
    if (first_c == c && first->columns == p->columns && ends_whole(p)) {
        multiply_panels_of_row(p, first, &r, 0, p->columns, w);
        return;
    }
    multiply_row(first, first_a, first_c, w);
    multiply_row(p, a, c, w);
}

/* As multiply(), if the product has a single row. */
static void multiply_only_row(const product *p, range columns, poller *w)
{
    REAL *a = (REAL *)p->tiles, *c, *plus = NULL;
    list_rows(&c, &p->c, 0, 1);
    if (!a) list_rows(&a, &p->a, 0, 1);
    if (p->plus.at) list_rows(&plus, &p->plus, 0, 1);
    row_operands r = {.a = a, .c = c, .plus = plus};
    multiply_columns_of_row(p, &r, columns, w);
}

/* Computes some tiles and columns of a product. The range of columns begins at a whole vector. */
static void multiply(const product *p, range tiles, range columns, poller *w)
{
    if (p->rows == 1) {
        if (tiles.begin < tiles.end && columns.begin < columns.end) multiply_only_row(p, columns, w);
        return;
    }
    ptrdiff_t begin = columns.begin / TILE_COLUMNS, end = panels_of(columns.end);
    int is_far = p->K * p->columns >= FAR_BYTES / (ptrdiff_t)sizeof(REAL);
    for (ptrdiff_t t = tiles.begin; t < tiles.end && columns.begin < columns.end; t += GROUP_ROWS / TILE_ROWS) {
        tile_group g;
        find_rows(&g, p, t, min_of(t + GROUP_ROWS / TILE_ROWS, tiles.end));
        for (ptrdiff_t i = begin, some; i < end; i += some) {
            ptrdiff_t direction = p->from_last ? -1 : 1, panel = p->from_last ? end - 1 - (i - begin) : i;
            some = is_pair(p, columns, panel, panel + direction) ? 2 : 1;
            ptrdiff_t last = panel + (some - 1) * direction, after = (last + direction) * TILE_COLUMNS;
            range here = {max_of(min_of(panel, last) * TILE_COLUMNS, columns.begin),
                          min_of((max_of(panel, last) + 1) * TILE_COLUMNS, columns.end)};
            int is_whole = after >= begin * TILE_COLUMNS && after + TILE_COLUMNS <= p->columns;
            multiply_panel(p, &g, here, is_far && is_whole ? p->b + after * p->K : NULL, w);
        }
    }
}

static range all_tiles(const product *p)
{
    return (range){0, tiles_of(p->rows)};
}
