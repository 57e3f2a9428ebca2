/* The two files of a disk that is being backed up: its image and its sums. */
#include "backup_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

void backup_disk_image_options(const struct backup_disk *disk, struct qcow2_create_options *create,
	char backing[BACKUP_BACKING_BYTES])
{
	const struct repository_settings *settings = &disk->backup->repo->info.settings;
	const char *beneath = backup_record_backing(disk);
	*create = (struct qcow2_create_options){
		.size_bytes = round_up(disk->size_bytes, 512),
		.cluster_bytes = settings->cluster_bytes,
		.compression =
			settings->compression == REPOSITORY_COMPRESS_ZSTD ? QCOW2_ZSTD : QCOW2_ZLIB,
	};
	if (!beneath)
		return;
	snprintf(backing, BACKUP_BACKING_BYTES, "%s.qcow2", beneath);
	create->backing_file = backing;
	create->backing_format = "qcow2";
}

void backup_disk_sums_facts(const struct backup_disk *disk, struct sums_facts *facts)
{
	*facts = (struct sums_facts){.algorithm = disk->backup->repo->info.settings.digest,
		.size_bytes = disk->size_bytes,
		.increment = backup_record_backing(disk) != NULL};
	memcpy(facts->key, disk->key, sizeof facts->key);
	memcpy(facts->point, disk->backup->point, sizeof facts->point);
}

struct sums_reader *backup_disk_parent_sums(const struct backup_disk *disk)
{
	return backup_record_backing(disk) ? chain_sums(disk->chain) : NULL;
}

int backup_disk_open_image(struct backup_disk *disk, const char *path, struct err *err)
{
	const struct repository_settings *settings = &disk->backup->repo->info.settings;
	const struct qcow2_open_options options = {
		.size_bytes = disk->size_bytes,
		.compress = settings->compression != REPOSITORY_COMPRESS_NONE,
		.compress_level = settings->compress_level,
	};
	disk->image = qcow2_open(path, &options, err);
	return disk->image ? 0 : -1;
}

int backup_disk_make(struct backup_disk *disk, struct err *err)
{
	struct repository *repo = disk->backup->repo;
	char backing[BACKUP_BACKING_BYTES];
	struct sums_facts facts;
	struct qcow2_create_options create;
	char *AUTO_FREE path = NULL;
	if (asprintf(&path, "%s/%s", repo->info.path, disk->image_part) < 0)
		return err_errno(err, ENOMEM, "cannot make disk %s", disk->key);
	backup_disk_image_options(disk, &create, backing);
	if (qcow2_create(path, &create, err) < 0 || backup_disk_open_image(disk, path, err) < 0)
		return -1;
	backup_disk_sums_facts(disk, &facts);
	disk->sums = sums_writer_create(
		repo->dir_fd, disk->sums_part, &facts, backup_disk_parent_sums(disk), err);
	return disk->sums ? 0 : -1;
}
