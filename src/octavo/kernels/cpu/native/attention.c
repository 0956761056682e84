/* Decode attention for bfloat16 and float32; attention.inc has the idea. */
#include "attention.h"
#include "attention_softmax.h"
#include "bf16_pairs.h"
#include "team.h"

#define MAX_PARTS 64
#define TILES (CHUNK / LANES)
#define HEADS 4 /* of those that share a key, so many at once: what they sum up stays in registers */

/* Ask for a share of a tile's bytes: part i of n. It comes into the second cache, for the first has no room to wait. */
INLINE void ask_for(const void *tile, int64_t bytes, int i, int n) {
  if (!tile) return;
  for (int64_t at = bytes * i / n / 64 * 64; at < bytes * (i + 1) / n; at += 64)
    __builtin_prefetch((const char *)tile + at, 0, 2);
}

/* Let the compiler see the number of heads, 1 to HEADS, as a constant. */
#define FOR_HEADS(count, CALL) \
  switch (count) { case 1: CALL(1); break; case 2: CALL(2); break; case 3: CALL(3); break; default: CALL(4); }

#ifdef __AVX512BF16__
#include "attention_pairs.h"
#endif

#include "attention.inc"
#define BF16
#include "attention.inc"
