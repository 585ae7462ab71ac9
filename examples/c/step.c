/* An LSTM that processes a signal sample by sample, as in the callback of an audio device: a prepared step in plain C.
 *
 * Everything is allocated and prepared before the first sample. A step then allocates nothing, takes no lock, makes no system call and
 * cannot fail. The commands in lstm.c compile this file as well.
 */
#include "rnnfast.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { H = 20, SAMPLES = 48 };

static float weight_ih[4 * H][1], weight_hh[4 * H][H], bias[4 * H], readout[H];

static void *buffer(size_t bytes)
{
    void *memory = aligned_alloc(RNNFAST_ALIGNMENT, (bytes / RNNFAST_ALIGNMENT + 1) * RNNFAST_ALIGNMENT);
    if (!memory) exit(2);
    return memory;
}

/* Values from -0.5 to 0.5, the same on every machine. */
static void fill(float *numbers, int count)
{
    for (int k = 0; k < count; k++) numbers[k] = (float)(k * k % 23) / 22 - 0.5f;
}

int main(void)
{
    const rnnfast_table *table = rnnfast_get_table(rnnfast_isas()[0], sizeof(float));
    const rnnfast_stack stack = {.cell = RNNFAST_LSTM, .directions = 1, .layers = 1, .I = 1, .H = H, .P = H};
    const void *const parameters[RNNFAST_KINDS] = {weight_ih, weight_hh, bias};
    rnnfast_poll none = {0};
    rnnfast_sizes sizes;
    size_t bytes;
    fill(&weight_ih[0][0], 4 * H);
    fill(&weight_hh[0][0], 4 * H * H);
    fill(bias, 4 * H);
    fill(readout, H);

    if (table->sizes(&stack, 1, 1, NULL, &sizes) || table->step_size(&stack, 1, &bytes)) return 2;
    void *packed = buffer(sizes.packed), *prepared = buffer(bytes);
    table->pack(&stack, parameters, packed, NULL, 1, none);
    table->prepare_step(&stack, 1, packed, prepared);

    float x, y[H], h[H] = {0}, c[H] = {0};
    const rnnfast_step step = {.x = &x, .h0 = h, .c0 = c, .y = y, .h_n = h, .c_n = c}; /* updates the state in place */
    for (int n = 0; n < SAMPLES; n++) {
        x = (float)sin(n / 3.0);
        table->step(prepared, &step);
        float sample = 0;
        for (int j = 0; j < H; j++) sample += readout[j] * y[j];
        printf("%.7g\n", (double)sample);
    }
    free(packed), free(prepared);
}
