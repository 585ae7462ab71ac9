/* Dispatch: the instruction sets that were compiled and run here, detected once.
 *
 * Detection runs on first use, because a table may be asked for before main(). Two threads may detect at the same time; both find and
 * store the same. The lists that rnnfast_isas() returns are constants, so nothing is ever rewritten.
 */
#include "rnnfast.h"

#include <string.h>

#if defined(__x86_64__) || defined(_M_X64)
#define X86 1
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

extern const rnnfast_table rnnfast_f32_scalar, rnnfast_f64_scalar;
#ifndef RNNFAST_SCALAR_ONLY
extern const rnnfast_table rnnfast_f32_base, rnnfast_f64_base;
#ifdef X86
extern const rnnfast_table rnnfast_f32_avx2, rnnfast_f64_avx2, rnnfast_f32_avx512, rnnfast_f64_avx512;
#endif
#endif

#if defined(X86) && !defined(RNNFAST_SCALAR_ONLY)

#include <stdatomic.h>

static void cpuid(unsigned leaf, unsigned out[4])
{
#if defined(_MSC_VER) && !defined(__clang__)
    int answer[4];
    __cpuidex(answer, (int)leaf, 0);
    memcpy(out, answer, sizeof answer);
#else
    __cpuid_count(leaf, 0, out[0], out[1], out[2], out[3]);
#endif
}

/* The registers that the operating system saves: bits 1 and 2 for AVX, and also 5 to 7 for AVX-512. */
static unsigned long long saved_registers(void)
{
#if defined(_MSC_VER) && !defined(__clang__)
    return _xgetbv(0);
#else
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low | (unsigned long long)high << 32;
#endif
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
    unsigned most[4], basic[4], extended[4];
    cpuid(0, most);
    if (most[0] < 7) return 0;
    cpuid(1, basic);
    cpuid(7, extended);
    if (!has_bits(basic[2], FMA | OSXSAVE | AVX) || !has_bits(extended[1], AVX2) || !has_bits(saved_registers(), 0x6)) return 0;
    return has_bits(extended[1], F | DQ | BW | VL) && has_bits(saved_registers(), 0xe6) ? 2 : 1;
}

#endif

/* All tables that were compiled, best first; float and double of each instruction set. */
static const rnnfast_table *const tables[][2] = {
#ifndef RNNFAST_SCALAR_ONLY
#ifdef X86
    {&rnnfast_f32_avx512, &rnnfast_f64_avx512},
    {&rnnfast_f32_avx2, &rnnfast_f64_avx2},
#endif
    {&rnnfast_f32_base, &rnnfast_f64_base},
#endif
    {&rnnfast_f32_scalar, &rnnfast_f64_scalar},
};

/* Their names; a machine has those from unusable() on. */
static const char *const names[] = {
#ifndef RNNFAST_SCALAR_ONLY
#ifdef X86
    "avx512", "avx2",
#endif
    "base",
#endif
    "scalar", NULL,
};

/* How many of the first tables do not run here. */
static size_t unusable(void)
{
#if defined(X86) && !defined(RNNFAST_SCALAR_ONLY)
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
    for (size_t i = unusable(); i < COUNT(tables); i++)
        for (int j = 0; j < 2; j++)
            if (!strcmp(names[i], isa) && tables[i][j]->item == item) return tables[i][j];
    return NULL;
}
