/* Memory layouts: the shape of a stack and of a problem, and where each matrix lies in packed weights, tape and workspace.
 *
 * Each layout is one function that reserves regions of an arena. It runs with a NULL base to count, in sizes(), and with the real base to
 * assign addresses (arena.h). Rows of internal matrices are padded to whole vectors, so whole vectors may be written to their ends. All
 * lengths count elements.
 */
#pragma once

#include "arena.h"
#include "caches.h"
#include "cells.h"
#include "packing.h"

enum {
    SUM_ROWS = RNNFAST_SUM_ROWS,
    BLOCK_ROWS = 48,               /* but at least this many rows, to pay for reading W_ih */
    CROWDED = 1024 / sizeof(REAL), /* rows a multiple of this apart share a few sets of L1 */
    FEW_VECTORS = 3                /* in a gate that is padded even where masks are free */
};

/* ---- shapes ---- */

/* A stack, with what follows from its cell. */
typedef struct {
    const cell *cell;
    int weights;
    int gates, columns, stages;
    int keeps_gates, has_c, keeps_aux, projects, elementwise, reads_x, zones;
    ptrdiff_t L, D, I, H, P;
    ptrdiff_t H_gate;                              /* from column to column of the gates buffer; dgates are H apart */
    ptrdiff_t gates_row, dgates_row, H_row, P_row; /* lengths of rows */
    ptrdiff_t extra;                               /* elements of the per-unit extras of a layer and direction */
} shape;

/* Whether there are weights of a kind for this element type. */
static int has_weights(rnnfast_weights weights)
{
    return REAL_BITS == 32 ? weights < RNNFAST_WEIGHTS : weights == RNNFAST_FULL;
}

/* Whether the cell and the kind of weights exist, P is H or, for a cell that supports a projection, 1 .. H - 1, and the cell can read x. */
static int is_valid(const rnnfast_stack *stack)
{
    const rnnfast_cell_info *info = cell_info(stack->cell);
    if (!info || !has_weights(stack->weights)) return 0;
    if (info->reads_x && (stack->I != stack->H || (stack->layers > 1 && stack->directions > 1))) return 0;
    return stack->P == stack->H || (info->supports_projection && 0 < stack->P && stack->P < stack->H);
}

/* From column to column of the gates buffer. Whole vectors, so that pointwise parts and products end in whole ones, and threads may divide
 * units anywhere. Where masks are free, columns are padded only if they are few vectors of a cell with a product that ends before the last
 * column: GRU with AVX-512, H = 20: 0.57 of the time for N = 1, 0.94 for N = 16. An LSTM would take 1.2 of the time for the padding's
 * products. dgates are not padded, because their columns are the terms of a sum. */
static ptrdiff_t gate_length(const cell *cell, ptrdiff_t H)
{
    /* All columns of an elementwise cell come from the product with W_ih. */
    return HAS_MASKS && (cell->info.elementwise || cell->stage[0].count == cell->info.columns || H > FEW_VECTORS * LANES)
               ? H
               : padded(H, LANES);
}

/* The length of a row of gates or dgates. Rows do not conflict in cache sets, which would double the time of column sums. */
static ptrdiff_t gates_row(ptrdiff_t elements)
{
    ptrdiff_t row = padded(elements, LANES);
    return row % CROWDED ? row : plus(row, ALIGN);
}

static shape shape_of(const rnnfast_stack *stack)
{
    const cell *cell = &cells[stack->cell];
    const rnnfast_cell_info *info = &cell->info;
    shape s = {.cell = cell,
               .weights = (int)stack->weights,
               .L = stack->layers,
               .D = stack->directions,
               .I = stack->I,
               .H = stack->H,
               .P = stack->P};
    assert(is_valid(stack) && info->extra_is_trained == (cell->add_extra_terms != NULL));
    s.projects = s.P != s.H;
    s.stages = cell->stages + s.projects;
    s.gates = (int)strlen(info->gates);
    s.columns = info->columns;
    s.keeps_gates = info->keeps_gates;
    s.has_c = info->has_c;
    s.elementwise = info->elementwise;
    s.reads_x = info->reads_x;
    s.zones = stack->zoneout_h > 0 || stack->zoneout_c > 0;
    s.keeps_aux = info->keeps_aux || s.projects;
    s.H_gate = gate_length(cell, s.H);
    s.gates_row = gates_row(times(s.columns, s.H_gate));
    s.dgates_row = gates_row(times(s.columns, s.H));
    s.H_row = padded(s.H, LANES);
    s.P_row = padded(s.P, LANES);
    if (info->extra_rows && (stack->peepholes || !info->extra_is_optional)) s.extra = times(info->extra_rows, s.H);
    return s;
}

static ptrdiff_t input_width(const shape *s, ptrdiff_t layer)
{
    return layer ? times(s->D, s->P) : s->I;
}

static ptrdiff_t widest_input(const shape *s)
{
    return s->L > 1 ? max_of(s->I, input_width(s, 1)) : s->I;
}

/* A stage's product: its source's length and its columns. In backward, the columns are those of dgates. */
static ptrdiff_t stage_source(const shape *s, const stage *g)
{
    return g->from_aux ? s->H : s->P;
}

static ptrdiff_t stage_columns(const shape *s, const stage *g, int back)
{
    return g->count ? times(g->count, back ? s->H : s->H_gate) : s->P;
}

/* Time and batch. With an order, N counts sequences. */
typedef struct {
    ptrdiff_t T, N;
    ptrdiff_t rows;   /* of all steps */
    ptrdiff_t stored; /* rows between layers: those of all steps, or, if two directions of an order share them, T * N of x */
} extent;

static extent extent_of(ptrdiff_t T, ptrdiff_t N, const rnnfast_order *o, ptrdiff_t directions)
{
    extent e = {T, N, times(T, N), times(T, N)};
    if (!o) return e;
    e.T = o->steps;
    e.N = o->sequences;
    e.rows = o->begin[o->steps] - o->begin[0];
    if (directions == 1) e.stored = e.rows;
    return e;
}

/* The maximum number of rows in a block of steps; every block has at least one step. */
static ptrdiff_t forward_rows(const shape *s)
{
    ptrdiff_t rows = min_of(BLOCK_BYTES / (ptrdiff_t)sizeof(REAL) / s->gates_row, SUM_ROWS);
    return rows < BLOCK_ROWS ? BLOCK_ROWS : rows;
}

static ptrdiff_t block_rows(const extent *e, ptrdiff_t rows)
{
    return max_of(e->N, min_of(rows, e->rows));
}

/* ---- parts ---- */

/* Memory divided into parts: the first `count` have one length, the others another. */
typedef struct {
    REAL *base;
    ptrdiff_t count, first, other;
    ptrdiff_t total; /* number of parts */
} parts;

INLINE ptrdiff_t offset_of(const parts *p, ptrdiff_t i)
{
    return i < p->count ? times(i, p->first) : plus(times(p->count, p->first), times(i - p->count, p->other));
}

INLINE arena part_at(const parts *p, ptrdiff_t i)
{
    arena a = {p->base, offset_of(p, i), offset_of(p, i + 1)};
    return a;
}

static ptrdiff_t length_of(const parts *p)
{
    return offset_of(p, p->total);
}

/* ---- packed weights: a part for each layer and direction ---- */

/* w are the weights of the stages; bias is NULL in the form that backward reads. */
typedef struct {
    REAL *w_ih, *w[MOST_STAGES], *bias, *extra;
} weights;

/* A weight of a product of K features and `columns` columns, in panels for forward, or for backward. */
INLINE REAL *reserve_weight(arena *a, ptrdiff_t K, ptrdiff_t columns, int back, int weights)
{
    if (back) return reserve(a, times(columns, padded(K, LANES)));
    return reserve(a, times(depth_of(weights, K) + has_scales(weights), padded(columns, LANES)));
}

INLINE weights lay_out_weights(arena *a, const shape *s, ptrdiff_t layer, int back)
{
    weights w = {.w_ih = reserve_weight(a, input_width(s, layer), times(s->gates, back ? s->H : s->H_gate), back, s->weights)};
    for (int i = 0; i < s->stages; i++) {
        const stage *g = &s->cell->stage[i];
        if (has_product(g)) w.w[i] = reserve_weight(a, stage_source(s, g), stage_columns(s, g, back), back, s->weights);
    }
    if (!back) w.bias = reserve(a, s->gates_row);
    if (s->extra) w.extra = reserve(a, s->extra);
    return w;
}

INLINE parts parts_of_weights(const shape *s, const void *base, int back)
{
    arena first = {0}, later = {0};
    lay_out_weights(&first, s, 0, back);
    if (s->L > 1) lay_out_weights(&later, s, 1, back);
    parts p = {(REAL *)base, s->D, first.used, later.used, times(s->L, s->D)};
    return p;
}

INLINE weights weights_at(const parts *p, const shape *s, ptrdiff_t layer, ptrdiff_t direction, int back)
{
    arena a = part_at(p, layer * s->D + direction);
    return lay_out_weights(&a, s, layer, back);
}

/* ---- tape: outputs of all layers but the last, then the values of all steps that each layer and direction keeps ---- */

/* With zoneout, new_state is what backward reads of the state that the cell computes: c, or h of a cell that keeps no gates. */
typedef struct {
    REAL *gates, *c, *aux, *new_state; /* [rows, row], or NULL */
} kept;

static REAL *lay_out_output(arena *a, const shape *s, const extent *e)
{
    return reserve(a, times(times(e->stored, s->D), s->P));
}

static kept lay_out_kept(arena *a, const shape *s, const extent *e)
{
    kept k = {0};
    if (s->keeps_gates) k.gates = reserve(a, times(e->rows, s->gates_row));
    if (s->has_c) k.c = reserve(a, times(e->rows, s->H_row));
    if (s->keeps_aux) k.aux = reserve(a, times(e->rows, s->H_row));
    if (s->zones && (s->has_c || !s->keeps_gates)) k.new_state = reserve(a, times(e->rows, s->H_row));
    return k;
}

static parts parts_of_tape(const shape *s, const extent *e, void *base)
{
    arena output = {0}, state = {0};
    if (s->L > 1) lay_out_output(&output, s, e);
    lay_out_kept(&state, s, e);
    parts p = {base, s->L - 1, output.used, state.used, plus(s->L - 1, times(s->L, s->D))};
    return p;
}

static REAL *output_at(const parts *tape, const shape *s, const extent *e, ptrdiff_t layer)
{
    arena a = part_at(tape, layer);
    return lay_out_output(&a, s, e);
}

static kept kept_at(const parts *tape, const shape *s, const extent *e, ptrdiff_t state)
{
    arena a = part_at(tape, s->L - 1 + state);
    return lay_out_kept(&a, s, e);
}

/* ---- workspace ---- */

/* Scratch memory of one direction. Forward: gates of a block of steps and aux of a step, if no tape keeps them. Backward: dgates and, with
 * a projection, dh of a block of steps; dh, dc and daux of a step; for sums over SUM_ROWS rows dgates and dh in tiles, x, h and aux in
 * panels, and the sums for the gradient of the extras. Both: the masked operands of a step's recurrent product, or their gradients; with
 * zoneout, h and then c that the cell computes in a step, or their gradients. */
typedef struct {
    REAL *gates, *aux, *masked, *new_states;
    REAL *dgates, *dh_steps, *dh, *dc, *daux;
    REAL *gate_tiles, *dh_tiles, *x_panels, *h_panels, *aux_panels, *extra_sums;
} scratch;

typedef struct {
    REAL *zeros;      /* a row of zeros, for initial states that are NULL */
    REAL *between[2]; /* outputs of layers without a tape, or their gradients */
    REAL *masked;     /* the outputs of a layer times its dropout mask */
    REAL *second_dx;  /* dx of the second direction */
    scratch of[2];
} workspace;

static void lay_out_backward(scratch *own, arena *a, const shape *s, const extent *e)
{
    ptrdiff_t rows = block_rows(e, SUM_ROWS), sums = min_of(rows, SUM_ROWS);
    own->dgates = reserve(a, times(rows, s->dgates_row));
    if (s->projects) own->dh_steps = reserve(a, times(rows, s->P_row));
    own->dh = reserve(a, times(e->N, s->P_row));
    own->dc = reserve(a, times(e->N, s->H_row));
    own->daux = reserve(a, times(e->N, s->H_row));
    own->gate_tiles = reserve(a, times(sums, s->dgates_row));
    if (s->projects) own->dh_tiles = reserve(a, times(sums, s->P_row));
    own->x_panels = reserve(a, times(sums, padded(widest_input(s), LANES)));
    if (!s->elementwise) own->h_panels = reserve(a, times(sums, s->P_row));
    if (s->keeps_aux) own->aux_panels = reserve(a, times(sums, s->H_row));
    if (s->extra && s->cell->add_extra_terms) own->extra_sums = reserve(a, s->extra);
}

INLINE void lay_out_workspace(workspace *w, arena *a, const shape *s, const extent *e, int back)
{
    memset(w, 0, sizeof *w);
    w->zeros = reserve(a, s->H_row);
    for (int i = 0; i < min_of(s->L - 1, 2); i++) w->between[i] = lay_out_output(a, s, e);
    w->masked = w->between[0]; /* forward: with a tape the outputs are there, and without one they are masked in place */
    if (back && s->L > 1) w->masked = lay_out_output(a, s, e);
    if (back && s->D > 1) w->second_dx = reserve(a, times(e->stored, widest_input(s)));
    for (int d = 0; d < s->D; d++) {
        w->of[d].masked = reserve(a, times(e->N, s->P_row));
        if (s->zones) w->of[d].new_states = reserve(a, times(2 * e->N, s->H_row));
        if (back) {
            lay_out_backward(&w->of[d], a, s, e);
        } else {
            w->of[d].gates = reserve(a, times(block_rows(e, forward_rows(s)), s->gates_row));
            w->of[d].aux = reserve(a, times(e->N, s->H_row));
        }
    }
}

/* ---- sizes ---- */

COMPACT int sizes(const rnnfast_stack *stack, ptrdiff_t T, ptrdiff_t N, const rnnfast_order *o, rnnfast_sizes *out)
{
    if (!is_valid(stack)) return 1;
    shape s = shape_of(stack);
    extent e = extent_of(T, N, o, s.D);
    workspace w;
    arena forward = {0}, backward = {0};
    parts weights = parts_of_weights(&s, NULL, 0), back = parts_of_weights(&s, NULL, 1), tape = parts_of_tape(&s, &e, NULL);
    lay_out_workspace(&w, &forward, &s, &e, 0);
    lay_out_workspace(&w, &backward, &s, &e, 1);
    const ptrdiff_t elements[] = {length_of(&weights), length_of(&back), length_of(&tape), forward.used, backward.used};
    ptrdiff_t most = times(times(T, N), plus(s.I, times(s.D, s.P))); /* x and y */
    for (int i = 0; i < 5; i++) most = max_of(most, elements[i]);
    out->packed = (size_t)elements[0] * sizeof(REAL);
    out->packed_back = (size_t)elements[1] * sizeof(REAL);
    out->tape = (size_t)elements[2] * sizeof(REAL);
    out->forward_workspace = (size_t)elements[3] * sizeof(REAL);
    out->backward_workspace = (size_t)elements[4] * sizeof(REAL);
    return most == MAX_ELEMENTS;
}
