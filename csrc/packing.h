/* Packing: matrices in the order in which the micro-kernel reads them.
 *
 * B of a product (K x columns) is packed into panels of TILE_VECS vectors: [panel][k][column]. The last panel is narrower by whole
 * vectors and padded with zeros. A is read along its rows; if the product runs over the rows of a matrix (gradients of weights), A is
 * packed into tiles of up to TILE_ROWS of its columns: [tile][k][row of the tile].
 *
 * Sources and destinations do not overlap. Packing moves elements and computes nothing, so it has no error.
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

/* Part k of n of some columns, in whole vectors. */
static range columns_of(ptrdiff_t columns, int k, int n)
{
    range vectors = part((columns + LANES - 1) / LANES, k, n);
    return (range){vectors.begin * LANES, min_of(vectors.end * LANES, columns)};
}

/* Packs row k of a K x columns matrix. */
static void pack_row(REAL *packed, ptrdiff_t K, ptrdiff_t k, ptrdiff_t columns, const REAL *row)
{
    for (ptrdiff_t j = 0; j < columns; j += TILE_COLUMNS) {
        ptrdiff_t count = min_of(TILE_COLUMNS, columns - j), width = round_up(count, LANES);
        REAL *to = packed + j * K + k * width;
        ptrdiff_t i = 0;
        for (; i + LANES <= count; i += LANES) store(to + i, load(row + j + i));
        if (i < count) store(to + i, load_part(row + j + i, count - i));
    }
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
            for (int r = 0; r < LANES; r++) square[r] = load(from + (i - i0 + r) * apart + k);
            transpose(square);
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

/* Writes zeros to columns j0 .. j1-1 of a matrix of `columns` columns. They lie in one vector. */
static void pack_zeros(REAL *packed, ptrdiff_t K, ptrdiff_t columns, ptrdiff_t j0, ptrdiff_t j1)
{
    ptrdiff_t first = j0 / TILE_COLUMNS * TILE_COLUMNS, width = round_up(min_of(TILE_COLUMNS, columns - first), LANES);
    REAL *panel = packed + first * K;
    for (ptrdiff_t k = 0; k < K; k++)
        for (ptrdiff_t j = j0 - first; j < j1 - first; j++) panel[k * width + j] = 0;
}

/* Where the rows of a weight go: to columns j0 .. of the matrix of `columns` columns that forward multiplies by (packed), with zeros after
 * them up to column j1 - 1, and to rows i0 .. of the matrix of `rows` rows that backward multiplies by (back). Either may be NULL. */
typedef struct {
    REAL *packed, *back;
    ptrdiff_t columns, j0, j1, rows, i0;
} destination;

/* The matrices of a weight [count, K] alone. */
static destination matrices_of(REAL *packed, REAL *back, ptrdiff_t count)
{
    return (destination){packed, back, count, 0, round_up(count, LANES), count, 0};
}

/* Part k of n of packing a weight [count, K]. */
SEPARATE void pack_weight(const destination *to, ptrdiff_t K, ptrdiff_t count, const REAL *from, int k, int n, poller *w)
{
    range own = part(panels_of(count), k, n);
    if (to->packed && k == 0 && to->j0 + count < to->j1) pack_zeros(to->packed, K, to->columns, to->j0 + count, to->j1);
    for (ptrdiff_t j = own.begin * TILE_COLUMNS; j < min_of(own.end * TILE_COLUMNS, count); j += TILE_COLUMNS) {
        ptrdiff_t some = min_of(TILE_COLUMNS, count - j);
        if (should_stop(w, MOVE_WORK * some * K)) return;
        if (to->packed) pack_columns(to->packed, K, to->columns, to->j0 + j, some, from + j * K, K);
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
