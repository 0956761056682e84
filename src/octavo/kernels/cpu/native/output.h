/* Where products leave their results. */
#ifndef OCTAVO_OUTPUT_H
#define OCTAVO_OUTPUT_H

#include "vector.h"

typedef struct {
  void *to;         /* [rows][stride] */
  const void *bias; /* [outputs] or null */
  int64_t stride;
  int bias_bf16, bf16; /* else float32 */
  int parts; /* rows of y that are added up to one */
} Output;

INLINE vf load_as(const void *p, int bf16) {
  return bf16 ? load_bf16((const uint16_t *)p) : load_f32((const float *)p);
}

INLINE void store_as(void *p, vf v, int bf16) {
  if (bf16) store_bf16((uint16_t *)p, v);
  else store_f32((float *)p, v);
}

/* 16 numbers of the bias, from a column on, 0 behind its end. */
INLINE vf bias_at(const Output *out, int64_t column, int64_t outputs) {
  int64_t each = out->bias_bf16 ? 2 : 4, left = outputs - column;
  uint8_t spare[LANES * 4] = {0};
  if (out->bias) memcpy(spare, (const uint8_t *)out->bias + column * each, (left < LANES ? left : LANES) * each);
  return load_as(spare, out->bias_bf16);
}

INLINE vf added_up(const float *y, int parts) {
  vf all = load_f32(y);
  for (int i = 1; i < parts; i++) all += load_f32(y + i * LANES);
  return all;
}

/* v / (1 + e^-v), by e^-|v|, which cannot overflow. */
INLINE vf silu(vf v) {
  vf e = exp_vf(-(vf)((vi)v & 0x7fffffff));
  vi negative = v < 0;
  vf top = (vf)(((vi)e & negative) | ((vi)splat(1.0f) & ~negative));
  return v * top / (e + 1.0f);
}

/* y [rows * parts][16] becomes 16 columns of some rows of the output. up: null, or as y, of the outputs' second half:
   then silu(y) * up. */
INLINE void write_out(const float *y, const float *up, int64_t first, int64_t rows, int64_t column, int64_t outputs,
                      const Output *out) {
  int64_t each = out->bf16 ? 2 : 4, left = outputs - column, n = left < LANES ? left : LANES;
  vf bias = bias_at(out, column, outputs), up_bias = up ? bias_at(out, column + outputs / 2, outputs) : bias;
  for (int64_t r = 0; r < rows; r++) {
    vf v = added_up(y + r * out->parts * LANES, out->parts) + bias;
    if (up) v = silu(v) * (added_up(up + r * out->parts * LANES, out->parts) + up_bias);
    uint8_t *to = (uint8_t *)out->to + ((first + r) * out->stride + column) * each;
    if (n == LANES) {
      store_as(to, v, out->bf16);
    } else { /* the matrix ends here */
      uint8_t spare[LANES * 4];
      store_as(spare, v, out->bf16);
      memcpy(to, spare, n * each);
    }
  }
}

#endif
