/*
 * Reading sums files; see sums.h.  Nothing that a file says is used before it was
 * held against the file's size and against a checksum.
 *
 * The index stays in the file: of each page of it (256 entries, that is 64 GiB of guest
 * space that hold anything) a reader knows the first segment and a checksum, and keeps
 * the page that was used last.  So a chain of many files costs little memory.
 */
#include "sums_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>

#define PAGE_ENTRIES 256u
#define PAGE_BYTES ((uint64_t)PAGE_ENTRIES * SUMS_ENTRY)

/* A page of the index. */
struct sums_page {
	uint64_t first; /* segment */
	uint64_t check;
};

static int damaged(const struct sums_reader *reader, const char *what, struct err *err)
{
	return err_set(err, ERR_CORRUPT, "%s is damaged: %s", reader->path, what);
}

/* Copies a zero-padded text; false when it is too long for out. */
static bool take_text(struct cursor *c, size_t field, char *out, size_t room)
{
	const uint8_t *bytes = cursor_take(c, field);
	size_t length = bytes ? strnlen((const char *)bytes, field) : room;
	if (length >= room)
		return false;
	memcpy(out, bytes, length);
	out[length] = '\0';
	return true;
}

static int parse_header(struct sums_reader *reader, const uint8_t *bytes, struct err *err)
{
	struct cursor c = cursor_over(bytes, SUMS_BLOCK);
	const uint8_t *magic = cursor_take(&c, 8);
	if (memcmp(magic, "SENDSUMS", 8) != 0)
		return damaged(reader, "it does not begin as a sums file", err);
	uint32_t version = cursor_be32(&c);
	if (version > SUMS_VERSION)
		return err_set(err, ERR_UNSUPPORTED,
			"%s was written by a newer Sendense: version %u, this program reads %u",
			reader->path, version, SUMS_VERSION);
	if (be64_get(bytes + 504) != XXH3_64bits(bytes, 504))
		return damaged(reader, "the checksum of its header is wrong", err);
	uint32_t header_bytes = cursor_be32(&c), algorithm = cursor_be32(&c);
	uint32_t chunk_bytes = cursor_be32(&c);
	uint64_t size_bytes = cursor_be64(&c);
	uint32_t segment_chunks = cursor_be32(&c), flags = cursor_be32(&c);
	if (version != SUMS_VERSION || header_bytes != SUMS_BLOCK ||
		chunk_bytes != DIGEST_CHUNK_BYTES || segment_chunks != SUMS_SEGMENT_CHUNKS ||
		(algorithm != DIGEST_XXH3_128 && algorithm != DIGEST_SHA256) || flags > 1 ||
		size_bytes == 0 || size_bytes > INT64_MAX ||
		!take_text(&c, 64, reader->facts.key, sizeof reader->facts.key) ||
		!take_text(&c, 32, reader->facts.point, sizeof reader->facts.point))
		return damaged(reader, "its header holds values that cannot be", err);
	reader->facts.algorithm = algorithm;
	reader->facts.size_bytes = size_bytes;
	reader->facts.increment = flags & 1;
	return 0;
}

static int parse_trailer(
	struct sums_reader *reader, const uint8_t *bytes, uint64_t file_bytes, struct err *err)
{
	if (memcmp(bytes, "SUMS-END", 8) != 0)
		return damaged(reader, "it was cut off or never finished", err);
	if (be64_get(bytes + 504) != XXH3_64bits(bytes, 504))
		return damaged(reader, "the checksum of its trailer is wrong", err);
	struct cursor c = cursor_over(bytes + 8, SUMS_BLOCK - 8);
	uint32_t version = cursor_be32(&c), trailer_bytes = cursor_be32(&c);
	reader->index_offset = cursor_be64(&c);
	reader->nr_entries = cursor_be64(&c);
	uint64_t room = file_bytes - SUMS_BLOCK; /* where the trailer begins */
	if (version != SUMS_VERSION || trailer_bytes != SUMS_BLOCK ||
		reader->index_offset < SUMS_BLOCK || reader->index_offset > room ||
		reader->nr_entries > sums_nr_segments(&reader->facts) ||
		reader->nr_entries != (room - reader->index_offset) / SUMS_ENTRY ||
		(room - reader->index_offset) % SUMS_ENTRY != 0)
		return damaged(reader, "its trailer holds values that cannot be", err);
	reader->totals.nr_data = be64_get(bytes + 40);
	reader->totals.nr_zero = be64_get(bytes + 48);
	memcpy(reader->totals.root, bytes + 56, DIGEST_ROOT_BYTES);
	return 0;
}

static struct sums_entry parse_entry(const uint8_t *bytes)
{
	return (struct sums_entry){.segment = be64_get(bytes),
		.offset = be64_get(bytes + 8),
		.length = be32_get(bytes + 16),
		.nr_data = be32_get(bytes + 20),
		.nr_zero = be32_get(bytes + 24),
		.check = be64_get(bytes + 32)};
}

static bool entry_fits(const struct sums_reader *reader, const struct sums_entry *entry)
{
	uint32_t leaf_bytes = (uint32_t)digest_leaf_bytes(reader->facts.algorithm);
	unsigned in_segment = sums_in_segment(&reader->facts, entry->segment);
	if (entry->offset == 0)
		return entry->length == 0 && entry->nr_data == 0 && entry->nr_zero == in_segment;
	return entry->nr_data <= in_segment && entry->nr_zero <= in_segment - entry->nr_data &&
	       entry->length == SUMS_SEGMENT_HEAD + SUMS_KINDS + entry->nr_data * leaf_bytes &&
	       entry->offset % SUMS_BLOCK == 0 &&
	       range_fits(entry->offset, entry->length, reader->index_offset);
}

static unsigned entries_of_page(const struct sums_reader *reader, uint64_t page)
{
	return (unsigned)min_u64(PAGE_ENTRIES, reader->nr_entries - page * PAGE_ENTRIES);
}

static int read_page(
	const struct sums_reader *reader, uint64_t page, uint8_t *bytes, struct err *err)
{
	return file_pread(reader->fd, bytes, (size_t)entries_of_page(reader, page) * SUMS_ENTRY,
		reader->index_offset + page * PAGE_BYTES, reader->path, err);
}

/* What the index holds, entry by entry, while it is checked. */
struct index_check {
	XXH3_state_t *hash;
	uint64_t nr_data, nr_zero, next;
};

static int check_page(
	struct sums_reader *reader, uint64_t page, struct index_check *check, struct err *err)
{
	uint8_t *bytes = reader->window;
	unsigned nr = entries_of_page(reader, page);
	uint64_t nr_segments = sums_nr_segments(&reader->facts);
	if (read_page(reader, page, bytes, err) < 0)
		return -1;
	XXH3_64bits_update(check->hash, bytes, (size_t)nr * SUMS_ENTRY);
	reader->pages[page] = (struct sums_page){
		.first = be64_get(bytes), .check = XXH3_64bits(bytes, (size_t)nr * SUMS_ENTRY)};
	for (unsigned i = 0; i < nr; i++) {
		struct sums_entry entry = parse_entry(bytes + (size_t)i * SUMS_ENTRY);
		if (entry.segment < check->next || entry.segment >= nr_segments ||
			!entry_fits(reader, &entry))
			return damaged(reader, "its index holds values that cannot be", err);
		check->next = entry.segment + 1;
		check->nr_data += entry.nr_data;
		check->nr_zero += entry.nr_zero;
	}
	reader->window_page = page;
	return 0;
}

/* The whole index is looked at once; what is read of it later must be the same. */
static int load_index(struct sums_reader *reader, uint64_t check, struct err *err)
{
	struct index_check state = {.hash = XXH3_createState()};
	reader->nr_pages = div_round_up(reader->nr_entries, PAGE_ENTRIES);
	reader->pages = calloc(reader->nr_pages + 1, sizeof *reader->pages);
	reader->window =
		malloc((size_t)(min_u64(reader->nr_entries, PAGE_ENTRIES) * SUMS_ENTRY + 1));
	int rc = -1;
	if (!state.hash || !reader->pages || !reader->window) {
		err_errno(err, ENOMEM, "cannot read %s", reader->path);
		goto out;
	}
	XXH3_64bits_reset(state.hash);
	for (uint64_t page = 0; page < reader->nr_pages; page++)
		if (check_page(reader, page, &state, err) < 0)
			goto out;
	if (XXH3_64bits_digest(state.hash) != check)
		damaged(reader, "the checksum of its index is wrong", err);
	else if (state.nr_data != reader->totals.nr_data || state.nr_zero != reader->totals.nr_zero)
		damaged(reader, "its counts are wrong", err);
	else
		rc = 0;
out:
	XXH3_freeState(state.hash);
	return rc;
}

static int check_expected(
	const struct sums_reader *reader, const struct sums_facts *expect, struct err *err)
{
	const struct sums_facts *facts = &reader->facts;
	if (facts->increment && !reader->parent)
		return damaged(reader, "it is an increment's, and nothing lies beneath it", err);
	if (!expect)
		return 0;
	if (facts->algorithm == expect->algorithm && facts->size_bytes == expect->size_bytes &&
		facts->increment <= expect->increment && strcmp(facts->key, expect->key) == 0 &&
		strcmp(facts->point, expect->point) == 0)
		return 0;
	return err_set(err, ERR_CORRUPT,
		"%s belongs to another disk or restore point: disk %s of %" PRIu64
		" bytes at point %s",
		reader->path, facts->key, facts->size_bytes, facts->point);
}

static int load(struct sums_reader *reader, const struct sums_facts *expect, struct err *err)
{
	struct stat st;
	uint8_t bytes[SUMS_BLOCK];
	if (fstat(reader->fd, &st) < 0)
		return err_errno(err, errno, "cannot stat %s", reader->path);
	if (!S_ISREG(st.st_mode) || st.st_size < (off_t)(2 * SUMS_BLOCK))
		return damaged(reader, "it is too short for a sums file", err);
	uint64_t file_bytes = (uint64_t)st.st_size;
	if (file_pread(reader->fd, bytes, sizeof bytes, 0, reader->path, err) < 0 ||
		parse_header(reader, bytes, err) < 0 ||
		file_pread(reader->fd, bytes, sizeof bytes, file_bytes - SUMS_BLOCK, reader->path,
			err) < 0 ||
		parse_trailer(reader, bytes, file_bytes, err) < 0 ||
		load_index(reader, be64_get(bytes + 32), err) < 0)
		return -1;
	return check_expected(reader, expect, err);
}

struct sums_reader *sums_reader_open(int dir_fd, const char *path, const struct sums_facts *expect,
	struct sums_reader *parent, struct err *err)
{
	struct sums_reader *reader = calloc(1, sizeof *reader);
	if (!reader || !(reader->path = strdup(path))) {
		free(reader);
		err_errno(err, ENOMEM, "cannot read %s", path);
		return NULL;
	}
	pthread_mutex_init(&reader->mutex, NULL);
	reader->parent = parent;
	reader->window_page = UINT64_MAX;
	reader->fd =
		openat(dir_fd, path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK | O_NOFOLLOW);
	if (reader->fd < 0) {
		err_errno(err, errno, "cannot open %s", path);
		goto fail;
	}
	if (load(reader, expect, err) < 0)
		goto fail;
	return reader;
fail:
	sums_reader_free(reader);
	return NULL;
}

void sums_reader_free(struct sums_reader *reader)
{
	if (!reader)
		return;
	if (reader->fd >= 0)
		close(reader->fd);
	for (unsigned i = 0; i < SUMS_OWN_SEGMENTS; i++)
		free(reader->own[i]);
	sums_merged_free(reader->merged);
	pthread_mutex_destroy(&reader->mutex);
	free(reader->pages);
	free(reader->window);
	free(reader->path);
	free(reader);
}

const struct sums_facts *sums_reader_facts(const struct sums_reader *reader)
{
	return &reader->facts;
}

const struct sums_totals *sums_reader_totals(const struct sums_reader *reader)
{
	return &reader->totals;
}

/* --- looking up -------------------------------------------------------------------- */

/* The page that holds the segment if any does: the last that begins at it or before. */
static uint64_t find_page(const struct sums_reader *reader, uint64_t segment)
{
	uint64_t low = 0, high = reader->nr_pages;
	while (high - low > 1) {
		uint64_t middle = low + (high - low) / 2;
		if (reader->pages[middle].first <= segment)
			low = middle;
		else
			high = middle;
	}
	return low;
}

static int load_window(struct sums_reader *reader, uint64_t page, struct err *err)
{
	if (reader->window_page == page)
		return 0;
	reader->window_page = UINT64_MAX;
	if (read_page(reader, page, reader->window, err) < 0)
		return -1;
	size_t length = (size_t)entries_of_page(reader, page) * SUMS_ENTRY;
	if (XXH3_64bits(reader->window, length) != reader->pages[page].check)
		return damaged(reader, "its index changed while it was read", err);
	reader->window_page = page;
	return 0;
}

/* The mutex is held. */
static int find_entry(
	struct sums_reader *reader, uint64_t segment, struct sums_entry *entry, struct err *err)
{
	entry->segment = UINT64_MAX;
	if (reader->nr_entries == 0)
		return 0;
	uint64_t page = find_page(reader, segment);
	if (load_window(reader, page, err) < 0)
		return -1;
	unsigned low = 0, high = entries_of_page(reader, page);
	unsigned nr = high;
	while (low < high) {
		unsigned middle = low + (high - low) / 2;
		if (be64_get(reader->window + (size_t)middle * SUMS_ENTRY) < segment)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < nr)
		*entry = parse_entry(reader->window + (size_t)low * SUMS_ENTRY);
	else if (page + 1 < reader->nr_pages)
		entry->segment = reader->pages[page + 1].first;
	return 0;
}

int sums_read_segment(struct sums_reader *reader, uint64_t number, struct sums_segment *segment,
	uint64_t *next, struct err *err)
{
	struct sums_entry entry;
	WITH_LOCK(&reader->mutex);
	if (find_entry(reader, number, &entry, err) < 0)
		return -1;
	*next = entry.segment;
	if (entry.segment != number)
		return 0;
	return sums_segment_load(&reader->facts, reader->fd, reader->path, &entry, segment, err);
}

/* --- this file alone ------------------------------------------------------------------ */

/* From the few that are kept, or the file; the mutex is held. */
static const struct sums_segment *get_own(
	struct sums_reader *reader, const struct sums_entry *entry, struct err *err)
{
	struct sums_segment **at = &reader->own[0];
	for (unsigned i = 0; i < SUMS_OWN_SEGMENTS; i++) {
		struct sums_segment **candidate = &reader->own[i];
		if (*candidate && (*candidate)->valid && (*candidate)->number == entry->segment) {
			(*candidate)->last_used = ++reader->clock;
			return *candidate;
		}
		if (*at && (!*candidate || (*candidate)->last_used < (*at)->last_used))
			at = candidate;
	}
	if (!*at)
		*at = sums_segment_new(&reader->facts);
	if (!*at) {
		err_errno(err, ENOMEM, "cannot read %s", reader->path);
		return NULL;
	}
	if (sums_segment_load(&reader->facts, reader->fd, reader->path, entry, *at, err) < 0)
		return NULL;
	(*at)->last_used = ++reader->clock;
	return *at;
}

int sums_reader_own_run(struct sums_reader *reader, uint64_t first, uint64_t most,
	enum sums_kind *kind, uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err)
{
	uint64_t number = first / SUMS_SEGMENT_CHUNKS, nr_chunks = sums_nr_chunks(&reader->facts);
	enum sums_kind untold = reader->facts.increment ? SUMS_INHERIT : SUMS_ZERO;
	struct sums_entry entry;
	assert(most > 0 && first < nr_chunks);
	WITH_LOCK(&reader->mutex);
	if (find_entry(reader, number, &entry, err) < 0)
		return -1;
	if (entry.segment != number) {
		uint64_t end = nr_chunks;
		if (entry.segment != UINT64_MAX)
			end = entry.segment * SUMS_SEGMENT_CHUNKS;
		*kind = untold;
		*nr = min_u64(most, end - first);
		return 0;
	}
	const struct sums_segment *segment = get_own(reader, &entry, err);
	if (!segment)
		return -1;
	sums_segment_run(
		&reader->facts, segment, first % SUMS_SEGMENT_CHUNKS, most, kind, nr, leaf);
	if (*kind == SUMS_INHERIT)
		*kind = untold;
	return 0;
}

int sums_reader_check(struct sums_reader *reader, struct cancel *cancel, struct err *err)
{
	struct sums_segment *AUTO_FREE segment = sums_segment_new(&reader->facts);
	if (!segment)
		return err_errno(err, ENOMEM, "cannot read %s", reader->path);
	uint64_t next = 0;
	for (uint64_t number = 0; next != UINT64_MAX; number = next + (number == next)) {
		if (cancel_check(cancel, err) < 0 ||
			sums_read_segment(reader, number, segment, &next, err) < 0)
			return -1;
	}
	return 0;
}
