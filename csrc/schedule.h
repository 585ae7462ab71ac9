/* How threads share the work of a call.
 *
 * A block of steps is one run of the thread group (threads.h), so each block is divided among the workers that are ready when it starts.
 * Two directions go to two halves of the group if there are two threads. Within a half, rows of the batch are divided, which needs no
 * barrier. If there are too few rows, units are divided: each worker computes all gates of its own units, and one barrier a stage (two, if
 * gates do not begin at whole vectors) makes them visible to the others. The units of an elementwise cell need no barrier in a step. Sums over
 * rows are divided by columns.
 * No division changes an order of summation.
 */
#pragma once

#include "layout.h"
#include "products.h"

enum {
    THREAD_WORK = 1 << 22,  /* multiply-adds worth another thread: waking one takes as long as a fraction of them */
    SPIN_WORK = 1 << 15,    /* one spin while waiting for workers per this many multiply-adds: a twentieth of their time */
    BARRIER_WORK = 1 << 15, /* multiply-adds of one step, for each worker, that are worth a barrier */
    MANY_BARRIERS = 16,     /* times BARRIER_WORK: from here on, dividing units beats tiles of few rows, which would all read all weights */
    MANY_TILES = 8,         /* unless each thread has at least this many tiles of rows */
    MOST_SPINS = 1 << 13,   /* about 120 us */
    POINT_WORK = 64         /* the pointwise part of a unit, in multiply-adds */
};

/* One direction of one layer. Steps are counted as the direction takes them: a reverse direction has its views reversed, and no other
 * code knows about it. */
typedef struct {
    shape s;
    ptrdiff_t T, N, K;      /* K features of the layer's input */
    const ptrdiff_t *begin; /* of a ragged batch, as in a view */
    int keeps;              /* there is a tape */
    view x, y, h0, c0;
    view gates, c, aux; /* of all steps; without a tape gates are of a block, and c and aux of one step */
    view masks, masked; /* of a step, for recurrent products; masks.at may be NULL */
    /* What the cell computes, and its gradients: y, c, dh and dc, or with zoneout h_new ... dc_new, from which zoneout.h makes y ... dc. */
    const view *h_out, *c_out, *dh_out, *dc_out;
    view h_new, c_new, dh_new, dc_new;
    view zoneout_masks; /* of all steps, rows of bytes; .at may be NULL */
    REAL zoneout[2];    /* of h and c */
    weights w;
    cell_options options;
    view h_n, c_n;
    view dy, dx;           /* from here on backward only; dy.at NULL: zeros */
    view dgates, dh_steps; /* of a block of steps */
    view dh, dc, daux;     /* of a step */
    const scratch *own;
    view dh_of_all; /* of all steps, for the caller; .at may be NULL */
    view dh0, dc0;
    void *const *gradients; /* of its parameters */
} direction;

/* The number of rows that take step t; 0 after the last step. */
static ptrdiff_t rows_at(const direction *d, ptrdiff_t t)
{
    if (t >= d->T) return 0;
    return d->begin ? d->begin[t + 1] - d->begin[t] : d->N;
}

static ptrdiff_t rows_between(const direction *d, ptrdiff_t t0, ptrdiff_t t1)
{
    return d->begin ? d->begin[t1] - d->begin[t0] : (t1 - t0) * d->N;
}

/* Those of some rows that take step t. If there are none, begin is end. */
static range rows_taking(const direction *d, ptrdiff_t t, range rows)
{
    if (d->begin) rows.end = max_of(rows.begin, min_of(rows.end, rows_at(d, t)));
    return rows;
}

/* The end of the block of steps that begins at t0. A block has at most the given number of rows, but at least one step. */
static ptrdiff_t block_end(const direction *d, ptrdiff_t t0, ptrdiff_t rows)
{
    if (!d->begin) return min_of(t0 + (rows > d->N ? rows / d->N : 1), d->T);
    ptrdiff_t t1 = t0 + 1;
    while (t1 < d->T && d->begin[t1 + 1] - d->begin[t0] <= rows) t1++;
    return t1;
}

/* Row n before step t: of the step before, or of the initial state. */
static REAL *before(const view *v, const view *initial, ptrdiff_t t, ptrdiff_t n)
{
    return t ? row_at(v, t - 1, n) : row_at(initial, 0, n);
}

/* Whether a stage's product reads its rows times their masks: all products with weight_hh do. */
static int is_masked(const direction *d, const stage *g)
{
    return d->masks.at && g->count;
}

/* The arguments of the pointwise parts for row n at step t. slot: the step of d->gates that has its gates. */
static void point_at(point *p, const direction *d, ptrdiff_t t, ptrdiff_t slot, ptrdiff_t n)
{
    p->H = d->s.H;
    p->H_gate = d->s.H_gate;
    p->options = &d->options;
    p->gates = row_at(&d->gates, slot, n);
    p->h_before = before(&d->y, &d->h0, t, n);
    p->aux = row_at(&d->aux, t, n);
    p->h = d->s.projects ? p->aux : row_at(d->h_out, t, n);
    if (d->s.reads_x) p->x = row_at(&d->x, t, n);
    if (d->s.has_c) {
        p->c_before = before(&d->c, &d->c0, t, n);
        p->c = row_at(d->c_out, t, n);
    }
}

/* ---- calls and workers ---- */

/* Thread `thread` of `threads`, which is worker k of the n that share some directions. */
typedef struct {
    int thread, threads, k, n;
    range directions;
    const rnnfast_flag *stopped;
    poller *poller, own_poller;
} worker;

typedef struct call {
    const rnnfast_problem *problem;
    const rnnfast_linear *linear;
    const void *const *parameters; /* to be packed */
    const rnnfast_members *members;
    shape s;
    extent e;
    workspace work;
    ptrdiff_t work_used;
    parts packed, packed_back, tape;
    int group; /* of threads */
    rnnfast_flag stopped;
    poller poller;                               /* the calling thread's */
    void (*task)(struct call *, const worker *); /* what each thread runs */
    direction d[2];                              /* of the current layer */
    ptrdiff_t t0, t1;                            /* the current block of steps */
    range rows;                                  /* the current rows */
    view to, from, other, mask;                  /* of combine() */
    ptrdiff_t columns;
} call;

static void start(call *c, int limit, double work, const rnnfast_poll *poll)
{
    const int threads = limit & (RNNFAST_OPENMP - 1);
    double most = 1 + work / THREAD_WORK, spins = work / SPIN_WORK;
    c->stopped = 0;
    c->poller = start_poller(&c->stopped, poll);
    c->group = rnnfast_threads_acquire(limit, most < threads ? (int)most : threads, spins < MOST_SPINS ? (int)spins : MOST_SPINS);
}

static void finish(const call *c)
{
    rnnfast_threads_release(c->group);
    finish_poller(&c->poller);
}

/* Thread k of n joins the workers of its directions. */
static void join(void *argument, int k, int n)
{
    call *c = argument;
    const int D = (int)c->s.D, two = D == 2 && n > 1, half = (n + 1) / 2, second = two && k >= half;
    worker w = {.thread = k, .threads = n, .k = second ? k - half : k, .n = !two ? n : second ? n / 2 : half, .stopped = &c->stopped};
    w.directions = (range){second, two ? second + 1 : D};
    w.own_poller = (poller){.stopped = &c->stopped, .left = POLL_WORK};
    w.poller = k ? &w.own_poller : &c->poller;
    c->task(c, &w);
}

/* All threads of the group do a task together. */
static void run(call *c, void (*task)(call *, const worker *))
{
    c->task = task;
    if (!c->stopped) rnnfast_threads_run(c->group, join, c);
}

static void barrier(const worker *w)
{
    rnnfast_threads_barrier(w->thread - w->k, w->n, w->thread, w->stopped);
}

/* ---- shares of a block of steps ---- */

/* A worker's share. By rows: each worker gets tiles of rows. By units: each worker computes some units, so that it reads only a part of
 * large weights. Rows of less than a tile are better than units only if a step is short. A step too short for a barrier is left to the
 * first worker. Measured with two threads over one: LSTM N = 32 H = 1024 x1.97 by units, x1.72 by rows; GRU N = 4 H = 512 x1.93, x1.42;
 * LSTM N = 8 H = 128 x0.85, x1.94. */
typedef struct {
    range rows;
    int k, n; /* which part of the units */
} share;

static int by_rows(const direction *d, ptrdiff_t N, int n, double of_step)
{
    double weights = of_step / N;
    if (N >= TILE_ROWS * n) return weights < FAR_WEIGHTS || N >= MANY_TILES * TILE_ROWS * n || d->s.H_gate % LANES;
    return N >= 2 * n && of_step < (double)MANY_BARRIERS * BARRIER_WORK * n;
}

/* A worker's share of some rows; n is 0 if it has none. */
static share take_share(const direction *d, const worker *w, range rows)
{
    ptrdiff_t N = rows.end - rows.begin;
    double of_step = (double)N * d->s.gates * d->s.H * d->s.P;
    if (d->s.elementwise ? N >= w->n : by_rows(d, N, w->n, of_step)) {
        range own = part(N, w->k, w->n);
        return (share){{rows.begin + own.begin, rows.begin + own.end}, 0, 1};
    }
    if (d->s.elementwise || of_step >= (double)BARRIER_WORK * w->n) return (share){rows, w->k, w->n};
    return (share){rows, 0, w->k == 0};
}

/* The rows of all steps of a block, out of some rows. */
static ptrdiff_t rows_of_block(const direction *d, ptrdiff_t t0, ptrdiff_t t1, range rows)
{
    ptrdiff_t sum = 0;
    if (!d->begin) return (t1 - t0) * (rows.end - rows.begin);
    for (ptrdiff_t t = t0; t < t1; t++) {
        range taking = rows_taking(d, t, rows);
        sum += taking.end - taking.begin;
    }
    return sum;
}

/* Every other step reads the panels of a weight from the last to the first, to find in the caches what the step before left there. The
 * sums are the same. Measured for a batch of 1 (weights of 64 KB, 1, 4, 16 MB): products take 0.83, 0.89, 0.91, 0.9 of the time. */
static int from_last(ptrdiff_t t)
{
    return t & 1;
}
