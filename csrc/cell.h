/* What a cell is: its gates, the stages of its step, and what the pointwise parts of a stage see.
 *
 * A step begins with the gates buffer holding bias + W_ih x. Each stage adds a product to some of its columns and then runs a pointwise
 * part over the units. The gates buffer of a row holds `width` columns of H numbers. ih[b] and hh[b] name the gate, in torch's order, of
 * weight_ih and weight_hh that feeds column b (-1: none), so nothing else needs to know a cell's order of gates.
 *
 * Forward leaves in the gates buffer what backward wants to see; backward writes the gradient of a pre-activation into the same column
 * of dgates. With a projection (Sak et al. 2014) the cell's output goes to aux, and one more stage, a product without a pointwise part,
 * makes h of it.
 *
 * Backward: dh comes in as the gradient of the cell's output; a cell that keeps a share of h_before in h leaves that share of
 * the gradient in dh and the product then adds to it (keeps_dh), else the product overwrites. dc comes in and goes out. Parts read and
 * write only their own row; c and c_before may be the same. Rounding: one per operation written, activations as in activations.h.
 */
#ifndef RNNFAST_CELL_H
#define RNNFAST_CELL_H

#include "activations.h"
#include "gemm.h"

/* What cells named ANY are to do. */
typedef struct {
    const rnnfast_activation *functions; /* f, g, h */
    REAL clip;
    int coupled;
    const REAL *peephole; /* [3, H] */
} variant;

/* A row at a step. aux is r * h_before (gru before), or the output before its projection. */
typedef struct {
    ptrdiff_t H;
    REAL *gates;
    const REAL *c_before, *h_before;
    REAL *c, *h, *aux;
    REAL *dgates, *dh, *dc, *daux; /* backward only */
    const variant *any;
} point;

typedef void pointwise(const point *, range units);

typedef struct {
    int from_aux;     /* the product's source: aux, or h of the step before */
    int first, count; /* the columns it adds to; count 0: it makes h */
    int keeps_dh;
    pointwise *forward, *backward; /* run after the product (backward: before it); may be NULL */
} stage;

typedef struct {
    rnnfast_cell_info info;
    int gates, width; /* from info, in shape_of() */
    signed char ih[4], hh[4];
    int keeps_gates, has_c, has_aux;
    int stages;
    stage stage[2];
} cell;

INLINE vec get(const REAL *p, ptrdiff_t n)
{
    return n == LANES ? load(p) : load_part(p, n);
}

INLINE void put(REAL *p, vec v, ptrdiff_t n)
{
    if (n == LANES) store(p, v);
    else store_part(p, v, n);
}

/* The body for each vector of units; the last one may be short. */
INLINE void for_units(const point *p, range units, void (*body)(const point *, ptrdiff_t j, ptrdiff_t n))
{
    ptrdiff_t j = units.begin;
    for (; j + LANES <= units.end; j += LANES) body(p, j, LANES);
    if (j < units.end) body(p, j, units.end - j);
}

/* h of all kinds of gru: (1 - z) n + z h_before */
INLINE vec gru_mix(vec z, vec n, vec h_before)
{
    return muladd(z, h_before - n, n);
}

#endif
