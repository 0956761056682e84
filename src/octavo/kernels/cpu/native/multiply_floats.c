/* Kernels for weights in floating point: see multiply.h. */
#include "multiply.h"

#if HAS_BFLOAT16_DOT
KERNELS(octavo_bfloat16, BFLOAT16, BFLOAT16_WORDS, 1)
#endif
KERNELS(octavo_bfloat16_wide, BFLOAT16, FLOAT32_WORDS, 1)
KERNELS(octavo_float8, FLOAT8, FLOAT32_WORDS, 1)
KERNELS(octavo_float32, FLOAT32, FLOAT32_WORDS, 1)
