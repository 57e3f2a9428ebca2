/*
 * Writing a sums file.
 *
 *   told ──► open segment (memory, at most 16) ──► its slot in the file ──► index
 *               ▲────────── told again: read back ───┘
 *
 * A copy goes through a disk in a few places at once, so the least recently used
 * of the open segments is almost always finished when it is stored.  One that is
 * told more later and outgrows its slot gets a new one of full size (sums_slots.c):
 * an unlucky order costs space, at most once more for each segment, never correctness.
 *
 * Until the file is finished a chunk that was never told is not the same as one of
 * zeros, in a full neither: whoever goes on with it wants to know.
 */
#include "sums_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define INDEX_BATCH 1024u

struct sums_writer {
	struct sums_facts facts;
	struct sums_reader *parent;
	char *path;
	int fd;
	pthread_mutex_t mutex;
	pthread_mutex_t checkpoint_mutex; /* one checkpoint at a time; taken before mutex */
	struct sums_segment *open[SUMS_OPEN_SEGMENTS];
	uint64_t clock;
	struct sums_slots slots;
	struct sums_run *wholes; /* segments of one kind, since the last checkpoint */
	size_t nr_wholes, wholes_room;
	uint8_t *packed;
};

static void make_header(const struct sums_facts *facts, uint8_t bytes[SUMS_BLOCK])
{
	memset(bytes, 0, SUMS_BLOCK);
	be64_put(bytes, UINT64_C(0x53454e4453554d53)); /* "SENDSUMS" */
	be32_put(bytes + 8, SUMS_VERSION);
	be32_put(bytes + 12, SUMS_BLOCK);
	be32_put(bytes + 16, facts->algorithm);
	be32_put(bytes + 20, DIGEST_CHUNK_BYTES);
	be64_put(bytes + 24, facts->size_bytes);
	be32_put(bytes + 32, SUMS_SEGMENT_CHUNKS);
	be32_put(bytes + 36, facts->increment);
	memcpy(bytes + 40, facts->key, strlen(facts->key));
	memcpy(bytes + 104, facts->point, strlen(facts->point));
	be64_put(bytes + 504, XXH3_64bits(bytes, 504));
}

static struct sums_writer *writer_new(const char *path, const struct sums_facts *facts,
	struct sums_reader *parent, struct err *err)
{
	assert(facts->size_bytes > 0 && facts->increment == (parent != NULL));
	struct sums_writer *writer = calloc(1, sizeof *writer);
	if (!writer)
		goto no_memory;
	writer->facts = *facts;
	writer->parent = parent;
	writer->fd = -1;
	pthread_mutex_init(&writer->mutex, NULL);
	pthread_mutex_init(&writer->checkpoint_mutex, NULL);
	writer->packed = malloc(SUMS_SLOT_MOST);
	writer->path = strdup(path);
	if (sums_slots_init(&writer->slots, facts) < 0 || !writer->packed || !writer->path)
		goto no_memory;
	return writer;
no_memory:
	err_errno(err, ENOMEM, "cannot write %s", path);
	sums_writer_free(writer);
	return NULL;
}

struct sums_writer *sums_writer_create(int dir_fd, const char *path, const struct sums_facts *facts,
	struct sums_reader *parent, struct err *err)
{
	uint8_t header[SUMS_BLOCK];
	struct sums_writer *writer = writer_new(path, facts, parent, err);
	if (!writer)
		return NULL;
	writer->fd = openat(dir_fd, path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (writer->fd < 0) {
		err_errno(err, errno, "cannot create %s", path);
		goto fail;
	}
	make_header(facts, header);
	if (file_pwrite(writer->fd, header, sizeof header, 0, writer->path, err) < 0)
		goto fail;
	return writer;
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
	sums_slots_destroy(&writer->slots);
	pthread_mutex_destroy(&writer->checkpoint_mutex);
	pthread_mutex_destroy(&writer->mutex);
	free(writer->wholes);
	free(writer->packed);
	free(writer->path);
	free(writer);
}

/* --- slots ------------------------------------------------------------------ */

static int no_memory(const struct sums_writer *writer, struct err *err)
{
	return err_errno(err, ENOMEM, "cannot write %s", writer->path);
}

/* Whether it goes into the index: in a full nothing and zeros are the same. */
static bool is_indexed(const struct sums_writer *writer, const struct sums_slot *slot)
{
	if (!sums_slot_told(slot))
		return false;
	return slot->nr_data > 0 || (writer->facts.increment && slot->nr_zero > 0);
}

static int add_whole(
	struct sums_writer *writer, uint64_t number, enum sums_kind kind, struct err *err)
{
	struct sums_run *last = writer->nr_wholes ? &writer->wholes[writer->nr_wholes - 1] : NULL;
	if (last && last->kind == kind && last->first + last->nr == number) {
		last->nr++;
		return 0;
	}
	if (!writer->wholes || writer->nr_wholes == writer->wholes_room) {
		size_t room = writer->wholes_room ? 2 * writer->wholes_room : 16;
		struct sums_run *wholes = realloc(writer->wholes, room * sizeof *wholes);
		if (!wholes)
			return no_memory(writer, err);
		writer->wholes = wholes;
		writer->wholes_room = room;
	}
	writer->wholes[writer->nr_wholes++] = (struct sums_run){number, 1, kind};
	return 0;
}

/* Notes that a whole segment is of that kind: the next checkpoint writes it down. */
static int mark_whole(struct sums_writer *writer, struct sums_slot *slot, uint64_t number,
	enum sums_kind kind, struct err *err)
{
	if (slot->whole == kind)
		return 0;
	if (add_whole(writer, number, kind, err) < 0)
		return -1;
	if (sums_slots_leave(&writer->slots, slot) < 0)
		return no_memory(writer, err);
	slot->whole = (uint8_t)kind;
	slot->has_same = kind == SUMS_SAME;
	slot->nr_data = 0;
	slot->nr_zero = kind == SUMS_ZERO ? (uint16_t)sums_in_segment(&writer->facts, number) : 0;
	slot->sequence = ++writer->slots.sequence;
	return 0;
}

static bool is_whole(const struct sums_segment *segment, unsigned in_segment)
{
	uint8_t kind = segment->kinds[0];
	return (kind == SUMS_ZERO || kind == SUMS_SAME) &&
	       memcmp(segment->kinds, segment->kinds + 1, in_segment - 1) == 0;
}

/* Puts an open segment into the file, or notes that it needs no bytes there. */
static int store(struct sums_writer *writer, struct sums_segment *segment, struct err *err)
{
	struct sums_slot *slot = sums_slots_make(&writer->slots, segment->number);
	if (!slot)
		return no_memory(writer, err);
	struct sums_entry entry;
	sums_segment_pack(&writer->facts, segment, writer->packed, &entry);
	segment->changed = false;
	unsigned in_segment = sums_in_segment(&writer->facts, segment->number);
	if (is_whole(segment, in_segment))
		return mark_whole(writer, slot, segment->number, segment->kinds[0], err);
	if (sums_slots_place(&writer->slots, slot, entry.length) < 0)
		return no_memory(writer, err);
	sums_segment_seal(writer->packed, slot->capacity, &entry);
	sums_seal_put(writer->packed, &entry, slot->sequence);
	slot->whole = 0;
	slot->has_same = entry.has_same;
	slot->nr_data = (uint16_t)entry.nr_data;
	slot->nr_zero = (uint16_t)entry.nr_zero;
	slot->length = entry.length;
	slot->check = entry.check;
	return file_pwrite(writer->fd, writer->packed, entry.length + SUMS_SEAL, slot->offset,
		writer->path, err);
}

/* --- open segments ------------------------------------------------------------ */

static int fill(
	struct sums_writer *writer, struct sums_segment *segment, uint64_t number, struct err *err)
{
	const struct sums_slot *slot = sums_slots_find(&writer->slots, number);
	if (slot && slot->length > 0) {
		struct sums_entry entry = {.segment = number,
			.offset = slot->offset,
			.length = slot->length,
			.nr_data = slot->nr_data,
			.nr_zero = slot->nr_zero,
			.check = slot->check,
			.unfinished = true};
		return sums_segment_load(
			&writer->facts, writer->fd, writer->path, &entry, segment, err);
	}
	segment->number = number;
	segment->valid = true;
	segment->changed = false;
	memset(segment->kinds, SUMS_INHERIT, sizeof segment->kinds);
	if (slot && slot->whole)
		memset(segment->kinds, slot->whole, sums_in_segment(&writer->facts, number));
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
			no_memory(writer, err);
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

/* Zeros over a part of one segment, or all of it; or what nothing was told of is the same. */
static int tell_part(struct sums_writer *writer, uint64_t number, unsigned at, unsigned nr,
	enum sums_kind kind, struct err *err)
{
	struct sums_segment *segment = find_open(writer, number);
	bool whole = nr == sums_in_segment(&writer->facts, number);
	if (!segment && whole) {
		struct sums_slot *slot = sums_slots_make(&writer->slots, number);
		if (!slot)
			return no_memory(writer, err);
		if (kind == SUMS_ZERO || !sums_slot_told(slot))
			return mark_whole(writer, slot, number, kind, err);
	}
	segment = open_segment(writer, number, err);
	if (!segment)
		return -1;
	for (unsigned i = at; i < at + nr; i++)
		if (kind == SUMS_ZERO || segment->kinds[i] == SUMS_INHERIT)
			segment->kinds[i] = (uint8_t)kind;
	segment->changed = true;
	return 0;
}

static int tell_run(struct sums_writer *writer, uint64_t first, uint64_t nr, enum sums_kind kind,
	struct err *err)
{
	if (check_range(writer, first, nr, err) < 0)
		return -1;
	while (nr > 0) {
		uint64_t number = first / SUMS_SEGMENT_CHUNKS;
		unsigned at = first % SUMS_SEGMENT_CHUNKS;
		unsigned part = (unsigned)min_u64(nr, SUMS_SEGMENT_CHUNKS - at);
		WITH_LOCK(&writer->mutex);
		if (tell_part(writer, number, at, part, kind, err) < 0)
			return -1;
		first += part;
		nr -= part;
	}
	return 0;
}

int sums_writer_zeros(struct sums_writer *writer, uint64_t first, uint64_t nr, struct err *err)
{
	return tell_run(writer, first, nr, SUMS_ZERO, err);
}

int sums_writer_same(struct sums_writer *writer, uint64_t first, uint64_t nr, struct err *err)
{
	return tell_run(writer, first, nr, SUMS_SAME, err);
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
	const struct sums_slot *slot, struct sums_totals *totals, struct err *err)
{
	uint8_t *bytes = index->bytes + (size_t)index->nr * SUMS_ENTRY;
	memset(bytes, 0, SUMS_ENTRY);
	be64_put(bytes, number);
	be32_put(bytes + 20, slot->nr_data);
	be32_put(bytes + 24, slot->nr_zero);
	if (!slot->whole) {
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
	uint64_t nr_segments = sums_nr_segments(&writer->facts);
	index->at = writer->slots.end;
	XXH3_64bits_reset(index->hash);
	for (uint64_t i = 0; i < nr_segments; i++) {
		const struct sums_slot *slot = sums_slots_find(&writer->slots, i);
		if (is_indexed(writer, slot) &&
			write_entry(writer, index, i, slot, totals, err) < 0)
			return -1;
	}
	return flush_index(writer, index, err);
}

static int write_trailer(struct sums_writer *writer, struct index_writer *index,
	const struct sums_totals *totals, struct err *err)
{
	uint8_t bytes[SUMS_BLOCK] = "SUMS-END";
	be32_put(bytes + 8, SUMS_VERSION);
	be32_put(bytes + 12, SUMS_BLOCK);
	be64_put(bytes + 16, writer->slots.end);
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
		const struct sums_slot *slot = sums_slots_find(&writer->slots, number);
		if (!writer->parent && !is_indexed(writer, slot)) {
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

static int store_open(struct sums_writer *writer, struct err *err)
{
	for (unsigned i = 0; i < SUMS_OPEN_SEGMENTS; i++) {
		struct sums_segment *segment = writer->open[i];
		if (segment && segment->valid && segment->changed &&
			store(writer, segment, err) < 0)
			return -1;
	}
	return 0;
}

/* What the finished file says of what was never told, or only looked at: nothing, and in a full
 * zeros beside what was told. */
static int complete_segment(
	struct sums_writer *writer, struct sums_slot *slot, uint64_t number, struct err *err)
{
	unsigned nr = sums_in_segment(&writer->facts, number);
	uint8_t kind = writer->facts.increment ? SUMS_INHERIT : SUMS_ZERO;
	if (!is_indexed(writer, slot)) {
		slot->whole = 0;
		return sums_slots_leave(&writer->slots, slot) < 0 ? no_memory(writer, err) : 0;
	}
	if (!slot->has_same && (kind == SUMS_INHERIT || slot->nr_data + slot->nr_zero == nr))
		return 0;
	struct sums_segment *segment = open_segment(writer, number, err);
	if (!segment)
		return -1;
	for (unsigned i = 0; i < nr; i++)
		if (segment->kinds[i] == SUMS_SAME || segment->kinds[i] == SUMS_INHERIT)
			segment->kinds[i] = kind;
	return store(writer, segment, err);
}

static int complete(struct sums_writer *writer, struct err *err)
{
	uint64_t nr_segments = sums_nr_segments(&writer->facts);
	for (uint64_t number = 0; number < nr_segments; number++) {
		struct sums_slot *slot = sums_slots_find(&writer->slots, number);
		if (sums_slot_told(slot) && complete_segment(writer, slot, number, err) < 0)
			return -1;
	}
	return 0;
}

int sums_writer_finish(struct sums_writer *writer, struct sums_totals *totals, struct err *err)
{
	memset(totals, 0, sizeof *totals);
	if (store_open(writer, err) < 0 || complete(writer, err) < 0)
		return -1;
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

/* --- going on with an unfinished file --------------------------------------------- */

/* What is told from `at` on in one segment: *nr chunks (at most `most`) are alike.  may_load:
 * whether it may be read for that; else *nr 0 where it would have to be. */
static int look_in_segment(struct sums_writer *writer, uint64_t number, unsigned at, bool may_load,
	uint64_t most, enum sums_kind *kind, unsigned *nr, uint8_t *leaf, struct err *err)
{
	unsigned end = (unsigned)min_u64(sums_in_segment(&writer->facts, number), at + most);
	const struct sums_slot *slot = sums_slots_find(&writer->slots, number);
	struct sums_segment *segment = find_open(writer, number);
	if (!segment && (!sums_slot_told(slot) || slot->whole)) {
		*kind = slot ? slot->whole : SUMS_INHERIT;
		*nr = end - at;
		return 0;
	}
	*nr = 0;
	if (!segment && !may_load)
		return 0;
	segment = open_segment(writer, number, err);
	if (!segment)
		return -1;
	*kind = segment->kinds[at];
	if (*kind == SUMS_DATA) {
		size_t leaf_bytes = digest_leaf_bytes(writer->facts.algorithm);
		memcpy(leaf, segment->leaves + at * leaf_bytes, leaf_bytes);
	}
	for (*nr = 1; *kind != SUMS_DATA && at + *nr < end; (*nr)++)
		if (segment->kinds[at + *nr] != *kind)
			break;
	return 0;
}

int sums_writer_look(struct sums_writer *writer, uint64_t first, uint64_t most,
	enum sums_kind *kind, uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err)
{
	assert(most > 0);
	if (check_range(writer, first, 1, err) < 0)
		return -1;
	most = min_u64(most, sums_nr_chunks(&writer->facts) - first);
	*nr = 0;
	WITH_LOCK(&writer->mutex);
	while (*nr < most) {
		enum sums_kind next;
		unsigned part;
		uint64_t number = (first + *nr) / SUMS_SEGMENT_CHUNKS;
		unsigned at = (first + *nr) % SUMS_SEGMENT_CHUNKS;
		if (look_in_segment(
			    writer, number, at, *nr == 0, most - *nr, &next, &part, leaf, err) < 0)
			return -1;
		if (part == 0 || (*nr > 0 && next != *kind))
			break;
		*kind = next;
		*nr += part;
		if (next == SUMS_DATA || at + part < SUMS_SEGMENT_CHUNKS)
			break;
	}
	return 0;
}

int sums_writer_forget(struct sums_writer *writer, uint64_t chunk, struct err *err)
{
	if (check_range(writer, chunk, 1, err) < 0)
		return -1;
	uint64_t number = chunk / SUMS_SEGMENT_CHUNKS;
	WITH_LOCK(&writer->mutex);
	if (!find_open(writer, number) && !sums_slot_told(sums_slots_find(&writer->slots, number)))
		return 0; /* nothing was told of any of it */
	struct sums_segment *segment = open_segment(writer, number, err);
	if (!segment)
		return -1;
	segment->kinds[chunk % SUMS_SEGMENT_CHUNKS] = SUMS_INHERIT;
	segment->changed = true;
	return 0;
}

static int write_list(
	struct sums_writer *writer, const struct sums_run *runs, unsigned nr, struct err *err)
{
	struct sums_slots *slots = &writer->slots;
	if (nr == 0)
		return 0;
	uint32_t length = sums_list_pack(writer->packed, runs, nr, ++slots->sequence);
	uint64_t offset = slots->end;
	slots->end += round_up(length, SUMS_BLOCK);
	return file_pwrite(writer->fd, writer->packed, length, offset, writer->path, err);
}

/* Writes down which segments are of that kind from end to end, as far as that is news; what was
 * told of one after that counts more. */
static int store_wholes(
	struct sums_writer *writer, enum sums_kind kind, struct sums_run *runs, struct err *err)
{
	unsigned nr = 0;
	for (size_t i = 0; i < writer->nr_wholes; i++) {
		const struct sums_run *told = &writer->wholes[i];
		for (uint64_t number = told->first; number < told->first + told->nr; number++) {
			if (told->kind != kind ||
				sums_slots_find(&writer->slots, number)->whole != kind)
				continue;
			if (nr > 0 && runs[nr - 1].first + runs[nr - 1].nr == number) {
				runs[nr - 1].nr++;
				continue;
			}
			if (nr == SUMS_LIST_RUNS_MOST) {
				if (write_list(writer, runs, nr, err) < 0)
					return -1;
				nr = 0;
			}
			runs[nr++] = (struct sums_run){number, 1, kind};
		}
	}
	return write_list(writer, runs, nr, err);
}

static int begin_checkpoint(
	struct sums_writer *writer, struct sums_spaces *superseded, struct err *err)
{
	WITH_LOCK(&writer->mutex);
	struct sums_run *runs = calloc(SUMS_LIST_RUNS_MOST, sizeof *runs);
	if (!runs)
		return no_memory(writer, err);
	int rc = store_open(writer, err);
	if (rc == 0)
		rc = store_wholes(writer, SUMS_ZERO, runs, err);
	if (rc == 0)
		rc = store_wholes(writer, SUMS_SAME, runs, err);
	free(runs);
	if (rc < 0)
		return -1;
	writer->nr_wholes = 0;
	*superseded = sums_slots_before_sync(&writer->slots);
	return 0;
}

int sums_writer_checkpoint(struct sums_writer *writer, struct err *err)
{
	struct sums_spaces superseded;
	WITH_LOCK(&writer->checkpoint_mutex);
	if (begin_checkpoint(writer, &superseded, err) < 0)
		return -1;
	if (fdatasync(writer->fd) < 0) {
		free(superseded.items);
		return err_errno(err, errno, "cannot sync %s", writer->path);
	}
	pthread_mutex_lock(&writer->mutex);
	sums_slots_behind_sync(&writer->slots, &superseded);
	pthread_mutex_unlock(&writer->mutex);
	return 0;
}

/* Of two that tell of the same segment the later counts; the other's place is free. */
static void take_found(
	struct sums_writer *writer, struct sums_slot *slot, const struct sums_slot *found)
{
	bool later = !sums_slot_told(slot) || found->sequence > slot->sequence ||
		     (found->sequence == slot->sequence &&
			     found->nr_data + found->nr_zero > slot->nr_data + slot->nr_zero);
	const struct sums_slot *loser = later ? slot : found;
	if (loser->offset)
		sums_slots_free(
			&writer->slots, (struct sums_space){loser->offset, loser->capacity});
	if (later)
		*slot = *found;
}

static int found_one(void *context, const struct sums_found *found, struct err *err)
{
	struct sums_writer *writer = context;
	struct sums_slots *slots = &writer->slots;
	uint64_t first = found->is_list ? found->run.first : found->entry.segment;
	uint64_t nr = found->is_list ? found->run.nr : 1;
	slots->end = max_u64(slots->end, found->end);
	slots->sequence = max_u64(slots->sequence, found->sequence);
	for (uint64_t number = first; number < first + nr; number++) {
		struct sums_slot *slot = sums_slots_make(slots, number);
		struct sums_slot told = {.sequence = found->sequence};
		if (found->is_list) {
			told.whole = (uint8_t)found->run.kind;
			told.has_same = told.whole == SUMS_SAME;
			if (told.whole == SUMS_ZERO)
				told.nr_zero = (uint16_t)sums_in_segment(&writer->facts, number);
		} else {
			told.offset = found->entry.offset;
			told.check = found->entry.check;
			told.capacity = found->capacity;
			told.length = found->entry.length;
			told.nr_data = (uint16_t)found->entry.nr_data;
			told.nr_zero = (uint16_t)found->entry.nr_zero;
			told.has_same = found->entry.has_same;
		}
		if (!slot)
			return no_memory(writer, err);
		take_found(writer, slot, &told);
	}
	return 0;
}

/* What is told is taken as it stands in the file, so it must not be lost now: a crash of the
 * one who wrote it may have come before its sync. */
static int take_over(struct sums_writer *writer, struct err *err)
{
	uint8_t expect[SUMS_BLOCK], header[SUMS_BLOCK];
	struct err why = ERR_INIT;
	make_header(&writer->facts, expect);
	if (file_pread(writer->fd, header, sizeof header, 0, writer->path, &why) < 0 ||
		memcmp(header, expect, sizeof header) != 0)
		return err_set(err, ERR_CORRUPT, "%s does not begin as the sums of this disk",
			writer->path);
	if (sums_scan(&writer->facts, writer->fd, writer->path, found_one, writer, err) < 0)
		return -1;
	if (ftruncate(writer->fd, (off_t)writer->slots.end) < 0)
		return err_errno(err, errno, "cannot cut %s", writer->path);
	if (fdatasync(writer->fd) < 0)
		return err_errno(err, errno, "cannot sync %s", writer->path);
	struct sums_spaces none = sums_slots_before_sync(&writer->slots);
	sums_slots_behind_sync(&writer->slots, &none);
	return 0;
}

struct sums_writer *sums_writer_reopen(int dir_fd, const char *path, const struct sums_facts *facts,
	struct sums_reader *parent, struct err *err)
{
	struct sums_writer *writer = writer_new(path, facts, parent, err);
	if (!writer)
		return NULL;
	writer->fd = openat(dir_fd, path, O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
	if (writer->fd < 0) {
		err_errno(err, errno, "cannot open %s", path);
		goto fail;
	}
	if (take_over(writer, err) < 0)
		goto fail;
	return writer;
fail:
	sums_writer_free(writer);
	return NULL;
}
