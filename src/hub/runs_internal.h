/* Inside runs: the records (runs.c) and what is begun (runs_tick.c). */
#ifndef SENDENSE_HUB_RUNS_INTERNAL_H
#define SENDENSE_HUB_RUNS_INTERNAL_H

#include "runs.h"

#define RUN_ID_BYTES (SCHEDULE_ID_BYTES + 1 + 32)

enum run_state { RUN_IDLE, RUN_STARTING, RUN_GOING, RUN_WAITING };

struct run {
	char id[RUN_ID_BYTES]; /* "SCHEDULE/" and a hash of who */
	char schedule[SCHEDULE_ID_BYTES];
	char rule[SCHEDULE_RULE_BYTES]; /* of the schedule, when seen was set */
	char *who;
	enum run_state state;
	int64_t seen; /* see schedule.h */
	int64_t due; /* the next one behind seen; 0: to be worked out; not stored */
	int64_t begun; /* 0: never */
	int64_t next_try; /* of WAITING */
	unsigned attempt; /* 1: the first */
	char job[JOB_ID_BYTES]; /* the last one; "" */
	char source[256]; /* host that it reads from; not stored */
	/* Of both, what was told once: */
	bool unsaved; /* state.db did not take the last change; the next tick writes it */
	bool in_doubt; /* nor tell what became of its job; the next tick asks again */
};

struct runs {
	struct runs_options options;
	struct run *runs; /* by id */
	size_t nr_runs, room;
};

/* NULL: not known. */
struct run *runs_find(struct runs *runs, const char *schedule, const char *who);
/* A new one is seen up to now, and stored. */
struct run *runs_get(struct runs *runs, const struct schedule *schedule, const char *who,
	int64_t now, struct err *err);
int runs_store(struct runs *runs, const struct run *run, struct err *err);
/* The same of what has happened already: what state.db cannot take now is logged, and written
 * by the next tick. */
void runs_note(struct runs *runs, struct run *run);

/* Calls each for everybody that the schedule is for; machine NULL: a repository or the report. */
void runs_each(const struct runs_view *view, const struct schedule *schedule,
	void (*each)(void *context, const char *who, const struct machine *machine), void *context);

/* The first moment at which it is due or tried again; now may be before. */
int64_t runs_moment(const struct schedule *schedule, struct run *run);

/* A failed run waits for its next try, if it has one. */
bool runs_try_again(struct runs *runs, const struct schedule *schedule, struct run *run,
	const struct err *why, int64_t now);

#endif
