/* The rows of x as words, in the order in which products read them.

   Rows are taken in tiles of as many as fit the registers, M. For each unit of inputs a tile has, where x is rounded to
   int8, three numbers of each row; then for each line the words of the M rows beside each other.

   x is rounded unit by unit: 8 bits with a scale for 32 inputs. What is lost can be rounded again, into another row
   with a smaller scale: rows are then the caller's `parts` times, and their products are added up. */
#ifndef OCTAVO_WORDS_H
#define OCTAVO_WORDS_H

#include "panels.h"

enum { INT8_WORDS, BFLOAT16_WORDS, FLOAT32_WORDS };

#ifdef __AVX512F__
#define MOST_ROWS 12 /* of a tile */
#else /* half as many registers of half the size */
#define MOST_ROWS 6
#endif

/* Bytes of a row's numbers in each unit: its scale, where its sum starts (what taking the centre from each code amounts
   to), and its own sum, which floors are multiplied with. */
INLINE int unit_numbers(int words) { return words == INT8_WORDS ? 12 : 0; }

INLINE int word_inputs(int words) { return words == INT8_WORDS ? 4 : words == BFLOAT16_WORDS ? 2 : 1; }

/* Bytes of a row of words. */
INLINE int64_t words_bytes(const Form *f, int words) {
  return padded_inputs(f) / word_inputs(words) * 4 + num_units(f) * unit_numbers(words);
}

/* Where row r's word of a line of a unit is. */
INLINE uint8_t *word_at(uint8_t *unit, int words, int M, int r, int64_t line) {
  return unit + unit_numbers(words) * M + (line * M + r) * 4;
}

INLINE float float_at(const uint8_t *p) { float x; memcpy(&x, p, 4); return x; }

typedef uint8_t bytes16 __attribute__((vector_size(16)));

INLINE vi larger_whole(vi a, vi b) {
#ifdef __AVX512F__
  return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b);
#endif
  vi first = a > b;
  return (a & first) | (b & ~first);
}

/* The largest of 16, and the sum, in each lane: what is done with them stays in vectors. */
INLINE vi largest_of(vi x) {
  x = larger_whole(x, SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  x = larger_whole(x, SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  x = larger_whole(x, SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  return larger_whole(x, SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
}

INLINE vi sum_of(vi x) {
  x += SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
  x += SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
  x += SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  return x + SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
}

/* The scale of n numbers, in each lane: their largest magnitude / 127; NaN if one is not finite. What is next to
   nothing counts as 0, whose scale does not matter. */
INLINE vf scale_of(const float *x, int64_t n) {
  vi top = {0};
  for (int64_t k = 0; k < n; k += LANES)
    top = larger_whole((vi)load_f32(x + k) & 0x7fffffff, top); /* magnitudes compare as whole numbers do; NaN is most */
  top = largest_of(top);
  vi tiny = (vf)top < 1e-36f, wrong = top >= 0x7f800000;
  top = (top & ~tiny) | ((vi)splat(1) & tiny) | wrong;
  return (vf)top / 127.0f;
}

/* n numbers (a unit) become words of row r. keep: they are left with what was lost. */
INLINE void round_unit(float *x, int64_t n, vf scale, int centre, int keep, int M, int r, uint8_t *unit) {
  vi total = {0}, finite = scale == scale;
  for (int64_t k = 0; k < n; k += LANES) {
    vf value = load_f32(x + k), y = value / scale;
    y = (y + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: to the nearest whole number, ties to even */
    y = (vf)((vi)y & finite);
    if (keep) store_f32(x + k, value - y * scale);
    vi q = __builtin_convertvector(y, vi);
    bytes16 narrow = __builtin_convertvector(q, bytes16);
    total += q;
    UNROLL for (int i = 0; i < 4; i++) memcpy(word_at(unit, INT8_WORDS, M, r, k / 4 + i), (char *)&narrow + 4 * i, 4);
  }
  total = sum_of(total);
  vi start = -centre * total;
  vf sum = __builtin_convertvector(total, vf) * scale;
  memcpy(unit + 4 * r, &scale, 4);
  memcpy(unit + 4 * (M + r), &start, 4);
  memcpy(unit + 4 * (2 * M + r), &sum, 4);
}

/* Scales first: one waits long for the largest number, and meanwhile the processor can begin with others. */
INLINE void round_units(int64_t n, int parts, float *x, int64_t count, int centre, int M, int r, uint8_t *tile) {
  int64_t size = M * (unit_numbers(INT8_WORDS) + n);
  for (int64_t u = 0; u < count; u++) {
    vf scale = scale_of(x + u * n, n);
    memcpy(tile + u * size + 4 * r, &scale, 4);
  }
  for (int64_t u = 0; u < count; u++) {
    vf scale = splat(float_at(tile + u * size + 4 * r));
    for (int part = 0; part < parts; part++, scale /= 254)
      round_unit(x + u * n, n, scale, centre, part + 1 < parts, M, r + part, tile + u * size);
  }
}

/* A row x [padded inputs], which is overwritten, becomes rows r .. r + parts - 1 of a tile of M. */
INLINE void round_row(const Form *f, float *x, int parts, int M, int r, uint8_t *tile) {
  int64_t n = unit_inputs(f), count = num_units(f);
  if (n == 32 && parts == 1) round_units(32, 1, x, count, f->centre, M, r, tile); /* compiled for these numbers */
  else round_units(n, parts, x, count, f->centre, M, r, tile);
}

INLINE void float_row(const Form *f, const float *x, int words, int M, int r, uint8_t *tile) {
  int64_t inputs = padded_inputs(f);
  if (words == FLOAT32_WORDS) {
    for (int64_t k = 0; k < inputs; k++) memcpy(word_at(tile, words, M, r, k), x + k, 4);
    return;
  }
  for (int64_t k = 0; k < inputs; k += LANES) {
    uint16_t narrow[LANES];
    store_bf16(narrow, load_f32(x + k));
    UNROLL for (int i = 0; i < LANES / 2; i++) memcpy(word_at(tile, words, M, r, k / 2 + i), narrow + 2 * i, 4);
  }
}

#endif
