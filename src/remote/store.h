/*
 * store: restore points wherever they are: in a folder, or behind a hub.
 *
 *   commands ─► store ─┬► a local repository (repository.h), every call passed on
 *                      └► a hub: REST for what is asked and told, NBD for the bytes
 *                           backup   POST /sessions, an export a disk, digests at the commit
 *                           restore  POST /serves, read here, held against the manifest's root
 *                           verify, prune …  jobs of the hub, followed until they end
 *
 * Both give the structs of repository.h, errors with the same codes, and the same order of
 * calls.  What holds for a function of repository.h holds here, unless this header says
 * otherwise.
 *
 * Thread rule: a store may be used by several threads; a store_backup belongs to one, its
 * blocks, sinks and baselines to any number.
 */
#ifndef SENDENSE_STORE_H
#define SENDENSE_STORE_H

#include "repository.h"

#include <jansson.h>

struct store;

struct store_options {
	const char *name; /* a folder, or http(s)://HOST[:PORT][/REPOSITORY]; of a hub with one
			     repository its name may be left out */
	enum repository_mode mode; /* of a folder; a hub looks at the token */
	const char *token_file; /* of a hub; NULL: the file that SENDENSE_TOKEN_FILE names, or
				   none; ERR_USAGE with a folder */
	const char *ca_file; /* the same; SENDENSE_CA_FILE */
	const char *software; /* "sendense 0.1.0 (...)"; copied */
	const char *build; /* the exact commit, told to the hub; copied */
	struct cancel *cancel; /* borrowed; may be NULL */
};

/* Whether the name is a hub's. */
bool store_is_url(const char *name);

/* As repository_open(); of a hub: it answers, speaks our protocol, knows the token and has the
 * repository.  ERR_USAGE for a name or options that cannot be. */
struct store *store_open(const struct store_options *options, struct err *err);
/* Nothing of it is open any more.  NULL is harmless. */
void store_close(struct store *store);

/* The folder's repository; NULL: it is a hub's. */
struct repository *store_local(struct store *store);
/* What it is called: the folder, or the hub's URL with the repository. */
const char *store_name(const struct store *store);
/* The repository's name at the hub; NULL: a folder. */
const char *store_repository(const struct store *store);

/* --- asking ------------------------------------------------------------------------- */

/* path is "" where the hub does not tell it. */
int store_info(struct store *store, struct repository_info *info, struct err *err);
/* What a hub tells of the repository, or NULL: a folder.  The caller's. */
json_t *store_info_json(struct store *store, struct err *err);
int store_list_vms(
	struct store *store, repository_vm_callback *callback, void *context, struct err *err);
int store_list_points(struct store *store, const char *vm, repository_point_callback *callback,
	void *context, struct err *err);
struct repository_point *store_point_load(
	struct store *store, const char *vm, const char *point, struct err *err);
/* See repository_config_load(). */
int store_config_load(struct store *store, const char *vm, const char *point, const char *name,
	char **bytes, size_t *length, struct err *err);
struct repository_point *store_latest(struct store *store, const char *vm, const char *key,
	const struct repository_disk_info **disk, struct err *err);
/*
 * The VM's restore point that this job made (store_backup_options): 1, 0 when there is none, -1.
 * Of a hub: one that it is just making is waited for, until then (ERR_BUSY).
 */
int store_point_of_job(struct store *store, const char *vm, const char *job, struct deadline until,
	char point[REPOSITORY_POINT_BYTES], struct err *err);
int store_protect(struct store *store, const char *vm, const char *point, bool off, int64_t until,
	struct err *err);

/* --- making a restore point ------------------------------------------------------------ */

struct store_backup;

struct store_backup_disk {
	struct repository_offer offer;
	const char *change_id, *bitmap, *source_state; /* see repository_disk_spec; may be NULL */
	bool tells_since; /* changed_since may be asked */
};

struct store_backup_options {
	const char *vm, *wish; /* see repository_decide() */
	struct repository_source source;
	const struct store_backup_disk *disks;
	size_t nr_disks;
	const char *consistency, *consistency_reason;
	/* Of whoever makes it; store_point_of_job() finds it by that.  A folder has it as the job
	 * of a hub, a hub as that of its client.  May be NULL. */
	const char *job;
	enum repository_resume resume;
	unsigned wait_ms; /* at a hub for the end of another session that commits, too */
	void (*stage)(void *context, const char *stage); /* may be NULL */
	/* What a disk can take at most (repository_disk_spec.estimate_bytes); asked for folders
	 * alone; may be NULL. */
	uint64_t (*estimate)(void *context, size_t disk, const struct repository_decision *decision,
		const struct repository_settings *settings);
	/* See repository_backup_options.  Not asked where changes are not to be believed. */
	repository_changed_since *changed_since; /* may be NULL */
	void *context;
};

/*
 * Decides each disk (decisions: nr_disks, filled) and begins; decides again where another
 * backup came in between.  Borrows options for the call, except context.  In a hub it is a
 * session: its lease is renewed from a thread of its own until the backup ends.
 */
struct store_backup *store_backup_begin(struct store *store,
	const struct store_backup_options *options, struct repository_decision *decisions,
	struct err *err);

const char *store_backup_point(const struct store_backup *backup);
void store_backup_stage(struct store_backup *backup, const char *stage);
enum repository_resumed store_backup_resumed(
	const struct store_backup *backup, size_t disk, uint64_t *kept_bytes);
int store_backup_copy(struct store_backup *backup, size_t disk, struct block *source,
	struct copy_options *options, struct block **from, struct block **to, struct err *err);
int store_backup_audit(struct store_backup *backup, size_t disk, struct block *source,
	unsigned per_mille, uint64_t *audited_bytes, struct err *err);
void store_backup_figures(
	struct store_backup *backup, size_t disk, const struct repository_figures *figures);
int store_backup_config(struct store_backup *backup, const char *name, const void *bytes,
	size_t length, struct err *err);
/* In a hub: tells the digests of what was sent, and waits for the commit's job. */
int store_backup_commit(struct store_backup *backup, struct err *err);
bool store_backup_is_committed(const struct store_backup *backup);
/* After it failed: true when a hub, which may have been too far to be stopped, made the restore
 * point all the same.  keep: else what was stored is kept.  Always false of a folder. */
bool store_backup_stop_commit(struct store_backup *backup, bool keep);
void store_backup_abort(struct store_backup *backup);
void store_backup_leave(struct store_backup *backup);
/* After a failure: whether the way to the hub was lost, so that leaving and beginning again
 * may go on where it was.  Never of a folder. */
bool store_backup_is_lost(const struct store_backup *backup, const struct err *why);

/* --- reading back ------------------------------------------------------------------------ */

struct store_disk;

struct store_disk *store_disk_open(struct store *store, const char *vm, const char *point,
	const char *key, const struct repository_disk_options *options, struct err *err);
struct block *store_disk_block(struct store_disk *disk);
const struct repository_disk_info *store_disk_info(const struct store_disk *disk);
const char *store_disk_point(const struct store_disk *disk);
/* For copy_options of a restore. */
const struct copy_chunk_sink *store_disk_sink(struct store_disk *disk);
const struct digest_key *store_disk_digest_key(struct store_disk *disk);
/*
 * After a copy of the whole disk with that sink: whether it was what was backed up.  Of a
 * folder the sink has said so; of a hub the root over all that was read is held against the
 * manifest's here (ERR_CORRUPT).
 */
int store_disk_check(struct store_disk *disk, struct err *err);
/* Of a copy that failed: whether it was the disk in the store that is damaged, which makes it
 * ERR_CORRUPT. */
void store_disk_explain(struct store_disk *disk, struct err *err);
void store_disk_close(struct store_disk *disk);

/* --- verify and prune ------------------------------------------------------------------------ */

int store_verify(struct store *store, const struct repository_verify_options *options,
	struct repository_verify_result *result, struct err *err);
int store_prune(struct store *store, const struct repository_prune_options *options,
	struct repository_prune_result *result, struct err *err);

/* --- the index ------------------------------------------------------------------------------- */

/* Of a hub alone: it reads its index of the repository anew.  report: what the job tells, the
 * caller's; NULL: nothing. */
int store_reindex(struct store *store, json_t **report, struct err *err);

#endif
