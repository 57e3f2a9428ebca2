/*
 * Writing a sums file.
 *
 *   told ──► open segment (memory, at most 16) ──► its slot in the file ──► index
 *               ▲────────── told again: read back ───┘
 *
 * A copy goes through a disk in a few places at once, so the least recently used
 * of the open segments is almost always finished when it is stored.  One that is
 * told more later and outgrows its slot gets a new one of full size: an unlucky
 * order costs space, at most once more for each segment, never correctness.
 *
 * Where each segment lies is kept in pages that are made on demand, so a disk of
 * any size costs what it holds.
 */
#include "sums_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define PAGE_ENTRIES 4096u
#define INDEX_BATCH 1024u

struct slot {
	uint64_t offset; /* 0: absent, or all zero when told_zero */
	uint64_t check;
	uint32_t capacity, length, nr_data, nr_zero;
	bool told_zero;
};

struct sums_writer {
	struct sums_facts facts;
	struct sums_reader *parent;
	char *path;
	int fd;
	pthread_mutex_t mutex;
	struct sums_segment *open[SUMS_OPEN_SEGMENTS];
	uint64_t clock;
	uint64_t end; /* of the slots */
	struct slot **pages;
	uint64_t nr_pages;
	uint8_t *packed;
};

static int write_header(struct sums_writer *writer, struct err *err)
{
	uint8_t bytes[SUMS_BLOCK] = "SENDSUMS";
	be32_put(bytes + 8, SUMS_VERSION);
	be32_put(bytes + 12, SUMS_BLOCK);
	be32_put(bytes + 16, writer->facts.algorithm);
	be32_put(bytes + 20, DIGEST_CHUNK_BYTES);
	be64_put(bytes + 24, writer->facts.size_bytes);
	be32_put(bytes + 32, SUMS_SEGMENT_CHUNKS);
	be32_put(bytes + 36, writer->facts.increment);
	memcpy(bytes + 40, writer->facts.key, strlen(writer->facts.key));
	memcpy(bytes + 104, writer->facts.point, strlen(writer->facts.point));
	be64_put(bytes + 504, XXH3_64bits(bytes, 504));
	return file_pwrite(writer->fd, bytes, sizeof bytes, 0, writer->path, err);
}

struct sums_writer *sums_writer_create(int dir_fd, const char *path, const struct sums_facts *facts,
	struct sums_reader *parent, struct err *err)
{
	assert(facts->size_bytes > 0 && facts->increment == (parent != NULL));
	struct sums_writer *writer = calloc(1, sizeof *writer);
	if (!writer)
		goto no_memory;
	writer->facts = *facts;
	writer->parent = parent;
	writer->end = SUMS_BLOCK;
	writer->fd = -1;
	pthread_mutex_init(&writer->mutex, NULL);
	writer->nr_pages = div_round_up(sums_nr_segments(facts), PAGE_ENTRIES);
	writer->pages = calloc(writer->nr_pages, sizeof(struct slot *));
	writer->packed = malloc(SUMS_SEGMENT_MOST);
	writer->path = strdup(path);
	if (!writer->pages || !writer->packed || !writer->path)
		goto no_memory;
	writer->fd = openat(dir_fd, path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (writer->fd < 0) {
		err_errno(err, errno, "cannot create %s", path);
		goto fail;
	}
	if (write_header(writer, err) < 0)
		goto fail;
	return writer;
no_memory:
	err_errno(err, ENOMEM, "cannot create %s", path);
fail:
	sums_writer_free(writer);
	return NULL;
}

void sums_writer_free(struct sums_writer *writer)
{
	if (!writer)
		return;
	if (writer->fd >= 0)
		close(writer->fd);
	for (unsigned i = 0; i < SUMS_OPEN_SEGMENTS; i++)
		free(writer->open[i]);
	for (uint64_t i = 0; writer->pages && i < writer->nr_pages; i++)
		free(writer->pages[i]);
	pthread_mutex_destroy(&writer->mutex);
	free(writer->pages);
	free(writer->packed);
	free(writer->path);
	free(writer);
}

/* --- slots ------------------------------------------------------------------ */

/* NULL when the segment was never stored. */
static struct slot *find_slot(struct sums_writer *writer, uint64_t segment)
{
	struct slot *page = writer->pages[segment / PAGE_ENTRIES];
	return page ? &page[segment % PAGE_ENTRIES] : NULL;
}

static struct slot *make_slot(struct sums_writer *writer, uint64_t segment, struct err *err)
{
	struct slot **page = &writer->pages[segment / PAGE_ENTRIES];
	if (!*page)
		*page = calloc(PAGE_ENTRIES, sizeof **page);
	if (!*page) {
		err_errno(err, ENOMEM, "cannot write %s", writer->path);
		return NULL;
	}
	return &(*page)[segment % PAGE_ENTRIES];
}

static bool is_stored(const struct slot *slot)
{
	return slot && (slot->told_zero || slot->length > 0);
}

/* Gives the slot room for length bytes. */
static void reserve(struct sums_writer *writer, struct slot *slot, uint32_t length)
{
	if (slot->offset && length <= slot->capacity)
		return;
	uint32_t want = length;
	if (slot->offset)
		want = (uint32_t)(SUMS_SEGMENT_HEAD + SUMS_KINDS +
				  SUMS_SEGMENT_CHUNKS * digest_leaf_bytes(writer->facts.algorithm));
	slot->offset = writer->end;
	slot->capacity = (uint32_t)round_up(want, SUMS_BLOCK);
	writer->end += slot->capacity;
}

/* Puts an open segment into the file, or notes that it needs no bytes there. */
static int store(struct sums_writer *writer, struct sums_segment *segment, struct err *err)
{
	unsigned in_segment = sums_in_segment(&writer->facts, segment->number);
	for (unsigned i = 0; i < in_segment && !writer->facts.increment; i++)
		if (segment->kinds[i] == SUMS_INHERIT)
			segment->kinds[i] = SUMS_ZERO;
	struct slot *slot = make_slot(writer, segment->number, err);
	if (!slot)
		return -1;
	struct sums_entry entry;
	sums_segment_pack(&writer->facts, segment, writer->packed, &entry);
	slot->nr_data = entry.nr_data;
	slot->nr_zero = entry.nr_zero;
	slot->told_zero = writer->facts.increment && entry.nr_zero == in_segment;
	slot->length = 0;
	segment->changed = false;
	if (entry.nr_data == 0 && (slot->told_zero || !writer->facts.increment))
		return 0;
	reserve(writer, slot, entry.length);
	sums_segment_seal(writer->packed, slot->capacity, &entry);
	slot->length = entry.length;
	slot->check = entry.check;
	return file_pwrite(
		writer->fd, writer->packed, entry.length, slot->offset, writer->path, err);
}

/* --- open segments ------------------------------------------------------------ */

static int fill(
	struct sums_writer *writer, struct sums_segment *segment, uint64_t number, struct err *err)
{
	const struct slot *slot = find_slot(writer, number);
	if (is_stored(slot)) {
		struct sums_entry entry = {.segment = number,
			.offset = slot->told_zero ? 0 : slot->offset,
			.length = slot->length,
			.nr_data = slot->nr_data,
			.nr_zero = slot->nr_zero,
			.check = slot->check};
		return sums_segment_load(
			&writer->facts, writer->fd, writer->path, &entry, segment, err);
	}
	segment->number = number;
	segment->valid = true;
	segment->changed = false;
	memset(segment->kinds, SUMS_INHERIT, sizeof segment->kinds);
	return 0;
}

static struct sums_segment *find_open(struct sums_writer *writer, uint64_t number)
{
	for (unsigned i = 0; i < SUMS_OPEN_SEGMENTS; i++) {
		struct sums_segment *segment = writer->open[i];
		if (segment && segment->valid && segment->number == number)
			return segment;
	}
	return NULL;
}

static struct sums_segment *open_segment(
	struct sums_writer *writer, uint64_t number, struct err *err)
{
	struct sums_segment *segment = find_open(writer, number);
	if (!segment) {
		struct sums_segment **at = &writer->open[0];
		for (unsigned i = 0; i < SUMS_OPEN_SEGMENTS && *at; i++) {
			struct sums_segment **candidate = &writer->open[i];
			if (!*candidate || (*candidate)->last_used < (*at)->last_used)
				at = candidate;
		}
		if (!*at)
			*at = sums_segment_new(&writer->facts);
		segment = *at;
		if (!segment) {
			err_errno(err, ENOMEM, "cannot write %s", writer->path);
			return NULL;
		}
		if (segment->valid && segment->changed && store(writer, segment, err) < 0)
			return NULL;
		if (fill(writer, segment, number, err) < 0)
			return NULL;
	}
	segment->last_used = ++writer->clock;
	return segment;
}

static int check_range(
	const struct sums_writer *writer, uint64_t first, uint64_t nr, struct err *err)
{
	uint64_t nr_chunks = sums_nr_chunks(&writer->facts);
	if (range_fits(first, nr, nr_chunks))
		return 0;
	return err_set(err, ERR_RANGE,
		"chunks %" PRIu64 " + %" PRIu64 " lie beyond the %" PRIu64 " of %s", first, nr,
		nr_chunks, writer->path);
}

int sums_writer_chunks(struct sums_writer *writer, uint64_t first, unsigned nr,
	const uint8_t *leaves, uint64_t zero_mask, struct err *err)
{
	assert(nr <= 64);
	if (check_range(writer, first, nr, err) < 0)
		return -1;
	size_t leaf_bytes = digest_leaf_bytes(writer->facts.algorithm);
	WITH_LOCK(&writer->mutex);
	struct sums_segment *segment = NULL;
	for (unsigned i = 0; i < nr; i++) {
		uint64_t number = (first + i) / SUMS_SEGMENT_CHUNKS;
		unsigned at = (first + i) % SUMS_SEGMENT_CHUNKS;
		if (!segment || segment->number != number)
			segment = open_segment(writer, number, err);
		if (!segment)
			return -1;
		segment->changed = true;
		if (zero_mask >> i & 1) {
			segment->kinds[at] = SUMS_ZERO;
			continue;
		}
		segment->kinds[at] = SUMS_DATA;
		memcpy(segment->leaves + at * leaf_bytes,
			leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX, leaf_bytes);
	}
	return 0;
}

/* Zeros over a part of one segment, or all of it. */
static int zero_part(
	struct sums_writer *writer, uint64_t number, unsigned at, unsigned nr, struct err *err)
{
	struct sums_segment *segment = find_open(writer, number);
	bool whole = nr == sums_in_segment(&writer->facts, number);
	if (!segment && !writer->facts.increment && !is_stored(find_slot(writer, number)))
		return 0; /* absent is zero */
	if (!segment && whole) {
		struct slot *slot = make_slot(writer, number, err);
		if (!slot)
			return -1;
		slot->told_zero = writer->facts.increment;
		slot->length = 0;
		slot->nr_data = 0;
		slot->nr_zero = nr;
		return 0;
	}
	segment = open_segment(writer, number, err);
	if (!segment)
		return -1;
	memset(segment->kinds + at, SUMS_ZERO, nr);
	segment->changed = true;
	return 0;
}

int sums_writer_zeros(struct sums_writer *writer, uint64_t first, uint64_t nr, struct err *err)
{
	if (check_range(writer, first, nr, err) < 0)
		return -1;
	while (nr > 0) {
		uint64_t number = first / SUMS_SEGMENT_CHUNKS;
		unsigned at = first % SUMS_SEGMENT_CHUNKS;
		unsigned part = (unsigned)min_u64(nr, SUMS_SEGMENT_CHUNKS - at);
		WITH_LOCK(&writer->mutex);
		if (zero_part(writer, number, at, part, err) < 0)
			return -1;
		first += part;
		nr -= part;
	}
	return 0;
}

/* --- the end ----------------------------------------------------------------- */

struct index_writer {
	uint8_t bytes[INDEX_BATCH * SUMS_ENTRY];
	unsigned nr; /* in bytes */
	uint64_t at, total;
	XXH3_state_t *hash;
};

static int flush_index(struct sums_writer *writer, struct index_writer *index, struct err *err)
{
	size_t length = (size_t)index->nr * SUMS_ENTRY;
	XXH3_64bits_update(index->hash, index->bytes, length);
	if (file_pwrite(writer->fd, index->bytes, length, index->at, writer->path, err) < 0)
		return -1;
	index->at += length;
	index->nr = 0;
	return 0;
}

static int write_entry(struct sums_writer *writer, struct index_writer *index, uint64_t number,
	const struct slot *slot, struct sums_totals *totals, struct err *err)
{
	uint8_t *bytes = index->bytes + (size_t)index->nr * SUMS_ENTRY;
	memset(bytes, 0, SUMS_ENTRY);
	be64_put(bytes, number);
	be32_put(bytes + 20, slot->nr_data);
	be32_put(bytes + 24, slot->nr_zero);
	if (!slot->told_zero) {
		be64_put(bytes + 8, slot->offset);
		be32_put(bytes + 16, slot->length);
		be64_put(bytes + 32, slot->check);
	}
	totals->nr_data += slot->nr_data;
	totals->nr_zero += slot->nr_zero;
	index->total++;
	if (++index->nr == INDEX_BATCH)
		return flush_index(writer, index, err);
	return 0;
}

static int write_index(struct sums_writer *writer, struct index_writer *index,
	struct sums_totals *totals, struct err *err)
{
	index->at = writer->end;
	XXH3_64bits_reset(index->hash);
	for (uint64_t page = 0; page < writer->nr_pages; page++) {
		for (unsigned i = 0; writer->pages[page] && i < PAGE_ENTRIES; i++) {
			const struct slot *slot = &writer->pages[page][i];
			if (is_stored(slot) && write_entry(writer, index, page * PAGE_ENTRIES + i,
						       slot, totals, err) < 0)
				return -1;
		}
	}
	return flush_index(writer, index, err);
}

static int write_trailer(struct sums_writer *writer, struct index_writer *index,
	const struct sums_totals *totals, struct err *err)
{
	uint8_t bytes[SUMS_BLOCK] = "SUMS-END";
	be32_put(bytes + 8, SUMS_VERSION);
	be32_put(bytes + 12, SUMS_BLOCK);
	be64_put(bytes + 16, writer->end);
	be64_put(bytes + 24, index->total);
	be64_put(bytes + 32, XXH3_64bits_digest(index->hash));
	be64_put(bytes + 40, totals->nr_data);
	be64_put(bytes + 48, totals->nr_zero);
	memcpy(bytes + 56, totals->root, DIGEST_ROOT_BYTES);
	be64_put(bytes + 504, XXH3_64bits(bytes, 504));
	return file_pwrite(writer->fd, bytes, sizeof bytes, index->at, writer->path, err);
}

/* What a chunk of the segment is, and how many alike (zeros) follow it there; an
 * increment's open chunks are the parent's. */
static int resolve(struct sums_writer *writer, const struct sums_segment *segment, unsigned at,
	unsigned nr, enum sums_kind *kind, uint64_t *run, uint8_t leaf[DIGEST_LEAF_BYTES_MAX],
	struct err *err)
{
	size_t leaf_bytes = digest_leaf_bytes(writer->facts.algorithm);
	unsigned end = at + 1;
	*kind = segment->kinds[at];
	while (*kind != SUMS_DATA && end < nr && segment->kinds[end] == *kind)
		end++;
	*run = end - at;
	if (*kind == SUMS_DATA)
		memcpy(leaf, segment->leaves + at * leaf_bytes, leaf_bytes);
	if (*kind != SUMS_INHERIT)
		return 0;
	*kind = SUMS_ZERO; /* in a full, or beyond the end of a parent that was smaller */
	uint64_t chunk = segment->number * SUMS_SEGMENT_CHUNKS + at;
	if (!writer->parent || chunk >= sums_nr_chunks(sums_reader_facts(writer->parent)))
		return 0;
	return sums_reader_run(writer->parent, chunk, *run, kind, run, leaf, err);
}

/* Feeds one segment, filled in as it is stored, to the tree. */
static int feed_segment(struct sums_writer *writer, struct digest_tree *tree,
	const struct sums_segment *segment, struct err *err)
{
	unsigned nr = sums_in_segment(&writer->facts, segment->number);
	uint64_t run = 0;
	for (unsigned i = 0; i < nr; i += (unsigned)run) {
		enum sums_kind kind;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (resolve(writer, segment, i, nr, &kind, &run, leaf, err) < 0)
			return -1;
		if (kind == SUMS_DATA)
			digest_tree_leaf(tree, leaf);
		else
			digest_tree_zeros(tree, run);
	}
	return 0;
}

static int compute_root(
	struct sums_writer *writer, uint8_t root[DIGEST_ROOT_BYTES], struct err *err)
{
	struct sums_segment *AUTO_FREE segment = sums_segment_new(&writer->facts);
	if (!segment)
		return err_errno(err, ENOMEM, "cannot digest %s", writer->path);
	struct digest_tree tree;
	digest_tree_init(&tree, writer->facts.algorithm, writer->facts.size_bytes);
	uint64_t nr_segments = sums_nr_segments(&writer->facts);
	for (uint64_t number = 0; number < nr_segments; number++) {
		bool absent = !is_stored(find_slot(writer, number));
		if (absent && !writer->parent) {
			digest_tree_zeros(&tree, sums_in_segment(&writer->facts, number));
			continue;
		}
		if (fill(writer, segment, number, err) < 0 ||
			feed_segment(writer, &tree, segment, err) < 0)
			return -1;
	}
	digest_tree_root(&tree, root);
	return 0;
}

int sums_writer_finish(struct sums_writer *writer, struct sums_totals *totals, struct err *err)
{
	memset(totals, 0, sizeof *totals);
	for (unsigned i = 0; i < SUMS_OPEN_SEGMENTS; i++) {
		struct sums_segment *segment = writer->open[i];
		if (segment && segment->valid && segment->changed &&
			store(writer, segment, err) < 0)
			return -1;
	}
	struct index_writer *index = calloc(1, sizeof *index);
	XXH3_state_t *hash = XXH3_createState();
	int rc = -1;
	if (!index || !hash) {
		err_errno(err, ENOMEM, "cannot finish %s", writer->path);
		goto out;
	}
	index->hash = hash;
	if (compute_root(writer, totals->root, err) < 0 ||
		write_index(writer, index, totals, err) < 0 ||
		write_trailer(writer, index, totals, err) < 0)
		goto out;
	rc = fsync(writer->fd) < 0 ? err_errno(err, errno, "cannot sync %s", writer->path) : 0;
out:
	XXH3_freeState(hash);
	free(index);
	return rc;
}
