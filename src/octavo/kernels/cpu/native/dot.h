/* The one step of all products: a line of a weight times a word of x, added to the sums of 16 outputs. */
#ifndef OCTAVO_DOT_H
#define OCTAVO_DOT_H

#include "words.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define HAS_BFLOAT16_DOT 1
#else
#define HAS_BFLOAT16_DOT 0
#endif

/* The widest whole numbers of the processor: a line is PARTS of them. */
#if defined(__AVX512BW__)
typedef __m512i Part;
#define PARTS 1
#define DO(name) _mm512_##name
#define AND _mm512_and_si512
#elif defined(__AVX2__) && !defined(OCTAVO_PORTABLE)
typedef __m256i Part;
#define PARTS 2
#define DO(name) _mm256_##name
#define AND _mm256_and_si256
#elif defined(__SSE2__) && !defined(OCTAVO_PORTABLE)
typedef __m128i Part;
#define PARTS 4
#define DO(name) _mm_##name
#define AND _mm_and_si128
#endif

#ifdef PARTS
/* sum += unsigned bytes w times int8 x, four by four. */
INLINE Part dot_part(Part sum, Part w, Part x) {
#if defined(__AVX512VNNI__)
  return _mm512_dpbusd_epi32(sum, w, x);
#elif defined(__AVXVNNI__)
  return _mm256_dpbusd_avx_epi32(sum, w, x);
#endif
  /* Bytes become numbers of 16 bits, whose products are added in pairs: that overflows nowhere. */
  Part even = DO(madd_epi16)(AND(w, DO(set1_epi16)(255)), DO(srai_epi16)(DO(slli_epi16)(x, 8), 8));
  Part odd = DO(madd_epi16)(DO(srli_epi16)(w, 8), DO(srai_epi16)(x, 8));
  return DO(add_epi32)(sum, DO(add_epi32)(even, odd));
}
#endif

/* sum [16] += the unsigned bytes of a line times the four int8 at x. */
INLINE vi dot_int8(vi sum, vu w, const uint8_t *x) {
  int32_t four;
  memcpy(&four, x, 4);
#ifdef PARTS
  Part sums[PARTS], line[PARTS];
  memcpy(sums, &sum, sizeof sum), memcpy(line, &w, sizeof w);
  UNROLL for (int i = 0; i < PARTS; i++) sums[i] = dot_part(sums[i], line[i], DO(set1_epi32)(four));
  memcpy(&sum, sums, sizeof sum);
#else
  for (int i = 0; i < 4; i++) sum += (vi)(w >> (8 * i) & 255) * (int8_t)(four >> (8 * i));
#endif
  return sum;
}

/* The same of two bfloat16s, or of one float32. */
INLINE vf dot_floats(int words, vf sum, vu w, const uint8_t *x) {
#if HAS_BFLOAT16_DOT
  int32_t two;
  memcpy(&two, x, 4);
  if (words == BFLOAT16_WORDS)
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(two));
#endif
  float one;
  memcpy(&one, x, 4);
  return sum + (vf)w * one;
}

#endif
