/*
 * What the files of the queue and its supervisor share.
 *
 *   jobs.c       what others call
 *   state.c      the table of states and stages
 *   jobrecord.c  a job as it is kept in state.db, and as the API shows it
 *   queue.c      which one may start
 *   supervise.c  the thread: starts, watches, stops
 *   finish.c     what became of a worker: the end, or another attempt
 *   look.c       whether a backup that ended badly made its restore point all the same
 *   fence.c      a worker that does not end loses what it holds
 *   reconcile.c  what an earlier hub left
 *   mount.c      what repositories lie on
 *   jobdir.c     files of JOBDIR          process.c   the worker's process
 *
 * Lock rule: everything in struct jobs and its jobs is under its mutex, except what is fixed at
 * the start.  Callbacks are called without it.
 */
#ifndef SENDENSE_JOB_INTERNAL_H
#define SENDENSE_JOB_INTERNAL_H

#include "job.h"
#include "process.h"

#include <limits.h>

#define JOBDIR_PLAN "plan.json"
#define JOBDIR_LOG "log"
#define JOBDIR_STATUS "status.json"
#define JOBDIR_REPORT "report.json"
#define JOBDIR_EXIT "exit.json"
#define JOBDIR_STDERR "stderr"
#define JOBDIR_FILE_MOST ((size_t)16 * MIB)

#define JOB_STAGE_BYTES 64

/* How far the end of a worker that must end has come. */
enum job_stop { STOP_NOT, STOP_ASKED, STOP_TERMINATED, STOP_KILLED, STOP_FENCED };
#define JOB_KILL_MS 500 /* so long a process may take to end behind SIGKILL */

struct job {
	struct job *next;
	char id[JOB_ID_BYTES];
	enum job_state state;
	json_t *spec;
	const char *kind, *repository, *vm; /* within spec; the last two may be NULL */
	char requested_by[320], retry_of[JOB_ID_BYTES];
	int64_t created, started, ended, next_try;
	struct deadline next_at; /* the same on our own clock */
	unsigned attempt; /* 1: the first; 0: not started yet */
	char stage[JOB_STAGE_BYTES], stage_since[CLOCK_UTC_BYTES], point[64];
	char waits_for[256];
	char note[256]; /* what is to be told although it is done; "" */
	json_t *progress, *disks; /* may be NULL */
	struct err error;
	bool is_foreign;
	bool asked_to_cancel; /* by somebody; stop_why.code is ERR_CANCELLED */
	bool told_to_cancel; /* a foreign one's owner was */

	char host[256]; /* of its disks, or the vCenter's name; "" here */
	uint64_t reserved_bytes; /* that it is going to store, by what is known */

	struct process process;
	int dir_fd; /* JOBDIR; -1 */
	json_int_t heartbeat, moved; /* when looked at last */
	struct deadline silent_at, still_at; /* then it counts as hanging */
	enum job_stop stop;
	struct err stop_why;
	struct deadline stop_at; /* of the step it is at */
	bool owes; /* an attempt ended that may have left a snapshot on a vCenter */
	bool unsure; /* an attempt ended where its restore point may have been made */
	bool is_looking; /* whether it was: what the process does now.  If not, it ends so: */
	enum job_state look_end;
	struct err look_why;
	struct deadline look_until;

	json_t *held; /* process_to_json() of the one that does not end; NULL */
	struct process fence; /* takes its locks away */
	bool is_fenced; /* that was done */
	bool is_made; /* and its restore point is there */
	struct deadline fence_at; /* it is tried again then */
	struct deadline finish_at; /* its end is tried again then: state.db did not take it */

	uint64_t changes; /* for those that wait */
};

/* A change that is to be told. */
struct job_change {
	struct job_change *next;
	char id[JOB_ID_BYTES];
	enum job_state state;
	json_t *json; /* NULL: a foreign one is to be cancelled, because of: */
	char why[256];
};

struct jobs {
	struct jobs_options options; /* strings are lent */
	int runtime_fd, kept_fd; /* RUNTIME/jobs, STATE/jobs */
	char *runtime; /* path of the former */
	int wake_fd;
	pthread_t thread;

	pthread_mutex_t mutex;
	pthread_cond_t changed;
	struct job *open; /* have not ended, by age */
	struct job *unreaped; /* have, but their process is still there */
	struct job_change *first, **last;
	char last_id[JOB_ID_BYTES];
	bool draining; /* nothing starts any more */
	bool quit;
	unsigned cursor; /* for retry's bit of chance */
};

/* --- jobs.c --- */
/* Snapshots that it left are removed by a job of their own. */
void jobs_put_cleanup(struct jobs *jobs, const struct job *job);

/* --- state.c --- */
/* In this stage nothing may move for so long at most. */
unsigned job_state_still_ms(const char *stage);

/* --- jobdir.c --- */
/* A JSON object, or NULL. */
json_t *jobdir_load(int dir_fd, const char *name, struct err *err);
/* Replaced whole; not synced: it is for the living. */
int jobdir_store(int dir_fd, const char *name, const json_t *object, struct err *err);
/* Log and report go behind (the report: in the place of) those that are kept. */
int jobdir_keep(int dir_fd, int kept_fd, struct err *err);
/* The last bytes of a file; "" when there are none. */
void jobdir_tail(int dir_fd, const char *name, char *out, size_t bytes);
int jobdir_remove(int parent_fd, const char *name, struct err *err);

/* --- jobrecord.c --- */
/* "busy": ERR_BUSY; ERR_IO for what is none. */
struct job *jobrecord_new(const json_t *spec, const char *requested_by, struct err *err);
void jobrecord_free(struct job *job);
int jobrecord_put(struct jobs *jobs, const struct job *job, struct err *err);
struct job *jobrecord_from(const struct state_job *record, json_t **process, struct err *err);
/* As the API shows it. */
json_t *jobrecord_json(const struct job *job);
json_t *jobrecord_stored_json(const struct state_job *record);
/* Noted for whoever waits, and for
 * options.changed. */
void jobrecord_tell(struct jobs *jobs, struct job *job);

/* --- queue.c --- */
/* The next one that may start, or NULL; what the others wait for is put into them. */
struct job *queue_next(struct jobs *jobs);
/* The open job that writes the same machine's restore points (replica, snapshots), or NULL. */
const struct job *queue_writer(const struct jobs *jobs, const struct job *job);
uint64_t queue_reserved(const struct jobs *jobs, const char *repository, const struct job *but);
bool queue_is_running(const struct job *job);
/* A push that goes on: it has no worker. */
bool queue_is_push(const struct job *job);
/* The job that it is part of; NULL: none. */
const char *queue_part_of(const struct job *job);
/* So many places there are, and are taken. */
unsigned queue_most(const struct jobs *jobs);
unsigned queue_nr_places(const struct jobs *jobs);
/* Which figure of its progress tells what it has stored. */
const char *queue_figure(const struct job *job);

/* --- check.c --- */
/* ERR_NO_SPACE, ERR_BUSY: as job_repository_check(). */
int job_check_space(const struct job_repository *repository, uint64_t free_bytes,
	uint64_t reserved_bytes, struct err *err);

/* --- mount.c --- */
/* "ext4, folder /backup", "nfs4 nas:/export, folder /": what a folder lies on, and which of its
 * folders it is, the same after another mount of it.  The caller's. */
char *job_mount_text(const char *path, struct err *err);
/* The note that counts, or NULL; the caller's. */
int job_mount_noted(struct state *state, const struct job_repository *repository, json_t **note,
	struct err *err);
/* What it says (note may be NULL), lent. */
void job_mount_use(struct job_repository *repository, const json_t *note);
int job_mount_note(struct state *state, const struct job_repository *repository, const char *id,
	struct err *err);

/* --- supervise.c --- */
void *supervise_main(void *jobs);
/* Wakes the thread. */
void supervise_wake(const struct jobs *jobs);
/* Changes to another state if the table lets it, writes it down, tells. */
int supervise_change(struct jobs *jobs, struct job *job, enum job_state state, struct err *err);
/* It is to end; the first reason stays. */
void supervise_stop(struct job *job, const struct err *why);
/* Takes over what its status file says. */
void supervise_look(struct jobs *jobs, struct job *job);
/* "repository" of a plan; stores: only where there is space. */
json_t *supervise_repository(
	const struct jobs *jobs, const struct job *job, bool stores, struct err *err);
/* Its folder, new, with the plan in it; the descriptor is the caller's. */
int supervise_folder(
	struct jobs *jobs, const char *name, const json_t *plan, int *dir_fd, struct err *err);
/* Forked in that folder, and waiting at its gate. */
int supervise_fork(struct jobs *jobs, const char *name, struct process *process, struct err *err);
/* The job's process: noted before it does anything. */
int supervise_launch(struct jobs *jobs, struct job *job, const json_t *plan, struct err *err);
void supervise_set_stage(struct job *job, const char *stage, const char *since);
/* Whether its worker may have a snapshot on a vCenter: from before it asks for one. */
bool supervise_has_snapshot(const struct job *job);
/* Watches a process that was found again. */
int supervise_adopt(struct jobs *jobs, struct job *job, struct err *err);

/* --- finish.c --- */
/* The worker of a job is gone (status as process_has_ended() says) or never was: failed says
 * why.  -1: state.db cannot take it now; call it again. */
int finish_job(struct jobs *jobs, struct job *job, int status, const struct err *failed);
/* Log and report are kept. */
void finish_keep_files(struct jobs *jobs, const struct job *job);
/* True when the worker told how it ended; why is clear when that was well. */
bool finish_judge(const struct job *job, int status, struct err *why);
/* Of one that is done: somebody had asked for its cancel. */
void finish_note_late_cancel(struct job *job);
/* Of one that was closed before that was known: its restore point was made. */
void finish_note_late_point(struct jobs *jobs, struct job *job);
/* Its process does not go: closed all the same. */
void finish_fenced(struct jobs *jobs, struct job *job);
/* One that has ended, whose process went at last. */
void finish_reaped(struct jobs *jobs, struct job *job);

/* --- look.c --- */
/* Whether its restore point may be there after such an end. */
bool look_is_needed(const struct job *job, bool told, const struct err *why);
/* What a plan says of it; NULL: nothing is to be looked for. */
json_t *look_plan(const struct job *job);
/* Starts a process that looks; the job ends as state, because of why, if it finds nothing. */
int look_start(
	struct jobs *jobs, struct job *job, enum job_state state, struct err *why, struct err *err);
/* What it found: JOB_DONE, or the end that was put off, and its reason. */
enum job_state look_end(const struct job *job, int status, struct err *why);

/* --- fence.c --- */
#define FENCE_SUFFIX "-fence"
/* Begins it, where it is to be tried (again); sees to its end. */
void fence_look(struct jobs *jobs, struct job *job);
bool fence_is_running(const struct job *job);
/* One that an earlier hub started. */
void fence_adopt(struct job *job, const json_t *process);
/* The job's process went at last, and what it held with it.  False: it is to be asked again. */
bool fence_give_up(struct job *job);
/* Its folder and process are given back. */
void fence_give_back(struct jobs *jobs, struct job *job);

/* --- reconcile.c --- */
int reconcile(struct jobs *jobs, struct err *err);

#endif
