/* Where the members of a team run, and how two of them that take turns on one processor come apart.

   Linux lets them: who waits for another at a barrier looks busy, so while a third thread wants a core for a moment, two
   members end up on one. When the third has gone they stay there for some milliseconds, which is a whole decode step,
   and the other core idles: each has run so lately that the balancer takes its cache for warm, and a thread that wakes
   up is not given the idle core as long as the cores have been busy on average (SIS_UTIL). So a member who has waited
   longer than for work that is under way elsewhere looks itself, and moves. Only a core that stays idle is worth it:
   beside a third thread it would get half of one, and keep all others waiting. */
#ifndef OCTAVO_PLACES_H
#define OCTAVO_PLACES_H

#include <stdint.h>

typedef struct Places Places;

/* cpus: the processors to be used, at least one. Returns NULL where memory is short. */
Places *places_new(int size, const int32_t *cpus, int num_cpus);
void places_free(Places *p);

/* The member runs on this processor now. Cheap: some nanoseconds. */
void places_note(Places *p, int member);

/* The member waits, and it is so late, in nanoseconds: let it move to an idle processor if it shares one with another
   member for long. */
void places_come_apart(Places *p, int member, int64_t now);

#endif
