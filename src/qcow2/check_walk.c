/*
 * The walk of a check: every reference of the image, counted where it falls into
 * the window of host clusters at hand.
 *
 *   header, refcount table -> refcount blocks
 *   active L1, snapshots' L1 tables -> L2 tables -> data, compressed data
 *   snapshot table;  bitmap directory -> bitmap tables -> bitmap data
 *
 * L2 tables are collected in batches, sorted by place, and each is walked once
 * with the number of references to it: a hostile file that names one table
 * millions of times costs no more than an honest one.  Where the file needs
 * several windows, the span of each table (lowest and highest cluster named) is
 * remembered from the first, so that later windows skip those that do not
 * matter to them.
 *
 * What is wrong with a reference in itself (reserved bits, alignment, beyond the
 * end) is reported in the first window alone, for that one reads everything.
 */
#include "check_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#define BATCH_ENTRIES ((size_t)256 * 1024)
#define SPANS ((size_t)256 * 1024)
#define PIECE_BYTES 65536u

#define L1_RESERVED 0x7f000000000001ffull
#define L2_RESERVED 0x3f000000000001feull
#define BITMAP_RESERVED 0xff000000000001feull
#define REFCOUNT_RESERVED 0x1ffull
#define BITMAP_ALL_ONES 1u

static bool telling(const struct check *c)
{
	return c->first_window && c->counting;
}

/* Counts references to one cluster. */
static void count(struct check *c, uint64_t cluster, unsigned use, uint64_t times)
{
	uint64_t i = cluster - c->first;
	if (i >= c->nr_window) {
		if (cluster > c->first && cluster < c->next)
			c->next = cluster;
		return;
	}
	if (!c->counting)
		return;
	uint8_t state = c->state[i];
	bool exclusive = use & (CHECK_USE_METADATA | CHECK_USE_REFBLOCK | CHECK_USE_BITMAP);
	if ((exclusive && (state & use)) || (state & CHECK_USE_MASK & ~use))
		state |= CHECK_USED_TWICE;
	c->state[i] = (uint8_t)(state | use);
	uint64_t before = check_used(c, i), room = c->count_max - before;
	if (times > room) {
		qcow2_check_wrong(c, times - room,
			"cluster at host offset %" PRIu64
			": used more often than its refcount can say",
			cluster << c->header.cluster_bits);
		times = room;
		c->untrusted = true;
	}
	if (c->wide)
		c->used32[i] = (uint32_t)(before + times);
	else
		c->used16[i] = (uint16_t)(before + times);
}

/*
 * Counts references to a range of the file.  As QEMU has it, the range may end
 * within one cluster behind the end of the file.  False: it is beyond.
 */
static bool refer(struct check *c, uint64_t offset, uint64_t length, unsigned use, uint64_t times,
	const char *what)
{
	if (length == 0)
		return true;
	if (offset + length >= c->header.file_bytes + c->header.cluster_bytes) {
		if (telling(c))
			qcow2_check_broken(c, times,
				"%s at host offset %" PRIu64 " lies beyond the end of the file",
				what, offset);
		return false;
	}
	uint64_t last = (offset + length - 1) >> c->header.cluster_bits;
	for (uint64_t k = offset >> c->header.cluster_bits; k <= last; k++)
		count(c, k, use, times);
	return true;
}

/* --- COPIED flags ------------------------------------------------------------ */

/* The entry with its COPIED flag as it must be; reports one that is not. */
static uint64_t mind_copied(
	struct check *c, uint64_t entry, uint64_t offset, uint64_t times, const char *what)
{
	uint64_t cluster = offset >> c->header.cluster_bits, i = cluster - c->first;
	/* What lies beyond the end has no refcount, and was not counted: it is
	 * reported, and left. */
	bool beyond = cluster > c->nr_clusters;
	if (beyond ? !telling(c) : i >= c->nr_window)
		return entry;
	bool once = !beyond && c->state[i] & CHECK_ONCE;
	if (once == !!(entry & QCOW2_COPIED))
		return entry;
	if (c->pass == CHECK_PASS_LOOK) {
		qcow2_check_wrong(c, times,
			"%s at host offset %" PRIu64 ": the COPIED flag is %s, its refcount is %s",
			what, offset, once ? "not set" : "set", once ? "1" : "not 1");
		return entry;
	}
	if (beyond || check_used(c, i) == 0 || (once && !c->set_copied))
		return entry;
	return entry ^ QCOW2_COPIED;
}

/* Flags are looked at while the refcounts of the file are at hand, and mended in
 * a walk of their own once all counts of the window are known. */
static bool minding_flags(const struct check *c)
{
	return c->active && (c->pass == CHECK_PASS_LOOK || !c->counting);
}

/* --- L2 tables ---------------------------------------------------------------- */

struct l2_walk {
	uint64_t offset, times;
	struct check_span span;
	size_t first_changed, end_changed; /* entries */
};

static void widen(struct l2_walk *w, const struct check *c, uint64_t offset, uint64_t length)
{
	w->span.low = min_u64(w->span.low, offset >> c->header.cluster_bits);
	w->span.high = max_u64(w->span.high, (offset + length - 1) >> c->header.cluster_bits);
}

/* Returns the entry as it shall be. */
static uint64_t walk_compressed(
	struct check *c, struct l2_walk *w, uint64_t entry, uint64_t subclusters)
{
	uint64_t offset, length, wanted = entry;
	if (c->pass == CHECK_PASS_FLAGS && minding_flags(c))
		wanted &= ~QCOW2_COPIED;
	if (telling(c)) {
		c->result.compressed += c->active ? w->times : 0;
		c->result.clusters_used += c->active ? w->times : 0;
		if (entry & QCOW2_COPIED)
			qcow2_check_wrong(c, w->times,
				"L2 table at host offset %" PRIu64
				": a compressed cluster has the COPIED flag",
				w->offset);
		if (subclusters)
			qcow2_check_broken(c, w->times,
				"L2 table at host offset %" PRIu64
				": a compressed cluster has subclusters",
				w->offset);
	}
	if (subclusters)
		return wanted;
	qcow2_compressed_range(&c->header, entry & ~QCOW2_COPIED, &offset, &length);
	widen(w, c, offset, length);
	refer(c, offset, length, CHECK_USE_DATA, w->times, "a compressed cluster");
	return wanted;
}

/* Returns the entry as it shall be. */
static uint64_t walk_standard(
	struct check *c, struct l2_walk *w, uint64_t entry, uint64_t subclusters)
{
	uint64_t offset = entry & QCOW2_OFFSET_MASK;
	uint32_t allocated = (uint32_t)subclusters, zero = (uint32_t)(subclusters >> 32);
	uint64_t reserved = L2_RESERVED | (c->header.extended_l2 ? QCOW2_ZERO : 0);
	if (telling(c)) {
		if (entry & reserved)
			qcow2_check_broken(c, w->times,
				"L2 table at host offset %" PRIu64
				": reserved bits are set in entry %#" PRIx64,
				w->offset, entry);
		if (offset == 0 ? allocated != 0 : (allocated & zero) != 0)
			qcow2_check_broken(c, w->times,
				"L2 table at host offset %" PRIu64 ": wrong subclusters %#" PRIx64
				" of entry %#" PRIx64,
				w->offset, subclusters, entry);
		if (offset & (c->header.cluster_bytes - 1))
			qcow2_check_broken(c, w->times,
				"data at host offset %" PRIu64 " is not aligned to a cluster",
				offset);
		c->result.clusters_used += offset != 0 && c->active ? w->times : 0;
	}
	if (offset == 0)
		return entry;
	widen(w, c, offset, c->header.cluster_bytes);
	refer(c, offset, c->header.cluster_bytes, CHECK_USE_DATA, w->times, "data");
	return minding_flags(c) ? mind_copied(c, entry, offset, w->times, "data") : entry;
}

static int write_back(struct check *c, const struct l2_walk *w, struct err *err)
{
	if (w->first_changed >= w->end_changed)
		return 0;
	size_t entry_bytes = qcow2_l2_entry_bytes(&c->header);
	size_t at = w->first_changed * entry_bytes;
	return file_pwrite(c->fd, c->table + at, w->end_changed * entry_bytes - at, w->offset + at,
		c->name, err);
}

/* True when the file has a hole there: most cheaply skipped. */
static bool is_hole(const struct check *c, uint64_t offset, uint64_t length)
{
	off_t data = lseek(c->fd, (off_t)offset, SEEK_DATA);
	return data >= 0 && (uint64_t)data >= offset + length;
}

static int walk_l2(struct check *c, uint64_t table_offset, uint64_t times, struct check_span *span,
	struct err *err)
{
	struct l2_walk w = {.offset = table_offset,
		.times = times,
		.span = {.low = UINT64_MAX},
		.first_changed = SIZE_MAX};
	size_t nr = (size_t)qcow2_l2_entries(&c->header);
	size_t entry_bytes = qcow2_l2_entry_bytes(&c->header);
	if (cancel_check(c->cancel, err) < 0)
		return -1;
	if (c->header.cluster_bytes < PIECE_BYTES ||
		!is_hole(c, table_offset, c->header.cluster_bytes)) {
		if (qcow2_header_pread(c->fd, c->table, c->header.cluster_bytes, table_offset,
			    c->name, err) < 0)
			return -1;
	} else {
		nr = 0;
	}
	for (size_t i = 0; i < nr; i++) {
		uint8_t *at = c->table + i * entry_bytes;
		uint64_t entry = be64_get(at),
			 subclusters = entry_bytes == 16 ? be64_get(at + 8) : 0;
		if ((entry | subclusters) == 0)
			continue;
		uint64_t wanted = entry & QCOW2_COMPRESSED
					  ? walk_compressed(c, &w, entry, subclusters)
					  : walk_standard(c, &w, entry, subclusters);
		if (wanted != entry) {
			be64_put(at, wanted);
			w.first_changed = min_size(w.first_changed, i);
			w.end_changed = i + 1;
		}
	}
	*span = w.span;
	return write_back(c, &w, err);
}

/* Notes in c->next what a skipped table may refer to. */
static bool can_be_skipped(struct check *c, const struct check_span *span)
{
	uint64_t end = c->first + c->nr_window;
	if (span->low > span->high || span->high < c->first)
		return true;
	if (span->low < end)
		return false;
	c->next = min_u64(c->next, span->low);
	return true;
}

static int compare_offsets(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

/* Walks what was collected, each table once. */
static int walk_batch(struct check *c, struct err *err)
{
	size_t nr = c->nr_batch;
	c->nr_batch = 0;
	qsort(c->batch, nr, sizeof *c->batch, compare_offsets);
	for (size_t i = 0, end; i < nr; i = end) {
		for (end = i + 1; end < nr && c->batch[end] == c->batch[i];)
			end++;
		/* The order of tables is the same in every walk: L1 offsets stay. */
		size_t k = c->next_span++;
		struct check_span unknown = {0},
				  *span = c->spans && k < SPANS ? &c->spans[k] : &unknown;
		if (c->spans_known && span != &unknown && can_be_skipped(c, span))
			continue;
		if (walk_l2(c, c->batch[i], end - i, span, err) < 0)
			return -1;
	}
	return 0;
}

/* --- L1 tables ----------------------------------------------------------------- */

/* Returns the entry as it shall be. */
static uint64_t walk_l1_entry(struct check *c, uint64_t entry)
{
	uint64_t offset = entry & QCOW2_OFFSET_MASK;
	bool aligned = (offset & (c->header.cluster_bytes - 1)) == 0;
	if (telling(c) && (entry & L1_RESERVED))
		qcow2_check_broken(
			c, 1, "L1 table: reserved bits are set in entry %#" PRIx64, entry);
	if (telling(c) && !aligned)
		qcow2_check_broken(c, 1,
			"L2 table at host offset %" PRIu64 " is not aligned to a cluster", offset);
	bool inside = refer(c, offset, c->header.cluster_bytes, CHECK_USE_L2, 1, "L2 table");
	if (offset == 0)
		return entry;
	if (inside && aligned)
		c->batch[c->nr_batch++] = offset;
	return minding_flags(c) ? mind_copied(c, entry, offset, 1, "L2 table") : entry;
}

static int walk_l1(struct check *c, uint64_t table_offset, uint32_t nr_entries, struct err *err)
{
	uint64_t length = (uint64_t)nr_entries * 8;
	refer(c, table_offset, length, CHECK_USE_METADATA, 1, "L1 table");
	for (uint64_t at = 0; at < length; at += PIECE_BYTES) {
		size_t n = (size_t)min_u64(length - at, PIECE_BYTES);
		if (cancel_check(c->cancel, err) < 0)
			return -1;
		if (is_hole(c, table_offset + at, n))
			continue;
		if (qcow2_header_pread(c->fd, c->l1_piece, n, table_offset + at, c->name, err) < 0)
			return -1;
		for (size_t i = 0; i < n; i += 8) {
			uint64_t entry = be64_get(c->l1_piece + i);
			if (entry == 0)
				continue;
			uint64_t wanted = walk_l1_entry(c, entry);
			if (wanted != entry) {
				be64_put(c->l1_piece + i, wanted);
				if (file_pwrite(c->fd, c->l1_piece + i, 8, table_offset + at + i,
					    c->name, err) < 0)
					return -1;
			}
			if (c->nr_batch == BATCH_ENTRIES && walk_batch(c, err) < 0)
				return -1;
		}
	}
	return 0;
}

/* L1 tables of snapshots are not shared: more of them than the file is long
 * cannot be true, and walking them would not end. */
static int walk_snapshots(struct check *c, struct err *err)
{
	uint64_t sum = 0;
	refer(c, c->header.snapshots_offset, c->header.snapshots_bytes, CHECK_USE_METADATA, 1,
		"snapshot table");
	for (uint32_t i = 0; i < c->header.nr_snapshots; i++) {
		const struct qcow2_snapshot *s = &c->header.snapshots[i];
		sum += (uint64_t)s->nr_l1_entries * 8;
		if (sum > c->header.file_bytes + c->header.cluster_bytes) {
			if (telling(c))
				qcow2_check_broken(c, 1,
					"the L1 tables of snapshot %" PRIu32
					" and those before it overlap",
					i);
			return 0;
		}
		if (walk_l1(c, s->l1_offset, s->nr_l1_entries, err) < 0)
			return -1;
	}
	return 0;
}

/* --- the rest -------------------------------------------------------------------- */

static void walk_bitmap_entry(struct check *c, uint64_t entry)
{
	uint64_t offset = entry & QCOW2_OFFSET_MASK;
	if ((entry & BITMAP_RESERVED) || (offset && (entry & BITMAP_ALL_ONES)) ||
		(offset & (c->header.cluster_bytes - 1))) {
		if (telling(c))
			qcow2_check_broken(
				c, 1, "bitmap table: entry %#" PRIx64 " is not valid", entry);
		return;
	}
	if (offset != 0)
		refer(c, offset, c->header.cluster_bytes, CHECK_USE_BITMAP, 1, "bitmap data");
}

static int walk_bitmap(struct check *c, const struct qcow2_bitmap *bitmap, struct err *err)
{
	uint64_t length = (uint64_t)bitmap->nr_table_entries * 8;
	refer(c, bitmap->table_offset, length, CHECK_USE_METADATA, 1, "bitmap table");
	for (uint64_t at = 0; at < length; at += PIECE_BYTES) {
		size_t n = (size_t)min_u64(length - at, PIECE_BYTES);
		if (cancel_check(c->cancel, err) < 0)
			return -1;
		if (is_hole(c, bitmap->table_offset + at, n))
			continue;
		if (qcow2_header_pread(
			    c->fd, c->l1_piece, n, bitmap->table_offset + at, c->name, err) < 0)
			return -1;
		for (size_t i = 0; i < n; i += 8)
			walk_bitmap_entry(c, be64_get(c->l1_piece + i));
	}
	return 0;
}

static int walk_bitmaps(struct check *c, struct err *err)
{
	uint64_t sum = 0;
	refer(c, c->header.bitmaps_offset, c->header.bitmaps_bytes, CHECK_USE_METADATA, 1,
		"bitmap directory");
	for (uint32_t i = 0; i < c->header.nr_bitmaps; i++) {
		sum += (uint64_t)c->header.bitmaps[i].nr_table_entries * 8;
		if (sum > c->header.file_bytes + c->header.cluster_bytes) {
			if (telling(c))
				qcow2_check_broken(c, 1,
					"the tables of bitmap %" PRIu32
					" and those before it overlap",
					i);
			return 0;
		}
		if (walk_bitmap(c, &c->header.bitmaps[i], err) < 0)
			return -1;
	}
	return 0;
}

/* As QEMU has it, an entry with reserved bits is read through, but is no use of
 * the block. */
static void walk_refcount_blocks(struct check *c)
{
	for (uint64_t i = 0; i < c->nr_refcount_table; i++) {
		uint64_t entry = c->refcount_table[i];
		uint64_t offset = qcow2_check_refcounts_block(c, i);
		if (entry == 0)
			continue;
		if (entry == offset) {
			count(c, offset >> c->header.cluster_bits, CHECK_USE_REFBLOCK, 1);
		} else if (telling(c)) {
			c->untrusted = true;
			qcow2_check_broken(c, 1,
				"refcount table: entry %" PRIu64 " (%#" PRIx64 ") %s", i, entry,
				entry & REFCOUNT_RESERVED ? "has reserved bits set"
				: entry & (c->header.cluster_bytes - 1)
					? "is not aligned to a cluster"
					: "lies beyond the end of the file");
		}
	}
}

static int walk_metadata(struct check *c, struct err *err)
{
	const struct qcow2_header *h = &c->header;
	count(c, 0, CHECK_USE_METADATA, 1);
	refer(c, h->refcount_table_offset, (uint64_t)h->refcount_table_clusters << h->cluster_bits,
		CHECK_USE_METADATA, 1, "refcount table");
	walk_refcount_blocks(c);
	return h->nr_bitmaps > 0 ? walk_bitmaps(c, err) : 0;
}

int qcow2_check_walk(struct check *c, struct err *err)
{
	c->next_span = 0;
	c->nr_batch = 0;
	c->active = true;
	if (walk_l1(c, c->header.l1_offset, c->header.nr_l1_entries, err) < 0 ||
		walk_batch(c, err) < 0)
		return -1;
	c->active = false;
	if (c->counting &&
		(walk_metadata(c, err) < 0 || walk_snapshots(c, err) < 0 || walk_batch(c, err) < 0))
		return -1;
	c->spans_known = c->spans_known || c->counting;
	return 0;
}
