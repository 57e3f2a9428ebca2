/* The null disk: reads zeros, swallows writes. */
#include "block.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static int null_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	(void)block, (void)offset, (void)err;
	memset(buffer, 0, length);
	return 0;
}

static int null_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	(void)block, (void)buffer, (void)length, (void)offset, (void)flags, (void)err;
	return 0;
}

static int null_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	(void)block, (void)offset, (void)length, (void)flags, (void)err;
	return 0;
}

static int null_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	(void)block, (void)offset, (void)max, (void)err;
	extents[0] = (struct block_extent){.length = length, .flags = BLOCK_HOLE | BLOCK_ZERO};
	*nr = 1;
	return 0;
}

static int null_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	free(block);
	return 0;
}

static const struct block_driver null_driver = {
	.name = "null",
	.read = null_read,
	.write = null_write,
	.zero = null_zero,
	.extents = null_extents,
	.close = null_close,
};

struct block *block_null_open(uint64_t size_bytes, struct err *err)
{
	struct block *block = calloc(1, sizeof *block);
	char *label = NULL;
	if (!block || asprintf(&label, "null:%" PRIu64, size_bytes) < 0) {
		free(block);
		err_errno(err, ENOMEM, "cannot open a null disk");
		return NULL;
	}
	block_init(block, &null_driver, label);
	block->info = (struct block_info){
		.size_bytes = size_bytes,
		.has_extents = true,
		.can_trim = true,
		.can_zero = true,
		.can_fast_zero = true,
		.can_fua = true,
		.multi_lane = true,
		.starts_zero = true,
		.granule_bytes = 4096,
	};
	return block;
}
