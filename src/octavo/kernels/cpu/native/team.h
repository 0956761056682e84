/* A team of threads that run tasks together.

   A decode step of a small model is some 150 operations of a few microseconds. To start and end a parallel region for
   each would cost as much as they do; so the threads of a team stay together for a whole list of tasks, and meet at a
   barrier between one and the next. Who waits spins for a moment, then offers its core to others, then sleeps: on a busy
   machine a thread that only spins would hold the core that the one it waits for needs. */
#ifndef OCTAVO_TEAM_H
#define OCTAVO_TEAM_H

#include <stdint.h>

typedef struct Team Team;

typedef struct {
  Team *team;
  int32_t index, size; /* which of how many */
} Member;

/* Every member runs it. call: the task's own struct of arguments; what it points to must stay until the task has run. */
typedef void Task(const void *call, const Member *me);

typedef struct {
  Task *task;
  const void *call;
} Step;

/* Until all members are here; what each wrote before, all see after. */
void team_wait(const Member *me);

/* The first of the next `count` items that nobody has. It begins with 0 in each task and after each team_wait. */
int64_t team_take(const Member *me, int64_t count);

/* This member's share of n items: first..last-1, the same in each call. */
static inline void team_part(const Member *me, int64_t n, int64_t *first, int64_t *last) {
  *first = n * me->index / me->size;
  *last = n * (me->index + 1) / me->size;
}

#endif
