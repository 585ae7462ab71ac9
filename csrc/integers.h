/* Products of integers: those of RNNFAST_INT8_PRODUCTS.
 *
 * The terms of a sum are divided into blocks of TERMS. In each block, row r of A has a scale s, its largest magnitude divided by 127, and
 * a[r, k] is A[r, k] / s rounded to an integer. q and scale are those of RNNFAST_INT8.
 *
 *   C[r, j] = start[r, j] + sum over the blocks, in this order, of scale[j] * (s * (sum over the block's k of a[r, k] * q[k, j]))
 *
 * Layout: packing.h. A is never packed in tiles, and nothing is added at the end.
 * Error: rounding changes A[r, k] by s / 2 at most. The sum of a block is exact, even as a float; three roundings follow. So each row of C
 * depends bitwise only on that row of A, and the instructions that multiply integers do not matter. A block of A whose largest magnitude is
 * below 2^-120 counts as 0. Where A has a NaN or an infinity, the row of C is NaN.
 * Cost: each call rounds its rows, up to 24 kB of them at a time, on the stack. A tile of up to 6 rows x TILE_VECS vectors of sums stays in
 * registers over a block. A vector of weights takes an instruction for each row where the processor has one for quads of bytes; otherwise it
 * is taken apart into pairs of bytes, and takes two and then four for each row.
 */
#pragma once

#include "dispatch.h"
#include "narrow.h"

enum {
    TERMS = 1024,                   /* this many products of up to 127 * 127 have a sum below 2^24 */
    ROUNDED_WORDS = TERMS / 4 * 24, /* of quads, or half as many rows of pairs */
    ROUNDED_ROWS = 8 * TILE_ROWS,   /* of shorter sums */
    WIDE_COLUMNS = ROW_VECS * LANES /* whole panels, which a single row takes at a time */
};

/* Some rows of a block of A. Each has `row` words: of quads of integers, or twice as many of pairs, which hold integers 0 and 2, and
 * integers 1 and 3 of a quad. */
typedef struct {
    BITS words[ROUNDED_WORDS], start[ROUNDED_ROWS]; /* of sums, because q is packed with 128 added to it */
    REAL scale[ROUNDED_ROWS];
    ptrdiff_t row, quads;
} rounded_rows;

/* The operands of a tile: R rows from row m on, and vectors of B from column j on, the last one with some lanes only. */
typedef struct {
    const rounded_rows *a;
    ptrdiff_t m, j, lanes, b_step, b_panel;
    const REAL *b, *scale, *start; /* start: as in gemm.h's operands */
    REAL *const *c;
} integer_operands;

static int has_quads(void)
{
    return HAS_QUADS && rnnfast_has_quads(REAL_BITS * LANES);
}

/* ---- A ---- */

/* The sum of a vector's integers, and their maximum, which have no sign. */
static void reduce(ivec v, BITS *sum, BITS *maximum)
{
    REAL lanes[LANES];
    store(lanes, from_bits(v));
    *sum = *maximum = 0;
    for (int i = 0; i < LANES; i++) {
        BITS bits;
        memcpy(&bits, lanes + i, sizeof bits);
        *sum += bits;
        *maximum = bits > *maximum ? bits : *maximum;
    }
}

/* Writes integers from -128 to 127 as words, four for each quad: see rounded_rows. */
static void write_words(BITS *words, const BITS *integers, ptrdiff_t quads, int in_quads)
{
    ptrdiff_t q = 0;
#if LANES > 1 && defined(__SSE2__)
    for (const __m128i *i = (const void *)integers; q + 4 <= quads && in_quads; q += 4, i += 4) {
        const __m128i low = _mm_packs_epi32(_mm_loadu_si128(i), _mm_loadu_si128(i + 1));
        const __m128i high = _mm_packs_epi32(_mm_loadu_si128(i + 2), _mm_loadu_si128(i + 3));
        _mm_storeu_si128((__m128i *)(void *)(words + q), _mm_packs_epi16(low, high));
    }
    for (const __m128i *i = (const void *)integers; q + 2 <= quads && !in_quads; q += 2, i += 2) {
        const __m128i two = _mm_packs_epi32(_mm_loadu_si128(i), _mm_loadu_si128(i + 1));
        _mm_storeu_si128((__m128i *)(void *)(words + 2 * q), _mm_shufflehi_epi16(_mm_shufflelo_epi16(two, 0xd8), 0xd8)); /* 0 2 1 3 */
    }
#endif
    for (const BITS *i = integers + 4 * q; q < quads; q++, i += 4) {
        if (in_quads) {
            words[q] = (i[0] & 0xff) | (i[1] & 0xff) << 8 | (i[2] & 0xff) << 16 | i[3] << 24;
        } else {
            words[2 * q] = (i[0] & 0xffff) | i[2] << 16;
            words[2 * q + 1] = (i[1] & 0xffff) | i[3] << 16;
        }
    }
}

/* Rounds K elements. */
static void round_row(rounded_rows *to, ptrdiff_t m, const REAL *a, ptrdiff_t K, int in_quads)
{
    const REAL magic = 3 << 22, smallest = (REAL)1 / (1 << 30) / (1 << 30) / (1 << 30) / (1 << 30); /* a sum with magic is an integer */
    ivec most = {0}, sums = {0};
    BITS integers[TERMS], largest, sum, unused;
    REAL magnitude;
    for (ptrdiff_t k = 0; k < K; k += LANES) most = larger_of(most, to_bits(get(a + k, min_of(K - k, LANES))) & 0x7fffffff);
    reduce(most, &unused, &largest);
    memcpy(&magnitude, &largest, sizeof magnitude);
    const int is_finite = largest < 0x7f800000, is_zero = magnitude < smallest;
    const vec inverse = broadcast(is_finite && !is_zero ? 127 / magnitude : 0);
    ptrdiff_t k = 0;
    do {                                                                  /* K >= 1 */
        const vec scaled_up = get(a + k, min_of(K - k, LANES)) * inverse; /* rounded before the sum, with every instruction set */
        const ivec rounded = to_bits(scaled_up + broadcast(magic)) - to_bits(broadcast(magic));
        memcpy(integers + k, &rounded, sizeof rounded);
        sums = sums + rounded;
    } while ((k += LANES) < K);
    reduce(sums, &sum, &unused);
    for (; K % 4; K++) integers[K] = 0;
    write_words(to->words + m * to->row, integers, to->quads, in_quads);
    to->scale[m] = !is_finite ? magnitude * 0 : is_zero ? 0 : magnitude / 127; /* infinity * 0 is NaN */
    to->start[m] = 0 - 128 * sum;
}

/* ---- the micro-kernel ---- */

/* Adds the products of a vector of weights to V vectors of sums for each of R rows. */
INLINE void add_element(const int R, const int V, const int in_quads, ivec sum[TILE_ROWS][ROW_VECS], const BITS *words, ptrdiff_t row,
                        const REAL *b, ptrdiff_t b_panel)
{
    ivec w[ROW_VECS] = {0}; /* none of the zeros is used */
#if HAS_QUADS
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) w[v] = to_bits(load(b + v / TILE_VECS * b_panel + v % TILE_VECS * LANES));
#pragma GCC unroll 6
    for (int m = 0; m < R && in_quads; m++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sum[m][v] = add_quads(sum[m][v], w[v], words + m * row);
    }
#endif
#pragma GCC unroll 2
    for (int half = 0; half < 2 && !in_quads; half++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) w[v] = pairs_of_bytes(to_bits(load(b + v / TILE_VECS * b_panel + v % TILE_VECS * LANES)), half);
#pragma GCC unroll 6
        for (int m = 0; m < R; m++) {
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sum[m][v] = add_pairs(sum[m][v], w[v], words[m * row + half]);
        }
    }
}

INLINE void integer_tile(const int R, const int V, const int in_quads, const integer_operands *o)
{
    const rounded_rows *a = o->a;
    const ptrdiff_t row = a->row, b_step = o->b_step, b_panel = o->b_panel;
    const BITS *words = a->words + o->m * row;
    const REAL *b = o->b;
    ivec sum[TILE_ROWS][ROW_VECS];
#pragma GCC unroll 6
    for (int m = 0; m < R; m++) {
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) sum[m][v] = a->start[o->m + m] - (ivec){0};
    }
    ptrdiff_t quads = a->quads;
    do { /* as in gemm.h */
        add_element(R, V, in_quads, sum, words, row, b, b_panel);
        words += in_quads ? 1 : 2;
        b += b_step;
    } while (--quads);
#pragma GCC unroll 6
    for (int m = 0; m < R; m++) {
        REAL *c = o->c[o->m + m] + o->j;
        const REAL *start = o->start ? o->start : c;
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            const ptrdiff_t lanes = V == 1 ? o->lanes : LANES, at = v * LANES;
            const vec s = from_integers(sum[m][v]) * broadcast(a->scale[o->m + m]);
            put(c + at, muladd(s, load(o->scale + at), get(start + at, lanes)), lanes);
        }
    }
}

INLINE void integer_tiles(const int V, const int in_quads, ptrdiff_t R, const integer_operands *o)
{
    switch (R) {
    case 1: integer_tile(1, V, in_quads, o); break;
    case 2: integer_tile(2, V, in_quads, o); break;
    case 3: integer_tile(3, V, in_quads, o); break;
    case 4: integer_tile(4, V, in_quads, o); break;
    case 5: integer_tile(5, V, in_quads, o); break;
    default: integer_tile(6, V, in_quads, o);
    }
}

/* A vector, a panel, or, for a single row, as many whole panels as WIDE_COLUMNS has. */
INLINE void multiply_rounded(const int in_quads, ptrdiff_t V, ptrdiff_t R, const integer_operands *o)
{
    if (V == 1) integer_tiles(1, in_quads, R, o);
    else if (V == TILE_VECS) integer_tiles(TILE_VECS, in_quads, R, o);
    else integer_tile(1, ROW_VECS, in_quads, o);
}

SEPARATE void multiply_pairs(ptrdiff_t V, ptrdiff_t R, const integer_operands *o)
{
    multiply_rounded(0, V, R, o);
}

SEPARATE void multiply_quads(ptrdiff_t V, ptrdiff_t R, const integer_operands *o)
{
    multiply_rounded(HAS_QUADS, V, R, o);
}

/* ---- the loops around it ---- */

/* Multiplies a group of tiles by columns of which none lies beyond a multiple of WIDE_COLUMNS. */
static void multiply_group(integer_operands *o, const product *p, const tile_group *g, ptrdiff_t k, range columns, int in_quads)
{
    ptrdiff_t V;
    for (ptrdiff_t j = columns.begin; j < columns.end; j += V * LANES) {
        const ptrdiff_t count = columns.end - j;
        V = j % TILE_COLUMNS || count < TILE_COLUMNS ? 1 : g->tiles * g->each == 1 && count == WIDE_COLUMNS ? ROW_VECS : TILE_VECS;
        o->j = j;
        o->lanes = min_of(count, LANES);
        o->b_step = width_of(p, j);
        o->b = column_of(p->weights, p, j) + k / 4 * o->b_step;
        o->scale = scales_of(p) + j;
        o->start = k || p->from == FROM_C ? NULL : p->from == FROM_ROW ? p->start + j : no_start;
        o->m = 0;
        for (ptrdiff_t t = 0; t < g->tiles; t++) {
            const ptrdiff_t R = g->each + (t < g->more);
            if (in_quads) multiply_quads(V, R, o);
            else multiply_pairs(V, R, o);
            o->m += R;
        }
    }
}

/* Multiplies a group of tiles by some columns. */
static void multiply_integer_rows(const product *p, const tile_group *g, range columns, int in_quads, poller *w)
{
    const ptrdiff_t rows = g->tiles * g->each + min_of(g->tiles, g->more);
    const ptrdiff_t begin = columns.begin / WIDE_COLUMNS, end = (columns.end + WIDE_COLUMNS - 1) / WIDE_COLUMNS;
    rounded_rows a;
    integer_operands o = {.a = &a, .c = g->c, .b_panel = depth_of(p->weights, p->K) * TILE_COLUMNS};
    for (ptrdiff_t k = 0; k < p->K; k += TERMS) {
        const ptrdiff_t K = min_of(p->K - k, TERMS), work = rows * (K + MOVE_WORK) * WIDE_COLUMNS;
        a.quads = depth_of(p->weights, K);
        a.row = in_quads ? a.quads : 2 * a.quads;
        for (ptrdiff_t m = 0; m < rows; m++) round_row(&a, m, g->a[m] + k, K, in_quads);
        for (ptrdiff_t i = begin; i < end && !should_stop(w, work); i++) {
            const ptrdiff_t first = (p->from_last ? end - 1 - (i - begin) : i) * WIDE_COLUMNS;
            const range some = {max_of(first, columns.begin), min_of(first + WIDE_COLUMNS, columns.end)};
            multiply_group(&o, p, g, k, some, in_quads);
        }
    }
}

static void multiply_integers(const product *p, range tiles, range columns, poller *w)
{
    const int in_quads = has_quads();
    const ptrdiff_t words = depth_of(p->weights, min_of(p->K, TERMS)) * (in_quads ? 1 : 2) * TILE_ROWS;
    const ptrdiff_t most = min_of(ROUNDED_WORDS / words, ROUNDED_ROWS / TILE_ROWS);
    for (ptrdiff_t t = tiles.begin; t < tiles.end && columns.begin < columns.end; t += most) {
        tile_group g;
        find_rows(&g, p, t, min_of(t + most, tiles.end));
        multiply_integer_rows(p, &g, columns, in_quads, w);
    }
}

/* As multiply_integers(), of a product of a single row. */
static void multiply_integer_row(const product *p, const REAL *a, REAL *c, poller *w)
{
    tile_group g;
    g.tiles = g.each = 1;
    g.more = 0;
    g.a[0] = (REAL *)a;
    g.c[0] = c;
    multiply_integer_rows(p, &g, (range){0, p->columns}, has_quads(), w);
}
