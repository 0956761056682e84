/* What changes for attention from step to step. A recorded step finds it where it was, with new contents. */
#ifndef OCTAVO_ATTENTION_H
#define OCTAVO_ATTENTION_H

#include <stdint.h>

/* One query token, one key/value head, the context's positions begin..end-1. */
typedef struct {
  int32_t token, row, head, begin, end;
} Job;

typedef struct {
  const int64_t *positions, *slots; /* of each token: where it stands, and its place in the cache */
  const int64_t *tables;            /* [rows][table_width]: blocks of each row's context */
  int64_t table_width;
  const Job *jobs; /* [num_groups][num_parts] */
  int32_t num_groups, num_parts;
} AttentionWork;

#endif
