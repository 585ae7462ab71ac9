/* Ranges of indices, and views: strided access to the row vector at (step, row) of a sequence.
 *
 * Layout, regular: row n of step t begins at at + t * step + n * row; every step has N rows.
 * Layout, ragged (begin is not NULL): step t has begin[t + 1] - begin[t] rows, never more than the step before, and row n of step t is
 * entry begin[t] - begin[0] + n. Entries are consecutive, `row` elements apart. If positions is not NULL, entry i lies at the
 * step and row positions[i] of a regular layout instead.
 * As an operand of a product, a ragged view covers rows from .. from + N - 1 of each step, as far as the step has them.
 *
 * A view owns nothing and holds no length in time. Strides count elements and may be negative.
 */
#pragma once

#include "rnnfast.h"
#include "simd.h"

/* ---- ranges ---- */

/* The indices begin .. end - 1. */
typedef struct {
    ptrdiff_t begin, end;
} range;

static ptrdiff_t min_of(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}

static ptrdiff_t max_of(ptrdiff_t a, ptrdiff_t b)
{
    return a > b ? a : b;
}

/* The next multiple of `to`, a power of two. */
static ptrdiff_t round_up(ptrdiff_t a, ptrdiff_t to)
{
    return (a + to - 1) & -to;
}

/* Part k of n of the indices 0 .. total - 1. The lengths of the parts differ by at most one. */
static range part(ptrdiff_t total, ptrdiff_t k, ptrdiff_t n)
{
    if (n == 1) return (range){0, total};
    ptrdiff_t each = total / n, more = total % n;
    return (range){k * each + min_of(k, more), (k + 1) * each + min_of(k + 1, more)};
}

/* ---- views ---- */

typedef struct {
    REAL *at;
    ptrdiff_t N, step, row;
    const ptrdiff_t *begin;
    const rnnfast_position *positions;
    ptrdiff_t from;
} view;

INLINE view view_of(const void *at, ptrdiff_t N, ptrdiff_t step, ptrdiff_t row)
{
    return (view){.at = (REAL *)at, .N = N, .step = step, .row = row};
}

/* The rows of a matrix, `row` elements apart. */
INLINE view matrix_view(const REAL *at, ptrdiff_t row)
{
    return view_of(at, PTRDIFF_MAX, 0, row);
}

static REAL *entry_at(const view *v, ptrdiff_t i)
{
    return v->positions ? v->at + v->positions[i].step * v->step + v->positions[i].row * v->row : v->at + i * v->row;
}

/* Row n of step t. */
INLINE REAL *row_at(const view *v, ptrdiff_t t, ptrdiff_t n)
{
    return v->begin ? entry_at(v, v->begin[t] - v->begin[0] + n) : v->at + t * v->step + n * v->row;
}

/* Row r, counted through all steps. */
static REAL *nth_row(const view *v, ptrdiff_t r)
{
    return v->begin ? entry_at(v, r) : v->at + r / v->N * v->step + r % v->N * v->row;
}

/* Sets `to` to the part of v that begins at step t and row n. to->N stays as it is. */
static void view_from(view *to, const view *v, ptrdiff_t t, ptrdiff_t n)
{
    to->row = v->row;
    if (!v->begin) {
        to->at = v->at + t * v->step + n * v->row;
        to->begin = NULL;
        return;
    }
    ptrdiff_t first = v->begin[t] - v->begin[0];
    to->begin = v->begin + t;
    to->from = v->from + n;
    to->step = v->step;
    to->positions = v->positions ? v->positions + first : NULL;
    to->at = v->positions ? v->at : v->at + first * v->row;
}

/* The given rows of v from step t on. */
static view window(const view *v, ptrdiff_t t, range rows)
{
    view w = *v;
    view_from(&w, v, t, rows.begin);
    w.N = rows.end - rows.begin;
    return w;
}

/* v from some column on; an empty view stays empty. */
INLINE view shifted(view v, ptrdiff_t columns)
{
    if (v.at) v.at += columns;
    return v;
}

/* Copies some rows and columns of step 0 of a view to step t of another. The two may be the same memory. */
static void copy_rows(const view *to, ptrdiff_t t, const view *from, range rows, range columns)
{
    size_t bytes = (size_t)(columns.end - columns.begin) * sizeof(REAL);
    for (ptrdiff_t n = rows.begin; n < rows.end; n++) memmove(row_at(to, t, n) + columns.begin, row_at(from, 0, n) + columns.begin, bytes);
}
