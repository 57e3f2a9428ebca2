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
#include <string.h>

struct fill {
	struct block block;
	struct backup_disk *disk;
	struct block *parent;
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

static int fill_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	const struct fill *fill = (struct fill *)block;
	for (uint8_t *out = buffer; length > 0;) {
		bool told;
		uint64_t run;
		if (look(fill, offset, length, &told, &run, err) < 0 ||
			block_read(told ? fill->disk->image : fill->parent, out, (size_t)run,
				offset, err) < 0)
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
	if (rc < 0 && err && err->code == ERR_CORRUPT)
		err_hint(err, "--mode full makes a new full from the source");
	return rc;
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
