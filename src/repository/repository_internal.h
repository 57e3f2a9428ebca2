/* repository: what its files share.  Contracts as in repository.h. */
#ifndef SENDENSE_REPOSITORY_INTERNAL_H
#define SENDENSE_REPOSITORY_INTERNAL_H

#include "repository.h"

#include <jansson.h>
#include <pthread.h>

/* --- name.c --------------------------------------------------------------- */

#define NAME_PATH_BYTES 512 /* any path below the repository */

/* repository_name_folder() the other way; false for shortened ones and for what we never write. */
bool name_unfolder(const char *folder, char vm[REPOSITORY_VM_BYTES]);
/* Copies text, bad UTF-8 and control characters as '?', cut at room. */
void name_printable(const char *text, char *out, size_t room);
bool name_is_job(const char *text);
int name_make_point(int64_t unix_seconds, char point[REPOSITORY_POINT_BYTES], struct err *err);
int name_make_job(int64_t unix_seconds, char job[REPOSITORY_JOB_BYTES], struct err *err);
/* The time in a point's or job's id, or in a record's time; 0 when it has none. */
int64_t name_seconds(const char *id);
int64_t name_seconds_utc(const char *utc);
void name_now(char utc[CLOCK_UTC_BYTES]);

/* --- record.c ------------------------------------------------------------- */

#define RECORD_BYTES_MOST (4 << 20)

/* An object, or NULL.  The caller releases it with json_decref(). */
json_t *record_parse(const char *text, size_t length, const char *name, struct err *err);
json_t *record_load(int dir_fd, const char *path, struct err *err);
/* Allocated; NULL when out of memory. */
char *record_canonical(const json_t *value);
/* As it is written to a file; not terminated, length counts. */
char *record_text(const json_t *value, size_t *length, struct err *err);
/* SHA-256 of the canonical form, without one of its fields if named. */
int record_digest(
	const json_t *value, const char *without, char hex[DIGEST_ROOT_HEX_BYTES], struct err *err);
/* ERR_CORRUPT when holder's field is not the digest of value. */
int record_check_digest(const json_t *value, const json_t *holder, const char *field,
	const char *without, const char *name, struct err *err);
/* Durable; mode 0600. */
int record_store(int dir_fd, const char *path, const json_t *value, struct err *err);
int record_check_format(const json_t *value, const char *name, struct err *err);
int record_u64(
	const json_t *object, const char *field, uint64_t *out, const char *name, struct err *err);
/* Borrowed from the object. */
const char *record_string(
	const json_t *object, const char *field, const char *name, struct err *err);
int record_text_into(const json_t *object, const char *field, char *out, size_t room,
	const char *name, struct err *err);
json_t *record_object(const json_t *object, const char *field, const char *name, struct err *err);
/* A JSON text of what people gave us: see name_printable(). */
json_t *record_printable(const char *text);

/* --- repository.c --------------------------------------------------------- */

struct lock;

struct repository {
	int dir_fd;
	bool read_only;
	struct repository_info info; /* the fixed part */
	uint8_t seed[DIGEST_SEED_BYTES];
	struct digest_key key;
	atomic_uint nr_users; /* open backups and disks */

	/* Locks that are held, for the heartbeat thread. */
	pthread_mutex_t locks_mutex;
	pthread_cond_t locks_changed;
	struct lock *locks;
	bool beating, stopping;
	pthread_t beater;
};

int repository_free_bytes(
	struct repository *repo, uint64_t *free_bytes, uint64_t *total_bytes, struct err *err);

/* --- settings.c ----------------------------------------------------------- */

int settings_check(const struct repository_settings *settings, struct err *err);
json_t *settings_to_json(const struct repository_settings *settings);
int settings_from_json(struct repository_settings *settings, const json_t *object, const char *name,
	struct err *err);

/* --- owner.c, lock.c ----------------------------------------------------------------- */

/* Who runs a job; also stands in plans. */
struct owner {
	char host_id[65];
	char host[256];
	char boot_id[65];
	uint64_t pid_namespace;
	int64_t pid;
	uint64_t pid_start;
};

enum owner_state { OWNER_ALIVE, OWNER_DEAD, OWNER_ELSEWHERE };

int owner_self(struct owner *owner, struct err *err);
int owner_to_json(const struct owner *owner, json_t *object);
int owner_from_json(struct owner *owner, const json_t *object, const char *name, struct err *err);
enum owner_state owner_state(const struct owner *owner);
/* Whether it is this very process of this host. */
bool owner_is(const struct owner *owner, const struct repository_process *process);

/* Not LOCK_READ and LOCK_WRITE: <fcntl.h> has macros of these names. */
enum lock_kind { LOCK_KIND_WRITE, LOCK_KIND_READ };

/* What its job does, where that makes a difference to others. */
enum lock_task { LOCK_TASK_OTHER, LOCK_TASK_PRUNE };

struct lock_record {
	enum lock_kind kind;
	enum lock_task task;
	char vm[REPOSITORY_VM_BYTES];
	char point[REPOSITORY_POINT_BYTES]; /* "" for a write lock */
	char job[REPOSITORY_JOB_BYTES];
	char since[CLOCK_UTC_BYTES];
	struct owner owner;
	uint64_t heartbeat;
};

/*
 * Takes a lock for job; a dead one's is taken over (logged).  ERR_BUSY names the
 * holder.  A read lease on a read-only or a full (logged) file system is NULL with
 * err clear.
 */
struct lock *lock_take(struct repository *repo, enum lock_kind kind, const char *vm,
	const char *point, const char *job, struct cancel *cancel, struct err *err);

struct lock_wait {
	unsigned wait_ms; /* 0: not at all */
	bool for_prune_only; /* another job is not waited for */
};
/* Takes a VM's write lock, and waits for who holds it (told in the log). */
struct lock *lock_take_write(struct repository *repo, enum lock_task task, const char *vm,
	const char *job, const struct lock_wait *wait, struct cancel *cancel, struct err *err);
/* Gives it back, and if somebody waits for it lets him take it first. */
void lock_let_others(struct repository *repo, struct lock *lock, struct cancel *cancel);

/* Each lease of a VM whose owner lives, as far as one can know.  Return 0 to go on, 1 to stop.
 * A lease that cannot be read is an error. */
typedef int lock_lease_callback(void *context, const struct lock_record *lease);
int lock_leases(struct repository *repo, const char *vm, lock_lease_callback *callback,
	void *context, struct err *err);

/* 0 while the lock in place is ours; ERR_BUSY when it was taken over. */
int lock_still_ours(const struct lock *lock, struct err *err);
/* NULL is harmless. */
void lock_release(struct lock *lock);

/* Serialises taking and taking over, on one host at least: a descriptor to
 * close, or -1 (ERR_TIMEOUT, ERR_CANCELLED). */
int lock_guard(struct repository *repo, struct cancel *cancel, struct err *err);

/* Reads a lock file; alive tells whether its owner lives, as far as one can know
 * now (what another host holds counts as alive until it was seen not to move). */
int lock_look(struct repository *repo, const char *name, struct lock_record *record, bool *alive,
	struct err *err);
/* Removes a lock whose owner is dead; ERR_BUSY when it lives. */
int lock_remove_dead(struct repository *repo, const char *name, struct err *err);
/* Removes all locks and leases of that process, dead or alive; *nr counts on. */
int lock_revoke(struct repository *repo, const struct repository_process *process, unsigned *nr,
	struct err *err);
/* The write lock's file name, relative to the repository. */
void lock_write_name(const char *vm, char name[NAME_PATH_BYTES]);

/* --- path.c --------------------------------------------------------------- */

/* Paths relative to the repository.  Empty file, point: the folder. */
void path_vm(const char *vm, char path[NAME_PATH_BYTES]);
void path_vm_file(const char *vm, const char *file, char path[NAME_PATH_BYTES]);
void path_point(const char *vm, const char *point, const char *file, char path[NAME_PATH_BYTES]);
void path_disk(const char *vm, const char *key, const char *point, const char *ending,
	char path[NAME_PATH_BYTES]);

/* The names in a folder, sorted. */
struct path_names {
	char **name;
	size_t nr;
};
int path_names(int dir_fd, const char *path, struct path_names *names, struct err *err);
void path_names_free(struct path_names *names);

/* False also when one cannot tell: for what does no harm either way. */
bool path_exists(int dir_fd, const char *path);
/* -1 when one cannot tell (a network file system that fails is not an absent file). */
int path_look(int dir_fd, const char *path, bool *is_there, struct err *err);
bool path_has_suffix(const char *text, const char *suffix);

/* --- pointslog.c ---------------------------------------------------------- */

struct pointslog_event {
	char point[REPOSITORY_POINT_BYTES];
	bool committed, pruned;
	char facts_sha256[DIGEST_ROOT_HEX_BYTES]; /* "" when the line has none */
	unsigned line;
	const char *damage; /* NULL, or why the line cannot be read */
};

/* Return 0 to go on, 1 to stop, -1 to fail. */
typedef int pointslog_callback(void *context, const struct pointslog_event *event);

/* A log that is not there has no lines. */
int pointslog_read(struct repository *repo, const char *vm, pointslog_callback *callback,
	void *context, struct err *err);
/* Whether any line names the point. */
int pointslog_has(
	struct repository *repo, const char *vm, const char *point, bool *found, struct err *err);
/* Under the VM's write lock.  Durable.  facts_sha256 may be NULL. */
int pointslog_append(struct repository *repo, const char *vm, const char *event, const char *point,
	const char *job, const char *facts_sha256, struct err *err);
/* What whoever ended before its sync may have appended. */
int pointslog_sync(struct repository *repo, const char *vm, struct err *err);

/* --- manifest.c ----------------------------------------------------------- */

/* What a point's texts are borrowed from. */
struct repository_point_internal {
	json_t *manifest; /* or the object that point_json_parse() read */
	json_t *state; /* NULL: none, or damaged */
	char *damage;
};

json_t *manifest_source_to_json(const struct repository_source *source);
/* NULL only without memory.  A damaged one has point->damage, and err says it. */
struct repository_point *manifest_load(
	struct repository *repo, const char *vm, const char *id, struct err *err);
/* A link of a chain, which a prune may have taken out of the list (then it is not listed, and
 * stands in merging.json).  NULL for a damaged one. */
struct repository_point *manifest_load_link(
	struct repository *repo, const char *vm, const char *id, bool *listed, struct err *err);
const json_t *manifest_json(const struct repository_point *point);
/* state.json as it was when the point was loaded; NULL: none that can be read. */
const json_t *manifest_state(const struct repository_point *point);
/* Whether the last verification found this disk damaged (or did not note which disk was). */
bool manifest_is_damaged(const struct repository_point *point, const char *key);
/* Why an audit distrusts the disk, or NULL. */
const char *manifest_distrusted(const struct repository_point *point, const char *key);
/* The digest of its facts, which it was found to match.  Not for a damaged one. */
const char *manifest_facts_sha256(const struct repository_point *point);
/* Takes both; gives the whole manifest and the digest of its facts. */
json_t *manifest_seal(
	json_t *facts, json_t *storage, char facts_sha256[DIGEST_ROOT_HEX_BYTES], struct err *err);
/* Replaces fields of state.json, keeps the others.  Takes change. */
int manifest_update_state(struct repository *repo, const char *vm, const char *point,
	json_t *change, struct err *err);

/* --- kept.c -------------------------------------------------------------- */

/* path: the file; entry: what the manifest tells of it.  ERR_CORRUPT when it is another. */
int kept_read(struct repository *repo, const char *path, const json_t *entry, char **bytes,
	size_t *length, struct err *err);
/* NULL: the manifest tells of none with that name. */
const json_t *kept_entry(const struct repository_point *point, const char *name);

/* --- list.c --------------------------------------------------------------- */

/* False when nothing tells its name: a foreign folder, or a VM with a shortened name all of
 * whose manifests are damaged. */
bool list_vm_of_folder(struct repository *repo, const char *folder, char vm[REPOSITORY_VM_BYTES]);
/* Whether a folder below vms holds a manifest, readable or not. */
bool list_holds_points(struct repository *repo, const char *folder);
/* The ids of a VM's restore points, by time. */
int list_points(
	struct repository *repo, const char *vm, struct path_names *points, struct err *err);

/* --- hubstate.c ------------------------------------------------------------ */

bool hubstate_is_name(const char *name);
/* Of the files in a hub's folder: those that belong there. */
bool hubstate_is_file(const char *name);

/* --- plan.c --------------------------------------------------------------- */

enum plan_kind { PLAN_BACKUP, PLAN_PRUNE };

struct plan {
	json_t *json;
	enum plan_kind kind;
	char child[REPOSITORY_POINT_BYTES]; /* PRUNE: the point that this one becomes part of; "":
					       none */
	bool begun; /* PRUNE: it only goes forwards */
	char job[REPOSITORY_JOB_BYTES];
	char vm[REPOSITORY_VM_BYTES];
	char point[REPOSITORY_POINT_BYTES];
	char started[CLOCK_UTC_BYTES];
	char stage[REPOSITORY_STAGE_BYTES];
	char stage_since[CLOCK_UTC_BYTES];
	uint64_t keep_s;
	struct owner owner;
	bool alive, committed;
	uint64_t stored_bytes;
};

/* Makes the job's folder with its plan, durably. */
int plan_write(struct repository *repo, const char *job, const json_t *plan, struct cancel *cancel,
	struct err *err);
int plan_write_stage(struct repository *repo, const char *job, const char *stage,
	uint64_t heartbeat, struct err *err);
/* Reads and judges; ERR_NOT_FOUND when the job has none.  Every path in it was
 * found to be the job's own. */
int plan_load(struct repository *repo, const char *job, struct plan *plan, struct err *err);
void plan_free(struct plan *plan);
int64_t plan_keep_until(const struct plan *plan);
/* A job's folder that holds no plan and nothing foreign. */
bool plan_is_leftover(struct repository *repo, const char *job);

/* All under the VM's write lock.  Remove what it lists, durably (ERR_EXISTS, and nothing
 * is removed, when its restore point exists); drop plan and folder; complete what had been
 * committed, and drop. */
int plan_remove_files(struct repository *repo, const struct plan *plan, struct err *err);
int plan_drop(struct repository *repo, const char *job, struct err *err);
/* Of a backup: behind it nobody commits it any more; ERR_EXISTS: that was done. */
int plan_fence(struct repository *repo, const struct plan *plan, struct err *err);
int plan_finish(struct repository *repo, const struct plan *plan, struct err *err);

struct clean {
	enum repository_clean_what what;
	const char *vm; /* NULL: all */
	bool vm_is_locked; /* by the caller, who has no plan yet, or keeps his */
	const char *keep; /* the job that goes on; may be NULL */
	/* NULL, or a restore point that is about to go: a job that takes it or the one beneath out,
	 * or made it, and cannot be finished is an error; others only warn. */
	const char *must_finish;
	struct cancel *cancel;
	unsigned nr_jobs;
	uint64_t freed_bytes;
	int64_t freed_signed_bytes; /* the same, but merging may have made it more */
};
int plan_clean(struct repository *repo, struct clean *clean, struct err *err);

/* --- merge.c --------------------------------------------------------------- */

struct merge_options {
	const struct lock *lock; /* the VM's write lock ... */
	const char *job; /* ... which this job holds */
	const char *software;
	bool delete_only; /* ERR_CONFLICT when another point stands on it */
	struct cancel *cancel; /* may be NULL, as all below */
	struct copy_progress *progress;
	void (*stage)(void *context, const char *vm, const char *point, const char *stage);
	void *context;
};

/*
 * Takes a restore point out of the list, and what it holds out of the repository.  On failure it
 * is listed as before, unless *begun: then it is not, and merge_go_on() has to finish it.
 * ERR_BUSY: somebody uses it; ERR_NO_SPACE, ERR_CORRUPT: what keeps it from being merged.
 */
int merge_point(struct repository *repo, const struct merge_options *options, const char *vm,
	const char *point, int64_t *freed_bytes, bool *begun, struct err *err);

/* Goes on with what a dead job began, or undoes it.  Under the VM's write lock. */
int merge_go_on(struct repository *repo, const struct plan *plan, struct cancel *cancel,
	int64_t *freed_bytes, struct err *err);

/* Fills in the plan's own part of a prune; ERR_FORMAT. */
int merge_parse_plan(struct plan *plan, const char *name, struct err *err);

/* --- merge_look.c ---------------------------------------------------------- */

/* ERR_BUSY naming who reads the point, or one that stands on it. */
int merge_look_use(struct repository *repo, const char *vm, const char *point, struct err *err);

#endif
