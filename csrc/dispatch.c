/* Dispatch: the instruction sets that were compiled and run here, and what else the processor can do, detected once.
 *
 * Detection runs on first use, because a table may be asked for before main(). Two threads may detect at the same time; both find and
 * store the same. The lists that rnnfast_isas() returns are constants, so nothing is ever rewritten.
 */
#include "dispatch.h"
#include "rnnfast.h"

#include <string.h>

/* Without GNU vector types there is only the scalar code, so the compiler has cpuid.h. */
#if !defined(RNNFAST_SCALAR_ONLY) && (defined(__x86_64__) || defined(_M_X64))
#define X86 1
#include <cpuid.h>
#include <stdatomic.h>

/* The registers that the operating system saves: bits 1 and 2 for AVX, and also 5 to 7 for AVX-512. */
static unsigned saved_registers(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* Bits of what the processor can do. */
enum {
    KNOWN = 1, /* looked for */
    HAS_AVX2 = 2,
    HAS_AVX512 = 4, /* F, VL, DQ, BW */
    HAS_QUADS_256 = 8,
    HAS_QUADS_512 = 16
};

static int detect(void)
{
    const unsigned AVX2 = 1u << 5, FMA_OSXSAVE_AVX = 1u << 12 | 1u << 27 | 1u << 28, F_DQ_BW_VL = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const unsigned AVX_VNNI = 1u << 4, AVX512_VNNI = 1u << 11;
    unsigned basic[4], extended[4], more[4] = {0};
    if (__get_cpuid_max(0, NULL) < 7) return KNOWN;
    __cpuid(1, basic[0], basic[1], basic[2], basic[3]);
    __cpuid_count(7, 0, extended[0], extended[1], extended[2], extended[3]);
    if ((basic[2] & FMA_OSXSAVE_AVX) != FMA_OSXSAVE_AVX || !(extended[1] & AVX2) || (saved_registers() & 0x6) != 0x6) return KNOWN;
    if (extended[0] >= 1) __cpuid_count(7, 1, more[0], more[1], more[2], more[3]);
    const int with_avx2 = KNOWN | HAS_AVX2 | (more[0] & AVX_VNNI ? HAS_QUADS_256 : 0);
    if ((extended[1] & F_DQ_BW_VL) != F_DQ_BW_VL || (saved_registers() & 0xe6) != 0xe6) return with_avx2;
    return with_avx2 | HAS_AVX512 | (extended[2] & AVX512_VNNI ? HAS_QUADS_512 : 0);
}

static int detected(void)
{
    static atomic_int found;
    int here = atomic_load_explicit(&found, memory_order_relaxed);
    if (!here) atomic_store_explicit(&found, here = detect(), memory_order_relaxed);
    return here;
}

extern const rnnfast_table rnnfast_f32_avx2, rnnfast_f64_avx2, rnnfast_f32_avx512, rnnfast_f64_avx512;
#endif
#ifndef RNNFAST_SCALAR_ONLY
extern const rnnfast_table rnnfast_f32_base, rnnfast_f64_base;
#endif
#ifndef X86 /* there base has the same bits */
extern const rnnfast_table rnnfast_f32_scalar, rnnfast_f64_scalar;
#endif

/* All tables that were compiled, best first; float and double of each instruction set. */
static const rnnfast_table *const tables[][2] = {
#ifdef X86
    {&rnnfast_f32_avx512, &rnnfast_f64_avx512},
    {&rnnfast_f32_avx2, &rnnfast_f64_avx2},
#endif
#ifndef RNNFAST_SCALAR_ONLY
    {&rnnfast_f32_base, &rnnfast_f64_base},
#endif
#ifndef X86
    {&rnnfast_f32_scalar, &rnnfast_f64_scalar},
#endif
};

/* Their names; a machine has those from unusable() on. */
static const char *const names[] = {
#ifdef X86
    "avx512", "avx2",
#endif
#ifndef RNNFAST_SCALAR_ONLY
    "base",
#endif
#ifndef X86
    "scalar",
#endif
    NULL,
};

/* How many of the first tables do not run here. */
static size_t unusable(void)
{
#if defined(X86)
    return detected() & HAS_AVX512 ? 0 : detected() & HAS_AVX2 ? 1 : 2;
#else
    return 0;
#endif
}

int rnnfast_has_quads(int bits)
{
#if defined(X86)
    return (detected() & (bits == 512 ? HAS_QUADS_512 : HAS_QUADS_256)) != 0;
#else
    (void)bits;
    return 0;
#endif
}

const char *const *rnnfast_isas(void)
{
    return names + unusable();
}

const rnnfast_table *rnnfast_get_table(const char *isa, size_t item)
{
    for (size_t i = unusable(); i < sizeof tables / sizeof *tables; i++)
        for (int j = 0; j < 2; j++)
            if (!strcmp(names[i], isa) && tables[i][j]->item == item) return tables[i][j];
    return NULL;
}
