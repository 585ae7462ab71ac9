/* One call of a stack through the C interface. benchmarks/instructions.py counts the instructions of counted():
 *
 *     instructions lstm training T=8 N=5 I=13 H=51 layers=2 bidirectional float64
 */
#include "rnnfast.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Named directly, because rnnfast_get_table() would need the objects of every instruction set. */
extern const rnnfast_table rnnfast_f32_avx2, rnnfast_f64_avx2;

typedef struct {
    rnnfast_problem problem;
    int training;
    const rnnfast_table *table;
} work;

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static int is_size(const char *word, const char *pattern, ptrdiff_t *size)
{
    return sscanf(word, pattern, size) == 1;
}

static work read_case(int words, char **word)
{
    work w = {.table = &rnnfast_f32_avx2};
    rnnfast_problem *p = &w.problem;
    rnnfast_stack *s = &p->stack;
    s->layers = s->directions = 1;
    s->cell = RNNFAST_CELLS;
    for (int i = 0; i < words; i++) {
        int cell = 0;
        while (cell < RNNFAST_CELLS && strcmp(word[i], w.table->cell_info(cell)->name)) cell++;
        if (cell < RNNFAST_CELLS) s->cell = cell;
        else if (!strcmp(word[i], "training")) w.training = 1;
        else if (!strcmp(word[i], "bidirectional")) s->directions = 2;
        else if (!strcmp(word[i], "float64")) w.table = &rnnfast_f64_avx2;
        else if (strcmp(word[i], "forward") && !is_size(word[i], "T=%td", &p->T) && !is_size(word[i], "N=%td", &p->N) &&
                 !is_size(word[i], "I=%td", &s->I) && !is_size(word[i], "H=%td", &s->H) && !is_size(word[i], "layers=%td", &s->layers))
            fail(word[i], "unknown word");
    }
    if (s->cell == RNNFAST_CELLS || p->T < 1 || p->N < 1 || s->I < 1 || s->H < 1 || s->layers < 1)
        fail("incomplete case", "expected a cell, T, N, I and H, as in lstm forward T=20 N=1 I=64 H=64");
    s->P = s->H;
    p->threads = 1;
    return w;
}

/* Allocates pseudo-random elements, the same in every run. */
static void *elements(const work *w, ptrdiff_t count)
{
    static unsigned state = 1;
    size_t item = w->table->item;
    void *memory = aligned_alloc(64, ((size_t)count * item + 63) / 64 * 64);
    if (!memory) fail("case", "out of memory");
    for (ptrdiff_t i = 0; i < count; i++) {
        double value = (state = state * 1664525u + 1013904223u) / 4294967296.0 - 0.5;
        if (item == sizeof(float)) ((float *)memory)[i] = (float)value;
        else ((double *)memory)[i] = value;
    }
    return memory;
}

static void *bytes(const work *w, size_t count)
{
    return elements(w, (ptrdiff_t)(count / w->table->item));
}

/* Makes the parameters of each layer and direction, or their gradients. */
static void **parameters(const work *w)
{
    const rnnfast_stack *s = &w->problem.stack;
    const rnnfast_cell_info *cell = w->table->cell_info(s->cell);
    ptrdiff_t columns = (ptrdiff_t)strlen(cell->gates) * s->H, parts = s->layers * s->directions;
    void **all = calloc((size_t)(RNNFAST_KINDS * parts), sizeof *all);
    if (!all) fail("case", "out of memory");
    for (ptrdiff_t i = 0; i < parts; i++) {
        ptrdiff_t K = i < s->directions ? s->I : s->directions * s->P;
        all[RNNFAST_KINDS * i] = elements(w, columns * K);
        all[RNNFAST_KINDS * i + 1] = elements(w, columns * s->P);
        all[RNNFAST_KINDS * i + 2] = elements(w, columns);
        all[RNNFAST_KINDS * i + 3] = elements(w, columns);
        if (cell->extra && !cell->extra_is_optional) all[RNNFAST_KINDS * i + 5] = elements(w, cell->extra_rows * s->H);
    }
    return all;
}

static void prepare(work *w)
{
    rnnfast_problem *p = &w->problem;
    const rnnfast_stack *s = &p->stack;
    ptrdiff_t rows = p->T * p->N, width = s->directions * s->P, states = s->layers * s->directions * p->N * s->H;
    rnnfast_sizes sizes;
    if (w->table->sizes(s, p->T, p->N, NULL, &sizes)) fail("case", "too large");
    void *packed = bytes(w, sizes.packed), *packed_back = bytes(w, sizes.packed_back);
    w->table->pack(s, (const void *const *)parameters(w), packed, packed_back, p->threads, p->poll);
    p->packed = packed;
    p->packed_back = packed_back;
    p->workspace = bytes(w, sizes.forward_workspace > sizes.backward_workspace ? sizes.forward_workspace : sizes.backward_workspace);
    p->tape = w->training ? bytes(w, sizes.tape) : NULL;
    p->x = elements(w, rows * s->I);
    p->dx = elements(w, rows * s->I);
    p->x_row = p->dx_row = s->I;
    p->x_step = p->dx_step = p->N * s->I;
    p->y = elements(w, rows * width);
    p->dy = elements(w, rows * width);
    p->y_row = p->dy_row = width;
    p->y_step = p->dy_step = p->N * width;
    p->h0 = elements(w, states);
    p->c0 = elements(w, states);
    p->h_n = elements(w, states);
    p->c_n = elements(w, states);
    p->dh_n = elements(w, states);
    p->dc_n = elements(w, states);
    p->dh0 = elements(w, states);
    p->dc0 = elements(w, states);
    p->dparameters = parameters(w);
}

static void call(const work *w)
{
    w->table->forward(&w->problem);
    if (w->training) w->table->backward(&w->problem);
}

/* valgrind finds it by name, so it is neither static nor inlined. */
__attribute__((noinline)) void counted(const work *w)
{
    call(w);
}

int main(int argc, char **argv)
{
    work w = read_case(argc - 1, argv + 1);
    prepare(&w);
    call(&w); /* the dynamic linker resolves symbols at the first call */
    counted(&w);
    return 0;
}
