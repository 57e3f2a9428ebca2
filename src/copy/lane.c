/*
 * A lane: one thread with its own ways to both disks and a few slots.
 *
 *   slot:  free ─► reading ─► (examined) ─► writing ─► free
 *          an item with its buffer; zero items skip the reading
 *
 * The loop starts one item, then takes what is finished, and polls only when
 * neither moved.  On disks whose lanes do not queue, each request is finished
 * when it is submitted, so the same loop reads, looks and writes one piece after
 * the other without ever polling, and the bytes stay in the cache between.
 */
#include "copy_internal.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/mman.h>

/* Time that 64 KiB of an item take, divided by the items in flight with it: above the
 * first the link is slow and more are put in flight, below the second fewer. */
#define SLOW_CHUNK_NS 250000
#define QUICK_CHUNK_NS 125000

/* Requests that one slot has in flight: more wait for an answer. */
#define SLOT_REQUESTS 8u

struct slot {
	struct copy_item item;
	uint8_t *buffer;
	struct slot *next_free;
	bool writing;
	bool examined; /* piece says where the data is; else all of it is zeros */
	unsigned next_span; /* reading: spans asked for */
	uint64_t written; /* writing: asked for or skipped, up to here */
	uint64_t zero_bytes; /* found in it, and not sent as data */
	unsigned losses; /* the target lane's, when writing began */
	int64_t started_ns;
	unsigned nr_pending;
	unsigned free_requests; /* bits */
	struct block_io requests[SLOT_REQUESTS];
	struct piece piece;
};

/* What the thread alone uses. */
struct engine {
	struct lane *lane;
	struct run *run;
	struct block_lane *source, *target; /* target NULL: scan */
	struct slot *slots;
	uint8_t *buffers;
	size_t buffers_bytes;
	struct slot *free_slots; /* the one used last first: its buffer is in the cache */
	unsigned nr_busy, nr_busy_most;
	bool work_ended;
	struct deadline later; /* the rate limit's */

	struct block_io ask; /* for the map */
	struct block_extent *extents;

	struct journal *journal; /* NULL: the target does not lose what it took */
	struct block_io flush;
	bool flushing;
	unsigned losses, flush_losses; /* seen; and when the flush was sent */
	struct err err;
};

static void add(atomic_uint_fast64_t *figure, uint64_t n)
{
	atomic_fetch_add_explicit(figure, n, memory_order_relaxed);
}

/* --- slots ------------------------------------------------------------------ */

static struct block_io *take_request(struct slot *slot)
{
	if (slot->free_requests == 0)
		return NULL;
	unsigned i = (unsigned)__builtin_ctz(slot->free_requests);
	slot->free_requests &= slot->free_requests - 1;
	slot->nr_pending++;
	slot->requests[i].owner = slot;
	slot->requests[i].flags = 0;
	return &slot->requests[i];
}

static void give_request(struct slot *slot, const struct block_io *io)
{
	slot->free_requests |= 1u << (io - slot->requests);
	slot->nr_pending--;
}

static void submit_reads(struct engine *e, struct slot *slot)
{
	const struct copy_item *item = &slot->item;
	struct block_io *io;
	while (slot->next_span < item->nr_spans && (io = take_request(slot))) {
		const struct copy_span *span = &item->spans[slot->next_span++];
		io->op = BLOCK_OP_READ;
		io->offset = item->offset + span->start;
		io->length = span->end - span->start;
		io->buffer = slot->buffer + span->start;
		block_lane_submit(e->source, io);
	}
}

/* --- what the target has, and what the sink is told ------------------------- */

static const struct copy_chunk_sink *sink_of(const struct engine *e)
{
	const struct copy_options *options = e->run->options;
	return options->digest_key ? options->sink : NULL;
}

/*
 * The run at slot->written of an item of zeros: those that the target has as
 * zeros already, or those that it has not, which the sink is told; *end is its
 * end.
 */
static int zero_run(struct engine *e, struct slot *slot, enum run_kind *kind, uint64_t *end)
{
	const struct copy_baseline *baseline = e->run->options->baseline;
	const struct copy_chunk_sink *sink = sink_of(e);
	uint64_t length = slot->item.length, start = slot->written;
	uint64_t first = (slot->item.offset + start) / DIGEST_CHUNK_BYTES;
	uint64_t nr, nr_alike;
	bool same = false;

	*end = min_u64(length, start + e->run->zero_bytes_max);
	nr = nr_alike = div_round_up(*end - start, DIGEST_CHUNK_BYTES);
	if (baseline) {
		if (baseline->zeros(baseline->context, first, nr, &nr_alike, &same, &e->err) < 0)
			return -1;
		assert(nr_alike >= 1 && nr_alike <= nr);
		*end = min_u64(*end, start + nr_alike * DIGEST_CHUNK_BYTES);
	}
	*kind = same ? RUN_SAME : RUN_ZERO;
	if (same || !sink)
		return 0;
	return sink->zeros(sink->context, first, nr_alike, &e->err);
}

/* Tells of each run of those of the nr chunks that are not in `same`. */
static int tell_chunks(struct engine *e, const struct slot *slot, unsigned nr, uint64_t same)
{
	const struct copy_chunk_sink *sink = sink_of(e);
	uint64_t first = slot->item.offset / DIGEST_CHUNK_BYTES;
	for (unsigned i = 0, end; i < nr; i = end) {
		bool skip = same >> i & 1;
		for (end = i + 1; end < nr && (same >> end & 1) == skip;)
			end++;
		if (skip)
			continue;
		/* Bits beyond the run are left out. */
		uint64_t zero_mask = slot->piece.zero_chunks << (64 - end) >> (64 - end) >> i;
		if (sink->chunks(sink->context, first + i, end - i,
			    slot->piece.leaves + (size_t)i * DIGEST_LEAF_BYTES_MAX, zero_mask,
			    &e->err) < 0)
			return -1;
	}
	return 0;
}

/* All of the item is in the buffer: looks at it. */
static int examine(struct engine *e, struct slot *slot)
{
	const struct copy_baseline *baseline = e->run->options->baseline;
	const struct piece_plan *plan = &e->run->pieces;
	struct piece *piece = &slot->piece;
	unsigned nr = (unsigned)div_round_up(slot->item.length, DIGEST_CHUNK_BYTES);
	uint64_t first = slot->item.offset / DIGEST_CHUNK_BYTES, same = 0;

	piece_examine(plan, &slot->item, slot->buffer, piece);
	slot->examined = true;
	if (baseline) {
		if (baseline->chunks(baseline->context, first, nr, piece->leaves,
			    piece->zero_chunks, &same, &e->err) < 0)
			return -1;
		piece_set_same(plan, piece, slot->item.length, same);
	}
	return sink_of(e) ? tell_chunks(e, slot, nr, same) : 0;
}

/* --- writing ---------------------------------------------------------------- */

/* The run at slot->written; *end is its end. */
static int next_run(struct engine *e, struct slot *slot, enum run_kind *kind, uint64_t *end)
{
	const struct copy_item *item = &slot->item;
	if (!slot->examined && zero_run(e, slot, kind, end) < 0)
		return -1;
	if (slot->examined)
		*end = piece_run(&e->run->pieces, &slot->piece, item->length, slot->written, kind);
	if (*kind == RUN_ZERO || !slot->examined)
		slot->zero_bytes += *end - slot->written;
	else if (*kind == RUN_SAME)
		slot->zero_bytes +=
			piece_zero_bytes(&slot->piece, item->length, slot->written, *end);
	return 0;
}

static int submit_writes(struct engine *e, struct slot *slot)
{
	const struct copy_item *item = &slot->item;
	while (slot->written < item->length && slot->free_requests != 0) {
		enum run_kind kind;
		uint64_t start = slot->written, end;
		if (next_run(e, slot, &kind, &end) < 0)
			return -1;
		slot->written = end;
		if (!e->target || kind == RUN_SAME || (kind == RUN_ZERO && e->run->skip_zeros))
			continue;
		if (!slot->examined) {
			/* Whole granules: the zeros beside it are zeros there too. */
			start = round_down(start, e->run->pieces.granule_bytes);
			end = min_u64(round_up(end, e->run->pieces.granule_bytes), item->length);
		}
		struct block_io *io = take_request(slot);
		io->op = kind == RUN_ZERO ? BLOCK_OP_ZERO : BLOCK_OP_WRITE;
		io->offset = item->offset + start;
		io->length = end - start;
		io->buffer = kind == RUN_ZERO ? NULL : slot->buffer + start;
		block_lane_submit(e->target, io);
	}
	return 0;
}

/* Puts more or fewer items in flight, as the link asks for it. */
static void adapt(struct engine *e, const struct slot *slot)
{
	const struct run *run = e->run;
	if (run->nr_slots == 1 || slot->item.zero)
		return;
	int64_t nr_chunks = (int64_t)div_round_up(slot->item.length, DIGEST_CHUNK_BYTES);
	int64_t chunk_ns = (clock_now_ns() - slot->started_ns) / e->nr_busy / nr_chunks;
	if (chunk_ns > SLOW_CHUNK_NS && e->nr_busy == e->nr_busy_most) {
		if (e->nr_busy_most < run->nr_slots)
			e->nr_busy_most++;
		else
			run_want_all(e->run);
	} else if (chunk_ns < QUICK_CHUNK_NS && e->nr_busy_most > run->nr_slots_first) {
		e->nr_busy_most--;
	}
}

static void finish(struct engine *e, struct slot *slot)
{
	adapt(e, slot);
	if (!slot->item.again) {
		add(&e->run->progress->logical, slot->item.length);
		add(&e->run->progress->zeros_skipped, slot->zero_bytes);
	}
	if (e->journal)
		journal_add(e->journal, &slot->item, slot->losses != e->losses);
	slot->next_free = e->free_slots;
	e->free_slots = slot;
	e->nr_busy--;
}

static int begin_writing(struct engine *e, struct slot *slot)
{
	slot->writing = true;
	slot->losses = e->losses;
	return slot->item.zero ? 0 : examine(e, slot);
}

/* Does what can be done for the slot now. */
static int advance(struct engine *e, struct slot *slot)
{
	if (!slot->writing) {
		submit_reads(e, slot);
		if (slot->nr_pending > 0)
			return 0;
		if (begin_writing(e, slot) < 0)
			return -1;
	}
	if (submit_writes(e, slot) < 0)
		return -1;
	if (slot->nr_pending == 0 && slot->written == slot->item.length)
		finish(e, slot);
	return 0;
}

static int start(struct engine *e, struct slot *slot)
{
	e->free_slots = slot->next_free;
	e->nr_busy++;
	slot->writing = slot->examined = false;
	slot->next_span = 0;
	slot->written = slot->zero_bytes = 0;
	slot->started_ns = e->run->nr_slots > 1 ? clock_now_ns() : 0;
	return advance(e, slot);
}

/* --- finished requests ------------------------------------------------------ */

static int slot_done(struct engine *e, struct block_io *io)
{
	struct slot *slot = io->owner;
	give_request(slot, io);
	if (io->op == BLOCK_OP_READ)
		add(&e->run->progress->read, io->length);
	else if (io->op == BLOCK_OP_WRITE)
		add(&e->run->progress->sent, io->length);
	return advance(e, slot);
}

static int done(struct engine *e, struct block_io *io)
{
	if (io->err.code != ERR_NONE)
		return err_copy(&e->err, &io->err); /* drivers name the offset */
	if (io == &e->ask) {
		work_mapped(&e->run->work, e->extents, io->nr_extents);
		return 0;
	}
	if (io == &e->flush) {
		e->flushing = false;
		if (block_lane_losses(e->target) == e->flush_losses)
			journal_flush_end(e->journal);
		return 0;
	}
	return slot_done(e, io);
}

static int reap(struct engine *e, struct block_lane *lane, bool *moved)
{
	struct block_io *io;
	while (lane && (io = block_lane_reap(lane))) {
		*moved = true;
		if (done(e, io) < 0)
			return -1;
	}
	return 0;
}

/* Everything that was answered before a loss has been reaped by now, so the
 * journal holds all that it may have hit. */
static int check_losses(struct engine *e)
{
	if (!e->journal || block_lane_losses(e->target) == e->losses)
		return 0;
	e->losses = block_lane_losses(e->target);
	journal_lose(e->journal);
	if (!journal_is_hopeless(e->journal))
		return 0;
	return err_set(&e->err, ERR_DISCONNECTED,
		"cannot write to %s: its connection was lost %u times, and each time what was "
		"written before had to be written again",
		block_label(e->run->target), JOURNAL_LOSSES_MAX);
}

/* --- the loop --------------------------------------------------------------- */

static void ask(struct engine *e, const struct work_question *question)
{
	e->ask.op = BLOCK_OP_EXTENTS;
	e->ask.offset = question->offset;
	e->ask.length = question->length;
	e->ask.buffer = e->extents;
	e->ask.nr_extents = WORK_ASK_EXTENTS;
	block_lane_submit(e->source, &e->ask);
}

/* Starts one item if there is one and a slot for it. */
static int start_next(struct engine *e, bool *moved)
{
	struct slot *slot = e->free_slots;
	if (!slot || e->nr_busy >= e->nr_busy_most)
		return 0;
	if (e->journal && journal_take(e->journal, &slot->item)) {
		work_charge(&e->run->work, slot->item.zero ? 0 : slot->item.length);
		*moved = true;
		return start(e, slot);
	}
	if (e->work_ended || (e->journal && !journal_has_room(e->journal)))
		return 0;
	struct work_question question;
	enum work_answer answer =
		work_next(&e->run->work, e->lane->index, &slot->item, &question, &e->later);
	if (question.length > 0) {
		ask(e, &question);
		*moved = true;
	}
	if (answer == WORK_END) {
		e->work_ended = true;
		run_no_more_work(e->run);
	}
	if (answer != WORK_ITEM)
		return 0;
	*moved = true;
	if (slot->item.unchanged) {
		add(&e->run->progress->logical, slot->item.length);
		return 0;
	}
	return start(e, slot);
}

static void flush_when_due(struct engine *e)
{
	if (!e->journal || e->flushing || e->journal->nr == 0)
		return;
	bool last = e->work_ended && e->nr_busy == 0 && e->journal->nr_lost == 0;
	if (!last && !journal_wants_flush(e->journal))
		return;
	journal_flush_begin(e->journal);
	e->flushing = true;
	e->flush_losses = block_lane_losses(e->target);
	e->flush.op = BLOCK_OP_FLUSH;
	block_lane_submit(e->target, &e->flush);
}

static bool all_done(const struct engine *e)
{
	if (!e->work_ended || e->nr_busy > 0)
		return false;
	return !e->journal || (!e->flushing && e->journal->nr == 0 && e->journal->nr_lost == 0);
}

static void dispatch(struct block_lane *lane, short revents, struct deadline wake)
{
	if (lane && (revents || deadline_passed(wake)))
		block_lane_dispatch(lane, revents);
}

static int wait(struct engine *e)
{
	struct pollfd fds[4] = {
		{.fd = cancel_fd(e->lane->cancel), .events = POLLIN},
		{.fd = e->lane->wake_fd, .events = POLLIN},
		{.fd = -1},
		{.fd = -1},
	};
	struct block_lane *lanes[2] = {e->source, e->target};
	struct deadline wakes[2], until = deadline_after_ms(INT32_MAX);
	for (unsigned i = 0; i < 2; i++) {
		wakes[i] = until;
		if (!lanes[i] || block_lane_in_flight(lanes[i]) == 0)
			continue;
		fds[2 + i] = block_lane_pollfd(lanes[i]);
		wakes[i] = block_lane_wake(lanes[i]);
	}
	until = deadline_min(until, deadline_min(wakes[0], wakes[1]));
	if (e->later.at_ns != 0)
		until = deadline_min(until, e->later);
	e->later.at_ns = 0;
	if (poll(fds, 4, deadline_left_ms(until)) < 0 && errno != EINTR)
		return err_errno(&e->err, errno, "cannot wait for the disks");
	if (fds[1].revents) {
		uint64_t count;
		ssize_t n = read(e->lane->wake_fd, &count, sizeof count);
		(void)n; /* another wake-up may have been taken before */
	}
	dispatch(lanes[0], fds[2].revents, wakes[0]);
	dispatch(lanes[1], fds[3].revents, wakes[1]);
	return 0;
}

static int loop(struct engine *e)
{
	for (;;) {
		bool moved = false;
		if (cancel_check(e->lane->cancel, &e->err) < 0)
			return -1;
		if (start_next(e, &moved) < 0 || reap(e, e->source, &moved) < 0 ||
			reap(e, e->target, &moved) < 0 || check_losses(e) < 0)
			return -1;
		flush_when_due(e);
		if (all_done(e))
			return 0;
		if (!moved && wait(e) < 0)
			return -1;
	}
}

/* --- beginning and end ------------------------------------------------------ */

static int allocate(struct engine *e)
{
	const struct run *run = e->run;
	e->nr_busy_most = run->nr_slots_first;
	e->slots = calloc(run->nr_slots, sizeof *e->slots);
	e->extents = calloc(WORK_ASK_EXTENTS, sizeof *e->extents);
	if (run->journalled)
		e->journal = calloc(1, sizeof *e->journal);
	e->buffers_bytes = run->nr_slots * (size_t)run->work.piece_bytes;
	e->buffers = mmap(
		NULL, e->buffers_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (e->buffers == MAP_FAILED)
		e->buffers = NULL;
	if (!e->slots || !e->extents || !e->buffers || (run->journalled && !e->journal))
		return err_errno(&e->err, ENOMEM, "cannot allocate buffers");
	for (unsigned i = run->nr_slots; i-- > 0;) {
		struct slot *slot = &e->slots[i];
		slot->buffer = e->buffers + i * (size_t)run->work.piece_bytes;
		slot->free_requests = (1u << SLOT_REQUESTS) - 1;
		slot->next_free = e->free_slots;
		e->free_slots = slot;
	}
	return 0;
}

static int open_lanes(struct engine *e)
{
	struct cancel *cancel = e->lane->cancel;
	if (allocate(e) < 0)
		return -1;
	e->source = block_lane_open(e->run->source, cancel, &e->err);
	if (!e->source)
		return -1;
	if (e->run->target) {
		e->target = block_lane_open(e->run->target, cancel, &e->err);
		if (!e->target)
			return -1;
	}
	return 0;
}

static void release(struct engine *e)
{
	/* Closing a lane takes back the buffers of what is in flight. */
	block_lane_close(e->target);
	block_lane_close(e->source);
	if (e->buffers)
		munmap(e->buffers, e->buffers_bytes);
	free(e->journal);
	free(e->extents);
	free(e->slots);
}

void *lane_main(void *arg)
{
	struct lane *lane = arg;
	struct engine e = {.lane = lane, .run = lane->run, .err = ERR_INIT};
	if (!run_wait_wanted(lane) || open_lanes(&e) < 0)
		run_lane_not_opened(lane, &e.err);
	else if (run_lane_opened(lane) && loop(&e) < 0)
		run_fail(lane->run, &e.err);
	release(&e);
	run_lane_ended(lane);
	return NULL;
}
