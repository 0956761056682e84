/* Norms, activations, rotation for bfloat16 and float32; elementwise.inc has the idea. */
#include "attention.h"
#include "team.h"

/* out [rows, size] = the rows of weight [.., size] that ids name. */
typedef struct {
  const int64_t *ids;
  const void *weight;
  void *out;
  int64_t rows, size;
} EmbeddingCall;

/* out [rows, size] = rms_norm(x + residual) * weight, residual [rows, size] += x. */
typedef struct {
  const void *x, *weight;
  float *residual;
  void *out;
  int64_t rows, size;
  float eps;
  int32_t starts; /* residual holds nothing yet, and counts as 0 */
} AddRmsNormCall;

/* out [rows, size] = rms_norm(x) * weight. */
typedef struct {
  const void *x, *weight;
  void *out;
  int64_t rows, size;
  float eps;
} RmsNormCall;

/* out [rows, size] = layer_norm(x + residual) * weight + bias, residual [rows, size] += x. */
typedef struct {
  const void *x, *weight, *bias;
  float *residual;
  void *out;
  int64_t rows, size;
  float eps;
  int32_t starts; /* as in AddRmsNormCall */
} AddLayerNormCall;

enum { SILU, GELU, GELU_TANH };

/* out [rows, size] = f(gate) * up of gate_up [rows, 2 size]. */
typedef struct {
  const void *gate_up;
  void *out;
  int64_t rows, size;
} GatedCall;

/* x [size] = f(x). */
typedef struct {
  void *x;
  int64_t size;
} GeluCall;

/* Queries and keys of qkv [rows, (Hq + 2 Hk) D] are normalised (if there are weights) and rotated in place; keys and
   values are copied to their slots of the cache [num_blocks, Hk, block_size, D]. */
typedef struct {
  void *qkv;
  const AttentionWork *work;
  const float *cos_sin;
  const void *q_norm, *k_norm; /* or null */
  void *keys, *values;
  int64_t rows, num_heads, num_kv_heads, head_dim, block_size;
  float eps;
} RotateAndStoreCall;

#include "activations.h"

#include "elementwise.inc"
#define BF16
#include "elementwise.inc"
