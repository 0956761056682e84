/* What sampling knows of a row besides its logits, and the choice among weights.

   A token's weight is e^((logit - largest) / temperature) rounded to a whole number of GRAINs. Whole numbers up to 2^33
   whose last bits are 0, as a float holds them, add up exactly in doubles. So a row's token hangs neither on the order of
   additions nor on the rest of the batch; it is what octavo/kernels/reference/sampling.py says. */
#ifndef OCTAVO_SAMPLING_H
#define OCTAVO_SAMPLING_H

#include "team.h"
#include "vector.h"

#define GRAINS 8589934592.0f /* 2^33 of them are 1 */

/* As octavo.kernels.sampling.PARAMS. */
typedef struct {
  float temperature;
  int32_t top_k;
  double top_p, min_p;
  uint64_t seed;
  int64_t position;
} Params;

typedef struct {
  const void *logits;   /* [rows][stride], `size` of each count */
  const Params *params; /* [rows] */
  int64_t *tokens;      /* [rows] */
  uint8_t *bad;         /* [rows]: the largest logit is not finite, or one is NaN; the token is then 0 */
  void *desks;          /* of each member SAMPLING_DESK bytes for each of size, rounded up to LANES */
  int64_t rows, size, stride;
} SampleCall;

/* A member's memory. */
typedef struct {
  float *weights;             /* [size]: grains */
  uint32_t *keys[2], *ids[2]; /* [size]: candidates, and as many to sort them */
} Desk;
#define SAMPLING_DESK 20

typedef double vd __attribute__((vector_size(128)));

/* Philox4x32-10 (Salmon et al., SC 2011): 53 random bits of a seed and a position, in [0, 1). */
INLINE double uniform_number(uint64_t seed, uint64_t position) {
  uint32_t c[4] = {(uint32_t)position, (uint32_t)(position >> 32), 0, 0}, k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int round = 0; round < 10; round++, k[0] += 0x9E3779B9u, k[1] += 0xBB67AE85u) {
    uint64_t left = (uint64_t)c[0] * 0xD2511F53u, right = (uint64_t)c[2] * 0xCD9E8D57u;
    c[0] = (uint32_t)(right >> 32) ^ c[1] ^ k[0], c[1] = (uint32_t)right;
    c[2] = (uint32_t)(left >> 32) ^ c[3] ^ k[1], c[3] = (uint32_t)left;
  }
  return (double)(((uint64_t)c[0] << 32 | c[1]) >> 11) * 0x1p-53;
}

/* e^x for x <= 0 in whole grains, ties to even. */
INLINE vf grains(vf x) {
  vf w = exp_vf(x) * GRAINS;
  vf rounded = (w + 8388608.0f) - 8388608.0f; /* above 2^23 floats are whole */
  return choose(w < 8388608.0f, rounded, w);
}

/* The smallest float that is not below min_p, in grains: lighter tokens are dropped. */
INLINE float lightest(double min_p) {
  double grains = min_p * GRAINS;
  float f = (float)grains;
  return f < grains ? nextafterf(f, INFINITY) : f;
}

/* Floats as unsigned numbers in reverse order: the largest first. */
INLINE uint32_t falling_key(float x) {
  uint32_t bits;
  x += 0.0f; /* -0 ties with 0 */
  memcpy(&bits, &x, sizeof bits);
  return bits >> 31 ? bits : ~bits & 0x7fffffff;
}

/* Sort n ids by their keys, ties as they stand: 11 bits of the key at a time. Results are in keys[1] and ids[1]. */
static void sort_candidates(const Desk *d, int64_t n) {
  for (int pass = 0; pass < 3; pass++) {
    const uint32_t *keys = d->keys[pass & 1], *ids = d->ids[pass & 1];
    uint32_t *sorted = d->keys[~pass & 1], *moved = d->ids[~pass & 1], starts[2048] = {0}, total = 0;
    for (int64_t i = 0; i < n; i++) starts[keys[i] >> 11 * pass & 2047]++;
    for (int j = 0; j < 2048; j++) {
      uint32_t count = starts[j];
      starts[j] = total, total += count;
    }
    for (int64_t i = 0; i < n; i++) {
      uint32_t to = starts[keys[i] >> 11 * pass & 2047]++;
      sorted[to] = keys[i], moved[to] = ids[i];
    }
  }
}

/* The sum of weights by which top-p measures: of all tokens, or of the first top_k if that is a rule. */
INLINE double measure(const Desk *d, int64_t n, const Params *p, double mass) {
  if (p->top_k <= 0) return mass;
  double sum = 0;
  for (int64_t i = 0; i < n && i < p->top_k; i++) sum += d->weights[d->ids[1][i]];
  return sum;
}

/* How many of the n likeliest tokens, sorted, the rules keep; `kept`: the sum of their weights. */
static int64_t keep(const Desk *d, int64_t n, const Params *p, double mass, double *kept) {
  double goal = p->top_p < 1 ? measure(d, n, p, mass) * p->top_p : INFINITY, before = 0;
  int64_t i = 0;
  for (; i < n && (p->top_k <= 0 || i < p->top_k); i++) {
    float weight = d->weights[d->ids[1][i]];
    if (weight == 0 || !(before < goal)) break;
    before += weight;
  }
  *kept = before;
  return i;
}

/* Whether the `count` of the n likeliest tokens that the rules keep are all that they keep of the row. */
INLINE int is_decided(const Desk *d, int64_t n, const Params *p, int64_t count) {
  if (p->top_k > 0 && n >= p->top_k) return 1;
  /* Top-p's share of the top k needs to see all of these, unless those that follow have no weight. */
  return count < n && (p->top_k <= 0 || d->weights[d->ids[1][count]] == 0);
}

/* The first of the n likeliest tokens with which the sum of weights exceeds the target. */
INLINE int64_t draw_sorted(const Desk *d, int64_t n, double target) {
  double running = 0;
  for (int64_t i = 0; i < n; i++)
    if ((running += d->weights[d->ids[1][i]]) > target) return d->ids[1][i];
  return n ? d->ids[1][n - 1] : 0;
}

INLINE double sum_weights(const float *weights) {
  vd sums = __builtin_convertvector(load_f32(weights), vd);
  double sum = 0;
  for (int i = 0; i < LANES; i++) sum += sums[i];
  return sum;
}

/* The same of all tokens in the order of their ids. */
INLINE int64_t draw_in_order(const Desk *d, int64_t size, double target) {
  double running = 0;
  for (int64_t i = 0; i < size; i += LANES) {
    double next = running + sum_weights(d->weights + i);
    if (next > target)
      for (int64_t j = i; j < i + LANES; j++)
        if ((running += d->weights[j]) > target) return j;
    running = next;
  }
  return 0; /* not reached: at most 1 - 2^-53 times the total rounds to less than the total */
}

#endif
