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
#include "repository_internal.h"
#include "sums.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Kept free for records, folders and the metadata of images. */
#define SPACE_MARGIN (16 * MIB)

enum state { MAKING, COMMITTED };

struct disk {
	char key[REPOSITORY_KEY_BYTES];
	uint64_t size_bytes;
	char *reason, *change_id;
	json_t *source;
	struct repository_figures figures;
	struct block *image;
	struct sums_writer *sums;
	struct copy_chunk_sink sink;
	struct sums_totals totals;
	bool closed; /* image and sums are complete */
	char image_path[NAME_PATH_BYTES], image_part[NAME_PATH_BYTES];
	char sums_path[NAME_PATH_BYTES], sums_part[NAME_PATH_BYTES];
};

struct repository_backup {
	struct repository *repo;
	enum state state;
	char vm[REPOSITORY_VM_BYTES];
	char job[REPOSITORY_JOB_BYTES];
	char point[REPOSITORY_POINT_BYTES];
	char started[CLOCK_UTC_BYTES];
	char *software;
	json_t *source;
	json_t *config; /* for the manifest */
	struct cancel *cancel;
	void (*on_stage)(void *context, const char *stage); /* may be NULL */
	void *stage_context;
	struct lock *lock;
	struct plan plan;
	bool planned;
	struct disk *disks;
	size_t nr_disks;
	pthread_mutex_t stage_mutex;
	uint64_t stage_count;
};

/* --- begin -------------------------------------------------------------------- */

static int check_options(const struct repository_backup_options *options, struct err *err)
{
	if (repository_name_check_vm(options->vm, err) < 0)
		return -1;
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
		for (size_t k = 0; k < i; k++)
			if (strcmp(options->disks[k].key, spec->key) == 0)
				return err_set(
					err, ERR_USAGE, "disk key %s is given twice", spec->key);
	}
	return 0;
}

static int check_space(
	struct repository *repo, const struct repository_backup_options *options, struct err *err)
{
	uint64_t need = SPACE_MARGIN, free_bytes, total_bytes;
	for (size_t i = 0; i < options->nr_disks; i++)
		if (!add_u64(need, options->disks[i].estimate_bytes, &need))
			need = UINT64_MAX;
	if (repository_free_bytes(repo, &free_bytes, &total_bytes, err) < 0)
		return -1;
	if (need <= free_bytes)
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

static int fill_disk(struct repository_backup *backup, struct disk *disk,
	const struct repository_disk_spec *spec)
{
	snprintf(disk->key, sizeof disk->key, "%s", spec->key);
	disk->size_bytes = spec->size_bytes;
	disk->reason = strdup(spec->reason ? spec->reason : "");
	disk->change_id = spec->change_id ? strdup(spec->change_id) : NULL;
	disk->source = manifest_source_to_json(&spec->source);
	disk->figures.logical_bytes = spec->size_bytes;
	path_disk(backup->vm, disk->key, backup->point, ".qcow2", disk->image_path);
	path_disk(backup->vm, disk->key, backup->point, ".qcow2.part", disk->image_part);
	path_disk(backup->vm, disk->key, backup->point, ".sums", disk->sums_path);
	path_disk(backup->vm, disk->key, backup->point, ".sums.part", disk->sums_part);
	return disk->reason && disk->source && (disk->change_id || !spec->change_id) ? 0 : -1;
}

static void add_folder(struct repository_backup *backup, json_t *folders, const char *path)
{
	if (!path_exists(backup->repo->dir_fd, path))
		json_array_append_new(folders, json_string(path));
}

static void plan_paths(struct repository_backup *backup, json_t *files, json_t *folders)
{
	static const char *const records[] = {"manifest.json.part", "manifest.json.part.new"};
	char path[NAME_PATH_BYTES];
	path_vm(backup->vm, path);
	add_folder(backup, folders, path);
	path_vm_file(backup->vm, "disks", path);
	add_folder(backup, folders, path);
	for (size_t i = 0; i < backup->nr_disks; i++) {
		const struct disk *disk = &backup->disks[i];
		path_disk(backup->vm, disk->key, "", "", path);
		add_folder(backup, folders, path);
		json_array_append_new(files, json_string(disk->image_part));
		json_array_append_new(files, json_string(disk->image_path));
		json_array_append_new(files, json_string(disk->sums_part));
		json_array_append_new(files, json_string(disk->sums_path));
	}
	path_point(backup->vm, "", "", path);
	add_folder(backup, folders, path);
	path_point(backup->vm, backup->point, "", path);
	json_array_append_new(folders, json_string(path));
	for (unsigned i = 0; i < ARRAY_LENGTH(records); i++) {
		path_point(backup->vm, backup->point, records[i], path);
		json_array_append_new(files, json_string(path));
	}
}

static json_t *make_plan(struct repository_backup *backup, struct err *err)
{
	struct owner owner;
	if (owner_self(&owner, err) < 0)
		return NULL;
	json_t *files = json_array(), *folders = json_array(), *disks = json_array();
	json_t *who = json_object();
	owner_to_json(&owner, who);
	plan_paths(backup, files, folders);
	for (size_t i = 0; i < backup->nr_disks; i++) {
		const struct disk *disk = &backup->disks[i];
		json_array_append_new(
			disks, json_pack("{s:s, s:I, s:O, s:s?}", "key", disk->key, "size_bytes",
				       (json_int_t)disk->size_bytes, "source", disk->source,
				       "change_id", disk->change_id));
	}
	json_t *plan = json_pack("{s:i, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:o, s:o, s:o, s:o}",
		"format", REPOSITORY_FORMAT, "job", backup->job, "kind", "backup", "vm", backup->vm,
		"point", backup->point, "started", backup->started, "software", backup->software,
		"keep_seconds", (json_int_t)backup->repo->info.settings.keep_unfinished_s, "owner",
		who, "files", files, "folders", folders, "disks", disks);
	if (!plan || json_array_size(disks) != backup->nr_disks) {
		json_decref(plan);
		err_errno(err, ENOMEM, "cannot plan a backup of VM \"%s\"", backup->vm);
		return NULL;
	}
	return plan;
}

static int write_plan(struct repository_backup *backup, struct err *err)
{
	json_t *plan = make_plan(backup, err);
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

static int sink_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, struct err *err)
{
	return sums_writer_chunks(context, first, nr, leaves, zero_mask, err);
}

static int sink_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	return sums_writer_zeros(context, first, nr, err);
}

static int make_disk(struct repository_backup *backup, struct disk *disk, struct err *err)
{
	const struct repository_settings *settings = &backup->repo->info.settings;
	struct sums_facts facts = {.algorithm = settings->digest, .size_bytes = disk->size_bytes};
	struct qcow2_create_options create = {
		.size_bytes = round_up(disk->size_bytes, 512),
		.cluster_bytes = settings->cluster_bytes,
		.compression =
			settings->compression == REPOSITORY_COMPRESS_ZSTD ? QCOW2_ZSTD : QCOW2_ZLIB,
	};
	struct qcow2_open_options open_options = {
		.size_bytes = disk->size_bytes,
		.compress = settings->compression != REPOSITORY_COMPRESS_NONE,
		.compress_level = settings->compress_level,
	};
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/%s", backup->repo->info.path, disk->image_part) < 0)
		return err_errno(err, ENOMEM, "cannot make disk %s", disk->key);
	if (qcow2_create(path, &create, err) < 0)
		return -1;
	disk->image = qcow2_open(path, &open_options, err);
	if (!disk->image)
		return -1;
	memcpy(facts.key, disk->key, sizeof facts.key);
	memcpy(facts.point, backup->point, sizeof facts.point);
	disk->sums = sums_writer_create(backup->repo->dir_fd, disk->sums_part, &facts, NULL, err);
	disk->sink = (struct copy_chunk_sink){
		.context = disk->sums, .chunks = sink_chunks, .zeros = sink_zeros};
	return disk->sums ? 0 : -1;
}

static void backup_free(struct repository_backup *backup)
{
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct disk *disk = &backup->disks[i];
		struct err err = ERR_INIT;
		if (block_close(disk->image, &err) < 0)
			log_debug("%s", err.text);
		sums_writer_free(disk->sums);
		free(disk->reason);
		free(disk->change_id);
		json_decref(disk->source);
	}
	lock_release(backup->lock);
	plan_free(&backup->plan);
	json_decref(backup->source);
	json_decref(backup->config);
	pthread_mutex_destroy(&backup->stage_mutex);
	backup->repo->nr_users--;
	free(backup->disks);
	free(backup->software);
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
	snprintf(backup->vm, sizeof backup->vm, "%s", options->vm);
	backup->software = strdup(options->software ? options->software : "sendense");
	backup->source = manifest_source_to_json(&options->source);
	backup->config = json_array();
	backup->disks = calloc(options->nr_disks, sizeof *backup->disks);
	if (backup->software && backup->source && backup->config && backup->disks &&
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
	backup->lock = lock_take(
		repo, LOCK_KIND_WRITE, backup->vm, NULL, backup->job, backup->cancel, err);
	if (!backup->lock)
		return -1;
	struct clean clean = {.what = REPOSITORY_CLEAN_DEAD,
		.vm = backup->vm,
		.vm_is_locked = true,
		.cancel = backup->cancel};
	if (plan_clean(repo, &clean, err) < 0)
		return -1;
	/* What other VMs' dead jobs left long ago makes room, too. */
	struct err late = ERR_INIT;
	if (repository_clean(repo, REPOSITORY_CLEAN_EXPIRED, NULL, NULL, NULL, &late) < 0)
		log_warning("%s", late.text);
	if (check_space(repo, options, err) < 0 || choose_point(backup, err) < 0)
		return -1;
	for (size_t i = 0; i < options->nr_disks; i++) {
		backup->nr_disks = i + 1;
		if (fill_disk(backup, &backup->disks[i], &options->disks[i]) < 0)
			return err_errno(err, ENOMEM, "cannot begin a backup");
	}
	if (write_plan(backup, err) < 0)
		return -1;
	repository_backup_stage(backup, REPOSITORY_STAGE_CREATE);
	if (make_folders(backup, err) < 0)
		return -1;
	for (size_t i = 0; i < backup->nr_disks; i++)
		if (make_disk(backup, &backup->disks[i], err) < 0)
			return -1;
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
	if (backup && begin(backup, options, err) < 0) {
		repository_backup_abort(backup);
		return NULL;
	}
	return backup;
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

struct block *repository_backup_block(struct repository_backup *backup, size_t disk)
{
	assert(disk < backup->nr_disks);
	return backup->disks[disk].image;
}

const struct copy_chunk_sink *repository_backup_sink(struct repository_backup *backup, size_t disk)
{
	assert(disk < backup->nr_disks);
	return &backup->disks[disk].sink;
}

const struct digest_key *repository_backup_digest_key(struct repository_backup *backup)
{
	return &backup->repo->key;
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

/* --- commit ---------------------------------------------------------------------- */

static int sync_path(struct repository *repo, const char *path, struct err *err)
{
	int AUTO_CLOSE fd = openat(repo->dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fsync(fd) < 0)
		return err_errno(err, errno, "cannot sync %s", path);
	return 0;
}

static int complete_data(struct repository_backup *backup, struct err *err)
{
	repository_backup_stage(backup, REPOSITORY_STAGE_SYNC_DATA);
	for (size_t i = 0; i < backup->nr_disks; i++)
		if (!backup->disks[i].closed && block_flush(backup->disks[i].image, err) < 0)
			return err_context(err, "disk %s", backup->disks[i].key);
	repository_backup_stage(backup, REPOSITORY_STAGE_CLOSE_DATA);
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct disk *disk = &backup->disks[i];
		if (disk->closed)
			continue;
		struct block *image = disk->image;
		disk->image = NULL;
		if (block_close(image, err) < 0 ||
			sync_path(backup->repo, disk->image_part, err) < 0)
			return err_context(err, "disk %s", disk->key);
	}
	repository_backup_stage(backup, REPOSITORY_STAGE_SYNC_SUMS);
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct disk *disk = &backup->disks[i];
		if (!disk->closed && sums_writer_finish(disk->sums, &disk->totals, err) < 0)
			return err_context(err, "disk %s", disk->key);
		disk->closed = true;
	}
	return 0;
}

static int rename_file(struct repository *repo, const char *from, const char *to, struct err *err)
{
	if (renameat(repo->dir_fd, from, repo->dir_fd, to) < 0)
		return err_errno(err, errno, "cannot rename %s to %s", from, to);
	return 0;
}

/* All folders from the top down to the disks' and the point's. */
static int sync_folders(struct repository_backup *backup, struct err *err)
{
	struct repository *repo = backup->repo;
	char path[NAME_PATH_BYTES];
	for (size_t i = 0; i < backup->nr_disks; i++) {
		path_disk(backup->vm, backup->disks[i].key, "", "", path);
		if (file_sync_dir(repo->dir_fd, path, err) < 0)
			return -1;
	}
	path_vm_file(backup->vm, "disks", path);
	if (file_sync_dir(repo->dir_fd, path, err) < 0)
		return -1;
	path_point(backup->vm, backup->point, "", path);
	if (file_sync_dir(repo->dir_fd, path, err) < 0)
		return -1;
	path_point(backup->vm, "", "", path);
	if (file_sync_dir(repo->dir_fd, path, err) < 0)
		return -1;
	path_vm(backup->vm, path);
	if (file_sync_dir(repo->dir_fd, path, err) < 0)
		return -1;
	return file_sync_dir(repo->dir_fd, "vms", err);
}

static int rename_data(struct repository_backup *backup, struct err *err)
{
	repository_backup_stage(backup, REPOSITORY_STAGE_RENAME_DATA);
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct disk *disk = &backup->disks[i];
		struct stat image, sums;
		if (fstatat(backup->repo->dir_fd, disk->image_part, &image, 0) < 0 ||
			fstatat(backup->repo->dir_fd, disk->sums_part, &sums, 0) < 0)
			return err_errno(err, errno, "cannot stat the files of disk %s", disk->key);
		disk->figures.stored_bytes =
			((uint64_t)image.st_blocks + (uint64_t)sums.st_blocks) * 512;
		if (rename_file(backup->repo, disk->image_part, disk->image_path, err) < 0 ||
			rename_file(backup->repo, disk->sums_part, disk->sums_path, err) < 0)
			return -1;
	}
	repository_backup_stage(backup, REPOSITORY_STAGE_SYNC_FOLDERS);
	return sync_folders(backup, err);
}

static json_t *disk_facts(const struct disk *disk)
{
	char root[DIGEST_ROOT_HEX_BYTES];
	const struct repository_figures *figures = &disk->figures;
	digest_hex(disk->totals.root, DIGEST_ROOT_BYTES, root);
	return json_pack("{s:s, s:I, s:s, s:o, s:n, s:o, s:O, s:s, s:{s:I, s:I, s:I, s:I, s:I}}",
		"key", disk->key, "size_bytes", (json_int_t)disk->size_bytes, "mode", "full",
		"reason", record_printable(disk->reason), "parent", "change_id",
		disk->change_id ? record_printable(disk->change_id) : json_null(), "source",
		disk->source, "root", root, "figures", "logical_bytes",
		(json_int_t)figures->logical_bytes, "read_bytes", (json_int_t)figures->read_bytes,
		"sent_bytes", (json_int_t)figures->sent_bytes, "zeros_skipped_bytes",
		(json_int_t)figures->zeros_skipped_bytes, "stored_bytes",
		(json_int_t)figures->stored_bytes);
}

static json_t *make_facts(struct repository_backup *backup)
{
	char finished[CLOCK_UTC_BYTES];
	const struct repository_settings *settings = &backup->repo->info.settings;
	name_now(finished);
	json_t *disks = json_array();
	for (size_t i = 0; i < backup->nr_disks; i++)
		json_array_append_new(disks, disk_facts(&backup->disks[i]));
	if (json_array_size(disks) != backup->nr_disks) {
		json_decref(disks);
		return NULL;
	}
	return json_pack("{s:s, s:s, s:s, s:s, s:o, s:s, s:s, s:O, s:{s:s, s:i}, s:o, s:O}",
		"repository", backup->repo->info.id, "vm", backup->vm, "point", backup->point,
		"job", backup->job, "software", record_printable(backup->software), "started",
		backup->started, "finished", finished, "source", backup->source, "digest",
		"algorithm", digest_algorithm_name(settings->digest), "chunk_bytes",
		(int)DIGEST_CHUNK_BYTES, "disks", disks, "config", backup->config);
}

static json_t *make_storage(struct repository_backup *backup)
{
	const struct repository_settings *settings = &backup->repo->info.settings;
	json_t *disks = json_object();
	for (size_t i = 0; i < backup->nr_disks; i++) {
		const struct disk *disk = &backup->disks[i];
		json_object_set_new(disks, disk->key,
			json_pack("{s:s, s:s, s:n, s:I, s:s, s:I}", "image", disk->image_path,
				"sums", disk->sums_path, "backing", "cluster_bytes",
				(json_int_t)settings->cluster_bytes, "compression",
				repository_compression_name(settings->compression), "stored_bytes",
				(json_int_t)disk->figures.stored_bytes));
	}
	return json_pack("{s:i, s:o}", "generation", 1, "disks", disks);
}

static int commit_manifest(
	struct repository_backup *backup, char facts_sha256[DIGEST_ROOT_HEX_BYTES], struct err *err)
{
	char part[NAME_PATH_BYTES], path[NAME_PATH_BYTES], folder[NAME_PATH_BYTES];
	path_point(backup->vm, backup->point, "manifest.json.part", part);
	path_point(backup->vm, backup->point, "manifest.json", path);
	path_point(backup->vm, backup->point, "", folder);
	json_t *manifest =
		manifest_seal(make_facts(backup), make_storage(backup), facts_sha256, err);
	if (!manifest)
		return -1;
	int rc = record_store(backup->repo->dir_fd, part, manifest, err);
	json_decref(manifest);
	if (rc < 0)
		return -1;
	repository_backup_stage(backup, REPOSITORY_STAGE_RENAME_MANIFEST);
	if (lock_still_ours(backup->lock, err) < 0)
		return -1;
	bool committed = true;
	struct err why = ERR_INIT;
	/* A network file system may do it and lose the answer. */
	if (rename_file(backup->repo, part, path, &why) < 0 &&
		(path_look(backup->repo->dir_fd, path, &committed, NULL) < 0 || !committed))
		return err_copy(err, &why);
	backup->state = COMMITTED;
	return file_sync_dir(backup->repo->dir_fd, folder, err);
}

int repository_backup_commit(struct repository_backup *backup, struct err *err)
{
	char facts_sha256[DIGEST_ROOT_HEX_BYTES];
	assert(backup->state == MAKING);
	if (complete_data(backup, err) < 0 || cancel_check(backup->cancel, err) < 0 ||
		lock_still_ours(backup->lock, err) < 0 || rename_data(backup, err) < 0 ||
		commit_manifest(backup, facts_sha256, err) < 0) {
		if (backup->state == COMMITTED)
			err_context(err,
				"restore point %s was made, but may not outlast a power cut",
				backup->point);
		return err_context(err, "cannot commit the backup of VM \"%s\"", backup->vm);
	}
	/* It exists.  What fails from here on is done by the next clean-up. */
	struct err late = ERR_INIT;
	repository_backup_stage(backup, REPOSITORY_STAGE_LOG);
	if (pointslog_append(backup->repo, backup->vm, "committed", backup->point, backup->job,
		    facts_sha256, &late) < 0) {
		log_warning("restore point %s of VM \"%s\" is made, but its job stays open: %s",
			backup->point, backup->vm, late.text);
	} else {
		repository_backup_stage(backup, REPOSITORY_STAGE_DROP_PLAN);
		if (plan_drop(backup->repo, backup->job, &late) < 0)
			log_warning("%s", late.text);
	}
	backup_free(backup);
	return 0;
}

bool repository_backup_is_committed(const struct repository_backup *backup)
{
	return backup->state == COMMITTED;
}

/* --- other ends ------------------------------------------------------------------ */

static void close_disks(struct repository_backup *backup)
{
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct disk *disk = &backup->disks[i];
		struct err err = ERR_INIT;
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
	if (backup->planned && backup->state == MAKING && backup->plan.json) {
		repository_backup_stage(backup, REPOSITORY_STAGE_ABORT);
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
	backup_free(backup);
}
