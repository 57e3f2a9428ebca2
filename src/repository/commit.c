/*
 * Committing a backup: invariant 1 of the design, in the order that
 * docs/repository-format.md lists.
 */
#include "backup_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>

static int sync_path(struct repository *repo, const char *path, struct err *err)
{
	int AUTO_CLOSE fd = openat(repo->dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fsync(fd) < 0)
		return err_errno(err, errno, "cannot sync %s", path);
	return 0;
}

static int complete_data(struct repository_backup *backup, struct err *err)
{
	if (checkpoint_stop(backup, err) < 0)
		return -1;
	repository_backup_stage(backup, REPOSITORY_STAGE_SYNC_DATA);
	for (size_t i = 0; i < backup->nr_disks; i++)
		if (!backup->disks[i].closed && block_flush(backup->disks[i].image, err) < 0)
			return err_context(err, "disk %s", backup->disks[i].key);
	repository_backup_stage(backup, REPOSITORY_STAGE_CLOSE_DATA);
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct backup_disk *disk = &backup->disks[i];
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
		struct backup_disk *disk = &backup->disks[i];
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

int backup_sync_folders(struct repository_backup *backup, struct err *err)
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
		struct backup_disk *disk = &backup->disks[i];
		struct stat image, sums;
		if (fstatat(backup->repo->dir_fd, disk->image_part, &image, 0) < 0 ||
			fstatat(backup->repo->dir_fd, disk->sums_part, &sums, 0) < 0)
			return err_errno(err, errno, "cannot stat the files of disk %s", disk->key);
		disk->figures.stored_bytes =
			((uint64_t)image.st_blocks + (uint64_t)sums.st_blocks) * 512;
		disk->image_bytes = (uint64_t)image.st_size;
		if (rename_file(backup->repo, disk->image_part, disk->image_path, err) < 0 ||
			rename_file(backup->repo, disk->sums_part, disk->sums_path, err) < 0)
			return -1;
	}
	repository_backup_stage(backup, REPOSITORY_STAGE_SYNC_FOLDERS);
	return backup_sync_folders(backup, err);
}

static int commit_manifest(
	struct repository_backup *backup, char facts_sha256[DIGEST_ROOT_HEX_BYTES], struct err *err)
{
	char part[NAME_PATH_BYTES], path[NAME_PATH_BYTES], folder[NAME_PATH_BYTES];
	path_point(backup->vm, backup->point, "manifest.json.part", part);
	path_point(backup->vm, backup->point, "manifest.json", path);
	path_point(backup->vm, backup->point, "", folder);
	json_t *manifest = manifest_seal(
		backup_record_facts(backup), backup_record_storage(backup), facts_sha256, err);
	if (!manifest)
		return -1;
	int rc = record_store(backup->repo->dir_fd, part, manifest, err);
	json_decref(manifest);
	if (rc < 0 || audit_store_positions(backup, err) < 0)
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
	backup->state = BACKUP_COMMITTED;
	return file_sync_dir(backup->repo->dir_fd, folder, err);
}

int repository_backup_commit(struct repository_backup *backup, struct err *err)
{
	char facts_sha256[DIGEST_ROOT_HEX_BYTES];
	assert(backup->state == BACKUP_MAKING);
	for (size_t i = 0; i < backup->nr_disks; i++)
		assert(!backup->disks[i].intake || backup->disks[i].checked);
	if (backup_fill(backup, err) < 0 || complete_data(backup, err) < 0 ||
		cancel_check(backup->cancel, err) < 0 || lock_still_ours(backup->lock, err) < 0 ||
		rename_data(backup, err) < 0 || commit_manifest(backup, facts_sha256, err) < 0) {
		if (backup->state == BACKUP_COMMITTED)
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
	return backup->state == BACKUP_COMMITTED;
}
