/* Products of bfloat16 as the processor takes them: two neighbours times two, summed in float32, sixteen times at once. */
#ifndef OCTAVO_BF16_PAIRS_H
#define OCTAVO_BF16_PAIRS_H

#ifdef __AVX512BF16__

#include "vector.h"

typedef __m512i Pairs;

INLINE Pairs load_pairs(const uint16_t *p) { return _mm512_loadu_si512(p); }

/* The first n of 32 elements, 0 for the others, which are not read. */
INLINE Pairs load_some(const uint16_t *p, int n) {
  return n >= 32 ? load_pairs(p) : _mm512_maskz_loadu_epi16(n <= 0 ? 0 : (1u << n) - 1, p);
}

/* One pair in all places. */
INLINE Pairs same_pair(const uint16_t *p) {
  int32_t pair;
  memcpy(&pair, p, sizeof pair);
  return _mm512_set1_epi32(pair);
}

INLINE vf add_products(vf sums, Pairs a, Pairs b) {
  return (vf)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}

/* Two rows of 32 elements become pairs of a column each: in `low` those of the columns 0-3, 8-11, 16-19, 24-27, in
   `high` the others. It costs one instruction each; `natural` puts what was made of them in order. */
INLINE void pair_columns(Pairs first, Pairs second, Pairs *low, Pairs *high) {
  *low = _mm512_unpacklo_epi16(first, second);
  *high = _mm512_unpackhi_epi16(first, second);
}

INLINE void natural(vf *low, vf *high) {
  vf a = *low, b = *high;
  *low = SHUFFLE(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  *high = SHUFFLE(a, b, 8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
}

#endif
#endif
