/* Packing: matrices in the order in which the micro-kernel reads them.
 *
 * B of a product (K x columns) is packed into panels of TILE_VECS vectors: [panel][k][column]. The last panel is narrower by whole
 * vectors and padded with zeros. A is read along its rows; if the product runs over the rows of a matrix (gradients of weights), A is
 * packed into tiles of up to TILE_ROWS of its columns: [tile][k][row of the tile].
 *
 * Narrow weights (rnnfast_weights) take a part of an element each: a row of a panel holds the parts of 2 or 4 rows of B, the first in the
 * lowest bits, so that one load serves them all. Panels of integers are followed by the scales of all columns. RNNFAST_INT8_PRODUCTS has
 * the integers plus 128, because instructions multiply unsigned by signed bytes.
 *
 * Sources and destinations do not overlap. Packing moves elements and computes nothing, so it has no error, but for the rounding of narrow
 * weights, by half a unit of their last place.
 */
#pragma once

#include "threads.h"
#include "view.h"

enum {
    TILE_ROWS = 6,
    TILE_COLUMNS = TILE_VECS * LANES,
    MOVE_WORK = 8 /* moving an element costs at most as much as this many multiply-adds */
};

static ptrdiff_t tiles_of(ptrdiff_t rows)
{
    return (rows + TILE_ROWS - 1) / TILE_ROWS;
}

static ptrdiff_t panels_of(ptrdiff_t columns)
{
    return (columns + TILE_COLUMNS - 1) / TILE_COLUMNS;
}

/* Whether weights are integers, with a scale for each column. */
INLINE int has_scales(int weights)
{
    return weights == RNNFAST_INT8 || weights == RNNFAST_INT8_PRODUCTS;
}

/* How many weights share an element. */
INLINE int parts_of_element(int weights)
{
    if (REAL_BITS == 64) return 1;
    return has_scales(weights) ? 4 : weights == RNNFAST_BFLOAT16 ? 2 : 1;
}

/* The rows of a panel of K weights. */
INLINE ptrdiff_t depth_of(int weights, ptrdiff_t K)
{
    return (ptrdiff_t)(((size_t)K + (size_t)parts_of_element(weights) - 1) / (size_t)parts_of_element(weights));
}

/* Part k of n of some columns, in whole vectors; empty if there are fewer vectors than parts. */
static range columns_of(ptrdiff_t columns, int k, int n)
{
    range vectors = part((columns + LANES - 1) / LANES, k, n);
    return (range){min_of(vectors.begin * LANES, columns), min_of(vectors.end * LANES, columns)};
}

/* Packs row k of a K x columns matrix: `row`, or, unless mask is NULL, row times mask. */
INLINE void pack_masked_row(REAL *packed, ptrdiff_t K, ptrdiff_t k, ptrdiff_t columns, const REAL *row, const REAL *mask)
{
    for (ptrdiff_t j = 0; j < columns; j += TILE_COLUMNS) {
        ptrdiff_t count = min_of(TILE_COLUMNS, columns - j), width = round_up(count, LANES);
        REAL *to = packed + j * K + k * width;
        ptrdiff_t i = 0;
        for (; i + LANES <= count; i += LANES) store(to + i, mask ? load(row + j + i) * load(mask + j + i) : load(row + j + i));
        if (i == count) continue;
        vec rest = load_part(row + j + i, count - i);
        store(to + i, mask ? rest * load_part(mask + j + i, count - i) : rest);
    }
}

static void pack_row(REAL *packed, ptrdiff_t K, ptrdiff_t k, ptrdiff_t columns, const REAL *row)
{
    pack_masked_row(packed, K, k, columns, row, NULL);
}

/* Packs elements k0 .. k1-1 of columns i0 .. i1-1 of a panel. The columns are the rows of `from`, `apart` elements apart. */
static void pack_elements(REAL *panel, ptrdiff_t width, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t k0, ptrdiff_t k1, const REAL *from,
                          ptrdiff_t apart)
{
    for (ptrdiff_t i = i0; i < i1; i++)
        for (ptrdiff_t k = k0; k < k1; k++) panel[k * width + i] = from[(i - i0) * apart + k];
}

/* As pack_elements, for all whole squares of LANES columns by LANES elements, transposed in registers. Profile of LSTM training with
 * H = 128: packing takes 0.7% of the time instead of 3.1%. */
static void pack_squares(REAL *panel, ptrdiff_t width, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t K, const REAL *from, ptrdiff_t apart)
{
#if defined(HAS_TRANSPOSE)
    for (ptrdiff_t k = 0; k + LANES <= K; k += LANES)
        for (ptrdiff_t i = i0; i + LANES <= i1; i += LANES) {
            vec square[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) square[r] = load(from + (i - i0 + r) * apart + k);
            transpose(square);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) store(panel + (k + r) * width + i, square[r]);
        }
#else
    pack_elements(panel, width, i0, i0 + (i1 - i0) / LANES * LANES, 0, K / LANES * LANES, from, apart);
#endif
}

/* Packs columns j0 .. j0+count-1 of a K x columns matrix. They are the rows of `from`, `apart` elements apart. j0 may be any column. */
static void pack_columns(REAL *packed, ptrdiff_t K, ptrdiff_t columns, ptrdiff_t j0, ptrdiff_t count, const REAL *from, ptrdiff_t apart)
{
    for (ptrdiff_t j = j0; j < j0 + count;) {
        ptrdiff_t first = j / TILE_COLUMNS * TILE_COLUMNS;
        ptrdiff_t width = round_up(min_of(TILE_COLUMNS, columns - first), LANES);
        ptrdiff_t i0 = j - first, i1 = min_of(TILE_COLUMNS, j0 + count - first);
        ptrdiff_t whole_i = i0 + (i1 - i0) / LANES * LANES, whole_K = K / LANES * LANES;
        REAL *panel = packed + first * K;
        const REAL *rows = from + (j - j0) * apart;
        pack_squares(panel, width, i0, i1, K, rows, apart);
        pack_elements(panel, width, i0, whole_i, whole_K, K, rows, apart);
        pack_elements(panel, width, whole_i, i1, 0, K, rows + (whole_i - i0) * apart, apart);
        j = first + i1;
    }
}

/* The scale of K weights: the largest divided by 127, rounded up to 16 significant bits, with which all multiples are exact. 0 if it is
 * subnormal, and would have fewer bits. */
static REAL scale_of(const REAL *w, ptrdiff_t K)
{
    REAL largest = 0;
    BITS bits;
    for (ptrdiff_t k = 0; k < K; k++) largest = w[k] > largest ? w[k] : -w[k] > largest ? -w[k] : largest;
    largest /= 127;
    if (largest < 1 / ((REAL)(1ull << 63) * (REAL)(1ull << 63))) return 0; /* 2^-126 */
    memcpy(&bits, &largest, sizeof bits);
    bits = (bits + 0xff) & ~(BITS)0xff;
    memcpy(&largest, &bits, sizeof largest);
    return largest;
}

/* A narrow weight, in the lowest bits. */
static BITS narrowed(int weights, REAL w, REAL scale)
{
    const REAL integers = 3 << 22; /* a sum with it is rounded to an integer, to nearest even */
    const int offset = weights == RNNFAST_INT8_PRODUCTS ? 128 : 0;
    if (has_scales(weights)) return (BITS)((scale > 0 ? (int)(w / scale + integers - integers) : 0) + offset) & 0xff;
    BITS bits;
    memcpy(&bits, &w, sizeof bits);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* As pack_columns, for narrow weights. */
static void pack_narrow(REAL *packed, int weights, ptrdiff_t K, ptrdiff_t columns, ptrdiff_t j0, ptrdiff_t count, const REAL *from)
{
    const int parts = parts_of_element(weights);
    const ptrdiff_t depth = depth_of(weights, K);
    for (ptrdiff_t j = j0; j < j0 + count; j++, from += K) {
        ptrdiff_t first = j / TILE_COLUMNS * TILE_COLUMNS, width = round_up(min_of(TILE_COLUMNS, columns - first), LANES);
        REAL *to = packed + first * depth + j - first, scale = has_scales(weights) ? scale_of(from, K) : 0;
        if (has_scales(weights)) packed[depth * round_up(columns, LANES) + j] = scale;
        for (ptrdiff_t k = 0; k < K; k += parts, to += width) {
            BITS element = 0;
            for (int i = 0; i < parts && k + i < K; i++) element |= narrowed(weights, from[k + i], scale) << (32 / parts * i);
            memcpy(to, &element, sizeof element);
        }
    }
}

/* Writes zeros to columns j0 .. j1-1 of a matrix of `columns` columns. They lie in one vector. */
static void pack_zeros(REAL *packed, int weights, ptrdiff_t K, ptrdiff_t columns, ptrdiff_t j0, ptrdiff_t j1)
{
    ptrdiff_t first = j0 / TILE_COLUMNS * TILE_COLUMNS, width = round_up(min_of(TILE_COLUMNS, columns - first), LANES);
    ptrdiff_t depth = depth_of(weights, K);
    REAL *panel = packed + first * depth;
    for (ptrdiff_t k = 0; k < depth; k++)
        for (ptrdiff_t j = j0 - first; j < j1 - first; j++) panel[k * width + j] = 0;
    for (ptrdiff_t j = j0; has_scales(weights) && j < j1; j++) packed[depth * round_up(columns, LANES) + j] = 0;
}

/* Where the rows of a weight go: to columns j0 .. of the matrix of `columns` columns that forward multiplies by (packed), with zeros after
 * them up to column j1 - 1, and to rows i0 .. of the matrix of `rows` rows that backward multiplies by (back). Either may be NULL. */
typedef struct {
    REAL *packed, *back;
    ptrdiff_t columns, j0, j1, rows, i0;
    int weights; /* of packed */
} destination;

/* The matrices of a weight [count, K] alone. */
static destination matrices_of(REAL *packed, REAL *back, ptrdiff_t count, int weights)
{
    return (destination){packed, back, count, 0, round_up(count, LANES), count, 0, weights};
}

/* Part k of n of packing a weight [count, K]. */
SEPARATE void pack_weight(const destination *to, ptrdiff_t K, ptrdiff_t count, const REAL *from, int k, int n, poller *w)
{
    range own = part(panels_of(count), k, n);
    if (to->packed && k == 0 && to->j0 + count < to->j1) pack_zeros(to->packed, to->weights, K, to->columns, to->j0 + count, to->j1);
    for (ptrdiff_t j = own.begin * TILE_COLUMNS; j < min_of(own.end * TILE_COLUMNS, count); j += TILE_COLUMNS) {
        ptrdiff_t some = min_of(TILE_COLUMNS, count - j);
        if (should_stop(w, MOVE_WORK * some * K)) return;
        if (to->packed && parts_of_element(to->weights) == 1) pack_columns(to->packed, K, to->columns, to->j0 + j, some, from + j * K, K);
        else if (to->packed) pack_narrow(to->packed, to->weights, K, to->columns, to->j0 + j, some, from + j * K);
        for (ptrdiff_t i = j; to->back && i < j + some && !should_stop(w, MOVE_WORK * K); i++)
            pack_row(to->back, to->rows, to->i0 + i, K, from + i * K);
    }
}

INLINE void copy_tile(const int R, REAL *to, ptrdiff_t K, const REAL *from, ptrdiff_t apart)
{
    for (ptrdiff_t k = 0; k < K; k++) memcpy(to + k * R, from + k * apart, (size_t)R * sizeof(REAL));
}

/* Packs the columns of a matrix of K rows, `apart` elements apart, as rows of A. `which` selects the tiles. */
static void pack_tiles(REAL *tiles, ptrdiff_t K, ptrdiff_t columns, const REAL *from, ptrdiff_t apart, range which, poller *w)
{
    for (ptrdiff_t i = which.begin; i < which.end && !should_stop(w, MOVE_WORK * TILE_ROWS * K); i++) {
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
