/* Where products leave their results. */
#ifndef OCTAVO_OUTPUT_H
#define OCTAVO_OUTPUT_H

#include "vector.h"

typedef struct {
  void *to;         /* [rows][stride] */
  const void *bias; /* [outputs] or null */
  int64_t stride;
  int bf16; /* else float32, both */
} Output;

INLINE vf load_as(const void *p, int bf16) {
  return bf16 ? load_bf16((const uint16_t *)p) : load_f32((const float *)p);
}

INLINE void store_as(void *p, vf v, int bf16) {
  if (bf16) store_bf16((uint16_t *)p, v);
  else store_f32((float *)p, v);
}

/* y [rows * parts][16] becomes 16 columns of some rows of the output; `parts` rows are added up to one. */
INLINE void write_out(const float *y, int64_t first, int rows, int parts, int64_t panel, int64_t outputs,
                      const Output *out) {
  int64_t column = panel * LANES, each = out->bf16 ? 2 : 4;
  int64_t left = outputs - column, n = left < LANES ? left : LANES;
  uint8_t spare[LANES * 4] = {0};
  if (out->bias) memcpy(spare, (const uint8_t *)out->bias + column * each, n * each);
  vf added = load_as(spare, out->bf16);
  for (int r = 0; r < rows; r++) {
    vf v = load_f32(y + r * parts * LANES);
    for (int i = 1; i < parts; i++) v += load_f32(y + (r * parts + i) * LANES);
    uint8_t *to = (uint8_t *)out->to + ((first + r) * out->stride + column) * each;
    if (n == LANES) {
      store_as(to, v + added, out->bf16);
    } else { /* the matrix ends here */
      store_as(spare, v + added, out->bf16);
      memcpy(to, spare, n * each);
    }
  }
}

#endif
