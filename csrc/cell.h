/* Definition of a cell: the facts that rnnfast.h exports, the stages of its step, and the arguments of their pointwise parts.
 *
 * A step begins with the gates buffer holding bias + W_ih x. Each stage adds a product to some columns of the buffer and then runs a
 * pointwise part over the units. The gates buffer of a row holds `columns` columns of H elements, H_gate elements apart; dgates are H
 * apart. ih[b] and hh[b] name the gate, in torch's order, of weight_ih and weight_hh that feeds column b (-1: none), so no other file
 * knows a cell's order of gates.
 *
 * Forward leaves the values that backward needs in the gates buffer; backward writes the gradient of a pre-activation into the same column
 * of dgates. With a projection (Sak et al. 2014) the cell's output goes to aux, and a last stage, a product without a pointwise part,
 * computes h from it. The entry of a cell that supports a projection has that stage after its own `stages`.
 *
 * The only stage of an elementwise cell has a pointwise part without a product: gates are bias + W_ih x. A cell that reads x leaves the
 * gradient of that share in dx, to which the product with W_ih adds.
 *
 * Backward: on entry dh is the gradient of the cell's output. If h depends on h_before directly, the pointwise part leaves that share
 * of the gradient in dh and the product adds to it (keeps_dh); otherwise the product overwrites dh. dc is both input and output.
 * Aliasing: parts read and write their own row only; c and c_before may be the same row.
 * Error: one rounding for each operation written, activations as in activations.h.
 */
#pragma once

#include "activations.h"
#include "view.h"

/* Options that a stack sets for its cell. */
typedef struct {
    const rnnfast_activation *functions; /* f, g, h */
    REAL clip;
    int coupled;
    const REAL *extra; /* [extra_rows, H]; NULL if the stack has none */
} cell_options;

/* A row at a step. aux is r * h_before (GRU, reset before the product) or the output before its projection. */
typedef struct {
    ptrdiff_t H, H_gate;
    REAL *gates;
    const REAL *x; /* of cells that read it */
    const REAL *c_before, *h_before;
    REAL *c, *h, *aux;
    REAL *dgates, *dh, *dc, *daux, *dx; /* backward only */
    const cell_options *options;
} point;

typedef void pointwise(const point *, range units);

typedef struct {
    int from_aux;     /* the product reads aux; otherwise h of the step before */
    int first, count; /* the columns that the product adds to; with count 0, a stage computes h, or, if it is pointwise, has no product */
    int keeps_dh;
    pointwise *forward, *backward; /* run after the product (backward: before it); may be NULL */
} stage;

enum { MOST_STAGES = 2 };

INLINE int has_product(const stage *g)
{
    return g->count || !g->forward;
}

typedef struct {
    rnnfast_cell_info info;
    signed char ih[4], hh[4];
    int stages;
    stage stage[MOST_STAGES];
    /* Adds the terms of R rows, in order, to sums for the gradient of the extras, [extra_rows, H]; NULL if extras are not trained. */
    void (*add_extra_terms)(const point *rows, ptrdiff_t R, range units, REAL *sums);
} cell;

#if LANES == 1
/* Units do not depend on one another, even if c is c_before. Compilers that know it make vectors of a program without an engine. */
#if defined(__clang__)
#pragma clang diagnostic ignored "-Wpass-failed" /* some loops cannot be vectorised */
#define INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#elif defined(__GNUC__)
#define INDEPENDENT _Pragma("GCC ivdep")
#else
#define INDEPENDENT
#endif

#define FOR_UNITS(j, lanes, units) INDEPENDENT for (ptrdiff_t j = (units).begin, lanes = 1; j < (units).end; j += lanes)
#else
/* Loops over a range of units, a vector at a time: j is the first unit, lanes how many there are. The outer loop is unrolled, so that
 * whole vectors, for which lanes is the constant LANES, and the remainder are compiled separately. */
#define FOR_UNITS(j, lanes, units)                                                                                                         \
    _Pragma("GCC unroll 2") for (int rest = 0; rest < (LANES > 1 ? 2 : 1); rest++) for (ptrdiff_t j = vectors_of(units, rest).begin,       \
                                                                                        end = vectors_of(units, rest).end,                 \
                                                                                        lanes = rest ? end - j : LANES;                    \
                                                                                        j < end; j = rest ? end : j + LANES)

/* The whole vectors of some units, or the remainder. */
INLINE range vectors_of(range units, int rest)
{
    ptrdiff_t edge = units.begin + (units.end - units.begin) / LANES * LANES;
    return (range){rest ? edge : units.begin, rest ? units.end : edge};
}
#endif

/* As get() and put(), for the gates buffer: unless masks are free, a column has room for whole vectors there (layout.h). */
INLINE vec get_gate(const REAL *p, ptrdiff_t lanes)
{
    return HAS_MASKS ? get(p, lanes) : load(p);
}

INLINE void put_gate(REAL *p, vec v, ptrdiff_t lanes)
{
    if (HAS_MASKS) put(p, v, lanes);
    else store(p, v);
}

/* h of every GRU: (1 - z) n + z h_before. */
INLINE vec gru_mix(vec z, vec n, vec h_before)
{
    return muladd(z, h_before - n, n);
}

INLINE vec relu(vec a)
{
    return greater(broadcast(0), a); /* with this order of operands, NaN propagates */
}

/* The gradient of a, from that of h = relu(a). */
INLINE vec relu_gradient(vec dh, vec h)
{
    return select(less_equal(h, broadcast(0)), broadcast(0), dh);
}
