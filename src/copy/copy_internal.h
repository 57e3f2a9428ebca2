/*
 * Inside of the copy room.
 *
 *   work      what is left to copy: the source's map, cut into items, for all lanes
 *   piece     what one buffer holds: gaps, zeros, digests
 *   journal   what a lane wrote and did not flush yet, to write it again after a loss
 *   lane      one thread: its connections, its slots, its loop
 *   copy      choosing sizes, starting and ending the lanes
 */
#ifndef SENDENSE_COPY_INTERNAL_H
#define SENDENSE_COPY_INTERNAL_H

#include "copy.h"

#define COPY_LANES_MAX 32u
#define COPY_SLOTS_MAX 64u
#define COPY_PIECE_BYTES_MAX (4u << 20)

/* Gaps between data shorter than this are read over: one more request costs
 * more than the bytes. */
#define COPY_GAP_BYTES (32u << 10)
#define COPY_SPANS_MAX (COPY_PIECE_BYTES_MAX / COPY_GAP_BYTES + 2)

/* Zeros are told from data in units of at least 4 KiB. */
#define COPY_ZERO_UNIT_MIN 4096u
#define COPY_ZERO_UNITS_MAX (COPY_PIECE_BYTES_MAX / COPY_ZERO_UNIT_MIN)
#define COPY_CHUNKS_MAX (COPY_PIECE_BYTES_MAX / DIGEST_CHUNK_BYTES)

/* Bytes [start, end) of an item. */
struct copy_span {
	uint32_t start, end;
};

/* A unit of work; offset is on a chunk's start. */
struct copy_item {
	uint64_t offset, length;
	bool unchanged; /* passed over: neither read nor written, any length */
	bool zero; /* reads as zeros: not read, any length; else at most a piece */
	bool again; /* after a loss: the figures have it already */
	unsigned nr_spans;
	struct copy_span spans[COPY_SPANS_MAX]; /* what is read: sorted, disjoint */
};

/* --- work ------------------------------------------------------------------- */

/* Extents that one question gets at most, and that are kept.  No question is
 * asked while more than one answer is kept; an unchanged extent becomes at most
 * three: the unchanged units, and what is left before and behind them. */
#define WORK_ASK_EXTENTS 4096u
#define WORK_KEPT_EXTENTS (4 * WORK_ASK_EXTENTS)

enum work_answer {
	WORK_ITEM, /* here it is */
	WORK_WAIT, /* another lane is asking for the map; work_mapped() wakes */
	WORK_LATER, /* the rate limit says: not before *later */
	WORK_END, /* nothing is left */
};

struct work_question {
	uint64_t offset, length; /* length 0: nothing to ask */
};

/* Shared by all lanes; functions take the lock themselves. */
struct work {
	pthread_mutex_t mutex;
	uint64_t size_bytes;
	uint64_t unit_bytes; /* items start and end on its multiples: chunks and granules */
	uint64_t piece_bytes; /* a multiple of it */
	uint64_t rate_bytes_per_s;
	bool changed_only; /* BLOCK_UNCHANGED is heeded */
	int64_t next_ns; /* the rate limit's earliest next item */

	uint64_t at; /* cut up to here */
	uint64_t mapped; /* the map is known up to here */
	uint64_t changed_to; /* the end of the last changed extent before `mapped` */
	bool asking;
	uint64_t ask_bytes;
	int64_t asked_ns;
	unsigned first, nr; /* ring of extents from `at` to `mapped` */
	struct block_extent extents[WORK_KEPT_EXTENTS]; /* flags: 0, ZERO or UNCHANGED */
	int wake_fds[COPY_LANES_MAX]; /* event descriptors of the lanes */
	uint32_t waiting; /* bit: that lane waits for the map */
};

/* With changed_only whole units of BLOCK_UNCHANGED become items of that kind. */
void work_init(struct work *work, uint64_t size_bytes, uint64_t unit_bytes, uint64_t piece_bytes,
	uint64_t rate_bytes_per_s, bool changed_only);
void work_destroy(struct work *work);

/*
 * The next item for that lane.  When question->length comes back set, the lane
 * must ask the source and hand the answer to work_mapped(), whatever else the
 * call says.
 */
enum work_answer work_next(struct work *work, unsigned lane, struct copy_item *item,
	struct work_question *question, struct deadline *later);

/* The answer, at least one extent from the question's offset on. */
void work_mapped(struct work *work, const struct block_extent *extents, size_t nr);

/* Bytes that are read outside of work_next() count for the rate limit as well. */
void work_charge(struct work *work, uint64_t bytes);

/* --- piece ------------------------------------------------------------------ */

/* What was found in a buffer. */
struct piece {
	uint64_t zero_units[COPY_ZERO_UNITS_MAX / 64]; /* bit: the unit is all zeros */
	uint64_t zero_chunks;
	uint64_t same_chunks; /* the target has them already: need not be written */
	uint8_t leaves[COPY_CHUNKS_MAX * DIGEST_LEAF_BYTES_MAX];
};

/* How to look at pieces: the same for the whole run. */
struct piece_plan {
	uint32_t unit_bytes; /* zeros are found in units of 4 KiB..64 KiB */
	uint32_t granule_bytes; /* >= unit; a granule with any data is written whole */
	uint32_t shortest_zero; /* shorter runs of zeros are sent as data */
	const struct digest_key *key; /* may be NULL */
};

/*
 * Fills the gaps between the spans with zeros where a chunk has data too, looks
 * at every byte that was read, and computes the leaves.
 */
void piece_examine(const struct piece_plan *plan, const struct copy_item *item, uint8_t *buffer,
	struct piece *piece);

/*
 * Takes the baseline's answer: the chunks that need not be written.  Where a
 * granule is larger than a chunk, those of a granule with any other chunk are.
 */
void piece_set_same(
	const struct piece_plan *plan, struct piece *piece, uint64_t length, uint64_t same);

enum run_kind {
	RUN_DATA,
	RUN_ZERO,
	RUN_SAME, /* the target has it */
};

/* The run of one kind at `start` of an item of that length; returns its end. */
uint64_t piece_run(const struct piece_plan *plan, const struct piece *piece, uint64_t length,
	uint64_t start, enum run_kind *kind);

/* The bytes of zero chunks in [start, end), on chunk borders, of an item of that length. */
uint64_t piece_zero_bytes(const struct piece *piece, uint64_t length, uint64_t start, uint64_t end);

/* --- journal ---------------------------------------------------------------- */

#define JOURNAL_ENTRIES_MAX 4096u
#define JOURNAL_FLUSH_BYTES (256u << 20)
/* After each loss a flush comes four times sooner, down to 1 MiB, until one was
 * answered: a connection that breaks often gets on all the same. */
#define JOURNAL_SHIFT_MAX 8u
#define JOURNAL_LOSSES_MAX 20u

struct journal_entry {
	uint64_t offset, length;
	bool zero;
};

/* One lane's, used by its thread alone. */
struct journal {
	unsigned nr, nr_flushing, nr_lost;
	uint64_t bytes; /* of data, since the last flush was sent */
	unsigned flush_shift; /* of JOURNAL_FLUSH_BYTES */
	unsigned nr_losses; /* since the last flush that was answered */
	struct journal_entry entries[JOURNAL_ENTRIES_MAX];
	struct journal_entry lost[JOURNAL_ENTRIES_MAX]; /* to be copied again */
};

/* May one more new item be started?  One that comes from here always may. */
bool journal_has_room(const struct journal *journal);
/* That item is written; or parts of it before a loss and parts after. */
void journal_add(struct journal *journal, const struct copy_item *item, bool lost);
/* So much is written that a flush is due. */
bool journal_wants_flush(const struct journal *journal);
/* A flush is sent: what is in now is safe once it is answered ... */
void journal_flush_begin(struct journal *journal);
void journal_flush_end(struct journal *journal);
/* ... unless a loss came between: then all that is in goes to be copied again. */
void journal_lose(struct journal *journal);
/* That happened so often, with nothing kept in between, that it will not end. */
bool journal_is_hopeless(const struct journal *journal);
/* The next item to copy again, or false. */
bool journal_take(struct journal *journal, struct copy_item *item);

/* --- lanes ------------------------------------------------------------------ */

/* One call of copy_run(). */
struct run;

enum lane_state { LANE_OPENING, LANE_OPEN, LANE_ENDED };

struct lane {
	struct run *run;
	unsigned index;
	pthread_t thread;
	struct cancel *cancel; /* this lane's own */
	int wake_fd;
	enum lane_state state; /* under the run's mutex */
	bool surplus; /* still opening when the work was done */
	bool wanted; /* else it waits for run_want_all() */
};

struct run {
	struct block *source, *target; /* target NULL: scan */
	const struct copy_options *options;
	struct copy_progress *progress; /* never NULL */
	struct copy_progress own_progress;
	struct piece_plan pieces;
	bool skip_zeros; /* the target needs no zeros written */
	bool journalled; /* the target may lose what was not flushed */
	uint64_t zero_bytes_max; /* of one request */
	unsigned nr_slots; /* at most, of each lane */
	unsigned nr_slots_first; /* so many to begin with */
	unsigned nr_lanes;
	unsigned nr_lanes_first; /* the others wait until they are wanted */
	struct work work;

	pthread_mutex_t mutex;
	int ended_fd; /* event: a lane ended */
	unsigned nr_opening, nr_open, nr_running; /* under mutex, as the rest */
	bool failed, warned, all_wanted;
	struct err err; /* the first error */
	struct err open_err; /* of the first lane that could not be opened */
	struct lane lanes[COPY_LANES_MAX];
};

/* A lane's thread; arg is its struct lane. */
void *lane_main(void *arg);

/* The first error wins; all lanes are told to stop. */
void run_fail(struct run *run, const struct err *err);

/* No work is left: lanes that are still opening are not needed any more. */
void run_no_more_work(struct run *run);

/* The lanes that are there have all they can in flight, and still wait. */
void run_want_all(struct run *run);
/* A lane that starts late waits here; false: not needed any more. */
bool run_wait_wanted(struct lane *lane);

/* A lane is open (false: not needed any more), or could not be opened. */
bool run_lane_opened(struct lane *lane);
void run_lane_not_opened(struct lane *lane, const struct err *why);
/* The last thing that a lane's thread does. */
void run_lane_ended(struct lane *lane);

#endif
