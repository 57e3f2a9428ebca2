/*
 * Zeroing and discarding.
 *
 * Whole clusters change only in the tables.  To be given up:
 *   nothing beneath (no backing data there)  -> unallocated
 *   backing data beneath, version 3          -> zero flag, no host cluster
 *   backing data beneath, version 2          -> zeros written (zero); left (trim)
 * To stay allocated (BLOCK_NO_HOLE):
 *   version 3                                -> zero flag with a host cluster
 *   version 2                                -> zeros written
 * What reads as zeros already is skipped without making a table.  Parts of
 * clusters are written.
 */
#include "qcow2_internal.h"

#include <errno.h>
#include <stdlib.h>

#define BATCH 64u
#define PIECE_CLUSTERS 2048u

static const uint8_t zeros[65536];

/* Zeros as data; the range is held exclusively. */
static int write_zeros_held(
	struct qcow2_image *image, uint64_t offset, uint64_t end, struct err *err)
{
	end = min_u64(end, image->block.info.size_bytes);
	while (offset < end) {
		size_t n = (size_t)min_u64(end - offset, sizeof zeros);
		if (qcow2_write_held(image, zeros, n, offset, true, false, err) < 0)
			return -1;
		offset += n;
	}
	return 0;
}

/* Of what is to be given up: whether zeros must be written instead. */
static bool needs_data(const struct qcow2_image *image, uint64_t cluster, bool keep)
{
	if (image->h.version >= 3)
		return false;
	return keep || cluster << image->h.cluster_bits < image->backing_bytes;
}

static struct qcow2_entry given_up(const struct qcow2_image *image, uint64_t cluster)
{
	if (cluster << image->h.cluster_bits >= image->backing_bytes)
		return (struct qcow2_entry){0};
	if (image->entry_bytes == 16)
		return (struct qcow2_entry){.bitmap = QCOW2_BITMAP_ALL_ZERO};
	return (struct qcow2_entry){.l2 = QCOW2_ZERO};
}

/* A zero entry with a host cluster: its own, or a new one.  Holding the lock. */
static int kept(struct qcow2_image *image, struct qcow2_entry old, struct qcow2_entry *entry,
	struct err *err)
{
	uint64_t host = old.l2 & QCOW2_OFFSET_MASK, cluster, nr;
	bool fresh;
	if (!(old.l2 & QCOW2_COPIED) || (old.l2 & QCOW2_COMPRESSED) || host == 0) {
		if (qcow2_refcount_alloc(image, 1, &cluster, &nr, &fresh, err) < 0)
			return -1;
		host = cluster << image->h.cluster_bits;
	}
	*entry = (struct qcow2_entry){.l2 = host | QCOW2_COPIED};
	if (image->entry_bytes == 16)
		entry->bitmap = QCOW2_BITMAP_ALL_ZERO;
	else
		entry->l2 |= QCOW2_ZERO;
	return 0;
}

static bool same_entry(struct qcow2_entry a, struct qcow2_entry b)
{
	return a.l2 == b.l2 && a.bitmap == b.bitmap;
}

static int enter(struct qcow2_image *image, uint64_t cluster, struct qcow2_entry old,
	struct qcow2_entry entry, struct err *err)
{
	uint64_t host = entry.l2 & QCOW2_OFFSET_MASK;
	bool same_place = !(old.l2 & QCOW2_COMPRESSED) && (old.l2 & QCOW2_OFFSET_MASK) == host;
	if (qcow2_map_set(image, cluster, 1, &entry, err) < 0) {
		if (host != 0 && !same_place)
			qcow2_refcount_undo(image, host >> image->h.cluster_bits, 1);
		return -1;
	}
	if (same_place)
		return 0;
	return qcow2_refcount_drop(image, old, err);
}

/* Holding the range exclusively. */
static int zero_clusters(
	struct qcow2_image *image, uint64_t cluster, uint64_t end, bool keep, struct err *err)
{
	while (cluster < end) {
		struct qcow2_entry old[BATCH];
		size_t nr;
		WITH_LOCK(qcow2_lock(image));
		if (qcow2_map_get(image, cluster, (size_t)min_u64(end - cluster, BATCH), old, &nr,
			    err) < 0)
			return -1;
		for (size_t i = 0; i < nr; i++) {
			struct qcow2_entry entry = given_up(image, cluster + i);
			enum qcow2_kind kind;
			if (qcow2_map_check(image, cluster + i, old[i], &kind, err) < 0)
				return -1;
			if (keep && kept(image, old[i], &entry, err) < 0)
				return -1;
			if (!same_entry(old[i], entry) &&
				enter(image, cluster + i, old[i], entry, err) < 0)
				return -1;
		}
		cluster += nr;
	}
	return 0;
}

/* Clusters first..end, at most PIECE_CLUSTERS. */
static int change_clusters(
	struct qcow2_image *image, uint64_t first, uint64_t end, bool keep, struct err *err)
{
	unsigned bits = image->h.cluster_bits;
	struct rangelock_hold hold;
	if (qcow2_commit_make_room(image, err) < 0)
		return -1;
	qcow2_write_hold(image, &hold, first << bits, (end - first) << bits, true);
	int rc = 0;
	while (rc == 0 && first < end) {
		uint64_t stop = first + 1;
		bool data = needs_data(image, first, keep);
		while (stop < end && needs_data(image, stop, keep) == data)
			stop++;
		rc = data ? write_zeros_held(image, first << bits, stop << bits, err)
			  : zero_clusters(image, first, stop, keep, err);
		if (rc == 0 && image->writer->assembly)
			qcow2_assembly_discard(image, first, stop - first);
		first = stop;
	}
	rangelock_release(&image->writer->ranges, &hold);
	return rc;
}

/* How many clusters from `first` on read as zeros already, in whole clusters. */
static int count_zero(
	struct qcow2_image *image, uint64_t first, uint64_t end, uint64_t *nr, struct err *err)
{
	unsigned bits = image->h.cluster_bits;
	uint64_t offset = first << bits;
	struct qcow2_run run;
	*nr = 0;
	if (image->writer->assembly)
		end = qcow2_assembly_next(image, first, end);
	if (end == first)
		return 0;
	uint64_t stop = min_u64(end << bits, image->h.size_bytes);
	if (qcow2_map_chain(image, offset, stop - offset, &run, err) < 0)
		return -1;
	if (run.kind != QCOW2_KIND_HOLE && run.kind != QCOW2_KIND_ZERO)
		return 0;
	*nr = offset + run.length == stop ? end - first : run.length >> bits;
	return 0;
}

static int zero_whole(
	struct qcow2_image *image, uint64_t first, uint64_t end, bool keep, struct err *err)
{
	while (first < end) {
		uint64_t skip = 0;
		struct rangelock_hold hold;
		unsigned bits = image->h.cluster_bits;
		if (!keep) {
			qcow2_write_hold(image, &hold, first << bits, (end - first) << bits, false);
			int rc = count_zero(image, first, end, &skip, err);
			rangelock_release(&image->writer->ranges, &hold);
			if (rc < 0)
				return -1;
		}
		first += skip;
		uint64_t stop = min_u64(first + PIECE_CLUSTERS, end);
		if (skip == 0 && change_clusters(image, first, stop, keep, err) < 0)
			return -1;
		if (skip == 0)
			first = stop;
	}
	return 0;
}

/* Part of one cluster. */
static int zero_part(struct qcow2_image *image, uint64_t offset, uint64_t length, unsigned flags,
	struct err *err)
{
	bool zero;
	uint64_t cluster = offset >> image->h.cluster_bits;
	/* The buffer first: what leaves it meanwhile is found in the tables. */
	bool assembled = image->writer->assembly &&
			 qcow2_assembly_next(image, cluster, cluster + 1) == cluster;
	if (qcow2_read_is_zero(image, offset, length, &zero, err) < 0)
		return -1;
	if (zero && !assembled && !(flags & BLOCK_NO_HOLE))
		return 0;
	if (flags & BLOCK_FAST_ZERO)
		return err_set(err, ERR_UNSUPPORTED,
			"%s cannot zero parts of clusters faster than by writing zeros",
			image->path);
	while (length > 0) {
		size_t n = (size_t)min_u64(length, sizeof zeros);
		if (qcow2_write(&image->block, zeros, n, offset, 0, err) < 0)
			return -1;
		offset += n;
		length -= n;
	}
	return 0;
}

int qcow2_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	struct qcow2_image *image = qcow2_image_of(block);
	uint64_t end = offset + length, first, last;
	if (qcow2_write_refuse_part(image, offset, length, err) < 0)
		return -1;
	if (!qcow2_write_covers(image, offset, length, &first, &last)) {
		/* within one cluster, or two */
		uint64_t middle = min_u64(first << image->h.cluster_bits, end);
		if (middle > offset && zero_part(image, offset, middle - offset, flags, err) < 0)
			return -1;
		return end > middle ? zero_part(image, middle, end - middle, flags, err) : 0;
	}
	uint64_t head = (first << image->h.cluster_bits) - offset;
	uint64_t whole_end = min_u64(last << image->h.cluster_bits, end);
	/* Parts first: a fast zero that fails must have done little. */
	if (head > 0 && zero_part(image, offset, head, flags, err) < 0)
		return -1;
	if (end > whole_end && zero_part(image, whole_end, end - whole_end, flags, err) < 0)
		return -1;
	return zero_whole(image, first, last, flags & BLOCK_NO_HOLE, err);
}

int qcow2_trim(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	(void)flags;
	struct qcow2_image *image = qcow2_image_of(block);
	uint64_t first, last;
	if (!qcow2_write_covers(image, offset, length, &first, &last))
		return 0;
	/* Version 2 cannot hide what the backing file holds. */
	if (image->h.version < 3)
		first = max_u64(first, div_round_up(image->backing_bytes, image->h.cluster_bytes));
	return first < last ? zero_whole(image, first, last, false, err) : 0;
}
