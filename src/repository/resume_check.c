/*
 * What an interrupted backup told of its chunks, held against what its image holds.
 *
 *   sums: told ──► read from the image, digested by the copy's lanes ─┬─ as told: kept
 *         not told ──► passed over                                    └─ else forgotten
 *
 * A chunk that cannot be read (a cluster that was torn, or never reached the disk) is
 * forgotten as well.
 */
#include "backup_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>

struct told {
	struct block block;
	struct backup_disk *disk;
	struct copy_chunk_sink sink;
	atomic_uint_fast64_t kept_bytes, nr_wrong;
};

static int forget(struct told *told, uint64_t chunk, struct err *err)
{
	atomic_fetch_add(&told->nr_wrong, 1);
	return sums_writer_forget(told->disk->sums, chunk, err);
}

/* --- the image, as far as it was told of ------------------------------------------------ */

static int told_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct told *told = (struct told *)block;
	struct err why = ERR_INIT;
	uint8_t *out = buffer;
	if (block_read(told->disk->image, buffer, length, offset, &why) == 0)
		return 0;
	while (length > 0) {
		uint64_t chunk = offset / DIGEST_CHUNK_BYTES;
		size_t part = min_size(
			length, (size_t)(DIGEST_CHUNK_BYTES - offset % DIGEST_CHUNK_BYTES));
		if (block_read(told->disk->image, out, part, offset, &why) < 0) {
			log_debug("%s", why.text);
			memset(out, 0, part);
			if (forget(told, chunk, err) < 0)
				return -1;
		}
		out += part;
		offset += part;
		length -= part;
	}
	return 0;
}

static int told_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct told *told = (struct told *)block;
	uint64_t end = offset + length;
	bool room = true;
	*nr = 0;
	while (room && offset < end) {
		enum sums_kind kind;
		uint64_t run, chunk = offset / DIGEST_CHUNK_BYTES;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (sums_writer_look(told->disk->sums, chunk,
			    div_round_up(end, DIGEST_CHUNK_BYTES) - chunk, &kind, &run, leaf,
			    err) < 0)
			return -1;
		uint64_t stop = min_u64(end, (chunk + run) * DIGEST_CHUNK_BYTES);
		if (kind != SUMS_ZERO) {
			room = block_remap_put(extents, max, nr, stop - offset,
				kind == SUMS_DATA ? 0 : BLOCK_UNCHANGED);
			offset = stop;
			continue;
		}
		/* Zeros that the image tells of need not be read. */
		struct block_extent one;
		size_t nr_one;
		if (block_extents(told->disk->image, offset, stop - offset, &one, 1, &nr_one, err) <
			0)
			return -1;
		room = block_remap_put(extents, max, nr, one.length, one.flags & BLOCK_ZERO);
		offset += one.length;
	}
	return 0;
}

static int told_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	return 0;
}

static const struct block_driver told_driver = {
	.name = "unfinished disk",
	.read = told_read,
	.extents = told_extents,
	.close = told_close,
};

/* --- comparing ----------------------------------------------------------------------------- */

static int sink_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, struct err *err)
{
	struct told *told = context;
	size_t leaf_bytes = digest_leaf_bytes(told->disk->backup->repo->key.algorithm);
	for (unsigned i = 0; i < nr; i++) {
		enum sums_kind kind;
		uint64_t run;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		bool is_zero = zero_mask >> i & 1;
		if (sums_writer_look(told->disk->sums, first + i, 1, &kind, &run, leaf, err) < 0)
			return -1;
		if (kind == SUMS_DATA && !is_zero &&
			memcmp(leaf, leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX, leaf_bytes) == 0)
			atomic_fetch_add(&told->kept_bytes, DIGEST_CHUNK_BYTES);
		else if ((kind == SUMS_DATA || (kind == SUMS_ZERO && !is_zero)) &&
			 forget(told, first + i, err) < 0)
			return -1;
	}
	return 0;
}

/* Told as data, and the image has no more than zeros there. */
static int sink_zeros(void *context, uint64_t first, uint64_t nr, struct err *err)
{
	struct told *told = context;
	while (nr > 0) {
		enum sums_kind kind;
		uint64_t run;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (sums_writer_look(told->disk->sums, first, nr, &kind, &run, leaf, err) < 0 ||
			(kind == SUMS_DATA && forget(told, first, err) < 0))
			return -1;
		first += run;
		nr -= run;
	}
	return 0;
}

int resume_check(struct backup_disk *disk, struct err *err)
{
	struct told told = {.disk = disk};
	char *label = strdup(block_label(disk->image));
	if (!label)
		return err_errno(err, ENOMEM, "cannot look at what is stored");
	told.sink = (struct copy_chunk_sink){
		.context = &told, .chunks = sink_chunks, .zeros = sink_zeros};
	block_init(&told.block, &told_driver, label);
	told.block.info = *block_info(disk->image);
	told.block.info.read_only = true;
	told.block.info.has_extents = told.block.info.has_changes = true;
	const struct copy_options options = {
		.digest_key = &disk->backup->repo->key,
		.sink = &told.sink,
		.changed_only = true,
		.cancel = disk->backup->cancel,
	};
	int rc = copy_scan(&told.block, &options, err);
	block_close(&told.block, NULL);
	disk->kept_bytes = atomic_load(&told.kept_bytes);
	if (rc == 0 && atomic_load(&told.nr_wrong) > 0)
		log_warning("disk %s of unfinished job %s: %" PRIuFAST64
			    " chunks are not as they were written, and are read again",
			disk->key, disk->backup->job, atomic_load(&told.nr_wrong));
	return rc;
}
