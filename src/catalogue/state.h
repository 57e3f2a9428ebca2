/*
 * state: what only the hub knows (SQLite, WAL, state.db): tokens, schedules, policies, VMs'
 * settings, sessions, jobs, what jobs take, the audit log.
 *
 * Objects are JSON documents of a kind, with an id and a version that grows with each change;
 * jobs and events have tables of their own.  Every call is one transaction and durable when
 * it returns.
 *
 * Errors: ERR_CORRUPT (damaged: names the backup to take instead), ERR_UNSUPPORTED (a newer
 * version wrote it), ERR_NOT_FOUND, ERR_EXISTS, ERR_RANGE (the version is another one),
 * ERR_BUSY (another process has it open), ERR_NO_SPACE, ERR_IO.
 * Thread rule: any thread.  Callbacks are called without locks, and may call what is here;
 * a list that changes meanwhile is told without what came before the place where it is.
 */
#ifndef SENDENSE_CATALOGUE_STATE_H
#define SENDENSE_CATALOGUE_STATE_H

#include "base.h"

#include <jansson.h>

struct state;

/* Opens or makes path, and brings an older version up to date (a copy of the old one is kept
 * beside it).  One process at a time. */
struct state *state_open(const char *path, struct err *err);
void state_close(struct state *state);

/* --- objects --------------------------------------------------------------------------- */

/* Kinds: "token" (id; member "hash"), "schedule", "policy", "vm" (id: its name), "node" and "code"
 * (to enrol one; id: its name), "session", "serve", "setting".  Ids: 1..255 bytes of UTF-8. */
struct state_object {
	char *id;
	uint64_t version;
	json_t *value; /* an object */
};
void state_object_clear(struct state_object *object);

/* version 0: must be new (ERR_EXISTS); STATE_ANY: new or not; else it must have that version
 * (ERR_RANGE).  value is borrowed.  now (may be NULL): the version it has then. */
#define STATE_ANY UINT64_MAX
int state_put(struct state *state, const char *kind, const char *id, const json_t *value,
	uint64_t version, uint64_t *now, struct err *err);
int state_get(struct state *state, const char *kind, const char *id, struct state_object *object,
	struct err *err);
int state_delete(
	struct state *state, const char *kind, const char *id, uint64_t version, struct err *err);
/* In the order of ids, behind `after` (NULL: from the first); callback: 0 goes on, 1 stops. */
int state_list(struct state *state, const char *kind, const char *after,
	int (*callback)(void *context, const struct state_object *object), void *context,
	struct err *err);
/* Appends to ids (an array) those of a kind whose member is that text. */
int state_list_ids(struct state *state, const char *kind, const char *member, const char *text,
	json_t *ids, struct err *err);
/* The token with that hash, in constant time with regard to it. */
int state_token(
	struct state *state, const char *hash, struct state_object *object, struct err *err);

/* --- jobs ------------------------------------------------------------------------------- */

#define STATE_JOB_BYTES 26 /* as REPOSITORY_JOB_BYTES */

struct state_job {
	char id[STATE_JOB_BYTES];
	const char *kind; /* "backup", "push", "restore", "verify", "prune", "replicate", "serve",
			     "reindex" */
	const char *state; /* "queued", "starting", "running", "verifying", "committing", "done",
			      "failed", "cancelled" */
	const char *repository, *vm; /* NULL: none */
	const char *node; /* that does it; NULL: none.  Only asked for, not told */
	int64_t created, started, ended; /* seconds since 1970; 0: not yet */
	const json_t *value; /* all else: spec, attempt, error, progress, next_try, requested_by */
};

/* New or not. */
int state_job_put(struct state *state, const struct state_job *job, struct err *err);
struct state_job_filter {
	const char *state, *kind, *vm, *repository; /* NULL: all.  state "open": all that have not
						       ended */
	const char *node; /* of "open" ones: that this node does; NULL: all */
	const char *before; /* an id: older ones; NULL: from the newest */
};
/* The newest first. */
int state_jobs(struct state *state, const struct state_job_filter *filter,
	int (*callback)(void *context, const struct state_job *job), void *context,
	struct err *err);
int state_job(struct state *state, const char *id,
	int (*callback)(void *context, const struct state_job *job), void *context,
	struct err *err);
/* Ended ones that are older are forgotten; their ids are told, so that logs can go. */
int state_jobs_forget(struct state *state, int64_t ended_before,
	void (*forgotten)(void *context, const char *id), void *context, struct err *err);

/* What a job takes, noted before it is taken: kind ("process", "export", "port", "folder",
 * "lease"; "end": what follows from its end is owed), name.  value (may be NULL): what it takes to
 * give it back. */
int state_take(struct state *state, const char *job, const char *kind, const char *name,
	const json_t *value, struct err *err);
int state_gave_back(
	struct state *state, const char *job, const char *kind, const char *name, struct err *err);
/* job NULL: of all. */
int state_takes(struct state *state, const char *job,
	int (*callback)(void *context, const char *job, const char *kind, const char *name,
		const json_t *value),
	void *context, struct err *err);

/* --- audit log ------------------------------------------------------------------------------ */

struct state_event {
	uint64_t id; /* grows */
	int64_t time;
	const char *actor, *action,
		*object; /* "token NAME", "schedule", "hub"; "jobs.cancel"; "job ID" */
	const json_t *detail; /* or NULL */
};
int state_event_add(
	struct state *state, const struct state_event *event, uint64_t *id, struct err *err);
struct state_event_filter {
	const char *actor, *object; /* NULL: all */
	int64_t since;
	uint64_t after; /* id */
};
int state_events(struct state *state, const struct state_event_filter *filter,
	int (*callback)(void *context, const struct state_event *event), void *context,
	struct err *err);
/* Those that are older are forgotten; nothing else changes what was noted. */
int state_events_forget(struct state *state, int64_t before, struct err *err);

/* --- idempotency ------------------------------------------------------------------------- */

/* digest: of method, path and body.  ERR_RANGE: the key was used for another call. */
int state_remembered(struct state *state, const char *actor, const char *key, const char *digest,
	bool *found, unsigned *status, json_t **body, struct err *err);
/* Kept for 24 hours. */
int state_remember(struct state *state, const char *actor, const char *key, const char *digest,
	unsigned status, const json_t *body, struct err *err);

/* --- copies ----------------------------------------------------------------------------------- */

/* A whole, consistent copy in a new file (ERR_EXISTS), mode 0600, durable. */
int state_backup(struct state *state, const char *path, struct err *err);
/* The same of a state that another process may have open. */
int state_copy(const char *from, const char *path, struct err *err);
/* Notes beside the state where a copy lies now: who finds the state damaged names it. */
int state_copied(struct state *state, const char *where, struct err *err);
/* Whether path holds a state that this program can read: ERR_FORMAT, ERR_CORRUPT,
 * ERR_UNSUPPORTED.  Changes nothing. */
int state_check(const char *path, struct err *err);
/* Grows with each change since it was opened: tells whether a new copy is worth while. */
uint64_t state_changes(struct state *state);

#endif
