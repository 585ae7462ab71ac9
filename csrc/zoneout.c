/* The masks of zoneout, drawn by Philox4x32-10, a function of a counter and a key: no mask depends on another, on the batch or on threads.
 *
 * A unit keeps its value if a random fraction of 32 binary digits is below the probability. The fractions of 64 units are drawn side by
 * side, one digit of all of them at a time, from the first to the last, until all are decided: after some 8 digits, on average.
 * Layout, the counter: the group of 64 units with the pair of digits, the step, the row, and the layer and direction with h or c.
 * Cost: about 1 ns for a unit.
 * Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.
 */
#include "threads.h"

#include <stdint.h>
#include <string.h>

enum { GROUP = 64, DIGITS = 32, ROUNDS = 10, GROUP_WORK = 256 /* multiply-adds that take as long as a group */ };

/* Two words of 64 bits, in place of the counter. */
static void draw(const uint32_t counter[4], const uint32_t key[2], uint64_t words[2])
{
    uint32_t x0 = counter[0], x1 = counter[1], x2 = counter[2], x3 = counter[3], k0 = key[0], k1 = key[1];
    for (int round = 0; round < ROUNDS; round++, k0 += 0x9E3779B9, k1 += 0xBB67AE85) {
        const uint64_t a = (uint64_t)0xD2511F53 * x0, b = (uint64_t)0xCD9E8D57 * x2;
        x0 = (uint32_t)(b >> 32) ^ x1 ^ k0;
        x1 = (uint32_t)b;
        x2 = (uint32_t)(a >> 32) ^ x3 ^ k1;
        x3 = (uint32_t)a;
    }
    words[0] = (uint64_t)x1 << 32 | x0;
    words[1] = (uint64_t)x3 << 32 | x2;
}

/* The bits of a group of units. limit: the probability times 2^DIGITS. */
static uint64_t draw_group(uint32_t counter[4], const uint32_t key[2], uint64_t limit)
{
    uint64_t below = limit >> DIGITS ? UINT64_MAX : 0, undecided = ~below, words[2];
    limit <<= 64 - DIGITS; /* the next digit is at the top */
    for (int digit = 0; undecided && limit; digit++, limit <<= 1) {
        if (digit % 2 == 0) draw(counter, key, words), counter[0]++;
        const uint64_t word = words[digit % 2];
        if (limit >> 63) below |= undecided & ~word, undecided &= word;
        else undecided &= ~word;
    }
    return below;
}

void rnnfast_draw_zoneout(const rnnfast_stack *stack, ptrdiff_t T, ptrdiff_t N, int has_c, const uint32_t key[2], void *masks,
                          rnnfast_poll poll)
{
    const ptrdiff_t units[2] = {stack->P, stack->H};
    const double scale = (double)((uint64_t)1 << DIGITS);
    const uint64_t limits[2] = {(uint64_t)(stack->zoneout_h * scale + 0.5), (uint64_t)(stack->zoneout_c * scale + 0.5)};
    rnnfast_flag stopped = 0;
    poller w = start_poller(&stopped, &poll);
    uint8_t *to = masks;
    for (ptrdiff_t state = 0; state < stack->layers * stack->directions; state++)
        for (ptrdiff_t t = 0; t < T; t++)
            for (ptrdiff_t n = 0; n < N; n++)
                for (int of_c = 0; of_c <= has_c; of_c++)
                    for (ptrdiff_t j = 0; j < units[of_c] && !should_stop(&w, GROUP_WORK); j += GROUP) {
                        uint32_t counter[4] = {(uint32_t)(j / GROUP * (DIGITS / 2)), (uint32_t)t, (uint32_t)n,
                                               (uint32_t)(2 * state + of_c)};
                        const uint64_t bits = draw_group(counter, key, limits[of_c]);
                        for (int i = 0; i < GROUP / 8; i++) *to++ = (uint8_t)(bits >> 8 * i);
                    }
    finish_poller(&w);
}
