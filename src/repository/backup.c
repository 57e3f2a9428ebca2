/*
 * Making a restore point.
 *
 *   state     left by
 *   MAKING    commit's manifest rename ──► COMMITTED     abort, leave, commit's errors before it
 *   COMMITTED nothing is removed any more; what is left to do is the log and the plan
 *
 * Everything that a crash could leave is in the plan before it exists.  The order
 * of commit is invariant 1 of the design; docs/repository-format.md lists it.
 */
#include "backup_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Kept free for records, folders and the metadata of images. */
#define SPACE_MARGIN (16 * MIB)
/* However little room there is, chains do not grow beyond this. */
#define CHAIN_GROWS_MOST 800u

/* --- begin -------------------------------------------------------------------- */

static int check_options(const struct repository_backup_options *options, struct err *err)
{
	if (repository_name_check_vm(options->vm, err) < 0)
		return -1;
	if (options->consistency && strcmp(options->consistency, "application") != 0 &&
		strcmp(options->consistency, "crash") != 0)
		return err_set(err, ERR_USAGE, "a backup cannot be \"%s\" consistent",
			options->consistency);
	if (options->nr_disks == 0 || options->nr_disks > REPOSITORY_DISKS_MAX)
		return err_set(err, ERR_USAGE, "a backup needs 1 to %d disks, not %zu",
			REPOSITORY_DISKS_MAX, options->nr_disks);
	for (size_t i = 0; i < options->nr_disks; i++) {
		const struct repository_disk_spec *spec = &options->disks[i];
		if (repository_name_check_key(spec->key, err) < 0)
			return -1;
		if (spec->size_bytes == 0 || spec->size_bytes > INT64_MAX - 511)
			return err_set(err, ERR_USAGE,
				"disk %s has a size of %" PRIu64 " bytes, which cannot be stored",
				spec->key, spec->size_bytes);
		if ((spec->mode == REPOSITORY_INCREMENTAL) != (spec->parent != NULL) ||
			(spec->mode == REPOSITORY_INCREMENTAL) !=
				(spec->change != REPOSITORY_CHANGE_NONE))
			return err_set(err, ERR_USAGE,
				"disk %s: an increment has a parent and something that tells its "
				"changes, a full has neither",
				spec->key);
		for (size_t k = 0; k < i; k++)
			if (strcmp(options->disks[k].key, spec->key) == 0)
				return err_set(
					err, ERR_USAGE, "disk key %s is given twice", spec->key);
	}
	return 0;
}

/* there_bytes: what an interrupted job has stored of it already. */
static int check_space(struct repository *repo, const struct repository_backup_options *options,
	uint64_t there_bytes, struct err *err)
{
	uint64_t need = SPACE_MARGIN, free_bytes, total_bytes;
	for (size_t i = 0; i < options->nr_disks; i++)
		if (!add_u64(need, options->disks[i].estimate_bytes, &need))
			need = UINT64_MAX;
	if (repository_free_bytes(repo, &free_bytes, &total_bytes, err) < 0)
		return -1;
	if (need <= free_bytes || need - free_bytes <= there_bytes)
		return 0;
	err_set(err, ERR_NO_SPACE,
		"the backup of VM \"%s\" may take %" PRIu64 " MiB, and %s has %" PRIu64 " MiB free",
		options->vm, div_round_up(need, MIB), repo->info.path, free_bytes / MIB);
	return err_hint(err, "make room, or prune older restore points");
}

/* A new id, later than every other of this VM: "latest" is decided by it. */
static int choose_point(struct repository_backup *backup, struct err *err)
{
	struct path_names names = {0};
	char folder[NAME_PATH_BYTES];
	int64_t now = time(NULL);
	clock_utc_text(now, backup->started);
	path_point(backup->vm, "", "", folder);
	if (path_exists(backup->repo->dir_fd, folder) &&
		path_names(backup->repo->dir_fd, folder, &names, err) < 0)
		return -1;
	for (size_t i = 0; i < names.nr; i++) {
		int64_t other =
			repository_name_is_point(names.name[i]) ? name_seconds(names.name[i]) : 0;
		if (other > now + 1)
			log_warning("the clock says %s, before restore point %s of VM \"%s\": the "
				    "new one is named after that",
				backup->started, names.name[i], backup->vm);
		if (other >= now)
			now = other + 1;
	}
	path_names_free(&names);
	if (name_make_point(now, backup->point, err) < 0)
		return -1;
	if (!repository_name_is_point(backup->point))
		return err_set(err, ERR_FORMAT,
			"no restore point can follow the newest one of VM \"%s\": its year is 9999",
			backup->vm);
	return 0;
}

/* *copy is NULL for a text that is none. */
static int copy_text(const char *text, char **copy, struct err *err)
{
	*copy = text && text[0] ? strdup(text) : NULL;
	return *copy || !text || !text[0] ? 0 : err_errno(err, ENOMEM, "cannot begin a backup");
}

static int fill_disk(struct repository_backup *backup, struct backup_disk *disk,
	const struct repository_disk_spec *spec, struct err *err)
{
	disk->backup = backup;
	snprintf(disk->key, sizeof disk->key, "%s", spec->key);
	disk->size_bytes = spec->size_bytes;
	disk->mode = spec->mode;
	disk->change = spec->change;
	disk->tells_since = spec->tells_since;
	disk->reason = strdup(spec->reason ? spec->reason : "");
	disk->source = manifest_source_to_json(&spec->source);
	disk->figures.logical_bytes = spec->size_bytes;
	path_disk(backup->vm, disk->key, backup->point, ".qcow2", disk->image_path);
	path_disk(backup->vm, disk->key, backup->point, ".qcow2.part", disk->image_part);
	path_disk(backup->vm, disk->key, backup->point, ".sums", disk->sums_path);
	path_disk(backup->vm, disk->key, backup->point, ".sums.part", disk->sums_part);
	if (!disk->reason || !disk->source)
		return err_errno(err, ENOMEM, "cannot begin a backup");
	if (copy_text(spec->change_id, &disk->change_id, err) < 0 ||
		copy_text(spec->bitmap, &disk->bitmap, err) < 0 ||
		copy_text(spec->tells_since ? spec->change_id : NULL, &disk->stored_since, err) < 0)
		return -1;
	return copy_text(spec->source_state, &disk->source_state, err);
}

/* --- the parent ------------------------------------------------------------------------- */

static int decide_again(
	const struct repository_backup *backup, const char *key, const char *why, struct err *err)
{
	err_set(err, ERR_BUSY, "disk %s of VM \"%s\" was decided to be an increment, but %s", key,
		backup->vm, why);
	return err_hint(err, "begin the backup again");
}

/* The record of the disk in the VM's latest point, which must be the one that was decided on. */
static const struct repository_disk_info *find_parent(const struct repository_backup *backup,
	const struct repository_disk_spec *spec, const struct repository_point *latest,
	struct err *err)
{
	if (!latest || strcmp(latest->id, spec->parent) != 0) {
		decide_again(backup, spec->key,
			"its parent is not the latest restore point any more", err);
		return NULL;
	}
	for (size_t i = 0; i < latest->nr_disks; i++)
		if (strcmp(latest->disks[i].key, spec->key) == 0 &&
			latest->disks[i].size_bytes == spec->size_bytes)
			return &latest->disks[i];
	decide_again(backup, spec->key, "its parent holds no disk of that key and size", err);
	return NULL;
}

/* A job that is gone on with has made its images already. */
static bool was_full(const struct repository_backup *backup, const char *key)
{
	size_t i;
	const json_t *disk;
	json_array_foreach(json_object_get(backup->adopted.json, "disks"), i, disk)
	{
		const char *name = json_string_value(json_object_get(disk, "key"));
		if (name && strcmp(name, key) == 0)
			return !json_is_string(json_object_get(disk, "backing"));
	}
	return false;
}

/*
 * Whether the chain is long enough to end in a full.  Where there is no room for one it grows on:
 * a repository that is nearly full goes on with increments, as long as the chain can be opened.
 */
static int becomes_full(
	struct repository_backup *backup, struct backup_disk *disk, bool *full, struct err *err)
{
	uint64_t free_bytes, total_bytes, need;
	unsigned length = chain_length(disk->chain);
	*full = length >= backup->repo->info.settings.chain_length_max;
	if (!*full)
		return 0;
	if (backup->adopted.json) {
		*full = was_full(backup, disk->key);
		return 0;
	}
	if (repository_free_bytes(backup->repo, &free_bytes, &total_bytes, err) < 0)
		return -1;
	need = backup->fill_bytes + chain_stored_bytes(disk->chain);
	if (length < CHAIN_GROWS_MOST && need + SPACE_MARGIN > free_bytes) {
		*full = false;
		log_warning(
			"the chain of disk %s of VM \"%s\" has %u images and should end in a full, "
			"for which there is no room: it may take %" PRIu64 " MiB, and %" PRIu64
			" MiB are free",
			disk->key, backup->vm, length, div_round_up(need, MIB), free_bytes / MIB);
	} else {
		backup->fill_bytes = need;
	}
	return 0;
}

/* The write lock is held: nothing of the chain changes until the backup ends. */
static int open_parent(struct repository_backup *backup, struct backup_disk *disk,
	const struct repository_point *latest, const struct repository_disk_info *info,
	struct err *err)
{
	memcpy(disk->parent, latest->id, sizeof disk->parent);
	audit_load_position(disk, latest);
	disk->chain = chain_open(backup->repo, latest, info, err);
	if (!disk->chain)
		return err_context(err, "disk %s, restore point %s of VM \"%s\"", disk->key,
			latest->id, backup->vm);
	if (becomes_full(backup, disk, &disk->is_filled, err) < 0)
		return -1;
	if (!disk->is_filled)
		return 0;
	char *reason = NULL;
	if (asprintf(&reason, "%s%sstored as a full, because its chain has %u images already",
		    disk->reason, disk->reason[0] ? "; " : "", chain_length(disk->chain)) < 0)
		return err_errno(err, ENOMEM, "cannot begin a backup");
	free(disk->reason);
	disk->reason = reason;
	return 0;
}

/* Increments stand on the VM's latest point, which is loaded once for all disks. */
static int open_parents(struct repository_backup *backup,
	const struct repository_backup_options *options, struct err *err)
{
	struct repository_point *latest = NULL;
	int rc = 0;
	for (size_t i = 0; i < options->nr_disks && rc == 0; i++) {
		const struct repository_disk_spec *spec = &options->disks[i];
		if (spec->mode != REPOSITORY_INCREMENTAL)
			continue;
		struct err why = ERR_INIT;
		if (!latest)
			latest = repository_point_load(backup->repo, backup->vm, NULL, &why);
		if (!latest && why.code != ERR_NOT_FOUND) {
			rc = err_copy(err, &why);
			break;
		}
		const struct repository_disk_info *info = find_parent(backup, spec, latest, err);
		rc = info && latest ? open_parent(backup, &backup->disks[i], latest, info, err)
				    : -1;
	}
	repository_point_free(latest);
	return rc;
}

/* --- the plan --------------------------------------------------------------------------- */

static int write_plan(struct repository_backup *backup, struct err *err)
{
	json_t *plan = backup_record_plan(backup, err);
	if (!plan)
		return -1;
	int rc = plan_write(backup->repo, backup->job, plan, backup->cancel, err);
	json_decref(plan);
	if (rc < 0) {
		plan_drop(backup->repo, backup->job, NULL);
		return -1;
	}
	backup->planned = true;
	/* Read back: what will be removed is what stands in the file. */
	return plan_load(backup->repo, backup->job, &backup->plan, err);
}

static int make_folders(struct repository_backup *backup, struct err *err)
{
	size_t i;
	const json_t *value;
	json_array_foreach(json_object_get(backup->plan.json, "folders"), i,
		value) if (file_make_dir(backup->repo->dir_fd, json_string_value(value), 0700,
				   err) < 0) return -1;
	return 0;
}

void backup_free(struct repository_backup *backup)
{
	(void)checkpoint_stop(backup, NULL);
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct backup_disk *disk = &backup->disks[i];
		struct err err = ERR_INIT;
		block_close(disk->remaining, NULL);
		intake_free(disk->intake);
		if (block_close(disk->image, &err) < 0)
			log_debug("%s", err.text);
		sums_writer_free(disk->sums);
		free(disk->reason);
		free(disk->change_id);
		free(disk->bitmap);
		free(disk->source_state);
		free(disk->stored_since);
		chain_free(disk->chain);
		json_decref(disk->source);
	}
	lock_release(backup->lock);
	plan_free(&backup->plan);
	plan_free(&backup->adopted);
	json_decref(backup->source);
	json_decref(backup->config);
	checkpoint_destroy(&backup->checkpoints);
	pthread_mutex_destroy(&backup->stage_mutex);
	backup->repo->nr_users--;
	free(backup->disks);
	free(backup->software);
	free(backup->client);
	free(backup->client_job);
	free(backup->hub_job);
	free(backup->consistency);
	free(backup->consistency_reason);
	free(backup);
}

static struct repository_backup *backup_new(
	struct repository *repo, const struct repository_backup_options *options, struct err *err)
{
	struct repository_backup *backup = calloc(1, sizeof *backup);
	if (!backup) {
		err_errno(err, ENOMEM, "cannot begin a backup");
		return NULL;
	}
	repo->nr_users++;
	backup->repo = repo;
	backup->cancel = options->cancel;
	backup->on_stage = options->stage;
	backup->stage_context = options->stage_context;
	pthread_mutex_init(&backup->stage_mutex, NULL);
	checkpoint_init(&backup->checkpoints);
	snprintf(backup->vm, sizeof backup->vm, "%s", options->vm);
	backup->software = strdup(options->software ? options->software : "sendense");
	backup->source = manifest_source_to_json(&options->source);
	backup->config = json_array();
	backup->client = options->client ? strdup(options->client) : NULL;
	backup->client_job = options->client_job ? strdup(options->client_job) : NULL;
	backup->hub_job = options->hub_job ? strdup(options->hub_job) : NULL;
	backup->consistency = options->consistency ? strdup(options->consistency) : NULL;
	backup->consistency_reason =
		options->consistency_reason ? strdup(options->consistency_reason) : NULL;
	backup->disks = calloc(options->nr_disks, sizeof *backup->disks);
	if (backup->software && backup->source && backup->config && backup->disks &&
		!backup->client == !options->client &&
		!backup->client_job == !options->client_job &&
		!backup->hub_job == !options->hub_job &&
		!backup->consistency == !options->consistency &&
		!backup->consistency_reason == !options->consistency_reason &&
		name_make_job(time(NULL), backup->job, err) == 0)
		return backup;
	if (!err || err->code == ERR_NONE)
		err_errno(err, ENOMEM, "cannot begin a backup");
	backup_free(backup);
	return NULL;
}

static int begin(struct repository_backup *backup, const struct repository_backup_options *options,
	struct err *err)
{
	struct repository *repo = backup->repo;
	if (resume_lock(backup, options, err) < 0)
		return -1;
	bool adopts = backup->adopted.json != NULL;
	struct clean clean = {.what = REPOSITORY_CLEAN_DEAD,
		.vm = backup->vm,
		.vm_is_locked = true,
		.keep = adopts ? backup->job : NULL,
		.cancel = backup->cancel};
	if (plan_clean(repo, &clean, err) < 0)
		return -1;
	/* What other VMs' dead jobs left long ago makes room, too. */
	struct err late = ERR_INIT;
	if (repository_clean(repo, REPOSITORY_CLEAN_EXPIRED, NULL, NULL, NULL, &late) < 0)
		log_warning("%s", late.text);
	if (check_space(repo, options, backup->adopted.stored_bytes, err) < 0 ||
		(!adopts && choose_point(backup, err) < 0))
		return -1;
	for (size_t i = 0; i < options->nr_disks; i++) {
		backup->nr_disks = i + 1;
		if (fill_disk(backup, &backup->disks[i], &options->disks[i], err) < 0)
			return -1;
	}
	if (open_parents(backup, options, err) < 0 ||
		(adopts ? resume_write_plan(backup, options, err) : write_plan(backup, err)) < 0)
		return -1;
	repository_backup_stage(backup, adopts ? REPOSITORY_STAGE_RESUME : REPOSITORY_STAGE_CREATE);
	if (make_folders(backup, err) < 0)
		return -1;
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct backup_disk *disk = &backup->disks[i];
		if ((adopts ? resume_disk(disk, err) : backup_disk_make(disk, err)) < 0)
			return -1;
	}
	return 0;
}

struct repository_backup *repository_backup_begin(
	struct repository *repo, const struct repository_backup_options *options, struct err *err)
{
	if (check_options(options, err) < 0)
		return NULL;
	if (repo->read_only) {
		err_set(err, ERR_DENIED, "repository %s cannot be written to", repo->info.path);
		return NULL;
	}
	struct repository_backup *backup = backup_new(repo, options, err);
	if (!backup || begin(backup, options, err) == 0)
		return backup;
	if (backup->adopted.json)
		repository_backup_leave(backup); /* it may be gone on with another time */
	else
		repository_backup_abort(backup);
	return NULL;
}

/* --- while it runs ---------------------------------------------------------------- */

const char *repository_backup_job(const struct repository_backup *backup)
{
	return backup->job;
}

const char *repository_backup_point(const struct repository_backup *backup)
{
	return backup->point;
}

void repository_backup_stage(struct repository_backup *backup, const char *stage)
{
	size_t length = strlen(stage);
	assert(length > 0 && length < REPOSITORY_STAGE_BYTES);
	assert(strspn(stage, "abcdefghijklmnopqrstuvwxyz0123456789-") == length);
	struct err err = ERR_INIT;
	WITH_LOCK(&backup->stage_mutex);
	if (plan_write_stage(backup->repo, backup->job, stage, ++backup->stage_count, &err) < 0)
		log_warning("%s", err.text);
	if (backup->on_stage)
		backup->on_stage(backup->stage_context, stage);
}

void repository_backup_figures(
	struct repository_backup *backup, size_t disk, const struct repository_figures *figures)
{
	assert(disk < backup->nr_disks);
	backup->disks[disk].figures = *figures;
}

static bool is_config_name(const char *name)
{
	size_t length = strlen(name);
	return length > 0 && length <= 64 && name[0] != '.' &&
	       strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
			    "0123456789_-.") == length;
}

/* The plan gets the new paths before they exist. */
static int replan(
	struct repository_backup *backup, const char *folder, const char *file, struct err *err)
{
	char path[NAME_PATH_BYTES];
	json_t *files = json_object_get(backup->plan.json, "files");
	json_t *folders = json_object_get(backup->plan.json, "folders");
	if (json_array_size(backup->config) == 0)
		json_array_append_new(folders, json_string(folder));
	json_array_append_new(files, json_string(file));
	json_array_append_new(files, json_sprintf("%s.new", file));
	snprintf(path, sizeof path, ".incoming/%s/plan.json", backup->job);
	return record_store(backup->repo->dir_fd, path, backup->plan.json, err);
}

int repository_backup_config(struct repository_backup *backup, const char *name, const void *bytes,
	size_t length, struct err *err)
{
	char folder[NAME_PATH_BYTES], path[NAME_PATH_BYTES], hex[DIGEST_ROOT_HEX_BYTES];
	uint8_t digest[DIGEST_ROOT_BYTES];
	if (!is_config_name(name))
		return err_set(err, ERR_USAGE, "a configuration file cannot be named like that");
	if (length > REPOSITORY_CONFIG_BYTES_MOST)
		return err_set(err, ERR_USAGE,
			"configuration file %s has %zu bytes, more than the %u it may have", name,
			length, REPOSITORY_CONFIG_BYTES_MOST);
	path_point(backup->vm, backup->point, "config", folder);
	snprintf(path, sizeof path, "%.400s/%s", folder, name);
	if (path_exists(backup->repo->dir_fd, path))
		return err_set(err, ERR_EXISTS, "configuration file %s is given twice", name);
	if (replan(backup, folder, path, err) < 0 ||
		file_make_dir(backup->repo->dir_fd, folder, 0700, err) < 0 ||
		file_replace(backup->repo->dir_fd, path, bytes, length, 0600, err) < 0)
		return -1;
	digest_sha256(bytes, length, digest);
	digest_hex(digest, sizeof digest, hex);
	json_array_append_new(
		backup->config, json_pack("{s:s, s:I, s:s}", "name", name, "size_bytes",
					(json_int_t)length, "sha256", hex));
	return 0;
}

/* --- other ends ------------------------------------------------------------------ */

static void close_disks(struct repository_backup *backup)
{
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct backup_disk *disk = &backup->disks[i];
		struct err err = ERR_INIT;
		intake_free(disk->intake);
		disk->intake = NULL;
		if (block_close(disk->image, &err) < 0)
			log_debug("%s", err.text);
		disk->image = NULL;
		sums_writer_free(disk->sums);
		disk->sums = NULL;
	}
}

void repository_backup_abort(struct repository_backup *backup)
{
	if (!backup)
		return;
	struct err err = ERR_INIT;
	if (backup->planned && backup->state == BACKUP_MAKING && backup->plan.json) {
		repository_backup_stage(backup, REPOSITORY_STAGE_ABORT);
		(void)checkpoint_stop(backup, NULL);
		close_disks(backup);
		/* Whoever declared us dead cleans up, too; its lock is not ours. */
		if (lock_still_ours(backup->lock, &err) < 0 ||
			plan_remove_files(backup->repo, &backup->plan, &err) < 0 ||
			plan_drop(backup->repo, backup->job, &err) < 0)
			log_warning("job %s: %s", backup->job, err.text);
	}
	backup_free(backup);
}

void repository_backup_leave(struct repository_backup *backup)
{
	struct err err = ERR_INIT;
	/* Whoever goes on with it finds all of it. */
	if (checkpoint_stop(backup, &err) < 0 || checkpoint_now(backup, &err) < 0)
		log_warning("job %s: %s", backup->job, err.text);
	close_disks(backup);
	if (backup->planned)
		repository_backup_stage(backup, REPOSITORY_STAGE_LEFT);
	backup_free(backup);
}
