/*
 * One layer of a chain.
 *
 *   image holds it        │ sums tell it │
 *   ──────────────────────┼──────────────┼──────────────────────────────────────────────
 *   yes                   │ yes          │ as the image says
 *   yes                   │ no           │ the same: it must be what lies beneath all the same
 *   no                    │ yes          │ data: it must read as told, and shows what lies beneath
 *   no                    │ no           │ unchanged, unless damage was found there beneath
 */
#include "verify_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct layer {
	struct block block;
	struct repository_disk *disk;
	const struct verify_done *beneath;
};

static int layer_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	return block_read(
		repository_disk_block(((struct layer *)block)->disk), buffer, length, offset, err);
}

/* The first wrong chunk beneath from this one on; UINT64_MAX: none. */
static uint64_t next_wrong(const struct layer *layer, uint64_t chunk)
{
	size_t low = 0, high = layer->beneath->nr_wrong;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (layer->beneath->wrong[middle] < chunk)
			low = middle + 1;
		else
			high = middle;
	}
	return low < layer->beneath->nr_wrong ? layer->beneath->wrong[low] : UINT64_MAX;
}

/* What the image does not hold, from offset on: one extent. */
static int not_held(const struct layer *layer, uint64_t offset, uint64_t length,
	struct block_extent *extent, struct err *err)
{
	uint64_t chunk = offset / DIGEST_CHUNK_BYTES, nr;
	uint64_t most = div_round_up(offset + length, DIGEST_CHUNK_BYTES) - chunk;
	uint64_t wrong = next_wrong(layer, chunk);
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
	enum sums_kind kind;
	if (sums_reader_own_run(disk_sums(layer->disk), chunk, most, &kind, &nr, leaf, err) < 0)
		return -1;
	extent->flags = kind == SUMS_INHERIT ? BLOCK_UNCHANGED : 0;
	if (kind == SUMS_INHERIT && wrong == chunk) {
		extent->flags = 0;
		nr = 1;
	} else if (kind == SUMS_INHERIT && wrong != UINT64_MAX) {
		nr = min_u64(nr, wrong - chunk);
	}
	extent->length = min_u64(length, (chunk + nr) * DIGEST_CHUNK_BYTES - offset);
	return 0;
}

static int layer_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr_extents, struct err *err)
{
	const struct layer *layer = (struct layer *)block;
	struct block_extent held;
	size_t nr;
	*nr_extents = 0;
	if (block_extents(repository_disk_block(layer->disk), offset, length, &held, 1, &nr, err) <
		0)
		return -1;
	if (!(held.flags & BLOCK_UNCHANGED)) {
		extents[(*nr_extents)++] = held;
		return 0;
	}
	while (held.length > 0 && *nr_extents < max) {
		struct block_extent *extent = &extents[*nr_extents];
		if (not_held(layer, offset, held.length, extent, err) < 0)
			return -1;
		offset += extent->length;
		held.length -= extent->length;
		++*nr_extents;
	}
	return 0;
}

static int layer_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	free(block);
	return 0;
}

static const struct block_driver layer_driver = {
	.name = "layer", .read = layer_read, .extents = layer_extents, .close = layer_close};

struct block *verify_layer_open(
	struct repository_disk *disk, const struct verify_done *beneath, struct err *err)
{
	struct block *image = repository_disk_block(disk);
	struct layer *layer = calloc(1, sizeof *layer);
	if (!layer) {
		err_errno(err, ENOMEM, "cannot verify %s", block_label(image));
		return NULL;
	}
	layer->disk = disk;
	layer->beneath = beneath;
	block_init(&layer->block, &layer_driver, strdup(block_label(image)));
	layer->block.info = *block_info(image);
	return &layer->block;
}
