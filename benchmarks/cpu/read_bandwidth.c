/* How many bytes a second a processor reads from memory: read_bandwidth THREADS MEBIBYTES ROUNDS

   Each thread adds up a stretch of its own, which is larger than the caches together, with independent sums so that
   no addition waits for another. The best round is printed in GB/s, with huge pages (if the system gives them) and
   with 4K pages. Threads meet before a round; its time is from the first one's start to the last one's end. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef uint64_t Lane __attribute__((vector_size(64)));

typedef struct {
  pthread_t thread;
  pthread_barrier_t *barrier;
  const Lane *data;
  size_t count; /* of lanes */
  int rounds;
  double *starts, *ends; /* [rounds] seconds */
  uint64_t sum;
} Reader;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t add_up(const Lane *data, size_t count) {
  Lane a = {0}, b = {0}, c = {0}, d = {0};
  for (size_t i = 0; i + 4 <= count; i += 4) {
    a += data[i];
    b += data[i + 1];
    c += data[i + 2];
    d += data[i + 3];
  }
  a += b + c + d;
  return a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
}

static void *run(void *argument) {
  Reader *me = argument;
  for (int i = 0; i < me->rounds; i++) {
    pthread_barrier_wait(me->barrier);
    me->starts[i] = now();
    me->sum += add_up(me->data, me->count);
    me->ends[i] = now();
  }
  return NULL;
}

static double best_round(const Reader *readers, int threads, int rounds, double bytes) {
  double best = 0;
  for (int i = 0; i < rounds; i++) {
    double start = readers[0].starts[i], end = readers[0].ends[i];
    for (int t = 1; t < threads; t++) {
      if (readers[t].starts[i] < start) start = readers[t].starts[i];
      if (readers[t].ends[i] > end) end = readers[t].ends[i];
    }
    if (bytes / (end - start) > best) best = bytes / (end - start);
  }
  return best / 1e9;
}

static double measure(int threads, size_t size, int rounds, int advice) {
  char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) exit(1);
  madvise(memory, size, advice);
  memset(memory, 1, size);
  pthread_barrier_t barrier;
  pthread_barrier_init(&barrier, NULL, (unsigned)threads);
  Reader *readers = calloc((size_t)threads, sizeof *readers);
  size_t share = size / (size_t)threads / sizeof(Lane);
  for (int t = 0; t < threads; t++) {
    readers[t] = (Reader){.barrier = &barrier, .data = (const Lane *)memory + (size_t)t * share, .count = share, .rounds = rounds};
    readers[t].starts = calloc((size_t)rounds, sizeof(double));
    readers[t].ends = calloc((size_t)rounds, sizeof(double));
    pthread_create(&readers[t].thread, NULL, run, &readers[t]);
  }
  uint64_t sum = 0;
  for (int t = 0; t < threads; t++) {
    pthread_join(readers[t].thread, NULL);
    sum += readers[t].sum;
  }
  double rate = best_round(readers, threads, rounds, (double)(share * (size_t)threads * sizeof(Lane)));
  munmap(memory, size);
  return sum ? rate : 0; /* the sums are used, so that reading cannot be left out */
}

int main(int count, char **words) {
  if (count != 4) return 2;
  int threads = atoi(words[1]), rounds = atoi(words[3]);
  size_t size = (size_t)atol(words[2]) << 20;
  double huge = measure(threads, size, rounds, MADV_HUGEPAGE);
  double small = measure(threads, size, rounds, MADV_NOHUGEPAGE);
  printf("{\"huge\": %.1f, \"4K\": %.1f}\n", huge, small);
  return 0;
}
