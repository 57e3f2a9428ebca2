/*
 * Commit: how changes of the tables reach the file, and what a crash leaves.
 *
 * Data is written to its clusters at once; tables change in memory and go out
 * together.  One commit is
 *
 *   1  refcounts that were raised (and blocks for them)
 *      sync: data, refcounts, and the zeros or copies that new L2 tables start
 *      with are in the file
 *   2  the table of refcount blocks, when it changed; then another sync
 *   3  L2 tables and L1 entries, as they were when step 1 began
 *      sync: what was flushed is in the file for good
 *   4  references that the file does not hold any more are given up: refcounts
 *      are lowered in memory, go out with the next commit's step 1, and only now
 *      their clusters may be used again
 *
 * So at every moment each cluster that a table in the file refers to is counted,
 * and its content is there.  A crash (of this process or of the machine) leaves:
 * the data of the last completed flush, or anything newer that was written; at
 * worst clusters that are counted and not used (leaks), at most what was
 * allocated or freed since two flushes ago; and a file longer than it need be.
 * Never a reference to a cluster that is not counted, and never one to a cluster
 * with another's data.  This holds for versions 2 and 3.
 *
 * A version 3 image says "dirty" from before the first change to its clean close,
 * also after a power cut; a dirty image is checked and its leaks are mended before
 * it is written to again.  Persistent bitmaps that follow writes are marked "in
 * use" (not to be trusted) before the first change.
 *
 * Any number of threads may want a commit: one does it, the others wait for one
 * that began after they came.  When nothing changed a commit is one sync.
 */
#include "qcow2_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <unistd.h>

#define PIECE_ENTRIES 64u
#define DROPS_MANY 65536u

/* Copies of the changed pieces (64 entries) of a table in memory. */
struct pieces {
	struct piece {
		uint64_t index;
		uint64_t bytes[PIECE_ENTRIES];
	} * list;
	size_t nr;
};

struct commit {
	struct qcow2_batch refcounts, maps;
	struct pieces blocks, l1;
	struct qcow2_drop *drops;
	size_t nr_drops, room_drops;
	bool sync_lost;
};

static int sync_file(struct qcow2_image *image, struct commit *c, struct err *err)
{
	if (fdatasync(image->fd) == 0)
		return 0;
	/* The system may have thrown away what it could not write. */
	c->sync_lost = true;
	return err_errno(err, errno, "cannot sync %s", image->path);
}

/* --- taking what changed ----------------------------------------------------------- */

static int take_pieces(struct qcow2_table *table, struct pieces *pieces, struct err *err)
{
	uint64_t nr_pieces = div_round_up(table->nr_entries, PIECE_ENTRIES), nr = 0;
	*pieces = (struct pieces){0};
	if (!table->any_dirty)
		return 0;
	for (uint64_t w = 0; w < BITMAP_WORDS(nr_pieces); w++)
		nr += (uint64_t)__builtin_popcountll(table->dirty[w]);
	assert(nr > 0);
	pieces->list = malloc(nr * sizeof *pieces->list);
	if (!pieces->list)
		return err_errno(err, ENOMEM, "cannot write tables");
	for (uint64_t i = 0; i < nr_pieces; i++) {
		if (!bitmap_test(table->dirty, i))
			continue;
		struct piece *p = &pieces->list[pieces->nr++];
		uint64_t first = i * PIECE_ENTRIES;
		p->index = i;
		for (uint64_t k = 0; k < PIECE_ENTRIES && first + k < table->nr_entries; k++)
			p->bytes[k] = htobe64(table->entries[first + k]);
		bitmap_clear(table->dirty, i);
	}
	table->any_dirty = false;
	return 0;
}

static void finish_pieces(struct qcow2_table *table, struct pieces *pieces, bool written)
{
	for (size_t i = 0; !written && i < pieces->nr; i++) {
		bitmap_set(table->dirty, pieces->list[i].index);
		table->any_dirty = true;
	}
	free(pieces->list);
	*pieces = (struct pieces){0};
}

static int write_pieces(struct qcow2_image *image, const struct pieces *pieces, uint64_t offset,
	uint64_t nr_entries, struct err *err)
{
	for (size_t i = 0; i < pieces->nr; i++) {
		uint64_t first = pieces->list[i].index * PIECE_ENTRIES;
		uint64_t n = min_u64(PIECE_ENTRIES, nr_entries - first);
		if (file_pwrite(image->fd, pieces->list[i].bytes, n * 8, offset + first * 8,
			    image->path, err) < 0)
			return -1;
	}
	return 0;
}

static int take(struct qcow2_image *image, struct commit *c, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	struct qcow2_cache *cache = &image->shared->cache;
	if (qcow2_cache_take(cache, true, image->page_bytes, &c->refcounts, err) < 0 ||
		qcow2_cache_take(cache, false, image->page_bytes, &c->maps, err) < 0 ||
		take_pieces(&w->refcounts, &c->blocks, err) < 0 ||
		take_pieces(&w->l1, &c->l1, err) < 0)
		return -1;
	c->drops = w->drops;
	c->nr_drops = w->nr_drops;
	c->room_drops = w->room_drops;
	w->drops = NULL;
	w->nr_drops = w->room_drops = 0;
	return 0;
}

/* --- the order ---------------------------------------------------------------------- */

/* Without the lock.  durable: also what step 3 writes is synced. */
static int write_in_order(struct qcow2_image *image, struct commit *c, uint64_t blocks_offset,
	uint64_t nr_blocks, bool durable, struct err *err)
{
	bool maps = c->maps.nr_pages > 0 || c->l1.nr > 0;
	if (qcow2_cache_write(&c->refcounts, image, err) < 0)
		return -1;
	if (c->blocks.nr > 0) {
		if (sync_file(image, c, err) < 0 ||
			write_pieces(image, &c->blocks, blocks_offset, nr_blocks, err) < 0)
			return -1;
	}
	if ((maps || durable) && sync_file(image, c, err) < 0)
		return -1;
	if (!maps)
		return 0;
	if (qcow2_cache_write(&c->maps, image, err) < 0 ||
		write_pieces(image, &c->l1, image->h.l1_offset, image->h.nr_l1_entries, err) < 0)
		return -1;
	return durable || c->nr_drops > 0 ? sync_file(image, c, err) : 0;
}

/* Gives the space of clusters that are about to be free back to the file system.
 * Nothing refers to them and they cannot be allocated before apply. */
static void punch(struct qcow2_image *image, uint64_t start, uint64_t end)
{
	if (start == end)
		return;
	/* A failure costs only space. */
	int rc = fallocate(image->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		(off_t)(start << image->h.cluster_bits),
		(off_t)((end - start) << image->h.cluster_bits));
	(void)rc;
}

/* Clusters start..end, each of which nr references are given up of: those are punched
 * that have no others. */
static int punch_unused(
	struct qcow2_image *image, uint64_t start, uint64_t end, uint64_t nr, struct err *err)
{
	for (uint64_t at = start; at < end; at++) {
		bool unused;
		pthread_mutex_lock(qcow2_lock(image));
		int rc = qcow2_refcount_is(image, at, nr, &unused, err);
		pthread_mutex_unlock(qcow2_lock(image));
		if (rc < 0)
			return -1;
		if (unused)
			continue;
		punch(image, start, at);
		start = at + 1;
	}
	punch(image, start, end);
	return 0;
}

static int compare_clusters(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return x < y ? -1 : x > y;
}

/* Several compressed clusters may lie in one host cluster, and all be given up at once:
 * what begins and what ends, both in order, tell how many drops cover a cluster. */
static int punch_drops(struct qcow2_image *image, const struct commit *c, struct err *err)
{
	size_t n = c->nr_drops, begun = 0, ended = 0;
	uint64_t *AUTO_FREE bounds = malloc(2 * n * sizeof *bounds);
	if (!bounds)
		return err_errno(err, ENOMEM, "cannot free clusters of %s", image->path);
	uint64_t *begins = bounds, *ends = bounds + n;
	for (size_t i = 0; i < n; i++) {
		begins[i] = c->drops[i].cluster;
		ends[i] = c->drops[i].cluster + c->drops[i].nr_clusters;
	}
	qsort(begins, n, sizeof *begins, compare_clusters);
	qsort(ends, n, sizeof *ends, compare_clusters);
	uint64_t at = begins[0];
	while (ended < n) {
		uint64_t next = begun < n ? min_u64(begins[begun], ends[ended]) : ends[ended];
		if (begun > ended && punch_unused(image, at, next, begun - ended, err) < 0)
			return -1;
		at = next;
		while (begun < n && begins[begun] == at)
			begun++;
		while (ended < n && ends[ended] == at)
			ended++;
	}
	return 0;
}

/* What was taken and not used goes back, in front of what came since. */
static void return_drops(struct qcow2_image *image, struct commit *c)
{
	struct qcow2_writer *w = image->writer;
	struct qcow2_drop *newer = w->drops;
	size_t nr_newer = w->nr_drops;
	w->drops = c->drops;
	w->nr_drops = c->nr_drops;
	w->room_drops = c->room_drops;
	for (size_t i = 0; i < nr_newer; i++)
		qcow2_refcount_drop_clusters(image, newer[i].cluster, newer[i].nr_clusters, NULL);
	free(newer);
	c->drops = NULL;
}

/* Holding the lock, which is released meanwhile; w->committing is the caller's. */
static int run_commit(struct qcow2_image *image, bool durable, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	struct qcow2_cache *cache = &image->shared->cache;
	struct commit c = {0};
	if (w->lost)
		return err_set(err, ERR_IO, "%s failed to sync before: what it holds is not known",
			image->path);
	int rc = take(image, &c, err);
	uint64_t blocks_offset = image->h.refcount_table_offset;
	uint64_t nr_blocks = w->refcounts.nr_entries;
	pthread_mutex_unlock(qcow2_lock(image));
	if (rc == 0)
		rc = write_in_order(image, &c, blocks_offset, nr_blocks, durable, err);
	bool dropping = rc == 0 && c.nr_drops > 0;
	if (dropping)
		rc = punch_drops(image, &c, err);
	pthread_mutex_lock(qcow2_lock(image));
	qcow2_cache_finish(cache, &c.refcounts, rc == 0);
	qcow2_cache_finish(cache, &c.maps, rc == 0);
	finish_pieces(&w->refcounts, &c.blocks, rc == 0);
	finish_pieces(&w->l1, &c.l1, rc == 0);
	if (c.sync_lost)
		w->lost = true;
	if (rc < 0 && c.nr_drops > 0)
		return_drops(image, &c);
	else if (dropping)
		rc = qcow2_refcount_apply(image, c.drops, c.nr_drops, err);
	free(c.drops);
	return rc;
}

int qcow2_commit(struct qcow2_image *image, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	struct qcow2_cache *cache = &image->shared->cache;
	WITH_LOCK(&cache->mutex);
	uint64_t mine = w->commits_begun + 1;
	while (w->commits_done < mine) {
		if (w->committing) {
			pthread_cond_wait(&cache->changed, &cache->mutex);
			continue;
		}
		w->committing = true;
		uint64_t number = ++w->commits_begun;
		struct err result = ERR_INIT;
		run_commit(image, true, &result);
		w->commit_err = result;
		w->commits_done = number;
		w->committing = false;
		pthread_cond_broadcast(&cache->changed);
	}
	return w->commit_err.code == ERR_NONE ? 0 : err_copy(err, &w->commit_err);
}

/* --- before and after -------------------------------------------------------------------- */

static int mark_bitmaps(struct qcow2_image *image, struct err *err)
{
	for (uint32_t i = 0; i < image->h.nr_bitmaps; i++) {
		struct qcow2_bitmap *b = &image->h.bitmaps[i];
		uint8_t flags[4];
		if (!(b->flags & QCOW2_BITMAP_AUTO) || (b->flags & QCOW2_BITMAP_IN_USE))
			continue;
		log_warning("%s: its bitmap \"%.*s\" follows writes, which is not done here: it is "
			    "marked as inconsistent",
			image->path, (int)b->name_bytes, b->name);
		be32_put(flags, b->flags | QCOW2_BITMAP_IN_USE);
		if (file_pwrite(image->fd, flags, sizeof flags, b->entry_offset + 12, image->path,
			    err) < 0)
			return -1;
		b->flags |= QCOW2_BITMAP_IN_USE;
	}
	return 0;
}

static int write_features(struct qcow2_image *image, struct err *err)
{
	uint8_t bytes[24];
	be64_put(bytes, image->h.incompatible);
	be64_put(bytes + 8, image->h.compatible);
	be64_put(bytes + 16, image->h.autoclear);
	return file_pwrite(image->fd, bytes, sizeof bytes, QCOW2_AT_INCOMPATIBLE, image->path, err);
}

static int mark(struct qcow2_image *image, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	WITH_LOCK(&w->marking);
	if (atomic_load(&w->marked))
		return 0;
	if (mark_bitmaps(image, err) < 0)
		return -1;
	/* QEMU leaves the last cluster short; data is only written within the file. */
	if (ftruncate(image->fd, (off_t)image->host_end) < 0)
		return err_errno(err, errno, "cannot extend %s", image->path);
	if (image->h.version >= 3) {
		image->h.incompatible |= QCOW2_INCOMPATIBLE_DIRTY;
		image->h.autoclear &= QCOW2_AUTOCLEAR_BITMAPS;
		if (write_features(image, err) < 0)
			return -1;
	}
	/* Refcounts that a power cut lets through must not come without it: see the top. */
	if ((image->h.version >= 3 || image->h.nr_bitmaps > 0) && fdatasync(image->fd) < 0)
		return err_errno(err, errno, "cannot sync %s", image->path);
	atomic_store(&w->marked, true);
	return 0;
}

int qcow2_commit_make_room(struct qcow2_image *image, struct err *err)
{
	struct qcow2_writer *w = image->writer;
	struct qcow2_cache *cache = &image->shared->cache;
	if (!atomic_load_explicit(&w->marked, memory_order_acquire) && mark(image, err) < 0)
		return -1;
	WITH_LOCK(&cache->mutex);
	while (w->committing && cache->dirty_bytes > cache->most_bytes / 2)
		pthread_cond_wait(&cache->changed, &cache->mutex);
	if (w->committing ||
		(cache->dirty_bytes <= cache->most_bytes / 4 && w->nr_drops < DROPS_MANY))
		return 0;
	w->committing = true;
	int rc = run_commit(image, false, err);
	w->committing = false;
	pthread_cond_broadcast(&cache->changed);
	return rc;
}

static bool all_clean(struct qcow2_image *image)
{
	const struct qcow2_writer *w = image->writer;
	WITH_LOCK(qcow2_lock(image));
	return image->shared->cache.dirty_bytes == 0 && !w->l1.any_dirty &&
	       !w->refcounts.any_dirty && w->nr_drops == 0;
}

int qcow2_commit_close(struct qcow2_image *image, struct err *err)
{
	uint64_t end;
	if (!atomic_load(&image->writer->marked))
		return 0;
	do { /* drops of the first round go out in the second */
		if (qcow2_commit(image, err) < 0)
			return -1;
	} while (!all_clean(image));
	pthread_mutex_lock(qcow2_lock(image));
	int rc = qcow2_refcount_end(image, &end, err);
	pthread_mutex_unlock(qcow2_lock(image));
	if (rc < 0)
		return -1;
	uint64_t bytes = end << image->h.cluster_bits;
	if (ftruncate(image->fd, (off_t)bytes) < 0)
		return err_errno(
			err, errno, "cannot cut %s to %" PRIu64 " bytes", image->path, bytes);
	image->h.incompatible &= ~QCOW2_INCOMPATIBLE_DIRTY;
	if (image->h.version >= 3 && write_features(image, err) < 0)
		return -1;
	if (fdatasync(image->fd) < 0)
		return err_errno(err, errno, "cannot sync %s", image->path);
	return 0;
}
