/*
 * Host clusters: refcounts, allocation, and where compressed clusters go.
 *
 * New clusters come from the end of the file, so that what is written together
 * lies together; the file is made longer in steps, ahead of the data, and cut
 * at close.  Clusters that are free in the middle are found by a hint that moves
 * through the refcounts, one or two pages for each request, so that no request
 * waits for a walk through a large file.  Freed clusters move the hint back.
 *
 *   | ... in use, some free ... | pack: taken, counted when used | end_cluster |
 *        ^ hint_cluster           ^ pack_at             ^ pack_end
 *
 * A refcount block lies in the first cluster of those that it counts which was
 * not in use when it was needed, so it counts itself.  The table of blocks grows
 * by moving: blocks and the new table are made durable, then the header is
 * switched.  Refcounts here may run ahead of the file's; commit.c has the order.
 */
#include "qcow2_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#define EXTEND_STEP_BYTES (32 * MIB)
#define PACK_STEP_BYTES (1 * MIB)
#define HOST_END_MAX ((uint64_t)1 << 55)
#define TABLE_PIECE_ENTRIES 64u
#define FULL_PAGES_MAX 1024u /* a crash may leave some beyond the file's end */

int qcow2_table_init(
	struct qcow2_table *table, uint64_t *entries, uint64_t nr_entries, struct err *err)
{
	uint64_t pieces = div_round_up(nr_entries, TABLE_PIECE_ENTRIES);
	uint64_t *dirty = calloc(BITMAP_WORDS(pieces) + 1, sizeof *dirty);
	if (!dirty)
		return err_errno(err, ENOMEM, "cannot load tables");
	free(table->dirty);
	*table = (struct qcow2_table){.entries = entries, .nr_entries = nr_entries, .dirty = dirty};
	return 0;
}

void qcow2_table_set(struct qcow2_table *table, uint64_t index, uint64_t value)
{
	assert(index < table->nr_entries);
	table->entries[index] = value;
	bitmap_set(table->dirty, index / TABLE_PIECE_ENTRIES);
	table->any_dirty = true;
}

static uint64_t refcount_max(const struct qcow2_image *image)
{
	unsigned bits = 1u << image->h.refcount_order;
	return bits == 64 ? UINT64_MAX : ((uint64_t)1 << bits) - 1;
}

/* Clusters that one page counts. */
static uint64_t per_page(const struct qcow2_image *image)
{
	return ((uint64_t)image->page_bytes * 8) >> image->h.refcount_order;
}

/* The page that counts a cluster, NULL in *page when there is no block.  *index:
 * the cluster's in the page. */
static int get_page(struct qcow2_image *image, uint64_t cluster, struct qcow2_page **page,
	uint64_t *index, struct err *err)
{
	const struct qcow2_table *table = &image->writer->refcounts;
	uint64_t per_block = qcow2_refcount_block_entries(&image->h);
	uint64_t block_index = cluster / per_block;
	*page = NULL;
	if (block_index >= table->nr_entries)
		return 0;
	uint64_t block = table->entries[block_index] & QCOW2_REFCOUNT_OFFSET_MASK;
	if (block == 0)
		return 0;
	if (block % image->h.cluster_bytes != 0 ||
		!range_fits(block, image->h.cluster_bytes, image->host_end))
		return qcow2_image_corrupt(image, err,
			"entry %" PRIu64 " of its refcount table points to offset %" PRIu64
			", which is no cluster of the file",
			block_index, block);
	uint64_t in_block = cluster % per_block;
	*index = in_block % per_page(image);
	*page = qcow2_cache_get(&image->shared->cache, image,
		block + in_block / per_page(image) * image->page_bytes, err);
	return *page ? 0 : -1;
}

static uint64_t count_of(
	const struct qcow2_image *image, const struct qcow2_page *page, uint64_t index)
{
	return qcow2_refcount_get(page->data, index, image->h.refcount_order);
}

static void set_counts(struct qcow2_image *image, struct qcow2_page *page, uint64_t index,
	uint64_t nr, uint64_t value)
{
	for (uint64_t i = 0; i < nr; i++)
		qcow2_refcount_set(page->data, index + i, image->h.refcount_order, value);
	qcow2_cache_dirty(&image->shared->cache, page, true);
}

/* --- the file's end ---------------------------------------------------------------- */

/* Makes the file long enough for clusters below end_cluster.  Data is only ever
 * written within the file's length: growing it here cannot cut what another
 * thread appends. */
static int extend(struct qcow2_image *image, uint64_t end_cluster, struct err *err)
{
	uint64_t need = end_cluster << image->h.cluster_bits;
	if (need <= image->host_end)
		return 0;
	if (need > HOST_END_MAX)
		return err_set(
			err, ERR_NO_SPACE, "%s is as large as its format allows", image->path);
	uint64_t want = round_up(need + EXTEND_STEP_BYTES, image->h.cluster_bytes);
	if (ftruncate(image->fd, (off_t)want) < 0) {
		want = need; /* perhaps a limit is near */
		if (ftruncate(image->fd, (off_t)want) < 0)
			return err_errno(err, errno, "cannot make %s %" PRIu64 " bytes long",
				image->path, want);
	}
	image->host_end = want;
	return 0;
}

int qcow2_refcount_open(struct qcow2_image *image, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	uint64_t *entries, nr;
	if (qcow2_header_load_refcount_table(
		    image->fd, image->path, &image->h, &entries, &nr, err) < 0)
		return -1;
	if (qcow2_table_init(&w->refcounts, entries, nr, err) < 0) {
		free(entries);
		return -1;
	}
	w->end_cluster = div_round_up(image->h.file_bytes, image->h.cluster_bytes);
	return 0;
}

/* A block of zeros at the end of the file that counts itself. */
static int append_block(struct qcow2_image *image, uint64_t block_index, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	uint64_t cluster = w->end_cluster;
	uint64_t offset = cluster << image->h.cluster_bits;
	if (extend(image, cluster + 1, err) < 0)
		return -1;
	uint64_t in_block = cluster % qcow2_refcount_block_entries(&image->h);
	struct qcow2_page *page = qcow2_cache_new(&image->shared->cache, image,
		offset + in_block / per_page(image) * image->page_bytes, err);
	if (!page)
		return -1;
	set_counts(image, page, in_block % per_page(image), 1, 1);
	qcow2_table_set(&w->refcounts, block_index, offset);
	w->end_cluster = cluster + 1;
	return 0;
}

/* --- a larger table ----------------------------------------------------------------- */

struct growth {
	uint64_t first_cluster; /* blocks from here on, the table behind them */
	uint64_t first_block;
	uint64_t nr_blocks;
	uint64_t table_clusters;
	uint64_t nr_entries;
	uint64_t *entries;
};

static int plan_growth(struct qcow2_image *image, struct growth *g, struct err *err)
{
	const struct qcow2_writer *w = image->writer;
	uint64_t per_block = qcow2_refcount_block_entries(&image->h);
	uint64_t cluster_bytes = image->h.cluster_bytes;
	g->first_cluster = w->end_cluster;
	g->first_block = g->first_cluster / per_block;
	g->nr_blocks = 1;
	g->table_clusters = 1;
	for (;;) {
		uint64_t end = g->first_cluster + g->nr_blocks + g->table_clusters;
		uint64_t blocks = (end - 1) / per_block - g->first_block + 1;
		uint64_t entries = (g->first_block + blocks) * 3 / 2 + 1;
		uint64_t clusters = div_round_up(entries * 8, cluster_bytes);
		if (blocks <= g->nr_blocks && clusters <= g->table_clusters)
			break;
		g->nr_blocks = max_u64(blocks, g->nr_blocks);
		g->table_clusters = max_u64(clusters, g->table_clusters);
		if (g->table_clusters * cluster_bytes > QCOW2_REFCOUNT_TABLE_BYTES_MAX)
			return err_set(err, ERR_NO_SPACE,
				"%s is as large as its refcount table of at most 8 MiB can count",
				image->path);
	}
	g->nr_entries = g->table_clusters * cluster_bytes / 8;
	g->entries = calloc(g->nr_entries, sizeof *g->entries);
	if (!g->entries)
		return err_errno(err, ENOMEM, "cannot extend %s", image->path);
	memcpy(g->entries, w->refcounts.entries, w->refcounts.nr_entries * sizeof *g->entries);
	for (uint64_t i = 0; i < g->nr_blocks; i++)
		g->entries[g->first_block + i] = (g->first_cluster + i) << image->h.cluster_bits;
	return 0;
}

static int write_growth(struct qcow2_image *image, const struct growth *g, struct err *err)
{
	uint64_t per_block = qcow2_refcount_block_entries(&image->h);
	uint64_t end = g->first_cluster + g->nr_blocks + g->table_clusters;
	uint8_t *AUTO_FREE block = malloc(image->h.cluster_bytes);
	uint64_t *AUTO_FREE table = malloc(g->nr_entries * sizeof *table);
	if (!block || !table)
		return err_errno(err, ENOMEM, "cannot extend %s", image->path);
	for (uint64_t i = 0; i < g->nr_blocks; i++) {
		uint64_t first = (g->first_block + i) * per_block;
		uint64_t from = max_u64(first, g->first_cluster);
		uint64_t to = min_u64(first + per_block, end);
		memset(block, 0, image->h.cluster_bytes);
		for (uint64_t c = from; c < to; c++)
			qcow2_refcount_set(block, c - first, image->h.refcount_order, 1);
		if (file_pwrite(image->fd, block, image->h.cluster_bytes,
			    (g->first_cluster + i) << image->h.cluster_bits, image->path, err) < 0)
			return -1;
	}
	for (uint64_t i = 0; i < g->nr_entries; i++)
		table[i] = htobe64(g->entries[i]);
	return file_pwrite(image->fd, table, g->nr_entries * sizeof *table,
		(g->first_cluster + g->nr_blocks) << image->h.cluster_bits, image->path, err);
}

/* All blocks that the new table names must be whole in the file before it is. */
static int write_dirty_blocks(struct qcow2_image *image, struct err *err)
{
	struct qcow2_cache *cache = &image->shared->cache;
	struct qcow2_batch batch;
	if (qcow2_cache_take(cache, true, image->page_bytes, &batch, err) < 0)
		return -1;
	int rc = qcow2_cache_write(&batch, image, err);
	qcow2_cache_finish(cache, &batch, rc == 0);
	return rc;
}

static int switch_table(struct qcow2_image *image, const struct growth *g, struct err *err)
{
	uint64_t offset = (g->first_cluster + g->nr_blocks) << image->h.cluster_bits;
	uint8_t fields[12];
	be64_put(fields, offset);
	be32_put(fields + 8, (uint32_t)g->table_clusters);
	if (fdatasync(image->fd) < 0)
		return err_errno(err, errno, "cannot sync %s", image->path);
	if (file_pwrite(image->fd, fields, sizeof fields, QCOW2_AT_REFCOUNT_TABLE, image->path,
		    err) < 0)
		return -1;
	if (fdatasync(image->fd) < 0)
		return err_errno(err, errno, "cannot sync %s", image->path);
	return 0;
}

/* Rare, so it keeps the lock while it writes.  A commit in progress may not see
 * the table change: it is waited for, and the caller asks again. */
static int grow_table(struct qcow2_image *image, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	struct growth g = {0};
	if (w->committing) {
		pthread_cond_wait(&image->shared->cache.changed, qcow2_lock(image));
		return 0;
	}
	if (plan_growth(image, &g, err) < 0)
		return -1;
	uint64_t end = g.first_cluster + g.nr_blocks + g.table_clusters;
	uint64_t old = image->h.refcount_table_offset >> image->h.cluster_bits;
	uint64_t old_clusters = image->h.refcount_table_clusters;
	if (extend(image, end, err) < 0 || write_dirty_blocks(image, err) < 0 ||
		write_growth(image, &g, err) < 0) {
		free(g.entries);
		return -1;
	}
	if (switch_table(image, &g, err) < 0 ||
		qcow2_table_init(&w->refcounts, w->refcounts.entries, g.nr_entries, err) < 0) {
		/* Which table the file names, and whether the blocks are there, is open. */
		w->lost = true;
		free(g.entries);
		return -1;
	}
	free(w->refcounts.entries);
	w->refcounts.entries = g.entries;
	w->end_cluster = end;
	image->h.refcount_table_offset = (g.first_cluster + g.nr_blocks) << image->h.cluster_bits;
	image->h.refcount_table_clusters = (uint32_t)g.table_clusters;
	return qcow2_refcount_drop_clusters(image, old, old_clusters, err);
}

/* --- allocation ----------------------------------------------------------------------- */

/* Takes clusters from the end; value: the refcount that they get. */
static int append(struct qcow2_image *image, uint64_t want, uint64_t value, uint64_t *cluster,
	uint64_t *nr, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	unsigned full_pages = 0;
	for (;;) {
		uint64_t first = w->end_cluster, index, n = 0;
		uint64_t block_index = first / qcow2_refcount_block_entries(&image->h);
		struct qcow2_page *page;
		if (block_index >= w->refcounts.nr_entries) {
			if (grow_table(image, err) < 0)
				return -1;
			continue;
		}
		if ((w->refcounts.entries[block_index] & QCOW2_REFCOUNT_OFFSET_MASK) == 0) {
			if (append_block(image, block_index, err) < 0)
				return -1;
			continue;
		}
		if (get_page(image, first, &page, &index, err) < 0)
			return -1;
		if (!page || w->end_cluster != first)
			continue; /* the lock was released meanwhile */
		/* What is counted beyond the file's end is left alone. */
		while (index < per_page(image) && count_of(image, page, index) != 0) {
			index++;
			first++;
		}
		while (n < want && index + n < per_page(image) &&
			count_of(image, page, index + n) == 0)
			n++;
		if (n == 0) {
			w->end_cluster = first;
			if (++full_pages > FULL_PAGES_MAX)
				return qcow2_image_corrupt(image, err,
					"its refcounts count far more clusters than its file has");
			continue;
		}
		if (extend(image, first + n, err) < 0)
			return -1;
		if (value != 0)
			set_counts(image, page, index, n, value);
		w->end_cluster = first + n;
		*cluster = first;
		*nr = n;
		return 0;
	}
}

/* Looks for free clusters at the hint: 1 found, 0 not now. */
static int find_free(
	struct qcow2_image *image, uint64_t want, uint64_t *cluster, uint64_t *nr, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	for (int tries = 0; tries < 2 && w->hint_cluster < w->end_cluster; tries++) {
		uint64_t first = w->hint_cluster, index;
		struct qcow2_page *page;
		if (get_page(image, first, &page, &index, err) < 0)
			return -1;
		if (w->hint_cluster != first)
			continue;
		uint64_t per_block = qcow2_refcount_block_entries(&image->h);
		uint64_t in_page = page ? per_page(image) - index : per_block - first % per_block;
		uint64_t end = min_u64(first + in_page, w->end_cluster);
		uint64_t pack_first = w->pack_at >> image->h.cluster_bits;
		uint64_t pack_end = w->pack_end >> image->h.cluster_bits;
		uint64_t free_from = first, n = 0;
		for (; page && free_from < end; free_from++) {
			bool packed = free_from >= pack_first && free_from < pack_end;
			if (!packed && count_of(image, page, index + free_from - first) == 0)
				break;
		}
		while (page && n < want && free_from + n < end &&
			!(free_from + n >= pack_first && free_from + n < pack_end) &&
			count_of(image, page, index + free_from - first + n) == 0)
			n++;
		w->hint_cluster = page ? free_from + n : end;
		if (n == 0)
			continue;
		set_counts(image, page, index + free_from - first, n, 1);
		*cluster = free_from;
		*nr = n;
		return 1;
	}
	return 0;
}

int qcow2_refcount_alloc(struct qcow2_image *image, uint64_t want, uint64_t *cluster,
	uint64_t *nr_clusters, bool *fresh, struct err *err)
{
	int rc = find_free(image, want, cluster, nr_clusters, err);
	*fresh = rc == 0;
	return rc != 0 ? (rc < 0 ? -1 : 0) : append(image, want, 1, cluster, nr_clusters, err);
}

/* --- packing --------------------------------------------------------------------------- */

static int pack_room(struct qcow2_image *image, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	uint64_t want = max_u64(PACK_STEP_BYTES >> image->h.cluster_bits, 2);
	uint64_t first, nr;
	if (append(image, want, 0, &first, &nr, err) < 0)
		return -1;
	uint64_t start = first << image->h.cluster_bits;
	if (start != w->pack_end) {
		/* What is left there was never counted: it is free. */
		uint64_t unused = div_round_up(w->pack_at, image->h.cluster_bytes);
		if (unused < w->pack_end >> image->h.cluster_bits)
			w->hint_cluster = min_u64(w->hint_cluster, unused);
		w->pack_at = start;
	}
	w->pack_end = (first + nr) << image->h.cluster_bits;
	return 0;
}

int qcow2_refcount_pack(struct qcow2_image *image, size_t bytes, uint64_t *offset, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	unsigned bits = image->h.cluster_bits;
	for (;;) {
		uint64_t at = w->pack_at, index;
		struct qcow2_page *page;
		if (w->pack_end - at < bytes) {
			if (pack_room(image, err) < 0)
				return -1;
			continue;
		}
		if ((at + bytes) >> (62 - (bits - 8)) != 0)
			return err_set(err, ERR_NO_SPACE,
				"%s is too large for more compressed clusters", image->path);
		uint64_t first = at >> bits, last = (at + bytes - 1) >> bits;
		if (get_page(image, first, &page, &index, err) < 0)
			return -1;
		if (!page)
			return qcow2_image_corrupt(image, err, "a refcount block has vanished");
		if (w->pack_at != at)
			continue;
		/* All in one step under the lock: the counts of one page. */
		if (count_of(image, page, index) == refcount_max(image) ||
			index + (last - first) >= per_page(image)) {
			w->pack_at = round_up(at + 1, image->h.cluster_bytes);
			continue;
		}
		for (uint64_t i = 0; i <= last - first; i++)
			set_counts(image, page, index + i, 1, count_of(image, page, index + i) + 1);
		w->pack_at = at + bytes;
		*offset = at;
		return 0;
	}
}

/* --- giving up ---------------------------------------------------------------------------- */

int qcow2_refcount_drop_clusters(
	struct qcow2_image *image, uint64_t cluster, uint64_t nr_clusters, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	if (w->nr_drops > 0) {
		struct qcow2_drop *last = &w->drops[w->nr_drops - 1];
		if (last->cluster + last->nr_clusters == cluster) {
			last->nr_clusters += nr_clusters;
			return 0;
		}
	}
	if (w->nr_drops == w->room_drops) {
		size_t room = w->room_drops ? 2 * w->room_drops : 256;
		struct qcow2_drop *bigger = realloc(w->drops, room * sizeof *bigger);
		if (!bigger)
			return err_errno(err, ENOMEM, "cannot free clusters of %s", image->path);
		w->drops = bigger;
		w->room_drops = room;
	}
	w->drops[w->nr_drops++] = (struct qcow2_drop){cluster, nr_clusters};
	return 0;
}

int qcow2_refcount_drop(struct qcow2_image *image, struct qcow2_entry old, struct err *err)
{
	if (old.l2 & QCOW2_COMPRESSED) {
		uint64_t offset, length;
		qcow2_codec_forget(image, old.l2);
		qcow2_compressed_range(&image->h, old.l2, &offset, &length);
		uint64_t first = offset >> image->h.cluster_bits;
		uint64_t last = (offset + length - 1) >> image->h.cluster_bits;
		return qcow2_refcount_drop_clusters(image, first, last - first + 1, err);
	}
	uint64_t host = old.l2 & QCOW2_OFFSET_MASK;
	if (host == 0)
		return 0;
	return qcow2_refcount_drop_clusters(image, host >> image->h.cluster_bits, 1, err);
}

/* Lowers counts of one page; returns how many clusters it did, 0 on failure. */
static uint64_t lower(struct qcow2_image *image, uint64_t cluster, uint64_t nr, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	struct qcow2_page *page;
	uint64_t index;
	if (get_page(image, cluster, &page, &index, err) < 0)
		return 0;
	if (!page) {
		qcow2_image_corrupt(
			image, err, "cluster %" PRIu64 " was in use and is not counted", cluster);
		return 0;
	}
	uint64_t n = min_u64(nr, per_page(image) - index);
	for (uint64_t i = 0; i < n; i++) {
		uint64_t count = count_of(image, page, index + i);
		if (count == 0) {
			log_warning("%s: cluster %" PRIu64 " was in use and its refcount is 0; "
				    "the image should be checked",
				image->path, cluster + i);
			continue;
		}
		set_counts(image, page, index + i, 1, count - 1);
		if (count == 1)
			w->hint_cluster = min_u64(w->hint_cluster, cluster + i);
	}
	return n;
}

int qcow2_refcount_apply(
	struct qcow2_image *image, const struct qcow2_drop *drops, size_t nr, struct err *err)
{
	for (size_t i = 0; i < nr; i++) {
		uint64_t cluster = drops[i].cluster, left = drops[i].nr_clusters;
		while (left > 0) {
			uint64_t n = lower(image, cluster, left, err);
			if (n == 0)
				return -1;
			cluster += n;
			left -= n;
		}
	}
	return 0;
}

void qcow2_refcount_undo(struct qcow2_image *image, uint64_t cluster, uint64_t nr_clusters)
{
	struct qcow2_drop drop = {cluster, nr_clusters};
	struct err err = ERR_INIT;
	/* A failure leaves clusters counted that are not used: only space. */
	if (qcow2_refcount_apply(image, &drop, 1, &err) < 0)
		log_warning("%s", err.text);
}

int qcow2_refcount_is(
	struct qcow2_image *image, uint64_t cluster, uint64_t nr, bool *is, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	struct qcow2_page *page;
	uint64_t index;
	*is = false;
	if (get_page(image, cluster, &page, &index, err) < 0)
		return -1;
	if (page && (cluster < w->pack_at >> image->h.cluster_bits ||
			    cluster >= w->pack_end >> image->h.cluster_bits))
		*is = count_of(image, page, index) == nr;
	return 0;
}

int qcow2_refcount_end(struct qcow2_image *image, uint64_t *end, struct err *err)
{
	*end = image->writer->end_cluster;
	while (*end > 0) {
		struct qcow2_page *page;
		uint64_t index;
		if (get_page(image, *end - 1, &page, &index, err) < 0)
			return -1;
		if (page && count_of(image, page, index) != 0)
			break;
		(*end)--;
	}
	return 0;
}
