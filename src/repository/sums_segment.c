/* One segment of a sums file: packing, and unpacking with every field checked. */
#include "sums_internal.h"

#include <errno.h>
#include <inttypes.h>

static const uint8_t magic[4] = {'S', 'S', 'E', 'G'};

struct sums_segment *sums_segment_new(const struct sums_facts *facts)
{
	return calloc(1, sizeof(struct sums_segment) +
				 SUMS_SEGMENT_CHUNKS * digest_leaf_bytes(facts->algorithm));
}

static uint64_t checksum(uint8_t *bytes, size_t length)
{
	memset(bytes + 24, 0, 8);
	return XXH3_64bits(bytes, length);
}

void sums_segment_pack(const struct sums_facts *facts, const struct sums_segment *segment,
	uint8_t *bytes, struct sums_entry *entry)
{
	size_t leaf_bytes = digest_leaf_bytes(facts->algorithm);
	uint8_t *kinds = bytes + SUMS_SEGMENT_HEAD, *leaf = kinds + SUMS_KINDS;
	entry->segment = segment->number;
	entry->nr_data = entry->nr_zero = 0;
	entry->has_same = memchr(segment->kinds, SUMS_SAME, SUMS_SEGMENT_CHUNKS) != NULL;
	memset(bytes, 0, SUMS_SEGMENT_HEAD + SUMS_KINDS);
	for (unsigned i = 0; i < SUMS_SEGMENT_CHUNKS; i++) {
		kinds[i / 4] |= (uint8_t)(segment->kinds[i] << (i % 4 * 2));
		if (segment->kinds[i] == SUMS_DATA) {
			memcpy(leaf, segment->leaves + i * leaf_bytes, leaf_bytes);
			leaf += leaf_bytes;
			entry->nr_data++;
		} else if (segment->kinds[i] == SUMS_ZERO) {
			entry->nr_zero++;
		}
	}
	entry->length = (uint32_t)(leaf - bytes);
	memcpy(bytes, magic, sizeof magic);
	be64_put(bytes + 8, segment->number);
	be32_put(bytes + 16, entry->nr_data);
	be32_put(bytes + 20, entry->nr_zero);
}

void sums_segment_seal(uint8_t *bytes, uint32_t capacity, struct sums_entry *entry)
{
	be32_put(bytes + 4, capacity);
	entry->check = checksum(bytes, entry->length);
	be64_put(bytes + 24, entry->check);
}

/* What is wrong with the packed segment, or NULL and segment is filled. */
static const char *unpack(const struct sums_facts *facts, const struct sums_entry *entry,
	uint8_t *bytes, struct sums_segment *segment)
{
	size_t leaf_bytes = digest_leaf_bytes(facts->algorithm);
	const uint8_t *kinds = bytes + SUMS_SEGMENT_HEAD, *leaf = kinds + SUMS_KINDS;
	uint64_t check = be64_get(bytes + 24);
	if (memcmp(bytes, magic, sizeof magic) != 0 || be64_get(bytes + 8) != entry->segment)
		return "there is no such segment where the index says";
	if (check != entry->check || checksum(bytes, entry->length) != check)
		return "the checksum of a segment is wrong";
	if (be32_get(bytes + 16) != entry->nr_data || be32_get(bytes + 20) != entry->nr_zero)
		return "a segment and the index disagree";
	unsigned in_segment = sums_in_segment(facts, entry->segment), nr_data = 0, nr_zero = 0;
	for (unsigned i = 0; i < SUMS_SEGMENT_CHUNKS; i++) {
		/* An increment's is mostly nothing. */
		if (i % 32 == 0 && be64_get(kinds + i / 4) == 0) {
			memset(segment->kinds + i, SUMS_INHERIT, 32);
			i += 31;
			continue;
		}
		unsigned kind = kinds[i / 4] >> (i % 4 * 2) & 3;
		if ((kind == SUMS_SAME && !entry->unfinished) || (i >= in_segment && kind != 0))
			return "a segment holds a kind that cannot be";
		if (kind == SUMS_DATA && nr_data == entry->nr_data)
			return "a segment has too few leaves";
		segment->kinds[i] = (uint8_t)kind;
		nr_zero += kind == SUMS_ZERO;
		if (kind == SUMS_DATA) {
			memcpy(segment->leaves + i * leaf_bytes, leaf, leaf_bytes);
			leaf += leaf_bytes;
			nr_data++;
		}
	}
	if (nr_data != entry->nr_data || nr_zero != entry->nr_zero)
		return "a segment's counts are wrong";
	return NULL;
}

bool sums_segment_parse(const struct sums_facts *facts, uint8_t *bytes, size_t length,
	struct sums_entry *entry, uint32_t *capacity, struct sums_segment *segment)
{
	if (length < SUMS_SEGMENT_HEAD + SUMS_KINDS || memcmp(bytes, magic, sizeof magic) != 0)
		return false;
	*entry = (struct sums_entry){.segment = be64_get(bytes + 8),
		.nr_data = be32_get(bytes + 16),
		.nr_zero = be32_get(bytes + 20),
		.check = be64_get(bytes + 24),
		.unfinished = true};
	*capacity = be32_get(bytes + 4);
	if (entry->segment >= sums_nr_segments(facts))
		return false;
	unsigned in_segment = sums_in_segment(facts, entry->segment);
	if (entry->nr_data > in_segment || entry->nr_zero > in_segment - entry->nr_data)
		return false;
	entry->length = SUMS_SEGMENT_HEAD + SUMS_KINDS +
			entry->nr_data * (uint32_t)digest_leaf_bytes(facts->algorithm);
	if (entry->length > length || *capacity < entry->length || *capacity > SUMS_SLOT_MOST ||
		*capacity % SUMS_BLOCK != 0 || unpack(facts, entry, bytes, segment))
		return false;
	entry->has_same = memchr(segment->kinds, SUMS_SAME, SUMS_SEGMENT_CHUNKS) != NULL;
	return true;
}

int sums_segment_load(const struct sums_facts *facts, int fd, const char *path,
	const struct sums_entry *entry, struct sums_segment *segment, struct err *err)
{
	segment->valid = segment->changed = false;
	segment->number = entry->segment;
	if (entry->offset == 0) {
		unsigned in_segment = sums_in_segment(facts, entry->segment);
		memset(segment->kinds, SUMS_INHERIT, sizeof segment->kinds);
		memset(segment->kinds, SUMS_ZERO, in_segment);
		segment->valid = true;
		return 0;
	}
	uint8_t *AUTO_FREE bytes = malloc(entry->length);
	if (!bytes)
		return err_errno(err, ENOMEM, "cannot read %s", path);
	if (file_pread(fd, bytes, entry->length, entry->offset, path, err) < 0)
		return -1;
	const char *wrong = unpack(facts, entry, bytes, segment);
	if (wrong)
		return err_set(err, ERR_CORRUPT, "%s is damaged: %s (segment %" PRIu64 ")", path,
			wrong, entry->segment);
	segment->valid = true;
	return 0;
}

void sums_segment_run(const struct sums_facts *facts, const struct sums_segment *segment,
	unsigned at, uint64_t most, enum sums_kind *kind, uint64_t *nr,
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX])
{
	size_t leaf_bytes = digest_leaf_bytes(facts->algorithm);
	unsigned in_segment = sums_in_segment(facts, segment->number), end = at + 1;
	*kind = segment->kinds[at];
	while (*kind != SUMS_DATA && end < in_segment && end - at < most &&
		segment->kinds[end] == *kind)
		end++;
	*nr = end - at;
	if (*kind == SUMS_DATA)
		memcpy(leaf, segment->leaves + at * leaf_bytes, leaf_bytes);
}
