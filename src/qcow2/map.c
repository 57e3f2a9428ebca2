/*
 * Guest clusters to host clusters: L1, L2, and the walk through a chain.
 *
 *   guest offset | L1 index | L2 index | offset in the cluster |
 *
 * An L1 table in memory belongs to images that are written to and to small
 * images; else it is read through the cache like the L2 tables, in pages.
 * The content of tables is hostile: what leaves this file is checked.
 */
#include "qcow2_internal.h"

#include <assert.h>
#include <inttypes.h>

/* --- L1 ------------------------------------------------------------------------ */

static int get_l1(struct qcow2_image *image, uint64_t index, uint64_t *entry, struct err *err)
{
	if (image->l1) {
		*entry = image->l1[index];
		return 0;
	}
	uint64_t at = image->h.l1_offset + index * 8;
	uint64_t in_page = at % image->page_bytes;
	struct qcow2_page *page = qcow2_cache_get(&image->shared->cache, image, at - in_page, err);
	if (!page)
		return -1;
	*entry = be64_get(page->data + in_page);
	return 0;
}

static int check_l1(struct qcow2_image *image, uint64_t index, uint64_t entry, struct err *err)
{
	uint64_t table = entry & QCOW2_OFFSET_MASK;
	if (table % image->h.cluster_bytes != 0 ||
		!qcow2_image_fits(image, table, image->h.cluster_bytes))
		return qcow2_image_corrupt(image, err,
			"entry %" PRIu64 " of its L1 table points to offset %" PRIu64
			", which is no cluster of the file",
			index, table);
	return 0;
}

/* --- L2 ------------------------------------------------------------------------ */

static struct qcow2_entry get_entry(const struct qcow2_image *image, const uint8_t *at)
{
	struct qcow2_entry entry = {.l2 = be64_get(at)};
	if (image->entry_bytes == 16)
		entry.bitmap = be64_get(at + 8);
	return entry;
}

static void put_entry(const struct qcow2_image *image, uint8_t *at, struct qcow2_entry entry)
{
	be64_put(at, entry.l2);
	if (image->entry_bytes == 16)
		be64_put(at + 8, entry.bitmap);
}

/* Where a cluster's entry lies in its table: page (offset in the table), offset
 * in the page, entries left in the page. */
struct spot {
	uint64_t l1_index;
	uint64_t page_at;
	uint32_t in_page;
	size_t left;
};

static struct spot find_spot(const struct qcow2_image *image, uint64_t cluster)
{
	uint64_t index = cluster & (((uint64_t)1 << image->l2_bits) - 1);
	uint64_t at = index * image->entry_bytes;
	struct spot spot = {
		.l1_index = cluster >> image->l2_bits,
		.in_page = (uint32_t)(at % image->page_bytes),
	};
	spot.page_at = at - spot.in_page;
	spot.left = (image->page_bytes - spot.in_page) / image->entry_bytes;
	return spot;
}

int qcow2_map_find_page(
	struct qcow2_image *image, uint64_t cluster, uint64_t *offset, struct err *err)
{
	struct spot spot = find_spot(image, cluster);
	uint64_t l1;
	*offset = 0;
	if (get_l1(image, spot.l1_index, &l1, err) < 0)
		return -1;
	if ((l1 & QCOW2_OFFSET_MASK) == 0)
		return 0;
	if (check_l1(image, spot.l1_index, l1, err) < 0)
		return -1;
	*offset = (l1 & QCOW2_OFFSET_MASK) + spot.page_at;
	return 0;
}

/* The page with a cluster's entry; *page is NULL when there is no L2 table. */
static int get_page(
	struct qcow2_image *image, uint64_t cluster, struct qcow2_page **page, struct err *err)
{
	uint64_t offset;
	*page = NULL;
	if (qcow2_map_find_page(image, cluster, &offset, err) < 0)
		return -1;
	if (offset == 0)
		return 0;
	*page = qcow2_cache_get(&image->shared->cache, image, offset, err);
	return *page ? 0 : -1;
}

int qcow2_map_get(struct qcow2_image *image, uint64_t cluster, size_t max,
	struct qcow2_entry *entries, size_t *nr, struct err *err)
{
	struct spot spot = find_spot(image, cluster);
	struct qcow2_page *page;
	if (get_page(image, cluster, &page, err) < 0)
		return -1;
	*nr = min_size(max, spot.left);
	for (size_t i = 0; i < *nr; i++)
		entries[i] =
			page ? get_entry(image, page->data + spot.in_page + i * image->entry_bytes)
			     : (struct qcow2_entry){0};
	return 0;
}

/* --- changing ------------------------------------------------------------------ */

/* Fills a table's new place: with the old table, or with zeros where the file may
 * hold something else.  Releases the lock. */
static int fill_table(
	struct qcow2_image *image, uint64_t to, uint64_t from, bool fresh, struct err *err)
{
	if (from == 0 && fresh)
		return 0;
	uint8_t *AUTO_FREE bytes = calloc(1, image->h.cluster_bytes);
	if (!bytes)
		return err_set(err, ERR_NO_MEMORY, "no memory for an L2 table of %s", image->path);
	pthread_mutex_unlock(qcow2_lock(image));
	int rc = 0;
	if (from != 0)
		rc = qcow2_header_pread(
			image->fd, bytes, image->h.cluster_bytes, from, image->path, err);
	if (rc == 0)
		rc = file_pwrite(image->fd, bytes, image->h.cluster_bytes, to, image->path, err);
	pthread_mutex_lock(qcow2_lock(image));
	return rc;
}

/* A table of the image's own, in place of none or of one that snapshots share.
 * A shared table is never changed, so that what the file holds of it is current. */
static int make_table(struct qcow2_image *image, uint64_t l1_index, struct err *err)
{
	uint64_t old = image->l1[l1_index] & QCOW2_OFFSET_MASK;
	uint64_t cluster, nr;
	bool fresh;
	if (old != 0 && check_l1(image, l1_index, old, err) < 0)
		return -1;
	assert(old == 0 || !image->merge); /* readers may know the old one */
	if (qcow2_refcount_alloc(image, 1, &cluster, &nr, &fresh, err) < 0)
		return -1;
	uint64_t table = cluster << image->h.cluster_bits;
	/* Pages of what was here before must not come back. */
	if (!fresh)
		qcow2_cache_forget(&image->shared->cache, image, table, image->h.cluster_bytes);
	if (fill_table(image, table, old, fresh, err) < 0) {
		qcow2_refcount_undo(image, cluster, 1);
		return -1;
	}
	qcow2_table_set(&image->writer->l1, l1_index, table | QCOW2_COPIED);
	if (old != 0)
		return qcow2_refcount_drop_clusters(image, old >> image->h.cluster_bits, 1, err);
	return 0;
}

static int own_table(struct qcow2_image *image, uint64_t l1_index, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	int rc = 0;
	while (w->making_table)
		pthread_cond_wait(&image->shared->cache.changed, qcow2_lock(image));
	if (image->l1[l1_index] & QCOW2_COPIED)
		return 0;
	w->making_table = true;
	rc = make_table(image, l1_index, err);
	w->making_table = false;
	pthread_cond_broadcast(&image->shared->cache.changed);
	return rc;
}

int qcow2_map_set(struct qcow2_image *image, uint64_t cluster, size_t nr,
	const struct qcow2_entry *entries, struct err *err)
{
	while (nr > 0) {
		struct spot spot = find_spot(image, cluster);
		struct qcow2_page *page;
		if (!(image->l1[spot.l1_index] & QCOW2_COPIED) &&
			own_table(image, spot.l1_index, err) < 0)
			return -1;
		if (get_page(image, cluster, &page, err) < 0)
			return -1;
		if (!page)
			return qcow2_image_corrupt(image, err,
				"entry %" PRIu64 " of its L1 table has a flag and no table",
				spot.l1_index);
		size_t n = min_size(nr, spot.left);
		for (size_t i = 0; i < n; i++)
			put_entry(image, page->data + spot.in_page + i * image->entry_bytes,
				entries[i]);
		qcow2_cache_dirty(&image->shared->cache, page, false);
		cluster += n;
		entries += n;
		nr -= n;
	}
	return 0;
}

/* --- looking up ---------------------------------------------------------------- */

static int check_compressed(
	struct qcow2_image *image, uint64_t cluster, uint64_t entry, struct err *err)
{
	uint64_t offset, length;
	qcow2_compressed_range(&image->h, entry, &offset, &length);
	if (!qcow2_image_fits(image, offset, 1))
		return qcow2_image_corrupt(image, err,
			"compressed guest cluster %" PRIu64 " lies at offset %" PRIu64
			", beyond the file's end",
			cluster, offset);
	return 0;
}

int qcow2_map_check(struct qcow2_image *image, uint64_t cluster, struct qcow2_entry entry,
	enum qcow2_kind *kind, struct err *err)
{
	uint64_t host = entry.l2 & QCOW2_OFFSET_MASK;
	if (entry.l2 & QCOW2_COMPRESSED) {
		*kind = QCOW2_KIND_COMPRESSED;
		return check_compressed(image, cluster, entry.l2, err);
	}
	if (host != 0 && (host % image->h.cluster_bytes != 0 ||
				 !qcow2_image_fits(image, host, image->h.cluster_bytes)))
		return qcow2_image_corrupt(image, err,
			"guest cluster %" PRIu64 " lies at offset %" PRIu64
			", which is no cluster of the file",
			cluster, host);
	bool zero = entry.l2 & QCOW2_ZERO;
	bool data = host != 0;
	if (image->entry_bytes == 16) {
		uint32_t allocated = (uint32_t)entry.bitmap, zeros = (uint32_t)(entry.bitmap >> 32);
		if ((allocated & zeros) != 0 || zero || (allocated != 0 && host == 0))
			return qcow2_image_corrupt(image, err,
				"the subclusters of guest cluster %" PRIu64
				" contradict each other",
				cluster);
		data = allocated & 1;
		zero = zeros & 1;
	} else if (zero && image->h.version < 3) {
		return qcow2_image_corrupt(image, err,
			"guest cluster %" PRIu64 " has a zero flag, which version 2 does not know",
			cluster);
	}
	if (zero)
		*kind = host != 0 ? QCOW2_KIND_ZERO_HOST : QCOW2_KIND_ZERO;
	else
		*kind = data ? QCOW2_KIND_DATA : QCOW2_KIND_HOLE;
	return 0;
}

/* The kind of subcluster number i of a checked entry. */
static enum qcow2_kind sub_kind(struct qcow2_entry entry, unsigned i)
{
	if (entry.bitmap >> i & 1)
		return QCOW2_KIND_DATA;
	if (entry.bitmap >> (32 + i) & 1)
		return entry.l2 & QCOW2_OFFSET_MASK ? QCOW2_KIND_ZERO_HOST : QCOW2_KIND_ZERO;
	return QCOW2_KIND_HOLE;
}

int qcow2_map_entry(struct qcow2_image *image, uint64_t cluster, struct qcow2_entry entry,
	uint32_t at, struct qcow2_run *run, struct err *err)
{
	if (qcow2_map_check(image, cluster, entry, &run->kind, err) < 0)
		return -1;
	run->host = (entry.l2 & QCOW2_OFFSET_MASK) + at;
	run->entry = entry.l2;
	run->length = image->h.cluster_bytes - at;
	if (image->entry_bytes == 8 || run->kind == QCOW2_KIND_COMPRESSED)
		return 0;
	uint32_t sub_bytes = image->h.cluster_bytes / 32;
	unsigned first = at / sub_bytes, end = first + 1;
	run->kind = sub_kind(entry, first);
	while (end < 32 && sub_kind(entry, end) == run->kind)
		end++;
	run->length = (uint64_t)end * sub_bytes - at;
	return 0;
}

bool qcow2_map_continues(const struct qcow2_run *run, const struct qcow2_run *next)
{
	if (next->kind != run->kind || run->kind == QCOW2_KIND_COMPRESSED)
		return false;
	return run->kind != QCOW2_KIND_DATA ||
	       (next->image == run->image && next->host == run->host + run->length);
}

/* Extends a run with what its page tells, up to length. */
static int run_in_page(struct qcow2_image *image, const struct qcow2_page *page,
	const struct spot *spot, uint64_t offset, uint64_t length, struct qcow2_run *run,
	struct err *err)
{
	uint64_t cluster = offset >> image->h.cluster_bits;
	uint32_t at = (uint32_t)(offset & (image->h.cluster_bytes - 1));
	const uint8_t *p = page->data + spot->in_page;
	const uint8_t *end = page->data + page->bytes;
	if (qcow2_map_entry(image, cluster, get_entry(image, p), at, run, err) < 0)
		return -1;
	while (run->length < length) {
		struct qcow2_run next = {.image = image};
		uint64_t here = at + run->length;
		const uint8_t *q = p + (here >> image->h.cluster_bits) * image->entry_bytes;
		if (q >= end)
			break;
		/* What is wrong further on is told when its turn comes. */
		if (qcow2_map_entry(image, cluster, get_entry(image, q),
			    (uint32_t)(here & (image->h.cluster_bytes - 1)), &next, NULL) < 0 ||
			!qcow2_map_continues(run, &next))
			break;
		run->length += next.length;
	}
	return 0;
}

/* The run of a table that does not exist, and of those that follow. */
static int run_without_table(struct qcow2_image *image, const struct spot *spot, uint64_t offset,
	uint64_t length, struct qcow2_run *run, struct err *err)
{
	unsigned reach_bits = image->l2_bits + image->h.cluster_bits;
	uint64_t last = (offset + length - 1) >> reach_bits;
	uint64_t index = spot->l1_index;
	run->kind = QCOW2_KIND_HOLE;
	while (index < last) {
		uint64_t l1;
		if (get_l1(image, index + 1, &l1, err) < 0)
			return -1;
		if ((l1 & QCOW2_OFFSET_MASK) != 0)
			break;
		index++;
	}
	run->length = index == last ? length : ((index + 1) << reach_bits) - offset;
	return 0;
}

int qcow2_map_run(struct qcow2_image *image, uint64_t offset, uint64_t length,
	struct qcow2_run *run, struct err *err)
{
	struct spot spot = find_spot(image, offset >> image->h.cluster_bits);
	struct qcow2_page *page;
	run->image = image;
	if (get_page(image, offset >> image->h.cluster_bits, &page, err) < 0)
		return -1;
	int rc = page ? run_in_page(image, page, &spot, offset, length, run, err)
		      : run_without_table(image, &spot, offset, length, run, err);
	run->length = min_u64(run->length, length);
	return rc;
}

/* The same in a row of images that is laid flat; HOLE: none of them holds it.  *last
 * becomes the one beneath which is asked next, NULL when nothing is. */
static int run_in_flat(struct qcow2_image *image, uint64_t offset, uint64_t length,
	struct qcow2_run *run, struct qcow2_image **last, struct err *err)
{
	const struct qcow2_flat *flat = image->flat;
	int rc = qcow2_flat_run(image->flat, offset, length, run, err);
	*last = image;
	if (rc > 0) /* image by image, then */
		return qcow2_map_run(image, offset, length, run, err);
	*last = offset < qcow2_flat_reach(flat) ? qcow2_flat_last(flat) : NULL;
	return rc;
}

int qcow2_map_chain(struct qcow2_image *image, uint64_t offset, uint64_t length,
	struct qcow2_run *run, struct err *err)
{
	WITH_LOCK(qcow2_lock(image));
	for (;;) {
		if (image->flat) {
			struct qcow2_image *last;
			if (run_in_flat(image, offset, length, run, &last, err) < 0)
				return -1;
			if (!last)
				return 0;
			image = last;
		} else if (qcow2_map_run(image, offset, length, run, err) < 0) {
			return -1;
		}
		if (run->kind != QCOW2_KIND_HOLE || offset >= image->backing_bytes)
			return 0;
		length = min_u64(run->length, image->backing_bytes - offset);
		if (image->raw_backing) {
			run->kind = QCOW2_KIND_RAW;
			run->image = image;
			run->length = length;
			return 0;
		}
		image = image->backing;
	}
}
