/* Time of single steps from C, as a callback makes them: a row of an LSTM or GRU of the sizes of amplifier models, noise suppressors and
 * small controllers. Prints nanoseconds and clock cycles of a step, the best of many trials, for
 *
 *     prepared    a prepared step
 *     call        a call of forward() with one step
 *     block       a step of a call with 64 steps
 *
 * In the root of a checkout, `python setup.py build_ext` compiles the kernels, and this command the benchmark:
 *
 *     gcc -O2 -std=c11 -pthread -Icsrc benchmarks/step.c $(find build -path "*csrc*.o") -lm -o build/step
 *
 * build/step [ISA] uses an instruction set, by default the best. Cycles are time multiplied by the clock rate, which is measured by a chain
 * of dependent increments, each of one cycle.
 */
#define _POSIX_C_SOURCE 200809L
#include "rnnfast.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 64, TRIALS = 400, STEPS = 2048 };

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *buffer(size_t bytes)
{
    size_t whole = (bytes / RNNFAST_ALIGNMENT + 1) * RNNFAST_ALIGNMENT;
    void *memory = aligned_alloc(RNNFAST_ALIGNMENT, whole);
    if (!memory) exit(2);
    return memset(memory, 0, whole);
}

/* Values from -0.15 to 0.15. */
static float *filled(size_t count)
{
    static unsigned seed = 1;
    float *p = buffer(count * sizeof(float));
    for (size_t i = 0; i < count; i++) seed = seed * 1664525u + 1013904223u, p[i] = (float)(seed >> 8) / 16777216 * 0.3f - 0.15f;
    return p;
}

/* Cycles per second. */
static double clock_rate(void)
{
    enum { CHAIN = 200000 };
    double best = 1;
    for (int trial = 0; trial < 200; trial++) {
        double start = now();
        size_t count = 0;
        for (int i = 0; i < CHAIN; i++) {
            count++;
            __asm__ volatile("" : "+r"(count)); /* keeps the increments apart */
        }
        double each = (now() - start) / CHAIN;
        if (each < best) best = each;
    }
    return 1 / best;
}

typedef struct {
    const rnnfast_table *table;
    rnnfast_problem problem;
    rnnfast_step step;
    void *prepared;
} model;

static model new_model(const rnnfast_table *table, rnnfast_cell cell, int gates, int I, int H)
{
    model m = {.table = table, .problem = {.T = BLOCK, .N = 1, .threads = 1}};
    rnnfast_problem *p = &m.problem;
    rnnfast_poll none = {0};
    rnnfast_sizes sizes;
    size_t bytes;
    p->stack = (rnnfast_stack){.cell = cell, .directions = 1, .layers = 1, .I = I, .H = H, .P = H};
    if (table->sizes(&p->stack, BLOCK, 1, NULL, &sizes) || table->step_size(&p->stack, 1, &bytes)) exit(2);
    const size_t rows = (size_t)gates * (size_t)H;
    const void *const parameters[RNNFAST_KINDS] = {filled(rows * (size_t)I), filled(rows * (size_t)H), filled(rows), filled(rows)};
    void *packed = buffer(sizes.packed);
    table->pack(&p->stack, parameters, packed, NULL, 1, none);
    m.prepared = buffer(bytes);
    table->prepare_step(&p->stack, 1, packed, m.prepared);
    p->packed = packed, p->workspace = buffer(sizes.forward_workspace);
    p->x = filled((size_t)I * BLOCK), p->x_step = p->x_row = I;
    p->y = filled((size_t)H * BLOCK), p->y_step = p->y_row = H;
    p->h0 = p->h_n = filled((size_t)H);
    p->c0 = p->c_n = filled((size_t)H);
    m.step = (rnnfast_step){.x = p->x, .h0 = p->h0, .c0 = p->c0, .y = p->y, .h_n = p->h_n, .c_n = p->c_n};
    return m;
}

/* Seconds of a step. T is the number of steps of a call, or 0 for prepared steps. x depends on y, as in a model with feedback. */
static double step_time(model *m, ptrdiff_t T)
{
    double best = 1;
    m->problem.T = T;
    for (int trial = 0; trial < TRIALS; trial++) {
        const int calls = T ? (int)(STEPS / T) : STEPS;
        double start = now();
        for (int k = 0; k < calls; k++) {
            *(float *)m->step.x = *(const float *)m->step.y * 0.5f;
            if (T) m->table->forward(&m->problem);
            else m->table->step(m->prepared, &m->step);
        }
        double each = (now() - start) / STEPS;
        if (each < best) best = each;
    }
    return best;
}

int main(int argc, char **argv)
{
    static const int sizes[][2] = {{1, 8}, {1, 16}, {1, 20}, {1, 32}, {1, 40}, {64, 64}};
    const char *isa = argc > 1 ? argv[1] : rnnfast_isas()[0];
    const rnnfast_table *table = rnnfast_get_table(isa, sizeof(float));
    if (!table) return fprintf(stderr, "%s does not run here\n", isa), 1;
    const double rate = clock_rate();
    printf("%s, %.2f GHz\n            prepared         call        block\n  cell  I  H   ns cycles    ns cycles    ns cycles\n", isa,
           rate / 1e9);
    for (int kind = 0; kind < 2; kind++)
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            model m = new_model(table, kind ? RNNFAST_GRU : RNNFAST_LSTM, kind ? 3 : 4, sizes[i][0], sizes[i][1]);
            printf("%6s %2d %2d", kind ? "gru" : "lstm", sizes[i][0], sizes[i][1]);
            for (int which = 0; which < 3; which++) {
                double each = step_time(&m, which == 0 ? 0 : which == 1 ? 1 : BLOCK);
                printf(" %5.0f %6.0f", each * 1e9, each * rate);
            }
            printf("\n");
        }
}
