/* Attention over the paged cache: what is asked, and what changes from step to step. A recorded step finds that where it
   was, with new contents. */
#ifndef OCTAVO_ATTENTION_H
#define OCTAVO_ATTENTION_H

#include <stdint.h>

#define MAX_HEAD_DIM 256
#define MAX_SHARE 32

/* One query token, one key/value head, the context's positions begin..end-1. */
typedef struct {
  int32_t token, row, head, begin, end;
} Job;

/* Consecutive queries of a row, `token` and `position` are the first one's; one key/value head. */
typedef struct {
  int32_t token, row, head, position, count;
} Stretch;

typedef struct {
  const int64_t *positions, *slots; /* of each token: where it stands, and its place in the cache */
  const int64_t *tables;            /* [rows][table_width]: blocks of each row's context */
  int64_t table_width;
  const Job *jobs; /* [num_groups][num_parts] */
  int32_t num_groups, num_parts;
  const Stretch *stretches;
  int32_t num_stretches, window; /* how many positions a query sees, itself included; at most 2^30 */
} AttentionWork;

typedef struct {
  const void *keys, *values; /* [num_blocks, num_kv_heads, block_size, head_dim] */
  const void *queries;       /* of each token [num_kv_heads * share, head_dim] */
  const AttentionWork *work;
  float *partials; /* [jobs][share * (head_dim + 2)], if contexts are cut: scratch */
  void *out;       /* [tokens, num_kv_heads * share * head_dim] */
  int64_t query_stride; /* elements from one token's queries to the next one's */
  int32_t num_kv_heads, share, head_dim, block_size;
  float scale, soft_cap; /* soft_cap 0: none */
} AttentionCall;

/* Sums of weighted values: a query head's row of them, in whole steps of columns. */
#define COLUMNS 64
#define ROW(head_dim) (((head_dim) + COLUMNS - 1) / COLUMNS * COLUMNS)

/* The row of the cache, seen as [num_blocks * num_kv_heads * block_size][head_dim], of a position. */
static inline int64_t cache_row(const AttentionCall *c, const int64_t *table, int head, int position) {
  int size = c->block_size;
  return (table[position / size] * c->num_kv_heads + head) * size + position % size;
}

#endif
