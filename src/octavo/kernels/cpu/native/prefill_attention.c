/* Attention of prompts and their chunks for bfloat16 and float32; prefill_attention.inc has the idea. */
#include "attention.h"
#include "attention_softmax.h"
#include "bf16_pairs.h"
#include "team.h"

/* A tile of sums that fits into the registers. */
#ifdef __AVX512F__
#define TILE_ROWS 6
#define TILE_VECTORS 4
#else
#define TILE_ROWS 3
#define TILE_VECTORS 2
#endif
#define MAX_ELEMENTS 8192
#define MAX_ROWS 128 /* of a stretch: queries x query heads; and no more than MAX_ELEMENTS / ROW(head_dim) */

#include "prefill_attention.inc"
#define BF16
#include "prefill_attention.inc"
