/* Softmax computed as the keys pass by (Milakov and Gimelshein, arXiv:1805.02867): a larger maximum than all before
   rescales what has been summed. */
#ifndef OCTAVO_ATTENTION_SOFTMAX_H
#define OCTAVO_ATTENTION_SOFTMAX_H

#include <math.h>
#include <stdint.h>

#define CHUNK 64 /* keys at a time: enough that maxima, sums and rescaling cost little beside the products */

#include "vector.h"

typedef struct {
  float scale, soft_cap; /* soft_cap 0: none */
} Scaling;

/* One query's largest score so far and the sum of its weights relative to that. */
typedef struct {
  float top, total;
} Running;

/* The scores of LANES keys as softmax wants them; those of keys that are not among from..to-1 become -inf. */
INLINE vf final_scores(vf x, int key, int from, int to, Scaling scaling) {
  x *= scaling.scale;
  if (scaling.soft_cap != 0) x = tanh_vf(x / scaling.soft_cap) * scaling.soft_cap;
  if (from <= key && key + LANES <= to) return x;
  vi seen = (LANE + key >= from) & (LANE + key < to);
  return choose(seen, x, splat(-INFINITY));
}

/* One query's scores [vectors * LANES] of a chunk become weights, 0 for the keys that it does not see: those but
   from..to-1. Returns the sum of the weights, and moves `top`. */
INLINE float weights_of(float *scores, int vectors, int from, int to, Scaling scaling, float *top) {
  vf best = splat(*top), sums = {0};
  for (int i = 0; i < vectors; i++) {
    vf x = final_scores(load_f32(scores + i * LANES), i * LANES, from, to, scaling);
    store_f32(scores + i * LANES, x);
    best = larger(x, best);
  }
  *top = largest(best);
  float base = *top == -INFINITY ? 0 : *top; /* it has seen no key yet: -inf less -inf would be NaN */
  for (int i = 0; i < vectors; i++) {
    vf weights = exp_vf(load_f32(scores + i * LANES) - base);
    store_f32(scores + i * LANES, weights);
    sums += weights;
  }
  return sum(sums);
}

/* The scores [n][CHUNK] of n <= LANES queries become weights; each sees the keys lows..highs-1. shrink [LANES]: by which
   all that a query has summed before must be multiplied. */
INLINE void pass_chunk(float *scores, int n, int vectors, const int *lows, const int *highs, Scaling scaling,
                       Running *running, float *shrink) {
  float sums[LANES], falls[LANES] = {0};
  for (int r = 0; r < n; r++) {
    float top = running[r].top;
    sums[r] = weights_of(scores + r * CHUNK, vectors, lows[r], highs[r], scaling, &running[r].top);
    falls[r] = top == running[r].top ? 0 : top - running[r].top;
  }
  store_f32(shrink, exp_vf(load_f32(falls)));
  for (int r = 0; r < n; r++) running[r].total = running[r].total * shrink[r] + sums[r];
}

#endif
