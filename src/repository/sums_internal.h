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
	bool unfinished; /* the file: then it may hold SUMS_SAME */
	bool has_same; /* found, or packed */
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

/* Fills entry (but its offset) and the segment from bytes that claim to be one: false when
 * anything about them is wrong.  The bytes of its checksum are zeroed. */
bool sums_segment_parse(const struct sums_facts *facts, uint8_t *bytes, size_t length,
	struct sums_entry *entry, uint32_t *capacity, struct sums_segment *segment);

/* What chunk `at` of a segment is, with its leaf, or how many (up to most) alike follow it there.
 */
void sums_segment_run(const struct sums_facts *facts, const struct sums_segment *segment,
	unsigned at, uint64_t most, enum sums_kind *kind, uint64_t *nr,
	uint8_t leaf[DIGEST_LEAF_BYTES_MAX]);

/* --- reading: sums_read.c, sums_merged.c ------------------------------------------- */

#define SUMS_OWN_SEGMENTS 2u

struct sums_page;
struct sums_merged;

struct sums_reader {
	struct sums_facts facts;
	struct sums_totals totals;
	struct sums_reader *parent;
	char *path;
	int fd;
	uint64_t index_offset, nr_entries;
	struct sums_page *pages; /* of the index */
	uint64_t nr_pages;
	pthread_mutex_t mutex; /* over what follows */
	uint8_t *window; /* the page that was used last */
	uint64_t window_page; /* UINT64_MAX: none */
	struct sums_segment *own[SUMS_OWN_SEGMENTS]; /* of this file alone, made on demand */
	uint64_t clock;
	struct sums_merged *merged; /* over the whole chain, made on demand */
};

/* Fills segment from this file, if it tells of that number; *next is the first number that it
 * tells of, from this on (UINT64_MAX: none). */
int sums_read_segment(struct sums_reader *reader, uint64_t number, struct sums_segment *segment,
	uint64_t *next, struct err *err);
void sums_merged_free(struct sums_merged *merged);

/* --- unfinished files: sums_slots.c, sums_scan.c --------------------------------- */

/* Behind a segment, in its slot: when it was written, and a checksum over that and the
 * segment's own. */
#define SUMS_SEAL 16u
#define SUMS_SLOT_MOST (round_up(SUMS_SEGMENT_MOST + SUMS_SEAL, SUMS_BLOCK))

/* A list of segments that are SUMS_ZERO, or SUMS_SAME, from end to end. */
#define SUMS_LIST_HEAD 32u
#define SUMS_LIST_RUN 16u
#define SUMS_LIST_RUNS_MOST 1024u

/* Where a segment lies. */
struct sums_slot {
	uint64_t offset; /* 0: nowhere */
	uint64_t check;
	uint64_t sequence; /* of its last write; 0: never told */
	uint32_t capacity, length;
	uint16_t nr_data, nr_zero;
	bool has_same;
	uint8_t whole; /* SUMS_ZERO, SUMS_SAME: all of it is that, and lies nowhere; else 0 */
};

/* Whether anything was told of its segment and stored; slot may be NULL. */
static inline bool sums_slot_told(const struct sums_slot *slot)
{
	return slot && (slot->whole || slot->length > 0);
}

struct sums_space {
	uint64_t offset;
	uint32_t capacity;
};

struct sums_spaces {
	struct sums_space *items;
	size_t nr, room;
};

#define SUMS_SPACE_CLASSES 8u

/* The slots of a file that is being written.  The writer's mutex covers it. */
struct sums_slots {
	struct sums_slot **pages; /* made on demand: a disk of any size costs what it holds */
	uint64_t nr_pages;
	uint64_t end; /* of all slots */
	uint64_t sequence; /* of the last write */
	uint64_t durable; /* what was written up to here is not written over */
	uint32_t slot_bytes; /* of a segment that is full */
	struct sums_spaces free[SUMS_SPACE_CLASSES];
	struct sums_spaces superseded; /* free once what replaced them is durable */
};

int sums_slots_init(struct sums_slots *slots, const struct sums_facts *facts);
void sums_slots_destroy(struct sums_slots *slots);
/* NULL when nothing of the page was ever stored. */
struct sums_slot *sums_slots_find(const struct sums_slots *slots, uint64_t segment);
/* NULL without memory. */
struct sums_slot *sums_slots_make(struct sums_slots *slots, uint64_t segment);
/* Gives the slot a place for a write of length bytes (its seal not counted) that harms nothing
 * durable, and the next sequence number.  -1 without memory. */
int sums_slots_place(struct sums_slots *slots, struct sums_slot *slot, uint32_t length);
/* The slot lies nowhere any more.  -1 without memory. */
int sums_slots_leave(struct sums_slots *slots, struct sums_slot *slot);
/* Nothing uses this place. */
void sums_slots_free(struct sums_slots *slots, struct sums_space space);
/* A checkpoint: before the sync, nothing that was written so far is written over any more, and
 * what it superseded is given out; behind it, that is free (and the list itself freed). */
struct sums_spaces sums_slots_before_sync(struct sums_slots *slots);
void sums_slots_behind_sync(struct sums_slots *slots, struct sums_spaces *superseded);

/* Puts the seal behind entry->length bytes. */
void sums_seal_put(uint8_t *bytes, const struct sums_entry *entry, uint64_t sequence);

/* Segments that are of one kind from end to end. */
struct sums_run {
	uint64_t first, nr;
	enum sums_kind kind;
};
/* Packs nr runs of one kind into bytes (SUMS_SEGMENT_MOST); returns the length. */
uint32_t sums_list_pack(
	uint8_t *bytes, const struct sums_run *runs, unsigned nr, uint64_t sequence);

/* What a scan finds, in the order of the file. */
struct sums_found {
	bool is_list;
	struct sums_run run; /* of a list */
	struct sums_entry entry; /* else, with its offset */
	uint32_t capacity;
	uint64_t sequence;
	uint64_t end; /* of what it was found in */
};
typedef int sums_scan_callback(void *context, const struct sums_found *found, struct err *err);
/* Goes through an unfinished file: tells of all that its checksum holds for, and passes over
 * the rest. */
int sums_scan(const struct sums_facts *facts, int fd, const char *path,
	sums_scan_callback *callback, void *context, struct err *err);

#endif
