/*
 * Telling what is stored where: extents of the whole chain or of one image's own layer.
 *
 * The assembly buffer is asked before the tables: what leaves it meanwhile has entered
 * them.
 */
#include "qcow2_internal.h"

/* Collects extents, merging neighbours of one kind. */
struct extents {
	struct block_extent *list;
	size_t max, nr;
};

/* False when there is no room. */
static bool add_extent(struct extents *e, uint64_t length, uint32_t flags)
{
	if (e->nr > 0 && e->list[e->nr - 1].flags == flags) {
		e->list[e->nr - 1].length += length;
		return true;
	}
	if (e->nr == e->max)
		return false;
	e->list[e->nr++] = (struct block_extent){length, flags};
	return true;
}

static int add_raw(struct extents *e, const struct qcow2_run *run, uint64_t offset, bool *room,
	struct err *err)
{
	uint64_t end = offset + run->length;
	while (*room && offset < end) {
		struct block_extent found[16];
		size_t nr;
		if (block_extents(run->image->raw_backing, offset, end - offset, found,
			    ARRAY_LENGTH(found), &nr, err) < 0)
			return -1;
		for (size_t i = 0; i < nr && *room; i++) {
			*room = add_extent(e, found[i].length, found[i].flags);
			offset += found[i].length;
		}
	}
	return 0;
}

static uint32_t flags_of(enum qcow2_kind kind)
{
	switch (kind) {
	case QCOW2_KIND_HOLE:
	case QCOW2_KIND_ZERO:
		return BLOCK_HOLE | BLOCK_ZERO;
	case QCOW2_KIND_ZERO_HOST:
		return BLOCK_ZERO;
	case QCOW2_KIND_DATA:
	case QCOW2_KIND_COMPRESSED:
	case QCOW2_KIND_RAW:
		break;
	}
	return 0;
}

/* Cuts the length before the next cluster that has bytes assembled; true when
 * offset lies in such a cluster. */
static bool cut_at_assembly(struct qcow2_image *image, uint64_t offset, uint64_t *length)
{
	if (!image->writer || !image->writer->assembly)
		return false;
	uint64_t first = offset >> image->h.cluster_bits;
	uint64_t end = ((offset + *length - 1) >> image->h.cluster_bits) + 1;
	uint64_t next = qcow2_assembly_next(image, first, end);
	if (next == first)
		*length = min_u64(*length, ((first + 1) << image->h.cluster_bits) - offset);
	else if (next < end)
		*length = (next << image->h.cluster_bits) - offset;
	return next == first;
}

/* Of the image's own layer, on which nothing beneath shows. */
static uint32_t own_flags_of(enum qcow2_kind kind)
{
	return kind == QCOW2_KIND_HOLE ? BLOCK_HOLE | BLOCK_UNCHANGED : flags_of(kind);
}

/* The run at offset of this image alone, or of the chain. */
static int find_run(struct qcow2_image *image, bool own, uint64_t offset, uint64_t length,
	struct qcow2_run *run, struct err *err)
{
	if (!own)
		return qcow2_map_chain(image, offset, length, run, err);
	WITH_LOCK(qcow2_lock(image));
	return qcow2_map_run(image, offset, length, run, err);
}

int qcow2_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct qcow2_image *image = qcow2_image_of(block);
	struct extents e = {.list = extents, .max = max};
	uint64_t end = offset + length;
	bool room = true;
	while (room && offset < end) {
		struct qcow2_run run = {.length = end - offset, .kind = QCOW2_KIND_DATA};
		bool assembled = cut_at_assembly(image, offset, &run.length);
		if (!assembled &&
			find_run(image, image->own_layer, offset, run.length, &run, err) < 0)
			return -1;
		if (run.kind == QCOW2_KIND_RAW) {
			if (add_raw(&e, &run, offset, &room, err) < 0)
				return -1;
		} else {
			room = add_extent(&e, run.length,
				image->own_layer ? own_flags_of(run.kind) : flags_of(run.kind));
		}
		offset += run.length;
	}
	*nr = e.nr;
	return 0;
}

int qcow2_own_run(struct block *block, uint64_t offset, uint64_t length, uint64_t *nr_alike,
	bool *held, struct err *err)
{
	struct qcow2_image *image = qcow2_image_of(block);
	*nr_alike = 0;
	while (*nr_alike < length) {
		uint64_t at = offset + *nr_alike;
		struct qcow2_run run = {.length = length - *nr_alike, .kind = QCOW2_KIND_DATA};
		if (!cut_at_assembly(image, at, &run.length) &&
			find_run(image, true, at, run.length, &run, err) < 0)
			return -1;
		bool is_held = run.kind != QCOW2_KIND_HOLE;
		if (*nr_alike == 0)
			*held = is_held;
		else if (is_held != *held)
			break;
		*nr_alike += run.length;
	}
	return 0;
}
