/*
 * job: everything that takes time: its queue, its worker process, its states, its end.
 *
 *   spec (JSON) ─► allowed? ─► plan (argv in a 0600 file) ─► queued ─► worker process ─► end
 *                                                     files in RUNTIME/jobs/ID/ tell of it
 *
 * A worker is "sendense worker JOBDIR", the same binary, in a session of its own.  It tells of
 * itself by files (status.json, log, report.json, exit.json), so that it outlives the hub, and
 * a hub that was started again finds it.
 *
 * Thread rule: any thread may call jobs_*(); one thread of its own supervises.
 */
#ifndef SENDENSE_JOB_H
#define SENDENSE_JOB_H

#include "state.h"

#define JOB_ID_BYTES STATE_JOB_BYTES

enum job_state {
	JOB_QUEUED,
	JOB_STARTING,
	JOB_RUNNING,
	JOB_VERIFYING,
	JOB_COMMITTING,
	JOB_DONE,
	JOB_FAILED,
	JOB_CANCELLED,
};
const char *job_state_name(enum job_state state);
bool job_state_is_end(enum job_state state);

/* A repository that jobs may name. */
struct job_repository {
	const char *name, *path;
	const char *id; /* that it must have; NULL: any.  Looked at before every job */
	bool require_mount; /* path must be on a file system of its own */
	uint64_t warn_free_bytes, stop_free_bytes; /* 0: none */
};

struct jobs_options {
	struct state *state; /* lent */
	const char *runtime_dir, *state_dir;
	const char *program; /* path of this binary; NULL: /proc/self/exe */
	const struct job_repository *repositories; /* nr_repositories, lent */
	size_t nr_repositories;
	const char *const *allow_sources, *const *allow_targets; /* ended by NULL */
	unsigned most, most_per_source; /* at once; 0: 4 and 2 */
	uint64_t memory_bytes; /* of a worker; 0: no limit */
	/* The last word of each change: for events, metrics, notices, the index.  Called without
	 * locks, from the supervisor's thread.  May be NULL. */
	void (*changed)(void *context, const char *id, enum job_state state, const json_t *job);
	void *context;
};

struct jobs;

/* Reconciles what an earlier hub left, then supervises. */
struct jobs *jobs_start(const struct jobs_options *options, struct err *err);
/* hand_over: running workers go on, and the next jobs_start() finds them; else they are
 * cancelled.  Waits for them at most until the deadline. */
void jobs_stop(struct jobs *jobs, bool hand_over, struct deadline until);

/*
 * Checks spec against allow lists and its kind's fields (ERR_USAGE names the field, ERR_DENIED what
 * is not allowed), stores and queues it.  spec: {"kind":"backup", "repository":NAME, "vm":…, …} as
 * in docs/rest-api.md.  requested_by: "token NAME", "schedule NAME".
 */
int jobs_add(struct jobs *jobs, const json_t *spec, const char *requested_by, char id[JOB_ID_BYTES],
	struct err *err);

/* A job that is no worker of ours but is followed like one (a push session): made queued, told of
 * by jobs_tell(). */
int jobs_add_foreign(struct jobs *jobs, const json_t *spec, const char *requested_by,
	char id[JOB_ID_BYTES], struct err *err);
/* stage, progress, error: may be NULL. */
int jobs_tell(struct jobs *jobs, const char *id, enum job_state state, const char *stage,
	const json_t *progress, const struct err *error, struct err *err);

/* The job as the API shows it; the caller's. */
json_t *jobs_get(struct jobs *jobs, const char *id, struct err *err);
/* At most 5 s from any stage; asynchronous. */
int jobs_cancel(struct jobs *jobs, const char *id, const char *why, struct err *err);
/* A new attempt of one that failed or was cancelled. */
int jobs_retry(struct jobs *jobs, const char *id, char new_id[JOB_ID_BYTES], struct err *err);
/* The log from offset on (lines of JSON), at most `most` bytes; the caller's. */
int jobs_log(struct jobs *jobs, const char *id, uint64_t offset, size_t most, char **text,
	size_t *length, struct err *err);
/* Waits until the job changed behind `seen` (0: at once) or the deadline passed; the job, or
 * NULL with err clear.  *seen counts on. */
json_t *jobs_wait(
	struct jobs *jobs, const char *id, uint64_t *seen, struct deadline until, struct err *err);
/* How many are queued, running; for /status and metrics. */
void jobs_count(struct jobs *jobs, unsigned *nr_queued, unsigned *nr_running);

#endif
