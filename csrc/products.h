/* Products with weights of any kind, as the functions of gemm.h whose names begin alike.
 *
 * Each kind (rnnfast_weights) has its own products: gemm.h, narrow.h and integers.h, whose head comments give equations, errors and costs.
 */
#pragma once

#if REAL_BITS == 32
#include "integers.h"
#else
#include "gemm.h"
#endif

static void multiply_weights(const product *p, range tiles, range columns, poller *w)
{
#if REAL_BITS == 32
    if (p->weights == RNNFAST_INT8_PRODUCTS) {
        multiply_integers(p, tiles, columns, w);
        return;
    }
    if (p->weights != RNNFAST_FULL) {
        multiply_narrow(p, tiles, columns, w);
        return;
    }
#endif
    multiply(p, tiles, columns, w);
}

INLINE void multiply_row_weights(const product *p, const REAL *a, REAL *c, poller *w)
{
#if REAL_BITS == 32
    if (p->weights == RNNFAST_INT8_PRODUCTS) {
        multiply_integer_row(p, a, c, w);
        return;
    }
    if (p->weights != RNNFAST_FULL) {
        multiply_narrow_row(p, a, c, (range){0, p->columns}, w);
        return;
    }
#endif
    multiply_row(p, a, c, w);
}

INLINE void multiply_row_weights_twice(const product *first, const REAL *first_a, REAL *first_c, const product *p, const REAL *a, REAL *c,
                                       poller *w)
{
    if (p->weights == RNNFAST_FULL) {
        multiply_row_twice(first, first_a, first_c, p, a, c, w);
        return;
    }
    multiply_row_weights(first, first_a, first_c, w);
    multiply_row_weights(p, a, c, w);
}
