/* Runs the kernels on problems with known results, on a machine without Python. neon_check.py writes the file.
 *
 *     neon_check FILE
 *
 * Checks, on every instruction set and in float and double, the results, and that they have the same bits without a tape and with two
 * threads. The exit status is 1 if any check fails.
 *
 * The file, in native byte order and 8-byte numbers: the number of problems; for each its name, cell, directions, reverse, layers, I, H,
 * P, T, N, the tolerances of float and double, and arrays of doubles, each after the number of its elements (0: no array): parameters, x,
 * h0, c0, masks, dy, dh_n, dc_n; then the results in the order of their names below. Inputs are exact in float, so both element types
 * have the same results.
 */
#define _GNU_SOURCE
#include "rnnfast.h"

#include <math.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
    NAME_BYTES = 96,
    MEMORY = 1 << 28,    /* for one problem */
    STACKED = 4,         /* layers times directions at most */
    OF_FORWARD = 3,      /* results */
    BEFORE_GRADIENTS = 6 /* results, before the gradients of parameters */
};

static const char *const result_names[] = {"y",          "h_n",        "c_n",      "dx",       "dh0",        "dc0",
                                           "dweight_ih", "dweight_hh", "dbias_ih", "dbias_hh", "dweight_hr", "dextra"};

typedef struct {
    int64_t count;
    double *at;
} array;

typedef struct {
    char name[NAME_BYTES];
    rnnfast_stack stack;
    ptrdiff_t T, N;
    double tolerance[2];
    array parameters[RNNFAST_KINDS * STACKED], x, h0, c0, masks, dy, dh_n, dc_n;
    array results[BEFORE_GRADIENTS + RNNFAST_KINDS * STACKED];
} golden;

/* ---- memory: allocated in pieces, released all at once ---- */

static unsigned char *memory;
static size_t taken;

/* Allocates bytes at a cache line, filled with NaN. */
static void *take(size_t bytes)
{
    void *p = memory + taken;
    taken += (bytes + 63) / 64 * 64;
    if (taken > MEMORY) {
        fprintf(stderr, "neon_check: a problem is too large for %d bytes\n", (int)MEMORY);
        exit(1);
    }
    return memset(p, 0xff, bytes);
}

static double element(const void *from, int64_t i, size_t item)
{
    return item == sizeof(float) ? ((const float *)from)[i] : ((const double *)from)[i];
}

/* Returns a copy in the element type of `item` bytes; NULL for no array. */
static void *converted(array from, size_t item)
{
    if (!from.count) return NULL;
    void *to = take((size_t)from.count * item);
    for (int64_t i = 0; i < from.count; i++)
        if (item == sizeof(float)) ((float *)to)[i] = (float)from.at[i];
        else ((double *)to)[i] = from.at[i];
    return to;
}

/* ---- the file ---- */

static void read_bytes(FILE *file, void *to, size_t bytes)
{
    if (fread(to, 1, bytes, file) == bytes) return;
    fprintf(stderr, "neon_check: the file ends too early\n");
    exit(1);
}

static int64_t read_integer(FILE *file)
{
    int64_t value;
    read_bytes(file, &value, sizeof value);
    return value;
}

static array read_array(FILE *file)
{
    array a = {.count = read_integer(file)};
    size_t bytes = (size_t)a.count * sizeof *a.at;
    if (a.count) read_bytes(file, a.at = take(bytes), bytes);
    return a;
}

static int64_t parameters_of(const golden *g)
{
    return RNNFAST_KINDS * g->stack.layers * g->stack.directions;
}

static void read_golden(FILE *file, golden *g)
{
    array *const inputs[] = {&g->x, &g->h0, &g->c0, &g->masks, &g->dy, &g->dh_n, &g->dc_n};
    read_bytes(file, g->name, sizeof g->name);
    g->stack.cell = (rnnfast_cell)read_integer(file);
    g->stack.directions = (int)read_integer(file);
    g->stack.reverse = (int)read_integer(file);
    g->stack.layers = read_integer(file);
    g->stack.I = read_integer(file);
    g->stack.H = read_integer(file);
    g->stack.P = read_integer(file);
    g->T = read_integer(file);
    g->N = read_integer(file);
    read_bytes(file, g->tolerance, sizeof g->tolerance);
    for (int64_t i = 0; i < parameters_of(g); i++) g->parameters[i] = read_array(file);
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) *inputs[i] = read_array(file);
    for (int64_t i = 0; i < BEFORE_GRADIENTS + parameters_of(g); i++) g->results[i] = read_array(file);
}

/* ---- runs ---- */

static int invited_runs, shared_runs; /* runs to which a second worker was invited, and in which it took part */

/* The linker puts these two functions between the kernels and the thread group (--wrap), to see whether a second worker came. It gets
 * time to come, because most calls here are a single run, which begins without late workers. */
typedef struct {
    void (*work)(void *, int, int);
    void *argument;
} share;

static void count_shared(void *argument, int k, int n)
{
    const share *s = argument;
    if (k == 0 && n > 1) shared_runs++;
    s->work(s->argument, k, n);
}

void __real_rnnfast_threads_run(int group, void (*work)(void *, int, int), void *argument);
void __wrap_rnnfast_threads_run(int group, void (*work)(void *, int, int), void *argument);

void __wrap_rnnfast_threads_run(int group, void (*work)(void *, int, int), void *argument)
{
    const struct timespec while_it_wakes = {.tv_nsec = 1000000};
    share s = {work, argument};
    if (group > 1) {
        invited_runs++;
        nanosleep(&while_it_wakes, NULL);
    }
    __real_rnnfast_threads_run(group, count_shared, &s);
}

/* Runs forward and, with a tape, backward; writes the results in their order. */
static void run(const golden *g, const rnnfast_table *table, int threads, int keeps, void **results)
{
    const size_t item = table->item;
    const ptrdiff_t outputs = g->stack.directions * g->stack.P;
    const void *parameters[RNNFAST_KINDS * STACKED];
    rnnfast_sizes sizes;
    rnnfast_problem p = {.stack = g->stack, .T = g->T, .N = g->N, .threads = threads};
    table->sizes(&p.stack, p.T, p.N, NULL, &sizes);
    void *packed = take(sizes.packed), *packed_back = take(sizes.packed_back);
    for (int64_t i = 0; i < parameters_of(g); i++) parameters[i] = converted(g->parameters[i], item);
    table->pack(&p.stack, parameters, packed, packed_back, threads, p.poll);

    for (int64_t i = 0; i < BEFORE_GRADIENTS + parameters_of(g); i++) {
        size_t bytes = (size_t)g->results[i].count * item;
        results[i] = bytes ? take(bytes) : NULL;
        if (bytes && i >= BEFORE_GRADIENTS) memset(results[i], 0, bytes);
    }
    p.x = converted(g->x, item);
    p.h0 = converted(g->h0, item);
    p.c0 = converted(g->c0, item);
    p.masks = converted(g->masks, item);
    p.masks_layer = p.T * (p.masks_step = p.N * (p.masks_row = outputs));
    p.x_step = p.dx_step = p.N * (p.x_row = p.dx_row = g->stack.I);
    p.y_step = p.dy_step = p.N * (p.y_row = p.dy_row = outputs);
    p.y = results[0];
    p.h_n = results[1];
    p.c_n = results[2];
    p.tape = keeps ? take(sizes.tape) : NULL;
    p.packed = packed;
    p.workspace = take(sizes.forward_workspace);
    table->forward(&p);
    if (!keeps) return;

    p.dy = converted(g->dy, item);
    p.dh_n = converted(g->dh_n, item);
    p.dc_n = converted(g->dc_n, item);
    p.dx = results[3];
    p.dh0 = results[4];
    p.dc0 = results[5];
    p.dparameters = results + BEFORE_GRADIENTS;
    p.packed_back = packed_back;
    p.workspace = take(sizes.backward_workspace);
    table->backward(&p);
}

/* ---- comparing ---- */

/* The largest error, relative to the largest expected magnitude or to 1. */
static double error_of(array expected, const void *got, size_t item)
{
    double error = 0, largest = 1;
    for (int64_t i = 0; i < expected.count; i++) {
        double wrong = fabs(element(got, i, item) - expected.at[i]), magnitude = fabs(expected.at[i]);
        if (!(wrong <= error)) error = isnan(wrong) ? INFINITY : wrong;
        if (magnitude > largest) largest = magnitude;
    }
    return error / largest;
}

/* Counts the results that are wrong: by their tolerance, or, if `others` are given, by their bits. */
static int faults_in(const golden *g, const rnnfast_table *table, int64_t results, void *const *got, void *const *others, const char *when)
{
    const double tolerance = g->tolerance[table->item == sizeof(double)];
    int faults = 0;
    for (int64_t i = 0; i < results; i++) {
        const int64_t gradient = i - BEFORE_GRADIENTS;
        const int layer_and_direction = (int)(gradient / RNNFAST_KINDS);
        const double error = error_of(g->results[i], got[i], table->item);
        if (others ? !g->results[i].count || !memcmp(got[i], others[i], (size_t)g->results[i].count * table->item) : error <= tolerance)
            continue;
        faults++;
        printf("\n  %s, %s: %s", table->isa, table->item == sizeof(float) ? "float" : "double",
               result_names[gradient < 0 ? i : BEFORE_GRADIENTS + gradient % RNNFAST_KINDS]);
        if (gradient >= 0)
            printf(" of layer %d, direction %d", layer_and_direction / g->stack.directions, layer_and_direction % g->stack.directions);
        if (others) printf(" has different bits %s", when);
        else printf(" has an error of %.2g, more than %.2g", error, tolerance);
    }
    return faults;
}

static int check(const golden *g, const rnnfast_table *table)
{
    const int64_t all = BEFORE_GRADIENTS + parameters_of(g);
    void *first[BEFORE_GRADIENTS + RNNFAST_KINDS * STACKED], *again[BEFORE_GRADIENTS + RNNFAST_KINDS * STACKED];
    run(g, table, 1, 1, first);
    int faults = faults_in(g, table, all, first, NULL, NULL);
    run(g, table, 1, 0, again);
    faults += faults_in(g, table, OF_FORWARD, again, first, "without a tape");
    run(g, table, 2, 1, again);
    return faults + faults_in(g, table, all, again, first, "with two threads");
}

int main(int count, char **arguments)
{
    FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
    memory = aligned_alloc(64, MEMORY);
    if (!file || !memory) {
        fputs(file ? "neon_check: out of memory\n" : "neon_check: expected one file, written by neon_check.py\n", stderr);
        return 1;
    }
    const int64_t problems = read_integer(file);
    int64_t wrong = 0;
    for (int64_t i = 0; i < problems; i++) {
        golden g = {0};
        int faults = 0;
        taken = 0;
        read_golden(file, &g);
        printf("%s:", g.name);
        fflush(stdout); /* so that a crash shows its problem */
        const size_t kept = taken;
        for (const char *const *isa = rnnfast_isas(); *isa; isa++)
            for (size_t item = sizeof(float); item <= sizeof(double); item *= 2) {
                taken = kept;
                faults += check(&g, rnnfast_get_table(*isa, item));
            }
        wrong += faults > 0;
        puts(faults ? "" : " right");
    }
    fclose(file);

    cpu_set_t processors;
    const int alone = !sched_getaffinity(0, sizeof processors, &processors) && CPU_COUNT(&processors) == 1;
    printf("%d of %d problems are right, in float and double on", (int)(problems - wrong), (int)problems);
    for (const char *const *isa = rnnfast_isas(); *isa; isa++) printf(" %s", *isa);
    printf("; two threads shared %d of %d runs%s\n", shared_runs, invited_runs, shared_runs ? "" : ": NOT compared with one");
    return wrong || (!shared_runs && !alone);
}
