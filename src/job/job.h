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

#include "catalogue.h"

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
bool job_state_parse(const char *name, enum job_state *state);
bool job_state_is_end(enum job_state state);
/* Whether a job may go from one to the other; to itself it may. */
bool job_state_may(enum job_state from, enum job_state to);
/* The state that a stage of a worker belongs to; JOB_RUNNING for those that are not known. */
enum job_state job_state_of_stage(const char *stage);

/* A repository that jobs may name. */
struct job_repository {
	const char *name, *path;
	/* Behind a hub, as store.h says: then path is NULL, and of what follows only id counts, as
	 * the rest is that hub's business.  The files may be NULL. */
	const char *url, *token_file, *ca_file;
	const char *id; /* that it must have; NULL: any.  Looked at before every job */
	bool require_mount; /* path must be on a file system of its own */
	const char *mount; /* as job_mount_text() says it; NULL: any */
	uint64_t warn_free_bytes, stop_free_bytes; /* 0: none */
};

/*
 * Whether jobs may work with it now: it is there, on a file system of its own if it must be, it is
 * the one that was meant, and with what running jobs are going to take (reserved_bytes) it has
 * more free than stop_free_bytes.  ERR_NOT_FOUND, ERR_DENIED (another one, or the root file
 * system), ERR_NO_SPACE, ERR_BUSY (running jobs are going to take it), and what repository_open()
 * says.  May hang where a network's file system does: workers call it, and REST handlers.
 */
int job_repository_check(
	const struct job_repository *repository, uint64_t reserved_bytes, struct err *err);

/*
 * The same, by the hub's note in its state as well, which is made when one that must be mounted
 * was found good for the first time: what it lies on, and its id.  The note is forgotten when it
 * need not be mounted any more, or has another path.  state NULL: without.
 */
int job_repository_check_noted(struct state *state, const struct job_repository *repository,
	uint64_t reserved_bytes, uint64_t *free_bytes, struct err *err);

/* A vCenter, or an ESXi host, that jobs may name.  Their words name it, and nothing else that one
 * could connect to. */
struct job_vcenter {
	const char *name;
	const char *url; /* vmware://USER@HOST[:PORT] */
	const char *password_file;
	const char *ca_file, *fingerprint; /* either may be NULL; see vsphere_options */
};

struct jobs_options {
	struct state *state; /* lent */
	const char *runtime_dir, *state_dir;
	const char *program; /* path of this binary; NULL: /proc/self/exe */
	const struct job_repository *repositories; /* nr_repositories, lent */
	size_t nr_repositories;
	const struct job_vcenter *vcenters; /* nr_vcenters, lent */
	size_t nr_vcenters;
	/* Lent; NULL: as the commands choose them (vmware_options, vddk_options, replica_folder()).
	 */
	const char *vmware_state_dir, *replica_state_dir, *vddk_dir, *vddk_modes;
	const char *const *allow_sources, *const *allow_targets; /* ended by NULL, see allow.h;
								    lent. NULL: nothing */
	const char *const
		*credentials; /* lines of credentials.h, ended by NULL; lent.  NULL: none */
	/* At once; 0: 4 and 2.  A source is a host that disks are on, or a vCenter. */
	unsigned most, most_per_source;
	uint64_t memory_bytes; /* of a worker; 0: no limit */
	/* The last word of each change: for events, metrics, notices, the index.  Called without
	 * locks, from the supervisor's thread.  May be NULL. */
	void (*changed)(void *context, const char *id, enum job_state state, const json_t *job);
	/* A foreign job is to be cancelled: whoever owns it ends it and tells so by jobs_tell().
	 * From the supervisor's thread, without locks.  NULL: foreign jobs cannot be cancelled. */
	void (*cancel_foreign)(void *context, const char *id, const char *why);
	void *context;
	/* For what is worth it a job is tried so often in all (0: 4), at first after retry_ms
	 * (0: 5 s), then four times that, at most 15 minutes; a bit at random. */
	unsigned attempts;
	unsigned retry_ms;
	unsigned silence_ms; /* no heartbeat for so long: it hangs.  0: 60 s */
	unsigned stage_ms; /* nothing moved in a stage for so long; 0: as stage.c says for each */
};

struct jobs;

/* Reconciles what an earlier hub left, then supervises. */
struct jobs *jobs_start(const struct jobs_options *options, struct err *err);
/* No job is started any more.  hand_over: running workers are waited for until the deadline, go
 * on after it, and the next jobs_start() finds them; else they are cancelled.  Queued ones stay
 * queued.  Frees; NULL is harmless. */
void jobs_stop(struct jobs *jobs, bool hand_over, struct deadline until);

/*
 * Checks spec against allow lists and its kind's fields (ERR_USAGE names the field, ERR_DENIED what
 * is not allowed), stores and queues it.  spec: {"kind":"backup", "repository":NAME, "vm":…, …} as
 * in docs/rest-api.md.  requested_by: "token NAME", "schedule NAME".
 *
 * With a vCenter ("?": may be left out; "machine": its inventory path, uuid or name):
 *   {"kind":"backup", "repository":NAME, "vcenter":NAME, "machine":TEXT, "vm"?:NAME, "mode"?,
 *    "audit"?, "resume"?, "reserve_bytes"?, HOW}
 *   {"kind":"replicate", "vcenter":NAME, "machine":TEXT, "vm"?:NAME,
 *    "targets":[{"key", "target"}], "cutover"?:BOOL, "verify"?:"sample" or "read-back",
 *    "force"?:BOOL, HOW}
 *   {"kind":"cleanup", "vcenter":NAME, "machine"?:TEXT}   snapshots of dead sessions are removed
 *   HOW: "skip_disks"?:[KEY], "skip_unsupported"?:BOOL, "quiesce"?:BOOL, "enable_cbt"?:BOOL,
 *        "limit_rate"?, "parallel"?
 * Each may have "hub_job": what it is called by a hub that asked for it.
 */
int jobs_add(struct jobs *jobs, const json_t *spec, const char *requested_by, char id[JOB_ID_BYTES],
	struct err *err);
/* Only checks it, for what is to be added later. */
int jobs_check(const struct jobs *jobs, const json_t *spec, struct err *err);

/* A job that is no worker of ours but is followed like one (a push session): made queued, told of
 * by jobs_tell().  Its kind is "push" or "serve".  A push takes one of the places for jobs, and
 * what running jobs are going to take counts as taken of free_bytes (its repository's, as
 * job_repository_check() told them; UINT64_MAX: it is not looked at).  A push whose spec has
 * "for_job" is part of that job, which must be open and of the same machine and repository: it
 * takes no place of its own.  A "backup" is a node's (its spec names the "node"), and takes a place
 * from when it runs.  ERR_BUSY for a push: another
 * job writes the same machine's restore points, naming it; or, with sys_errno EAGAIN, there is no
 * place or space until others end.  After a restart of the hub it is as it was told last:
 * its owner goes on telling, or says what became of it. */
int jobs_add_foreign(struct jobs *jobs, const json_t *spec, const char *requested_by,
	uint64_t free_bytes, char id[JOB_ID_BYTES], struct err *err);
/* stage, progress, error: may be NULL.  progress: the figures, and of the job itself "point" and
 * "disks", where they are known.  ERR_REFUSED: it has ended, or is no foreign one. */
int jobs_tell(struct jobs *jobs, const char *id, enum job_state state, const char *stage,
	const json_t *progress, const struct err *error, struct err *err);

/* What a foreign one's owner has to report of it, before it tells the end; kept with the job. */
int jobs_keep_report(struct jobs *jobs, const char *id, const json_t *report, struct err *err);

/* The job as the API shows it; the caller's.  ERR_NOT_FOUND.  One that ended has its "report". */
json_t *jobs_get(struct jobs *jobs, const char *id, struct err *err);
/* Jobs as the API shows them (without reports), the newest first, at most `most`; *more: there
 * are older ones, behind the last one's id.  filter's strings may be NULL. */
json_t *jobs_list(struct jobs *jobs, const struct state_job_filter *filter, unsigned most,
	bool *more, struct err *err);
/* At most 5 s from any stage; one that has a snapshot on a vCenter has 5 minutes to remove it
 * (stage "give-back").  Asynchronous.  ERR_REFUSED: it has ended. */
int jobs_cancel(struct jobs *jobs, const char *id, const char *why, struct err *err);
/* A new job with the spec of one that failed or was cancelled, else ERR_REFUSED. */
int jobs_retry(struct jobs *jobs, const char *id, char new_id[JOB_ID_BYTES], struct err *err);
/* The log from offset on (lines of JSON), at most `most` bytes; the caller's. */
int jobs_log(struct jobs *jobs, const char *id, uint64_t offset, size_t most, char **text,
	size_t *length, struct err *err);
/* Forgets jobs that ended before that time, with their logs. */
int jobs_forget(struct jobs *jobs, int64_t ended_before, struct err *err);
/* Waits until the job changed behind `seen` (0: at once) or the deadline passed; the job, or
 * NULL with err clear.  *seen counts on. */
json_t *jobs_wait(
	struct jobs *jobs, const char *id, uint64_t *seen, struct deadline until, struct err *err);
/* How many are queued (also those that wait for their next attempt), run; for /status and
 * metrics. */
void jobs_count(struct jobs *jobs, unsigned *nr_queued, unsigned *nr_running);
/* Processes that the kernel does not let go, of jobs that were closed. */
unsigned jobs_count_unreaped(struct jobs *jobs);

/* --- the room's other public headers ----------------------------------------------- */

#include "allow.h"
#include "credentials.h"
#include "host.h"
#include "jobs_rest.h"
#include "reindex.h"
#include "worker.h"

#endif
