/* Low-rank adapters for bfloat16 and float32; lora.inc has the idea. */
#include "team.h"

#define PADDED(rank) (((rank) + LANES - 1) / LANES * LANES)

/* y [rows, outputs] += scale * (x [rows, inputs] @ A.T) @ B.T, part by part, with the A, B and scale of each row's
   adapter. Of `count` adapters, a part is `rank` rows of A [count, parts * rank, inputs] and some rows of
   B [count, outputs, rank], of which its own rank counts; what is beyond that is 0. */
typedef struct {
  const int32_t *numbers; /* [rows]: 1 to count, or 0: none */
  const void *x, *a, *b;
  const float *scales;  /* [count, parts] */
  const int32_t *ranks; /* [count, parts]; 0: nothing for this part */
  const int64_t *ends;  /* [parts]: where each part's outputs end */
  void *y;
  float *shrunk; /* [members, parts * rank, padded to vectors]: scratch */
  int64_t rows, inputs, outputs, rank, parts;
} LoraAddCall;

#include "lora.inc"
#define BF16
#include "lora.inc"
