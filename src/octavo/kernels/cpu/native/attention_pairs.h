/* The products of decode attention where the processor multiplies bfloat16. Keys and values are read as they lie. */
#ifndef OCTAVO_ATTENTION_PAIRS_H
#define OCTAVO_ATTENTION_PAIRS_H

/* Eight elements each of the keys 0, 4, 8 and 12 of a tile: a part of each of four sums in one register, so that there
   is little to add up across lanes in the end. */
INLINE Pairs four_keys(const uint16_t *key, int D) {
  Pairs x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)key));
  x = _mm512_mask_broadcast_i32x4(x, 0x00f0, _mm_loadu_si128((const __m128i *)(key + 4 * D)));
  x = _mm512_mask_broadcast_i32x4(x, 0x0f00, _mm_loadu_si128((const __m128i *)(key + 8 * D)));
  return _mm512_mask_broadcast_i32x4(x, 0xf000, _mm_loadu_si128((const __m128i *)(key + 12 * D)));
}

/* The sums of a[0..3]'s four quarters each: lane 4 q + i is that of a[i]'s quarter q. */
INLINE vf sum_quarters(const vf *a) {
  __m512 x0 = (__m512)a[0], x1 = (__m512)a[1], x2 = (__m512)a[2], x3 = (__m512)a[3];
  __m512d p = (__m512d)(_mm512_unpacklo_ps(x0, x1) + _mm512_unpackhi_ps(x0, x1));
  __m512d q = (__m512d)(_mm512_unpacklo_ps(x2, x3) + _mm512_unpackhi_ps(x2, x3));
  return (vf)_mm512_unpacklo_pd(p, q) + (vf)_mm512_unpackhi_pd(p, q);
}

/* scores [heads][CHUNK], the first LANES of each, = q [heads][D] times keys [LANES][D]. */
INLINE void score_pairs(const uint16_t *q, const uint16_t *keys, int D, int heads, const void *ahead, float *scores) {
  vf sums[HEADS][4];
  for (int s = 0; s < heads; s++)
    for (int i = 0; i < 4; i++) sums[s][i] = (vf){0};
  for (int d = 0; d < D; d += 8) {
    Pairs k[4];
    for (int i = 0; i < 4; i++) k[i] = four_keys(keys + i * D + d, D);
    ask_for(ahead, 2ll * LANES * D, d / 8, D / 8);
    for (int s = 0; s < heads; s++) {
      Pairs own = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)(q + s * D + d)));
      for (int i = 0; i < 4; i++) sums[s][i] = add_products(sums[s][i], k[i], own);
    }
  }
  for (int s = 0; s < heads; s++) store_f32(scores + s * CHUNK, sum_quarters(sums[s]));
}

#define WEIGHTS (CHUNK + 2) /* a row of weights: one more is read where an odd number of keys begins at an odd one */

/* acc [heads][ROW(D)] = acc * shrink + weights [heads][WEIGHTS] times the values of the keys from..to-1. */
INLINE void weigh_pairs(const uint16_t *weights, const uint16_t *const *tiles, int from, int to, int D, int heads,
                        const float *shrink, const void *const *ahead, float *acc) {
  for (int d = 0; d < D; d += COLUMNS) {
    vf sums[HEADS][4];
    for (int s = 0; s < heads; s++)
      for (int i = 0; i < 4; i++) sums[s][i] = load_f32(acc + s * ROW(D) + d + i * LANES) * shrink[s];
    for (int t = from; t < to; t += 2) {
      int u = t + 1 < to ? t + 1 : t; /* the last may stand alone: its partner's weight is 0 */
      const uint16_t *first = tiles[t / LANES] + t % LANES * D + d, *second = tiles[u / LANES] + u % LANES * D + d;
      if (d == 0) ask_for(ahead[t / LANES], 2ll * LANES * D, t % LANES / 2, LANES / 2);
      for (int i = 0; i < 2; i++) {
        Pairs low, high;
        int left = D - d - 32 * i;
        pair_columns(load_some(first + 32 * i, left), load_some(second + 32 * i, left), &low, &high);
        for (int s = 0; s < heads; s++) {
          Pairs weight = same_pair(weights + s * WEIGHTS + t);
          sums[s][2 * i] = add_products(sums[s][2 * i], low, weight);
          sums[s][2 * i + 1] = add_products(sums[s][2 * i + 1], high, weight);
        }
      }
    }
    for (int s = 0; s < heads; s++)
      for (int i = 0; i < 4; i++) store_f32(acc + s * ROW(D) + d + i * LANES, sums[s][i]);
  }
}

#endif
