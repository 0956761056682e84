/* y = x times the transpose of a small weight, in the layout of panels.h.

   A tile of rows of x, which fits the registers with its sums, is multiplied with a panel at a time. Codes become
   numbers in registers and are used at once, so that each byte of the weight is read once. Where more tiles follow, the
   first also writes the numbers out, to memory that stays in the core's cache, and the others read them there.

   x is laid out tile by tile, and in a tile pair of inputs by pair, the rows' pairs beside each other. */
#include "output.h"
#include "panels.h"
#include "team.h"

#ifdef __AVX512F__
#define MOST_ROWS 12 /* of a tile */
#define MOST_SUMS 12
#else /* half as many registers of half the size */
#define MOST_ROWS 4
#define MOST_SUMS 8
#endif

/* What a product reads. Rows are the kernels': `parts` for each of the caller's, three bfloat16 rows that add up to a
   float32 one, or one row. */
typedef struct {
  const X *x;        /* tiles of [padded inputs / 2][rows of the tile][2] */
  const float *sums; /* of x over each group, if the form has floors: tiles of [groups][rows of the tile] */
  int64_t inputs, num_groups;
  int rows, parts;
} Input;

/* y [M][16] = a tile of M rows times one panel. wide: the panel's numbers, read if bits is WIDE, written for M of
   MOST_ROWS. */
INLINE void multiply(int bits, int M, const Form *f, const Table *table, const uint8_t *at, uint8_t *wide, const X *x,
                     const float *sums, float *y) {
  const int chains = M <= 2 ? 4 : M <= 4 ? 2 : 1; /* independent sums, to hide the latency of an addition */
  vf total[MOST_ROWS], sum[MOST_SUMS];
  UNROLL for (int r = 0; r < M; r++) total[r] = (vf){0};
  for (int h = 0; h < f->headers; h++) {
    vf header = load_header(at, f->half), header_floor = {0};
    if (f->floors) header_floor = load_header(at + header_bytes(f) / 2, f->half);
    at += header_bytes(f);
    for (int g = 0; g < f->groups; g++) {
      vf scale = header, floor = header_floor;
      if (f->sub) {
        scale *= load_sub(at);
        if (f->floors) floor *= load_sub(at + LANES);
        at += sub_bytes(f);
      }
      UNROLL for (int i = 0; i < M * chains; i++) sum[i] = (vf){0};
      for (int tile = 0; tile < f->tiles; tile++) {
        UNROLL for (int p = 0; p < TILE / 2; p++) {
          Pair w = decode(bits, bits == WIDE ? wide : at, p, table);
          if (M == MOST_ROWS && bits != WIDE) store_pair(wide + p * PAIR_BYTES, w);
          UNROLL for (int r = 0; r < M; r++) {
            int i = r * chains + p % chains;
            sum[i] = step(sum[i], w, x + 2 * (p * M + r));
          }
        }
        x += TILE * M, at += tile_bytes(f->bits), wide += TILE / 2 * PAIR_BYTES;
      }
      UNROLL for (int r = 0; r < M; r++) {
        vf all = sum[r * chains];
        if (chains > 1) all += sum[r * chains + 1];
        if (chains > 2) all += sum[r * chains + 2] + sum[r * chains + 3];
        total[r] += all * scale;
        if (f->floors) total[r] += floor * sums[r];
      }
      if (f->floors) sums += M;
    }
  }
  UNROLL for (int r = 0; r < M; r++) store_f32(y + r * LANES, total[r]);
}

typedef void Kernel(const Form *, const Table *, const uint8_t *, uint8_t *, const X *, const float *, float *);

#define KERNEL(bits, M)                                                                                        \
  static void multiply_##bits##_##M(const Form *f, const Table *t, const uint8_t *at, uint8_t *wide, const X *x, \
                                    const float *sums, float *y) {                                             \
    multiply(bits, M, f, t, at, wide, x, sums, y);                                                             \
  }
#ifdef __AVX512F__
#define EACH_SIZE(DO, bits) DO(bits, 1) DO(bits, 2) DO(bits, 4) DO(bits, 6) DO(bits, 8) DO(bits, 12)
#else
#define EACH_SIZE(DO, bits) DO(bits, 1) DO(bits, 2) DO(bits, 4)
#endif
EACH_SIZE(KERNEL, 4)
EACH_SIZE(KERNEL, 5)
EACH_SIZE(KERNEL, 6)
EACH_SIZE(KERNEL, 8)
#if DOT
EACH_SIZE(KERNEL, 16)
#define NAME(bits, M) {M, multiply_##bits##_##M},
#define WIDE_SIZES EACH_SIZE(NAME, 16)
#else
EACH_SIZE(KERNEL, 32)
#define NAME(bits, M) {M, multiply_##bits##_##M},
#define WIDE_SIZES EACH_SIZE(NAME, 32)
#endif

typedef struct {
  int rows;
  Kernel *run;
} Sized;

static const Sized kernels[][6] = {
    {EACH_SIZE(NAME, 4)}, {EACH_SIZE(NAME, 5)}, {EACH_SIZE(NAME, 6)}, {EACH_SIZE(NAME, 8)}, {WIDE_SIZES}};

/* The kernel for so many rows or, of a last tile, some more. */
static Sized kernel_for(int bits, int rows) {
  const Sized *all = kernels[bits == WIDE ? 4 : bits == 8 ? 3 : bits - 4];
  while (all->rows < rows && all->rows < MOST_ROWS) all++;
  return *all;
}

/* Rows of all tiles: the last may have more than are left, which are zeros. */
static int64_t tile_rows(int64_t rows) {
  int64_t full = rows / MOST_ROWS * MOST_ROWS;
  return rows == full ? full : full + kernel_for(4, rows - full).rows;
}

static void run_panel(const Form *f, const Table *t, const uint8_t *at, int64_t panel, const Input *in, uint8_t *wide,
                      const Output *out) {
  float y[MOST_ROWS * LANES] __attribute__((aligned(64)));
  for (int first = 0; first < in->rows; first += MOST_ROWS) {
    int left = in->rows - first, rows = left < MOST_ROWS ? left : MOST_ROWS;
    const X *x = in->x + first * in->inputs;
    kernel_for(first ? WIDE : f->bits, rows).run(f, t, at, wide, x, in->sums + first * in->num_groups, y);
    write_out(y, first / in->parts, rows / in->parts, in->parts, panel, f->outputs, out);
  }
}

/* What a caller's x must become. */
typedef struct {
  const void *x;        /* [rows][inputs], bfloat16 or float32 */
  const int32_t *order; /* of its columns, or null */
  int64_t rows, inputs;
  int bf16;
} Source;

/* Number k of a row as `parts` numbers that the kernels multiply: bfloat16s that add up to it, or itself. */
INLINE void split(float value, int parts, X *to, int64_t stride) {
#if DOT
  for (int i = 0; i < parts; i++) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (parts > 1 && (bits & 0x7f800000) == 0x7f800000) bits |= (bits & 0xffff) ? 0x400000 : 0; /* a NaN stays one */
    bits &= 0xffff0000;
    float taken;
    memcpy(&taken, &bits, 4);
    to[i * stride] = bits >> 16;
    value = taken - taken == 0 ? value - taken : 0; /* nothing is left of an infinity */
  }
#else
  to[0] = value;
#endif
}

/* Inputs k..k+n of a row of the caller's as `parts` of the kernels', `stride` apart. */
static void fetch(const Source *s, int parts, int64_t row, int64_t k, int64_t n, X *to, int64_t stride) {
  const float *wide = (const float *)s->x + row * s->inputs;
  const uint16_t *narrow = (const uint16_t *)s->x + row * s->inputs;
  for (int64_t i = 0; i < n; i++) {
    int64_t from = k + i >= s->inputs ? -1 : s->order ? s->order[k + i] : k + i;
    uint32_t bits = s->bf16 && from >= 0 ? (uint32_t)narrow[from] << 16 : 0;
    float value;
    memcpy(&value, &bits, 4);
    split(s->bf16 || from < 0 ? value : wide[from], parts, to + i, stride);
  }
}

/* sums, `apart` numbers from each other, of inputs 0..n of x over each group. */
static void sum_groups(const X *x, const Form *f, int64_t n, float *sums, int apart) {
  int64_t size = f->tiles * TILE;
  for (int64_t g = 0; g * size < n; g++) {
    vf sum_of = {0};
    for (int64_t k = g * size; k < (g + 1) * size; k += LANES)
#if DOT
      sum_of += load_bf16(x + k);
#else
      sum_of += load_f32(x + k);
#endif
    sums[g * apart] = sum(sum_of);
  }
}

/* Where things are in a product's scratch memory: x's tiles, sums, and of each thread a piece of a row and then a
   panel's numbers. */
typedef struct {
  int64_t sums, threads, piece, each, all;
} Scratch;

static int64_t aligned(int64_t bytes) { return (bytes + 63) & ~(int64_t)63; }

/* Whether x can be read where it is. */
static int is_ready(const Source *s, const Form *f) {
  return !s->order && s->inputs == padded_inputs(f) && s->bf16 == DOT;
}

static int parts_of(const Source *s) { return DOT && !s->bf16 ? 3 : 1; }

/* Inputs that a thread lays out at a time: whole groups, where these must be summed. */
static int64_t chunk_size(const Form *f) {
  int64_t size = f->floors ? f->tiles * TILE : TILE;
  return size * (size < 128 ? 128 / size : 1);
}

static Scratch scratch_for(const Form *f, const Source *s, int threads) {
  int64_t rows = s->rows * parts_of(s), row_bytes = padded_inputs(f) * sizeof(X);
  Scratch c = {0};
  c.sums = rows == 1 && is_ready(s, f) ? 0 : aligned(tile_rows(rows) * row_bytes);
  c.threads = c.sums + (f->floors ? aligned(tile_rows(rows) * f->headers * f->groups * sizeof(float)) : 0);
  c.piece = is_ready(s, f) ? 0 : aligned(parts_of(s) * chunk_size(f) * sizeof(X));
  c.each = c.piece + (tile_rows(rows) < MOST_ROWS ? 0 : padded_inputs(f) / 2 * PAIR_BYTES);
  c.all = c.threads + threads * c.each;
  return c;
}

/* Lay out inputs k.. of the tile that begins at row `first`, and sum their groups. piece: scratch.
   Threads share the inputs, not the rows: rows are neighbours in memory, which caches would pass to and fro. */
static void lay_out(const Source *s, const Form *f, int64_t first, int64_t k, X *piece, X *x, float *sums) {
  int parts = parts_of(s), ready = is_ready(s, f);
  int64_t rows = s->rows * parts, inputs = padded_inputs(f), chunk = chunk_size(f), group = f->tiles * TILE;
  int64_t n = inputs - k < chunk ? inputs - k : chunk, M = kernel_for(4, rows - first).rows;
  X *tile = x + first * inputs + k * M;
  float *own_sums = sums + first * f->headers * f->groups + k / group * M;
  for (int64_t r = 0; r < M; r++) {
    int64_t row = first + r;
    if (row >= rows) { /* nobody's */
      for (int64_t i = 0; i < n; i += 2) memset(tile + i * M + 2 * r, 0, 2 * sizeof(X));
      for (int64_t g = 0; f->floors && g * group < n; g++) own_sums[g * M + r] = 0;
      continue;
    }
    const X *from = (const X *)s->x + row * inputs + k;
    if (!ready) {
      if (row % parts == 0) fetch(s, parts, row / parts, k, n, piece, chunk);
      from = piece + row % parts * chunk;
    }
    if (f->floors) sum_groups(from, f, n, own_sums + r, M);
    for (int64_t i = 0; i < n; i += 2) memcpy(tile + i * M + 2 * r, from + i, 2 * sizeof(X));
  }
}

/* How much scratch memory a product needs, aligned to 64 bytes. */
int64_t octavo_product_scratch(const Form *f, int64_t rows, int bf16, int ordered, int threads) {
  Source s = {0, (const int32_t *)(intptr_t)ordered, rows, f->inputs, bf16};
  return scratch_for(f, &s, threads).all;
}

/* out [rows][stride] = x [rows][inputs] times panels, + bias. */
typedef struct {
  const Form *form;
  const uint8_t *panels;
  const void *x;
  const int32_t *order; /* of the columns of x, or null */
  const void *bias;     /* or null */
  void *out;
  uint8_t *scratch; /* octavo_product_scratch for as many threads as there are members, 64-byte aligned */
  int64_t rows, out_stride;
  int32_t bf16; /* x, bias and out; else float32 */
} ProductCall;

void octavo_product(const ProductCall *call, const Member *me) {
  if (!call->rows) return;
  Form f = *call->form;
  Source s = {call->x, call->order, call->rows, f.inputs, call->bf16};
  Output to = {call->out, call->bias, call->out_stride, call->bf16};
  Scratch places = scratch_for(&f, &s, me->size);
  X *tiles = (X *)call->scratch;
  float *sums = (float *)(call->scratch + places.sums);
  uint8_t *mine = call->scratch + places.threads + me->index * places.each;
  int parts = parts_of(&s), moves = places.sums != 0;
  Input in = {moves ? tiles : s.x, sums, padded_inputs(&f), (int64_t)f.headers * f.groups, s.rows * parts, parts};
  int64_t size = panel_bytes(&f), chunk = chunk_size(&f);
  int64_t chunks = (in.inputs + chunk - 1) / chunk, num_tiles = (in.rows + MOST_ROWS - 1) / MOST_ROWS, first, last;
  Table table = table_of(&f);
  team_part(me, moves ? num_tiles * chunks : 0, &first, &last);
  for (int64_t i = first; i < last; i++)
    lay_out(&s, &f, i / chunks * MOST_ROWS, i % chunks * chunk, (X *)mine, tiles, sums);
  if (!moves && f.floors && me->index == 0) sum_groups(in.x, &f, in.inputs, sums, 1);
  if (moves || f.floors) team_wait(me);
  team_part(me, num_panels(&f), &first, &last);
  for (int64_t panel = first; panel < last; panel++)
    run_panel(&f, &table, call->panels + panel * size, panel, &in, mine + places.piece, &to);
}
