/* Arenas: caller-owned memory, divided into regions.
 *
 * A layout is a function that reserves regions in sequence. With a NULL base it counts the elements it needs; with the real base it
 * assigns the same regions. Counting saturates at MAX_ELEMENTS, so comparing with it detects an overflow. Debug builds assert that the
 * regions stay within the counted size. Under AddressSanitizer a poisoned red zone follows each region.
 *
 * Layout: regions begin at multiples of RNNFAST_ALIGNMENT bytes from the base. All lengths count elements.
 * Source: the workspace of zstd (lib/compress/zstd_cwksp.h).
 */
#pragma once

#include "view.h"

#include <assert.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HAS_RED_ZONES 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define HAS_RED_ZONES 1
#endif
#if defined(HAS_RED_ZONES)
#include <sanitizer/asan_interface.h>
#endif

enum { ALIGN = RNNFAST_ALIGNMENT / sizeof(REAL) };

#define MAX_ELEMENTS (PTRDIFF_MAX / (ptrdiff_t)sizeof(REAL))

static ptrdiff_t times(ptrdiff_t a, ptrdiff_t b)
{
#if defined(__GNUC__)
    ptrdiff_t c; /* every call counts its layouts, so a division is avoided */
    return __builtin_mul_overflow(a, b, &c) || c > MAX_ELEMENTS ? MAX_ELEMENTS : c;
#else
    return b && a > MAX_ELEMENTS / b ? MAX_ELEMENTS : a * b;
#endif
}

static ptrdiff_t plus(ptrdiff_t a, ptrdiff_t b)
{
    return a > MAX_ELEMENTS - b ? MAX_ELEMENTS : a + b;
}

static ptrdiff_t padded(ptrdiff_t a, ptrdiff_t to)
{
    return a > MAX_ELEMENTS - to ? MAX_ELEMENTS : round_up(a, to);
}

typedef struct {
    REAL *base; /* NULL: count only */
    ptrdiff_t used;
    ptrdiff_t limit; /* debug builds: the counted size */
} arena;

INLINE REAL *reserve(arena *a, ptrdiff_t elements)
{
    ptrdiff_t begin = a->used;
    a->used = plus(begin, padded(elements, ALIGN));
#if defined(HAS_RED_ZONES)
    a->used = plus(a->used, ALIGN);
    if (a->base) __asan_poison_memory_region(a->base + begin + elements, (size_t)(a->used - begin - elements) * sizeof(REAL));
#endif
    if (!a->base) return NULL;
    assert(a->used <= a->limit);
    return a->base + begin;
}

/* Removes the red zones of an arena of the given size. */
INLINE void remove_red_zones(const void *base, ptrdiff_t elements)
{
#if defined(HAS_RED_ZONES)
    if (base) __asan_unpoison_memory_region(base, (size_t)elements * sizeof(REAL));
#else
    (void)base, (void)elements;
#endif
}
