/*
 * A chain laid flat: where each guest cluster is found in a row of images, looked up
 * once and kept, so that a read costs the same however long the row is.
 *
 *   slice: as many clusters as a page of an L2 table maps
 *            owners    0     3     3    NONE   499  ...   which image holds it
 *            entries   its L2 entry there
 *
 * Made for a row of read-only images with clusters of one size: then their pages lie
 * over each other.  A slice is filled from the top down, until all its clusters have an
 * owner; pages are read past the metadata cache, which they would only flood.  Slices are
 * kept in a list by use, within a bound.  Where no image has an L2 table, one bit says so.
 *
 * What fails here is no error: the walk from image to image, which the caller then does,
 * finds it when (and only if) the damaged place is asked for.
 *
 * Slices stay true while an image of the row is merged into: they name a cluster of it
 * only where no image above holds one, and there nothing changes.
 */
#include "qcow2_internal.h"

#include <errno.h>
#include <stdlib.h>

#define NONE UINT16_MAX
#define GROUP_ENTRIES 512u /* of L1 tables, looked at in one go */
#define NR_BUCKETS 8192u

struct slice {
	uint64_t index;
	struct slice *hash_next;
	struct slice *previous, *next; /* by use; in no list while loading */
	bool loading;
	uint16_t *owners;
	uint64_t entries[];
};

struct qcow2_flat {
	struct qcow2_image **images; /* of the row, from the top down */
	uint64_t *visible; /* for each: from here on its bytes are not seen */
	unsigned nr_images;
	uint64_t nr_l1_entries;
	unsigned slice_bits; /* log2 of its clusters */
	uint64_t *has_table; /* by L1 index: an image has a table there, or may */
	uint64_t *known; /* by group: has_table tells */
	struct slice *buckets[NR_BUCKETS];
	struct slice *first, *last; /* most recently used first */
	size_t used_bytes, most_bytes;
};

/* --- making one --------------------------------------------------------------------- */

struct qcow2_flat *qcow2_flat_new(
	struct qcow2_image *first, unsigned nr_images, size_t most_bytes, struct err *err)
{
	struct qcow2_flat *f = calloc(1, sizeof *f);
	if (!f)
		goto no_memory;
	f->nr_images = nr_images;
	f->most_bytes = most_bytes;
	f->nr_l1_entries = first->h.nr_l1_entries;
	f->slice_bits = (unsigned)__builtin_ctz(first->page_bytes / 8);
	uint64_t nr_groups = div_round_up(f->nr_l1_entries, GROUP_ENTRIES);
	f->images = calloc(nr_images, sizeof(struct qcow2_image *));
	f->visible = calloc(nr_images, sizeof *f->visible);
	f->has_table = calloc(BITMAP_WORDS(nr_groups * GROUP_ENTRIES) + 1, sizeof *f->has_table);
	f->known = calloc(BITMAP_WORDS(nr_groups) + 1, sizeof *f->known);
	if (!f->images || !f->visible || !f->has_table || !f->known)
		goto no_memory;
	uint64_t visible = UINT64_MAX;
	for (unsigned i = 0; i < nr_images; i++, first = first->backing) {
		f->images[i] = first;
		f->visible[i] = visible;
		visible = min_u64(visible, first->backing_bytes);
	}
	return f;
no_memory:
	err_errno(err, ENOMEM, "cannot open %s", first->path);
	qcow2_flat_free(f);
	return NULL;
}

void qcow2_flat_free(struct qcow2_flat *f)
{
	if (!f)
		return;
	for (struct slice *s = f->first, *next; s; s = next) {
		next = s->next;
		free(s);
	}
	free(f->images);
	free(f->visible);
	free(f->has_table);
	free(f->known);
	free(f);
}

struct qcow2_image *qcow2_flat_last(const struct qcow2_flat *f)
{
	return f->images[f->nr_images - 1];
}

uint64_t qcow2_flat_reach(const struct qcow2_flat *f)
{
	return f->visible[f->nr_images - 1];
}

/* --- slices by use -------------------------------------------------------------------- */

static size_t slice_bytes(const struct qcow2_flat *f)
{
	return sizeof(struct slice) +
	       ((size_t)1 << f->slice_bits) * (sizeof(uint64_t) + sizeof(uint16_t));
}

static struct slice **bucket_of(struct qcow2_flat *f, uint64_t index)
{
	return &f->buckets[(index * 0x9e3779b97f4a7c15ull >> 32) & (NR_BUCKETS - 1)];
}

static struct slice *find(struct qcow2_flat *f, uint64_t index)
{
	struct slice *s = *bucket_of(f, index);
	while (s && s->index != index)
		s = s->hash_next;
	return s;
}

static void list_remove(struct qcow2_flat *f, struct slice *s)
{
	if (s->previous)
		s->previous->next = s->next;
	else
		f->first = s->next;
	if (s->next)
		s->next->previous = s->previous;
	else
		f->last = s->previous;
}

static void list_push(struct qcow2_flat *f, struct slice *s)
{
	s->previous = NULL;
	s->next = f->first;
	if (f->first)
		f->first->previous = s;
	else
		f->last = s;
	f->first = s;
}

static void unhash_and_free(struct qcow2_flat *f, struct slice *s)
{
	struct slice **at = bucket_of(f, s->index);
	while (*at != s)
		at = &(*at)->hash_next;
	*at = s->hash_next;
	f->used_bytes -= slice_bytes(f);
	free(s);
}

static void drop_oldest(struct qcow2_flat *f)
{
	struct slice *s = f->last;
	f->last = s->previous;
	if (f->last)
		f->last->next = NULL;
	else
		f->first = NULL;
	unhash_and_free(f, s);
}

/* A new slice in the hash table, marked as loading; NULL: no memory. */
static struct slice *add(struct qcow2_flat *f, uint64_t index)
{
	size_t bytes = slice_bytes(f);
	while (f->used_bytes + bytes > f->most_bytes && f->last)
		drop_oldest(f);
	struct slice *s = malloc(bytes);
	if (!s)
		return NULL;
	*s = (struct slice){.index = index, .loading = true, .hash_next = *bucket_of(f, index)};
	s->owners = (uint16_t *)(s->entries + ((size_t)1 << f->slice_bits));
	*bucket_of(f, index) = s;
	f->used_bytes += bytes;
	return s;
}

/* --- filling a slice ------------------------------------------------------------------ */

/* Where the slice's page is in each image; 0: it has none.  Holding the lock, which may be
 * released meanwhile. */
static int find_pages(struct qcow2_flat *f, uint64_t cluster, uint64_t *pages)
{
	uint64_t start = cluster << f->images[0]->h.cluster_bits;
	for (unsigned k = 0; k < f->nr_images; k++) {
		pages[k] = 0;
		if (start < f->visible[k] &&
			qcow2_map_find_page(f->images[k], cluster, &pages[k], NULL) < 0)
			return -1;
	}
	return 0;
}

/* Gives the clusters that have no owner yet, and that a page tells of, to image k;
 * returns how many. */
static size_t give(struct qcow2_flat *f, struct slice *s, unsigned k, const uint8_t *page)
{
	size_t n = (size_t)1 << f->slice_bits, given = 0;
	for (size_t i = 0; i < n; i++) {
		uint64_t entry = be64_get(page + 8 * i);
		if (s->owners[i] != NONE ||
			(entry & (QCOW2_COMPRESSED | QCOW2_ZERO | QCOW2_OFFSET_MASK)) == 0)
			continue;
		s->owners[i] = (uint16_t)k;
		s->entries[i] = entry;
		given++;
	}
	return given;
}

/* Without the lock. */
static int load_pages(struct qcow2_flat *f, struct slice *s, const uint64_t *pages)
{
	uint8_t page[QCOW2_PAGE_BYTES];
	size_t left = (size_t)1 << f->slice_bits;
	memset(s->owners, 0xff, left * sizeof *s->owners);
	for (unsigned k = 0; k < f->nr_images && left > 0; k++) {
		const struct qcow2_image *image = f->images[k];
		if (pages[k] == 0)
			continue;
		if (qcow2_header_pread(
			    image->fd, page, image->page_bytes, pages[k], image->path, NULL) < 0)
			return -1;
		left -= give(f, s, k, page);
	}
	return 0;
}

/* The slice, loaded; NULL: it could not be.  Holding the lock, which may be released. */
static struct slice *get(struct qcow2_flat *f, uint64_t index)
{
	struct qcow2_cache *cache = &f->images[0]->shared->cache;
	struct slice *s = find(f, index);
	while (s && s->loading) {
		pthread_cond_wait(&cache->changed, &cache->mutex);
		s = find(f, index);
	}
	if (s) {
		if (f->first != s) {
			list_remove(f, s);
			list_push(f, s);
		}
		return s;
	}
	uint64_t *AUTO_FREE pages = malloc(f->nr_images * sizeof *pages);
	s = pages ? add(f, index) : NULL;
	if (!s)
		return NULL;
	int rc = find_pages(f, index << f->slice_bits, pages);
	pthread_mutex_unlock(&cache->mutex);
	if (rc == 0)
		rc = load_pages(f, s, pages);
	pthread_mutex_lock(&cache->mutex);
	s->loading = false;
	pthread_cond_broadcast(&cache->changed);
	if (rc < 0) {
		unhash_and_free(f, s);
		return NULL;
	}
	list_push(f, s);
	return s;
}

/* --- L1 tables --------------------------------------------------------------------------- */

/* Marks the entries of a group that an image has. */
static int mark_tables(const struct qcow2_image *image, uint64_t first, uint64_t *marks)
{
	uint64_t entries[GROUP_ENTRIES];
	if (first >= image->h.nr_l1_entries)
		return 0;
	size_t n = (size_t)min_u64(GROUP_ENTRIES, image->h.nr_l1_entries - first);
	if (!image->l1 && qcow2_header_pread(image->fd, entries, n * 8,
				  image->h.l1_offset + first * 8, image->path, NULL) < 0)
		return -1;
	for (size_t i = 0; i < n; i++) {
		uint64_t entry = image->l1 ? image->l1[first + i] : be64toh(entries[i]);
		if ((entry & QCOW2_OFFSET_MASK) != 0)
			bitmap_set(marks, i);
	}
	return 0;
}

/* Whether an image has a table at an L1 index, or may have one.  Holding the lock, which
 * may be released. */
static bool has_table(struct qcow2_flat *f, uint64_t l1_index)
{
	uint64_t group = l1_index / GROUP_ENTRIES, first = group * GROUP_ENTRIES;
	if (!bitmap_test(f->known, group)) {
		uint64_t marks[BITMAP_WORDS(GROUP_ENTRIES)] = {0};
		int rc = 0;
		pthread_mutex_unlock(qcow2_lock(f->images[0]));
		for (unsigned k = 0; k < f->nr_images && rc == 0; k++)
			rc = mark_tables(f->images[k], first, marks);
		pthread_mutex_lock(qcow2_lock(f->images[0]));
		for (unsigned i = 0; i < GROUP_ENTRIES; i++)
			if (rc < 0 || bitmap_test(marks, i))
				bitmap_set(f->has_table, first + i);
		bitmap_set(f->known, group);
	}
	return bitmap_test(f->has_table, l1_index);
}

/* --- looking up ---------------------------------------------------------------------------- */

/* From offset to the end of its cluster, or less. */
static int run_in_cluster(struct qcow2_flat *f, const struct slice *s, uint64_t offset,
	struct qcow2_run *run, struct err *err)
{
	struct qcow2_image *image = f->images[0];
	uint64_t cluster = offset >> image->h.cluster_bits;
	size_t i = cluster & (((uint64_t)1 << f->slice_bits) - 1);
	uint32_t at = (uint32_t)(offset & (image->h.cluster_bytes - 1));
	unsigned owner = s->owners[i];
	*run = (struct qcow2_run){
		.kind = QCOW2_KIND_HOLE, .image = image, .length = image->h.cluster_bytes - at};
	uint64_t visible = owner == NONE ? qcow2_flat_reach(f) : f->visible[owner];
	if (offset >= visible)
		return 0;
	if (owner != NONE) {
		run->image = f->images[owner];
		if (qcow2_map_entry(run->image, cluster, (struct qcow2_entry){.l2 = s->entries[i]},
			    at, run, err) < 0)
			return -1;
	}
	run->length = min_u64(run->length, visible - offset);
	return 0;
}

static int run_in_slice(struct qcow2_flat *f, const struct slice *s, uint64_t offset,
	uint64_t length, struct qcow2_run *run, struct err *err)
{
	unsigned bits = f->images[0]->h.cluster_bits + f->slice_bits;
	uint64_t end = min_u64(offset + length, (s->index + 1) << bits);
	if (run_in_cluster(f, s, offset, run, err) < 0)
		return -1;
	while (offset + run->length < end) {
		struct qcow2_run next;
		if ((offset + run->length) % f->images[0]->h.cluster_bytes != 0)
			break;
		/* What is wrong further on is told when its turn comes. */
		if (run_in_cluster(f, s, offset + run->length, &next, NULL) < 0 ||
			!qcow2_map_continues(run, &next))
			break;
		run->length += next.length;
	}
	run->length = min_u64(run->length, length);
	return 0;
}

int qcow2_flat_run(struct qcow2_flat *f, uint64_t offset, uint64_t length, struct qcow2_run *run,
	struct err *err)
{
	struct qcow2_image *top = f->images[0];
	unsigned reach_bits = top->l2_bits + top->h.cluster_bits;
	uint64_t index = offset >> reach_bits, last = (offset + length - 1) >> reach_bits;
	if (has_table(f, index)) {
		const struct slice *s = get(f, offset >> (top->h.cluster_bits + f->slice_bits));
		return s ? run_in_slice(f, s, offset, length, run, err) : 1;
	}
	while (index < last && !has_table(f, index + 1))
		index++;
	*run = (struct qcow2_run){.kind = QCOW2_KIND_HOLE, .image = top};
	run->length = index == last ? length : ((index + 1) << reach_bits) - offset;
	if (offset < qcow2_flat_reach(f))
		run->length = min_u64(run->length, qcow2_flat_reach(f) - offset);
	return 0;
}
