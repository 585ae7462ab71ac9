/* The matrix products of a program without the engine, as rnnfast.export writes it, for a single row.
 *
 *   sums[j] += sum over k = 0 .. K-1, in this order, of a[k] * w[k, j]
 *
 * w may be narrow (rnnfast_weights): then each element is of uint16_t or int8_t, and for RNNFAST_INT8 the sum is that of narrow.h.
 * Layout: w is [K, columns], so sums of neighbouring columns can be computed side by side, in vectors, without changing a result.
 * The arrays do not overlap.
 * Error: each element of sums is one chain of muladd() over rising k, as in gemm.h, so the bits are those of kernels without
 * fused products: the last of rnnfast_isas().
 * Cost: for each k, a tile loads an element of a, and TILE of w for TILE multiply-adds. Its sums stay in registers, also those of a
 * Cortex-M4; one sum at a time would wait for each addition. Where the processor has vectors, a tile is GROUPS of them.
 */
#pragma once

#include "rnnfast.h"
#include "simd.h"

enum { TILE = 8 };

INLINE REAL weight_at(const int W, const void *w, ptrdiff_t i)
{
    if (W == RNNFAST_BFLOAT16) return from_bits((BITS)((const uint16_t *)w)[i] << 16);
    if (W == RNNFAST_INT8) return from_byte((BITS)((const uint8_t *)w)[i], 0, 1);
    return ((const REAL *)w)[i];
}

/* Computes tiles of `size` columns, starting at column j. Returns the first column that is left over. */
INLINE ptrdiff_t add_tiles(const int W, const int size, ptrdiff_t j, REAL *restrict sums, const REAL *restrict a, ptrdiff_t K,
                           const void *restrict w, const REAL *restrict scale, ptrdiff_t columns)
{
    for (; size <= columns - j; j += size) {
        REAL sum[TILE] = {0}, *to = sums + j;
        const REAL *scales = W == RNNFAST_INT8 ? scale + j : NULL;
        for (int i = 0; i < size && W != RNNFAST_INT8; i++) sum[i] = to[i];
        for (ptrdiff_t k = 0; k < K; k++)
            for (int i = 0; i < size; i++) sum[i] = muladd(a[k], weight_at(W, w, k * columns + j + i), sum[i]);
        for (int i = 0; i < size; i++) to[i] = W == RNNFAST_INT8 ? scaled(sum[i], scales[i], to[i]) : sum[i];
    }
    return j;
}

/* Compilers keep arrays of many sums in memory, but vectors in registers. */
#if defined(__GNUC__) && (defined(__SSE__) || defined(__ARM_NEON) || defined(__wasm_simd128__))
#define HAS_GROUPS 1
#if defined(__GNUC__) && defined(__AVX__)
#define GROUP 8
#else
#define GROUP 4
#endif
enum { GROUPS = 8 }; /* at a time: their chains of additions hide the latency of one another */
typedef REAL group __attribute__((vector_size(GROUP * sizeof(REAL))));

INLINE group weights_at(const int W, const void *w, ptrdiff_t i)
{
    typedef int8_t bytes __attribute__((vector_size(GROUP)));
    typedef uint16_t halves __attribute__((vector_size(GROUP * sizeof(uint16_t))));
    typedef uint32_t words __attribute__((vector_size(GROUP * sizeof(uint32_t))));
    group g;
    if (W == RNNFAST_INT8) {
        bytes b;
        memcpy(&b, (const int8_t *)w + i, sizeof b);
        return __builtin_convertvector(b, group) * (REAL)(1 << 24); /* as from_byte() */
    }
    if (W == RNNFAST_BFLOAT16) {
        halves h;
        memcpy(&h, (const uint16_t *)w + i, sizeof h);
        const words upper = __builtin_convertvector(h, words) << 16;
        memcpy(&g, &upper, sizeof g);
        return g;
    }
    memcpy(&g, (const REAL *)w + i, sizeof g);
    return g;
}

/* As add_tiles(), for V groups at a time. */
INLINE ptrdiff_t add_groups(const int W, const int V, ptrdiff_t j, REAL *restrict sums, const REAL *restrict a, ptrdiff_t K,
                            const void *restrict w, const REAL *restrict scale, ptrdiff_t columns)
{
    for (; V * GROUP <= columns - j; j += V * GROUP) {
        group sum[GROUPS] = {0}, start, scales;
#pragma GCC unroll 8
        for (int v = 0; v < V; v++)
            if (W != RNNFAST_INT8) memcpy(&sum[v], sums + j + v * GROUP, sizeof *sum);
        for (ptrdiff_t k = 0; k < K; k++) {
#pragma GCC unroll 8
            for (int v = 0; v < V; v++) sum[v] = a[k] * weights_at(W, w, k * columns + j + v * GROUP) + sum[v];
        }
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) {
            if (W == RNNFAST_INT8) {
                memcpy(&start, sums + j + v * GROUP, sizeof start);
                memcpy(&scales, scale + j + v * GROUP, sizeof scales);
                sum[v] = scales * (sum[v] * ((REAL)1 / (1 << 24))) + start; /* as scaled() */
            }
            memcpy(sums + j + v * GROUP, &sum[v], sizeof *sum);
        }
    }
    return j;
}
#endif

INLINE void add_any_product(const int W, REAL *restrict sums, const REAL *restrict a, ptrdiff_t K, const void *restrict w,
                            const REAL *restrict scale, ptrdiff_t columns)
{
    ptrdiff_t j = 0;
#if defined(HAS_GROUPS) && defined(__GNUC__)
    j = add_groups(W, GROUPS, j, sums, a, K, w, scale, columns);
    j = add_groups(W, 1, j, sums, a, K, w, scale, columns);
#endif
    j = add_tiles(W, TILE, j, sums, a, K, w, scale, columns);
    add_tiles(W, 1, j, sums, a, K, w, scale, columns);
}

static void add_product(REAL *restrict sums, const REAL *restrict a, ptrdiff_t K, const REAL *restrict w, ptrdiff_t columns)
{
    add_any_product(RNNFAST_FULL, sums, a, K, w, NULL, columns);
}

static void add_bfloat16_product(REAL *restrict sums, const REAL *restrict a, ptrdiff_t K, const uint16_t *restrict w, ptrdiff_t columns)
{
    add_any_product(RNNFAST_BFLOAT16, sums, a, K, w, NULL, columns);
}

static void add_int8_product(REAL *restrict sums, const REAL *restrict a, ptrdiff_t K, const int8_t *restrict w, const REAL *restrict scale,
                             ptrdiff_t columns)
{
    add_any_product(RNNFAST_INT8, sums, a, K, w, scale, columns);
}
