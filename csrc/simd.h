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

#if REAL_BITS == 32
/* The larger of a and b, integers without a sign. */
INLINE ivec larger_of(ivec a, ivec b)
{
#if LANES == 1
    return a < b ? b : a;
#else
    const ivec mask = (ivec)(a < b);
    return (mask & b) | (~mask & a);
#endif
}

/* The signed integers in each lane. */
INLINE vec from_integers(ivec b)
{
#if LANES == 1
    return (vec)(int32_t)b;
#else
    typedef int32_t integers __attribute__((vector_size(LANES * sizeof(REAL))));
    return __builtin_convertvector((integers)b, vec);
#endif
}

/* The signed integers in byte i of each lane, times 2^24: exact. AVX moves a byte whose number is constant to the top, and zeros to the
 * others, in one instruction. */
INLINE vec from_byte(ivec b, int i, const int is_constant)
{
    ivec upper = b << (24 - 8 * i) & 0xff000000;
    if (is_constant && i == 3) upper = b & 0xff000000;
#if LANES > 1 && defined(__FMA__)
    const __m128i move = _mm_set_epi32((12 + i) << 24 | 0x808080, (8 + i) << 24 | 0x808080, (4 + i) << 24 | 0x808080, i << 24 | 0x808080);
#if defined(__AVX512F__) && LANES == 16
    if (is_constant && i < 3) upper = (ivec)_mm512_shuffle_epi8((__m512i)b, _mm512_broadcast_i32x4(move));
#else
    if (is_constant && i < 3) upper = (ivec)_mm256_shuffle_epi8((__m256i)b, _mm256_broadcastsi128_si256(move));
#endif
#endif
    return from_integers(upper);
}
#endif

#if REAL_BITS == 32
/* Bytes 0 and 2 (half 0) or 1 and 3 of each lane, as integers of 16 bits. */
INLINE ivec pairs_of_bytes(ivec w, const int half)
{
#if LANES == 1
    return w >> 8 * half & 0xff00ff;
#else
    typedef uint16_t words __attribute__((vector_size(LANES * sizeof(REAL))));
    return half ? (ivec)((words)w >> 8) : w & 0xff00ff;
#endif
}

/* sum + w[0] * pair[0] + w[1] * pair[1], where each lane of w holds two integers of 16 bits without a sign, and pair two with a sign, the
 * first in the lowest bits. Exact, modulo 2^32. */
INLINE ivec add_pairs(ivec sum, ivec w, BITS pair)
{
#if defined(__GNUC__) && (LANES == 4 || LANES == 8) && defined(__SSE2__)
    __asm__("" : "+x"(sum)); /* gcc would add the products of several pairs to each other first, for which there are too few registers */
#endif
#if LANES == 16 && defined(__AVX512BW__)
    return (ivec)_mm512_add_epi32((__m512i)sum, _mm512_madd_epi16((__m512i)w, _mm512_set1_epi32((int)pair)));
#elif LANES == 8 && defined(__AVX2__)
    return (ivec)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16((__m256i)w, _mm256_set1_epi32((int)pair)));
#elif LANES == 4 && defined(__SSE2__)
    return (ivec)_mm_add_epi32((__m128i)sum, _mm_madd_epi16((__m128i)w, _mm_set1_epi32((int)pair)));
#else
    return sum + (w & 0xffff) * (((pair & 0xffff) ^ 0x8000) - 0x8000) + (w >> 16) * ((pair >> 16 ^ 0x8000) - 0x8000);
#endif
}

/* Whether some processors with this instruction set have an instruction for add_quads(). Compiled with RNNFAST_NO_QUADS, it is not used, so
 * that the other instructions can be tested. */
#if defined(RNNFAST_NO_QUADS)
#define HAS_QUADS 0
#elif LANES == 16 && defined(__AVX512BW__) || LANES == 8 && defined(__AVX2__) && (__GNUC__ >= 12 || __clang_major__ >= 12)
#define HAS_QUADS 1

/* As add_pairs(), where w and quad hold four integers of 8 bits. Only on processors where rnnfast_has_quads(). */
INLINE ivec add_quads(ivec sum, ivec w, const BITS *quad)
{
#if LANES == 16
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*quad));
#else
    ivec all = *quad - (ivec){0};
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(w), "x"(all));
#endif
    return sum;
}
#else
#define HAS_QUADS 0
#endif
#endif

/* start + scale * sum, where the terms of the sum have integers of from_byte(). A scale may be too small to be divided by 2^24 in place
 * of the sum. */
INLINE vec scaled(vec sum, vec scale, vec start)
{
    return muladd(scale, sum * broadcast((REAL)1 / (1 << 24)), start);
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

/* The first lanes (1 <= lanes <= LANES) from or to memory. Where lanes is the constant LANES, no code for a part is compiled. */
#if LANES == 1
INLINE vec get(const REAL *p, ptrdiff_t lanes)
{
    (void)lanes;
    return load(p);
}

INLINE void put(REAL *p, vec v, ptrdiff_t lanes)
{
    (void)lanes;
    store(p, v);
}
#else
INLINE vec get(const REAL *p, ptrdiff_t lanes)
{
    return lanes == LANES ? load(p) : load_part(p, lanes);
}

INLINE void put(REAL *p, vec v, ptrdiff_t lanes)
{
    if (lanes == LANES) store(p, v);
    else store_part(p, v, lanes);
}
#endif

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
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
        vec mixed[LANES];
#pragma GCC unroll 8
        for (int i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], LOW);
            mixed[2 * i + 1] = __builtin_shufflevector(rows[i], rows[i + LANES / 2], HIGH);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) rows[i] = mixed[i];
    }
}
#undef LOW
#undef HIGH
#endif
