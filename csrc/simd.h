/* The vector type of one instruction set, and the operations that the kernels use.
 *
 * The stub that includes this defines REAL_BITS (32 or 64) and LANES (elements of a vector). With LANES 1 a vector is a scalar and any
 * C11 compiler will do; otherwise the compiler must have GNU vector types (gcc, clang, clang-cl).
 *
 * Error: each operation rounds once. muladd() is the only place where a product and a sum may be fused: stubs are compiled with
 * -ffp-contract=off, so the same expression rounds identically wherever it is inlined. A remainder runs the same code on a vector of which
 * only the first n lanes count: load_part() sets the others to zero, store_part() does not write them, and neither touches memory past
 * the first n.
 */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if REAL_BITS == 32
typedef float REAL;
typedef uint32_t BITS;
#else
typedef double REAL;
typedef uint64_t BITS;
#endif

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline, unused))
#define COMPACT static __attribute__((cold)) /* optimised for size: not on the path of a step */
#else
#define INLINE static inline
#define COMPACT static
#endif

/* A large function that is called from several places, but compiled once. */
#if defined(__clang__)
#define SEPARATE static __attribute__((noinline))
#elif defined(__GNUC__)
#define SEPARATE static __attribute__((noinline, noclone))
#else
#define SEPARATE static
#endif

#if LANES == 1
typedef REAL vec;
typedef BITS ivec;
#else
typedef REAL vec __attribute__((vector_size(LANES * sizeof(REAL))));
typedef BITS ivec __attribute__((vector_size(LANES * sizeof(REAL))));
#endif

#if LANES > 1 && (defined(__AVX512F__) || defined(__FMA__) || defined(__SSE2__))
#include <immintrin.h>
#elif LANES > 1 && defined(__ARM_NEON) && defined(__aarch64__)
#include <arm_neon.h>
#endif

INLINE vec load(const REAL *p)
{
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void store(REAL *p, vec v)
{
    memcpy(p, &v, sizeof v);
}

/* Prefetch p: into the first-level cache to be written, or into the second-level cache to be read. p may be any address. */
INLINE void prefetch(const REAL *p, int to_write)
{
#if defined(__GNUC__)
    if (to_write) __builtin_prefetch(p, 1, 3);
    else __builtin_prefetch(p, 0, 2);
#else
    (void)p, (void)to_write;
#endif
}

INLINE vec broadcast(REAL a)
{
#if LANES == 1
    return a;
#else
    return a - (vec){0}; /* minus: plus would turn -0 into 0 */
#endif
}

INLINE vec from_bits(ivec b)
{
    vec v;
    memcpy(&v, &b, sizeof v);
    return v;
}

INLINE ivec to_bits(vec v)
{
    ivec b;
    memcpy(&b, &v, sizeof b);
    return b;
}

/* a * b + c: one rounding if the instruction set has the fused instruction, otherwise two. */
INLINE vec muladd(vec a, vec b, vec c)
{
#if LANES == 1
    return a * b + c;
#elif defined(__AVX512F__) && LANES * REAL_BITS == 512 && REAL_BITS == 32
    return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX512F__) && LANES * REAL_BITS == 512
    return (vec)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(__FMA__) && REAL_BITS == 32
    return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(__ARM_NEON) && defined(__aarch64__) && REAL_BITS == 32
    return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    return (vec)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
    return a * b + c;
#endif
}

/* A mask for select(): set where a <= b; not where either is NaN. */
INLINE ivec less_equal(vec a, vec b)
{
    return (ivec)(a <= b);
}

/* a where the mask's bits are set, else b. */
INLINE vec select(ivec mask, vec a, vec b)
{
#if LANES == 1
    return mask ? a : b;
#else
    return from_bits((mask & to_bits(a)) | (~mask & to_bits(b)));
#endif
}

/* The smaller and the larger of a and b; b where either is NaN. Only this form makes gcc emit a single instruction. */
INLINE vec lesser(vec a, vec b)
{
#if LANES == 1
    return a < b ? a : b;
#elif defined(__AVX512F__) && LANES * REAL_BITS == 512 && REAL_BITS == 32
    return (vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX512F__) && LANES * REAL_BITS == 512
    return (vec)_mm512_min_pd((__m512d)a, (__m512d)b);
#elif defined(__FMA__) && REAL_BITS == 32
    return (vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__FMA__)
    return (vec)_mm256_min_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__) && REAL_BITS == 32
    return (vec)_mm_min_ps((__m128)a, (__m128)b);
#elif defined(__SSE2__)
    return (vec)_mm_min_pd((__m128d)a, (__m128d)b);
#else
    return select((ivec)(a < b), a, b);
#endif
}

INLINE vec greater(vec a, vec b)
{
#if LANES == 1
    return b < a ? a : b;
#elif defined(__AVX512F__) && LANES * REAL_BITS == 512 && REAL_BITS == 32
    return (vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX512F__) && LANES * REAL_BITS == 512
    return (vec)_mm512_max_pd((__m512d)a, (__m512d)b);
#elif defined(__FMA__) && REAL_BITS == 32
    return (vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__FMA__)
    return (vec)_mm256_max_pd((__m256d)a, (__m256d)b);
#elif defined(__SSE2__) && REAL_BITS == 32
    return (vec)_mm_max_ps((__m128)a, (__m128)b);
#elif defined(__SSE2__)
    return (vec)_mm_max_pd((__m128d)a, (__m128d)b);
#else
    return select((ivec)(b < a), a, b);
#endif
}

INLINE ivec sign_bit(vec v)
{
    return to_bits(v) & to_bits(broadcast(-(REAL)0));
}

/* Whether load_part() and store_part() cost no more than load() and store(). */
#if defined(__AVX512F__) && LANES * REAL_BITS == 512
#define HAS_MASKS 1
#else
#define HAS_MASKS 0
#endif

/* The first n lanes (0 <= n <= LANES) from memory, the others zero. */
INLINE vec load_part(const REAL *p, ptrdiff_t n)
{
#if HAS_MASKS && REAL_BITS == 32
    return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#elif HAS_MASKS
    return (vec)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#elif LANES > 1 && defined(__FMA__) && REAL_BITS == 32
    static const int32_t first[2 * LANES] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return (vec)_mm256_maskload_ps(p, _mm256_loadu_si256((const __m256i *)(const void *)(first + LANES - n)));
#elif LANES > 1 && defined(__FMA__)
    static const int64_t first[2 * LANES] = {-1, -1, -1, -1};
    return (vec)_mm256_maskload_pd(p, _mm256_loadu_si256((const __m256i *)(const void *)(first + LANES - n)));
#else
    REAL lanes[LANES] = {0};
    for (ptrdiff_t i = 0; i < n; i++) lanes[i] = p[i];
    return load(lanes);
#endif
}

/* The first n lanes (0 <= n <= LANES) to memory. AVX2 stores pieces: many processors take a masked store apart in microcode. */
INLINE void store_part(REAL *p, vec v, ptrdiff_t n)
{
#if HAS_MASKS && REAL_BITS == 32
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#elif HAS_MASKS
    _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#elif LANES > 1 && defined(__FMA__)
    enum { BYTES = LANES * sizeof(REAL) };
    __m256 whole = (__m256)v;
    __m128 rest = _mm256_castps256_ps128(whole);
    char *to = (char *)p;
    size_t bytes = (size_t)n * sizeof(REAL);
    if (bytes & BYTES) {
        _mm256_storeu_ps((float *)(void *)to, whole);
        return;
    }
    if (bytes & (BYTES / 2)) {
        _mm_storeu_ps((float *)(void *)to, rest);
        rest = _mm256_extractf128_ps(whole, 1);
        to += BYTES / 2;
    }
    if (bytes & (BYTES / 4)) {
        _mm_storel_pi((__m64 *)(void *)to, rest);
        rest = _mm_movehl_ps(rest, rest);
        to += BYTES / 4;
    }
    if (bytes & (BYTES / 8)) _mm_store_ss((float *)(void *)to, rest);
#else
    REAL lanes[LANES];
    store(lanes, v);
    for (ptrdiff_t i = 0; i < n; i++) p[i] = lanes[i];
#endif
}

/* Transposes LANES vectors: each round interleaves those of the first half with those of the second. */
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector) && LANES > 1
#define HAS_TRANSPOSE 1
#endif
#endif

#if defined(HAS_TRANSPOSE)
#if LANES == 16
#define LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif LANES == 8
#define LOW 0, 8, 1, 9, 2, 10, 3, 11
#define HIGH 4, 12, 5, 13, 6, 14, 7, 15
#elif LANES == 4
#define LOW 0, 4, 1, 5
#define HIGH 2, 6, 3, 7
#else
#define LOW 0, 2
#define HIGH 1, 3
#endif
INLINE void transpose(vec rows[LANES])
{
    for (int round = 1; round < LANES; round *= 2) {
        vec mixed[LANES];
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], LOW);
            mixed[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], HIGH);
        }
        for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
    }
}
#undef LOW
#undef HIGH
#endif
