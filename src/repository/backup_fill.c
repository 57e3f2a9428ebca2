/*
 * A full that was read as an increment: what the source did not change comes from the chain.
 *
 *   told by the copy  ──► stays, and reads as the new image
 *   not told          ──► copied from the parent's disk, verified
 *
 * A granule of the image may hold both; it is written whole, hence the new disk has to
 * read as what it will be.
 */
#include "backup_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

struct fill {
	struct block block;
	struct backup_disk *disk;
	struct block *parent;
	atomic_bool parent_damaged;
};

/* How many bytes from offset on are told, or not told, alike. */
static int look(const struct fill *fill, uint64_t offset, uint64_t length, bool *told,
	uint64_t *run, struct err *err)
{
	uint64_t chunk = offset / DIGEST_CHUNK_BYTES, nr;
	uint64_t most = div_round_up(offset + length, DIGEST_CHUNK_BYTES) - chunk;
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	enum sums_kind kind;
	if (sums_writer_look(fill->disk->sums, chunk, most, &kind, &nr, leaf, err) < 0)
		return -1;
	*told = kind == SUMS_DATA || kind == SUMS_ZERO;
	*run = min_u64(length, (chunk + nr) * DIGEST_CHUNK_BYTES - offset);
	return 0;
}

static int read_parent(
	struct fill *fill, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct err why = ERR_INIT;
	if (block_read(fill->parent, buffer, length, offset, &why) == 0)
		return 0;
	if (why.code == ERR_CORRUPT)
		atomic_store(&fill->parent_damaged, true);
	return err_copy(err, &why);
}

static int fill_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct fill *fill = (struct fill *)block;
	for (uint8_t *out = buffer; length > 0;) {
		bool told;
		uint64_t run;
		if (look(fill, offset, length, &told, &run, err) < 0)
			return -1;
		if ((told ? block_read(fill->disk->image, out, (size_t)run, offset, err)
			  : read_parent(fill, out, (size_t)run, offset, err)) < 0)
			return -1;
		out += run;
		offset += run;
		length -= (size_t)run;
	}
	return 0;
}

static int fill_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr_extents, struct err *err)
{
	const struct fill *fill = (struct fill *)block;
	bool told;
	uint64_t run;
	if (look(fill, offset, length, &told, &run, err) < 0)
		return -1;
	if (!told)
		return block_extents(fill->parent, offset, run, extents, max, nr_extents, err);
	extents[0] = (struct block_extent){.length = run, .flags = BLOCK_UNCHANGED};
	*nr_extents = 1;
	return 0;
}

static int fill_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	return 0;
}

static const struct block_driver fill_driver = {
	.name = "fill", .read = fill_read, .extents = fill_extents, .close = fill_close};

/* As a verification does: so the next backup of this disk is a full from the source. */
static int note_damage(const struct backup_disk *disk, struct err *err)
{
	char now[CLOCK_UTC_BYTES];
	struct repository *repo = disk->backup->repo;
	struct repository_point *parent = manifest_load(repo, disk->backup->vm, disk->parent, err);
	if (!parent)
		return -1;
	bool known = manifest_is_damaged(parent, disk->key);
	const json_t *before = json_object_get(manifest_state(parent), "verified");
	json_t *keys = json_array();
	if (parent->verified == REPOSITORY_DAMAGED)
		json_array_extend(keys, json_object_get(before, "disks"));
	repository_point_free(parent);
	json_array_append_new(keys, json_string(disk->key));
	name_now(now);
	json_t *change = json_pack("{s:{s:s, s:s, s:i, s:o}}", "verified", "at", now, "result",
		"damaged", "chunks", 0, "disks", keys);
	if (known) {
		json_decref(change);
		return 0;
	}
	return manifest_update_state(repo, disk->backup->vm, disk->parent, change, err);
}

static int tell_damage(const struct backup_disk *disk, struct err *err)
{
	struct err why = ERR_INIT;
	if (note_damage(disk, &why) == 0)
		return err_hint(err, "the next backup of this disk is a full from the source");
	log_warning("it could not be recorded that restore point %s is damaged: %s", disk->parent,
		why.text);
	return err_hint(err, "--mode full makes a new full from the source");
}

static int fill_disk(struct backup_disk *disk, struct err *err)
{
	struct repository_backup *backup = disk->backup;
	const struct repository_disk_options verified = {.verify = true};
	struct repository_disk *parent = repository_disk_open(
		backup->repo, backup->vm, disk->parent, disk->key, &verified, err);
	if (!parent)
		return -1;
	struct fill fill = {.disk = disk, .parent = repository_disk_block(parent)};
	struct copy_options options = {.digest_key = &backup->repo->key,
		.sink = &disk->sink,
		.changed_only = true,
		.cancel = backup->cancel};
	block_init(&fill.block, &fill_driver, strdup(block_label(fill.parent)));
	fill.block.info = *block_info(fill.parent);
	fill.block.info.has_changes = true;
	disk->is_filling = true;
	if (disk->resumed != REPOSITORY_FRESH)
		resume_baseline(disk, &options); /* zeros over nothing are not written */
	int rc = copy_run(&fill.block, disk->image, &options, err);
	block_close(&fill.block, NULL);
	repository_disk_close(parent);
	return rc < 0 && atomic_load(&fill.parent_damaged) ? tell_damage(disk, err) : rc;
}

int backup_fill(struct repository_backup *backup, struct err *err)
{
	bool begun = false;
	for (size_t i = 0; i < backup->nr_disks; i++) {
		struct backup_disk *disk = &backup->disks[i];
		if (!disk->is_filled || disk->closed)
			continue;
		if (!begun)
			repository_backup_stage(backup, REPOSITORY_STAGE_FILL);
		begun = true;
		if (fill_disk(disk, err) < 0)
			return err_context(
				err, "disk %s cannot be made a full of its chain", disk->key);
	}
	return 0;
}
