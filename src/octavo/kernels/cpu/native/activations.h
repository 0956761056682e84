/* Activation functions of sixteen floats. */
#ifndef OCTAVO_ACTIVATIONS_H
#define OCTAVO_ACTIVATIONS_H

#include "vector.h"

INLINE vf silu(vf x) {
  vf e = exp_vf((vf)((vi)x | (int32_t)0x80000000)); /* e^-|x| cannot overflow */
  return x * choose(x < 0, e, splat(1.0f)) / (e + 1.0f);
}

/* x P(X <= x) of a standard normal X. Far out it is the tail P(X > |x|) that counts, so that is what is computed: erfc by
   the Chebyshev fit of Numerical Recipes (Press et al., 6.2), to 1.2e-7 of its value. */
INLINE vf gelu(vf x) {
  vf z = (vf)((vi)x & 0x7fffffff) * 0.70710678f;
  vf t = 2.0f / (2.0f + z);
  vf p = t * 0.17087277f - 0.82215223f;
  p = p * t + 1.48851587f;
  p = p * t - 1.13520398f;
  p = p * t + 0.27886807f;
  p = p * t - 0.18628806f;
  p = p * t + 0.09678418f;
  p = p * t + 0.37409196f;
  p = p * t + 1.00002368f;
  p = p * t - 1.26551223f;
  vf tail = t * exp_vf(p - z * z) * 0.5f;
  return choose(x < 0, x * tail, x - x * tail);
}

INLINE vf gelu_tanh(vf x) {
  vf inner = (x + x * x * x * 0.044715f) * 0.79788456f;
  return x * 0.5f * (tanh_vf(inner) + 1.0f);
}

INLINE vf activate(vf x, int kind) { return kind == SILU ? silu(x) : kind == GELU ? gelu(x) : gelu_tanh(x); }

#endif
