/*
 * The one door to restore points: a folder's calls are passed on to the repository, a hub's to
 * the files of this room.  See store.h.
 */
#include "remote_internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>

/* How often it is decided anew when another backup of the VM comes in between. */
#define DECIDE_MOST 3u

/* --- opening ------------------------------------------------------------------------ */

bool store_is_url(const char *name)
{
	return strncmp(name, "http://", 7) == 0 || strncmp(name, "https://", 8) == 0;
}

static const char *or_environment(const char *given, const char *variable)
{
	const char *value = given ? given : getenv(variable);
	return value && value[0] ? value : NULL;
}

static int open_folder(struct store *store, const struct store_options *options, struct err *err)
{
	if (strstr(options->name, "://"))
		return err_set(err, ERR_USAGE,
			"--repo %s: a repository is a folder, or a hub's "
			"https://HOST[:PORT][/NAME]",
			options->name);
	if (options->token_file || options->ca_file)
		return err_set(err, ERR_USAGE,
			"--token-file and --ca-file are for a hub, and %s is a folder",
			options->name);
	store->repo = repository_open(options->name, options->mode, err);
	return store->repo ? 0 : -1;
}

static int open_hub(struct store *store, const struct store_options *options, struct err *err)
{
	struct store_options given = *options;
	given.token_file = or_environment(options->token_file, "SENDENSE_TOKEN_FILE");
	given.ca_file = or_environment(options->ca_file, "SENDENSE_CA_FILE");
	struct stat st;
	if (given.token_file && stat(given.token_file, &st) == 0 && (st.st_mode & 077) != 0)
		log_warning("others may read the token in %s (chmod 600 it)", given.token_file);
	return hub_open(store, &given, err);
}

struct store *store_open(const struct store_options *options, struct err *err)
{
	struct store *store = calloc(1, sizeof *store);
	if (!store) {
		err_errno(err, ENOMEM, "cannot open %s", options->name);
		return NULL;
	}
	store->cancel = options->cancel;
	store->name = strdup(options->name);
	store->software = strdup(options->software);
	int rc = store->name && store->software
			 ? 0
			 : err_errno(err, ENOMEM, "cannot open %s", options->name);
	if (rc == 0)
		rc = store_is_url(options->name) ? open_hub(store, options, err)
						 : open_folder(store, options, err);
	if (rc == 0)
		return store;
	store_close(store);
	return NULL;
}

void store_close(struct store *store)
{
	if (!store)
		return;
	hub_close(store);
	repository_close(store->repo);
	free(store->software);
	free(store->name);
	free(store);
}

struct repository *store_local(struct store *store)
{
	return store->repo;
}

const char *store_name(const struct store *store)
{
	return store->name;
}

const char *store_repository(const struct store *store)
{
	return store->repository;
}

/* --- asking ------------------------------------------------------------------------- */

int store_info(struct store *store, struct repository_info *info, struct err *err)
{
	return store->repo ? repository_info(store->repo, info, err) : hub_info(store, info, err);
}

json_t *store_info_json(struct store *store, struct err *err)
{
	return store->repo ? NULL : hub_info_json(store, err);
}

int store_list_vms(
	struct store *store, repository_vm_callback *callback, void *context, struct err *err)
{
	return store->repo ? repository_list_vms(store->repo, callback, context, err)
			   : hub_list_vms(store, callback, context, err);
}

int store_list_points(struct store *store, const char *vm, repository_point_callback *callback,
	void *context, struct err *err)
{
	return store->repo ? repository_list_points(store->repo, vm, callback, context, err)
			   : hub_list_points(store, vm, callback, context, err);
}

struct repository_point *store_point_load(
	struct store *store, const char *vm, const char *point, struct err *err)
{
	return store->repo ? repository_point_load(store->repo, vm, point, err)
			   : hub_point_load(store, vm, point, err);
}

int store_config_load(struct store *store, const char *vm, const char *point, const char *name,
	char **bytes, size_t *length, struct err *err)
{
	return store->repo
		       ? repository_config_load(store->repo, vm, point, name, bytes, length, err)
		       : hub_point_config(store, vm, point, name, bytes, length, err);
}

struct repository_point *store_latest(struct store *store, const char *vm, const char *key,
	const struct repository_disk_info **disk, struct err *err)
{
	if (store->repo)
		return repository_latest(store->repo, vm, key, disk, err);
	struct err why = ERR_INIT;
	struct repository_point *point = hub_point_load(store, vm, NULL, &why);
	*disk = repository_point_disk(point, key);
	if (*disk)
		return point;
	if (!point && why.code != ERR_NOT_FOUND)
		err_copy(err, &why);
	repository_point_free(point);
	return NULL;
}

int store_point_of_job(struct store *store, const char *vm, const char *job, struct deadline until,
	char point[REPOSITORY_POINT_BYTES], struct err *err)
{
	return store->repo ? repository_point_of_job(store->repo, vm, job, point, err)
			   : hub_point_of_job(store, vm, job, until, point, err);
}

int store_protect(struct store *store, const char *vm, const char *point, bool off, int64_t until,
	struct err *err)
{
	return store->repo ? repository_protect(store->repo, vm, point, off, until, err)
			   : hub_protect(store, vm, point, off, until, err);
}

int store_verify(struct store *store, const struct repository_verify_options *options,
	struct repository_verify_result *result, struct err *err)
{
	return store->repo ? repository_verify(store->repo, options, result, err)
			   : hub_verify(store, options, result, err);
}

int store_prune(struct store *store, const struct repository_prune_options *options,
	struct repository_prune_result *result, struct err *err)
{
	return store->repo ? repository_prune(store->repo, options, result, err)
			   : hub_prune(store, options, result, err);
}

/* --- a backup in a folder ------------------------------------------------------------- */

/* Whether another restore point was made since it was decided. */
static bool is_outdated(struct repository *repo, const struct store_backup_options *options,
	const struct repository_decision *decisions)
{
	for (size_t i = 0; i < options->nr_disks; i++) {
		if (decisions[i].mode != REPOSITORY_INCREMENTAL)
			continue;
		const struct repository_disk_info *disk;
		struct repository_point *latest = repository_latest(
			repo, options->vm, options->disks[i].offer.key, &disk, NULL);
		bool same = latest && strcmp(latest->id, decisions[i].parent) == 0;
		repository_point_free(latest);
		return !same;
	}
	return false;
}

static int decide(struct repository *repo, const struct store_backup_options *options,
	struct repository_offer *offers, struct repository_disk_spec *specs,
	struct repository_decision *decisions, struct err *err)
{
	struct repository_info info;
	for (size_t i = 0; i < options->nr_disks; i++)
		offers[i] = options->disks[i].offer;
	if (repository_info(repo, &info, err) < 0 ||
		repository_decide(repo, options->vm, options->wish, offers, options->nr_disks,
			decisions, err) < 0)
		return -1;
	for (size_t i = 0; i < options->nr_disks; i++) {
		const struct store_backup_disk *disk = &options->disks[i];
		const struct repository_decision *decision = &decisions[i];
		bool is_full = decision->mode == REPOSITORY_FULL;
		specs[i] = (struct repository_disk_spec){
			.key = disk->offer.key,
			.size_bytes = disk->offer.size_bytes,
			.mode = decision->mode,
			.reason = decision->reason,
			.parent = is_full ? NULL : decision->parent,
			.change = is_full ? REPOSITORY_CHANGE_NONE : decision->change,
			.change_id = disk->change_id,
			.bitmap = disk->bitmap,
			.source_state = disk->source_state,
			.tells_since = disk->tells_since && !decision->distrusts_changes,
			.source = disk->offer.source,
			.estimate_bytes = options->estimate ? options->estimate(options->context, i,
								      decision, &info.settings)
							    : 0,
		};
	}
	return 0;
}

static struct repository_backup *begin_local(struct store *store,
	const struct store_backup_options *options, struct repository_decision *decisions,
	struct err *err)
{
	struct repository_offer *AUTO_FREE offers = calloc(options->nr_disks, sizeof *offers);
	struct repository_disk_spec *AUTO_FREE specs = calloc(options->nr_disks, sizeof *specs);
	struct repository_backup_options begin = {
		.vm = options->vm,
		.source = options->source,
		.disks = specs,
		.nr_disks = options->nr_disks,
		.software = store->software,
		.consistency = options->consistency,
		.consistency_reason = options->consistency_reason,
		.hub_job = options->job,
		.resume = options->resume,
		.wait_ms = options->wait_ms,
		.cancel = store->cancel,
		.stage = options->stage,
		.stage_context = options->context,
		.changed_since = options->changed_since,
		.changed_context = options->context,
	};
	if (!offers || !specs) {
		err_errno(err, ENOMEM, "cannot back up %s", options->vm);
		return NULL;
	}
	for (unsigned attempt = 1;; attempt++) {
		if (decide(store->repo, options, offers, specs, decisions, err) < 0)
			return NULL;
		if (options->stage)
			options->stage(options->context, REPOSITORY_STAGE_BEGIN);
		struct err why = ERR_INIT;
		struct repository_backup *backup =
			repository_backup_begin(store->repo, &begin, &why);
		if (backup)
			return backup;
		if (why.code != ERR_BUSY || attempt == DECIDE_MOST ||
			!is_outdated(store->repo, options, decisions)) {
			err_copy(err, &why);
			return NULL;
		}
	}
}

/* --- backups ---------------------------------------------------------------------------- */

struct store_backup *store_backup_begin(struct store *store,
	const struct store_backup_options *options, struct repository_decision *decisions,
	struct err *err)
{
	assert(options->nr_disks > 0 && options->nr_disks <= REPOSITORY_DISKS_MAX);
	struct store_backup *backup = calloc(1, sizeof *backup);
	if (!backup) {
		err_errno(err, ENOMEM, "cannot back up %s", options->vm);
		return NULL;
	}
	if (store->repo)
		backup->local = begin_local(store, options, decisions, err);
	else
		backup->session = session_begin(store, options, decisions, err);
	if (backup->local || backup->session)
		return backup;
	free(backup);
	return NULL;
}

const char *store_backup_point(const struct store_backup *backup)
{
	return backup->local ? repository_backup_point(backup->local)
			     : session_point(backup->session);
}

void store_backup_stage(struct store_backup *backup, const char *stage)
{
	if (backup->local)
		repository_backup_stage(backup->local, stage);
	else
		session_stage(backup->session, stage);
}

enum repository_resumed store_backup_resumed(
	const struct store_backup *backup, size_t disk, uint64_t *kept_bytes)
{
	return backup->local ? repository_backup_resumed(backup->local, disk, kept_bytes)
			     : session_resumed(backup->session, disk, kept_bytes);
}

int store_backup_copy(struct store_backup *backup, size_t disk, struct block *source,
	struct copy_options *options, struct block **from, struct block **to, struct err *err)
{
	return backup->local
		       ? repository_backup_copy(backup->local, disk, source, options, from, to, err)
		       : session_copy(backup->session, disk, source, options, from, to, err);
}

int store_backup_audit(struct store_backup *backup, size_t disk, struct block *source,
	unsigned per_mille, uint64_t *audited_bytes, struct err *err)
{
	return backup->local ? repository_backup_audit(
				       backup->local, disk, source, per_mille, audited_bytes, err)
			     : session_audit(backup->session, disk, source, per_mille,
				       audited_bytes, err);
}

void store_backup_figures(
	struct store_backup *backup, size_t disk, const struct repository_figures *figures)
{
	if (backup->local)
		repository_backup_figures(backup->local, disk, figures);
	else
		session_figures(backup->session, disk, figures);
}

int store_backup_config(struct store_backup *backup, const char *name, const void *bytes,
	size_t length, struct err *err)
{
	return backup->local ? repository_backup_config(backup->local, name, bytes, length, err)
			     : session_config(backup->session, name, bytes, length, err);
}

int store_backup_commit(struct store_backup *backup, struct err *err)
{
	int rc = backup->local ? repository_backup_commit(backup->local, err)
			       : session_commit(backup->session, err);
	if (rc == 0)
		free(backup);
	return rc;
}

bool store_backup_is_committed(const struct store_backup *backup)
{
	return backup->local ? repository_backup_is_committed(backup->local)
			     : session_is_committed(backup->session);
}

bool store_backup_stop_commit(struct store_backup *backup, bool keep)
{
	return backup->session && session_stop_commit(backup->session, keep);
}

void store_backup_abort(struct store_backup *backup)
{
	if (!backup)
		return;
	repository_backup_abort(backup->local);
	session_end(backup->session, false);
	free(backup);
}

void store_backup_leave(struct store_backup *backup)
{
	if (backup->local)
		repository_backup_leave(backup->local);
	session_end(backup->session, true);
	free(backup);
}

bool store_backup_is_lost(const struct store_backup *backup, const struct err *why)
{
	return backup->session && session_is_lost(backup->session, why);
}

/* --- reading back ------------------------------------------------------------------------- */

struct store_disk *store_disk_open(struct store *store, const char *vm, const char *point,
	const char *key, const struct repository_disk_options *options, struct err *err)
{
	struct store_disk *disk = calloc(1, sizeof *disk);
	if (!disk) {
		err_errno(err, ENOMEM, "cannot open a disk of %s", vm);
		return NULL;
	}
	if (store->repo)
		disk->local = repository_disk_open(store->repo, vm, point, key, options, err);
	else
		disk->served = served_open(store, vm, point, key, err);
	if (disk->local || disk->served)
		return disk;
	free(disk);
	return NULL;
}

struct block *store_disk_block(struct store_disk *disk)
{
	return disk->local ? repository_disk_block(disk->local) : served_block(disk->served);
}

const struct repository_disk_info *store_disk_info(const struct store_disk *disk)
{
	return disk->local ? repository_disk_info(disk->local) : served_info(disk->served);
}

const char *store_disk_point(const struct store_disk *disk)
{
	return disk->local ? repository_disk_point(disk->local) : served_point(disk->served);
}

const struct copy_chunk_sink *store_disk_sink(struct store_disk *disk)
{
	return disk->local ? repository_disk_sink(disk->local) : served_sink(disk->served);
}

const struct digest_key *store_disk_digest_key(struct store_disk *disk)
{
	return disk->local ? repository_disk_digest_key(disk->local)
			   : served_digest_key(disk->served);
}

int store_disk_check(struct store_disk *disk, struct err *err)
{
	return disk->local ? 0 : served_check(disk->served, err);
}

void store_disk_explain(struct store_disk *disk, struct err *err)
{
	if (disk && disk->served)
		served_explain(disk->served, err);
}

void store_disk_close(struct store_disk *disk)
{
	if (!disk)
		return;
	repository_disk_close(disk->local);
	served_close(disk->served);
	free(disk);
}

int store_reindex(struct store *store, json_t **report, struct err *err)
{
	if (!store_local(store))
		return hub_reindex(store, report, err);
	return err_set(err, ERR_USAGE, "%s is a folder, and has no index", store_name(store));
}
