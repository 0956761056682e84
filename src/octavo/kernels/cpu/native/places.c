/* places.h for Linux. Elsewhere the system alone says who runs where. */
#define _GNU_SOURCE
#include "places.h"

#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define UNKNOWN (-1)
#define PATIENCE 300000 /* nanoseconds; threads that wake each other all the time leave a core idle for less */

typedef struct {
  _Alignas(64) atomic_int cpu; /* where it was seen last; each member writes its own */
  int64_t idle_since;          /* when it first saw that it shares a processor and another idles; 0: it does not */
} Place;

struct Places {
  int size, num_cpus;
  int32_t *cpus;
  int loadavg; /* a file that says how many threads of the machine can run; -1: there is none */
  Place *of;
};

#ifdef __linux__

static int cpu_of(const Places *p, int member) {
  return atomic_load_explicit(&p->of[member].cpu, memory_order_relaxed);
}

/* Whether another member than this one was last seen there. */
static int has_another(const Places *p, int member, int cpu) {
  for (int i = 0; i < p->size; i++)
    if (i != member && cpu_of(p, i) == cpu) return 1;
  return 0;
}

/* One of ours where no member is, and not `here`. */
static int free_cpu(const Places *p, int member, int here) {
  for (int c = 0; c < p->num_cpus; c++)
    if (p->cpus[c] != here && !has_another(p, member, p->cpus[c])) return p->cpus[c];
  return UNKNOWN;
}

/* /proc/loadavg is "0.10 0.20 0.30 RUNNABLE/ALL PID". */
static long parse_runnable(const char *loadavg) {
  for (int field = 0; field < 3; field++) {
    loadavg = strchr(loadavg, ' ');
    if (!loadavg++) return UNKNOWN;
  }
  char *end;
  long count = strtol(loadavg, &end, 10);
  return end != loadavg && *end == '/' ? count : UNKNOWN;
}

/* To be asked when two threads share one of n processors: if no more than n can run, another one has none. */
static int some_cpu_idles(const Places *p) {
  char text[64];
  ssize_t n = p->loadavg < 0 ? -1 : pread(p->loadavg, text, sizeof text - 1, 0);
  if (n <= 0) return 0;
  text[n] = 0;
  long runnable = parse_runnable(text);
  return runnable != UNKNOWN && runnable <= sysconf(_SC_NPROCESSORS_ONLN);
}

/* Else a processor that idles may be none of ours. */
static int may_use_all_cpus(void) {
  cpu_set_t mine;
  return !sched_getaffinity(0, sizeof mine, &mine) && CPU_COUNT(&mine) == sysconf(_SC_NPROCESSORS_ONLN);
}

/* This thread runs on `cpu` next; where it may run later stays as it was. */
static int move_to(int cpu) {
  cpu_set_t was, there;
  if (cpu >= CPU_SETSIZE || sched_getaffinity(0, sizeof was, &was) || !CPU_ISSET(cpu, &was)) return -1;
  CPU_ZERO(&there);
  CPU_SET(cpu, &there);
  if (sched_setaffinity(0, sizeof there, &there)) return -1;
  return sched_setaffinity(0, sizeof was, &was);
}

void places_note(Places *p, int member) {
  atomic_store_explicit(&p->of[member].cpu, sched_getcpu(), memory_order_relaxed);
}

/* Whether this member has shared a processor while another idled, whenever it looked, for long enough to move. */
static int has_reason(Places *p, int member, int here, int64_t now) {
  int64_t *since = &p->of[member].idle_since;
  if (!has_another(p, member, here) || !some_cpu_idles(p)) return *since = 0;
  if (!*since) *since = now;
  return now - *since >= PATIENCE;
}

void places_come_apart(Places *p, int member, int64_t now) {
  int here = sched_getcpu();
  if (!has_reason(p, member, here, now)) return;
  p->of[member].idle_since = 0;
  int cpu = free_cpu(p, member, here);
  if (cpu != UNKNOWN && !move_to(cpu)) places_note(p, member);
}

#else

static int may_use_all_cpus(void) { return 0; }
void places_note(Places *p, int member) {}
void places_come_apart(Places *p, int member, int64_t now) {}

#endif

void places_free(Places *p) {
  if (!p) return;
  if (p->loadavg >= 0) close(p->loadavg);
  free(p->of);
  free(p->cpus);
  free(p);
}

Places *places_new(int size, const int32_t *cpus, int num_cpus) {
  Places *p = calloc(1, sizeof *p);
  if (!p) return NULL;
  p->loadavg = may_use_all_cpus() ? open("/proc/loadavg", O_RDONLY | O_CLOEXEC) : -1;
  p->size = size, p->num_cpus = num_cpus;
  p->of = aligned_alloc(64, size * sizeof(Place));
  p->cpus = malloc(num_cpus * sizeof *cpus);
  if (!p->of || !p->cpus) {
    places_free(p);
    return NULL;
  }
  for (int i = 0; i < size; i++) p->of[i] = (Place){UNKNOWN, 0};
  memcpy(p->cpus, cpus, num_cpus * sizeof *cpus);
  return p;
}
