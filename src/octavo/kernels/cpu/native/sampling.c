/* Choosing a token from each row of logits, of float32 or bfloat16; sampling.inc has the idea. */
#include "sampling.h"

#include "sampling.inc"
#define BF16
#include "sampling.inc"
