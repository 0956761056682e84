/* Kernels for weights of whole numbers, x rounded to int8: see multiply.h. */
#include "multiply.h"

KERNELS(octavo_codes4, CODES4, INT8_WORDS, 0)
KERNELS(octavo_codes5, CODES5, INT8_WORDS, 0)
KERNELS(octavo_codes6, CODES6, INT8_WORDS, 0)
KERNELS(octavo_codes8, CODES8, INT8_WORDS, 0)
KERNELS(octavo_codes8_whole, CODES8, INT8_WORDS, 1)
