/*
 * The assembly buffer: parts of clusters that are to be compressed.
 *
 * A slot holds one guest cluster of which some sectors were written.  Its content
 * (data, sectors) is guarded by the range lock of its cluster: exclusive to
 * change, shared to read.  Which slot holds what, `users` and the number of
 * filled sectors (read by all) are guarded by the mutex here.
 *
 *   free -> reserved (users > 0) -> filled -> complete: compressed -> free
 *                                          -> evicted, flushed: stored plain -> free
 *
 * A slot is freed by its last user when it is empty.  Writing one out takes the
 * range lock of its cluster, so it is only done by threads that hold no range:
 * two that wait for each other's cluster cannot be.
 */
#include "qcow2_internal.h"

#include <errno.h>
#include <stdlib.h>

#define SECTOR_BYTES 512u
#define SLOTS_MAX 4096u
#define NO_CLUSTER UINT64_MAX

struct slot {
	uint64_t cluster; /* NO_CLUSTER: free */
	struct slot *hash_next;
	unsigned users;
	unsigned nr_filled;
	uint64_t used_at;
	uint8_t *data; /* a cluster; allocated when first used */
	uint64_t *sectors; /* bit: filled */
};

struct qcow2_assembly {
	pthread_mutex_t mutex;
	struct slot *slots;
	size_t nr_slots;
	struct slot **buckets; /* nr_buckets, a power of two */
	size_t nr_buckets;
	atomic_size_t nr_used; /* slots that are not free: most disks have none */
	uint64_t clock;
};

struct qcow2_assembly *qcow2_assembly_new(
	struct qcow2_image *image, size_t most_bytes, struct err *err)
{
	struct qcow2_assembly *a = calloc(1, sizeof *a);
	if (!a)
		goto no_memory;
	a->nr_slots = (size_t)max_u64(most_bytes / image->h.cluster_bytes, 2);
	a->nr_slots = min_size(a->nr_slots, SLOTS_MAX);
	a->nr_buckets = 16;
	while (a->nr_buckets < a->nr_slots)
		a->nr_buckets *= 2;
	a->slots = calloc(a->nr_slots, sizeof *a->slots);
	a->buckets = calloc(a->nr_buckets, sizeof(struct slot *));
	if (!a->slots || !a->buckets)
		goto no_memory;
	for (size_t i = 0; i < a->nr_slots; i++)
		a->slots[i].cluster = NO_CLUSTER;
	pthread_mutex_init(&a->mutex, NULL);
	return a;
no_memory:
	err_errno(err, ENOMEM, "cannot open %s", image->path);
	if (a) {
		free(a->slots);
		free(a->buckets);
	}
	free(a);
	return NULL;
}

void qcow2_assembly_free(struct qcow2_assembly *a)
{
	if (!a)
		return;
	for (size_t i = 0; i < a->nr_slots; i++) {
		free(a->slots[i].data);
		free(a->slots[i].sectors);
	}
	pthread_mutex_destroy(&a->mutex);
	free(a->slots);
	free(a->buckets);
	free(a);
}

/* --- slots (holding the mutex) ------------------------------------------------------ */

static struct slot **bucket_of(struct qcow2_assembly *a, uint64_t cluster)
{
	return &a->buckets[(cluster * 0x9e3779b97f4a7c15ull >> 32) & (a->nr_buckets - 1)];
}

static struct slot *find(struct qcow2_assembly *a, uint64_t cluster)
{
	struct slot *s = *bucket_of(a, cluster);
	while (s && s->cluster != cluster)
		s = s->hash_next;
	return s;
}

static void put(struct qcow2_assembly *a, struct slot *slot)
{
	if (--slot->users > 0 || slot->nr_filled > 0)
		return;
	struct slot **at = bucket_of(a, slot->cluster);
	while (*at != slot)
		at = &(*at)->hash_next;
	*at = slot->hash_next;
	slot->cluster = NO_CLUSTER;
	atomic_fetch_sub(&a->nr_used, 1);
}

static bool allocate(const struct qcow2_image *image, struct slot *slot)
{
	size_t sectors = image->h.cluster_bytes / SECTOR_BYTES;
	if (!slot->data)
		slot->data = malloc(image->h.cluster_bytes);
	if (!slot->sectors)
		slot->sectors = calloc(BITMAP_WORDS(sectors), sizeof *slot->sectors);
	return slot->data && slot->sectors;
}

/* The slot for a cluster, with one more user.  NULL: none is free now; *victim is
 * then one that can be written out (with one more user), or NULL. */
static struct slot *get(
	struct qcow2_image *image, struct qcow2_assembly *a, uint64_t cluster, struct slot **victim)
{
	struct slot *slot = find(a, cluster), *empty = NULL;
	*victim = NULL;
	for (size_t i = 0; !slot && i < a->nr_slots; i++) {
		struct slot *s = &a->slots[i];
		if (s->cluster == NO_CLUSTER && !empty)
			empty = s;
		else if (s->cluster != NO_CLUSTER && s->users == 0 &&
			 (!*victim || s->used_at < (*victim)->used_at))
			*victim = s;
	}
	if (!slot && empty && allocate(image, empty)) {
		struct slot **bucket = bucket_of(a, cluster);
		slot = empty;
		slot->cluster = cluster;
		slot->hash_next = *bucket;
		*bucket = slot;
		atomic_fetch_add(&a->nr_used, 1);
	}
	if (slot) {
		slot->users++;
		slot->used_at = ++a->clock;
		*victim = NULL;
	} else if (*victim) {
		(*victim)->users++;
	}
	return slot;
}

/* --- filling and writing out (holding the cluster's range exclusively) ------------------ */

static size_t nr_sectors(const struct qcow2_image *image, uint64_t cluster)
{
	uint64_t start = cluster << image->h.cluster_bits;
	uint64_t bytes = min_u64(image->h.cluster_bytes, image->block.info.size_bytes - start);
	return (size_t)div_round_up(bytes, SECTOR_BYTES);
}

static void set_filled(struct qcow2_assembly *a, struct slot *slot, unsigned nr)
{
	WITH_LOCK(&a->mutex);
	slot->nr_filled = nr;
}

static void empty_slot(struct qcow2_image *image, struct slot *slot)
{
	size_t words = BITMAP_WORDS(image->h.cluster_bytes / SECTOR_BYTES);
	memset(slot->sectors, 0, words * sizeof *slot->sectors);
	set_filled(image->writer->assembly, slot, 0);
}

/* Fills sectors first..end that are not, from the chain. */
static int fill_from_chain(
	struct qcow2_image *image, struct slot *slot, size_t first, size_t end, struct err *err)
{
	uint64_t start = slot->cluster << image->h.cluster_bits;
	while (first < end) {
		size_t stop = first;
		while (stop < end && !bitmap_test(slot->sectors, stop))
			stop++;
		size_t at = first * SECTOR_BYTES;
		if (stop > first && qcow2_read_padded(image, slot->data + at,
					    (stop - first) * SECTOR_BYTES, start + at, err) < 0)
			return -1;
		first = stop;
		while (first < end && bitmap_test(slot->sectors, first))
			first++;
	}
	return 0;
}

static int fill(struct qcow2_image *image, struct slot *slot, const void *buffer, size_t length,
	size_t at, struct err *err)
{
	size_t first = at / SECTOR_BYTES, end = (at + length - 1) / SECTOR_BYTES + 1;
	/* Sectors that are not covered keep the rest of what they held. */
	if (at % SECTOR_BYTES != 0 && fill_from_chain(image, slot, first, first + 1, err) < 0)
		return -1;
	if ((at + length) % SECTOR_BYTES != 0 &&
		fill_from_chain(image, slot, end - 1, end, err) < 0)
		return -1;
	memcpy(slot->data + at, buffer, length);
	unsigned nr = slot->nr_filled;
	for (size_t i = first; i < end; i++) {
		nr += !bitmap_test(slot->sectors, i);
		bitmap_set(slot->sectors, i);
	}
	set_filled(image->writer->assembly, slot, nr);
	return 0;
}

static int write_out(struct qcow2_image *image, struct slot *slot, bool last, struct err *err)
{
	uint64_t start = slot->cluster << image->h.cluster_bits;
	size_t all = nr_sectors(image, slot->cluster);
	bool complete = slot->nr_filled == all;
	if (!complete && fill_from_chain(image, slot, 0, all, err) < 0)
		return -1;
	size_t bytes = (size_t)min_u64(all * SECTOR_BYTES, image->block.info.size_bytes - start);
	if (qcow2_write_held(image, slot->data, bytes, start, true, complete || last, err) < 0)
		return -1;
	empty_slot(image, slot);
	return 0;
}

/* Writes a slot out whose user the caller is, and gives it up.  Holds no range. */
static int write_out_and_put(
	struct qcow2_image *image, struct slot *slot, bool last, struct err *err)
{
	struct qcow2_assembly *a = image->writer->assembly;
	struct rangelock_hold hold;
	uint64_t start = slot->cluster << image->h.cluster_bits;
	qcow2_write_hold(image, &hold, start, 1, true);
	int rc = slot->nr_filled > 0 ? write_out(image, slot, last, err) : 0;
	rangelock_release(&image->writer->ranges, &hold);
	WITH_LOCK(&a->mutex);
	put(a, slot);
	return rc;
}

/* --- for the rest of the room ------------------------------------------------------------- */

int qcow2_assembly_write(struct qcow2_image *image, const void *buffer, size_t length,
	uint64_t offset, struct err *err)
{
	struct qcow2_assembly *a = image->writer->assembly;
	uint64_t cluster = offset >> image->h.cluster_bits;
	struct slot *slot, *victim;
	if (qcow2_commit_make_room(image, err) < 0)
		return -1;
	do {
		pthread_mutex_lock(&a->mutex);
		slot = get(image, a, cluster, &victim);
		pthread_mutex_unlock(&a->mutex);
		if (victim && write_out_and_put(image, victim, false, err) < 0)
			return -1;
	} while (victim);
	if (!slot) /* all are being written to at this moment */
		return qcow2_write_through(image, buffer, length, offset, err);

	struct rangelock_hold hold;
	qcow2_write_hold(image, &hold, offset, length, true);
	int rc = 1;
	if (slot->nr_filled == 0) /* a plain cluster stays plain */
		rc = qcow2_write_held(image, buffer, length, offset, false, false, err);
	if (rc == 1) {
		rc = fill(image, slot, buffer, length, offset & (image->h.cluster_bytes - 1), err);
		if (rc == 0 && slot->nr_filled == nr_sectors(image, cluster))
			rc = write_out(image, slot, false, err);
	}
	rangelock_release(&image->writer->ranges, &hold);
	WITH_LOCK(&a->mutex);
	put(a, slot);
	return rc;
}

void qcow2_assembly_overlay(struct qcow2_image *image, void *buffer, size_t length, uint64_t offset)
{
	struct qcow2_assembly *a = image->writer->assembly;
	uint64_t end = offset + length, end_cluster = ((end - 1) >> image->h.cluster_bits) + 1;
	uint64_t cluster = offset >> image->h.cluster_bits;
	for (;; cluster++) {
		cluster = qcow2_assembly_next(image, cluster, end_cluster);
		if (cluster == end_cluster)
			return;
		pthread_mutex_lock(&a->mutex);
		const struct slot *slot = find(a, cluster);
		pthread_mutex_unlock(&a->mutex);
		/* Its content stays while the range is held, and so does the slot. */
		uint64_t start = cluster << image->h.cluster_bits;
		size_t nr = nr_sectors(image, cluster);
		for (size_t i = 0; slot && i < nr; i++) {
			uint64_t from = max_u64(start + i * SECTOR_BYTES, offset);
			uint64_t to = min_u64(start + (i + 1) * SECTOR_BYTES, end);
			if (from < to && bitmap_test(slot->sectors, i))
				memcpy((uint8_t *)buffer + (from - offset),
					slot->data + (from - start), to - from);
		}
	}
}

void qcow2_assembly_discard(struct qcow2_image *image, uint64_t cluster, uint64_t nr_clusters)
{
	struct qcow2_assembly *a = image->writer->assembly;
	uint64_t end = cluster + nr_clusters;
	for (;; cluster++) {
		cluster = qcow2_assembly_next(image, cluster, end);
		if (cluster == end)
			return;
		pthread_mutex_lock(&a->mutex);
		struct slot *slot = find(a, cluster);
		if (slot)
			slot->users++;
		pthread_mutex_unlock(&a->mutex);
		if (!slot)
			continue;
		empty_slot(image, slot);
		WITH_LOCK(&a->mutex);
		put(a, slot);
	}
}

uint64_t qcow2_assembly_next(struct qcow2_image *image, uint64_t cluster, uint64_t end)
{
	struct qcow2_assembly *a = image->writer->assembly;
	uint64_t next = end;
	if (atomic_load(&a->nr_used) == 0)
		return end;
	WITH_LOCK(&a->mutex);
	if (end - cluster <= a->nr_slots) {
		for (; cluster < end; cluster++) {
			const struct slot *s = find(a, cluster);
			if (s && s->nr_filled > 0)
				return cluster;
		}
		return end;
	}
	for (size_t i = 0; i < a->nr_slots; i++) {
		const struct slot *s = &a->slots[i];
		if (s->cluster >= cluster && s->cluster < next && s->nr_filled > 0)
			next = s->cluster;
	}
	return next;
}

int qcow2_assembly_flush(struct qcow2_image *image, bool last, struct err *err)
{
	struct qcow2_assembly *a = image->writer->assembly;
	for (size_t i = 0; atomic_load(&a->nr_used) > 0 && i < a->nr_slots; i++) {
		struct slot *slot = &a->slots[i];
		pthread_mutex_lock(&a->mutex);
		bool filled = slot->cluster != NO_CLUSTER && slot->nr_filled > 0;
		if (filled)
			slot->users++;
		pthread_mutex_unlock(&a->mutex);
		if (filled && write_out_and_put(image, slot, last, err) < 0)
			return -1;
	}
	return 0;
}
