/*
 * What is left to copy of a disk whose backup was interrupted.
 *
 *   chunk      the sums tell  the image holds  read from the source         written, if it is not
 *   told       yes            (yes)            not when its state is the    what was told
 *                                              same, or it did not change
 *                                              since; else always
 *   touched    no             something        always                       (always)
 *   same       as beneath     nothing          as what was told;            what the parent has
 *                                              compared: as untouched
 *   untouched  no             nothing          what a first try would read  what the parent has;
 *                                                                           in a full: zeros
 *
 * A chunk is touched but not told when the interruption came between; what it holds is not
 * known, so it is written whatever it is.
 */
#include "backup_internal.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* Runs of data are passed over in parts of so many chunks at most. */
#define RUN_MOST 4096u

enum stored { STORED_TOLD, STORED_TOUCHED, STORED_SAME, STORED_UNTOUCHED };

int resume_held(struct backup_disk *disk, uint64_t first, uint64_t most, bool *held, uint64_t *nr,
	struct err *err)
{
	uint64_t offset = first * DIGEST_CHUNK_BYTES, alike;
	uint64_t length = min_u64(most * DIGEST_CHUNK_BYTES, disk->size_bytes - offset);
	if (qcow2_own_run(disk->image, offset, length, &alike, held, err) < 0)
		return -1;
	*nr = alike == length ? most : alike / DIGEST_CHUNK_BYTES;
	/* A chunk of which a part is held is touched. */
	*held |= *nr == 0;
	*nr = max_u64(*nr, 1);
	return 0;
}

/* What there is of the chunks from first on, for how many of them (1..most); of told data one
 * comes alone, with its leaf. */
static int look(struct backup_disk *disk, uint64_t first, uint64_t most, enum stored *stored,
	enum sums_kind *kind, uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err)
{
	if (sums_writer_look(disk->sums, first, most, kind, nr, leaf, err) < 0)
		return -1;
	*stored = STORED_TOLD;
	if (*kind == SUMS_DATA || *kind == SUMS_ZERO)
		return 0;
	bool held;
	if (resume_held(disk, first, *nr, &held, nr, err) < 0)
		return -1;
	*stored = held ? STORED_TOUCHED : STORED_UNTOUCHED;
	if (*stored == STORED_UNTOUCHED && *kind == SUMS_SAME)
		*stored = STORED_SAME;
	return 0;
}

/* --- the source ---------------------------------------------------------------------------- */

/* Of what is there already: whether it need not be read, up to *end; both as they were found
 * before, as far as that goes. */
static int look_valid(struct backup_disk *disk, uint64_t at, uint64_t stop, uint64_t *end,
	bool *valid, struct err *err)
{
	struct block_extent extent;
	size_t nr;
	if (at < *end)
		return 0;
	*end = stop;
	*valid = disk->resumed == REPOSITORY_RESUMED;
	if (disk->resumed != REPOSITORY_UPDATED)
		return 0;
	assert(disk->changed);
	if (block_extents(disk->changed, at, stop - at, &extent, 1, &nr, err) < 0)
		return -1;
	*end = at + extent.length;
	*valid = extent.flags & BLOCK_UNCHANGED;
	return 0;
}

static uint32_t flags_of(
	const struct backup_disk *disk, enum stored stored, bool valid, uint32_t flags)
{
	bool changes =
		disk->mode == REPOSITORY_INCREMENTAL && disk->change != REPOSITORY_CHANGE_COMPARE;
	bool is_there = stored == STORED_TOLD || stored == STORED_SAME;
	if (is_there && valid)
		return flags | BLOCK_UNCHANGED;
	if (stored == STORED_TOLD || stored == STORED_TOUCHED || !changes)
		return flags & ~BLOCK_UNCHANGED;
	/* What was found to be as beneath is not any more, whatever is said of the time before. */
	if (stored == STORED_SAME && disk->resumed == REPOSITORY_UPDATED)
		return flags & ~BLOCK_UNCHANGED;
	return flags;
}

static int remap(void *context, uint64_t offset, const struct block_extent *from, size_t nr_from,
	struct block_extent *out, size_t max, size_t *nr, struct err *err)
{
	struct backup_disk *disk = context;
	uint64_t at = offset, end = 0, valid_end = 0;
	bool valid = false;
	enum stored stored = STORED_UNTOUCHED;
	*nr = 0;
	for (size_t i = 0; i < nr_from; i++) {
		uint64_t stop = at + from[i].length;
		while (at < stop) {
			if (at >= end) {
				enum sums_kind kind;
				uint64_t chunk = at / DIGEST_CHUNK_BYTES, run;
				uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
				if (look(disk, chunk,
					    div_round_up(stop, DIGEST_CHUNK_BYTES) - chunk, &stored,
					    &kind, &run, leaf, err) < 0)
					return -1;
				end = (chunk + run) * DIGEST_CHUNK_BYTES;
			}
			uint64_t length = min_u64(stop, end) - at;
			bool is_there = stored == STORED_TOLD || stored == STORED_SAME;
			if (is_there && look_valid(disk, at, stop, &valid_end, &valid, err) < 0)
				return -1;
			if (is_there)
				length = min_u64(length, valid_end - at);
			if (!block_remap_put(out, max, nr, length,
				    flags_of(disk, stored, valid, from[i].flags)))
				return 0;
			at += length;
		}
	}
	return 0;
}

/* --- the target ---------------------------------------------------------------------------- */

/* What is untouched reads as the parent, or will: where that is filled in now, or in a full
 * without a parent, it is zeros. */
static bool reads_as_parent(const struct backup_disk *disk)
{
	return disk->chain && !disk->is_filling;
}

static int same_chunks(void *context, uint64_t first, unsigned nr, const uint8_t *leaves,
	uint64_t zero_mask, uint64_t *same, struct err *err)
{
	struct backup_disk *disk = context;
	size_t leaf_bytes = digest_leaf_bytes(disk->backup->repo->key.algorithm);
	uint64_t untouched = 0, beneath = 0;
	*same = 0;
	for (unsigned i = 0; i < nr; i++) {
		enum stored stored;
		enum sums_kind kind;
		uint64_t run, bit = (uint64_t)1 << i;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (look(disk, first + i, 1, &stored, &kind, &run, leaf, err) < 0)
			return -1;
		if (stored == STORED_UNTOUCHED || stored == STORED_SAME)
			untouched |= bit;
		else if (stored == STORED_TOLD && kind == SUMS_ZERO)
			*same |= zero_mask & bit;
		else if (stored == STORED_TOLD && !(zero_mask & bit) &&
			 memcmp(leaf, leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX, leaf_bytes) == 0)
			*same |= bit;
	}
	if (!reads_as_parent(disk))
		beneath = zero_mask;
	else if (untouched &&
		 backup_copy_parent_chunks(disk, first, nr, leaves, zero_mask, &beneath, err) < 0)
		return -1;
	*same |= untouched & beneath;
	/* Nothing is written, but the next one to go on with it need not read it again. */
	if (reads_as_parent(disk))
		return backup_copy_tell_same(disk, first, nr, *same & untouched, err);
	for (unsigned i = 0; i < nr; i++)
		if (*same & untouched & (uint64_t)1 << i &&
			sums_writer_zeros(disk->sums, first + i, 1, err) < 0)
			return -1;
	return 0;
}

static int tell_untouched(struct backup_disk *disk, uint64_t first, uint64_t nr, struct err *err)
{
	return reads_as_parent(disk) ? sums_writer_same(disk->sums, first, nr, err)
				     : sums_writer_zeros(disk->sums, first, nr, err);
}

static int same_zeros(
	void *context, uint64_t first, uint64_t nr, uint64_t *nr_alike, bool *same, struct err *err)
{
	struct backup_disk *disk = context;
	*nr_alike = 0;
	while (*nr_alike < nr && *nr_alike < RUN_MOST) {
		enum stored stored;
		enum sums_kind kind;
		uint64_t at = first + *nr_alike, run;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (look(disk, at, nr - *nr_alike, &stored, &kind, &run, leaf, err) < 0)
			return -1;
		bool untouched = stored == STORED_UNTOUCHED || stored == STORED_SAME;
		bool alike = stored == STORED_TOLD ? kind == SUMS_ZERO : untouched;
		if (untouched && reads_as_parent(disk) &&
			backup_copy_parent_zeros(disk, at, run, &run, &alike, err) < 0)
			return -1;
		if (*nr_alike > 0 && alike != *same)
			break;
		if (untouched && alike && tell_untouched(disk, at, run, err) < 0)
			return -1;
		*same = alike;
		*nr_alike += run;
	}
	return 0;
}

void resume_baseline(struct backup_disk *disk, struct copy_options *options)
{
	disk->baseline =
		(struct copy_baseline){.context = disk, .chunks = same_chunks, .zeros = same_zeros};
	options->baseline = &disk->baseline;
}

int resume_copy(struct backup_disk *disk, struct block *source, struct copy_options *options,
	struct block **from, struct err *err)
{
	disk->remaining = block_remap_open(source, remap, disk, err);
	if (!disk->remaining)
		return -1;
	disk->baseline =
		(struct copy_baseline){.context = disk, .chunks = same_chunks, .zeros = same_zeros};
	options->baseline = &disk->baseline;
	options->changed_only |= disk->resumed != REPOSITORY_COMPARED;
	*from = disk->remaining;
	return 0;
}
