/*
 * What a backup copies: its sink, and what its target holds already.
 *
 * An increment holds only what differs from its parent, whatever told of the change:
 * each chunk's digest is held against the parent's.  A full's target holds nothing.
 */
#include "backup_internal.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

/* Zeros are asked for in runs; so many chunks of data at most are passed over in one. */
#define DATA_RUN_MOST 4096u

static int sink_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, struct err *err)
{
	struct backup_disk *disk = context;
	if (sums_writer_chunks(disk->sums, first, nr, leaves, zero_mask, err) < 0)
		return -1;
	return checkpoint_told(disk, (uint64_t)nr * DIGEST_CHUNK_BYTES, err);
}

static int sink_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	struct backup_disk *disk = context;
	if (sums_writer_zeros(disk->sums, first, nr, err) < 0)
		return -1;
	return checkpoint_told(disk, 0, err);
}

int backup_copy_parent_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, uint64_t *same, struct err *err)
{
	const struct backup_disk *disk = context;
	size_t leaf_bytes = digest_leaf_bytes(disk->backup->repo->key.algorithm);
	*same = 0;
	for (unsigned i = 0; i < nr; i++) {
		enum sums_kind kind;
		uint64_t run;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (sums_reader_run(chain_sums(disk->chain), first + i, 1, &kind, &run, leaf, err) <
			0)
			return -1;
		bool is_zero = zero_mask >> i & 1;
		if (kind == SUMS_ZERO
				? is_zero
				: !is_zero &&
					  memcmp(leaf, leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX,
						  leaf_bytes) == 0)
			*same |= (uint64_t)1 << i;
	}
	return 0;
}

int backup_copy_parent_zeros(
	void *context, uint64_t first, uint64_t nr, uint64_t *nr_alike, bool *same, struct err *err)
{
	const struct backup_disk *disk = context;
	*nr_alike = 0;
	while (*nr_alike < nr && *nr_alike < DATA_RUN_MOST) {
		enum sums_kind kind;
		uint64_t run;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (sums_reader_run(chain_sums(disk->chain), first + *nr_alike, nr - *nr_alike,
			    &kind, &run, leaf, err) < 0)
			return -1;
		if (*nr_alike > 0 && *same != (kind == SUMS_ZERO))
			break;
		*same = kind == SUMS_ZERO;
		*nr_alike += run;
	}
	return 0;
}

/* What is the same is told as well, so that whoever goes on with the backup need not look at
 * it again. */
int backup_copy_tell_same(
	struct backup_disk *disk, uint64_t first, unsigned nr, uint64_t same, struct err *err)
{
	uint64_t bytes = 0;
	for (unsigned i = 0, run = 0; i < nr; i += run ? run : 1) {
		for (run = 0; i + run < nr && same >> (i + run) & 1; run++)
			bytes += DIGEST_CHUNK_BYTES;
		if (run > 0 && sums_writer_same(disk->sums, first + i, run, err) < 0)
			return -1;
	}
	return same ? checkpoint_told(disk, bytes, err) : 0;
}

static int first_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, uint64_t *same, struct err *err)
{
	if (backup_copy_parent_chunks(context, first, nr, leaves, zero_mask, same, err) < 0)
		return -1;
	return backup_copy_tell_same(context, first, nr, *same, err);
}

static int first_zeros(
	void *context, uint64_t first, uint64_t nr, uint64_t *nr_alike, bool *same, struct err *err)
{
	struct backup_disk *disk = context;
	if (backup_copy_parent_zeros(disk, first, nr, nr_alike, same, err) < 0)
		return -1;
	return *same ? sums_writer_same(disk->sums, first, *nr_alike, err) : 0;
}

void backup_copy_sink(struct backup_disk *disk)
{
	disk->sink = (struct copy_chunk_sink){
		.context = disk, .chunks = sink_chunks, .zeros = sink_zeros};
}

int repository_backup_copy(struct repository_backup *backup, size_t index, struct block *source,
	struct copy_options *options, struct block **from, struct block **to, struct err *err)
{
	assert(index < backup->nr_disks && backup->state == BACKUP_MAKING);
	struct backup_disk *disk = &backup->disks[index];
	uint64_t size_bytes = block_info(source)->size_bytes;
	if (size_bytes != disk->size_bytes)
		return err_set(err, ERR_RANGE,
			"disk %s was to be %" PRIu64 " bytes, and %s has %" PRIu64, disk->key,
			disk->size_bytes, block_label(source), size_bytes);
	if (checkpoint_start(backup, err) < 0)
		return -1;
	backup_copy_sink(disk);
	disk->baseline = (struct copy_baseline){
		.context = disk, .chunks = first_chunks, .zeros = first_zeros};
	options->digest_key = &backup->repo->key;
	options->sink = &disk->sink;
	options->baseline = disk->chain ? &disk->baseline : NULL;
	options->changed_only =
		disk->mode == REPOSITORY_INCREMENTAL && disk->change != REPOSITORY_CHANGE_COMPARE;
	*from = source;
	*to = disk->image;
	return disk->resumed == REPOSITORY_FRESH ? 0
						 : resume_copy(disk, source, options, from, err);
}
