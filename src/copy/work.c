/*
 * What is left to copy.
 *
 *      0            at                  mapped                        size
 *      |  cut, in   | extents, known,   | not asked yet; one lane at  |
 *      |  lanes     | a bounded ring    | a time asks for a part of it|
 *
 * The map is asked for in ranges as copying goes on: a small first one, so that
 * the first byte does not wait, then twice as much each time while answers come
 * quickly.  A lane asks with its own connection while the others go on with
 * what is known already.
 *
 * What is unchanged is rounded inwards to units as it comes in, and joined there
 * whatever else is said of it:
 *
 *      unit            |               |               |               |
 *      told  changed   |    unchanged, zeros   unchanged, data    | changed
 *      kept  data           | zeros    | UNCHANGED     | data
 *
 * The last unit of an unchanged stretch may be whole only with the next extent:
 * it is kept as data and zeros until then, and no item ends within it.
 */
#include "copy_internal.h"

#include <assert.h>
#include <string.h>

#define ASK_FIRST_BYTES (128 * MIB)
#define ASK_LEAST_BYTES (16 * MIB)
#define ASK_MOST_BYTES TIB
#define QUICK_NS 500000000
#define SLOW_NS 2000000000
/* A run of zeros is handed out in parts of this size, so that figures move. */
#define ZERO_ITEM_BYTES GIB
/* What the rate limit lets a lane catch up after a pause. */
#define RATE_CATCH_UP_NS 100000000

void work_init(struct work *work, uint64_t size_bytes, uint64_t unit_bytes, uint64_t piece_bytes,
	uint64_t rate_bytes_per_s, bool changed_only)
{
	assert(piece_bytes % unit_bytes == 0 && piece_bytes <= COPY_PIECE_BYTES_MAX);
	memset(work, 0, sizeof *work);
	pthread_mutex_init(&work->mutex, NULL);
	work->size_bytes = size_bytes;
	work->unit_bytes = unit_bytes;
	work->piece_bytes = piece_bytes;
	work->rate_bytes_per_s = rate_bytes_per_s;
	work->changed_only = changed_only;
	work->ask_bytes = ASK_FIRST_BYTES;
}

void work_destroy(struct work *work)
{
	pthread_mutex_destroy(&work->mutex);
}

static struct block_extent *extent_at(struct work *work, unsigned i)
{
	return &work->extents[(work->first + i) % WORK_KEPT_EXTENTS];
}

/* A hole that is not said to read as zeros is read like data. */
static bool reads_zero(const struct block_extent *extent)
{
	return extent->flags & BLOCK_ZERO;
}

/* Drops what was cut from the ring's head. */
static void advance(struct work *work, uint64_t bytes)
{
	work->at += bytes;
	while (bytes > 0) {
		struct block_extent *e = extent_at(work, 0);
		uint64_t n = min_u64(bytes, e->length);
		e->length -= n;
		bytes -= n;
		if (e->length == 0) {
			work->first = (work->first + 1) % WORK_KEPT_EXTENTS;
			work->nr--;
		}
	}
}

/* The largest end <= pos that an item may have; the disk's end is one too. */
static uint64_t item_end(const struct work *work, uint64_t pos)
{
	return pos == work->size_bytes ? pos : round_down(pos, work->unit_bytes);
}

static bool cut_unchanged(struct work *work, struct copy_item *item)
{
	const struct block_extent *e = extent_at(work, 0);
	if (work->nr == 0 || !(e->flags & BLOCK_UNCHANGED))
		return false;
	item->unchanged = true;
	item->length = e->length;
	return true;
}

static bool cut_zeros(struct work *work, struct copy_item *item)
{
	const struct block_extent *e = extent_at(work, 0);
	if (work->nr == 0 || !reads_zero(e))
		return false;
	uint64_t end = item_end(work, work->at + min_u64(e->length, ZERO_ITEM_BYTES));
	if (end <= work->at)
		return false;
	item->zero = true;
	item->length = end - work->at;
	return true;
}

static void add_span(struct copy_item *item, uint64_t start, uint64_t end)
{
	uint32_t s = (uint32_t)(start - item->offset), e = (uint32_t)(end - item->offset);
	struct copy_span *last = item->nr_spans ? &item->spans[item->nr_spans - 1] : NULL;
	if (last && s - last->end < COPY_GAP_BYTES) {
		last->end = e;
		return;
	}
	assert(item->nr_spans < COPY_SPANS_MAX);
	item->spans[item->nr_spans++] = (struct copy_span){s, e};
}

/* Up to a piece of data with small holes; it ends early where zeros begin that
 * are worth an item of their own. */
static bool cut_data(struct work *work, struct copy_item *item)
{
	uint64_t limit = min_u64(
		round_down(work->at, work->piece_bytes) + work->piece_bytes, work->size_bytes);
	limit = min_u64(limit, item_end(work, work->mapped));
	if (limit <= work->at)
		return false;
	uint64_t long_zeros = max_u64(work->unit_bytes, work->piece_bytes / 2);
	uint64_t at = work->at;
	for (unsigned i = 0; at < limit; i++) {
		const struct block_extent *e = extent_at(work, i);
		uint64_t end = at + e->length;
		if (e->flags & BLOCK_UNCHANGED) {
			limit = min_u64(limit, at);
		} else if (!reads_zero(e)) {
			add_span(item, at, min_u64(end, limit));
		} else {
			uint64_t zeros = round_up(at, work->unit_bytes);
			uint64_t zeros_end = item_end(work, end);
			if (zeros < limit && zeros_end > zeros && zeros_end - zeros >= long_zeros)
				limit = zeros;
		}
		at = end;
	}
	item->length = limit - item->offset;
	return true;
}

static uint64_t bytes_to_read(const struct copy_item *item)
{
	uint64_t bytes = 0;
	for (unsigned i = 0; i < item->nr_spans; i++)
		bytes += item->spans[i].end - item->spans[i].start;
	return bytes;
}

static void charge(struct work *work, uint64_t bytes)
{
	if (work->rate_bytes_per_s == 0)
		return;
	int64_t earliest = clock_now_ns() - RATE_CATCH_UP_NS;
	if (work->next_ns < earliest)
		work->next_ns = earliest;
	work->next_ns += (int64_t)((double)bytes * 1e9 / (double)work->rate_bytes_per_s);
}

void work_charge(struct work *work, uint64_t bytes)
{
	WITH_LOCK(&work->mutex);
	charge(work, bytes);
}

static bool too_early(const struct work *work)
{
	return work->rate_bytes_per_s != 0 && work->next_ns > clock_now_ns();
}

/* Decides whether the caller is to ask for the next part of the map. */
static void maybe_ask(struct work *work, struct work_question *question)
{
	question->length = 0;
	if (work->asking || work->mapped == work->size_bytes)
		return;
	if (work->nr > WORK_ASK_EXTENTS)
		return;
	if (work->mapped - work->at > work->ask_bytes / 2)
		return;
	question->offset = work->mapped;
	question->length = min_u64(work->ask_bytes, work->size_bytes - work->mapped);
	work->asking = true;
	work->asked_ns = clock_now_ns();
}

enum work_answer work_next(struct work *work, unsigned lane, struct copy_item *item,
	struct work_question *question, struct deadline *later)
{
	WITH_LOCK(&work->mutex);
	maybe_ask(work, question);
	if (work->at == work->size_bytes)
		return WORK_END;
	if (too_early(work)) {
		later->at_ns = work->next_ns;
		return WORK_LATER;
	}
	item->offset = work->at;
	item->nr_spans = 0;
	item->unchanged = item->zero = item->again = false;
	if (!cut_unchanged(work, item) && !cut_zeros(work, item) && !cut_data(work, item)) {
		assert(work->asking);
		work->waiting |= 1u << lane;
		return WORK_WAIT;
	}
	advance(work, item->length);
	charge(work, bytes_to_read(item));
	return WORK_ITEM;
}

/* Larger questions while answers are quick and the extents fit; else smaller.
 * A server may count far more extents than fit: that is lost work. */
static void adapt(struct work *work, uint64_t answered, size_t nr)
{
	int64_t took_ns = clock_now_ns() - work->asked_ns;
	if (nr == WORK_ASK_EXTENTS && answered < work->ask_bytes / 4)
		work->ask_bytes = max_u64(answered * 2, ASK_LEAST_BYTES);
	if (took_ns > SLOW_NS)
		work->ask_bytes = max_u64(work->ask_bytes / 2, ASK_LEAST_BYTES);
	else if (took_ns < QUICK_NS && answered >= work->ask_bytes && nr < WORK_ASK_EXTENTS / 2)
		work->ask_bytes = min_u64(work->ask_bytes * 2, ASK_MOST_BYTES);
}

static void wake_waiting(struct work *work)
{
	for (unsigned lane = 0; work->waiting != 0; lane++, work->waiting >>= 1) {
		uint64_t one = 1;
		ssize_t n = 0;
		if (work->waiting & 1)
			n = write(work->wake_fds[lane], &one, sizeof one);
		(void)n; /* only full counters fail, and those are readable */
	}
}

/* Puts one extent behind those that are known, joined with its like. */
static void push(struct work *work, uint64_t length, uint32_t flags)
{
	struct block_extent *last = work->nr ? extent_at(work, work->nr - 1) : NULL;
	if (length == 0)
		return;
	work->mapped += length;
	/* Crumbs count as data: else a source of many of them could fill the ring
	 * before a whole item is known. */
	bool crumb = length < COPY_ZERO_UNIT_MIN && work->mapped != work->size_bytes;
	if (flags == BLOCK_ZERO && crumb && !(last && reads_zero(last)))
		flags = 0;
	if (last && last->flags == flags) {
		last->length += length;
		return;
	}
	assert(work->nr < WORK_KEPT_EXTENTS);
	*extent_at(work, work->nr++) = (struct block_extent){length, flags};
}

/* Takes the last bytes back, none of which was cut. */
static void pull(struct work *work, uint64_t bytes)
{
	work->mapped -= bytes;
	while (bytes > 0) {
		struct block_extent *last = extent_at(work, work->nr - 1);
		uint64_t n = min_u64(bytes, last->length);
		last->length -= n;
		bytes -= n;
		work->nr -= last->length == 0;
	}
}

static void append(struct work *work, const struct block_extent *extent)
{
	uint32_t flags = extent->flags & BLOCK_ZERO;
	if (!work->changed_only || !(extent->flags & BLOCK_UNCHANGED)) {
		push(work, extent->length, flags);
		work->changed_to = work->mapped;
		return;
	}
	/* From here on all is unchanged, up to the end of this extent. */
	uint64_t from = round_up(work->changed_to, work->unit_bytes);
	uint64_t end = work->mapped + extent->length;
	if (from > work->mapped)
		push(work, min_u64(from, end) - work->mapped, flags);
	else if (item_end(work, end) > work->mapped)
		pull(work, work->mapped - item_end(work, work->mapped));
	if (item_end(work, end) > work->mapped)
		push(work, item_end(work, end) - work->mapped, BLOCK_UNCHANGED);
	push(work, end - work->mapped, flags);
}

void work_mapped(struct work *work, const struct block_extent *extents, size_t nr)
{
	WITH_LOCK(&work->mutex);
	assert(work->asking && nr > 0 && nr <= WORK_ASK_EXTENTS);
	uint64_t before = work->mapped;
	for (size_t i = 0; i < nr; i++) {
		assert(extents[i].length <= work->size_bytes - work->mapped);
		append(work, &extents[i]);
	}
	uint64_t answered = work->mapped - before;
	work->asking = false;
	adapt(work, answered, nr);
	wake_waiting(work);
}
