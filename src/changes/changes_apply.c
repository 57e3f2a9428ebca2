/*
 * A source with its list of changes: the source's map is cut at the borders of what changed.
 *
 *      source     | data              | zeros                 | data
 *      changed         |        |          |      |
 *      extents    | U  | data   | U   | U,Z| Z    | U, zeros  | U
 */
#include "changes_internal.h"

#include <inttypes.h>

/* elsewhere: what is said of all that the list does not name. */
static int combine(struct changes *changes, uint32_t elsewhere, uint64_t offset,
	const struct block_extent *from, size_t nr_from, struct block_extent *out, size_t max,
	size_t *nr, struct err *err)
{
	uint64_t at = offset, start = 0, end = 0;
	*nr = 0;
	for (size_t i = 0; i < nr_from; i++) {
		uint64_t stop = at + from[i].length;
		while (at < stop) {
			if (at >= end && changes_next(changes, at, &start, &end, err) < 0)
				return -1;
			bool named = at >= start;
			uint64_t length = min_u64(stop, named ? end : start) - at;
			uint32_t flags = from[i].flags & (BLOCK_HOLE | BLOCK_ZERO);
			flags |= named ? 0 : elsewhere;
			if (!block_remap_put(out, max, nr, length, flags))
				return 0;
			at += length;
		}
	}
	return 0;
}

static int map_changes(void *context, uint64_t offset, const struct block_extent *from,
	size_t nr_from, struct block_extent *out, size_t max, size_t *nr, struct err *err)
{
	return combine(context, BLOCK_UNCHANGED, offset, from, nr_from, out, max, nr, err);
}

static int map_allocated(void *context, uint64_t offset, const struct block_extent *from,
	size_t nr_from, struct block_extent *out, size_t max, size_t *nr, struct err *err)
{
	return combine(context, BLOCK_HOLE | BLOCK_ZERO, offset, from, nr_from, out, max, nr, err);
}

static struct block *see_through(
	struct changes *changes, struct block *source, block_remap *remap, struct err *err)
{
	const struct block_info *info = block_info(source);
	const struct changes_facts *facts = changes_facts(changes);
	if (info->size_bytes != facts->size_bytes) {
		err_set(err, ERR_RANGE,
			"cannot use the extents file %s: it is for a disk of %" PRIu64
			" bytes, and %s has %" PRIu64,
			changes_path(changes), facts->size_bytes, block_label(source),
			info->size_bytes);
		return NULL;
	}
	return block_remap_open(source, remap, changes, err);
}

struct block *changes_apply(struct changes *changes, struct block *source, struct err *err)
{
	return see_through(changes, source, map_changes, err);
}

struct block *changes_allocated(struct changes *changes, struct block *source, struct err *err)
{
	struct block *block = see_through(changes, source, map_allocated, err);
	if (block)
		block->info.has_changes = false;
	return block;
}
