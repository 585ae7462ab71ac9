/* Index arithmetic: minimum, maximum, rounding, and ranges divided into parts. */
#ifndef RNNFAST_RANGE_H
#define RNNFAST_RANGE_H

#include <stddef.h>

/* The indices begin .. end - 1. */
typedef struct {
    ptrdiff_t begin, end;
} range;

static ptrdiff_t min_of(ptrdiff_t a, ptrdiff_t b)
{
    return a < b ? a : b;
}

static ptrdiff_t max_of(ptrdiff_t a, ptrdiff_t b)
{
    return a > b ? a : b;
}

static ptrdiff_t round_up(ptrdiff_t a, ptrdiff_t to)
{
    return (a + to - 1) / to * to;
}

/* Part k of n of the indices 0 .. total - 1. The lengths of the parts differ by at most one. */
static range part(ptrdiff_t total, ptrdiff_t k, ptrdiff_t n)
{
    if (n == 1) {
        range all = {0, total};
        return all;
    }
    ptrdiff_t each = total / n, more = total % n;
    range p = {k * each + min_of(k, more), (k + 1) * each + min_of(k + 1, more)};
    return p;
}

#endif
