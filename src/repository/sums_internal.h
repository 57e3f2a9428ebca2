/* sums: the file's layout, shared by writer and reader; drawn in docs/repository-format.md. */
#ifndef SENDENSE_SUMS_INTERNAL_H
#define SENDENSE_SUMS_INTERNAL_H

#include "sums.h"

#include <xxhash.h>

#define SUMS_VERSION 1u
#define SUMS_BLOCK 512u /* header, trailer, alignment of segments */
#define SUMS_ENTRY 40u
#define SUMS_SEGMENT_HEAD 32u
#define SUMS_KINDS (SUMS_SEGMENT_CHUNKS / 4)
#define SUMS_SEGMENT_MOST \
	(SUMS_SEGMENT_HEAD + SUMS_KINDS + SUMS_SEGMENT_CHUNKS * DIGEST_LEAF_BYTES_MAX)

/* One segment, unpacked. */
struct sums_segment {
	uint64_t number;
	uint64_t last_used;
	bool valid, changed;
	uint8_t kinds[SUMS_SEGMENT_CHUNKS];
	uint8_t leaves[]; /* SUMS_SEGMENT_CHUNKS leaves, each in its place */
};

/* An entry of the index. */
struct sums_entry {
	uint64_t segment;
	uint64_t offset;
	uint32_t length;
	uint32_t nr_data, nr_zero;
	uint64_t check;
};

static inline uint64_t sums_nr_chunks(const struct sums_facts *facts)
{
	return div_round_up(facts->size_bytes, DIGEST_CHUNK_BYTES);
}

static inline uint64_t sums_nr_segments(const struct sums_facts *facts)
{
	return div_round_up(sums_nr_chunks(facts), SUMS_SEGMENT_CHUNKS);
}

/* Chunks that a segment has; fewer in the last. */
static inline unsigned sums_in_segment(const struct sums_facts *facts, uint64_t segment)
{
	return (unsigned)min_u64(
		SUMS_SEGMENT_CHUNKS, sums_nr_chunks(facts) - segment * SUMS_SEGMENT_CHUNKS);
}

/* Allocates room for one of them. */
struct sums_segment *sums_segment_new(const struct sums_facts *facts);

/* Packs into bytes (SUMS_SEGMENT_MOST), fills entry's length and counts; then, when
 * its slot is known, capacity and checksum. */
void sums_segment_pack(const struct sums_facts *facts, const struct sums_segment *segment,
	uint8_t *bytes, struct sums_entry *entry);
void sums_segment_seal(uint8_t *bytes, uint32_t capacity, struct sums_entry *entry);

/* Reads and checks the segment that entry names; offset 0 is one of all zeros. */
int sums_segment_load(const struct sums_facts *facts, int fd, const char *path,
	const struct sums_entry *entry, struct sums_segment *segment, struct err *err);

#endif
