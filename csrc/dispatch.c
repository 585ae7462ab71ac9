/* Dispatch: the instruction sets that were compiled and run here, detected once.
 *
 * Detection runs on first use, because a table may be asked for before main(). Two threads may detect at the same time; both find and
 * store the same. The lists that rnnfast_isas() returns are constants, so nothing is ever rewritten.
 */
#include "rnnfast.h"

#include <string.h>

/* Without GNU vector types there is only the scalar code, so the compiler has cpuid.h. */
#if !defined(RNNFAST_SCALAR_ONLY) && (defined(__x86_64__) || defined(_M_X64))
#define X86 1
#include <cpuid.h>
#include <stdatomic.h>

/* The registers that the operating system saves: bits 1 and 2 for AVX, and also 5 to 7 for AVX-512. */
static unsigned long long saved_registers(void)
{
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | (unsigned long long)high << 32;
}

static int has_bits(unsigned long long word, unsigned long long bits)
{
    return (word & bits) == bits;
}

/* 2: AVX-512 F, VL, DQ, BW; 1: AVX2 and FMA; 0: neither. */
static int vector_level(void)
{
    enum { FMA = 1 << 12, OSXSAVE = 1 << 27, AVX = 1 << 28, AVX2 = 1 << 5 };
    const unsigned F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31;
    unsigned basic[4], extended[4];
    if (__get_cpuid_max(0, NULL) < 7) return 0;
    __cpuid(1, basic[0], basic[1], basic[2], basic[3]);
    __cpuid_count(7, 0, extended[0], extended[1], extended[2], extended[3]);
    if (!has_bits(basic[2], FMA | OSXSAVE | AVX) || !has_bits(extended[1], AVX2) || !has_bits(saved_registers(), 0x6)) return 0;
    return has_bits(extended[1], F | DQ | BW | VL) && has_bits(saved_registers(), 0xe6) ? 2 : 1;
}

extern const rnnfast_table rnnfast_f32_avx2, rnnfast_f64_avx2, rnnfast_f32_avx512, rnnfast_f64_avx512;
#endif
#ifndef RNNFAST_SCALAR_ONLY
extern const rnnfast_table rnnfast_f32_base, rnnfast_f64_base;
#endif
extern const rnnfast_table rnnfast_f32_scalar, rnnfast_f64_scalar;

/* All tables that were compiled, best first; float and double of each instruction set. */
static const rnnfast_table *const tables[][2] = {
#ifdef X86
    {&rnnfast_f32_avx512, &rnnfast_f64_avx512},
    {&rnnfast_f32_avx2, &rnnfast_f64_avx2},
#endif
#ifndef RNNFAST_SCALAR_ONLY
    {&rnnfast_f32_base, &rnnfast_f64_base},
#endif
    {&rnnfast_f32_scalar, &rnnfast_f64_scalar},
};

/* Their names; a machine has those from unusable() on. */
static const char *const names[] = {
#ifdef X86
    "avx512", "avx2",
#endif
#ifndef RNNFAST_SCALAR_ONLY
    "base",
#endif
    "scalar", NULL,
};

/* How many of the first tables do not run here. */
static size_t unusable(void)
{
#if defined(X86)
    static atomic_int detected; /* the level plus one; 0: not yet */
    int level = atomic_load_explicit(&detected, memory_order_relaxed) - 1;
    if (level < 0) atomic_store_explicit(&detected, (level = vector_level()) + 1, memory_order_relaxed);
    return 2 - (size_t)level;
#else
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
