/*
 * runs: what schedules begun for whom, and what they have to begin now.
 *
 *            due, window open, place free, not busy          job ended
 *   idle ───────────────────────────────► starting ─► going ───────────► idle
 *     ▲                                   (in the      │ it failed, and tries are left
 *     └───────────────────────────────── state before) ▼
 *                                    when it is time  waiting
 *
 * A run (schedule and machine, or repository) is in the state before its job exists; after a
 * crash in between the job is looked for.  So nothing is begun twice and nothing is forgotten.
 *
 * Thread rule: one thread at a time.
 */
#ifndef SENDENSE_HUB_RUNS_H
#define SENDENSE_HUB_RUNS_H

#include "machine.h"
#include "schedule.h"

struct runs;

struct runs_end {
	const char *job; /* "": none was made */
	const char *vm, *repository; /* NULL: none */
	enum job_state state;
	struct err why; /* of JOB_FAILED, JOB_CANCELLED */
	bool again; /* the schedule tries it again */
};

struct runs_options {
	struct state *state; /* lent */
	/* As jobs_add(). */
	int (*add)(void *context, const json_t *spec, const char *requested_by,
		char id[JOB_ID_BYTES], struct err *err);
	/* A report is due. */
	void (*report)(void *context, const char *schedule, int64_t now);
	/* A run is over: no job could be made, or its job ended and nobody told so yet. */
	void (*ended)(void *context, const struct runs_end *end);
	void *context;
};

/* What holds at a moment; lent for a call. */
struct runs_view {
	struct schedule *const *schedules; /* nr_schedules */
	size_t nr_schedules;
	const struct machine_set *machines;
	const struct job_repository *repositories; /* nr_repositories */
	size_t nr_repositories;
	unsigned most, most_per_source; /* of the hub */
	int64_t now; /* seconds since 1970 */
};

/* Reads what an earlier hub left. */
struct runs *runs_open(const struct runs_options *options, struct err *err);
void runs_close(struct runs *runs);

/* Begins what is to be begun.  The moment at which there is something to do again, if nothing
 * else happens before.  Errors are logged: what cannot be done now is tried at the next call. */
int64_t runs_tick(struct runs *runs, const struct runs_view *view);

/* A job has ended; those of others are of no interest.  True: the schedule tries it again. */
bool runs_job_ended(struct runs *runs, const struct runs_view *view, const char *job,
	enum job_state state, const struct err *why);

/* Runs of that schedule, or (schedule NULL) of that machine, are forgotten. */
int runs_forget(struct runs *runs, const char *schedule, const char *who, struct err *err);

enum runs_wait {
	RUNS_DUE_LATER,
	RUNS_GOING,
	RUNS_WAITS_FOR_RETRY,
	RUNS_WAITS_FOR_WINDOW,
	RUNS_WAITS_FOR_PLACE, /* also: the machine is busy */
	RUNS_PAUSED,
	RUNS_NO_DISKS,
	RUNS_NO_REPOSITORY,
};
const char *runs_wait_name(enum runs_wait wait);

struct runs_entry {
	const char *who; /* a machine, a repository, "" for the report */
	int64_t next; /* when it begins at the earliest; 0: never as things are */
	int64_t last; /* when it was begun last; 0: never */
	const char *last_job; /* "" */
	enum runs_wait wait;
};
/* The runs of a schedule, by name. */
void runs_list(struct runs *runs, const struct runs_view *view, const struct schedule *schedule,
	void (*callback)(void *context, const struct runs_entry *entry), void *context);

/* The source's host that counts for most_per_source; "": none.  machine may be NULL. */
void runs_source(const struct machine *machine, char host[256]);

#endif
