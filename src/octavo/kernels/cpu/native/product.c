/* y = x times the transpose of a weight, in the layout of panels.h.

   First x becomes words (words.h): with few rows every member makes all of them for itself, which is sooner done than
   waiting for others; with many, members share the rows. Then members share the panels. A panel, which stays in the
   core's nearest cache, is multiplied with one tile of rows after the other, so each byte of the weight comes from
   memory once; or once for each few hundred rows, whose words stay in the second cache.

   If all rows are one tile, only memory's speed counts, and what the processor fetches ahead by itself. To go back and
   forth between a panel and its counterpart may throw it off: by half, in one process of two, as its code happens to be
   placed. So a gated product has a run of panels first, then the run of their counterparts.

   What stands before and behind a product in a model may be part of it: x + residual, normalized, before; a gate
   behind. That saves two barriers, and writing and reading what is between. */
#include "multiply.h"
#include "output.h"
#include "team.h"

#define OWN_NUMBERS 8192        /* of x, up to which every member makes all words */
#define CACHED_BYTES (256 << 10) /* of words, which a core keeps while it goes through its panels */
#define RUN 16                  /* panels, with one tile of rows */

typedef struct {
  const Form *form;
  const uint8_t *panels;
  const void *x;               /* [rows][inputs] */
  const int32_t *order;        /* of the columns of x, or null */
  const void *norm;            /* [inputs], or null: x is not normalized, and the next two mean nothing */
  const float *residual;       /* [rows][inputs], added first, or null */
  float *total;                /* [rows][inputs]: x + residual; not the residual itself, which others still read */
  const void *bias;            /* [outputs], or null */
  void *out;                   /* [rows][out_stride] */
  uint8_t *scratch;            /* octavo_product_scratch, 64-byte aligned */
  int64_t rows, out_stride;
  int32_t bf16, out_bf16; /* x, norm and bias; out; else float32 */
  int32_t parts; /* rows of int8 that make up one of x, if that is rounded */
  int32_t gated; /* out [rows][outputs / 2] = silu of the first half of the outputs times the second */
  float eps;
} ProductCall;

/* Of a call: how x is read, and where in scratch things are. */
typedef struct {
  int words, parts, own; /* own: every member has all words for itself */
  int64_t rows;          /* of words */
  int64_t row_bytes, words_bytes, numbers_bytes;
} Shape;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static int64_t aligned(int64_t bytes) { return (bytes + 63) & ~(int64_t)63; }

static Shape shape_of(const Form *f, int64_t rows, int bf16, int parts) {
  Shape s = {FLOAT32_WORDS, 1};
  if (f->kind == BFLOAT16 && bf16 && HAS_BFLOAT16_DOT) s.words = BFLOAT16_WORDS;
  if (f->kind <= CODES8) s.words = INT8_WORDS, s.parts = parts;
  s.rows = rows * s.parts;
  s.own = rows == 1 || s.rows * f->inputs <= OWN_NUMBERS;
  s.row_bytes = words_bytes(f, s.words);
  s.words_bytes = aligned(tiled_rows(s.rows) * s.row_bytes);
  s.numbers_bytes = aligned(padded_inputs(f) * sizeof(float));
  return s;
}

/* Bytes of scratch for so many members and rows, or for fewer rows, whose members may want words of their own. */
int64_t octavo_product_scratch(const Form *f, int64_t rows, int bf16, int parts, int members) {
  Shape s = shape_of(f, rows, bf16, parts);
  int64_t few = OWN_NUMBERS / f->inputs > s.parts ? OWN_NUMBERS / f->inputs : s.parts;
  int64_t own = members * aligned(tiled_rows(few < s.rows ? few : s.rows) * s.row_bytes);
  return members * s.numbers_bytes + (own > s.words_bytes ? own : s.words_bytes);
}

static const Sized *kernels_of(const Form *f, int words) {
#if HAS_BFLOAT16_DOT
  if (words == BFLOAT16_WORDS) return octavo_bfloat16;
#endif
  switch (f->kind) {
    case CODES4: return octavo_codes4;
    case CODES5: return octavo_codes5;
    case CODES6: return octavo_codes6;
    case CODES8: return f->unit > 1 ? octavo_codes8_whole : octavo_codes8;
    case FLOAT8: return octavo_float8;
    case FLOAT32: return octavo_float32;
    default: return octavo_bfloat16_wide;
  }
}

/* Numbers k.. of what x (or a norm's weight) points to. */
INLINE vf load_at(const void *x, int bf16, int64_t k) { return load_as((const char *)x + k * (bf16 ? 2 : 4), bf16); }

INLINE float number_of(const void *x, int bf16, int64_t k) {
  if (!bf16) return ((const float *)x)[k];
  uint32_t bits = (uint32_t)((const uint16_t *)x)[k] << 16;
  float number;
  memcpy(&number, &bits, 4);
  return number;
}

/* A row of x in float32, its columns in order. */
static void fetch_row(const ProductCall *c, int64_t row, float *to) {
  int64_t n = c->form->inputs, at = row * n, k = 0;
  if (!c->order)
    for (; k + LANES <= n; k += LANES) store_f32(to + k, load_at(c->x, c->bf16, at + k));
  for (; k < n; k++) to[k] = number_of(c->x, c->bf16, at + (c->order ? c->order[k] : k));
}

/* x += residual, then x times its norm's weight and divided by the root of its mean square. Inputs are a multiple of
   16. keeps: whether this member writes the sum down. */
static void normalize_row(const ProductCall *c, int64_t row, int keeps, float *x) {
  int64_t n = c->form->inputs;
  vf squares = {0};
  for (int64_t k = 0; k < n; k += LANES) {
    vf v = load_f32(x + k);
    if (c->residual) v += load_f32(c->residual + row * n + k);
    if (keeps) store_f32(c->total + row * n + k, v);
    store_f32(x + k, v);
    squares += v * v;
  }
  float factor = 1 / sqrtf(sum(squares) / n + c->eps);
  for (int64_t k = 0; k < n; k += LANES) store_f32(x + k, load_f32(x + k) * factor * load_at(c->norm, c->bf16, k));
}

/* The words of one of the caller's rows, in their tile. numbers: scratch. */
static void make_words(const ProductCall *c, const Shape *s, int64_t row, int keeps, float *numbers, uint8_t *words) {
  const Form *f = c->form;
  int64_t first = row * s->parts, tile = first / MOST_ROWS * MOST_ROWS;
  int M = tile_size(s->rows - tile), r = first - tile;
  fetch_row(c, row, numbers);
  if (c->norm) normalize_row(c, row, keeps, numbers);
  memset(numbers + f->inputs, 0, (padded_inputs(f) - f->inputs) * sizeof(float));
  words += tile * s->row_bytes;
  if (s->words == INT8_WORDS) round_row(f, numbers, s->parts, M, r, words);
  else float_row(f, numbers, s->words, M, r, words);
}

/* All words, when this returns: this member's own, or everybody's. */
static const uint8_t *all_words(const ProductCall *c, const Shape *s, const Member *me) {
  float *numbers = (float *)(c->scratch + me->index * s->numbers_bytes);
  uint8_t *words = c->scratch + me->size * s->numbers_bytes + (s->own ? me->index : 0) * s->words_bytes;
  int64_t first = 0, last = c->rows;
  if (!s->own) team_part(me, c->rows, &first, &last);
  for (int64_t row = first; row < last; row++) make_words(c, s, row, !s->own || me->index == 0, numbers, words);
  if (!s->own) team_wait(me);
  return words;
}

/* A tile of rows times consecutive panels. */
INLINE void run_tile(const Form *f, Kernel *run, const uint8_t *panels, int64_t count, const uint8_t *words,
                     float (*y)[MOST_ROWS * LANES]) {
  int64_t size = panel_bytes(f);
  for (int64_t i = 0; i < count; i++) run(f, panels + i * size, words, y[i]);
}

/* `count` panels from `panel` on, or if gated these and their counterparts, with rows from..to-1 of the words. */
static void run_panels(const ProductCall *c, const Shape *s, const Sized *kernels, const uint8_t *words, int64_t from,
                       int64_t to, int64_t panel, int64_t count) {
  float y[RUN][MOST_ROWS * LANES] __attribute__((aligned(64))), up[RUN][MOST_ROWS * LANES] __attribute__((aligned(64)));
  const Form *f = c->form;
  const uint8_t *panels = c->panels + panel * panel_bytes(f), *others = panels + num_panels(f) / 2 * panel_bytes(f);
  Output out = {c->out, c->bias, c->out_stride, c->bf16, c->out_bf16, s->parts};
  for (int64_t first = from; first < to; first += MOST_ROWS) {
    int64_t rows = smaller(to - first, MOST_ROWS);
    const Sized *kernel = kernels;
    while (kernel->rows < rows) kernel++;
    const uint8_t *x = words + first * s->row_bytes;
    run_tile(f, kernel->run, panels, count, x, y);
    if (c->gated) run_tile(f, kernel->run, others, count, x, up);
    for (int64_t i = 0; i < count; i++)
      write_out(y[i], c->gated ? up[i] : NULL, first / s->parts, rows / s->parts, (panel + i) * LANES, f->outputs,
                &out);
  }
}

void octavo_product(const ProductCall *c, const Member *me) {
  if (!c->rows) return;
  const Form *f = c->form;
  Shape s = shape_of(f, c->rows, c->bf16, c->parts);
  const Sized *kernels = kernels_of(f, s.words);
  const uint8_t *words = all_words(c, &s, me);
  int64_t panels = num_panels(f) / (c->gated ? 2 : 1), run = s.rows <= MOST_ROWS ? RUN : 1, first, last;
  int64_t block = CACHED_BYTES / s.row_bytes / MOST_ROWS * MOST_ROWS + MOST_ROWS;
  team_part(me, panels, &first, &last);
  for (int64_t from = 0; from < s.rows; from += block)
    for (int64_t panel = first; panel < last; panel += run)
      run_panels(c, &s, kernels, words, from, smaller(from + block, s.rows), panel, smaller(run, last - panel));
}
