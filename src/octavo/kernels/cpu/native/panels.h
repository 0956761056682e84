/* The layout of weights that are multiplied.

   A panel is 16 outputs (one lane each), cut along the inputs into tiles of 16 or 32. A panel is one stretch of memory,
   read from front to back:

       for each header: 16 scales, [16 floors], and for each of its groups:
           [16 bytes of sub-scales, [16 bytes of sub-floors]], and for each of its tiles: the codes

       weight = header scale * sub-scale * value(code) + header floor * sub-floor

   A line is 64 bytes: a word of four bytes for each output. All products are made of one step: sum[n] += word[n] of a
   line times a word of x that all outputs share, as four int8s, two bfloat16s or one float32. So the words of x, too,
   are only read from front to back. In a line

       int8       output n has inputs 4 j .. 4 j + 3, as unsigned bytes: value = byte - centre
       4 bits     such lines in pairs, the second in the upper halves of the first's bytes
       5, 6 bits  4 bits, then lines of the upper bits: the codes of line j have theirs at bit j, or 2 j
       float8     as int8, of e4m3fn
       bfloat16   output n has inputs 2 j, 2 j + 1; float32: input j */
#ifndef OCTAVO_PANELS_H
#define OCTAVO_PANELS_H

#include "vector.h"

enum { CODES4 = 4, CODES5, CODES6, CODES8 = 8, FLOAT8, BFLOAT16 = 16, FLOAT32 = 32 }; /* kinds of codes */

typedef struct {
  int64_t outputs, inputs; /* of the matrix; inputs are padded to whole units with zeros in x */
  int32_t kind, centre;
  int32_t unit;             /* tiles that one sum is over: in them x has one scale */
  int32_t units;            /* of a group */
  int32_t groups, headers;  /* groups of a header, headers of a panel */
  int32_t half;             /* headers are float16 (else float32) */
  int32_t sub, floors;      /* there are sub-scales; there are floors */
} Form;

INLINE int code_bits(int kind) { return kind == FLOAT8 ? 8 : kind; }
INLINE int code_bytes(int kind) { return kind >= BFLOAT16 ? kind / 8 : 1; } /* in memory, one by one */
INLINE int tile_inputs(int kind) { return kind == CODES6 || kind >= FLOAT8 ? 16 : 32; }
INLINE int64_t tile_bytes(int kind) { return tile_inputs(kind) * LANES * code_bits(kind) / 8; }
INLINE int64_t unit_inputs(const Form *f) { return (int64_t)f->unit * tile_inputs(f->kind); }
INLINE int64_t num_units(const Form *f) { return (int64_t)f->headers * f->groups * f->units; }
INLINE int64_t padded_inputs(const Form *f) { return num_units(f) * unit_inputs(f); }
INLINE int64_t header_bytes(const Form *f) { return LANES * (f->half ? 2 : 4) * (1 + f->floors); }
INLINE int64_t sub_bytes(const Form *f) { return f->sub ? LANES * (1 + f->floors) : 0; }
INLINE int64_t group_bytes(const Form *f) { return sub_bytes(f) + f->units * f->unit * tile_bytes(f->kind); }
INLINE int64_t panel_bytes(const Form *f) { return f->headers * (header_bytes(f) + f->groups * group_bytes(f)); }
INLINE int64_t num_panels(const Form *f) { return (f->outputs + LANES - 1) / LANES; }

INLINE float half_to_float(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000) << 16, rest = (uint32_t)(h & 0x7fff) << 13, bits;
  float f;
  if (rest >= 0x0f800000) { /* infinity, NaN */
    bits = rest | 0x7f800000;
    memcpy(&f, &bits, 4);
  } else {
    memcpy(&f, &rest, 4);
    f *= 0x1p112f; /* exact, subnormals too */
    memcpy(&bits, &f, 4);
  }
  bits |= sign;
  memcpy(&f, &bits, 4);
  return f;
}

/* 16 numbers of a header. */
INLINE vf load_header(const uint8_t *p, int half) {
  if (!half) return load_f32((const float *)p);
#ifdef __AVX512F__
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#endif
  uint16_t h[LANES];
  memcpy(h, p, sizeof h);
  vf x;
  for (int n = 0; n < LANES; n++) x[n] = half_to_float(h[n]);
  return x;
}

typedef int8_t vb16 __attribute__((vector_size(16)));

INLINE vf load_sub(const uint8_t *p) {
#ifdef __AVX512F__
  return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#endif
  vb16 b;
  memcpy(&b, p, sizeof b);
  return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
}

INLINE vu load_line(const uint8_t *p) { vu x; memcpy(&x, p, sizeof x); return x; }

/* float8 e4m3fn: 3 bits of mantissa, exponents biased by 7, no infinities. */
INLINE vu float8_line(vu code) {
  vu magnitude = code & 127;
  vf x = (vf)(magnitude << 20) * 0x1p120f;
  return (vu)x | (vu)(magnitude == 127) | (code & 128) << 24;
}

/* Line j of a tile, ready to be multiplied. floats: x is float32, so that each line has one input. */
INLINE vu decode(int kind, int floats, const uint8_t *codes, int j) {
  if (kind == FLOAT8) return float8_line(load_line(codes + j / 4 * 64) >> (8 * (j % 4)) & 255);
  if (kind == BFLOAT16 && floats) {
    vu two = load_line(codes + j / 2 * 64);
    return j % 2 ? two & 0xffff0000 : two << 16;
  }
  if (kind >= CODES8) return load_line(codes + j * 64);
  vu four = load_line(codes + j / 2 * 64) >> (j % 2 * 4) & 0x0f0f0f0f;
  if (kind == CODES5) four |= (load_line(codes + 256) >> j & 0x01010101) << 4;
  if (kind == CODES6) four |= (load_line(codes + 128) >> (2 * j) & 0x03030303) << 4;
  return four;
}

#endif
