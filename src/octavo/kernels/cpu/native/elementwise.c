/* Norms, activation, rotation for bfloat16 and float32; elementwise.inc has the idea. */
#include "elementwise.inc"
#define BF16
#include "elementwise.inc"
