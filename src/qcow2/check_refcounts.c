/*
 * Refcounts in the file against those that a walk counted, one window at a time.
 * Amending writes whole refcount blocks; the order of passes (check.c) makes a
 * crash between any two writes harmless.
 */
#include "check_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

uint64_t qcow2_check_refcounts_block(const struct check *c, uint64_t index)
{
	if (index >= c->nr_refcount_table)
		return 0;
	uint64_t offset = c->refcount_table[index] & QCOW2_REFCOUNT_OFFSET_MASK;
	if ((offset & (c->header.cluster_bytes - 1)) != 0 ||
		offset >> c->header.cluster_bits >= c->nr_clusters)
		return 0;
	return offset;
}

uint64_t qcow2_check_refcounts_next(const struct check *c, uint64_t from)
{
	uint64_t per_block = qcow2_refcount_block_entries(&c->header);
	for (uint64_t i = from / per_block; i < c->nr_refcount_table; i++)
		if (qcow2_check_refcounts_block(c, i))
			return max_u64(i * per_block, from);
	return UINT64_MAX;
}

/* Reads block index into c->refblock; 0 when there is none, else its offset. */
static int load_block(struct check *c, uint64_t index, uint64_t *offset, struct err *err)
{
	if (cancel_check(c->cancel, err) < 0)
		return -1;
	*offset = qcow2_check_refcounts_block(c, index);
	if (*offset == 0)
		return 0;
	return qcow2_header_pread(
		c->fd, c->refblock, c->header.cluster_bytes, *offset, c->name, err);
}

int qcow2_check_refcounts_load(struct check *c, struct err *err)
{
	uint64_t per_block = qcow2_refcount_block_entries(&c->header);
	for (uint64_t i = 0; i < c->nr_window;) {
		uint64_t cluster = c->first + i, offset;
		uint64_t n = min_u64(per_block - cluster % per_block, c->nr_window - i);
		if (load_block(c, cluster / per_block, &offset, err) < 0)
			return -1;
		for (uint64_t k = 0; offset != 0 && k < n; k++)
			if (qcow2_refcount_get(c->refblock, cluster % per_block + k,
				    c->header.refcount_order) == 1)
				c->state[i + k] |= CHECK_ONCE;
		i += n;
	}
	return 0;
}

void qcow2_check_refcounts_once(struct check *c)
{
	for (uint64_t i = 0; i < c->nr_window; i++)
		if (check_used(c, i) == 1)
			c->state[i] |= CHECK_ONCE;
}

static void look(struct check *c, uint64_t i, uint64_t stored)
{
	uint64_t used = check_used(c, i);
	uint64_t offset = (c->first + i) << c->header.cluster_bits;
	/* What lies behind the end of the file is nobody's: see qcow2_check_refcounts_cut(). */
	if (c->first + i >= c->nr_clusters && used == 0)
		return;
	c->uses_end = c->uses_end || c->first + i >= c->nr_clusters;
	if (used > 0 || stored > 0)
		c->result.end_offset = offset + c->header.cluster_bytes;
	if (stored < used)
		qcow2_check_wrong(c, 1,
			"cluster at host offset %" PRIu64 ": refcount %" PRIu64 ", used %" PRIu64
			" times",
			offset, stored, used);
	else if (stored > used)
		qcow2_check_leak(c,
			"cluster at host offset %" PRIu64 ": leaked, refcount %" PRIu64
			", used %" PRIu64 " times",
			offset, stored, used);
	/* A refcount that agrees does not make it right to use metadata twice. */
	bool refblock = c->state[i] & CHECK_USE_REFBLOCK;
	if ((c->state[i] & CHECK_USED_TWICE) && (refblock || stored >= used))
		qcow2_check_broken(c, 1,
			"cluster at host offset %" PRIu64
			" is metadata and used for something else",
			offset);
	c->untrusted = c->untrusted || (c->state[i] & CHECK_USED_TWICE);
}

/* The refcount that this pass wants there. */
static uint64_t amended(const struct check *c, uint64_t i, uint64_t stored)
{
	uint64_t used = check_used(c, i);
	if (c->first + i >= c->nr_clusters)
		return stored;
	if (c->pass == CHECK_PASS_RAISE)
		return max_u64(stored, used);
	return c->pass == CHECK_PASS_LOWER ? min_u64(stored, used) : stored;
}

/*
 * Puts a new refcount block at the end of the file, for clusters in use that no
 * block stands for.  The block says its own refcount, or the one that stands
 * for the end of the file does; where neither can, the finding stays.
 * c->refblock holds the content and is lost.
 */
static int add_block(struct check *c, uint64_t index, struct err *err)
{
	const struct qcow2_header *h = &c->header;
	uint64_t per_block = qcow2_refcount_block_entries(h);
	off_t end = lseek(c->fd, 0, SEEK_END);
	if (end < 0)
		return err_errno(err, errno, "cannot find the end of %s", c->name);
	uint64_t offset = round_up((uint64_t)end, h->cluster_bytes);
	uint64_t cluster = offset >> h->cluster_bits;
	uint64_t teller = qcow2_check_refcounts_block(c, cluster / per_block);
	bool tells_itself = cluster / per_block == index;
	if (index >= c->nr_refcount_table || (!tells_itself && teller == 0))
		return 0;
	if (tells_itself)
		qcow2_refcount_set(c->refblock, cluster % per_block, h->refcount_order, 1);
	if (file_pwrite(c->fd, c->refblock, h->cluster_bytes, offset, c->name, err) < 0)
		return -1;
	if (!tells_itself) {
		if (qcow2_header_pread(c->fd, c->refblock, h->cluster_bytes, teller, c->name, err) <
			0)
			return -1;
		qcow2_refcount_set(c->refblock, cluster % per_block, h->refcount_order, 1);
		if (file_pwrite(c->fd, c->refblock, h->cluster_bytes, teller, c->name, err) < 0)
			return -1;
	}
	uint8_t entry[8];
	be64_put(entry, offset);
	if (fdatasync(c->fd) < 0)
		return err_errno(err, errno, "cannot sync %s", c->name);
	if (file_pwrite(c->fd, entry, sizeof entry, h->refcount_table_offset + index * 8, c->name,
		    err) < 0)
		return -1;
	c->refcount_table[index] = offset;
	c->nr_clusters = cluster + 1;
	c->header.file_bytes = c->nr_clusters * h->cluster_bytes;
	return 0;
}

/* One block's part of the window: n clusters from window index i on. */
static int compare_part(struct check *c, uint64_t i, uint64_t n, struct err *err)
{
	uint64_t per_block = qcow2_refcount_block_entries(&c->header);
	uint64_t cluster = c->first + i, index = cluster / per_block, offset;
	unsigned order = c->header.refcount_order;
	bool changed = false;
	if (load_block(c, index, &offset, err) < 0)
		return -1;
	if (offset == 0)
		memset(c->refblock, 0, c->header.cluster_bytes);
	for (uint64_t k = 0; k < n; k++) {
		uint64_t at = (cluster + k) % per_block;
		uint64_t stored = qcow2_refcount_get(c->refblock, at, order);
		if (c->pass == CHECK_PASS_LOOK) {
			look(c, i + k, stored);
			continue;
		}
		uint64_t wanted = amended(c, i + k, stored);
		if (wanted != stored) {
			qcow2_refcount_set(c->refblock, at, order, wanted);
			changed = true;
		}
	}
	if (!changed)
		return 0;
	/* With a broken reference about, the block may still be somewhere, and the
	 * new end of the file may be what is referred to. */
	if (offset == 0)
		return c->nr_broken > 0 ? 0 : add_block(c, index, err);
	return file_pwrite(c->fd, c->refblock, c->header.cluster_bytes, offset, c->name, err);
}

static bool part_is_unused(const struct check *c, uint64_t i, uint64_t n)
{
	return c->wide ? digest_is_zero(c->used32 + i, n * sizeof *c->used32)
		       : digest_is_zero(c->used16 + i, n * sizeof *c->used16);
}

int qcow2_check_refcounts_compare(struct check *c, struct err *err)
{
	uint64_t per_block = qcow2_refcount_block_entries(&c->header);
	for (uint64_t i = 0, n; i < c->nr_window; i += n) {
		uint64_t cluster = c->first + i;
		n = min_u64(per_block - cluster % per_block, c->nr_window - i);
		bool stored = qcow2_check_refcounts_block(c, cluster / per_block) != 0;
		if ((stored || !part_is_unused(c, i, n)) && compare_part(c, i, n, err) < 0)
			return -1;
	}
	return 0;
}

int qcow2_check_refcounts_cut(struct check *c, struct err *err)
{
	uint64_t per_block = qcow2_refcount_block_entries(&c->header);
	uint64_t from = c->nr_clusters + c->uses_end;
	for (uint64_t i = from / per_block; i < c->nr_refcount_table; i++) {
		uint64_t offset, at = max_u64(from, i * per_block) - i * per_block;
		bool changed = false;
		if (load_block(c, i, &offset, err) < 0)
			return -1;
		for (; offset != 0 && at < per_block; at++) {
			if (qcow2_refcount_get(c->refblock, at, c->header.refcount_order) == 0)
				continue;
			qcow2_refcount_set(c->refblock, at, c->header.refcount_order, 0);
			changed = true;
		}
		if (changed && file_pwrite(c->fd, c->refblock, c->header.cluster_bytes, offset,
				       c->name, err) < 0)
			return -1;
	}
	return 0;
}
