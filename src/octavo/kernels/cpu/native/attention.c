/* Decode attention for bfloat16 and float32; attention.inc has the idea. */
#include <math.h>
#include <stdint.h>

#include "attention.h"
#include "team.h"

#define MAX_HEAD_DIM 256
#define MAX_SHARE 32
#define MAX_PARTS 64

typedef struct {
  const void *keys, *values; /* [num_blocks, num_kv_heads, block_size, head_dim] */
  const void *queries;       /* of each token [num_kv_heads * share, head_dim] */
  const AttentionWork *work;
  float *partials; /* [jobs][share * (head_dim + 2)]: scratch */
  void *out;       /* [tokens, num_kv_heads * share * head_dim] */
  int64_t query_stride; /* elements from one token's queries to the next one's */
  int32_t num_kv_heads, share, head_dim, block_size;
  float scale, soft_cap; /* soft_cap 0: none */
} AttentionCall;

#include "vector.h"

/* acc [share][D] = acc * shrink [share] + weights [share][16] times values [16][D]. */
INLINE void accumulate(const float *weights, const float *values, int share, int D, const float *shrink, float *acc) {
  for (int s = 0; s < share; s++) {
    for (int d = 0; d < D; d += 4 * LANES) {
      int width = D - d < 4 * LANES ? (D - d) / LANES : 4;
      vf a[4];
      for (int i = 0; i < width; i++) a[i] = load_f32(acc + s * D + d + i * LANES) * shrink[s];
      for (int t = 0; t < LANES; t++)
        for (int i = 0; i < width; i++) a[i] += load_f32(values + t * D + d + i * LANES) * weights[s * LANES + t];
      for (int i = 0; i < width; i++) store_f32(acc + s * D + d + i * LANES, a[i]);
    }
  }
}

/* Softmax of one tile: its n scores become weights, the others 0; the rows' maxima and sums move on. */
INLINE void tile_softmax(float *scores, int n, int share, float scale, float cap, float *top, float *total,
                         float *shrink) {
  for (int s = 0; s < share; s++) {
    for (int t = n; t < LANES; t++) scores[s * LANES + t] = -INFINITY;
    vf x = load_f32(scores + s * LANES) * scale;
    if (cap != 0)
      for (int t = 0; t < n; t++) x[t] = cap * tanhf(x[t] / cap);
    float best = largest(x);
    if (top[s] > best) best = top[s];
    vf weights = exp_vf(x - best);
    shrink[s] = best == top[s] ? 1.0f : expf(top[s] - best);
    total[s] = total[s] * shrink[s] + sum(weights);
    top[s] = best;
    store_f32(scores + s * LANES, weights);
  }
}

#include "attention.inc"
#define BF16
#include "attention.inc"
