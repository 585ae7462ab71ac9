/* Random calls of the C interface, whose results are checked. tools/sanitize runs them under each sanitizer, tools/coverage with counters.
 *
 *     random_calls SEED ROUNDS SECONDS [ISA]
 *
 * runs rounds SEED, SEED + 1, ... until there were ROUNDS of them or SECONDS are over. A failure names its round: `random_calls ROUND 1 0`
 * repeats it. In a round, one to three threads make calls at the same time: each a stack of random cell, options, shape and batch, a
 * matrix product, activations, a step of an optimizer, a long order, or a question about sizes.
 *
 * What is checked:
 * - Every array has exactly the size that rnnfast.h states, so AddressSanitizer sees any access past it.
 * - Memory begins as NaN, or as uninitialised for MemorySanitizer, and so do gaps between rows, masked steps and padding. Results are
 *   finite and initialised; gaps and masked steps are not written.
 * - The bits of a call are those of calls with other threads, without a tape, of parts of the batch and of parts of the steps, of prepared
 *   steps, and of a call that runs at the same time. A sequence of a ragged batch has the bits that it has alone.
 * - A call that was stopped leaves nothing behind: the next one has the same bits.
 */
#define _POSIX_C_SOURCE 200112L /* posix_memalign() */
#include "optimizers.h"
#include "rnnfast.h"

#include <math.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__has_feature)
#if __has_feature(memory_sanitizer)
#define HAS_MSAN 1
#endif
#endif
#if defined(HAS_MSAN)
#include <sanitizer/msan_interface.h>
#else
#define __msan_allocated_memory(at, bytes)
#define __msan_check_mem_is_initialized(at, bytes)
#endif

enum { MOST_STATES = 6, MOST_PARAMETERS = MOST_STATES * RNNFAST_KINDS, MOST_CALLERS = 3, NEVER_WRITTEN = 0xFF, MANY_STEPS = 1200000 };

/* ---- a caller: a thread with its own random numbers and memory ---- */

typedef struct block {
    struct block *next;
    void *memory;
} block;

typedef struct {
    uint64_t random;
    long round;
    const char *isa; /* NULL: any */
    const rnnfast_table *table;
    size_t item;
    block *blocks; /* freed at the end of the round */
} caller;

static void fail(const caller *c, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    fprintf(stderr, "random_calls: round %ld (%s, %d bits): ", c->round, c->table ? c->table->isa : "none", (int)(8 * c->item));
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    va_end(values);
    exit(1);
}

/* xorshift64 (G. Marsaglia, 2003). */
static uint64_t next(caller *c)
{
    c->random ^= c->random << 13;
    c->random ^= c->random >> 7;
    c->random ^= c->random << 17;
    return c->random >> 8;
}

/* first .. last */
static ptrdiff_t between(caller *c, ptrdiff_t first, ptrdiff_t last)
{
    return first + (ptrdiff_t)(next(c) % (uint64_t)(last - first + 1));
}

static int one_in(caller *c, int n)
{
    return between(c, 1, n) == 1;
}

/* -1 .. 1, at times an end, 0 or a subnormal number. */
static double number(caller *c)
{
    static const double special[] = {-1, 0, 1, 1e-310, 1e-40};
    if (one_in(c, 16)) return special[between(c, 0, 4)];
    return (double)between(c, -1000000, 1000000) / 1e6;
}

static void *keep(caller *c, void *memory)
{
    block *b = malloc(sizeof *b);
    if (!memory || !b) fail(c, "out of memory");
    *b = (block){c->blocks, memory};
    c->blocks = b;
    return memory;
}

static void *unwritten(void *memory, size_t bytes)
{
    if (memory) memset(memory, NEVER_WRITTEN, bytes);
    __msan_allocated_memory(memory, bytes);
    return memory;
}

static void *allocate(caller *c, size_t bytes)
{
    return unwritten(keep(c, malloc(bytes ? bytes : 1)), bytes);
}

static void *aligned(caller *c, size_t bytes)
{
    void *memory = NULL;
    if (posix_memalign(&memory, RNNFAST_ALIGNMENT, bytes ? bytes : 1)) memory = NULL;
    return unwritten(keep(c, memory), bytes);
}

static void free_all(caller *c)
{
    while (c->blocks) {
        block *b = c->blocks;
        c->blocks = b->next;
        free(b->memory);
        free(b);
    }
}

/* ---- arrays: [blocks, T, N, F], in a random layout ---- */

typedef struct {
    char *at; /* NULL: no array */
    ptrdiff_t blocks, T, N, F;
    ptrdiff_t block, step, row; /* strides in elements */
    const unsigned char *gaps;  /* the first gap between rows; the others are gap_stride bytes apart */
    size_t gap_bytes, gap_stride;
    ptrdiff_t gap_count;
} array;

static char *row_of(const caller *c, const array *a, ptrdiff_t b, ptrdiff_t t, ptrdiff_t n)
{
    return a->at + (b * a->block + t * a->step + n * a->row) * (ptrdiff_t)c->item;
}

/* Contiguous if `plain`; otherwise batch-first, backwards in time or rows, and with gaps between rows, at random. */
static array new_array(caller *c, ptrdiff_t blocks, ptrdiff_t T, ptrdiff_t N, ptrdiff_t F, int plain)
{
    const int batch_first = !plain && one_in(c, 3);
    const ptrdiff_t gap = plain ? 0 : between(c, 0, 2), width = F + gap, rows = blocks * T * N, item = (ptrdiff_t)c->item;
    char *memory = allocate(c, rows ? (size_t)((rows * width - gap) * item) : 0);
    array a = {memory, blocks, T, N, F, 0, (batch_first ? 1 : N) * width, (batch_first ? blocks * T : 1) * width, 0, 0, 0, 0};
    a.gaps = (unsigned char *)memory + F * item;
    a.gap_bytes = (size_t)(gap * item);
    a.gap_stride = (size_t)(width * item);
    a.gap_count = rows - 1;
    if (rows && !plain && one_in(c, 4)) a.at += (blocks * T - 1) * a.step * item, a.step = -a.step;
    if (rows && !plain && one_in(c, 4)) a.at += (N - 1) * a.row * item, a.row = -a.row;
    a.block = T * a.step;
    return a;
}

/* Steps t0 .. t1-1 and rows n0 .. n1-1. */
static array part_of(const caller *c, array a, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t n0, ptrdiff_t n1)
{
    if (!a.at) return a;
    a.at = row_of(c, &a, 0, t0, n0);
    a.T = t1 - t0;
    a.N = n1 - n0;
    a.gap_bytes = 0;
    return a;
}

static array plain_copy(caller *c, array a)
{
    if (!a.at) return a;
    array to = new_array(c, a.blocks, a.T, a.N, a.F, 1);
    for (ptrdiff_t b = 0; b < a.blocks; b++)
        for (ptrdiff_t t = 0; t < a.T; t++)
            for (ptrdiff_t n = 0; n < a.N; n++) memcpy(row_of(c, &to, b, t, n), row_of(c, &a, b, t, n), (size_t)a.F * c->item);
    return to;
}

static void set(const caller *c, void *at, ptrdiff_t i, double value)
{
    if (c->item == 8) ((double *)at)[i] = value;
    else ((float *)at)[i] = (float)value;
}

static double get(const caller *c, const void *at, ptrdiff_t i)
{
    return c->item == 8 ? ((const double *)at)[i] : (double)((const float *)at)[i];
}

static void randomise(caller *c, void *at, ptrdiff_t count, double scale)
{
    for (ptrdiff_t i = 0; i < count; i++) set(c, at, i, scale * number(c));
}

static void check_written(const caller *c, const char *what, const void *at, ptrdiff_t count)
{
    __msan_check_mem_is_initialized(at, (size_t)count * c->item);
    for (ptrdiff_t i = 0; i < count; i++)
        if (!isfinite(get(c, at, i))) fail(c, "%s has an element that is not finite", what);
}

static void check_unwritten(const caller *c, const char *what, const void *at, size_t bytes)
{
#if !defined(HAS_MSAN)
    for (size_t i = 0; i < bytes; i++)
        if (((const unsigned char *)at)[i] != NEVER_WRITTEN) fail(c, "%s was written", what);
#else
    (void)c, (void)what, (void)at, (void)bytes;
#endif
}

static void check_same(const caller *c, const char *what, const void *a, const void *b, ptrdiff_t count)
{
    if (memcmp(a, b, (size_t)count * c->item)) fail(c, "%s has other bits", what);
}

/* ---- stopping ---- */

typedef struct {
    pthread_t thread;
    long left; /* polls until the call is to stop; 0: never */
    int is_elsewhere;
} watch;

static int poll_watch(void *context)
{
    watch *w = context;
    if (!pthread_equal(pthread_self(), w->thread)) w->is_elsewhere = 1;
    return w->left && --w->left == 0;
}

/* ---- ragged batches ---- */

typedef struct {
    rnnfast_pattern pattern;
    rnnfast_order order;
    ptrdiff_t *sequences_of, *rows;
} ragged;

/* Bytes [T, N], any nonzero one of which is true. */
static const unsigned char *new_flags(caller *c, ptrdiff_t T, ptrdiff_t N, int falses, ptrdiff_t *step, ptrdiff_t *row)
{
    const int batch_first = one_in(c, 2);
    unsigned char *memory = allocate(c, (size_t)(T * N));
    for (ptrdiff_t i = 0; i < T * N; i++) memory[i] = (unsigned char)(between(c, 0, 9) < falses ? 0 : between(c, 1, 255));
    *step = batch_first ? 1 : N;
    *row = batch_first ? T : 1;
    if (one_in(c, 3)) memory += (T - 1) * *step, *step = -*step;
    return memory;
}

static int flag_at(const unsigned char *flags, ptrdiff_t step, ptrdiff_t row, ptrdiff_t t, ptrdiff_t n)
{
    return flags && flags[t * step + n * row];
}

static ptrdiff_t steps_of_sequence(const rnnfast_order *o, ptrdiff_t k)
{
    ptrdiff_t s = 0;
    while (s < o->steps && k < o->begin[s + 1] - o->begin[s]) s++;
    return s;
}

/* Walks through the rows of the pattern and finds its sequences in the order. */
static void check_order(const caller *c, const ragged *r, ptrdiff_t entries)
{
    const rnnfast_pattern *p = &r->pattern;
    const rnnfast_order *o = &r->order;
    ptrdiff_t i = 0, found = 0;
    for (ptrdiff_t n = 0; n < p->N; n++) {
        ptrdiff_t t = 0, length = p->lengths ? p->lengths[n] : p->T;
        if (r->rows[n] != i) fail(c, "rows[%d] is wrong", (int)n);
        do {
            ptrdiff_t first = t, s = 0, k = r->sequences_of[i++], steps = steps_of_sequence(o, k);
            for (; t < length && (t == first || !flag_at(p->reset, p->reset_step, p->reset_row, t, n)); t++) {
                if (p->mask && !flag_at(p->mask, p->mask_step, p->mask_row, t, n)) continue;
                if (s >= steps) fail(c, "a sequence has too few steps");
                const rnnfast_position forward = o->positions[0][o->begin[s] + k], reverse = o->positions[1][o->begin[steps - 1 - s] + k];
                if (forward.step != t || forward.row != n || reverse.step != t || reverse.row != n) fail(c, "a position is wrong");
                s++;
            }
            found += s;
            if (s != steps) fail(c, "a sequence has too many steps");
        } while (t < length);
    }
    if (r->rows[p->N] != i || i != o->sequences || found != entries || o->masked_count != p->T * p->N - entries)
        fail(c, "the counts of an order are wrong");
    if (o->edges[0] != 0 || o->edges[o->blocks] != o->steps) fail(c, "the edges of an order are wrong");
}

static ragged *new_ragged(caller *c, ptrdiff_t T, ptrdiff_t N)
{
    ragged *r = allocate(c, sizeof *r);
    rnnfast_pattern *p = &r->pattern;
    rnnfast_order *o = &r->order;
    memset(r, 0, sizeof *r);
    p->T = T;
    p->N = N;
    if (one_in(c, 2)) {
        ptrdiff_t *lengths = allocate(c, (size_t)N * sizeof *lengths);
        for (ptrdiff_t n = 0; n < N; n++) lengths[n] = between(c, one_in(c, 4) ? 0 : 1, T);
        p->lengths = lengths;
    }
    if (one_in(c, 2)) p->mask = new_flags(c, T, N, one_in(c, 20) ? 10 : 3, &p->mask_step, &p->mask_row);
    if (one_in(c, 2)) p->reset = new_flags(c, T, N, 8, &p->reset_step, &p->reset_row);
    const ptrdiff_t entries = rnnfast_count(p, o);
    const size_t edges = (size_t)(o->steps + 1) * sizeof *o->begin;
    rnnfast_position *positions[2];
    for (int d = 0; d < 2; d++) o->positions[d] = positions[d] = allocate(c, (size_t)entries * sizeof **positions);
    o->begin = allocate(c, edges);
    o->edges = allocate(c, edges);
    o->masked = allocate(c, (size_t)o->masked_count * sizeof *o->masked);
    r->sequences_of = allocate(c, (size_t)o->sequences * sizeof *r->sequences_of);
    r->rows = allocate(c, (size_t)(N + 1) * sizeof *r->rows);
    ptrdiff_t *scratch = allocate(c, (size_t)(o->steps + 2 + o->sequences + T) * sizeof *scratch);
    if (T * N >= MANY_STEPS) { /* stopped first */
        rnnfast_order ignored;
        watch counting = {pthread_self(), 1, 0}, arranging = {pthread_self(), between(c, 1, 8), 0};
        p->poll = (rnnfast_poll){poll_watch, &counting};
        rnnfast_count(p, &ignored);
        p->poll.context = &arranging;
        rnnfast_arrange(p, o, r->sequences_of, r->rows, scratch);
        p->poll = (rnnfast_poll){0};
    }
    rnnfast_arrange(p, o, r->sequences_of, r->rows, scratch);
    check_order(c, r, entries);
    return r;
}

/* An order that is long enough for its functions to poll. */
static void call_order(caller *c)
{
    const ptrdiff_t T = one_in(c, 2) ? between(c, 1, 3) : between(c, 1000, 3000), N = MANY_STEPS / T + 1;
    const ragged *r = new_ragged(c, T, N);
    const size_t bytes = 1;
    char *array = allocate(c, (size_t)(T * N));
    for (int k = 0; k < 2; k++) { /* stopped, then not */
        watch w = {pthread_self(), !k, 0};
        rnnfast_fill(&r->order, 0, array, bytes, N, 1, (rnnfast_poll){poll_watch, &w});
    }
    for (ptrdiff_t i = 0; i < r->order.masked_count; i++) {
        const rnnfast_position at = r->order.masked[i].position;
        if (array[at.step * N + at.row]) fail(c, "a masked step is not filled");
    }
}

/* ---- stacks: a problem, and what came out of it ---- */

typedef struct {
    rnnfast_stack stack;
    const rnnfast_cell_info *cell;
    ptrdiff_t T, N, states, rows; /* rows: of states, which are those of sequences in a ragged batch */
    const rnnfast_order *order;
    array x, h0, c0, masks, recurrent_masks, zoneout_masks, dy, dh_n, dc_n;
    const void *parameters[MOST_PARAMETERS];
    void *start[MOST_PARAMETERS]; /* of the gradients, which are added to it; NULL: no gradient */
    ptrdiff_t counts[MOST_PARAMETERS];
    void *packed, *packed_back;
    int wants_dh;
} problem;

typedef struct {
    array y, h_n, c_n, cells, dx, dh, dh0, dc0;
    void *dparameters[MOST_PARAMETERS], *tape;
} outcome;

static ptrdiff_t entries_of(const problem *p)
{
    return p->order ? p->order->begin[p->order->steps] - p->order->begin[0] : p->T * p->N;
}

/* The step and row of an entry. */
static rnnfast_position entry_of(const problem *p, ptrdiff_t i)
{
    return p->order ? p->order->positions[p->stack.reverse][i] : (rnnfast_position){i / p->N, i % p->N};
}

static void check_entries_same(const caller *c, const char *what, const problem *p, const array *a, const array *b)
{
    for (ptrdiff_t k = 0; a->at && b->at && k < a->blocks; k++)
        for (ptrdiff_t i = 0; i < entries_of(p); i++) {
            rnnfast_position at = entry_of(p, i);
            check_same(c, what, row_of(c, a, k, at.step, at.row), row_of(c, b, k, at.step, at.row), a->F);
        }
}

static void check_states_same(const caller *c, const char *what, const array *a, const array *b)
{
    for (ptrdiff_t k = 0; a->at && b->at && k < a->blocks; k++)
        for (ptrdiff_t n = 0; n < a->N; n++) check_same(c, what, row_of(c, a, k, 0, n), row_of(c, b, k, 0, n), a->F);
}

/* Entries are written; gaps and masked steps are not. */
static void check_entries(const caller *c, const char *what, const problem *p, const array *a)
{
    for (ptrdiff_t k = 0; a->at && k < a->blocks; k++) {
        for (ptrdiff_t i = 0; i < entries_of(p); i++) {
            rnnfast_position at = entry_of(p, i);
            check_written(c, what, row_of(c, a, k, at.step, at.row), a->F);
        }
        for (ptrdiff_t i = 0; p->order && i < p->order->masked_count; i++) {
            rnnfast_position at = p->order->masked[i].position;
            check_unwritten(c, what, row_of(c, a, k, at.step, at.row), (size_t)a->F * c->item);
        }
    }
    for (ptrdiff_t i = 0; a->at && a->gap_bytes && i < a->gap_count; i++)
        check_unwritten(c, what, a->gaps + (size_t)i * a->gap_stride, a->gap_bytes);
}

static void check_states(const caller *c, const char *what, const array *a)
{
    if (a->at) check_written(c, what, a->at, a->blocks * a->N * a->F);
}

static void randomise_entries(caller *c, const problem *p, const array *a, double scale)
{
    for (ptrdiff_t k = 0; k < a->blocks; k++)
        for (ptrdiff_t i = 0; i < entries_of(p); i++) {
            rnnfast_position at = entry_of(p, i);
            randomise(c, row_of(c, a, k, at.step, at.row), a->F, scale);
        }
}

static rnnfast_problem problem_of(const problem *p, const outcome *o, int threads)
{
    rnnfast_problem q = {.stack = p->stack, .T = p->T, .N = p->N, .order = p->order, .threads = threads};
    q.x = p->x.at, q.x_step = p->x.step, q.x_row = p->x.row;
    q.h0 = p->h0.at, q.c0 = p->c0.at;
    q.y = o->y.at, q.y_step = o->y.step, q.y_row = o->y.row;
    q.tape = o->tape;
    q.masks = p->masks.at, q.masks_layer = p->masks.block, q.masks_step = p->masks.step, q.masks_row = p->masks.row;
    q.recurrent_masks = p->recurrent_masks.at;
    q.zoneout_masks = p->zoneout_masks.at;
    q.packed = p->packed;
    q.h_n = o->h_n.at, q.c_n = o->c_n.at;
    q.packed_back = p->packed_back;
    q.dy = p->dy.at, q.dy_step = p->dy.step, q.dy_row = p->dy.row;
    q.dh_n = p->dh_n.at, q.dc_n = p->dc_n.at;
    q.dx = o->dx.at, q.dx_step = o->dx.step, q.dx_row = o->dx.row;
    q.dh = o->dh.at, q.dh_state = o->dh.block, q.dh_step = o->dh.step, q.dh_row = o->dh.row;
    q.dh0 = o->dh0.at, q.dc0 = o->dc0.at;
    q.dparameters = o->dparameters;
    return q;
}

static rnnfast_sizes sizes_of(const caller *c, const problem *p)
{
    rnnfast_sizes sizes;
    if (c->table->sizes(&p->stack, p->T, p->N, p->order, &sizes)) fail(c, "sizes() refuses a stack of %s", p->cell->name);
    return sizes;
}

static void pack(caller *c, problem *p)
{
    const rnnfast_sizes sizes = sizes_of(c, p);
    rnnfast_poll none = {0};
    const int apart = one_in(c, 4), threads = (int)between(c, 1, 4);
    p->packed = aligned(c, sizes.packed);
    p->packed_back = aligned(c, sizes.packed_back);
    c->table->pack(&p->stack, p->parameters, p->packed, apart ? NULL : p->packed_back, threads, none);
    if (apart) c->table->pack(&p->stack, p->parameters, NULL, p->packed_back, threads, none);
}

static outcome new_outcome(caller *c, const problem *p)
{
    const ptrdiff_t H = p->stack.H, P = p->stack.P;
    outcome o = {0};
    o.y = new_array(c, 1, p->T, p->N, p->stack.directions * P, 0);
    o.dx = new_array(c, 1, p->T, p->N, p->stack.I, 0);
    if (p->wants_dh) o.dh = new_array(c, p->states, p->T, p->N, P, 0);
    o.h_n = new_array(c, p->states, 1, p->rows, P, 1);
    o.dh0 = new_array(c, p->states, 1, p->rows, P, 1);
    if (p->cell->has_c) {
        o.c_n = new_array(c, p->states, 1, p->rows, H, 1);
        o.dc0 = new_array(c, p->states, 1, p->rows, H, 1);
        o.cells = new_array(c, p->states, p->T, p->N, H, 1);
    }
    for (int i = 0; i < MOST_PARAMETERS; i++) {
        if (!p->start[i]) continue;
        o.dparameters[i] = allocate(c, (size_t)p->counts[i] * c->item);
        memcpy(o.dparameters[i], p->start[i], (size_t)p->counts[i] * c->item);
    }
    return o;
}

/* Polls of the call are counted down from `stop_at`; 0: it is not stopped. */
static void forward(caller *c, const problem *p, outcome *o, int threads, int keeps, long stop_at)
{
    const rnnfast_sizes sizes = sizes_of(c, p);
    watch w = {pthread_self(), stop_at, 0};
    if (keeps) o->tape = aligned(c, sizes.tape);
    rnnfast_problem q = problem_of(p, o, threads);
    q.workspace = aligned(c, sizes.forward_workspace);
    if (stop_at || one_in(c, 2)) q.poll = (rnnfast_poll){poll_watch, &w};
    c->table->forward(&q);
    if (keeps && o->cells.at) c->table->cells(&q, o->cells.at);
    if (w.is_elsewhere) fail(c, "a call polls on a thread that is not its caller's");
}

static void backward(caller *c, const problem *p, outcome *o, int threads, long stop_at)
{
    watch w = {pthread_self(), stop_at, 0};
    rnnfast_problem q = problem_of(p, o, threads);
    q.workspace = aligned(c, sizes_of(c, p).backward_workspace);
    if (stop_at || one_in(c, 2)) q.poll = (rnnfast_poll){poll_watch, &w};
    c->table->backward(&q);
    if (w.is_elsewhere) fail(c, "a call polls on a thread that is not its caller's");
}

static void check_outcome(const caller *c, const problem *p, const outcome *o)
{
    check_entries(c, "y", p, &o->y);
    check_entries(c, "dx", p, &o->dx);
    check_entries(c, "dh", p, &o->dh);
    check_entries(c, "cells", p, &o->cells);
    check_states(c, "h_n", &o->h_n);
    check_states(c, "c_n", &o->c_n);
    check_states(c, "dh0", &o->dh0);
    check_states(c, "dc0", &o->dc0);
    for (int i = 0; i < MOST_PARAMETERS; i++)
        if (o->dparameters[i]) check_written(c, "a gradient", o->dparameters[i], p->counts[i]);
}

static void check_forward_same(const caller *c, const problem *p, const outcome *a, const outcome *b)
{
    check_entries_same(c, "y", p, &a->y, &b->y);
    check_states_same(c, "h_n", &a->h_n, &b->h_n);
    check_states_same(c, "c_n", &a->c_n, &b->c_n);
}

static void check_backward_same(const caller *c, const problem *p, const outcome *a, const outcome *b)
{
    check_entries_same(c, "dx", p, &a->dx, &b->dx);
    check_entries_same(c, "dh", p, &a->dh, &b->dh);
    check_entries_same(c, "cells", p, &a->cells, &b->cells);
    check_states_same(c, "dh0", &a->dh0, &b->dh0);
    check_states_same(c, "dc0", &a->dc0, &b->dc0);
}

static void check_gradients_same(const caller *c, const problem *p, const outcome *a, const outcome *b)
{
    for (int i = 0; i < MOST_PARAMETERS; i++)
        if (p->start[i]) check_same(c, "a gradient", a->dparameters[i], b->dparameters[i], p->counts[i]);
}

/* ---- random stacks ---- */

/* Near the edges of vectors and tiles, or anything up to 40. */
static ptrdiff_t near_edge(caller *c)
{
    const ptrdiff_t edge = between(c, 1, 6) << between(c, 2, 4);
    return one_in(c, 2) ? between(c, 1, 40) : edge + between(c, -1, 1);
}

static rnnfast_activation random_activation(caller *c)
{
    return (rnnfast_activation){(rnnfast_function)between(c, 0, RNNFAST_ACTIVATIONS - 1), 0.5 * number(c), 0.5 * number(c)};
}

/* Options with which no result overflows in a few hundred steps: arguments are clipped, gates are from 0 to 1, or both. */
static void choose_options(caller *c, problem *p)
{
    rnnfast_stack *s = &p->stack;
    const int is_long = p->T > 20;
    s->peepholes = p->cell->extra && one_in(c, 2);
    s->coupled = one_in(c, 2);
    if (is_long || s->peepholes || one_in(c, 2)) s->clip = 0.3 + fabs(number(c));
    for (int d = 0; d < 2; d++) {
        for (int k = 0; k < 3; k++) s->activations[d][k] = random_activation(c);
        if (is_long || !s->clip) s->activations[d][0].function = one_in(c, 2) ? RNNFAST_SIGMOID : RNNFAST_HARD_SIGMOID;
    }
}

/* Any kind that exists for the element type. */
static rnnfast_weights random_weights(caller *c)
{
    return c->item == 4 && one_in(c, 2) ? (rnnfast_weights)between(c, 0, RNNFAST_WEIGHTS - 1) : RNNFAST_FULL;
}

static void choose_stack(caller *c, problem *p)
{
    rnnfast_stack *s = &p->stack;
    s->cell = (rnnfast_cell)between(c, 0, RNNFAST_CELLS - 1);
    s->weights = random_weights(c);
    p->cell = c->table->cell_info(s->cell);
    s->directions = (int)between(c, 1, 2);
    s->reverse = s->directions == 1 && one_in(c, 3);
    s->layers = one_in(c, 2) ? 1 : between(c, 2, 3);
    if (one_in(c, 3)) s->zoneout_h = 0.3;
    if (p->cell->has_c && one_in(c, 3)) s->zoneout_c = 0.6;
    p->T = between(c, 1, 9);
    p->N = between(c, 1, 13);
    s->I = near_edge(c);
    s->H = near_edge(c);
    switch (between(c, 0, 39)) {
    case 0: /* few rows and many units: threads divide units */
        p->T = between(c, 30, 50), p->N = between(c, 1, 3), s->H = between(c, 4, 7) * 32 + between(c, -1, 1) * 16, s->layers = 1;
        break;
    case 1: /* several chunks of rows, and sums over several chains */
        p->T = between(c, 1, 4), p->N = between(c, 120, 300), s->H = between(c, 1, 20);
        break;
    case 2:
    case 3: /* several blocks of steps */ p->T = between(c, 60, 300), p->N = between(c, 1, 6), s->H = between(c, 1, 24); break;
    case 4:
    case 5: /* work for several threads */ p->T = between(c, 20, 50), p->N = between(c, 8, 40), s->H = between(c, 30, 70); break;
    case 6: /* weights that do not fit into the caches */
        if (one_in(c, 8)) p->T = between(c, 1, 2), p->N = between(c, 11, 13), s->H = 1456, s->layers = 1, s->directions = 1;
        break;
    default: break;
    }
    if (p->cell->reads_x) {
        s->I = s->H;
        if (s->layers > 1) s->directions = 1;
    }
    s->P = p->cell->supports_projection && s->H > 1 && one_in(c, 2) ? between(c, 1, s->H - 1) : s->H;
    p->states = s->layers * s->directions;
    if (!p->cell->functions) choose_options(c, p);
}

static void add_parameter(caller *c, problem *p, ptrdiff_t state, int kind, ptrdiff_t rows, ptrdiff_t columns, int is_trained)
{
    const ptrdiff_t i = state * RNNFAST_KINDS + kind, count = rows * columns;
    void *values = allocate(c, (size_t)count * c->item);
    randomise(c, values, count, kind == 0 || kind == 1 || kind == 4 ? 1.5 / sqrt((double)columns) : 0.5);
    if (kind == 5 && !is_trained)
        for (ptrdiff_t j = 0; j < count; j++) set(c, values, j, fabs(get(c, values, j))); /* a leak: from 0 to 1 */
    p->parameters[i] = values;
    p->counts[i] = count;
    if (!is_trained) return;
    p->start[i] = allocate(c, (size_t)count * c->item);
    randomise(c, p->start[i], count, 1);
}

static void add_parameters(caller *c, problem *p)
{
    const rnnfast_stack *s = &p->stack;
    const ptrdiff_t rows = (ptrdiff_t)strlen(p->cell->gates) * s->H;
    const int bias_ih = !one_in(c, 4), bias_hh = !one_in(c, 4);
    for (ptrdiff_t state = 0; state < p->states; state++) {
        add_parameter(c, p, state, 0, rows, state < s->directions ? s->I : s->directions * s->P, 1);
        if (!p->cell->elementwise) add_parameter(c, p, state, 1, rows, s->P, 1);
        if (bias_ih) add_parameter(c, p, state, 2, rows, 1, 1);
        if (bias_hh && !p->cell->elementwise) add_parameter(c, p, state, 3, rows, 1, 1);
        if (s->P < s->H) add_parameter(c, p, state, 4, s->P, s->H, 1);
        if (p->cell->extra && (s->peepholes || !p->cell->extra_is_optional))
            add_parameter(c, p, state, 5, p->cell->extra_rows, s->H, p->cell->extra_is_trained);
    }
}

static array random_states(caller *c, const problem *p, ptrdiff_t width)
{
    array a = {0};
    if (one_in(c, 3)) return a;
    a = new_array(c, p->states, 1, p->rows, width, 1);
    randomise(c, a.at, p->states * p->rows * width, 1);
    return a;
}

/* Whether units keep their values, as elements of which only the bits count. */
static array random_zoneout(caller *c, const problem *p)
{
    const rnnfast_stack *s = &p->stack;
    const int has_c = p->cell->has_c;
    const ptrdiff_t bytes = RNNFAST_ZONEOUT_BYTES(s->P) + (has_c ? RNNFAST_ZONEOUT_BYTES(s->H) : 0);
    const uint32_t key[2] = {(uint32_t)next(c), (uint32_t)next(c)};
    array a = new_array(c, p->states, p->T, p->N, bytes / (ptrdiff_t)c->item, 1);
    rnnfast_draw_zoneout(s, p->T, p->N, has_c, key, a.at, (rnnfast_poll){0});
    return a;
}

/* dy at all steps, folded, and unwritten again at masked steps. */
static void fold_dy(caller *c, problem *p)
{
    rnnfast_problem q = problem_of(p, &(outcome){0}, 1);
    for (ptrdiff_t i = 0; i < p->order->masked_count; i++)
        randomise(c, row_of(c, &p->dy, 0, p->order->masked[i].position.step, p->order->masked[i].position.row), p->dy.F, 1);
    c->table->fold(&q, p->dy.at);
    for (ptrdiff_t i = 0; i < p->order->masked_count; i++)
        unwritten(row_of(c, &p->dy, 0, p->order->masked[i].position.step, p->order->masked[i].position.row), (size_t)p->dy.F * c->item);
}

static problem *new_problem(caller *c)
{
    problem *p = allocate(c, sizeof *p);
    memset(p, 0, sizeof *p);
    choose_stack(c, p);
    p->rows = p->N;
    if (one_in(c, 2)) p->order = &new_ragged(c, p->T, p->N)->order, p->rows = p->order->sequences;
    add_parameters(c, p);
    const rnnfast_stack *s = &p->stack;
    p->x = new_array(c, 1, p->T, p->N, s->I, 0);
    randomise_entries(c, p, &p->x, 1);
    if (!one_in(c, 4)) {
        p->dy = new_array(c, 1, p->T, p->N, s->directions * s->P, 0);
        randomise_entries(c, p, &p->dy, 1);
        if (p->order && one_in(c, 2)) fold_dy(c, p);
    }
    if (s->layers > 1 && one_in(c, 2)) {
        p->masks = new_array(c, s->layers - 1, p->T, p->N, s->directions * s->P, 0);
        randomise_entries(c, p, &p->masks, 1.5);
    }
    if (one_in(c, 2)) p->recurrent_masks = random_states(c, p, s->P);
    if ((s->zoneout_h > 0 || s->zoneout_c > 0) && one_in(c, 2)) p->zoneout_masks = random_zoneout(c, p);
    p->h0 = random_states(c, p, s->P);
    p->dh_n = random_states(c, p, s->P);
    if (p->cell->has_c) {
        p->c0 = random_states(c, p, s->H);
        p->dc_n = random_states(c, p, s->H);
    }
    p->wants_dh = one_in(c, 3);
    pack(c, p);
    return p;
}

/* ---- the same problem in other ways ---- */

static void check_again(caller *c, const problem *p, const outcome *expected)
{
    problem own = *p;
    if (one_in(c, 3)) pack(c, &own);
    outcome o = new_outcome(c, &own);
    forward(c, &own, &o, (int)between(c, 1, 4), 1, 0);
    backward(c, &own, &o, (int)between(c, 1, 4), 0);
    check_outcome(c, &own, &o);
    check_forward_same(c, p, &o, expected);
    check_backward_same(c, p, &o, expected);
    check_gradients_same(c, p, &o, expected);
    outcome inference = new_outcome(c, &own);
    forward(c, &own, &inference, (int)between(c, 1, 4), 0, 0);
    check_forward_same(c, p, &inference, expected);
}

typedef struct {
    caller caller;
    const problem *problem;
    const outcome *expected;
} job;

static void *run_job(void *argument)
{
    job *j = argument;
    check_again(&j->caller, j->problem, j->expected);
    free_all(&j->caller);
    return NULL;
}

/* Two threads share a problem and its packed weights. */
static void check_at_the_same_time(caller *c, const problem *p, const outcome *expected)
{
    job j = {*c, p, expected};
    pthread_t thread;
    j.caller.random = next(c) | 1;
    j.caller.blocks = NULL;
    if (pthread_create(&thread, NULL, run_job, &j)) fail(c, "cannot create a thread");
    check_again(c, p, expected);
    pthread_join(thread, NULL);
}

static void check_stopped(caller *c, const problem *p, const outcome *expected)
{
    outcome stopped = new_outcome(c, p), o = new_outcome(c, p);
    forward(c, p, &stopped, (int)between(c, 1, 4), one_in(c, 2), between(c, 1, 3));
    forward(c, p, &o, (int)between(c, 1, 4), 1, 0);
    stopped.y = o.y;
    stopped.tape = o.tape;
    backward(c, p, &stopped, (int)between(c, 1, 4), between(c, 1, 3));
    backward(c, p, &o, (int)between(c, 1, 4), 0);
    check_forward_same(c, p, &o, expected);
    check_gradients_same(c, p, &o, expected);
}

/* The problem of a part of the steps and rows of a regular batch. */
static problem part_of_problem(caller *c, const problem *p, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t n0, ptrdiff_t n1)
{
    problem q = *p;
    q.T = t1 - t0;
    q.N = q.rows = n1 - n0;
    q.x = part_of(c, p->x, t0, t1, n0, n1);
    q.dy = part_of(c, p->dy, t0, t1, n0, n1);
    q.masks = part_of(c, p->masks, t0, t1, n0, n1);
    q.recurrent_masks = plain_copy(c, part_of(c, p->recurrent_masks, 0, 1, n0, n1));
    q.zoneout_masks = plain_copy(c, part_of(c, p->zoneout_masks, t0, t1, n0, n1));
    q.h0 = plain_copy(c, part_of(c, p->h0, 0, 1, n0, n1));
    q.c0 = plain_copy(c, part_of(c, p->c0, 0, 1, n0, n1));
    q.dh_n = plain_copy(c, part_of(c, p->dh_n, 0, 1, n0, n1));
    q.dc_n = plain_copy(c, part_of(c, p->dc_n, 0, 1, n0, n1));
    return q;
}

/* The same part of the expected outcome. */
static outcome part_of_outcome(caller *c, const outcome *o, ptrdiff_t t0, ptrdiff_t t1, ptrdiff_t n0, ptrdiff_t n1)
{
    outcome part = {0};
    part.y = part_of(c, o->y, t0, t1, n0, n1);
    part.dx = part_of(c, o->dx, t0, t1, n0, n1);
    part.dh = part_of(c, o->dh, t0, t1, n0, n1);
    part.cells = part_of(c, o->cells, t0, t1, n0, n1);
    part.h_n = part_of(c, o->h_n, 0, 1, n0, n1);
    part.c_n = part_of(c, o->c_n, 0, 1, n0, n1);
    part.dh0 = part_of(c, o->dh0, 0, 1, n0, n1);
    part.dc0 = part_of(c, o->dc0, 0, 1, n0, n1);
    return part;
}

static void check_some_rows(caller *c, const problem *p, const outcome *expected)
{
    const ptrdiff_t n0 = between(c, 0, p->N - 1), n1 = between(c, n0 + 1, p->N);
    problem q = part_of_problem(c, p, 0, p->T, n0, n1);
    outcome o = new_outcome(c, &q), same = part_of_outcome(c, expected, 0, p->T, n0, n1);
    forward(c, &q, &o, (int)between(c, 1, 4), 1, 0);
    backward(c, &q, &o, (int)between(c, 1, 4), 0);
    check_outcome(c, &q, &o);
    check_forward_same(c, &q, &o, &same);
    check_backward_same(c, &q, &o, &same);
}

/* The first sequences of states that another part of the steps left. */
static array first_states(caller *c, array a, ptrdiff_t rows)
{
    return plain_copy(c, part_of(c, a, 0, 1, 0, rows));
}

/* Steps first .. last-1 of an order. */
static rnnfast_order *window_of(caller *c, const rnnfast_order *o, ptrdiff_t first, ptrdiff_t last)
{
    rnnfast_order *w = allocate(c, sizeof *w);
    ptrdiff_t *edges = allocate(c, (size_t)(last - first + 1) * sizeof *edges);
    *w = *o;
    w->steps = last - first;
    w->begin = o->begin + first;
    w->sequences = w->begin[1] - w->begin[0];
    for (int d = 0; d < 2; d++) w->positions[d] = o->positions[d] + (o->begin[first] - o->begin[0]);
    w->blocks = 0;
    edges[w->blocks++] = 0;
    for (ptrdiff_t i = 0; i < o->blocks; i++)
        if (first < o->edges[i] && o->edges[i] < last) edges[w->blocks++] = o->edges[i] - first;
    edges[w->blocks] = w->steps;
    w->edges = edges;
    w->masked_count = 0;
    return w;
}

/* The steps of one direction in two calls: the second begins with the states that the first left, and backward goes the other way. */
static void check_two_calls(caller *c, const problem *p, const outcome *expected)
{
    const rnnfast_order *o = p->order;
    const ptrdiff_t T = o ? o->steps : p->T, sum_steps = p->N < RNNFAST_SUM_ROWS ? RNNFAST_SUM_ROWS / p->N : 1;
    ptrdiff_t cut = between(c, 1, T - 1);
    int is_edge = o == NULL && cut % sum_steps == 0;
    if (o && o->blocks > 1 && one_in(c, 2)) cut = o->edges[between(c, 1, o->blocks - 1)];
    if (!o && sum_steps < T && one_in(c, 2)) cut = sum_steps, is_edge = 1;
    for (ptrdiff_t i = 0; o && i < o->blocks; i++) is_edge |= o->edges[i] == cut;

    const ptrdiff_t edges[] = {0, cut, T};
    problem q[2];
    outcome part[2], whole = new_outcome(c, p);
    for (int k = 0; k < 2; k++) {
        const ptrdiff_t first = edges[k], last = edges[k + 1];
        const ptrdiff_t t0 = p->stack.reverse ? T - last : first, t1 = p->stack.reverse ? T - first : last;
        if (o) {
            q[k] = *p;
            q[k].order = window_of(c, o, first, last);
            q[k].rows = q[k].order->sequences;
            part[k] = whole;
        } else {
            q[k] = part_of_problem(c, p, t0, t1, 0, p->N);
            part[k] = part_of_outcome(c, &whole, t0, t1, 0, p->N);
        }
        outcome fresh = new_outcome(c, &q[k]);
        part[k].h_n = fresh.h_n, part[k].c_n = fresh.c_n, part[k].dh0 = fresh.dh0, part[k].dc0 = fresh.dc0;
        part[k].cells = fresh.cells;
        memcpy(part[k].dparameters, whole.dparameters, sizeof whole.dparameters);
        q[k].h0 = first_states(c, k ? part[0].h_n : p->h0, q[k].rows);
        q[k].c0 = first_states(c, k ? part[0].c_n : p->c0, q[k].rows);
        q[k].recurrent_masks = first_states(c, p->recurrent_masks, q[k].rows);
        forward(c, &q[k], &part[k], (int)between(c, 1, 4), 1, 0);
    }
    for (int k = 1; k >= 0; k--) {
        /* States of sequences that end in the first part have the gradient that came from outside. */
        q[k].dh_n = first_states(c, p->dh_n, q[k].rows);
        q[k].dc_n = first_states(c, p->dc_n, q[k].rows);
        const array *later[2] = {&part[1].dh0, &part[1].dc0};
        for (int which = 0; k == 0 && which < 2; which++) {
            array *to = which ? &q[0].dc_n : &q[0].dh_n;
            if (!later[which]->at) continue;
            if (!to->at) {
                *to = new_array(c, p->states, 1, q[0].rows, later[which]->F, 1);
                memset(to->at, 0, (size_t)(p->states * q[0].rows * to->F) * c->item);
            }
            for (ptrdiff_t state = 0; state < p->states; state++)
                for (ptrdiff_t n = 0; n < later[which]->N; n++)
                    memcpy(row_of(c, to, state, 0, n), row_of(c, later[which], state, 0, n), (size_t)to->F * c->item);
        }
        backward(c, &q[k], &part[k], (int)between(c, 1, 4), 0);
    }
    check_entries_same(c, "y in two calls", p, &whole.y, &expected->y);
    check_entries_same(c, "dx in two calls", p, &whole.dx, &expected->dx);
    check_entries_same(c, "dh in two calls", p, &whole.dh, &expected->dh);
    array last = part_of(c, expected->h_n, 0, 1, 0, q[1].rows), initial = part_of(c, expected->dh0, 0, 1, 0, q[0].rows);
    check_states_same(c, "h_n in two calls", &part[1].h_n, &last);
    check_states_same(c, "dh0 in two calls", &part[0].dh0, &initial);
    if (is_edge) check_gradients_same(c, p, &whole, expected);
}

/* The steps of one row, or of some, by a prepared step, which may update the state in place. */
static void check_steps(caller *c, const problem *all, const outcome *expected_of_all)
{
    const ptrdiff_t n0 = between(c, 0, all->N - 1), n1 = one_in(c, 2) ? n0 + 1 : between(c, n0 + 1, all->N);
    const problem q = part_of_problem(c, all, 0, all->T, n0, n1), *p = &q;
    const outcome same = part_of_outcome(c, expected_of_all, 0, all->T, n0, n1), *expected = &same;
    const ptrdiff_t P = p->stack.P * p->stack.directions;
    const int in_place = one_in(c, 2);
    array x = new_array(c, 1, 1, p->N, p->stack.I, 1), y = new_array(c, 1, 1, p->N, P, 1);
    array h = plain_copy(c, p->h0), c_state = plain_copy(c, p->c0);
    size_t bytes;
    if (c->table->step_size(&p->stack, p->N, &bytes)) fail(c, "step_size() refuses a stack of %s", p->cell->name);
    void *prepared = aligned(c, bytes);
    c->table->prepare_step(&p->stack, p->N, p->packed, prepared);
    for (ptrdiff_t s = 0; s < p->T; s++) {
        const ptrdiff_t t = p->stack.reverse ? p->T - 1 - s : s;
        array h_n = new_array(c, p->states, 1, p->N, p->stack.P, 1), c_n = {0};
        if (p->cell->has_c) c_n = new_array(c, p->states, 1, p->N, p->stack.H, 1);
        if (in_place && h.at) h_n = h;
        if (in_place && c_state.at) c_n = c_state;
        for (ptrdiff_t n = 0; n < p->N; n++) memcpy(row_of(c, &x, 0, 0, n), row_of(c, &p->x, 0, t, n), (size_t)x.F * c->item);
        unwritten(y.at, (size_t)(p->N * P) * c->item);
        c->table->step(prepared, &(rnnfast_step){.x = x.at, .h0 = h.at, .c0 = c_state.at, .y = y.at, .h_n = h_n.at, .c_n = c_n.at});
        for (ptrdiff_t n = 0; n < p->N; n++)
            check_same(c, "y of a prepared step", row_of(c, &y, 0, 0, n), row_of(c, &expected->y, 0, t, n), P);
        h = h_n;
        c_state = c_n;
    }
    check_states_same(c, "h_n of prepared steps", &h, &expected->h_n);
    check_states_same(c, "c_n of prepared steps", &c_state, &expected->c_n);
}

/* A sequence of a ragged batch as a batch of its own. */
static void check_sequence_alone(caller *c, const problem *p, const outcome *expected)
{
    const rnnfast_order *o = p->order;
    const ptrdiff_t k = between(c, 0, o->begin[1] - o->begin[0] - 1), steps = steps_of_sequence(o, k);
    array *const arrays[] = {(array *)&p->x,        (array *)&p->dy,       (array *)&p->masks, (array *)&p->zoneout_masks,
                             (array *)&expected->y, (array *)&expected->dx};
    array own[6] = {{0}};
    for (int i = 0; i < 6; i++) {
        const array *a = arrays[i];
        if (!a->at) continue;
        own[i] = new_array(c, a->blocks, steps, 1, a->F, 0);
        for (ptrdiff_t b = 0; b < a->blocks; b++)
            for (ptrdiff_t s = 0; s < steps; s++) {
                rnnfast_position at = o->positions[0][o->begin[s] + k];
                memcpy(row_of(c, &own[i], b, s, 0), row_of(c, a, b, at.step, at.row), (size_t)a->F * c->item);
            }
    }
    problem q = *p;
    q.order = NULL;
    q.T = steps;
    q.N = q.rows = 1;
    q.x = own[0], q.dy = own[1], q.masks = own[2], q.zoneout_masks = plain_copy(c, own[3]);
    q.h0 = plain_copy(c, part_of(c, p->h0, 0, 1, k, k + 1));
    q.c0 = plain_copy(c, part_of(c, p->c0, 0, 1, k, k + 1));
    q.recurrent_masks = plain_copy(c, part_of(c, p->recurrent_masks, 0, 1, k, k + 1));
    q.dh_n = plain_copy(c, part_of(c, p->dh_n, 0, 1, k, k + 1));
    q.dc_n = plain_copy(c, part_of(c, p->dc_n, 0, 1, k, k + 1));
    outcome alone = new_outcome(c, &q), same = part_of_outcome(c, expected, 0, 1, k, k + 1);
    same.y = own[4], same.dx = own[5], same.dh = same.cells = (array){0};
    forward(c, &q, &alone, (int)between(c, 1, 4), 1, 0);
    backward(c, &q, &alone, (int)between(c, 1, 4), 0);
    check_forward_same(c, &q, &alone, &same);
    check_backward_same(c, &q, &alone, &same);
}

/* After fill(), all steps of y are written; those that were valid are unchanged. */
static void check_fill(caller *c, const problem *p, outcome *o)
{
    const ptrdiff_t P = p->stack.P, item = (ptrdiff_t)c->item;
    array before = new_array(c, 1, p->T, p->N, o->y.F, 0);
    for (ptrdiff_t i = 0; i < entries_of(p); i++) {
        rnnfast_position at = entry_of(p, i);
        memcpy(row_of(c, &before, 0, at.step, at.row), row_of(c, &o->y, 0, at.step, at.row), (size_t)o->y.F * c->item);
    }
    for (int d = 0; d < p->stack.directions; d++)
        rnnfast_fill(p->order, (int)between(c, -1, 1), o->y.at + d * P * item, (size_t)(P * item), o->y.step * item, o->y.row * item,
                     (rnnfast_poll){0});
    for (ptrdiff_t t = 0; t < p->T; t++)
        for (ptrdiff_t n = 0; n < p->N; n++) check_written(c, "y after fill()", row_of(c, &o->y, 0, t, n), o->y.F);
    check_entries_same(c, "y after fill()", p, &o->y, &before);
}

static void call_stack(caller *c)
{
    problem *p = new_problem(c);
    const rnnfast_order *o = p->order;
    outcome expected = new_outcome(c, p);
    forward(c, p, &expected, 1, 1, 0);
    backward(c, p, &expected, 1, 0);
    check_outcome(c, p, &expected);
    if (one_in(c, 3)) check_at_the_same_time(c, p, &expected);
    else check_again(c, p, &expected);
    if (one_in(c, 3)) check_stopped(c, p, &expected);
    if (!o) check_some_rows(c, p, &expected);
    if (p->stack.directions == 1 && (o ? o->steps : p->T) > 1) check_two_calls(c, p, &expected);
    if (!o && !p->masks.at && !p->recurrent_masks.at && !p->zoneout_masks.at && (p->stack.directions == 1 || p->T == 1))
        check_steps(c, p, &expected);
    if (o && o->steps) check_sequence_alone(c, p, &expected);
    if (o) check_fill(c, p, &expected);
}

/* ---- members: many problems of one shape in one call ---- */

enum { MOST_MEMBERS = 5 };

/* Block m of an array of all members, each with some blocks; an array that is shared has only one member. */
static array member_of(const caller *c, array a, ptrdiff_t blocks, ptrdiff_t m)
{
    if (!a.at || a.blocks == blocks) return a;
    a.at = row_of(c, &a, m * blocks, 0, 0);
    a.blocks = blocks;
    a.gap_bytes = 0;
    return a;
}

/* States of all members, which exist if those of a problem do. */
static array states_of_members(caller *c, const problem *p, const array *of_one, ptrdiff_t members)
{
    array a = {0};
    if (!of_one->at) return a;
    a = new_array(c, members * p->states, 1, p->rows, of_one->F, 1);
    randomise(c, a.at, members * p->states * p->rows * of_one->F, 1);
    return a;
}

/* Masks of dropout and zoneout are shared, and so may be x. */
static void call_members(caller *c)
{
    problem p = *new_problem(c);
    p.wants_dh = 0;
    const rnnfast_stack *s = &p.stack;
    const rnnfast_sizes sizes = sizes_of(c, &p);
    const ptrdiff_t members = between(c, 1, MOST_MEMBERS), threads = between(c, 1, 4), item = (ptrdiff_t)c->item;
    const ptrdiff_t parameters = RNNFAST_KINDS * p.states, of_state = p.states * p.rows * item;
    const int shares_x = one_in(c, 2), is_packed = one_in(c, 2);
    outcome joint = {0}, expected[MOST_MEMBERS];
    problem all = p, q[MOST_MEMBERS];
    const void *pointers[MOST_MEMBERS * MOST_PARAMETERS];
    void *dparameters[MOST_MEMBERS * MOST_PARAMETERS];
    if (!shares_x) all.x = new_array(c, members, p.T, p.N, s->I, 0), randomise_entries(c, &p, &all.x, 1);
    if (p.dy.at) all.dy = new_array(c, members, p.T, p.N, p.dy.F, 0), randomise_entries(c, &p, &all.dy, 1);
    all.h0 = states_of_members(c, &p, &p.h0, members), all.c0 = states_of_members(c, &p, &p.c0, members);
    all.dh_n = states_of_members(c, &p, &p.dh_n, members), all.dc_n = states_of_members(c, &p, &p.dc_n, members);
    joint.y = new_array(c, members, p.T, p.N, s->directions * s->P, 0);
    joint.dx = new_array(c, members, p.T, p.N, s->I, 0);
    joint.h_n = new_array(c, members * p.states, 1, p.rows, s->P, 1), joint.dh0 = new_array(c, members * p.states, 1, p.rows, s->P, 1);
    if (p.cell->has_c) joint.c_n = new_array(c, members * p.states, 1, p.rows, s->H, 1);
    if (p.cell->has_c) joint.dc0 = new_array(c, members * p.states, 1, p.rows, s->H, 1);
    joint.tape = aligned(c, (size_t)members * sizes.tape);
    all.packed = aligned(c, (size_t)members * sizes.packed);
    all.packed_back = aligned(c, (size_t)members * sizes.packed_back);
    for (ptrdiff_t m = 0; m < members; m++) {
        q[m] = all;
        memset(q[m].parameters, 0, sizeof q[m].parameters);
        memset(q[m].start, 0, sizeof q[m].start);
        add_parameters(c, &q[m]);
        pack(c, &q[m]);
        q[m].x = member_of(c, all.x, 1, m), q[m].dy = member_of(c, all.dy, 1, m);
        q[m].h0 = member_of(c, all.h0, p.states, m), q[m].c0 = member_of(c, all.c0, p.states, m);
        q[m].dh_n = member_of(c, all.dh_n, p.states, m), q[m].dc_n = member_of(c, all.dc_n, p.states, m);
        expected[m] = new_outcome(c, &q[m]);
        forward(c, &q[m], &expected[m], 1, 1, 0);
        backward(c, &q[m], &expected[m], 1, 0);
        const outcome start = new_outcome(c, &q[m]);
        memcpy(pointers + m * parameters, q[m].parameters, (size_t)parameters * sizeof *pointers);
        memcpy(dparameters + m * parameters, start.dparameters, (size_t)parameters * sizeof *dparameters);
        char *packed = (char *)all.packed + (size_t)m * sizes.packed, *back = (char *)all.packed_back + (size_t)m * sizes.packed_back;
        if (is_packed) c->table->pack(s, q[m].parameters, packed, back, 1, (rnnfast_poll){0});
    }
    rnnfast_members call = {.problem = problem_of(&all, &joint, (int)threads), .members = members};
    call.parameters = is_packed ? NULL : pointers;
    call.packed = (ptrdiff_t)sizes.packed, call.packed_back = (ptrdiff_t)sizes.packed_back, call.tape = (ptrdiff_t)sizes.tape;
    call.x = shares_x ? 0 : all.x.block * item, call.y = joint.y.block * item;
    call.dy = all.dy.block * item, call.dx = joint.dx.block * item;
    call.h = of_state * s->P, call.c = of_state * s->H;
    call.workspace = (ptrdiff_t)sizes.forward_workspace;
    call.problem.workspace = aligned(c, (size_t)threads * sizes.forward_workspace);
    call.problem.dx = NULL;
    c->table->members(&call);
    call.parameters = NULL;
    call.problem.dparameters = dparameters;
    call.problem.dx = joint.dx.at;
    call.workspace = (ptrdiff_t)sizes.backward_workspace;
    call.problem.workspace = aligned(c, (size_t)threads * sizes.backward_workspace);
    c->table->members(&call);
    check_entries(c, "y of members", &p, &joint.y);
    check_entries(c, "dx of members", &p, &joint.dx);
    for (ptrdiff_t m = 0; m < members; m++) {
        outcome own = {.y = member_of(c, joint.y, 1, m), .dx = member_of(c, joint.dx, 1, m)};
        own.h_n = member_of(c, joint.h_n, p.states, m), own.c_n = member_of(c, joint.c_n, p.states, m);
        own.dh0 = member_of(c, joint.dh0, p.states, m), own.dc0 = member_of(c, joint.dc0, p.states, m);
        memcpy(own.dparameters, dparameters + m * parameters, (size_t)parameters * sizeof *dparameters);
        check_outcome(c, &q[m], &own);
        check_forward_same(c, &q[m], &own, &expected[m]);
        check_backward_same(c, &q[m], &own, &expected[m]);
        check_gradients_same(c, &q[m], &own, &expected[m]);
    }
}

/* ---- the rest of the interface ---- */

static array random_rows(caller *c, ptrdiff_t M, ptrdiff_t F)
{
    array a = new_array(c, 1, M, 1, F, 0);
    for (ptrdiff_t i = 0; i < M; i++) randomise(c, row_of(c, &a, 0, i, 0), F, 1);
    return a;
}

static void call_linear(caller *c)
{
    ptrdiff_t M = one_in(c, 4) ? between(c, 100, 600) : between(c, 1, 40), I = near_edge(c), O = near_edge(c);
    if (one_in(c, 10)) M = between(c, 200, 300), I = between(c, 100, 200), O = between(c, 200, 500);
    const size_t item = c->item, of_weight = (size_t)(O * I) * item, of_bias = (size_t)O * item;
    array x = random_rows(c, M, I), dy = random_rows(c, M, O), y[2], dx[2];
    void *weight = allocate(c, of_weight), *bias = allocate(c, of_bias), *dweight[2], *dbias[2];
    const int has_bias = !one_in(c, 3), has_dbias = !one_in(c, 3);
    const rnnfast_weights weights = random_weights(c);
    randomise(c, weight, O * I, 1);
    randomise(c, bias, O, 1);
    for (int k = 0; k < 2; k++) { /* all rows on one thread, then some rows or all of them on several */
        const ptrdiff_t first = k && one_in(c, 2) ? between(c, 0, M - 1) : 0, rows = first ? between(c, 1, M - first) : M;
        watch w = {pthread_self(), k && one_in(c, 8), 0};
        const int is_stopped = w.left != 0;
        rnnfast_linear p = {
            .M = rows, .I = I, .O = O, .weights = weights, .threads = k ? (int)between(c, 1, 4) : 1, .poll = {poll_watch, &w}};
        size_t packed, workspace;
        if (c->table->linear_sizes(&p, &packed, &workspace)) fail(c, "linear_sizes() refuses a product");
        y[k] = new_array(c, 1, rows, 1, O, 0);
        dx[k] = new_array(c, 1, rows, 1, I, 0);
        dweight[k] = allocate(c, of_weight);
        dbias[k] = allocate(c, of_bias);
        memcpy(dweight[k], weight, of_weight);
        memcpy(dbias[k], bias, of_bias);
        p.packed = aligned(c, packed);
        p.workspace = aligned(c, workspace);
        p.weight = weight;
        p.bias = has_bias ? bias : NULL;
        p.x = row_of(c, &x, 0, first, 0), p.x_row = x.step;
        p.dy = row_of(c, &dy, 0, first, 0), p.dy_row = dy.step;
        p.y = y[k].at, p.y_row = y[k].step;
        p.dx = dx[k].at, p.dx_row = dx[k].step;
        p.dweight = dweight[k];
        p.dbias = has_dbias ? dbias[k] : NULL;
        c->table->linear_pack(&p);
        c->table->linear_forward(&p);
        c->table->linear_backward(&p);
        if (w.is_elsewhere) fail(c, "a call polls on a thread that is not its caller's");
        if (is_stopped && w.left == 0) return;
        problem all = {.T = rows, .N = 1};
        check_entries(c, "y of a product", &all, &y[k]);
        check_entries(c, "dx of a product", &all, &dx[k]);
        check_written(c, "dweight", dweight[k], O * I);
        check_written(c, "dbias", dbias[k], O);
        if (k == 0) continue;
        array same_y = part_of(c, y[0], first, first + rows, 0, 1), same_dx = part_of(c, dx[0], first, first + rows, 0, 1);
        check_entries_same(c, "y of a product", &all, &y[1], &same_y);
        check_entries_same(c, "dx of a product", &all, &dx[1], &same_dx);
        if (rows == M) check_same(c, "dweight", dweight[1], dweight[0], O * I);
        if (rows == M) check_same(c, "dbias", dbias[1], dbias[0], O);
    }
}

static void call_activations(caller *c)
{
    void (*const functions[])(const void *, void *, size_t) = {c->table->sigmoid, c->table->tanh};
    for (int k = 0; k < 2; k++) {
        const ptrdiff_t count = between(c, 0, 70);
        const size_t bytes = (size_t)count * c->item;
        char *a = allocate(c, bytes), *out = allocate(c, bytes), one[8];
        randomise(c, a, count, one_in(c, 2) ? 1 : 1000);
        functions[k](a, out, (size_t)count);
        check_written(c, "an activation", out, count);
        for (ptrdiff_t i = 0; i < count; i++) {
            functions[k](a + i * (ptrdiff_t)c->item, one, 1);
            check_same(c, "an activation", one, out + i * (ptrdiff_t)c->item, 1);
        }
        functions[k](a, a, (size_t)count);
        check_same(c, "an activation in place", a, out, count);
    }
}

/* A step of an optimizer on a whole array, and on its parts. */
static void call_optimizer(caller *c)
{
    enum { GRADIENT = 1 + RNNFAST_MOMENTS, ARRAYS }; /* the parameter, its moments, and the gradient */
    static const int required[RNNFAST_OPTIMIZERS] = {0, 2, 1}, most[RNNFAST_OPTIMIZERS] = {1, 2, 3}; /* moments */
    const int kind = between(c, 0, RNNFAST_OPTIMIZERS - 1), item = (int)c->item, is_nesterov = one_in(c, 2);
    const int square = kind == RNNFAST_ADAM ? 2 : 1; /* the array that holds averages of squares */
    const ptrdiff_t count = between(c, 0, one_in(c, 8) ? 5000 : 70), parts[] = {0, between(c, 0, count), count};
    const double decay = one_in(c, 2) ? 0.01 : 0;
    const double options[RNNFAST_OPTIMIZERS][RNNFAST_OPTIMIZER_OPTIONS] = {
        [RNNFAST_SGD] = {0.9, 0.1, decay, is_nesterov},
        [RNNFAST_ADAM] = {0.9, 0.1, 0.999, 0.001, 1e-8, 0.1, decay, 0.99},
        [RNNFAST_RMSPROP] = {0.99, 0.01, 1e-8, 0.9, 0.1, decay},
    };
    rnnfast_update *update = (item == 8 ? rnnfast_optimizers_f64 : rnnfast_optimizers_f32)[kind];
    int is_used[RNNFAST_MOMENTS];
    for (int i = 0; i < RNNFAST_MOMENTS; i++) is_used[i] = i < required[kind] || (i < most[kind] && one_in(c, 2));
    char *whole[ARRAYS], *split[ARRAYS];
    for (int i = 0; i < ARRAYS; i++) {
        whole[i] = allocate(c, (size_t)(count * item));
        split[i] = allocate(c, (size_t)(count * item));
        randomise(c, whole[i], count, 1);
        for (ptrdiff_t j = 0; i == square && j < count; j++) set(c, whole[i], j, fabs(get(c, whole[i], j)));
        memcpy(split[i], whole[i], (size_t)(count * item));
    }
    for (int k = 0; k < 3; k++) { /* the whole, then both parts */
        char **from = k ? split : whole;
        const ptrdiff_t first = k ? parts[k - 1] : 0, n = k ? parts[k] - first : count;
        void *moments[RNNFAST_MOMENTS];
        for (int i = 0; i < RNNFAST_MOMENTS; i++) moments[i] = is_used[i] ? from[1 + i] + first * item : NULL;
        update(from[0] + first * item, from[GRADIENT] + first * item, moments, n, options[kind]);
    }
    for (int i = 0; i < ARRAYS; i++) {
        check_written(c, "an array of an optimizer", whole[i], count);
        check_same(c, "an array of an optimizer", split[i], whole[i], count);
    }
}

/* sizes() of any shape either fails or returns sizes that hold all elements. */
static void call_sizes(caller *c)
{
    ptrdiff_t shape[6]; /* T, N, layers, I, H, P */
    for (int i = 0; i < 6; i++) shape[i] = ((ptrdiff_t)1 << between(c, 0, one_in(c, 3) ? 62 : 20)) + between(c, 0, 1);
    rnnfast_stack s = {.cell = (rnnfast_cell)between(c, 0, RNNFAST_CELLS + 1), .directions = (int)between(c, 1, 2)};
    s.layers = shape[2], s.I = shape[3], s.H = shape[4], s.P = one_in(c, 2) ? s.H : shape[5];
    s.peepholes = one_in(c, 2);
    s.weights = (rnnfast_weights)between(c, 0, RNNFAST_WEIGHTS);
    rnnfast_sizes sizes;
    const rnnfast_cell_info *cell = c->table->cell_info(s.cell);
    const int is_refused = c->table->sizes(&s, shape[0], shape[1], NULL, &sizes);
    const double item = (double)c->item, of_layers = (double)s.layers * s.directions;
    const int has_bytes = s.weights == RNNFAST_INT8 || s.weights == RNNFAST_INT8_PRODUCTS;
    const double of_weight = s.weights == RNNFAST_BFLOAT16 ? 2 : has_bytes ? 1 : item;
    const int is_kind = s.weights == RNNFAST_FULL || (c->item == 4 && s.weights < RNNFAST_WEIGHTS);
    if (!cell != (s.cell >= RNNFAST_CELLS)) fail(c, "cell_info() knows another number of cells");
    if (!is_refused && (!is_kind || !cell || (s.P != s.H && (!cell->supports_projection || s.P > s.H))))
        fail(c, "sizes() accepts an invalid stack");
    if (!is_refused && ((double)sizes.packed < of_layers * (double)s.H * (double)s.P * of_weight ||
                        (double)sizes.forward_workspace < (double)shape[1] * (double)s.H * item))
        fail(c, "sizes() returns a size that is too small");
    if (rnnfast_get_table("none", c->item)) fail(c, "there is a table of an unknown instruction set");
    rnnfast_linear p = {.M = shape[0], .I = shape[3], .O = shape[4], .weights = s.weights};
    size_t packed, workspace;
    const int is_refused_product = c->table->linear_sizes(&p, &packed, &workspace);
    if (!is_refused_product && !is_kind) fail(c, "linear_sizes() accepts an unknown kind of weights");
    if (!is_refused_product && (double)packed < (double)p.I * (double)p.O * of_weight)
        fail(c, "linear_sizes() returns a size that is too small");
}

/* ---- rounds ---- */

static void *run_caller(void *argument)
{
    caller *c = argument;
    const char *const *isas = rnnfast_isas();
    ptrdiff_t count = 0;
    while (isas[count]) count++;
    const char *isa = isas[between(c, 0, count - 1)];
    c->item = one_in(c, 2) ? 4 : 8;
    c->table = rnnfast_get_table(c->isa ? c->isa : isa, c->item);
    if (!c->table) fail(c, "%s does not run here", c->isa);
    switch (between(c, 0, 12)) {
    case 0:
    case 1: call_linear(c); break;
    case 2: call_activations(c); break;
    case 3: call_sizes(c); break;
    case 4: call_optimizer(c); break;
    case 12: call_members(c); break;
    case 5:
        if (one_in(c, 3)) call_order(c);
        else call_stack(c);
        break;
    default: call_stack(c);
    }
    free_all(c);
    return NULL;
}

int main(int count, char **arguments)
{
    if (count < 4) {
        fprintf(stderr, "usage: random_calls SEED ROUNDS SECONDS [ISA]\n");
        return 2;
    }
    const long seed = atol(arguments[1]), rounds = atol(arguments[2]), seconds = atol(arguments[3]);
    const time_t begin = time(NULL);
    long round = seed;
    for (; round < seed + rounds && (!seconds || time(NULL) - begin < seconds); round++) {
        caller callers[MOST_CALLERS];
        pthread_t threads[MOST_CALLERS];
        const int some =
            round == seed ? MOST_CALLERS : 1 + (int)(round % MOST_CALLERS); /* the first ones detect instruction sets at once */
        for (int i = 0; i < some; i++) {
            callers[i] = (caller){.random = ((uint64_t)round * MOST_CALLERS + (uint64_t)i + 1) * 0x9E3779B97F4A7C15u, .round = round};
            if (count > 4) callers[i].isa = arguments[4];
            for (int k = 0; k < 8; k++) next(&callers[i]); /* the first ones still resemble the seed */
            if (i && pthread_create(&threads[i], NULL, run_caller, &callers[i])) fail(&callers[i], "cannot create a thread");
        }
        run_caller(&callers[0]);
        for (int i = 1; i < some; i++) pthread_join(threads[i], NULL);
    }
    printf("random_calls: %ld rounds from %ld passed\n", round - seed, seed);
    return 0;
}
