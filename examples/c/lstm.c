/* The gradient of an LSTM in plain C, checked by a difference: forward and backward over a batch in double precision.
 *
 * In the root of a checkout, one command compiles it together with the kernels for any machine:
 *
 *     gcc -O2 -std=c11 -ffp-contract=off -DRNNFAST_SCALAR_ONLY -pthread -Icsrc examples/c/lstm.c \
 *         csrc/dispatch.c csrc/order.c csrc/threads.c csrc/f32_scalar.c csrc/f64_scalar.c -lm -o lstm
 *
 * RNNFAST_SCALAR_ONLY leaves out the faster kernels, each of which wants flags of its own; -ffp-contract=off keeps the promise of the
 * same bits. `python setup.py build_ext` compiles them all, and this takes what it has made:
 *
 *     gcc -O2 -std=c11 -pthread -Icsrc examples/c/lstm.c $(find build -path "*csrc*.o") -lm -o lstm
 */
#include "rnnfast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T = 7, N = 2, I = 3, H = 5 };

static double x[T][N][I], y[T][N][H], h_n[N][H], c_n[N][H];
static double dy[T][N][H], dx[T][N][I], dh0[N][H], dc0[N][H];
static double weight_ih[4 * H][I], weight_hh[4 * H][H], bias_ih[4 * H], bias_hh[4 * H];
static double dweight_ih[4 * H][I], dweight_hh[4 * H][H], dbias_ih[4 * H], dbias_hh[4 * H]; /* zeros: gradients are added to them */

static const void *const parameters[RNNFAST_KINDS] = {weight_ih, weight_hh, bias_ih, bias_hh};
static void *const dparameters[RNNFAST_KINDS] = {dweight_ih, dweight_hh, dbias_ih, dbias_hh};

static void *buffer(size_t bytes)
{
    void *memory = aligned_alloc(RNNFAST_ALIGNMENT, (bytes / RNNFAST_ALIGNMENT + 1) * RNNFAST_ALIGNMENT);
    if (!memory) exit(2);
    return memory;
}

/* Numbers from -0.5 to 0.5, the same everywhere. */
static void fill(double *numbers, size_t count)
{
    for (size_t k = 0; k < count; k++) numbers[k] = (double)(k * k % 23) / 22 - 0.5;
}

/* Half the sum of the squares of y, whose derivative by y is y. */
static double loss_of(const rnnfast_table *table, const rnnfast_problem *p, void *packed, void *packed_back)
{
    double sum = 0;
    table->pack(&p->stack, parameters, packed, packed_back, p->threads, p->poll);
    table->forward(p);
    for (int k = 0; k < T * N * H; k++) sum += (&y[0][0][0])[k] * (&y[0][0][0])[k] / 2;
    return sum;
}

int main(void)
{
    const rnnfast_table *table = rnnfast_get_table(rnnfast_isas()[0], sizeof(double)); /* the best that runs here */
    rnnfast_problem p = {.T = T, .N = N, .threads = 1};
    rnnfast_sizes sizes;
    p.stack = (rnnfast_stack){.cell = RNNFAST_LSTM, .directions = 1, .layers = 1, .I = I, .H = H, .P = H};
    if (table->sizes(&p.stack, T, N, NULL, &sizes)) return 2;

    void *packed = buffer(sizes.packed), *packed_back = buffer(sizes.packed_back);
    size_t more = sizes.forward_workspace > sizes.backward_workspace ? sizes.forward_workspace : sizes.backward_workspace;
    p.workspace = buffer(more); /* forward and backward take turns */
    p.tape = buffer(sizes.tape);

    p.packed = packed, p.packed_back = packed_back;
    p.x = x, p.x_step = N * I, p.x_row = I;
    p.y = y, p.y_step = N * H, p.y_row = H;
    p.h_n = h_n, p.c_n = c_n; /* h0 and c0 stay NULL: zeros */
    p.dy = dy, p.dy_step = N * H, p.dy_row = H;
    p.dx = dx, p.dx_step = N * I, p.dx_row = I;
    p.dh0 = dh0, p.dc0 = dc0;
    p.dparameters = dparameters;

    fill(&x[0][0][0], T * N * I);
    fill(&weight_ih[0][0], 4 * H * I);
    fill(&weight_hh[0][0], 4 * H * H);
    fill(bias_ih, 4 * H);
    fill(bias_hh, 4 * H);

    double loss = loss_of(table, &p, packed, packed_back);
    memcpy(dy, y, sizeof y);
    table->backward(&p);

    const double step = 1e-5;
    double *weight = &weight_hh[7][3], kept = *weight;
    *weight = kept + step;
    double above = loss_of(table, &p, packed, packed_back);
    *weight = kept - step;
    double below = loss_of(table, &p, packed, packed_back);

    double gradient = dweight_hh[7][3], difference = (above - below) / (2 * step);
    printf("instruction set %s\nloss %.17g\ngradient %.17g\ndifference %.17g\n", table->isa, loss, gradient, difference);
    free(packed), free(packed_back), free(p.workspace), free(p.tape);
    return fabs(gradient - difference) > 1e-8 * fabs(difference);
}
