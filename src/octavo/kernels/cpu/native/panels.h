/* The layout in which small weights are multiplied.

   A panel is 16 outputs (one lane each), cut along the inputs into tiles of 16, which a group's scale covers one or
   more of. A panel is one stretch of memory, read from front to back:

       for each header: 16 scales, [16 floors], and for each of its groups:
           [16 bytes of sub-scales, [16 bytes of sub-floors]], and for each of its tiles: 256 codes of 4, 5, 6 or 8 bits

       weight = header scale * sub-scale * value(code) + header floor * sub-floor

   Products are summed over a group with the codes' values alone, which are exact in bfloat16; only the sum is scaled.
   So a product with a bfloat16 x loses nothing but by the float32 additions, and x is never rounded.

   In a tile, lane 2 n + j of 32 half-words stands for output n and input 2 p + j of pair p (8 pairs): what a bfloat16
   dot product wants. Codes of 4 bits are four pairs to a half-word; the fifth and sixth bits follow in a plane of their
   own. Codes of 8 bits are laid out so that two interleaves give pairs. */
#ifndef OCTAVO_PANELS_H
#define OCTAVO_PANELS_H

#include "vector.h"

#define TILE 16

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__) && defined(__AVX512BW__)
#define DOT 1 /* pairs of bfloat16 are multiplied as they are */
typedef uint16_t X;
#else
#define DOT 0 /* everything is made float32 */
typedef float X;
#endif

enum { INTEGERS, FLOAT8 }; /* what codes of 8 bits mean; smaller ones are integers */

typedef struct {
  int64_t outputs, inputs; /* of the matrix; inputs are padded to whole groups with zeros in x */
  int32_t bits, codebook, centre; /* value = code - centre for less than 8 bits */
  int32_t tiles, groups, headers; /* tiles of a group, groups of a header, headers of a panel */
  int32_t half, sub, floors;      /* headers are float16 (else float32); there are sub-scales; there are floors */
} Form;

INLINE int64_t padded_inputs(const Form *f) { return (int64_t)f->headers * f->groups * f->tiles * TILE; }
INLINE int64_t header_bytes(const Form *f) { return LANES * (f->half ? 2 : 4) * (1 + f->floors); }
INLINE int64_t sub_bytes(const Form *f) { return f->sub ? LANES * (1 + f->floors) : 0; }
INLINE int64_t tile_bytes(int bits) { return TILE * LANES * bits / 8; }
INLINE int64_t group_bytes(const Form *f) { return sub_bytes(f) + f->tiles * tile_bytes(f->bits); }
INLINE int64_t panel_bytes(const Form *f) { return f->headers * (header_bytes(f) + f->groups * group_bytes(f)); }
INLINE int64_t num_panels(const Form *f) { return (f->outputs + LANES - 1) / LANES; }

/* Where in a tile of 8-bit codes output n and input k stand. */
INLINE int place8(int n, int k) {
#if DOT
  return k / 4 * 64 + n / 4 * 16 + k % 4 / 2 * 8 + n % 4 * 2 + k % 2;
#else
  return k / 4 * 64 + n * 4 + k % 4;
#endif
}

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
  vb16 b;
  memcpy(&b, p, sizeof b);
  return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
}

/* What the codes of a form mean. */
typedef struct {
#if DOT
  __m512i low, high; /* half-words of codes 0..31 and 32..63, or for 8 bits the low bytes of magnitudes */
  __m512i up_low, up_high;
  __m512i least; /* for 8 bits: the upper byte of code -0 */
#else
  int centre, codebook;
#endif
} Table;

/* Two inputs' weights of 16 outputs. */
#if DOT
typedef __m512i Pair;
#else
typedef struct { vf even, odd; } Pair;
#endif

INLINE uint16_t to_bf16(float x) { /* of numbers that are bfloat16 already */
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits >> 16;
}

/* float8 e4m3fn: 3 bits of mantissa, exponents biased by 7, no infinities. */
INLINE float float8(int code) {
  uint32_t bits = (uint32_t)(code & 127) << 20;
  float x;
  memcpy(&x, &bits, 4);
  x *= 0x1p120f;
  if ((code & 127) == 127) x = NAN;
  return code & 128 ? -x : x;
}

INLINE Table table_of(const Form *f) {
  Table t;
#if DOT
  if (f->bits < 8) {
    uint16_t words[64];
    for (int i = 0; i < 64; i++) words[i] = to_bf16((f->bits == 4 ? i % 16 : f->bits == 5 ? i % 32 : i) - f->centre);
    t.low = _mm512_loadu_si512(words), t.high = _mm512_loadu_si512(words + 32);
    t.up_low = t.up_high = t.least = _mm512_setzero_si512();
  } else {
    uint8_t below[128], above[128];
    for (int i = 0; i < 128; i++) {
      uint16_t word = to_bf16(f->codebook == FLOAT8 ? float8(i) : i);
      below[i] = word & 255, above[i] = word >> 8;
    }
    t.low = _mm512_loadu_si512(below), t.high = _mm512_loadu_si512(below + 64);
    t.up_low = _mm512_loadu_si512(above), t.up_high = _mm512_loadu_si512(above + 64);
    t.least = _mm512_set1_epi8(f->codebook == FLOAT8 ? 0x80 : 0xc3); /* -0, or -128 */
  }
#else
  t.centre = f->centre, t.codebook = f->codebook;
#endif
  return t;
}

#if DOT
/* Pair p (a constant) of a tile. */
INLINE Pair decode(int bits, const uint8_t *codes, int p, const Table *t) {
  if (bits == 16) return _mm512_loadu_si512(codes + p * 64);
  if (bits == 8) {
    __m512i code = _mm512_loadu_si512(codes + p / 2 * 64), sign = _mm512_set1_epi8(-128);
    __m512i below = _mm512_permutex2var_epi8(t->low, code, t->high);
    __m512i above = _mm512_permutex2var_epi8(t->up_low, code, t->up_high);
    above = _mm512_ternarylogic_epi64(above, code, sign, 0xf8); /* above | (code & sign) */
    above = _mm512_mask_mov_epi8(above, _mm512_cmpeq_epi8_mask(code, sign), t->least);
    return p % 2 ? _mm512_unpackhi_epi8(below, above) : _mm512_unpacklo_epi8(below, above);
  }
  __m512i index = _mm512_srli_epi16(_mm512_loadu_si512(codes + p / 4 * 64), p % 4 * 4);
  if (bits == 4) return _mm512_permutexvar_epi16(index, t->low);
  __m512i top, four = _mm512_set1_epi16(15);
  if (bits == 5) {
    top = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(codes + 128)));
    top = p < 4 ? _mm512_slli_epi16(top, 4 - p) : _mm512_srli_epi16(top, p - 4);
  } else {
    top = _mm512_loadu_si512(codes + 128);
    top = p < 2 ? _mm512_slli_epi16(top, 4 - p * 2) : _mm512_srli_epi16(top, p * 2 - 4);
  }
  index = _mm512_ternarylogic_epi64(four, index, top, 0xca); /* four ? index : top */
  return bits == 5 ? _mm512_permutexvar_epi16(index, t->low) : _mm512_permutex2var_epi16(t->low, index, t->high);
}

INLINE vf step(vf sum, Pair w, const X *x) {
  int32_t two;
  memcpy(&two, x, 4);
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)w, (__m512bh)_mm512_set1_epi32(two));
}

INLINE void store_pair(uint8_t *to, Pair w) { _mm512_store_si512(to, w); }
#define PAIR_BYTES 64

#else
INLINE vf integers(vu codes, int shift, uint32_t mask, int centre) {
  return __builtin_convertvector((vi)(codes >> shift & mask) - centre, vf);
}

INLINE vf bytes_of(vu word, int i, const Table *t) {
  if (t->codebook == INTEGERS) return __builtin_convertvector((vi)(word << (24 - 8 * i)) >> 24, vf);
  vu code = word >> (8 * i), magnitude = code & 127;
  vf x = (vf)(magnitude << 20) * 0x1p120f;
  return (vf)((vu)x | (vu)(magnitude == 127) | (code & 128) << 24);
}

INLINE Pair decode(int bits, const uint8_t *codes, int p, const Table *t) {
  vu word, top;
  if (bits == 32) return (Pair){load_f32((const float *)codes + p * 32), load_f32((const float *)codes + p * 32 + 16)};
  memcpy(&word, codes + (bits == 8 ? p / 2 : p / 4) * 64, sizeof word);
  if (bits == 8) return (Pair){bytes_of(word, p % 2 * 2, t), bytes_of(word, p % 2 * 2 + 1, t)};
  vu even = word >> (p % 4 * 4) & 15, odd = word >> (16 + p % 4 * 4) & 15;
  if (bits == 5) {
    vh h;
    memcpy(&h, codes + 128, sizeof h);
    top = __builtin_convertvector(h, vu);
    even |= (top >> p & 1) << 4, odd |= (top >> (8 + p) & 1) << 4;
  } else if (bits == 6) {
    memcpy(&top, codes + 128, sizeof top);
    even |= (top >> (2 * p) & 3) << 4, odd |= (top >> (16 + 2 * p) & 3) << 4;
  }
  return (Pair){integers(even, 0, 63, t->centre), integers(odd, 0, 63, t->centre)};
}

INLINE vf step(vf sum, Pair w, const X *x) { return sum + w.even * x[0] + w.odd * x[1]; }

INLINE void store_pair(uint8_t *to, Pair w) {
  store_f32((float *)to, w.even);
  store_f32((float *)to + LANES, w.odd);
}
#define PAIR_BYTES 128
#endif

#define WIDE (PAIR_BYTES / 4) /* bits of an expanded code */

#endif
