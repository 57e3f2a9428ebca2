/* Restore points made in a test, from a disk that is held in memory and knows which of
 * its chunks changed since the last point. */
#ifndef SENDENSE_TEST_POINTS_H
#define SENDENSE_TEST_POINTS_H

#include "disk_internal.h"
#include "test_support.h"

struct memory_disk {
	struct block block;
	uint8_t *bytes;
	bool *changed; /* a chunk each */
	uint64_t read_bytes; /* not for several lanes */
};

static inline int memory_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	(void)err;
	memcpy(buffer, ((struct memory_disk *)block)->bytes + offset, length);
	__atomic_fetch_add(&((struct memory_disk *)block)->read_bytes, length, __ATOMIC_RELAXED);
	return 0;
}

static inline int memory_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	(void)err;
	struct memory_disk *disk = (struct memory_disk *)block;
	for (*nr = 0; length > 0 && *nr < max; ++*nr) {
		uint64_t chunk = offset / DIGEST_CHUNK_BYTES;
		uint64_t part = min_u64(length, (chunk + 1) * DIGEST_CHUNK_BYTES - offset);
		uint32_t flags = disk->changed[chunk] ? 0 : BLOCK_UNCHANGED;
		if (digest_is_zero(disk->bytes + offset, part))
			flags |= BLOCK_ZERO | BLOCK_HOLE;
		extents[*nr] = (struct block_extent){.length = part, .flags = flags};
		offset += part;
		length -= part;
	}
	return 0;
}

static inline int memory_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	return 0;
}

static inline void memory_disk_init(struct memory_disk *disk, uint64_t size_bytes)
{
	static const struct block_driver driver = {.name = "memory",
		.read = memory_read,
		.extents = memory_extents,
		.close = memory_close};
	*disk = (struct memory_disk){.bytes = calloc(1, size_bytes),
		.changed = calloc(div_round_up(size_bytes, DIGEST_CHUNK_BYTES), sizeof(bool))};
	assert_non_null(disk->bytes);
	assert_non_null(disk->changed);
	block_init(&disk->block, &driver, strdup("memory"));
	disk->block.info = (struct block_info){.size_bytes = size_bytes,
		.read_only = true,
		.has_extents = true,
		.has_changes = true,
		.multi_lane = true,
		.granule_bytes = DIGEST_CHUNK_BYTES};
}

static inline void memory_disk_free(struct memory_disk *disk)
{
	block_close(&disk->block, NULL);
	free(disk->bytes);
	free(disk->changed);
}

static inline void memory_disk_forget_changes(struct memory_disk *disk)
{
	memset(disk->changed, 0,
		div_round_up(disk->block.info.size_bytes, DIGEST_CHUNK_BYTES) * sizeof(bool));
}

/* Fills a range with what seed makes; 0: zeros. */
static inline void memory_disk_fill(
	struct memory_disk *disk, uint64_t offset, uint64_t length, uint32_t seed)
{
	uint32_t state = seed;
	assert_true(range_fits(offset, length, disk->block.info.size_bytes));
	for (uint64_t i = 0; i < length; i++) {
		state = state * 1664525u + 1013904223u;
		disk->bytes[offset + i] = seed ? (uint8_t)(state >> 24) : 0;
	}
	/* A chunk may belong to two who fill parts of it at once. */
	for (uint64_t at = offset / DIGEST_CHUNK_BYTES;
		length && at <= (offset + length - 1) / DIGEST_CHUNK_BYTES; at++)
		__atomic_store_n(&disk->changed[at], true, __ATOMIC_RELAXED);
}

/* A disk of a point to be made. */
struct point_disk {
	const char *key;
	struct memory_disk *source;
	enum repository_change change; /* of an increment */
	const char *change_id, *bitmap, *source_state;
	const struct repository_pair *identity;
	bool full;
	/* Of the first one, for all; its context is this.  NULL: nothing tells. */
	repository_changed_since *changed_since;
};

static inline struct repository_backup *points_begin(struct repository *repo, const char *vm,
	const struct point_disk *disks, size_t nr_disks, struct err *err)
{
	struct repository_disk_spec specs[8];
	struct repository_point *latest[8] = {NULL};
	assert_true(nr_disks <= 8);
	for (size_t i = 0; i < nr_disks; i++) {
		const struct repository_disk_info *info;
		latest[i] = repository_latest(repo, vm, disks[i].key, &info, err);
		bool full = disks[i].full || !latest[i];
		specs[i] = (struct repository_disk_spec){.key = disks[i].key,
			.size_bytes = disks[i].source->block.info.size_bytes,
			.mode = full ? REPOSITORY_FULL : REPOSITORY_INCREMENTAL,
			.reason = full ? "full" : "increment",
			.parent = full ? NULL : latest[i]->id,
			.change = full ? REPOSITORY_CHANGE_NONE
				       : (disks[i].change ? disks[i].change
							  : REPOSITORY_CHANGE_EXTENTS),
			.change_id = disks[i].change_id,
			.bitmap = disks[i].bitmap,
			.source_state = disks[i].source_state,
			.tells_since = disks[i].changed_since != NULL,
			.source = {
				"raw", "raw:/test", disks[i].identity, disks[i].identity != NULL}};
	}
	const struct repository_backup_options options = {.vm = vm,
		.source = {"raw", vm, NULL, 0},
		.disks = specs,
		.nr_disks = nr_disks,
		.software = "test",
		.consistency = "crash",
		.consistency_reason = "no agent",
		.changed_since = disks[0].changed_since,
		.changed_context = (void *)(uintptr_t)disks};
	struct repository_backup *backup = repository_backup_begin(repo, &options, err);
	for (size_t i = 0; i < nr_disks; i++)
		repository_point_free(latest[i]);
	return backup;
}

static inline void points_copy(struct repository_backup *backup, size_t index,
	struct memory_disk *source, struct copy_progress *progress)
{
	struct err err = ERR_INIT;
	struct copy_options options = {.progress = progress};
	struct block *from, *to;
	SUPPORT_OK(
		repository_backup_copy(backup, index, &source->block, &options, &from, &to, &err),
		err);
	SUPPORT_OK(copy_run(from, to, &options, &err), err);
}

/* Makes a point, an increment where there is a parent, and forgets what changed. */
static inline void points_make(struct repository *repo, const char *vm,
	const struct point_disk *disks, size_t nr_disks, char point[REPOSITORY_POINT_BYTES])
{
	struct err err = ERR_INIT;
	struct repository_backup *backup = points_begin(repo, vm, disks, nr_disks, &err);
	if (!backup)
		fail_msg("%s", err.text);
	if (point)
		snprintf(point, REPOSITORY_POINT_BYTES, "%s", repository_backup_point(backup));
	repository_backup_stage(backup, REPOSITORY_STAGE_COPY);
	for (size_t i = 0; i < nr_disks; i++)
		points_copy(backup, i, disks[i].source, NULL);
	SUPPORT_OK(repository_backup_commit(backup, &err), err);
	for (size_t i = 0; i < nr_disks; i++)
		memory_disk_forget_changes(disks[i].source);
}

/* Reads a disk of a point, verified, and compares it. */
static inline void points_compare(struct repository *repo, const char *vm, const char *point,
	const char *key, const uint8_t *bytes, uint64_t size_bytes)
{
	struct err err = ERR_INIT;
	const struct repository_disk_options options = {.verify = true};
	struct repository_disk *disk = repository_disk_open(repo, vm, point, key, &options, &err);
	if (!disk)
		fail_msg("%s", err.text);
	assert_int_equal(block_info(repository_disk_block(disk))->size_bytes, size_bytes);
	uint8_t *read = malloc(size_bytes);
	SUPPORT_OK(block_read(repository_disk_block(disk), read, size_bytes, 0, &err), err);
	assert_true(memcmp(read, bytes, size_bytes) == 0);
	free(read);
	repository_disk_close(disk);
}

#endif
