/* The one kernel of all products: a tile of rows of x times a panel. It is compiled for each kind of codes and for some
   numbers of rows, so that sums stay in registers and loops over lines have no branches. */
#ifndef OCTAVO_MULTIPLY_H
#define OCTAVO_MULTIPLY_H

#include "dot.h"
#include "words.h"

#define MOST_SUMS (MOST_ROWS < 8 ? 8 : MOST_ROWS)
#define AHEAD 2048 /* bytes from what is multiplied to what is requested */

INLINE vi start_at(const uint8_t *p) { int32_t x; memcpy(&x, p, 4); return x - (vi){0}; }

/* total [M] += a unit: so many tiles of codes times words, the sums scaled by the weight's scale and the row's. */
INLINE void multiply_unit(int kind, int words, int M, int tiles, int floors, const uint8_t *codes, const uint8_t *x,
                          vf scale, vf floor, vf *total) {
  const int lines = tile_inputs(kind) / word_inputs(words), ints = words == INT8_WORDS;
  const int chains = ints ? 1 : M <= 2 ? 4 : M <= 4 ? 2 : 1; /* to hide an addition's latency */
  const int line_bytes = tile_bytes(kind) / lines;
  const uint8_t *scales = x, *starts = x + 4 * M, *sums = x + 8 * M;
  vi sum[MOST_SUMS];
  UNROLL for (int i = 0; i < M * chains; i++) sum[i] = ints ? start_at(starts + 4 * i) : (vi){0};
  x += unit_numbers(words) * M;
  for (int t = 0; t < tiles; t++, codes += tile_bytes(kind), x += lines * M * 4) {
    UNROLL for (int j = 0; j < lines; j++) {
      /* With many rows the processor looks no line ahead by itself; with few it does, and has no time for requests. */
      if (M > 4 && j * line_bytes % 64 == 0) __builtin_prefetch(codes + j * line_bytes + AHEAD);
      vu w = decode(kind, words == FLOAT32_WORDS, codes, j);
      UNROLL for (int r = 0; r < M; r++) {
        int i = r * chains + j % chains;
        const uint8_t *word = x + (j * M + r) * 4;
        sum[i] = ints ? dot_int8(sum[i], w, word) : (vi)dot_floats(words, (vf)sum[i], w, word);
      }
    }
  }
  UNROLL for (int r = 0; r < M; r++) {
    vf all = ints ? __builtin_convertvector(sum[r], vf) * float_at(scales + 4 * r) : (vf)sum[r * chains];
    if (chains > 1) all += (vf)sum[r * chains + 1];
    if (chains > 2) all += (vf)sum[r * chains + 2] + (vf)sum[r * chains + 3];
    total[r] += all * scale;
    if (ints && floors) total[r] += floor * float_at(sums + 4 * r);
  }
}

/* y [M][16] = a tile of M rows times the panel. whole: a group is one unit; else each tile is. */
INLINE void multiply(int kind, int words, int whole, int M, const Form *form, const uint8_t *panel, const uint8_t *x,
                     float *y) {
  const Form f = *form;
  const int tiles = whole ? f.unit : 1;
  const int64_t unit_codes = tiles * tile_bytes(kind);
  const int64_t unit_words = M * (unit_numbers(words) + tiles * tile_inputs(kind) / word_inputs(words) * 4);
  vf total[MOST_ROWS];
  UNROLL for (int r = 0; r < M; r++) total[r] = (vf){0};
  for (int h = 0; h < f.headers; h++) {
    vf header = load_header(panel, f.half), header_floor = {0};
    if (f.floors) header_floor = load_header(panel + header_bytes(&f) / 2, f.half);
    panel += header_bytes(&f);
    for (int g = 0; g < f.groups; g++) {
      vf scale = header, floor = header_floor;
      if (f.sub) {
        scale *= load_sub(panel);
        if (f.floors) floor *= load_sub(panel + LANES);
        panel += sub_bytes(&f);
      }
      for (int u = 0; u < f.units; u++, panel += unit_codes, x += unit_words)
        multiply_unit(kind, words, M, tiles, f.floors, panel, x, scale, floor, total);
    }
  }
  UNROLL for (int r = 0; r < M; r++) store_f32(y + r * LANES, total[r]);
}

typedef void Kernel(const Form *, const uint8_t *panel, const uint8_t *x, float *y);

typedef struct {
  int rows;
  Kernel *run;
} Sized;

#ifdef __AVX512F__
#define EACH_SIZE(MAKE, name, kind, words, whole) \
  MAKE(name, kind, words, whole, 1) MAKE(name, kind, words, whole, 2) MAKE(name, kind, words, whole, 4) \
  MAKE(name, kind, words, whole, 6) MAKE(name, kind, words, whole, 8) MAKE(name, kind, words, whole, 12)
#elif defined(__AVX2__)
#define EACH_SIZE(MAKE, name, kind, words, whole) \
  MAKE(name, kind, words, whole, 1) MAKE(name, kind, words, whole, 2) MAKE(name, kind, words, whole, 3) \
  MAKE(name, kind, words, whole, 6)
#else /* a compiler takes long for these */
#define EACH_SIZE(MAKE, name, kind, words, whole) MAKE(name, kind, words, whole, 1) MAKE(name, kind, words, whole, 6)
#endif

#define ONE_SIZE(name, kind, words, whole, M)                                                \
  static void name##_##M(const Form *f, const uint8_t *panel, const uint8_t *x, float *y) { \
    multiply(kind, words, whole, M, f, panel, x, y);                                         \
  }
#define NAMED(name, kind, words, whole, M) {M, name##_##M},
#define KERNELS(name, kind, words, whole)           \
  EACH_SIZE(ONE_SIZE, name, kind, words, whole)     \
  const Sized name[] = {EACH_SIZE(NAMED, name, kind, words, whole)};

/* Of how many rows the tile is that begins where so many are left: the last may have more, which are zeros. */
INLINE int tile_size(int64_t rows) {
#ifdef __AVX512F__
  static const int sizes[] = {1, 2, 4, 6, 8, 12};
#elif defined(__AVX2__)
  static const int sizes[] = {1, 2, 3, 6};
#else
  static const int sizes[] = {1, 6};
#endif
  int i = 0;
  while (sizes[i] < rows && sizes[i] < MOST_ROWS) i++;
  return sizes[i];
}

/* Rows of all tiles. */
INLINE int64_t tiled_rows(int64_t rows) {
  int64_t full = rows / MOST_ROWS * MOST_ROWS;
  return rows == full ? full : full + tile_size(rows - full);
}

/* In multiply_integers.c, multiply_floats.c. */
extern const Sized octavo_codes4[], octavo_codes5[], octavo_codes6[], octavo_codes8[], octavo_codes8_whole[];
extern const Sized octavo_bfloat16[], octavo_bfloat16_wide[], octavo_float8[], octavo_float32[];

#endif
