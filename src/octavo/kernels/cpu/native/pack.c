/* From the forms of checkpoints to the panels of panels.h. Each row is taken apart into codes, a byte each (or whole
   numbers in floating point), and numbers for its headers and sub-scales; then sixteen rows are woven into a panel. */
#include "panels.h"
#include "team.h"

enum { Q4_0 = 1, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, INT8, INT4, FP8, NUMBERS };

/* A matrix as a checkpoint has it. Blocks have their scales inside; the others have scales [outputs][groups], of the
   headers' type. */
typedef struct {
  const uint8_t *rows;
  const void *scales, *floors; /* or null */
  int64_t row_bytes;
  int32_t kind;
} Stored;

/* A row taken apart: codes [inputs] of code_bytes each, headers and floors [headers] (as many bytes as the form says),
   subs [groups]. */
typedef struct {
  uint8_t *codes, *headers, *header_floors;
  int8_t *subs, *sub_floors;
} Row;

INLINE void put_half(uint8_t *to, int64_t i, const uint8_t *half, int negative) {
  to[2 * i] = half[0], to[2 * i + 1] = half[1] ^ (negative ? 0x80 : 0);
}

/* 32 nibbles: the low halves of 16 bytes, then the high ones; with fifth bits from a word. */
INLINE void nibbles(const uint8_t *bytes, uint32_t fifth, uint8_t *codes) {
  for (int i = 0; i < 16; i++) {
    codes[i] = (bytes[i] & 15) | (fifth >> i & 1) << 4;
    codes[16 + i] = bytes[i] >> 4 | (fifth >> (16 + i) & 1) << 4;
  }
}

/* Q4_0, Q4_1, Q5_0, Q5_1: scale, [floor], [fifth bits], nibbles. */
static void small_block(const uint8_t *block, int floors, int fifth, int64_t b, Row *row) {
  uint32_t bits = 0;
  put_half(row->headers, b, block, 0);
  if (floors) put_half(row->header_floors, b, block + 2, 0);
  block += 2 + 2 * floors;
  if (fifth) memcpy(&bits, block, 4);
  nibbles(block + 4 * fifth, bits, row->codes + 32 * b);
}

/* An int8 as code: 128 more. */
INLINE uint8_t signed_code(uint8_t value) { return value ^ 128; }

static void block_8(const uint8_t *block, int64_t b, Row *row) {
  put_half(row->headers, b, block, 0);
  for (int i = 0; i < 32; i++) row->codes[32 * b + i] = signed_code(block[2 + i]);
}

/* Q4_K, Q5_K: scale, floor's scale, eight scales and eight floors of 6 bits, [fifth bits], nibbles. */
static void block_k(const uint8_t *block, int fifth, int64_t b, Row *row) {
  const uint8_t *six = block + 4, *high = block + 16, *low = block + 16 + 32 * fifth;
  put_half(row->headers, b, block, 0);
  put_half(row->header_floors, b, block + 2, 1);
  for (int g = 0; g < 8; g++) {
    int i = g % 4, first = g < 4;
    row->subs[8 * b + g] = first ? six[i] & 63 : (six[8 + i] & 15) | six[i] >> 6 << 4;
    row->sub_floors[8 * b + g] = first ? six[4 + i] & 63 : six[8 + i] >> 4 | six[4 + i] >> 6 << 4;
    for (int k = 0; k < 32; k++) {
      int code = low[g / 2 * 32 + k] >> (g % 2 * 4) & 15;
      row->codes[256 * b + 32 * g + k] = code | (fifth ? (high[k] >> g & 1) << 4 : 0);
    }
  }
}

/* Q6_K: nibbles, high pairs, sixteen scales of 8 bits, scale. */
static void block_6(const uint8_t *block, int64_t b, Row *row) {
  put_half(row->headers, b, block + 208, 0);
  for (int g = 0; g < 16; g++) row->subs[16 * b + g] = block[192 + g];
  for (int k = 0; k < 256; k++) {
    int half = k / 128, within = k % 128;
    int low = block[half * 64 + within % 64] >> (within / 64 * 4) & 15;
    int high = block[128 + half * 32 + within % 32] >> (within / 32 * 2) & 3;
    row->codes[256 * b + k] = low | high << 4;
  }
}

static void blocks_of(const Form *f, const Stored *s, const uint8_t *from, Row *row) {
  static const int size[] = {0, 18, 20, 22, 24, 34, 144, 176, 210};
  int64_t num_blocks = f->inputs / (s->kind >= Q4_K ? 256 : 32);
  for (int64_t b = 0; b < num_blocks; b++, from += size[s->kind]) {
    if (s->kind <= Q5_1) small_block(from, s->kind % 2 == 0, s->kind >= Q5_0, b, row);
    if (s->kind == Q8_0) block_8(from, b, row);
    if (s->kind == Q4_K || s->kind == Q5_K) block_k(from, s->kind == Q5_K, b, row);
    if (s->kind == Q6_K) block_6(from, b, row);
  }
}

static void values_of(const Form *f, const Stored *s, const uint8_t *from, int64_t n, Row *row) {
  for (int64_t k = 0; k < f->inputs; k++) {
    if (s->kind == INT8) row->codes[k] = signed_code(from[k]);
    if (s->kind == INT4) row->codes[k] = from[k / 2] >> (k % 2 * 4) & 15;
    if (s->kind == FP8) row->codes[k] = from[k];
  }
  if (s->kind == NUMBERS) memcpy(row->codes, from, f->inputs * code_bytes(f->kind));
  int64_t size = f->headers * (f->half ? 2 : 4);
  memcpy(row->headers, (const uint8_t *)s->scales + n * size, size);
  if (f->floors) memcpy(row->header_floors, (const uint8_t *)s->floors + n * size, size);
}

INLINE void add_bits(uint8_t *to, uint32_t bits) {
  uint32_t word;
  memcpy(&word, to, 4);
  word |= bits;
  memcpy(to, &word, 4);
}

/* Word j of an output's codes into a tile of zeros, `to` being that output's lane. */
INLINE void put_word(int kind, uint8_t *to, int j, uint32_t word) {
  if (kind >= CODES8) {
    memcpy(to + j * 64, &word, 4);
    return;
  }
  add_bits(to + j / 2 * 64, (word & 0x0f0f0f0f) << (j % 2 * 4));
  if (kind == CODES5) add_bits(to + 256, (word >> 4 & 0x01010101) << j);
  if (kind == CODES6) add_bits(to + 128, (word >> 4 & 0x03030303) << (2 * j));
}

static uint8_t *weave_numbers(const uint8_t *from, int64_t stride, int64_t size, uint8_t *to) {
  for (int n = 0; n < LANES; n++) memcpy(to + n * size, from + n * stride, size);
  return to + LANES * size;
}

/* `rows` bytes of scratch for a row taken apart; row n of a panel begins at n * its size. */
static int64_t row_size(const Form *f) {
  return padded_inputs(f) * code_bytes(f->kind) + 8 * f->headers + 2 * (int64_t)f->headers * f->groups;
}

static Row row_at(const Form *f, uint8_t *memory) {
  int64_t num_groups = (int64_t)f->headers * f->groups;
  uint8_t *numbers = memory + padded_inputs(f) * code_bytes(f->kind);
  int8_t *subs = (int8_t *)numbers + 8 * f->headers;
  return (Row){memory, numbers, numbers + 4 * f->headers, subs, subs + num_groups};
}

/* The codes from input k on, four bytes at a time. */
static void weave_tile(const Form *f, const Row *row, int64_t stride, int64_t k, uint8_t *to) {
  int bytes = code_bytes(f->kind), words = tile_inputs(f->kind) * bytes / 4;
  for (int n = 0; n < LANES; n++)
    for (int j = 0; j < words; j++) {
      uint32_t word;
      memcpy(&word, row->codes + n * stride + k * bytes + 4 * j, 4);
      put_word(f->kind, to + 4 * n, j, word);
    }
}

static void weave(const Form *f, uint8_t *memory, uint8_t *to) {
  int64_t stride = row_size(f), number = f->half ? 2 : 4, k = 0, group = 0;
  Row row = row_at(f, memory);
  memset(to, 0, panel_bytes(f));
  for (int64_t h = 0; h < f->headers; h++) {
    to = weave_numbers(row.headers + h * number, stride, number, to);
    if (f->floors) to = weave_numbers(row.header_floors + h * number, stride, number, to);
    for (int g = 0; g < f->groups; g++, group++) {
      if (f->sub) to = weave_numbers((uint8_t *)row.subs + group, stride, 1, to);
      if (f->sub && f->floors) to = weave_numbers((uint8_t *)row.sub_floors + group, stride, 1, to);
      for (int t = 0; t < f->units * f->unit; t++, k += tile_inputs(f->kind), to += tile_bytes(f->kind))
        weave_tile(f, &row, stride, k, to);
    }
  }
}

int64_t octavo_panels_bytes(const Form *f) { return num_panels(f) * panel_bytes(f); }

int64_t octavo_pack_scratch(const Form *f) { return LANES * row_size(f); }

typedef struct {
  const Form *form;
  const Stored *stored;
  uint8_t *to;      /* [octavo_panels_bytes] */
  uint8_t *scratch; /* octavo_pack_scratch for each member */
} PackCall;

void octavo_pack(const PackCall *call, const Member *me) {
  Form f = *call->form;
  Stored s = *call->stored;
  int64_t size = row_size(&f), first, last;
  uint8_t *memory = call->scratch + me->index * LANES * size;
  team_part(me, num_panels(&f), &first, &last);
  for (int64_t panel = first; panel < last; panel++) {
    memset(memory, 0, LANES * size);
    for (int n = 0; n < LANES && panel * LANES + n < f.outputs; n++) {
      Row row = row_at(&f, memory + n * size);
      const uint8_t *from = s.rows + (panel * LANES + n) * s.row_bytes;
      if (s.kind <= Q6_K) blocks_of(&f, &s, from, &row);
      else values_of(&f, &s, from, panel * LANES + n, &row);
    }
    weave(&f, memory, call->to + panel * panel_bytes(&f));
  }
}
