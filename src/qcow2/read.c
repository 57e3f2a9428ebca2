/*
 * Reading and telling extents, through the chain.
 *
 * The chain is walked by a loop, not by calls from image to image: a chain of a
 * thousand images must not need a deep stack.
 */
#include "qcow2_internal.h"

static int read_run(const struct qcow2_run *run, void *buffer, uint64_t offset, struct err *err)
{
	struct qcow2_image *image = run->image;
	switch (run->kind) {
	case QCOW2_KIND_DATA:
		return file_pread(image->fd, buffer, run->length, run->host, image->path, err);
	case QCOW2_KIND_COMPRESSED:
		return qcow2_codec_read(image, run->entry, buffer, run->length,
			offset & (image->h.cluster_bytes - 1), err);
	case QCOW2_KIND_RAW:
		return block_read(image->raw_backing, buffer, run->length, offset, err);
	case QCOW2_KIND_HOLE:
	case QCOW2_KIND_ZERO:
	case QCOW2_KIND_ZERO_HOST:
		break;
	}
	memset(buffer, 0, run->length);
	return 0;
}

int qcow2_read_chain(
	struct qcow2_image *image, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	uint8_t *at = buffer;
	while (length > 0) {
		struct qcow2_run run;
		if (qcow2_map_chain(image, offset, length, &run, err) < 0 ||
			read_run(&run, at, offset, err) < 0)
			return -1;
		at += run.length;
		offset += run.length;
		length -= run.length;
	}
	return 0;
}

int qcow2_read_padded(
	struct qcow2_image *image, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	uint64_t left = image->h.size_bytes - min_u64(offset, image->h.size_bytes);
	size_t inside = (size_t)min_u64(length, left);
	memset((uint8_t *)buffer + inside, 0, length - inside);
	return inside > 0 ? qcow2_read_chain(image, buffer, inside, offset, err) : 0;
}

int qcow2_read_is_zero(
	struct qcow2_image *image, uint64_t offset, uint64_t length, bool *zero, struct err *err)
{
	uint64_t end = min_u64(offset + length, image->h.size_bytes);
	*zero = true;
	while (offset < end) {
		struct qcow2_run run;
		if (qcow2_map_chain(image, offset, end - offset, &run, err) < 0)
			return -1;
		if (run.kind != QCOW2_KIND_HOLE && run.kind != QCOW2_KIND_ZERO &&
			run.kind != QCOW2_KIND_ZERO_HOST) {
			*zero = false;
			return 0;
		}
		offset += run.length;
	}
	return 0;
}

int qcow2_read(struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct qcow2_image *image = qcow2_image_of(block);
	if (!image->writer)
		return qcow2_read_chain(image, buffer, length, offset, err);
	struct rangelock_hold hold;
	qcow2_write_hold(image, &hold, offset, length, false);
	int rc = qcow2_read_chain(image, buffer, length, offset, err);
	if (rc == 0 && image->writer->assembly)
		qcow2_assembly_overlay(image, buffer, length, offset);
	rangelock_release(&image->writer->ranges, &hold);
	return rc;
}

/* --- extents --------------------------------------------------------------------- */

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
		if (!assembled && qcow2_map_chain(image, offset, run.length, &run, err) < 0)
			return -1;
		if (run.kind == QCOW2_KIND_RAW) {
			if (add_raw(&e, &run, offset, &room, err) < 0)
				return -1;
		} else {
			room = add_extent(&e, run.length, flags_of(run.kind));
		}
		offset += run.length;
	}
	*nr = e.nr;
	return 0;
}
