/*
 * Reading sums files; see sums.h.  Nothing that a file says is used before it was
 * held against the file's size and against a checksum.
 */
#include "sums_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>

#define CACHED_SEGMENTS 8u

struct sums_reader {
	struct sums_facts facts;
	struct sums_totals totals;
	struct sums_reader *parent;
	char *path;
	int fd;
	uint64_t index_offset, nr_entries;
	uint8_t *index;
	pthread_mutex_t mutex;
	struct sums_segment *cached[CACHED_SEGMENTS];
	uint64_t clock;
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

static struct sums_entry entry_at(const struct sums_reader *reader, uint64_t i)
{
	const uint8_t *bytes = reader->index + i * SUMS_ENTRY;
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

static int load_index(struct sums_reader *reader, uint64_t check, struct err *err)
{
	size_t length = reader->nr_entries * SUMS_ENTRY;
	reader->index = malloc(length + 1);
	if (!reader->index)
		return err_errno(err, ENOMEM, "cannot read %s", reader->path);
	if (file_pread(reader->fd, reader->index, length, reader->index_offset, reader->path, err) <
		0)
		return -1;
	if (XXH3_64bits(reader->index, length) != check)
		return damaged(reader, "the checksum of its index is wrong", err);
	uint64_t nr_segments = sums_nr_segments(&reader->facts), nr_data = 0, nr_zero = 0;
	uint64_t next = 0;
	for (uint64_t i = 0; i < reader->nr_entries; i++) {
		struct sums_entry entry = entry_at(reader, i);
		if (entry.segment < next || entry.segment >= nr_segments ||
			!entry_fits(reader, &entry))
			return damaged(reader, "its index holds values that cannot be", err);
		next = entry.segment + 1;
		nr_data += entry.nr_data;
		nr_zero += entry.nr_zero;
	}
	if (nr_data != reader->totals.nr_data || nr_zero != reader->totals.nr_zero)
		return damaged(reader, "its counts are wrong", err);
	return 0;
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
	for (unsigned i = 0; i < CACHED_SEGMENTS; i++)
		free(reader->cached[i]);
	pthread_mutex_destroy(&reader->mutex);
	free(reader->index);
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

/* The first entry of this segment or a later one; nr_entries when none is. */
static uint64_t find_entry(const struct sums_reader *reader, uint64_t segment)
{
	uint64_t low = 0, high = reader->nr_entries;
	while (low < high) {
		uint64_t middle = low + (high - low) / 2;
		if (be64_get(reader->index + middle * SUMS_ENTRY) < segment)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

/* From the cache or the file.  The mutex is held. */
static const struct sums_segment *get_segment(
	struct sums_reader *reader, const struct sums_entry *entry, struct err *err)
{
	struct sums_segment **at = &reader->cached[0];
	for (unsigned i = 0; i < CACHED_SEGMENTS; i++) {
		struct sums_segment **candidate = &reader->cached[i];
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

/* What this file alone says about a chunk, and for how many from it on. */
static int own_run(struct sums_reader *reader, uint64_t first, uint64_t most, enum sums_kind *kind,
	uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err)
{
	uint64_t number = first / SUMS_SEGMENT_CHUNKS, i = find_entry(reader, number);
	unsigned at = first % SUMS_SEGMENT_CHUNKS;
	uint64_t next = sums_nr_chunks(&reader->facts);
	if (i < reader->nr_entries) {
		struct sums_entry entry = entry_at(reader, i);
		next = entry.segment * SUMS_SEGMENT_CHUNKS;
		if (entry.segment == number) {
			size_t leaf_bytes = digest_leaf_bytes(reader->facts.algorithm);
			unsigned in_segment = sums_in_segment(&reader->facts, number);
			WITH_LOCK(&reader->mutex);
			const struct sums_segment *segment = get_segment(reader, &entry, err);
			if (!segment)
				return -1;
			unsigned end = at + 1;
			*kind = segment->kinds[at];
			while (*kind != SUMS_DATA && end < in_segment && end - at < most &&
				segment->kinds[end] == *kind)
				end++;
			*nr = end - at;
			if (*kind == SUMS_DATA)
				memcpy(leaf, segment->leaves + at * leaf_bytes, leaf_bytes);
			return 0;
		}
	}
	*kind = SUMS_INHERIT;
	*nr = min_u64(most, next - first);
	return 0;
}

int sums_reader_run(struct sums_reader *reader, uint64_t first, uint64_t most, enum sums_kind *kind,
	uint64_t *nr, uint8_t leaf[DIGEST_LEAF_BYTES_MAX], struct err *err)
{
	assert(most > 0);
	for (;;) {
		if (first >= sums_nr_chunks(&reader->facts)) {
			/* The disk had not grown to here yet. */
			*kind = SUMS_ZERO;
			*nr = most;
			return 0;
		}
		uint64_t in_file = min_u64(most, sums_nr_chunks(&reader->facts) - first);
		if (own_run(reader, first, in_file, kind, nr, leaf, err) < 0)
			return -1;
		if (*kind != SUMS_INHERIT)
			return 0;
		if (!reader->facts.increment) {
			*kind = SUMS_ZERO;
			return 0;
		}
		most = *nr;
		reader = reader->parent;
	}
}

int sums_reader_root(struct sums_reader *reader, struct cancel *cancel,
	uint8_t root[DIGEST_ROOT_BYTES], struct err *err)
{
	uint64_t nr_chunks = sums_nr_chunks(&reader->facts), nr = 0;
	struct digest_tree tree;
	digest_tree_init(&tree, reader->facts.algorithm, reader->facts.size_bytes);
	for (uint64_t chunk = 0; chunk < nr_chunks; chunk += nr) {
		enum sums_kind kind;
		uint8_t leaf[DIGEST_LEAF_BYTES_MAX];
		if (chunk % SUMS_SEGMENT_CHUNKS == 0 && cancel_check(cancel, err) < 0)
			return -1;
		if (sums_reader_run(reader, chunk, nr_chunks - chunk, &kind, &nr, leaf, err) < 0)
			return -1;
		if (kind == SUMS_DATA)
			digest_tree_leaf(&tree, leaf);
		else
			digest_tree_zeros(&tree, nr);
	}
	digest_tree_root(&tree, root);
	return 0;
}

int sums_reader_check(struct sums_reader *reader, struct cancel *cancel, struct err *err)
{
	for (uint64_t i = 0; i < reader->nr_entries; i++) {
		struct sums_entry entry = entry_at(reader, i);
		if (cancel_check(cancel, err) < 0)
			return -1;
		WITH_LOCK(&reader->mutex);
		if (!get_segment(reader, &entry, err))
			return -1;
	}
	return 0;
}
