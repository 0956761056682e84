/* y = x times the transpose of a weight in int8, x rounded to int8 by a scale for each row (arXiv:2206.01861).

   Sums are whole numbers in int32, exact in any order. The processor's dot product wants one side without a sign, so
   128 is added to x, and 128 times the sum of the weights taken off again.

   A panel of 16 outputs is one stretch of memory: 16 scales, 16 corrections, then for each 4 inputs 16 times 4 weights.
   x becomes tiles of rows; in a tile the rows' 4 numbers stand beside each other for each 4 inputs. */
#include "output.h"
#include "team.h"
#include "vector.h"

#ifdef __AVX512F__
#define MOST_ROWS 12 /* of a tile */
#define MOST_SUMS 12
#else
#define MOST_ROWS 4
#define MOST_SUMS 8
#endif
#define HEADER (2 * LANES * 4)

INLINE int64_t padded(int64_t inputs) { return (inputs + 15) / 16 * 16; }

int64_t octavo_panels8_bytes(int64_t outputs, int64_t inputs) {
  return (outputs + LANES - 1) / LANES * (HEADER + LANES * padded(inputs));
}

typedef struct {
  const int8_t *values; /* [outputs][inputs] */
  const float *scales;  /* [outputs] */
  uint8_t *to;          /* [octavo_panels8_bytes] */
  int64_t outputs, inputs;
} Pack8Call;

void octavo_pack8(const Pack8Call *call, const Member *me) {
  int64_t outputs = call->outputs, inputs = call->inputs, size = HEADER + LANES * padded(inputs), first, last;
  team_part(me, (outputs + LANES - 1) / LANES, &first, &last);
  for (int64_t panel = first; panel < last; panel++) {
    uint8_t *at = call->to + panel * size;
    memset(at, 0, size);
    for (int n = 0; n < LANES && panel * LANES + n < outputs; n++) {
      const int8_t *row = call->values + (panel * LANES + n) * inputs;
      int32_t total = 0;
      for (int64_t k = 0; k < inputs; k++) {
        total += row[k];
        at[HEADER + k / 4 * 64 + n * 4 + k % 4] = row[k];
      }
      total *= 128;
      memcpy(at + 4 * n, call->scales + panel * LANES + n, 4);
      memcpy(at + 64 + 4 * n, &total, 4);
    }
  }
}

/* sum [16] += four products of a weight with four numbers of x. */
INLINE vi step8(vi sum, vi w, const uint8_t *x) {
#ifdef __AVX512VNNI__
  int32_t four;
  memcpy(&four, x, 4);
  return (vi)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), (__m512i)w);
#else
  for (int i = 0; i < 4; i++) sum += (w << (24 - 8 * i) >> 24) * (int32_t)x[i];
  return sum;
#endif
}

INLINE void multiply8(int M, const uint8_t *at, int64_t inputs, const uint8_t *x, const float *scales, float *y) {
  const int chains = M <= 2 ? 4 : M <= 4 ? 2 : 1;
  vi sum[MOST_SUMS];
  vi corrections;
  vf own = load_f32((const float *)at);
  memcpy(&corrections, at + 64, sizeof corrections);
  at += HEADER;
  UNROLL for (int i = 0; i < M * chains; i++) sum[i] = (vi){0};
  for (int64_t k = 0; k < inputs; k += 16, at += 256, x += 16 * M) {
    UNROLL for (int q = 0; q < 4; q++) {
      vi w;
      memcpy(&w, at + 64 * q, sizeof w);
      UNROLL for (int r = 0; r < M; r++) {
        int i = r * chains + q % chains;
        sum[i] = step8(sum[i], w, x + 4 * (q * M + r));
      }
    }
  }
  UNROLL for (int r = 0; r < M; r++) {
    vi all = sum[r * chains];
    if (chains > 1) all += sum[r * chains + 1];
    if (chains > 2) all += sum[r * chains + 2] + sum[r * chains + 3];
    store_f32(y + r * LANES, __builtin_convertvector(all - corrections, vf) * scales[r] * own);
  }
}

typedef void Kernel8(const uint8_t *, int64_t, const uint8_t *, const float *, float *);

#define KERNEL8(M)                                                                                                  \
  static void multiply8_##M(const uint8_t *at, int64_t inputs, const uint8_t *x, const float *scales, float *y) { \
    multiply8(M, at, inputs, x, scales, y);                                                                       \
  }
#ifdef __AVX512F__
#define EACH_SIZE(DO) DO(1) DO(2) DO(4) DO(6) DO(8) DO(12)
#else
#define EACH_SIZE(DO) DO(1) DO(2) DO(4)
#endif
EACH_SIZE(KERNEL8)
#define NAME(M) {M, multiply8_##M},

typedef struct {
  int rows;
  Kernel8 *run;
} Sized8;

static Sized8 kernel_for(int64_t rows) {
  static const Sized8 kernels[] = {EACH_SIZE(NAME)};
  const Sized8 *one = kernels;
  while (one->rows < rows && one->rows < MOST_ROWS) one++;
  return *one;
}

INLINE vf load_x(const void *x, int bf16, int64_t i) {
  return bf16 ? load_bf16((const uint16_t *)x + i) : load_f32((const float *)x + i);
}

INLINE float number(const void *x, int bf16, int64_t i) {
  if (!bf16) return ((const float *)x)[i];
  uint32_t bits = (uint32_t)((const uint16_t *)x)[i] << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

/* The scale of row x + at: its largest magnitude / 127; 1 / 127 for a row of zeros, NaN if a number is not finite. */
static float row_scale(const void *x, int bf16, int64_t at, int64_t inputs) {
  vi top = {0};
  int64_t k = 0;
  for (; k + LANES <= inputs; k += LANES) {
    vi bits = (vi)load_x(x, bf16, at + k) & 0x7fffffff; /* magnitudes, which compare as whole numbers do; NaN is most */
    vi more = bits > top;
    top = (bits & more) | (top & ~more);
  }
  int32_t most = 0;
  for (int i = 0; i < LANES; i++) most = top[i] > most ? top[i] : most;
  for (; k < inputs; k++) {
    float f = fabsf(number(x, bf16, at + k));
    int32_t bits;
    memcpy(&bits, &f, 4);
    most = bits > most ? bits : most;
  }
  if (most >= 0x7f800000) return NAN;
  float largest_of;
  memcpy(&largest_of, &most, 4);
  return (largest_of == 0 ? 1.0f : largest_of) / 127.0f;
}

typedef uint8_t bytes __attribute__((vector_size(16)));

/* A row, rounded, into lane r of a tile of M. */
static void round_row(const void *x, int bf16, int64_t at, int64_t inputs, float scale, int M, int r, uint8_t *tile) {
  for (int64_t k = 0; k < padded(inputs); k += LANES) {
    float part[LANES];
    for (int i = 0; k + LANES > inputs && i < LANES; i++) part[i] = k + i < inputs ? number(x, bf16, at + k + i) : 0;
    vf y = (k + LANES > inputs ? load_f32(part) : load_x(x, bf16, at + k)) / scale;
    y = (y + 12582912.0f) - 12582912.0f; /* 1.5 * 2^23: to the nearest whole number, ties to even */
    y = (vf)((vi)y & (y == y));
    bytes q = __builtin_convertvector(__builtin_convertvector(y, vi) + 128, bytes);
    for (int i = 0; i < 4; i++) memcpy(tile + (k + 4 * i) * M + 4 * r, (uint8_t *)&q + 4 * i, 4);
  }
}

static int64_t tile_rows(int64_t rows) {
  int64_t full = rows / MOST_ROWS * MOST_ROWS;
  return rows == full ? full : full + kernel_for(rows - full).rows;
}

int64_t octavo_product8_scratch(int64_t rows, int64_t inputs) { return tile_rows(rows) * (padded(inputs) + 4) + 64; }

/* out [rows][stride] = x [rows][inputs] times panels, + bias. */
typedef struct {
  const uint8_t *panels;
  const void *x, *bias; /* bias may be null */
  void *out;
  uint8_t *scratch; /* octavo_product8_scratch */
  int64_t rows, outputs, inputs, out_stride;
  int32_t bf16; /* x, bias and out; else float32 */
} Product8Call;

/* The rows first..first+M-1 of x as a tile, and their scales. */
static void round_tile(const Product8Call *c, int64_t first, uint8_t *tile, float *scales) {
  int M = kernel_for(c->rows - first).rows;
  for (int r = 0; r < M; r++) {
    int64_t row = first + r < c->rows ? first + r : c->rows - 1; /* the last again, for nobody */
    scales[r] = row_scale(c->x, c->bf16, row * c->inputs, c->inputs);
    round_row(c->x, c->bf16, row * c->inputs, c->inputs, scales[r], M, r, tile);
  }
}

void octavo_product8(const Product8Call *call, const Member *me) {
  const Product8Call c = *call;
  if (!c.rows) return;
  Output to = {c.out, c.bias, c.out_stride, c.bf16};
  int64_t width = padded(c.inputs), size = HEADER + LANES * width, begin, end;
  float *scales = (float *)(c.scratch + (tile_rows(c.rows) * width + 63) / 64 * 64);
  team_part(me, (c.rows + MOST_ROWS - 1) / MOST_ROWS, &begin, &end);
  for (int64_t first = begin * MOST_ROWS; first < end * MOST_ROWS; first += MOST_ROWS)
    round_tile(&c, first, c.scratch + first * width, scales + first);
  team_wait(me);
  team_part(me, (c.outputs + LANES - 1) / LANES, &begin, &end);
  for (int64_t panel = begin; panel < end; panel++)
    for (int64_t first = 0; first < c.rows; first += MOST_ROWS) {
      float y[MOST_ROWS * LANES] __attribute__((aligned(64)));
      int left = c.rows - first < MOST_ROWS ? c.rows - first : MOST_ROWS;
      kernel_for(left).run(c.panels + panel * size, width, c.scratch + first * width, scales + first, y);
      write_out(y, first, left, 1, panel, c.outputs, &to);
    }
}
