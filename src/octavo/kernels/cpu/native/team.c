/* The team of team.h. The caller of octavo_run is a member; the others sleep, or spin, between two lists. */
#define _GNU_SOURCE
#include "team.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#define SPINS 2000                /* looks at a word that is about to change: some tens of microseconds */
#define YIELD_NANOSECONDS 1000000 /* then the core is offered to others for so long before the thread sleeps */
#define LINE _Alignas(64)         /* words that different threads write to do not share a cache line */

struct Team {
  int size;
  const Step *steps;
  int64_t count;
  pthread_t *threads;
  pthread_mutex_t running; /* one list at a time */
  pthread_mutex_t bed;
  pthread_cond_t morning;
  atomic_int sleepers, ending;
  LINE atomic_uint lists;   /* begun */
  LINE atomic_uint phase;   /* barriers passed */
  LINE atomic_int arrived;  /* at the barrier */
  LINE atomic_llong taken;  /* items of the task */
};

typedef struct {
  Team *team;
  int index;
} Worker;

static inline void pause_core(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("isb");
#endif
}

static int64_t nanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void sleep_until_changed(Team *t, atomic_uint *word, unsigned old) {
  pthread_mutex_lock(&t->bed);
  atomic_fetch_add(&t->sleepers, 1); /* before the last look: who changes the word then sees a sleeper */
  while (atomic_load(word) == old) pthread_cond_wait(&t->morning, &t->bed);
  atomic_fetch_sub(&t->sleepers, 1);
  pthread_mutex_unlock(&t->bed);
}

static void await_change(Team *t, atomic_uint *word, unsigned old) {
  for (int i = 0; i < SPINS; i++) {
    if (atomic_load_explicit(word, memory_order_acquire) != old) return;
    pause_core();
  }
  int64_t end = nanoseconds() + YIELD_NANOSECONDS;
  do {
    if (atomic_load_explicit(word, memory_order_acquire) != old) return;
    sched_yield();
  } while (nanoseconds() < end);
  sleep_until_changed(t, word, old);
}

static void change(Team *t, atomic_uint *word) {
  atomic_fetch_add(word, 1);
  if (!atomic_load(&t->sleepers)) return;
  pthread_mutex_lock(&t->bed);
  pthread_cond_broadcast(&t->morning);
  pthread_mutex_unlock(&t->bed);
}

void team_wait(const Member *me) {
  Team *t = me->team;
  unsigned phase = atomic_load_explicit(&t->phase, memory_order_relaxed); /* cannot change before I arrive */
  if (atomic_fetch_add(&t->arrived, 1) + 1 < me->size) {
    await_change(t, &t->phase, phase);
    return;
  }
  atomic_store_explicit(&t->arrived, 0, memory_order_relaxed);
  atomic_store_explicit(&t->taken, 0, memory_order_relaxed);
  change(t, &t->phase);
}

int64_t team_take(const Member *me, int64_t count) {
  return atomic_fetch_add_explicit(&me->team->taken, count, memory_order_relaxed);
}

static void run_list(Team *t, int index) {
  Member me = {t, index, t->size};
  const Step *step = t->steps, *end = step + t->count; /* after the last barrier they may be the next list's */
  for (; step < end; step++) {
    step->task(step->call, &me);
    team_wait(&me);
  }
}

static void *work(void *argument) {
  Worker own = *(Worker *)argument;
  free(argument);
  for (unsigned seen = 0;; seen++) {
    await_change(own.team, &own.team->lists, seen);
    if (atomic_load(&own.team->ending)) return NULL;
    run_list(own.team, own.index);
  }
}

static int start(Team *t, int index) {
  Worker *own = malloc(sizeof *own);
  if (!own) return -1;
  *own = (Worker){t, index};
  int error = pthread_create(&t->threads[index], NULL, work, own);
  if (error) free(own);
  return error;
}

static void keep_on(pthread_t thread, const int32_t *cpus, int num_cpus) {
#ifdef __linux__
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  for (int i = 0; i < num_cpus; i++)
    if (cpus[i] < CPU_SETSIZE) CPU_SET(cpus[i], &allowed);
  if (CPU_COUNT(&allowed)) pthread_setaffinity_np(thread, sizeof allowed, &allowed);
#endif
}

void octavo_team_free(Team *t) {
  atomic_store(&t->ending, 1);
  change(t, &t->lists);
  for (int i = 1; i < t->size; i++) pthread_join(t->threads[i], NULL);
  free(t->threads);
  free(t);
}

/* A team of `size` threads, the caller's included; of as many as the system allows, if these are fewer. The others stay
   on `cpus`, where that can be had: the system may move them about there, away from one that is busy. */
Team *octavo_team_new(int size, const int32_t *cpus, int num_cpus) {
  Team *t = aligned_alloc(64, (sizeof *t + 63) / 64 * 64);
  if (!t) return NULL;
  *t = (Team){.size = size, .threads = calloc(size, sizeof(pthread_t))};
  pthread_mutex_init(&t->running, NULL);
  pthread_mutex_init(&t->bed, NULL);
  pthread_cond_init(&t->morning, NULL);
  if (!t->threads) t->size = 1;
  for (int i = 1; i < t->size; i++) {
    if (start(t, i)) t->size = i; /* nobody reads it before the first list */
    else keep_on(t->threads[i], cpus, num_cpus);
  }
  return t;
}

int octavo_team_size(const Team *t) { return t->size; }

/* Run the steps one after the other; returns when all members have run the last. */
void octavo_run(Team *t, const Step *steps, int64_t count) {
  pthread_mutex_lock(&t->running);
  t->steps = steps, t->count = count;
  change(t, &t->lists);
  run_list(t, 0);
  pthread_mutex_unlock(&t->running);
}

void octavo_run_one(Team *t, Task *task, const void *call) {
  Step step = {task, call};
  octavo_run(t, &step, 1);
}
