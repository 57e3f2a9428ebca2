/*
 * Going on with an interrupted backup: finding its job, and taking it over.
 *
 *   .incoming/JOB of a dead owner ─ the same disks? ─► the VM's lock, under that job's id
 *     ─► plan read again: still so ─► plan rewritten: new owner ─► images, sums opened
 *     ─► what the sums tell is held against the images (resume_check.c)
 *     ─► copied: only what is not there yet (resume_copy.c)
 *
 * What is stored may come from another state of the source than the one that is read now.
 * The plan says which state it is of (source_state), as long as it is of one; from the moment on
 * that another state may be mixed in it says none.  Then everything is compared, unless the source
 * can tell what changed since the oldest state that anything stored may be of (stored_since):
 *
 *      state 1 (stored_since)      state 2, interrupted as well         state 3, read now
 *      a a a a                     . b . b                              changed since 1: . x . x
 *
 * What did not change between the first and the last is the same in all of them, whichever it was
 * read from.  So the first one's change id stays the base until the restore point is made: what was
 * read twice counts as changed a third time, and nothing has to be forgotten before it is
 * overwritten.
 */
#include "backup_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* --- which job ----------------------------------------------------------------------- */

static const json_t *find_disk(const json_t *plan, const char *key)
{
	size_t i;
	const json_t *disk;
	json_array_foreach(json_object_get(plan, "disks"), i, disk)
	{
		const char *other = json_string_value(json_object_get(disk, "key"));
		if (other && strcmp(other, key) == 0)
			return disk;
	}
	return NULL;
}

static bool is_text(const json_t *object, const char *field, const char *expect)
{
	const char *text = json_string_value(json_object_get(object, field));
	return text && expect ? strcmp(text, expect) == 0 : !text && !expect;
}

/* NULL, or in what the unfinished job's disk is not the one that is to be backed up now. */
static const char *differs(const json_t *disk, const struct repository_disk_spec *spec)
{
	bool incremental = spec->mode == REPOSITORY_INCREMENTAL;
	if (!disk)
		return "it has not";
	if (json_integer_value(json_object_get(disk, "size_bytes")) != (json_int_t)spec->size_bytes)
		return "its size is another";
	if (!is_text(disk, "mode", incremental ? "incremental" : "full"))
		return "its mode is another";
	if (!is_text(disk, "parent", spec->parent))
		return "its parent is another";
	if (!is_text(disk, "changed_by", incremental ? repository_change_name(spec->change) : NULL))
		return "its changes were known in another way";
	return NULL;
}

/* Points are ordered by their ids: one that is made now must be the latest. */
static bool is_latest(struct repository *repo, const struct plan *plan)
{
	struct path_names points = {0};
	struct err why = ERR_INIT;
	if (list_points(repo, plan->vm, &points, &why) < 0)
		return why.code == ERR_NOT_FOUND;
	bool latest = points.nr == 0 || strcmp(points.name[points.nr - 1], plan->point) < 0;
	path_names_free(&points);
	return latest;
}

/*
 * Whether the job is of these disks.  An owner that was only declared dead may still write: its
 * files are removed, not gone on with, unless it let go of them by itself.
 */
static bool is_ours(struct repository *repo, const struct plan *plan,
	const struct repository_backup_options *options)
{
	size_t nr = json_array_size(json_object_get(plan->json, "disks"));
	const char *why = NULL;
	if (plan->kind != PLAN_BACKUP || plan->committed || strcmp(plan->vm, options->vm) != 0)
		return false;
	if (nr != options->nr_disks)
		why = "it has other disks";
	for (size_t i = 0; i < options->nr_disks && !why; i++)
		why = differs(find_disk(plan->json, options->disks[i].key), &options->disks[i]);
	if (!why && strcmp(plan->stage, REPOSITORY_STAGE_LEFT) != 0 &&
		owner_state(&plan->owner) != OWNER_DEAD)
		why = "one cannot be sure that its owner is dead";
	if (!why && !is_latest(repo, plan))
		why = "a later restore point was made";
	if (why)
		log_info("unfinished job %s of VM \"%s\" cannot be gone on with: %s", plan->job,
			plan->vm, why);
	return !why;
}

/* The newest job that can be gone on with: its id, or "". */
static int choose(struct repository *repo, const struct repository_backup_options *options,
	char job[REPOSITORY_JOB_BYTES], struct err *err)
{
	struct path_names names;
	job[0] = '\0';
	if (path_names(repo->dir_fd, ".incoming", &names, err) < 0)
		return -1;
	for (size_t i = 0; i < names.nr; i++) {
		struct plan plan;
		if (!name_is_job(names.name[i]) || plan_load(repo, names.name[i], &plan, NULL) < 0)
			continue;
		if (!plan.alive && is_ours(repo, &plan, options))
			memcpy(job, plan.job, REPOSITORY_JOB_BYTES);
		plan_free(&plan);
	}
	path_names_free(&names);
	return 0;
}

/* --- the lock --------------------------------------------------------------------------- */

static int take_lock(struct repository_backup *backup,
	const struct repository_backup_options *options, struct err *err)
{
	const struct lock_wait wait = {.wait_ms = options->wait_ms, .for_prune_only = true};
	backup->lock = lock_take_write(
		backup->repo, LOCK_TASK_OTHER, backup->vm, backup->job, &wait, backup->cancel, err);
	return backup->lock ? 0 : -1;
}

/* The job was chosen before the lock: somebody may have been faster. */
static int take_plan(struct repository_backup *backup,
	const struct repository_backup_options *options, struct err *err)
{
	struct plan plan;
	if (plan_load(backup->repo, backup->job, &plan, NULL) == 0) {
		plan.alive = false; /* it is our lock that names it */
		if (is_ours(backup->repo, &plan, options)) {
			memcpy(backup->point, plan.point, sizeof backup->point);
			backup->adopted = plan;
			return 0;
		}
		plan_free(&plan);
	}
	lock_release(backup->lock);
	backup->lock = NULL;
	if (name_make_job(time(NULL), backup->job, err) < 0)
		return -1;
	return take_lock(backup, options, err);
}

int resume_lock(struct repository_backup *backup, const struct repository_backup_options *options,
	struct err *err)
{
	char job[REPOSITORY_JOB_BYTES] = "";
	if (options->resume != REPOSITORY_RESUME_NEVER &&
		choose(backup->repo, options, job, err) < 0)
		return -1;
	if (job[0])
		memcpy(backup->job, job, sizeof backup->job);
	if (take_lock(backup, options, err) < 0 || (job[0] && take_plan(backup, options, err) < 0))
		return -1;
	if (options->resume != REPOSITORY_RESUME_MUST || backup->adopted.json)
		return 0;
	err_set(err, ERR_NOT_FOUND,
		"there is no interrupted backup of these disks of VM \"%s\" to go on with",
		backup->vm);
	return err_hint(err, "sendense repo info lists unfinished jobs");
}

/* --- the plan ----------------------------------------------------------------------------- */

/* Files that are made anew whatever was there. */
static int remove_records(struct repository_backup *backup, struct err *err)
{
	char folder[NAME_PATH_BYTES];
	size_t i;
	const json_t *value;
	path_point(backup->vm, backup->point, "", folder);
	size_t length = strlen(folder);
	json_array_foreach(json_object_get(backup->adopted.json, "files"), i, value)
	{
		const char *path = json_string_value(value);
		if (strncmp(path, folder, length) == 0 && path[length] == '/' &&
			unlinkat(backup->repo->dir_fd, path, 0) < 0 && errno != ENOENT &&
			errno != ENOTDIR)
			return err_errno(err, errno, "cannot remove %s", path);
	}
	return 0;
}

static bool holds(const json_t *array, const char *text)
{
	size_t i;
	const json_t *value;
	json_array_foreach(array, i, value)
	{
		if (strcmp(json_string_value(value), text) == 0)
			return true;
	}
	return false;
}

/* The folders that the job made at first are still its own. */
static void keep_folders(const json_t *before, json_t *plan)
{
	json_t *folders = json_deep_copy(json_object_get(before, "folders"));
	size_t i;
	const json_t *value;
	json_array_foreach(json_object_get(plan, "folders"), i, value)
	{
		if (!holds(folders, json_string_value(value)))
			json_array_append_new(folders, json_string(json_string_value(value)));
	}
	json_object_set_new(plan, "folders", folders);
}

/* Whether it is the very disk that was read before, by all that it is known by. */
static bool is_same_disk(const struct backup_disk *disk, const json_t *before)
{
	const json_t *then = json_object_get(json_object_get(before, "source"), "identity");
	const json_t *now = json_object_get(disk->source, "identity");
	return json_object_size(now) > 0 && json_equal(then, now);
}

/* Whether it is known what changed since what is stored was read; if not, nothing says any more
 * how old that is. */
static int look_since(struct repository_backup *backup,
	const struct repository_backup_options *options, size_t i, const json_t *before,
	struct err *err)
{
	struct backup_disk *disk = &backup->disks[i];
	const char *since = json_string_value(json_object_get(before, "stored_since"));
	int known = since && disk->tells_since && is_same_disk(disk, before);
	free(disk->stored_since);
	disk->stored_since = NULL;
	if (known && options->changed_since)
		known = options->changed_since(
			options->changed_context, i, since, &disk->changed, err);
	if (known <= 0)
		return known;
	disk->is_updated = true;
	disk->stored_since = strdup(since);
	return disk->stored_since ? 0 : err_errno(err, ENOMEM, "cannot go on with a backup");
}

/* Whether what is stored is of the state that is read now.  Else it will be of no one state. */
static int look_at_state(struct repository_backup *backup,
	const struct repository_backup_options *options, size_t i, struct err *err)
{
	struct backup_disk *disk = &backup->disks[i];
	const json_t *before = find_disk(backup->adopted.json, disk->key);
	disk->same_state =
		disk->source_state && is_text(before, "source_state", disk->source_state);
	if (disk->same_state)
		return 0;
	free(disk->source_state);
	disk->source_state = NULL;
	return look_since(backup, options, i, before, err);
}

int resume_write_plan(struct repository_backup *backup,
	const struct repository_backup_options *options, struct err *err)
{
	bool same = true;
	char path[NAME_PATH_BYTES];
	for (size_t i = 0; i < backup->nr_disks; i++) {
		if (look_at_state(backup, options, i, err) < 0)
			return -1;
		same &= backup->disks[i].same_state;
	}
	/* What is read now is of now. */
	if (same)
		memcpy(backup->started, backup->adopted.started, sizeof backup->started);
	else
		name_now(backup->started);
	json_t *plan = backup_record_plan(backup, err);
	if (!plan)
		return -1;
	keep_folders(backup->adopted.json, plan);
	snprintf(path, sizeof path, ".incoming/%s/plan.json", backup->job);
	int rc = remove_records(backup, err);
	if (rc == 0)
		rc = record_store(backup->repo->dir_fd, path, plan, err);
	json_decref(plan);
	if (rc < 0)
		return -1;
	backup->planned = true;
	return plan_load(backup->repo, backup->job, &backup->plan, err);
}

/* --- the disks ------------------------------------------------------------------------------ */

/* A commit that was interrupted may have renamed it already. */
static int name_part(struct repository *repo, const char *path, const char *part, struct err *err)
{
	if (renameat2(repo->dir_fd, path, repo->dir_fd, part, RENAME_NOREPLACE) == 0 ||
		errno == ENOENT || errno == EEXIST)
		return 0;
	if (errno == EINVAL && !path_exists(repo->dir_fd, part) &&
		renameat(repo->dir_fd, path, repo->dir_fd, part) == 0)
		return 0;
	return errno == EINVAL ? 0 : err_errno(err, errno, "cannot rename %s", path);
}

/* Whether the image is as one would be made now; why says what is not. */
static bool is_alike(struct backup_disk *disk, const char *path, struct err *why)
{
	struct qcow2_create_options create;
	struct qcow2_facts facts;
	char backing[BACKUP_BACKING_BYTES];
	backup_disk_image_options(disk, &create, backing);
	if (qcow2_facts(path, &facts, why) < 0)
		return false;
	if (facts.size_bytes == create.size_bytes && facts.cluster_bytes == create.cluster_bytes &&
		facts.compression == create.compression &&
		strcmp(facts.backing_file, create.backing_file ? create.backing_file : "") == 0)
		return true;
	err_set(why, ERR_FORMAT, "%s was made with other settings", disk->image_part);
	return false;
}

/* Whatever stands in it is trusted as far as its tables are in order, and its digests hold. */
static int check_image(struct backup_disk *disk, const char *path, struct err *why)
{
	struct qcow2_check_result result;
	if (qcow2_check(path, true, disk->backup->cancel, NULL, NULL, &result, why) < 0)
		return -1;
	if (result.errors + result.leaks == result.repaired)
		return 0;
	return err_set(why, ERR_CORRUPT, "%s is damaged", disk->image_part);
}

static int open_both(struct repository_backup *backup, struct backup_disk *disk, struct err *why)
{
	struct sums_facts facts;
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/%s", backup->repo->info.path, disk->image_part) < 0)
		return err_errno(why, ENOMEM, "cannot open disk %s", disk->key);
	if (!is_alike(disk, path, why) || check_image(disk, path, why) < 0 ||
		backup_disk_open_image(disk, path, why) < 0)
		return -1;
	backup_disk_sums_facts(disk, &facts);
	disk->sums = sums_writer_reopen(
		backup->repo->dir_fd, disk->sums_part, &facts, backup_disk_parent_sums(disk), why);
	return disk->sums ? 0 : -1;
}

/* Whatever was there is of no use. */
static int begin_anew(struct repository_backup *backup, struct backup_disk *disk, struct err *err)
{
	block_close(disk->image, NULL);
	disk->image = NULL;
	sums_writer_free(disk->sums);
	disk->sums = NULL;
	if ((unlinkat(backup->repo->dir_fd, disk->image_part, 0) < 0 && errno != ENOENT) ||
		(unlinkat(backup->repo->dir_fd, disk->sums_part, 0) < 0 && errno != ENOENT))
		return err_errno(err, errno, "cannot remove what is left of disk %s", disk->key);
	return backup_disk_make(disk, err);
}

static bool is_final(const struct err *why)
{
	return why->code == ERR_BUSY || why->code == ERR_NO_MEMORY || why->code == ERR_NO_SPACE ||
	       why->code == ERR_DENIED || why->code == ERR_CANCELLED;
}

int resume_disk(struct backup_disk *disk, struct err *err)
{
	struct repository_backup *backup = disk->backup;
	struct err why = ERR_INIT;
	if (name_part(backup->repo, disk->image_path, disk->image_part, err) < 0 ||
		name_part(backup->repo, disk->sums_path, disk->sums_part, err) < 0)
		return -1;
	if (open_both(backup, disk, &why) < 0) {
		if (is_final(&why))
			return err_copy(err, &why);
		log_info("disk %s of unfinished job %s begins anew: %s", disk->key, backup->job,
			why.text);
		return begin_anew(backup, disk, err);
	}
	if (resume_check(disk, err) < 0)
		return err_context(err, "disk %s", disk->key);
	disk->resumed = disk->same_state   ? REPOSITORY_RESUMED
			: disk->is_updated ? REPOSITORY_UPDATED
					   : REPOSITORY_COMPARED;
	log_info("unfinished job %s is gone on with: of disk %s %" PRIu64
		 " MiB are there already, %s",
		backup->job, disk->key, disk->kept_bytes / MIB,
		disk->same_state   ? "which are not read again"
		: disk->is_updated ? "which are read again where they changed since"
				   : "and all of it is read again and compared with them");
	return 0;
}

const char *repository_backup_since(const struct repository_backup *backup, size_t disk)
{
	const struct backup_disk *d = &backup->disks[disk];
	return d->resumed == REPOSITORY_UPDATED ? d->stored_since : NULL;
}

enum repository_resumed repository_backup_resumed(
	const struct repository_backup *backup, size_t disk, uint64_t *kept_bytes)
{
	if (kept_bytes)
		*kept_bytes = backup->disks[disk].kept_bytes;
	return backup->disks[disk].resumed;
}
