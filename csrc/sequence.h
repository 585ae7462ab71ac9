/* The engine: forward and backward time loops for any cell, the readout, and the table that a stub exports.
 *
 * Forward, for each layer and direction, in blocks of steps: the input product bias + W_ih x for the block; then, step by step, the
 * cell's stages (cells.h). Backward, in blocks of steps from the last: step by step the stages in reverse; then, for the block, dx and
 * the sums for the gradients of the weights. The loops count steps as the direction takes them: a reverse direction has its grids
 * turned around, and nothing else knows of it. Inference is training whose tape has stride zero. Sequences of unequal lengths go from
 * the longest to the shortest, so a step has the first so many rows, and those that end leave behind them no hole.
 *
 * Order of sums. A pre-activation: bias_ih + bias_hh, then the features of x, then the units of h. A gradient of a weight: blocks of
 * at most SUM_ROWS rows (step by step, rows of the batch within), each one chain from zero, added block by block from the last; the
 * edges depend on T and N alone. dx of two directions: the forward one's plus the reverse one's.
 *
 * Threads. A block of steps is one run of the team, so each block is divided among those who are there when it begins. Two
 * directions go to two crews if there are two threads. Within a crew rows of the batch are dealt out, without any meeting; where
 * there are too few rows, units: each member computes all gates of its own units, and one meeting a step (two a stage, where gates do
 * not begin at whole vectors) shows it the others'. Sums over rows are dealt out by columns. None of this changes an order of
 * summation.
 *
 * Memory: all rows of internal matrices begin at whole vectors, so whole vectors may be written to their ends.
 */
#ifndef RNNFAST_SEQUENCE_H
#define RNNFAST_SEQUENCE_H

#include "cells.h"

#include <assert.h>

enum {
    SUM_ROWS = RNNFAST_SUM_ROWS,
    CHUNK_ROWS = 128,       /* rows of a batch that go through time together: their gates stay in cache */
    BLOCK_BYTES = 1 << 18,  /* gates of a block of steps, to stay in the second-level cache */
    BLOCK_ROWS = 48,        /* but at least so many rows, to pay for reading W_ih */
    THREAD_WORK = 1 << 22,  /* multiply-adds that are worth a further thread: to wake one takes as long as some of them */
    LOOK_WORK = 1 << 15,    /* that are worth a look for threads that may yet come: a twentieth of their time */
    MEETING_WORK = 1 << 15, /* and those of one step that are worth a meeting to each */
    MANY_MEETINGS = 16,     /* times that: better units than tiles of few rows, which would read all weights for little */
    FAR_WEIGHTS = 2 << 20,  /* so many of them are better read by parts, each thread its own */
    MANY_TILES = 8,         /* unless each thread has so many tiles of rows to read them for */
    MOST_LOOKS = 1 << 13,   /* some 120 us */
    MOVE_WORK = 8,          /* what moving a number costs, counted in multiply-adds at the slowest */
    POINT_WORK = 64,        /* and a unit's pointwise part */
    ALIGN = 64 / sizeof(REAL),
    CROWDED = 1024 / sizeof(REAL) /* rows so far apart, or a multiple of it, fall into few places of the first-level cache */
};

/* ---- sizes: numbers, not bytes; they stay at TOO_MANY once they reach it ---- */

#define TOO_MANY (PTRDIFF_MAX / (ptrdiff_t)sizeof(REAL))

static ptrdiff_t times(ptrdiff_t a, ptrdiff_t b)
{
#if defined(__GNUC__)
    ptrdiff_t c; /* sizes are worked out anew by each call: no divisions */
    return __builtin_mul_overflow(a, b, &c) || c > TOO_MANY ? TOO_MANY : c;
#else
    return b && a > TOO_MANY / b ? TOO_MANY : a * b;
#endif
}

static ptrdiff_t plus(ptrdiff_t a, ptrdiff_t b)
{
    return a > TOO_MANY - b ? TOO_MANY : a + b;
}

static ptrdiff_t whole(ptrdiff_t a, ptrdiff_t to)
{
    return a > TOO_MANY - to ? TOO_MANY : round_up(a, to);
}

/* How much there is to go through. N counts sequences where there is an order. */
typedef struct {
    ptrdiff_t T, N;
    ptrdiff_t rows;    /* of all steps */
    ptrdiff_t between; /* places between layers: one for each row, or, where two directions of an order meet there, for all of x */
} extent;

static extent extent_of(ptrdiff_t T, ptrdiff_t N, const rnnfast_order *o, ptrdiff_t directions)
{
    extent e = {T, N, times(T, N), times(T, N)};
    if (!o) return e;
    e.T = o->steps;
    e.N = o->sequences;
    e.rows = o->begin[o->steps] - o->begin[0];
    if (directions == 1) e.between = e.rows;
    return e;
}

/* A stack with its cell, and the lengths of rows. */
typedef struct {
    cell cell;
    ptrdiff_t L, D, I, H, P;
    ptrdiff_t gates_row, H_row, P_row;
    int peepholes;
} shape;

static shape shape_of(const rnnfast_stack *s)
{
    shape z = {.cell = cell_of(s), .L = s->layers, .D = s->directions, .I = s->I, .H = s->H, .P = s->P};
    z.peepholes = cells[s->cell].info.extra_is_optional && s->peepholes;
    z.gates_row = whole(times(z.cell.width, s->H), LANES);
    if (z.gates_row % CROWDED == 0) z.gates_row = plus(z.gates_row, ALIGN); /* columns of dgates are read: in half the time */
    z.H_row = whole(s->H, LANES);
    z.P_row = whole(s->P, LANES);
    return z;
}

static ptrdiff_t width_of_input(const shape *z, ptrdiff_t layer)
{
    return layer ? times(z->D, z->P) : z->I;
}

static ptrdiff_t stage_source(const shape *z, const stage *g)
{
    return g->from_aux ? z->H : z->P;
}

static ptrdiff_t stage_columns(const shape *z, const stage *g)
{
    return g->count ? times(g->count, z->H) : z->P;
}

/* Numbers of the peepholes of a layer and direction, if it has any. */
static ptrdiff_t peepholes(const shape *z)
{
    return z->peepholes ? times(3, z->H) : 0;
}

static ptrdiff_t packed_of_layer(const shape *z, ptrdiff_t layer)
{
    ptrdiff_t sum = times(width_of_input(z, layer), whole(times(z->cell.gates, z->H), LANES));
    for (int i = 0; i < z->cell.stages; i++)
        sum = plus(sum, times(stage_source(z, &z->cell.stage[i]), whole(stage_columns(z, &z->cell.stage[i]), LANES)));
    return whole(plus(plus(sum, z->gates_row), peepholes(z)), ALIGN);
}

static ptrdiff_t packed_back_of_layer(const shape *z, ptrdiff_t layer)
{
    ptrdiff_t sum = times(times(z->cell.gates, z->H), whole(width_of_input(z, layer), LANES));
    for (int i = 0; i < z->cell.stages; i++)
        sum = plus(sum, times(stage_columns(z, &z->cell.stage[i]), whole(stage_source(z, &z->cell.stage[i]), LANES)));
    return whole(plus(sum, peepholes(z)), ALIGN);
}

/* Where the part of a layer and direction begins, if those of layer 0 have the size `first` and the others the size `later`. */
static ptrdiff_t place(const shape *z, ptrdiff_t layer, ptrdiff_t direction, ptrdiff_t first, ptrdiff_t later)
{
    return layer ? plus(times(z->D, first), times(plus(times(layer - 1, z->D), direction), later)) : direction * first;
}

/* Outputs of one layer. */
static ptrdiff_t outputs(const shape *z, const extent *e)
{
    return whole(times(times(e->between, z->D), z->P), ALIGN);
}

/* What a direction keeps of all steps: gates, c, aux, each [rows, row]. */
static ptrdiff_t kept(const shape *z, ptrdiff_t rows)
{
    ptrdiff_t c = z->cell.has_c ? z->H_row : 0, aux = z->cell.has_aux ? z->H_row : 0;
    ptrdiff_t gates = z->cell.keeps_gates ? z->gates_row : 0;
    return whole(plus(times(rows, gates), plus(times(rows, c), times(rows, aux))), ALIGN);
}

/* Rows of a block of steps; one step at least is taken. */
static ptrdiff_t forward_rows(const shape *z)
{
    ptrdiff_t rows = at_most(BLOCK_BYTES / (ptrdiff_t)sizeof(REAL) / z->gates_row, SUM_ROWS);
    return rows < BLOCK_ROWS ? BLOCK_ROWS : rows;
}

static ptrdiff_t most_rows(const extent *e, ptrdiff_t rows)
{
    return greatest(e->N, at_most(rows, e->rows));
}

static ptrdiff_t zero_row(const shape *z)
{
    return whole(z->H_row, ALIGN);
}

static ptrdiff_t between_layers(const shape *z)
{
    return at_most(z->L - 1, 2);
}

/* A direction's own workspace in forward: gates of a block of steps, aux of a step. */
static ptrdiff_t forward_own(const shape *z, const extent *e)
{
    return whole(plus(times(most_rows(e, forward_rows(z)), z->gates_row), times(e->N, z->H_row)), ALIGN);
}

/* And in backward: dgates and dh of a block of steps, dh, dc, daux of a step, tiles and panels for the sums. */
static ptrdiff_t backward_own(const shape *z, const extent *e)
{
    ptrdiff_t rows = most_rows(e, SUM_ROWS), sums = at_most(rows, SUM_ROWS);
    ptrdiff_t widest = width_of_input(z, 0) > width_of_input(z, 1) ? z->I : width_of_input(z, 1);
    ptrdiff_t of_step = plus(z->P_row, times(2, z->H_row));
    ptrdiff_t of_sum = plus(plus(z->gates_row, times(2, z->P_row)), plus(whole(widest, LANES), z->H_row));
    return whole(plus(plus(times(rows, plus(z->gates_row, z->P_row)), times(e->N, of_step)), times(sums, of_sum)), ALIGN);
}

/* dx of the second direction. */
static ptrdiff_t second_dx(const shape *z, const extent *e)
{
    ptrdiff_t widest = z->L > 1 && width_of_input(z, 1) > z->I ? width_of_input(z, 1) : z->I;
    return z->D > 1 ? whole(times(e->between, widest), ALIGN) : 0;
}

static int sizes(const rnnfast_stack *s, ptrdiff_t T, ptrdiff_t N, const rnnfast_order *o, rnnfast_sizes *out)
{
    shape z = shape_of(s);
    extent e = extent_of(T, N, o, s->directions);
    ptrdiff_t packed = place(&z, z.L, 0, packed_of_layer(&z, 0), packed_of_layer(&z, 1));
    ptrdiff_t back = place(&z, z.L, 0, packed_back_of_layer(&z, 0), packed_back_of_layer(&z, 1));
    ptrdiff_t tape = plus(times(times(z.L, z.D), kept(&z, e.rows)), times(z.L - 1, outputs(&z, &e)));
    ptrdiff_t forward = plus(plus(zero_row(&z), times(between_layers(&z), outputs(&z, &e))), times(z.D, forward_own(&z, &e)));
    ptrdiff_t dropped = z.L > 1 ? outputs(&z, &e) : 0;
    ptrdiff_t backward = plus(plus(zero_row(&z), plus(times(between_layers(&z), outputs(&z, &e)), dropped)),
                              plus(second_dx(&z, &e), times(z.D, backward_own(&z, &e))));
    ptrdiff_t data = times(times(T, N), plus(z.I, times(z.D, z.P)));
    out->packed = (size_t)packed * sizeof(REAL);
    out->packed_back = (size_t)back * sizeof(REAL);
    out->tape = (size_t)tape * sizeof(REAL);
    out->forward_workspace = (size_t)forward * sizeof(REAL);
    out->backward_workspace = (size_t)backward * sizeof(REAL);
    return packed == TOO_MANY || back == TOO_MANY || tape == TOO_MANY || forward == TOO_MANY || backward == TOO_MANY || data == TOO_MANY;
}

static REAL *take(REAL **from, ptrdiff_t numbers)
{
    REAL *p = *from;
    *from += numbers;
    return p;
}

/* ---- grids: what is at (step, row) ---- */

static grid grid_of(const void *at, ptrdiff_t N, ptrdiff_t step, ptrdiff_t row)
{
    grid g = {.at = (REAL *)at, .N = N, .step = step, .row = row};
    return g;
}

INLINE REAL *cell_at(const grid *g, ptrdiff_t s, ptrdiff_t n)
{
    return g->begin ? entry_at(g, g->begin[s] - g->begin[0] + n) : g->at + s * g->step + n * g->row;
}

/* Makes `to` what `g` is from a step and a row on. */
static void look_at(grid *to, const grid *g, ptrdiff_t s, ptrdiff_t n)
{
    to->row = g->row;
    if (!g->begin) {
        to->at = g->at + s * g->step + n * g->row;
        to->begin = NULL;
        return;
    }
    ptrdiff_t first = g->begin[s] - g->begin[0];
    to->begin = g->begin + s;
    to->from = g->from + n;
    to->step = g->step;
    to->places = g->places ? g->places + first : NULL;
    to->at = g->places ? g->at : g->at + first * g->row;
}

/* The same, with these rows only. */
static grid window(const grid *g, ptrdiff_t s, range rows)
{
    grid w = *g;
    look_at(&w, g, s, rows.begin);
    w.N = rows.end - rows.begin;
    return w;
}

/* T steps from the other end. */
static grid turned(grid g, ptrdiff_t T)
{
    return grid_of(g.at + (T - 1) * g.step, g.N, -g.step, g.row);
}

static grid shifted(grid g, ptrdiff_t columns)
{
    g.at += columns;
    return g;
}

static void copy_rows(grid to, grid from, ptrdiff_t columns, range rows)
{
    for (ptrdiff_t n = rows.begin; n < rows.end; n++) memmove(cell_at(&to, 0, n), cell_at(&from, 0, n), (size_t)columns * sizeof(REAL));
}

/* ---- one direction of one layer ---- */

typedef struct {
    shape z;
    ptrdiff_t T, N, K;      /* K features of the layer's input */
    const ptrdiff_t *begin; /* which of the rows are there: as in a grid */
    int keeps;              /* a tape is kept */
    grid x, y, h0, c0;
    grid gates, c, aux; /* of all steps; c and aux of one step alone, and gates of a block, if no tape is kept */
    const REAL *w_ih, *w[2], *bias;
    variant any;
    grid h_n, c_n;
    grid dy, dx;           /* backward only, as all that follows; dy.at NULL: zeros */
    grid dgates, dh_steps; /* of a block of steps */
    grid dh, dc, daux;     /* of a step */
    REAL *tiles, *panels;
    grid dh_of_all; /* of all steps, for the caller; at NULL: is not wanted */
    grid dh0, dc0;
    REAL *dw_ih, *dw_hh, *db_ih, *db_hh, *dw_hr, *dpeephole;
} direction;

static int projects(const cell *c)
{
    return c->stage[c->stages - 1].count == 0;
}

/* Rows that take step s, which none does after the last. */
static ptrdiff_t rows_at(const direction *d, ptrdiff_t s)
{
    if (s >= d->T) return 0;
    return d->begin ? d->begin[s + 1] - d->begin[s] : d->N;
}

static ptrdiff_t rows_between(const direction *d, ptrdiff_t s0, ptrdiff_t s1)
{
    return d->begin ? d->begin[s1] - d->begin[s0] : (s1 - s0) * d->N;
}

/* Those of some rows that take step s; none: begin is end. */
static range rows_there(const direction *d, ptrdiff_t s, range rows)
{
    if (d->begin) rows.end = greatest(rows.begin, at_most(rows.end, rows_at(d, s)));
    return rows;
}

/* Where a block of steps ends that begins at s0 and has at most so many rows, or one step. */
static ptrdiff_t block_end(const direction *d, ptrdiff_t s0, ptrdiff_t rows)
{
    if (!d->begin) return at_most(s0 + (rows > d->N ? rows / d->N : 1), d->T);
    ptrdiff_t s1 = s0 + 1;
    while (s1 < d->T && d->begin[s1 + 1] - d->begin[s0] <= rows) s1++;
    return s1;
}

/* Row n of what was there before step s. */
static REAL *before(const grid *g, const grid *initial, ptrdiff_t s, ptrdiff_t n)
{
    return s ? cell_at(g, s - 1, n) : cell_at(initial, 0, n);
}

/* Units (or other columns) that fall to member k of n, in whole vectors. */
static range units_of(ptrdiff_t columns, int k, int n)
{
    range vectors = part((columns + LANES - 1) / LANES, k, n);
    range units = {vectors.begin * LANES, at_most(vectors.end * LANES, columns)};
    return units;
}

/* What the pointwise parts see of row n at step s; slot: where the gates and dgates of the step are. */
static void point_at(point *p, const direction *d, ptrdiff_t s, ptrdiff_t slot, ptrdiff_t n)
{
    p->H = d->z.H;
    p->any = &d->any;
    p->gates = cell_at(&d->gates, slot, n);
    p->h_before = before(&d->y, &d->h0, s, n);
    p->aux = cell_at(&d->aux, s, n);
    p->h = projects(&d->z.cell) ? p->aux : cell_at(&d->y, s, n);
    if (d->z.cell.has_c) {
        p->c_before = before(&d->c, &d->c0, s, n);
        p->c = cell_at(&d->c, s, n);
    }
}

/* ---- those who work on one call ---- */

typedef struct {
    const rnnfast_problem *problem;
    const rnnfast_linear *linear;
    shape z;
    extent e;
    int team;
    rnnfast_flag stopped;
    watch watch;    /* the caller's */
    direction d[2]; /* of the layer at work */
    ptrdiff_t layer;
    ptrdiff_t s0, s1; /* the block of steps at work */
    range rows;       /* and the rows */
    grid unmasked, masked, dx, second_dx;
    const void *const *parameters; /* to be packed */
    REAL *packed, *packed_back;
} call;

typedef struct {
    int first, k, n; /* member k of n of a crew, which begins with member `first` of the team */
    range directions;
    const rnnfast_flag *stopped;
    watch *watch, of_member;
} crew;

static void start(call *c, int threads, double work, const rnnfast_poll *poll)
{
    double most = 1 + work / THREAD_WORK;
    watch w = {&c->stopped, poll, POLL_WORK};
    c->watch = w;
    double looks = work / LOOK_WORK;
    c->team = rnnfast_gather(most < threads ? (int)most : threads, looks < MOST_LOOKS ? (int)looks : MOST_LOOKS);
}

static void run(call *c, void (*work)(void *, int, int))
{
    if (!c->stopped) rnnfast_run(c->team, work, c);
}

/* Member k of n takes its place: in the one crew, or in that of its direction. */
static void join(crew *w, call *c, int k, int n)
{
    int D = (int)c->z.D, two = D == 2 && n > 1, of_first = (n + 1) / 2, second = two && k >= of_first;
    watch of_member = {&c->stopped, NULL, POLL_WORK};
    w->first = second ? of_first : 0;
    w->k = k - w->first;
    w->n = !two ? n : second ? n / 2 : of_first;
    w->directions.begin = second;
    w->directions.end = two ? second + 1 : D;
    w->stopped = &c->stopped;
    w->of_member = of_member;
    w->watch = k ? &w->of_member : &c->watch;
}

static void meet(const crew *w)
{
    rnnfast_meet(w->first, w->n, w->first + w->k, w->stopped);
}

/* ---- packing ---- */

/* Rows of a weight [count, K], K numbers apart, as columns j0 .. of what forward multiplies with and as rows j0 .. of what backward does;
 * either may be NULL. Part k of n of them. */
static void pack_weight(REAL *packed, REAL *back, ptrdiff_t K, ptrdiff_t columns, ptrdiff_t j0, ptrdiff_t count, const REAL *from, int k,
                        int n, watch *w)
{
    range own = part((count + TILE_COLUMNS - 1) / TILE_COLUMNS, k, n);
    for (ptrdiff_t j = own.begin * TILE_COLUMNS; j < at_most(own.end * TILE_COLUMNS, count); j += TILE_COLUMNS) {
        ptrdiff_t some = at_most(TILE_COLUMNS, count - j);
        if (stop_after(w, MOVE_WORK * some * K)) return;
        if (packed) pack_columns(packed, K, columns, j0 + j, some, from + j * K, K);
        for (ptrdiff_t i = j; back && i < j + some; i++) pack_row(back, columns, j0 + i, K, from + i * K);
    }
}

static void pack_direction(const shape *z, ptrdiff_t K, const void *const *parameters, REAL *packed, REAL *back, int k, int n, watch *w)
{
    const REAL *w_ih = parameters[0], *w_hh = parameters[1], *b_ih = parameters[2], *b_hh = parameters[3], *w_hr = parameters[4];
    const cell *cell = &z->cell;
    ptrdiff_t H = z->H, columns = cell->gates * H;
    REAL *panels = packed ? take(&packed, packed_size(K, columns)) : NULL;
    REAL *back_panels = back ? take(&back, packed_size(columns, K)) : NULL;
    if (panels && k == 0) pack_padding(panels, K, columns);
    for (int b = 0; b < cell->gates; b++) pack_weight(panels, back_panels, K, columns, b * H, H, w_ih + cell->ih[b] * H * K, k, n, w);
    for (int i = 0; i < cell->stages; i++) {
        const stage *g = &cell->stage[i];
        ptrdiff_t source = stage_source(z, g), some = stage_columns(z, g);
        panels = packed ? take(&packed, packed_size(source, some)) : NULL;
        back_panels = back ? take(&back, packed_size(some, source)) : NULL;
        if (panels && k == 0) pack_padding(panels, source, some);
        pack_weight(panels, back_panels, source, some, 0, some, g->count ? w_hh + cell->hh[g->first] * H * source : w_hr, k, n, w);
    }
    for (ptrdiff_t j = 0; packed && k == 0 && j < z->gates_row; j++) {
        int b = (int)(j / H);
        int of_ih = b < cell->width && b_ih ? cell->ih[b] : -1, of_hh = b < cell->width && b_hh ? cell->hh[b] : -1;
        packed[j] = (of_ih < 0 ? 0 : b_ih[of_ih * H + j % H]) + (of_hh < 0 ? 0 : b_hh[of_hh * H + j % H]);
    }
    size_t bytes = (size_t)peepholes(z) * sizeof(REAL);
    if (packed && bytes && k == 0) memcpy(packed + z->gates_row, parameters[5], bytes);
    if (back && bytes && k == 0) memcpy(back, parameters[5], bytes);
}

static void pack_run(void *argument, int k, int n)
{
    call *c = argument;
    const shape *z = &c->z;
    ptrdiff_t first = packed_of_layer(z, 0), later = packed_of_layer(z, 1);
    ptrdiff_t first_back = packed_back_of_layer(z, 0), later_back = packed_back_of_layer(z, 1);
    crew w;
    join(&w, c, k, n);
    for (ptrdiff_t layer = 0; layer < z->L; layer++)
        for (ptrdiff_t d = 0; d < z->D; d++)
            pack_direction(z, width_of_input(z, layer), c->parameters + RNNFAST_KINDS * (layer * z->D + d),
                           c->packed ? c->packed + place(z, layer, d, first, later) : NULL,
                           c->packed_back ? c->packed_back + place(z, layer, d, first_back, later_back) : NULL, k, n, w.watch);
}

static void pack(const rnnfast_stack *s, const void *const *parameters, void *packed, void *packed_back, int threads, rnnfast_poll poll)
{
    call c;
    c.z = shape_of(s);
    c.stopped = 0;
    c.parameters = parameters;
    c.packed = packed;
    c.packed_back = packed_back;
    start(&c, threads, (double)MOVE_WORK * place(&c.z, c.z.L, 0, packed_of_layer(&c.z, 0), packed_of_layer(&c.z, 1)), &poll);
    run(&c, pack_run);
    rnnfast_dismiss(c.team);
}

/* ---- shares of a block of steps ---- */

/* How a crew divides a block of steps: by rows, where each member gets tiles of rows, and by units, where the weights are so many that
 * it is better if each reads a part of them. Rows of less than a tile are better than units only where a step is short. Too short for a
 * meeting, it is left to the first member. Measured with two threads over one: LSTM N = 32 H = 1024 x1.97 by units, x1.72 by rows; GRU
 * N = 4 H = 512 x1.93, x1.42; LSTM N = 8 H = 128 x0.85, x1.94. */
typedef struct {
    range rows;
    int k, n; /* which part of the units */
} share;

static int by_rows(const direction *d, ptrdiff_t N, int n, double of_step)
{
    double weights = of_step / N;
    if (N >= TILE_ROWS * n) return weights < FAR_WEIGHTS || N >= MANY_TILES * TILE_ROWS * n || d->z.H % LANES;
    return N >= 2 * n && of_step < (double)MANY_MEETINGS * MEETING_WORK * n;
}

/* Returns whether a member has a share. */
static int take_share(share *own, const direction *d, const crew *w, range rows)
{
    ptrdiff_t N = rows.end - rows.begin;
    double of_step = (double)N * d->z.cell.gates * d->z.H * d->z.P;
    own->rows = rows;
    own->k = 0;
    own->n = 1;
    if (by_rows(d, N, w->n, of_step)) {
        range part_of_rows = part(N, w->k, w->n);
        own->rows.begin = rows.begin + part_of_rows.begin;
        own->rows.end = rows.begin + part_of_rows.end;
    } else if (of_step >= (double)MEETING_WORK * w->n) {
        own->k = w->k;
        own->n = w->n;
    } else if (w->k) {
        return 0;
    }
    return 1;
}

/* ---- forward ---- */

/* Of some rows, all that are there in some steps. */
static ptrdiff_t rows_of_block(const direction *d, ptrdiff_t s0, ptrdiff_t s1, range rows)
{
    ptrdiff_t sum = 0;
    if (!d->begin) return (s1 - s0) * (rows.end - rows.begin);
    for (ptrdiff_t s = s0; s < s1; s++) {
        range there = rows_there(d, s, rows);
        sum += there.end - there.begin;
    }
    return sum;
}

static product input_product(const direction *d, ptrdiff_t s0, ptrdiff_t s1, ptrdiff_t slot, range rows)
{
    product p = {.rows = rows_of_block(d, s0, s1, rows),
                 .K = d->K,
                 .columns = d->z.cell.gates * d->z.H,
                 .b = d->w_ih,
                 .from = FROM_ROW,
                 .start = d->bias,
                 .whole = d->z.cell.gates == d->z.cell.width};
    p.a = window(&d->x, s0, rows);
    p.c = window(&d->gates, slot, rows);
    return p;
}

/* Every other step goes through the panels of a weight from the last to the first: it finds in the caches what the step before has
 * left there, where all in turn would have pushed out each other. The sums are the same. Measured for a batch of 1 (weights of 64 KB,
 * 1, 4, 16 MB): products take 0.83, 0.89, 0.91, 0.9 of the time. */
static int from_last(ptrdiff_t s)
{
    return s & 1;
}

/* A stage's product for any step; aim() says for which. */
static product stage_product(const direction *d, int i, range rows)
{
    const stage *g = &d->z.cell.stage[i];
    product p = {.rows = rows.end - rows.begin, .K = stage_source(&d->z, g), .columns = stage_columns(&d->z, g), .b = d->w[i]};
    p.a = g->from_aux ? d->aux : d->y;
    p.c = g->count ? d->gates : d->y;
    p.a.N = p.c.N = p.rows;
    p.from = g->count ? FROM_C : FROM_ZERO;
    p.whole = g->count && g->first + g->count == d->z.cell.width && g->first * d->z.H + round_up(p.columns, LANES) <= d->z.gates_row;
    return p;
}

/* At step s, of some rows; slot: where the gates of the step are. Only what changes is written: to make the product anew for each
 * step costs 20 ns, a sixth of a step of an RNN with H = 64. */
static void aim(product *p, const direction *d, const stage *g, ptrdiff_t s, ptrdiff_t slot, range rows)
{
    p->rows = rows.end - rows.begin;
    if (g->from_aux) look_at(&p->a, &d->aux, s, rows.begin);
    else if (s) look_at(&p->a, &d->y, s - 1, rows.begin);
    else look_at(&p->a, &d->h0, 0, rows.begin);
    look_at(&p->c, g->count ? &d->gates : &d->y, g->count ? slot : s, rows.begin);
    if (g->count) p->c.at += g->first * d->z.H;
    p->from_last = from_last(s);
}

/* Columns that no input feeds start from their bias. */
static void fill_unfed(const direction *d, ptrdiff_t s, ptrdiff_t slot, range rows, range units)
{
    const cell *cell = &d->z.cell;
    size_t bytes = (size_t)(units.end - units.begin) * sizeof(REAL);
    for (int b = cell->gates; b < cell->width; b++) {
        ptrdiff_t j = b * d->z.H + units.begin;
        range there = rows_there(d, s, rows);
        for (ptrdiff_t n = there.begin; n < there.end; n++) memcpy(cell_at(&d->gates, slot, n) + j, d->bias + j, bytes);
    }
}

/* A member's part of a stage's product: if gates begin at whole vectors, the columns of its own units. */
static int has_own_columns(const direction *d, const stage *g)
{
    return g->count && d->z.H % LANES == 0;
}

static void multiply_stage(const direction *d, const product *p, const stage *g, const share *own, watch *w)
{
    ptrdiff_t H = d->z.H;
    range units = units_of(H, own->k, own->n);
    if (own->n == 1 || !has_own_columns(d, g)) {
        multiply(p, all_tiles(p), units_of(p->columns, own->k, own->n), w);
        return;
    }
    for (int i = 0; i < g->count; i++) {
        ptrdiff_t gate = p->from_last ? g->count - 1 - i : i;
        range columns = {gate * H + units.begin, gate * H + units.end};
        multiply(p, all_tiles(p), columns, w);
    }
}

static void forward_block(const direction *d, const crew *w, ptrdiff_t s0, ptrdiff_t s1, range all_rows)
{
    const cell *cell = &d->z.cell;
    ptrdiff_t first = d->keeps && cell->keeps_gates ? 0 : s0;
    share own;
    if (!take_share(&own, d, w, rows_there(d, s0, all_rows))) return;
    range rows = own.rows, units = units_of(d->z.H, own.k, own.n);
    product input = input_product(d, s0, s1, s0 - first, rows);
    multiply(&input, all_tiles(&input), units_of(input.columns, own.k, own.n), w->watch);
    if (*w->stopped) return;
    for (ptrdiff_t s = s0; s < s1; s++) fill_unfed(d, s, s - first, rows, units);
    if (own.n > 1) meet(w);
    product p[2];
    for (int i = 0; i < cell->stages; i++) p[i] = stage_product(d, i, rows);
    for (ptrdiff_t s = s0; s < s1; s++) {
        rows = rows_there(d, s, rows);
        if (rows.begin == rows.end) return;
        for (int i = 0; i < cell->stages; i++) {
            const stage *g = &cell->stage[i];
            aim(&p[i], d, g, s, s - first, rows);
            multiply_stage(d, &p[i], g, &own, w->watch);
            if (own.n > 1 && !has_own_columns(d, g)) meet(w);
            if (!g->forward) continue;
            for (ptrdiff_t r = rows.begin; r < rows.end; r++) {
                if (stop_after(w->watch, POINT_WORK * d->z.H_row)) return;
                point at;
                point_at(&at, d, s, s - first, r);
                g->forward(&at, units);
            }
            if (own.n > 1) meet(w);
        }
    }
}

/* ---- backward ---- */

static product stage_product_back(const direction *d, int i, range rows)
{
    const stage *g = &d->z.cell.stage[i];
    product p = {.K = stage_columns(&d->z, g), .columns = stage_source(&d->z, g), .b = d->w[i], .whole = 1};
    p.from = !g->from_aux && g->keeps_dh ? FROM_C : FROM_ZERO;
    p.a = g->count ? d->dgates : window(&d->dh, 0, rows);
    p.c = window(g->from_aux ? &d->daux : &d->dh, 0, rows);
    p.a.N = rows.end - rows.begin;
    if (i == 0 && d->dy.at) p.plus = d->dy, p.plus.N = p.a.N;
    return p;
}

/* At step s, of some rows. What makes dh adds the dy of the step that takes it. */
static void aim_back(product *p, const direction *d, int i, ptrdiff_t s, ptrdiff_t slot, range rows)
{
    const stage *g = &d->z.cell.stage[i];
    p->rows = rows.end - rows.begin;
    if (g->count) {
        look_at(&p->a, &d->dgates, slot, rows.begin);
        p->a.at += g->first * d->z.H;
    }
    if (i == 0) {
        if (s && d->dy.at) look_at(&p->plus, &d->dy, s - 1, rows.begin);
        else p->plus.at = NULL;
    }
    p->from_last = from_last(slot);
}

static product input_product_back(const direction *d, ptrdiff_t s0, ptrdiff_t s1, range rows)
{
    product p = {.rows = rows_of_block(d, s0, s1, rows), .K = d->z.cell.gates * d->z.H, .columns = d->K, .b = d->w_ih, .from = FROM_ZERO};
    p.a = window(&d->dgates, 0, rows);
    p.c = window(&d->dx, s0, rows);
    return p;
}

/* dh += dy for some columns, where step s is the last: it takes no dh from a product. */
static void add_dy(const direction *d, ptrdiff_t s, range rows, range columns)
{
    for (ptrdiff_t n = greatest(rows.begin, rows_at(d, s + 1)); d->dy.at && n < rows.end; n++) {
        REAL *dh = cell_at(&d->dh, 0, n);
        const REAL *dy = cell_at(&d->dy, s, n);
        for (ptrdiff_t j = columns.begin; j < columns.end; j++) dh[j] += dy[j];
    }
}

static void keep_dh(const direction *d, const grid *to, ptrdiff_t slot, range rows, range columns)
{
    size_t bytes = (size_t)(columns.end - columns.begin) * sizeof(REAL);
    for (ptrdiff_t n = rows.begin; n < rows.end; n++)
        memcpy(cell_at(to, slot, n) + columns.begin, cell_at(&d->dh, 0, n) + columns.begin, bytes);
}

static void step_back(const direction *d, const crew *w, product *p, ptrdiff_t s, ptrdiff_t slot, const share *own)
{
    const cell *cell = &d->z.cell;
    range rows = rows_there(d, s, own->rows), units = units_of(d->z.H, own->k, own->n), of_P = units_of(d->z.P, own->k, own->n);
    ptrdiff_t gates_slot = cell->keeps_gates ? s : 0;
    if (rows.begin == rows.end) return;
    if (d->begin || s == d->T - 1) add_dy(d, s, rows, of_P);
    if (projects(cell)) keep_dh(d, &d->dh_steps, slot, rows, of_P); /* for the gradient of its weight */
    if (d->dh_of_all.at) keep_dh(d, &d->dh_of_all, s, rows, of_P);
    for (int i = cell->stages - 1; i >= 0; i--) {
        for (ptrdiff_t r = rows.begin; cell->stage[i].backward && r < rows.end; r++) {
            if (stop_after(w->watch, POINT_WORK * d->z.H_row)) return;
            point at;
            point_at(&at, d, s, gates_slot, r);
            at.dgates = cell_at(&d->dgates, slot, r);
            at.daux = cell_at(&d->daux, 0, r);
            at.dh = projects(cell) ? at.daux : cell_at(&d->dh, 0, r);
            at.dc = cell_at(&d->dc, 0, r);
            cell->stage[i].backward(&at, units);
        }
        if (own->n > 1) meet(w);
        aim_back(&p[i], d, i, s, slot, rows);
        multiply(&p[i], all_tiles(&p[i]), units_of(p[i].columns, own->k, own->n), w->watch);
    }
}

/* The gradients of a block of steps, from its last to its first, and dx. */
static void backward_block(const direction *d, const crew *w, ptrdiff_t s0, ptrdiff_t s1, range all_rows)
{
    share own;
    if (!take_share(&own, d, w, rows_there(d, s0, all_rows))) return;
    product p[2], input = input_product_back(d, s0, s1, own.rows);
    for (int i = 0; i < d->z.cell.stages; i++) p[i] = stage_product_back(d, i, own.rows);
    for (ptrdiff_t s = s1 - 1; s >= s0 && !*w->stopped; s--) step_back(d, w, p, s, s - s0, &own);
    multiply(&input, all_tiles(&input), units_of(input.columns, own.k, own.n), w->watch);
}

/* dW[j, i] += sum over rows r of d[r, j] * source[r, i], d in tiles, the source in panels; some of the tiles. */
static void add_outer(const REAL *tiles, ptrdiff_t rows, ptrdiff_t R, const REAL *panels, ptrdiff_t columns, REAL *dw, range which,
                      watch *w)
{
    product p = {.rows = rows, .K = R, .columns = columns, .tiles = tiles, .b = panels, .from = FROM_ZERO};
    p.c = p.plus = plain_rows(dw, columns);
    multiply(&p, which, all_columns(&p), w);
}

/* db[j] += sum over rows of d[r, j], into one or two places (NULL: not there). */
static void add_columns(const REAL *d, ptrdiff_t apart, ptrdiff_t R, range columns, REAL *db, REAL *db_too)
{
    for (ptrdiff_t j = columns.begin; j < columns.end; j += LANES) {
        ptrdiff_t some = at_most(LANES, columns.end - j);
        vec sum = broadcast(0);
        for (ptrdiff_t r = 0; r < R; r++) sum = sum + get(d + r * apart + j, some);
        if (db) put(db + j, get(db + j, some) + sum, some);
        if (db_too) put(db_too + j, get(db_too + j, some) + sum, some);
    }
}

/* Gradients of peepholes: of i and f from c before, of o from c. */
static void add_peepholes(const direction *d, ptrdiff_t s0, ptrdiff_t r0, ptrdiff_t R, range units)
{
    ptrdiff_t H = d->z.H;
    for (ptrdiff_t j = units.begin; j < units.end; j += LANES) {
        ptrdiff_t some = at_most(LANES, units.end - j), s = s0, n = r0;
        vec sums[3] = {broadcast(0), broadcast(0), broadcast(0)};
        for (ptrdiff_t r = 0; r < R; r++, n++) {
            while (n >= rows_at(d, s)) n -= rows_at(d, s++);
            const REAL *dgates = d->dgates.at + (r0 + r) * d->dgates.row + j;
            vec c_before = get(before(&d->c, &d->c0, s, n) + j, some);
            sums[0] = muladd(get(dgates, some), c_before, sums[0]);
            sums[1] = muladd(get(dgates + H, some), c_before, sums[1]);
            sums[2] = muladd(get(dgates + 3 * H, some), get(cell_at(&d->c, s, n) + j, some), sums[2]);
        }
        for (int b = 0; b < 3; b++) {
            REAL *to = d->dpeephole + b * H + j;
            put(to, get(to, some) + sums[b], some);
        }
    }
}

static REAL *block_of(REAL *matrix, int gate, ptrdiff_t numbers)
{
    return matrix && gate >= 0 ? matrix + gate * numbers : NULL;
}

/* Gradients of all parameters from rows r0 .. r0+R-1 of the block of steps that begins at s0. */
static void sum_rows(const direction *d, const crew *w, ptrdiff_t s0, ptrdiff_t r0, ptrdiff_t R)
{
    const cell *cell = &d->z.cell;
    ptrdiff_t H = d->z.H, P = d->z.P, K = d->K;
    const REAL *dgates = d->dgates.at + r0 * d->dgates.row, *dh = d->dh_steps.at + r0 * d->dh_steps.row;
    REAL *of_gates = d->tiles, *of_dh = of_gates + R * cell->width * H;
    REAL *of_x = d->panels, *of_h = of_x + packed_size(R, K), *of_aux = of_h + packed_size(R, P);
    range own = part(tiles_of(H), w->k, w->n), own_units = units_of(H, w->k, w->n), own_of_P = part(tiles_of(P), w->k, w->n);
    range own_rows = part(R, w->k, w->n);
    ptrdiff_t s = s0, n = r0 + own_rows.begin;
    for (ptrdiff_t r = own_rows.begin; r < own_rows.end; r++, n++) {
        while (n >= rows_at(d, s)) n -= rows_at(d, s++);
        pack_row(of_x, R, r, K, cell_at(&d->x, s, n));
        pack_row(of_h, R, r, P, before(&d->y, &d->h0, s, n));
        if (cell->has_aux) pack_row(of_aux, R, r, H, cell_at(&d->aux, s, n));
    }
    for (int b = 0; b < cell->width; b++) pack_tiles(of_gates + R * b * H, R, H, dgates + b * H, d->dgates.row, own);
    if (projects(cell)) pack_tiles(of_dh, R, P, dh, d->dh_steps.row, own_of_P);
    meet(w);
    for (int b = 0; b < cell->width; b++) {
        const REAL *tiles = of_gates + R * b * H;
        if (cell->ih[b] >= 0) add_outer(tiles, H, R, of_x, K, d->dw_ih + cell->ih[b] * H * K, own, w->watch);
        add_columns(dgates + b * H, d->dgates.row, R, own_units, block_of(d->db_ih, cell->ih[b], H), block_of(d->db_hh, cell->hh[b], H));
    }
    for (int i = 0; i < cell->stages; i++) {
        const stage *g = &cell->stage[i];
        const REAL *source = g->from_aux ? of_aux : of_h;
        ptrdiff_t columns = stage_source(&d->z, g);
        for (int b = g->first; b < g->first + g->count; b++)
            add_outer(of_gates + R * b * H, H, R, source, columns, d->dw_hh + cell->hh[b] * H * columns, own, w->watch);
        if (!g->count) add_outer(of_dh, P, R, source, columns, d->dw_hr, own_of_P, w->watch);
    }
    if (d->dpeephole) add_peepholes(d, s0, r0, R, own_units);
    meet(w);
}

/* ---- a stack ---- */

/* The state of a layer and direction out of [L*D, N, columns]; a row of zeros for all where there is none. */
static grid state_of(const void *states, ptrdiff_t which, ptrdiff_t N, ptrdiff_t columns, const REAL *zeros)
{
    return states ? grid_of((const REAL *)states + which * N * columns, N, 0, columns) : grid_of(zeros, N, 0, 0);
}

static int is_reverse(const rnnfast_problem *p, int which)
{
    return p->stack.directions == 2 ? which == 1 : p->stack.reverse;
}

/* Rows one after the other, as they are walked through. */
static grid entries(const rnnfast_problem *p, const extent *e, const REAL *at, ptrdiff_t row)
{
    grid g = grid_of(at, e->N, e->N * row, row);
    if (p->order) g.begin = p->order->begin;
    return g;
}

/* Something like x, as a direction walks through it. Between layers of one direction rows lie as they are walked through already. */
static grid walked(const rnnfast_problem *p, grid g, int which)
{
    int reverse = is_reverse(p, which);
    if (!p->order) return reverse ? turned(g, p->T) : g;
    if (!g.begin) {
        g.begin = p->order->begin;
        g.places = p->order->places[reverse];
    }
    return g;
}

/* Something like x, row by row in any one order. */
static grid unordered(const rnnfast_problem *p, grid g)
{
    return p->order ? walked(p, g, 0) : g;
}

/* Outputs of a layer before the last, or their gradient. */
static grid between_rows(const rnnfast_problem *p, const extent *e, const REAL *at, ptrdiff_t columns)
{
    return p->order && p->stack.directions == 1 ? entries(p, e, at, columns) : grid_of(at, p->N, p->N * columns, columns);
}

/* What forward and backward share: sizes, the states at the start, and the tape if there is one. */
static void set_direction(direction *d, const rnnfast_problem *p, const shape *z, const extent *e, ptrdiff_t layer, int which,
                          const REAL *zeros)
{
    ptrdiff_t state = layer * z->D + which;
    memset(d, 0, sizeof *d);
    d->z = *z;
    d->T = e->T;
    d->N = e->N;
    d->K = width_of_input(z, layer);
    d->keeps = p->tape != NULL;
    if (p->order) d->begin = p->order->begin;
    d->any.functions = p->stack.activations[z->D == 2 ? which : 0];
    d->any.clip = (REAL)p->stack.clip;
    d->any.coupled = p->stack.coupled;
    d->h0 = state_of(p->h0, state, e->N, z->P, zeros);
    d->c0 = state_of(p->c0, state, e->N, z->H, zeros);
    if (p->tape) {
        REAL *from = (REAL *)p->tape + (z->L - 1) * outputs(z, e) + state * kept(z, e->rows);
        if (z->cell.keeps_gates) d->gates = entries(p, e, take(&from, e->rows * z->gates_row), z->gates_row);
        if (z->cell.has_c) d->c = entries(p, e, take(&from, e->rows * z->H_row), z->H_row);
        if (z->cell.has_aux) d->aux = entries(p, e, take(&from, e->rows * z->H_row), z->H_row);
    }
}

/* Outputs of a layer before the last: on the tape, or in one of two buffers in turn. */
static REAL *layer_output(const rnnfast_problem *p, const shape *z, const extent *e, ptrdiff_t layer, REAL *buffers)
{
    ptrdiff_t size = outputs(z, e);
    return p->tape ? (REAL *)p->tape + layer * size : buffers + layer % 2 * size;
}

static double stack_work(const shape *z, const extent *e)
{
    double of_row = (double)z->cell.gates * z->H * (z->I + z->P + (z->L - 1.0) * (z->D + 1.0) * z->P);
    return of_row * z->D * e->rows;
}

/* What the caller has promised. */
static void check_promises(const rnnfast_problem *p)
{
    assert(p->T >= 1 && p->N >= 1 && p->threads >= 1);
    assert(p->stack.directions == 1 || (p->stack.directions == 2 && !p->stack.reverse));
    assert((uintptr_t)p->workspace % 64 == 0);
    (void)p;
}

static void start_stack(call *c, const rnnfast_problem *p)
{
    check_promises(p);
    c->problem = p;
    c->stopped = 0;
    c->z = shape_of(&p->stack);
    c->e = extent_of(p->T, p->N, p->order, c->z.D);
    memset(p->workspace, 0, (size_t)zero_row(&c->z) * sizeof(REAL));
    start(c, p->threads, stack_work(&c->z, &c->e), &p->poll);
}

/* The parts of forward and backward that the team does, as rnnfast_run wants them. */

static void forward_run(void *argument, int k, int n)
{
    call *c = argument;
    crew w;
    join(&w, c, k, n);
    for (ptrdiff_t which = w.directions.begin; which < w.directions.end; which++) forward_block(&c->d[which], &w, c->s0, c->s1, c->rows);
}

/* The masks of what goes into a layer. */
static grid masks_of(const rnnfast_problem *p, ptrdiff_t layer, ptrdiff_t columns)
{
    const REAL *at = (const REAL *)p->masks + (layer - 1) * p->T * p->N * columns;
    return unordered(p, grid_of(at, p->N, p->N * columns, columns));
}

/* The outputs of the layer below c->layer times their mask. */
static void mask_run(void *argument, int k, int n)
{
    call *c = argument;
    ptrdiff_t columns = c->z.D * c->z.P;
    grid masks = masks_of(c->problem, c->layer, columns);
    range own = part(c->e.rows, k, n);
    crew w;
    join(&w, c, k, n);
    for (ptrdiff_t r = own.begin; r < own.end && !stop_after(w.watch, MOVE_WORK * columns); r++) {
        const REAL *from = row_at(&c->unmasked, r), *mask = row_at(&masks, r);
        REAL *to = row_at(&c->masked, r);
        for (ptrdiff_t i = 0; i < columns; i++) to[i] = from[i] * mask[i];
    }
}

static grid mask_layer(call *c, ptrdiff_t layer, grid from, REAL *to)
{
    grid masked = from;
    masked.at = to;
    c->layer = layer;
    c->unmasked = unordered(c->problem, from);
    c->masked = unordered(c->problem, masked);
    run(c, mask_run);
    return masked;
}

static void set_forward(call *c, ptrdiff_t layer, int which, grid x, grid y)
{
    const rnnfast_problem *p = c->problem;
    const shape *z = &c->z;
    const extent *e = &c->e;
    ptrdiff_t state = layer * z->D + which;
    REAL *zeros = p->workspace, *work = zeros + zero_row(z) + between_layers(z) * outputs(z, e) + which * forward_own(z, e);
    REAL *from = (REAL *)p->packed + place(z, layer, which, packed_of_layer(z, 0), packed_of_layer(z, 1));
    direction *d = &c->d[which];
    set_direction(d, p, z, e, layer, which, zeros);
    d->x = walked(p, x, which);
    d->y = shifted(walked(p, y, which), which * z->P);
    d->h_n = state_of(p->h_n, state, e->N, z->P, NULL);
    d->c_n = state_of(p->c_n, state, e->N, z->H, NULL);
    d->w_ih = take(&from, packed_size(d->K, z->cell.gates * z->H));
    for (int i = 0; i < z->cell.stages; i++)
        d->w[i] = take(&from, packed_size(stage_source(z, &z->cell.stage[i]), stage_columns(z, &z->cell.stage[i])));
    d->bias = from;
    if (peepholes(z)) d->any.peephole = from + z->gates_row;
    if (!d->gates.at) d->gates = entries(p, e, take(&work, most_rows(e, forward_rows(z)) * z->gates_row), z->gates_row);
    if (!d->keeps) {
        d->c = grid_of(d->c_n.at, e->N, 0, z->H);
        d->aux = grid_of(work, e->N, 0, z->H_row);
    }
}

/* Of each row, the state after the last step that it takes, or the one at the start if it takes none. */
static void take_last(const direction *d)
{
    ptrdiff_t end = d->N;
    for (ptrdiff_t s = d->begin ? 0 : d->T; end; s++) {
        ptrdiff_t begin = rows_at(d, s);
        for (ptrdiff_t n = begin; n < end; n++) {
            memmove(cell_at(&d->h_n, 0, n), before(&d->y, &d->h0, s, n), (size_t)d->z.P * sizeof(REAL));
            if (d->z.cell.has_c) memmove(cell_at(&d->c_n, 0, n), before(&d->c, &d->c0, s, n), (size_t)d->z.H * sizeof(REAL));
        }
        end = begin;
    }
}

static void forward(const rnnfast_problem *p)
{
    call c;
    start_stack(&c, p);
    const shape *z = &c.z;
    const extent *e = &c.e;
    ptrdiff_t between = z->D * z->P, rows = forward_rows(z), chunk = CHUNK_ROWS * (c.team ? c.team : 1);
    REAL *buffers = (REAL *)p->workspace + zero_row(z);
    grid x = grid_of(p->x, p->N, p->x_step, p->x_row);
    for (ptrdiff_t layer = 0; layer < z->L && !c.stopped; layer++) {
        int last = layer == z->L - 1;
        grid y = grid_of(p->y, p->N, p->y_step, p->y_row);
        if (!last) y = between_rows(p, e, layer_output(p, z, e, layer, buffers), between);
        for (int which = 0; which < z->D; which++) set_forward(&c, layer, which, x, y);
        const direction *d = c.d;
        for (c.rows.begin = 0; c.rows.begin < e->N; c.rows.begin = c.rows.end) {
            c.rows.end = at_most(c.rows.begin + chunk, e->N);
            for (c.s0 = 0; c.rows.begin < rows_at(d, c.s0); c.s0 = c.s1) {
                c.s1 = block_end(d, c.s0, rows);
                for (int which = 0; d->begin && which < z->D; which++)
                    if (!d->keeps || !z->cell.keeps_gates) c.d[which].gates.begin = d->begin + c.s0;
                run(&c, forward_run);
            }
        }
        for (int which = 0; which < z->D; which++) take_last(&c.d[which]);
        x = !last && p->masks ? mask_layer(&c, layer + 1, y, buffers) : y;
    }
    rnnfast_dismiss(c.team);
}

static void set_backward(call *c, ptrdiff_t layer, int which, grid x, grid y, grid dy, grid dx, REAL *work)
{
    const rnnfast_problem *p = c->problem;
    const shape *z = &c->z;
    const extent *e = &c->e;
    ptrdiff_t N = e->N, state = layer * z->D + which, rows = most_rows(e, SUM_ROWS), sums = at_most(rows, SUM_ROWS);
    REAL *zeros = p->workspace,
         *from = (REAL *)p->packed_back + place(z, layer, which, packed_back_of_layer(z, 0), packed_back_of_layer(z, 1));
    direction *d = &c->d[which];
    set_direction(d, p, z, e, layer, which, zeros);
    void *const *gradients = p->dparameters + RNNFAST_KINDS * state;
    range all = {0, N};
    d->x = walked(p, x, which);
    d->y = shifted(walked(p, y, which), which * z->P);
    d->dx = walked(p, dx, which);
    if (dy.at) d->dy = shifted(walked(p, dy, which), which * z->P);
    if (p->dh) d->dh_of_all = walked(p, grid_of((REAL *)p->dh + state * p->dh_state, p->N, p->dh_step, p->dh_row), which);
    d->dh0 = state_of(p->dh0, state, N, z->P, NULL);
    d->dc0 = state_of(p->dc0, state, N, z->H, NULL);
    d->w_ih = take(&from, packed_size(z->cell.gates * z->H, d->K));
    for (int i = 0; i < z->cell.stages; i++)
        d->w[i] = take(&from, packed_size(stage_columns(z, &z->cell.stage[i]), stage_source(z, &z->cell.stage[i])));
    if (peepholes(z)) d->any.peephole = from;
    d->dgates = entries(p, e, take(&work, rows * z->gates_row), z->gates_row);
    d->dh_steps = entries(p, e, take(&work, rows * z->P_row), z->P_row);
    d->dh = grid_of(take(&work, N * z->P_row), N, 0, z->P_row);
    d->dc = grid_of(take(&work, N * z->H_row), N, 0, z->H_row);
    d->daux = grid_of(take(&work, N * z->H_row), N, 0, z->H_row);
    d->tiles = take(&work, sums * (z->gates_row + z->P_row));
    d->panels = work;
    d->dw_ih = gradients[0];
    d->dw_hh = gradients[1];
    d->db_ih = gradients[2];
    d->db_hh = gradients[3];
    d->dw_hr = gradients[4];
    d->dpeephole = gradients[5];
    copy_rows(d->dh, state_of(p->dh_n, state, N, z->P, zeros), z->P, all);
    if (z->cell.has_c) copy_rows(d->dc, state_of(p->dc_n, state, N, z->H, zeros), z->H, all);
}

static void backward_run(void *argument, int k, int n)
{
    call *c = argument;
    crew w;
    join(&w, c, k, n);
    for (ptrdiff_t which = w.directions.begin; which < w.directions.end; which++) backward_block(&c->d[which], &w, c->s0, c->s1, c->rows);
}

static void sum_run(void *argument, int k, int n)
{
    call *c = argument;
    ptrdiff_t total = rows_between(c->d, c->s0, c->s1);
    crew w;
    join(&w, c, k, n);
    for (ptrdiff_t which = w.directions.begin; which < w.directions.end; which++)
        for (ptrdiff_t r = 0; r < total && !*w.stopped; r += SUM_ROWS) sum_rows(&c->d[which], &w, c->s0, r, at_most(SUM_ROWS, total - r));
}

/* dx of both directions, and the mask of the layer below. */
static void finish_dx_run(void *argument, int k, int n)
{
    call *c = argument;
    const rnnfast_problem *p = c->problem;
    ptrdiff_t K = c->d[0].K;
    int masked = c->layer && p->masks;
    grid masks = masked ? masks_of(p, c->layer, K) : c->dx;
    range own = part(c->e.rows, k, n);
    crew w;
    join(&w, c, k, n);
    for (ptrdiff_t r = own.begin; r < own.end && !stop_after(w.watch, MOVE_WORK * K); r++) {
        REAL *to = row_at(&c->dx, r);
        const REAL *other = c->z.D == 2 ? row_at(&c->second_dx, r) : NULL, *mask = masked ? row_at(&masks, r) : NULL;
        for (ptrdiff_t i = 0; other && i < K; i++) to[i] += other[i];
        for (ptrdiff_t i = 0; mask && i < K; i++) to[i] *= mask[i];
    }
}

/* Where the block of steps begins that ends at s1. */
static ptrdiff_t block_begin(const rnnfast_problem *p, ptrdiff_t s1, ptrdiff_t *block)
{
    if (p->order) return p->order->edges[--*block];
    ptrdiff_t steps = SUM_ROWS > p->N ? SUM_ROWS / p->N : 1;
    return (s1 - 1) / steps * steps;
}

static void backward(const rnnfast_problem *p)
{
    call c;
    start_stack(&c, p);
    const shape *z = &c.z;
    const extent *e = &c.e;
    ptrdiff_t between = z->D * z->P, size = outputs(z, e);
    REAL *buffers = (REAL *)p->workspace + zero_row(z), *dropped = buffers + between_layers(z) * size;
    REAL *second = dropped + (z->L > 1 ? size : 0), *own = second + second_dx(z, e);
    range all = {0, e->N};
    grid dy = grid_of(p->dy, p->N, p->dy_step, p->dy_row);
    c.rows = all;
    for (ptrdiff_t layer = z->L - 1; layer >= 0 && !c.stopped; layer--) {
        ptrdiff_t K = width_of_input(z, layer);
        grid y = grid_of(p->y, p->N, p->y_step, p->y_row), x = grid_of(p->x, p->N, p->x_step, p->x_row);
        grid dx = grid_of(p->dx, p->N, p->dx_step, p->dx_row);
        if (layer < z->L - 1) y = between_rows(p, e, layer_output(p, z, e, layer, NULL), between);
        if (layer) {
            x = between_rows(p, e, layer_output(p, z, e, layer - 1, NULL), between);
            dx = between_rows(p, e, buffers + layer % 2 * (z->L > 2 ? size : 0), between);
        }
        if (layer && p->masks) x = mask_layer(&c, layer, x, dropped);
        grid other_dx = grid_of(second, p->N, p->N * K, K);
        for (int which = 0; which < z->D; which++)
            set_backward(&c, layer, which, x, y, dy, which ? other_dx : dx, own + which * backward_own(z, e));
        ptrdiff_t block = p->order ? p->order->blocks : 0;
        for (c.s1 = e->T; c.s1 > 0; c.s1 = c.s0) {
            c.s0 = block_begin(p, c.s1, &block);
            for (int which = 0; p->order && which < z->D; which++)
                c.d[which].dgates.begin = c.d[which].dh_steps.begin = p->order->begin + c.s0;
            run(&c, backward_run);
            run(&c, sum_run);
        }
        for (int which = 0; which < z->D; which++) {
            const direction *d = &c.d[which];
            copy_rows(d->dh0, d->dh, z->P, all);
            if (z->cell.has_c) copy_rows(d->dc0, d->dc, z->H, all);
        }
        c.layer = layer;
        c.dx = unordered(p, dx);
        c.second_dx = unordered(p, other_dx);
        dy = dx;
        if (z->D == 2 || (layer && p->masks)) run(&c, finish_dx_run);
    }
    rnnfast_dismiss(c.team);
}

/* ---- beside the loops ---- */

static void cells_of_tape(const rnnfast_problem *p, void *out)
{
    shape z = shape_of(&p->stack);
    extent e = extent_of(p->T, p->N, p->order, z.D);
    for (ptrdiff_t state = 0; state < z.L * z.D; state++) {
        int which = (int)(state % z.D);
        direction d;
        set_direction(&d, p, &z, &e, state / z.D, which, NULL);
        grid to = walked(p, grid_of((REAL *)out + state * p->T * p->N * z.H, p->N, p->N * z.H, z.H), which);
        for (ptrdiff_t s = 0; s < d.T; s++) {
            range rows = {0, rows_at(&d, s)};
            for (ptrdiff_t n = 0; n < rows.end; n++) memcpy(cell_at(&to, s, n), cell_at(&d.c, s, n), (size_t)z.H * sizeof(REAL));
        }
    }
}

static void fold(const rnnfast_problem *p, void *dy)
{
    ptrdiff_t P = p->stack.P;
    for (ptrdiff_t i = 0; i < p->order->gap_count; i++) {
        const rnnfast_gap *gap = &p->order->gaps[i];
        REAL *of_row = (REAL *)dy + gap->place.row * p->dy_row, *from = of_row + gap->place.step * p->dy_step;
        for (int which = 0; which < p->stack.directions; which++, from += P, of_row += P) {
            ptrdiff_t step = is_reverse(p, which) ? gap->after : gap->before;
            if (step < 0) continue;
            for (ptrdiff_t j = 0; j < P; j++) of_row[step * p->dy_step + j] += from[j];
        }
    }
}

/* ---- the readout y = x W' + b: the same kernel. Packed: W, the bias; workspace of backward: W packed, tiles of dy, panels of x ---- */

static int linear_sizes(const rnnfast_linear *p, size_t *packed, size_t *backward_workspace)
{
    ptrdiff_t R = at_most(p->M, SUM_ROWS), O_row = whole(p->O, LANES), I_row = whole(p->I, LANES);
    ptrdiff_t packed_numbers = plus(times(p->I, O_row), O_row);
    ptrdiff_t backward_numbers = plus(whole(times(p->O, I_row), ALIGN), times(R, plus(O_row, I_row)));
    *packed = (size_t)packed_numbers * sizeof(REAL);
    *backward_workspace = (size_t)backward_numbers * sizeof(REAL);
    return packed_numbers == TOO_MANY || backward_numbers == TOO_MANY || times(p->M, plus(p->I, p->O)) == TOO_MANY;
}

static void linear_pack_work(void *argument, int k, int n)
{
    call *c = argument;
    const rnnfast_linear *p = c->linear;
    crew w;
    join(&w, c, k, n);
    REAL *packed = p->packed, *bias = packed + packed_size(p->I, p->O);
    if (k == 0) {
        pack_padding(packed, p->I, p->O);
        memset(bias, 0, (size_t)round_up(p->O, LANES) * sizeof(REAL));
        if (p->bias) memcpy(bias, p->bias, (size_t)p->O * sizeof(REAL));
    }
    pack_weight(packed, NULL, p->I, p->O, 0, p->O, p->weight, k, n, w.watch);
}

static void linear_forward_work(void *argument, int k, int n)
{
    call *c = argument;
    const rnnfast_linear *p = c->linear;
    crew w;
    join(&w, c, k, n);
    const REAL *packed = p->packed;
    product y = {.rows = p->M, .K = p->I, .columns = p->O, .b = packed, .from = FROM_ROW, .start = packed + packed_size(p->I, p->O)};
    y.a = plain_rows(p->x, p->x_row);
    y.c = plain_rows(p->y, p->y_row);
    multiply(&y, part(tiles_of(p->M), k, n), all_columns(&y), w.watch);
}

static void linear_backward_work(void *argument, int k, int n)
{
    call *c = argument;
    const rnnfast_linear *p = c->linear;
    crew w;
    join(&w, c, k, n);
    ptrdiff_t I = p->I, O = p->O;
    REAL *packed = p->workspace, *tiles = packed + round_up(packed_size(O, I), ALIGN);
    range own_tiles = part(tiles_of(O), k, n), own_columns = units_of(O, k, n);
    pack_weight(NULL, packed, I, O, 0, O, p->weight, k, n, w.watch);
    meet(&w);
    product dx = {.rows = p->M, .K = O, .columns = I, .b = packed, .from = FROM_ZERO};
    dx.a = plain_rows(p->dy, p->dy_row);
    dx.c = plain_rows(p->dx, p->dx_row);
    multiply(&dx, part(tiles_of(p->M), k, n), all_columns(&dx), w.watch);
    for (ptrdiff_t r = 0; r < p->M && !*w.stopped; r += SUM_ROWS) {
        ptrdiff_t R = at_most(SUM_ROWS, p->M - r);
        const REAL *dy = (const REAL *)p->dy + r * p->dy_row, *x = (const REAL *)p->x + r * p->x_row;
        REAL *panels = tiles + R * O;
        range rows = part(R, k, n);
        meet(&w);
        pack_tiles(tiles, R, O, dy, p->dy_row, own_tiles);
        for (ptrdiff_t i = rows.begin; i < rows.end; i++) pack_row(panels, R, i, I, x + i * p->x_row);
        meet(&w);
        add_outer(tiles, O, R, panels, I, p->dweight, own_tiles, w.watch);
        add_columns(dy, p->dy_row, R, own_columns, p->dbias, NULL);
    }
}

static void linear_run(const rnnfast_linear *p, double rows, void (*work)(void *, int, int))
{
    call c;
    c.linear = p;
    c.stopped = 0;
    c.z.D = 1;
    start(&c, p->threads, rows * p->I * p->O, &p->poll);
    run(&c, work);
    rnnfast_dismiss(c.team);
}

static void linear_pack(const rnnfast_linear *p)
{
    linear_run(p, MOVE_WORK, linear_pack_work);
}

static void linear_forward(const rnnfast_linear *p)
{
    linear_run(p, (double)p->M, linear_forward_work);
}

static void linear_backward(const rnnfast_linear *p)
{
    linear_run(p, (double)p->M, linear_backward_work);
}

/* ---- activations of arrays ---- */

static void sigmoid_of_array(const void *a, void *out, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        ptrdiff_t n = at_most(LANES, (ptrdiff_t)(count - i));
        put((REAL *)out + i, sigmoid(get((const REAL *)a + i, n)), n);
    }
}

static void tanh_of_array(const void *a, void *out, size_t count)
{
    for (size_t i = 0; i < count; i += LANES) {
        ptrdiff_t n = at_most(LANES, (ptrdiff_t)(count - i));
        put((REAL *)out + i, hyperbolic_tangent(get((const REAL *)a + i, n)), n);
    }
}

extern const rnnfast_table TABLE;
const rnnfast_table TABLE = {
    .isa = ISA,
    .item = sizeof(REAL),
    .sizes = sizes,
    .pack = pack,
    .forward = forward,
    .backward = backward,
    .cells = cells_of_tape,
    .fold = fold,
    .linear_sizes = linear_sizes,
    .linear_pack = linear_pack,
    .linear_forward = linear_forward,
    .linear_backward = linear_backward,
    .sigmoid = sigmoid_of_array,
    .tanh = tanh_of_array,
    .cell_info = cell_info,
};

#endif
