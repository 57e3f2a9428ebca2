/*
 * Reading through the chain.
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
