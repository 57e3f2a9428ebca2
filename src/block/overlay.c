/*
 * The overlay: reads from a base, writes into unnamed scratch files.
 *
 * The disk is cut into cells of 64 KiB.  A cell that was written or zeroed lies
 * in scratch at the same offset (the files are sparse), and its bit in the map
 * is set.  There is one scratch file for each 8 TiB of the disk, because ext4
 * takes no file beyond 16 TiB.  The map has two levels, so that its memory grows with what
 * is written and not with the size of the disk: one leaf of 4 KiB stands for
 * 2 GiB.  A cell that is written in part is first filled from the base, under
 * an exclusive hold on the cell; one that is ours already under a shared hold.
 * Zeroing what the base tells to be zero changes nothing.
 */
#include "block.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CELL_BYTES ((uint64_t)65536)
#define CELLS_PER_LEAF ((uint64_t)32768)
#define WORDS_PER_LEAF (CELLS_PER_LEAF / 64)
#define SCRATCH_FILE_BYTES (8 * TIB)
#define MAX_SCRATCH_FILES 128

struct leaf {
	_Atomic uint64_t words[WORDS_PER_LEAF];
};

struct overlay {
	struct block block;
	struct block *base;
	int *fds; /* of the scratch files */
	size_t nr_fds;
	uint64_t limit_cells; /* UINT64_MAX: none */
	_Atomic uint64_t used_cells;
	struct rangelock cells;
	uint64_t nr_leaves;
	pthread_mutex_t leaves_mutex; /* for adding a leaf */
	struct leaf *_Atomic *leaves;
};

static struct overlay *overlay_of(struct block *block)
{
	return (struct overlay *)block;
}

static bool cell_is_ours(struct overlay *o, uint64_t cell)
{
	struct leaf *leaf = atomic_load(&o->leaves[cell / CELLS_PER_LEAF]);
	uint64_t bit = cell % CELLS_PER_LEAF;
	return leaf && atomic_load(&leaf->words[bit / 64]) >> (bit % 64) & 1;
}

static struct leaf *leaf_of(struct overlay *o, uint64_t cell, struct err *err)
{
	struct leaf *_Atomic *slot = &o->leaves[cell / CELLS_PER_LEAF];
	struct leaf *leaf = atomic_load(slot);
	if (leaf)
		return leaf;
	WITH_LOCK(&o->leaves_mutex);
	leaf = atomic_load(slot);
	if (leaf)
		return leaf;
	leaf = calloc(1, sizeof *leaf);
	if (!leaf)
		err_errno(err, ENOMEM, "cannot extend the map of %s", block_label(&o->block));
	else
		atomic_store(slot, leaf);
	return leaf;
}

/* Counts one more cell against the limit. */
static int reserve_cell(struct overlay *o, struct err *err)
{
	uint64_t used = atomic_load(&o->used_cells);
	do {
		if (used >= o->limit_cells)
			return err_set(err, ERR_NO_SPACE,
				"the scratch limit of %" PRIu64 " bytes of %s is used up",
				o->limit_cells * CELL_BYTES, block_label(&o->block));
	} while (!atomic_compare_exchange_weak(&o->used_cells, &used, used + 1));
	return 0;
}

/* A range that lies in one cell, or between two multiples of 1 MiB, lies in one
 * scratch file. */
static int scratch_fd(const struct overlay *o, uint64_t offset)
{
	return o->fds[offset / SCRATCH_FILE_BYTES];
}

static int scratch_write(
	struct overlay *o, const void *buffer, size_t length, uint64_t offset, struct err *err)
{
	return file_pwrite(scratch_fd(o, offset), buffer, length, offset % SCRATCH_FILE_BYTES,
		"the scratch file", err);
}

static int scratch_read(
	struct overlay *o, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	return file_pread(scratch_fd(o, offset), buffer, length, offset % SCRATCH_FILE_BYTES,
		"the scratch file", err);
}

/* The bytes of a cell that lie within the disk. */
static size_t cell_length(const struct overlay *o, uint64_t cell)
{
	return (size_t)min_u64(CELL_BYTES, o->block.info.size_bytes - cell * CELL_BYTES);
}

static int fill_from_base(struct overlay *o, uint64_t cell, struct err *err)
{
	size_t length = cell_length(o, cell);
	uint8_t *AUTO_FREE buffer = malloc(length);
	if (!buffer)
		return err_errno(err, ENOMEM, "cannot copy a cell of %s", block_label(&o->block));
	if (block_read(o->base, buffer, length, cell * CELL_BYTES, err) < 0)
		return -1;
	if (digest_is_zero(buffer, length))
		return 0;
	return scratch_write(o, buffer, length, cell * CELL_BYTES, err);
}

static int scratch_zero(struct overlay *o, uint64_t offset, uint64_t length, struct err *err)
{
	int rc;
	do {
		rc = fallocate(scratch_fd(o, offset), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			(off_t)(offset % SCRATCH_FILE_BYTES), (off_t)length);
	} while (rc < 0 && errno == EINTR);
	if (rc < 0)
		return err_errno(err, errno, "cannot zero a part of the scratch file");
	return 0;
}

/* Bytes, or zeros when buffer is NULL, into a cell that is ours. */
static int put(
	struct overlay *o, const void *buffer, size_t length, uint64_t offset, struct err *err)
{
	return buffer ? scratch_write(o, buffer, length, offset, err)
		      : scratch_zero(o, offset, length, err);
}

/* The same into a cell of the base, which becomes ours.  The caller holds it. */
static int take_cell(struct overlay *o, struct leaf *leaf, const void *buffer, size_t length,
	uint64_t offset, struct err *err)
{
	uint64_t cell = offset / CELL_BYTES, bit = cell % CELLS_PER_LEAF;
	if (reserve_cell(o, err) < 0)
		return -1;
	if ((length < cell_length(o, cell) && fill_from_base(o, cell, err) < 0) ||
		put(o, buffer, length, offset, err) < 0) {
		/* It still belongs to the base; what was written is not seen. */
		scratch_zero(o, cell * CELL_BYTES, CELL_BYTES, NULL);
		atomic_fetch_sub(&o->used_cells, 1);
		return -1;
	}
	atomic_fetch_or(&leaf->words[bit / 64], (uint64_t)1 << (bit % 64));
	return 0;
}

/* Changes one part of one cell: bytes, or zeros when buffer is NULL. */
static int change_cell(
	struct overlay *o, const void *buffer, size_t length, uint64_t offset, struct err *err)
{
	uint64_t cell = offset / CELL_BYTES;
	struct leaf *leaf = leaf_of(o, cell, err);
	if (!leaf)
		return -1;
	/* Exclusive until the cell is ours, so that nobody reads a half-filled one. */
	struct rangelock_hold hold;
	rangelock_acquire(&o->cells, &hold, cell * CELL_BYTES, CELL_BYTES, !cell_is_ours(o, cell));
	assert(hold.exclusive || cell_is_ours(o, cell));
	int rc = cell_is_ours(o, cell) ? put(o, buffer, length, offset, err)
				       : take_cell(o, leaf, buffer, length, offset, err);
	rangelock_release(&o->cells, &hold);
	return rc;
}

static int change(
	struct overlay *o, const uint8_t *buffer, uint64_t length, uint64_t offset, struct err *err)
{
	while (length > 0) {
		size_t n = (size_t)min_u64(length, CELL_BYTES - offset % CELL_BYTES);
		if (change_cell(o, buffer, n, offset, err) < 0)
			return -1;
		if (buffer)
			buffer += n;
		offset += n;
		length -= n;
	}
	return 0;
}

static int overlay_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	(void)flags;
	return change(overlay_of(block), buffer, length, offset, err);
}

/* How many bytes from offset on, at most length, lie on the same side. */
static uint64_t same_side(struct overlay *o, uint64_t offset, uint64_t length, bool *ours)
{
	uint64_t cell = offset / CELL_BYTES, end = offset + length;
	*ours = cell_is_ours(o, cell);
	do {
		bool no_leaf = !atomic_load(&o->leaves[cell / CELLS_PER_LEAF]);
		cell = no_leaf ? round_down(cell, CELLS_PER_LEAF) + CELLS_PER_LEAF : cell + 1;
	} while (cell * CELL_BYTES < end && cell_is_ours(o, cell) == *ours);
	return min_u64(cell * CELL_BYTES, end) - offset;
}

static int overlay_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	(void)flags;
	struct overlay *o = overlay_of(block);
	while (length > 0) {
		bool ours;
		struct block_extent e = {.length = same_side(o, offset, length, &ours)};
		size_t nr;
		if (!ours && block_extents(o->base, offset, e.length, &e, 1, &nr, err) < 0)
			return -1;
		if (!(e.flags & BLOCK_ZERO) && change(o, NULL, e.length, offset, err) < 0)
			return -1;
		offset += e.length;
		length -= e.length;
	}
	return 0;
}

static int overlay_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct overlay *o = overlay_of(block);
	uint8_t *at = buffer;
	int rc = 0;
	while (length > 0 && rc == 0) {
		/* Held cell by cell run, so that a long read does not stop writers. */
		bool ours;
		size_t n = (size_t)min_u64(length, MIB - offset % MIB);
		struct rangelock_hold hold;
		rangelock_acquire(&o->cells, &hold, round_down(offset, CELL_BYTES),
			round_up(offset + n, CELL_BYTES) - round_down(offset, CELL_BYTES), false);
		n = (size_t)same_side(o, offset, n, &ours);
		rc = ours ? scratch_read(o, at, n, offset, err)
			  : block_read(o->base, at, n, offset, err);
		rangelock_release(&o->cells, &hold);
		at += n;
		offset += n;
		length -= n;
	}
	return rc;
}

static int overlay_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct overlay *o = overlay_of(block);
	bool ours;
	/* The map is walked bit by bit: one answer looks at 32 leaves at most. */
	uint64_t n = same_side(o, offset, min_u64(length, 64 * GIB), &ours);
	extents[0] = (struct block_extent){.length = n};
	*nr = 1;
	if (ours)
		return 0;
	if (block_extents(o->base, offset, n, extents, max, nr, err) < 0)
		return -1;
	for (size_t i = 0; i < *nr; i++)
		extents[i].flags &= ~BLOCK_UNCHANGED; /* it says nothing of changes */
	return 0;
}

static uint64_t overlay_stored_bytes(struct block *block)
{
	struct overlay *o = overlay_of(block);
	struct stat st;
	uint64_t sum = 0;
	for (size_t i = 0; i < o->nr_fds; i++)
		if (fstat(o->fds[i], &st) == 0)
			sum += (uint64_t)st.st_blocks * 512;
	return sum;
}

static void close_scratch(struct overlay *o)
{
	for (size_t i = 0; i < o->nr_fds; i++)
		close(o->fds[i]);
	free(o->fds);
}

static int overlay_close(struct block *block, struct err *err)
{
	(void)err;
	struct overlay *o = overlay_of(block);
	for (uint64_t i = 0; i < o->nr_leaves; i++)
		free(atomic_load(&o->leaves[i]));
	free(o->leaves);
	rangelock_destroy(&o->cells);
	pthread_mutex_destroy(&o->leaves_mutex);
	close_scratch(o);
	block_fini(block);
	free(o);
	return 0;
}

/* Nothing outlives the process, so a flush has nothing to promise. */
static const struct block_driver overlay_driver = {
	.name = "overlay",
	.read = overlay_read,
	.write = overlay_write,
	.zero = overlay_zero,
	.extents = overlay_extents,
	.stored_bytes = overlay_stored_bytes,
	.close = overlay_close,
};

/* On failure what was opened is in o->fds. */
static int open_scratch(struct overlay *o, const char *folder, uint64_t size_bytes, struct err *err)
{
	uint64_t nr_files = div_round_up(size_bytes, SCRATCH_FILE_BYTES);
	if (nr_files > MAX_SCRATCH_FILES)
		return err_set(err, ERR_UNSUPPORTED,
			"a disk of %llu bytes is too large for an overlay",
			(unsigned long long)size_bytes);
	o->fds = calloc(nr_files ? nr_files : 1, sizeof *o->fds);
	if (!o->fds)
		return err_errno(err, ENOMEM, "cannot make a scratch file in %s", folder);
	for (uint64_t left = size_bytes; left > 0; o->nr_fds++) {
		uint64_t length = min_u64(left, SCRATCH_FILE_BYTES);
		int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
		if (fd < 0)
			return err_errno(err, errno, "cannot make a scratch file in %s", folder);
		o->fds[o->nr_fds] = fd;
		if (ftruncate(fd, (off_t)length) < 0) {
			err_errno(err, errno, "cannot make the scratch file in %s %llu bytes long",
				folder, (unsigned long long)length);
			close(fd);
			return -1;
		}
		left -= length;
	}
	return 0;
}

struct block *block_overlay_open(
	struct block *base, const char *folder, uint64_t limit_bytes, struct err *err)
{
	uint64_t size_bytes = block_info(base)->size_bytes;
	uint64_t nr_leaves = div_round_up(size_bytes, CELL_BYTES * CELLS_PER_LEAF);
	struct overlay *o = calloc(1, sizeof *o);
	char *label = NULL;
	if (!o || asprintf(&label, "overlay over %s", block_label(base)) < 0) {
		err_errno(err, ENOMEM, "cannot open an overlay over %s", block_label(base));
		label = NULL;
		goto fail;
	}
	if (open_scratch(o, folder, size_bytes, err) < 0)
		goto fail;
	o->leaves = calloc(nr_leaves ? nr_leaves : 1, sizeof *o->leaves);
	if (!o->leaves) {
		err_errno(err, ENOMEM, "cannot open an overlay over %s", block_label(base));
		goto fail;
	}
	o->base = base;
	o->nr_leaves = nr_leaves;
	o->limit_cells = limit_bytes ? limit_bytes / CELL_BYTES : UINT64_MAX;
	pthread_mutex_init(&o->leaves_mutex, NULL);
	rangelock_init(&o->cells);
	block_init(&o->block, &overlay_driver, label);
	o->block.info = (struct block_info){
		.size_bytes = size_bytes,
		.has_extents = true,
		.can_zero = true,
		.can_fast_zero = true,
		.multi_lane = true,
		.starts_zero = block_info(base)->starts_zero,
		.granule_bytes = 65536,
	};
	return &o->block;
fail:
	if (o)
		close_scratch(o);
	free(label);
	free(o);
	return NULL;
}
