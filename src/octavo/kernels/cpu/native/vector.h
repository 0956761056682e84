/* Sixteen floats at a time, in the compilers' portable vector types: one AVX-512 register, two of AVX2, four of NEON.

   A file that includes this names its element type first: with BF16 defined, elements are bfloat16 (the upper half of
   a float32) and functions end in _bf16; otherwise they are float and end in _f32. */
#ifndef OCTAVO_VECTOR_H
#define OCTAVO_VECTOR_H

#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __SSE2__
#include <immintrin.h> /* where compilers do not find the one instruction by themselves */
#endif

#define LANES 16
#define UNROLL _Pragma("GCC unroll 16")
#define INLINE static inline __attribute__((always_inline))
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

typedef float vf __attribute__((vector_size(64)));
typedef uint32_t vu __attribute__((vector_size(64)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint16_t vh __attribute__((vector_size(32)));
typedef float vf8 __attribute__((vector_size(32)));
typedef float vf4 __attribute__((vector_size(16)));

INLINE vf splat(float x) { return x - (vf){0}; }

INLINE vf load_f32(const float *p) { vf x; memcpy(&x, p, sizeof x); return x; }
INLINE void store_f32(float *p, vf x) { memcpy(p, &x, sizeof x); }

INLINE vf load_bf16(const uint16_t *p) {
#ifdef __AVX512F__
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
#endif
  vh h;
  memcpy(&h, p, sizeof h);
  return (vf)(__builtin_convertvector(h, vu) << 16);
}

/* To the nearest bfloat16, ties to even; NaN stays NaN. */
INLINE void store_bf16(uint16_t *p, vf x) {
#ifdef __AVX512BF16__
  __m256bh rounded_by_cpu = _mm512_cvtneps_pbh((__m512)x);
  memcpy(p, &rounded_by_cpu, sizeof rounded_by_cpu);
  return;
#endif
  vu bits = (vu)x;
  vu rounded = bits + 0x7fff + ((bits >> 16) & 1);
  vu nan = (vu)(x != x);
  vh h = __builtin_convertvector(((rounded & ~nan) | ((bits | 0x400000) & nan)) >> 16, vh);
  memcpy(p, &h, sizeof h);
}

INLINE float sum(vf x) {
  vf8 a, b;
  memcpy(&a, &x, sizeof a);
  memcpy(&b, (char *)&x + sizeof a, sizeof b);
  a += b;
  vf4 c, d;
  memcpy(&c, &a, sizeof c);
  memcpy(&d, (char *)&a + sizeof c, sizeof d);
  c += d;
  return (c[0] + c[2]) + (c[1] + c[3]);
}

typedef int32_t vi8 __attribute__((vector_size(32)));

INLINE vf choose(vi mask, vf yes, vf no) { return (vf)(((vi)yes & mask) | ((vi)no & ~mask)); }

/* The larger of each pair; where one is NaN, either. */
INLINE vf larger(vf a, vf b) {
#ifdef __AVX512F__
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#endif
  return choose(a > b, a, b);
}

/* The largest of all; if one is NaN, any of them or NaN. */
INLINE float largest(vf x) {
#ifdef __AVX512F__
  return _mm512_reduce_max_ps((__m512)x);
#endif
  float part[8], best;
  for (int i = 0; i < 8; i++) part[i] = x[i] > x[i + 8] ? x[i] : x[i + 8];
  best = part[0];
  for (int i = 1; i < 8; i++) best = part[i] > best ? part[i] : best;
  return best;
}

#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (vi){__VA_ARGS__})
#endif

/* The sums of sixteen vectors in one, x[i]'s in lane i. Each round halves the vectors: what two of them hold in
   segments is folded into one of twice as many segments of half the length. */
INLINE vf sums16(vf *x) {
  for (int i = 0; i < 8; i++)
    x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
           SHUFFLE(x[2 * i], x[2 * i + 1], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; i++)
    x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
           SHUFFLE(x[2 * i], x[2 * i + 1], 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  for (int i = 0; i < 2; i++)
    x[i] = SHUFFLE(x[2 * i], x[2 * i + 1], 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29) +
           SHUFFLE(x[2 * i], x[2 * i + 1], 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
  return SHUFFLE(x[0], x[1], 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30) +
         SHUFFLE(x[0], x[1], 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

/* Lane j of x[i] becomes lane i of x[j]. */
INLINE void transpose16(vf *x) {
#ifdef __AVX512F__
  __m512i *a = (__m512i *)x, b[16];
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; j++) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + j + 2]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + j + 2]);
    }
  for (int i = 0; i < 16; i += 8)
    for (int j = 0; j < 4; j++) {
      b[i + j] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0x88);
      b[i + j + 4] = _mm512_shuffle_i32x4(a[i + j], a[i + j + 4], 0xdd);
    }
  for (int j = 0; j < 8; j++) {
    a[j] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0x88);
    a[j + 8] = _mm512_shuffle_i32x4(b[j], b[j + 8], 0xdd);
  }
  return;
#endif
  float rows[16][16];
  memcpy(rows, x, sizeof rows);
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) x[i][j] = rows[j][i];
}

/* e^x for x <= 88 to about 2 units in the last place; 0 below -87 (so also for -inf), NaN for NaN.
   x = n ln 2 + r with |r| <= ln 2 / 2; e^r is its Taylor polynomial of degree 6, 2^n goes into the exponent bits. */
INLINE vf exp_vf(vf x) {
  vi small = x < -87.0f;
  vf y = choose(small, splat(-87.0f), x);
  vf shifted = y * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's low bits are the nearest integer */
  vf n = shifted - 12582912.0f;
  vf r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  vf p = splat(1.0f / 720);
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  vf power = (vf)((((vi)shifted - 0x4b400000) + 127) << 23);
  return (vf)((vi)(p * power) & ~small);
}

/* tanh x to about 1e-7; NaN for NaN. */
INLINE vf tanh_vf(vf x) {
  vf e = exp_vf((vf)((vi)x | (int32_t)0x80000000) * 2.0f); /* e^-2|x| cannot overflow */
  vf size = (1.0f - e) / (1.0f + e);
  return (vf)((vi)size | ((vi)x & (int32_t)0x80000000));
}

/* Bit i: whether lane i of a comparison is true. */
INLINE uint32_t lanes_of(vi mask) {
#ifdef __AVX512F__
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#endif
  uint32_t bits = 0;
  for (int i = 0; i < LANES; i++) bits |= (uint32_t)(mask[i] & 1) << i;
  return bits;
}

static const vi LANE = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

#endif

#undef T
#undef FN
#undef LOAD
#undef STORE
#ifdef BF16
#define T uint16_t
#define FN(name) PASTE(name, _bf16)
#define LOAD load_bf16
#define STORE store_bf16
#else
#define T float
#define FN(name) PASTE(name, _f32)
#define LOAD load_f32
#define STORE store_f32
#endif
