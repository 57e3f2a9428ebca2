/*
 * A run: chooses sizes, starts the lanes, watches over them, ends with a flush.
 *
 * The calling thread watches: it passes the user's cancel on to the lanes, each
 * of which has a cancel of its own, so that a lane that is still connecting can
 * be called back when the others have done all the work.
 */
#include "copy_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#define MEMORY_BYTES (32 * MIB)
#define LANES_DEFAULT 4u
#define IN_FLIGHT_DEFAULT 16u
#define IN_FLIGHT_FIRST 4u
/* A piece is read, hashed and written while it stays in a core's own cache; a
 * network wants fewer and larger requests. */
#define PIECE_LOCAL_BYTES (256 * KIB)
#define PIECE_NETWORK_BYTES (512 * KIB)
/* For a request to a server, a short run of zeros costs more than it saves. */
#define SHORTEST_ZERO_NETWORK (16u * 1024)
#define ZERO_LOCAL_BYTES GIB
#define ZERO_NETWORK_BYTES (256 * MIB)
/* Zeros that are written as bytes: short enough to be cancelled between. */
#define ZERO_WRITTEN_BYTES (4 * MIB)
#define WATCH_MS 200
#define SILENCE_MS 30000

/* Since when the figures have stood still. */
struct silence {
	uint64_t figures;
	int64_t since_ns; /* 0: not looked at yet */
	unsigned nr_told;
};

/* --- what lanes tell -------------------------------------------------------- */

static void stop_lanes(struct run *run)
{
	for (unsigned i = 0; i < run->nr_lanes; i++)
		if (run->lanes[i].cancel)
			cancel_request(run->lanes[i].cancel);
}

static void fail_locked(struct run *run, const struct err *err)
{
	if (run->failed)
		return;
	run->failed = true;
	err_copy(&run->err, err);
	stop_lanes(run);
}

void run_fail(struct run *run, const struct err *err)
{
	WITH_LOCK(&run->mutex);
	fail_locked(run, err);
}

void run_no_more_work(struct run *run)
{
	WITH_LOCK(&run->mutex);
	for (unsigned i = 0; i < run->nr_lanes; i++) {
		struct lane *lane = &run->lanes[i];
		if (lane->state != LANE_OPENING || lane->surplus)
			continue;
		lane->surplus = true;
		cancel_request(lane->cancel);
	}
}

void run_want_all(struct run *run)
{
	WITH_LOCK(&run->mutex);
	if (run->all_wanted)
		return;
	run->all_wanted = true;
	for (unsigned i = run->nr_lanes_first; i < run->nr_lanes; i++) {
		uint64_t one = 1;
		run->lanes[i].wanted = true;
		run->nr_opening++;
		ssize_t n = write(run->lanes[i].wake_fd, &one, sizeof one);
		(void)n; /* the counter is far from full */
	}
}

static bool is_wanted(struct lane *lane)
{
	WITH_LOCK(&lane->run->mutex);
	return lane->wanted;
}

bool run_wait_wanted(struct lane *lane)
{
	while (!is_wanted(lane)) {
		struct pollfd fds[2] = {
			{.fd = lane->wake_fd, .events = POLLIN},
			{.fd = cancel_fd(lane->cancel), .events = POLLIN},
		};
		poll(fds, 2, -1); /* ends with the work or with an error at the latest */
		if (cancel_requested(lane->cancel))
			return false;
	}
	return true;
}

bool run_lane_opened(struct lane *lane)
{
	struct run *run = lane->run;
	WITH_LOCK(&run->mutex);
	run->nr_opening -= lane->wanted;
	lane->state = LANE_OPEN;
	if (lane->surplus || run->failed)
		return false;
	run->nr_open++;
	return true;
}

void run_lane_not_opened(struct lane *lane, const struct err *why)
{
	struct run *run = lane->run;
	WITH_LOCK(&run->mutex);
	run->nr_opening -= lane->wanted;
	lane->state = LANE_ENDED;
	if (lane->surplus || run->failed)
		return;
	if (run->open_err.code == ERR_NONE || lane->index == 0)
		err_copy(&run->open_err, why);
	if (run->nr_opening == 0 && run->nr_open == 0) {
		fail_locked(run, &run->open_err);
	} else if (!run->warned) {
		run->warned = true;
		log_warning("copying with fewer connections than wished: %s", why->text);
	}
}

void run_lane_ended(struct lane *lane)
{
	struct run *run = lane->run;
	uint64_t one = 1;
	WITH_LOCK(&run->mutex);
	run->nr_running--;
	ssize_t n = write(run->ended_fd, &one, sizeof one);
	(void)n; /* cannot fail below 2^64 - 1 lanes */
}

/* --- choosing --------------------------------------------------------------- */

static int check_options(const struct copy_options *options, struct err *err)
{
	assert(!options->baseline || (options->digest_key && options->sink));
	size_t piece = options->piece_bytes;
	if (piece != 0 && (piece < DIGEST_CHUNK_BYTES || piece > COPY_PIECE_BYTES_MAX ||
				  (piece & (piece - 1)) != 0))
		return err_set(err, ERR_USAGE,
			"cannot copy in pieces of %zu bytes: not a power of two of 64 KiB..4 MiB",
			piece);
	return 0;
}

static uint64_t choose_piece(const struct run *run, uint64_t unit, bool network)
{
	uint64_t piece = run->options->piece_bytes;
	if (piece == 0)
		piece = network ? PIECE_NETWORK_BYTES : PIECE_LOCAL_BYTES;
	return max_u64(piece, unit);
}

static void choose_lanes(struct run *run, uint64_t piece, bool network)
{
	const struct copy_options *options = run->options;
	uint64_t size = block_info(run->source)->size_bytes;
	uint64_t memory = options->memory_bytes ? options->memory_bytes : MEMORY_BYTES;
	uint64_t lanes = options->nr_lanes, slots = options->nr_in_flight;
	if (lanes == 0)
		lanes = network ? LANES_DEFAULT : min_u64(thread_nr_cpus(), LANES_DEFAULT);
	if (run->target && !block_info(run->target)->multi_lane)
		lanes = 1;
	/* Where requests do not queue, a second slot would only spoil the cache. */
	if (!network)
		slots = 1;
	else if (slots == 0)
		slots = IN_FLIGHT_DEFAULT;
	lanes = min_u64(lanes, COPY_LANES_MAX);
	lanes = min_u64(lanes, max_u64(div_round_up(size, piece * 4), 1));
	lanes = min_u64(lanes, max_u64(memory / piece, 1));
	assert(lanes > 0);
	slots = min_u64(slots, max_u64(memory / piece / lanes, 1));
	run->nr_lanes = (unsigned)lanes;
	run->nr_slots = (unsigned)min_u64(slots, COPY_SLOTS_MAX);
	run->nr_lanes_first = run->nr_lanes;
	run->nr_slots_first = run->nr_slots;
	/* Much in flight helps a slow link, and spoils the cache of a fast one. */
	if (network && options->nr_lanes == 0)
		run->nr_lanes_first = (unsigned)min_u64(lanes, max_u64(thread_nr_cpus(), 2));
	if (network && options->nr_in_flight == 0)
		run->nr_slots_first = (unsigned)min_u64(run->nr_slots, IN_FLIGHT_FIRST);
}

static void choose(struct run *run)
{
	const struct block_info *target = run->target ? block_info(run->target) : NULL;
	bool target_queues = run->target && block_lanes_queue(run->target);
	bool network = target_queues || block_lanes_queue(run->source);
	uint32_t granule = target ? target->granule_bytes : DIGEST_CHUNK_BYTES;
	if (granule < COPY_ZERO_UNIT_MIN)
		granule = COPY_ZERO_UNIT_MIN;
	uint64_t unit = max_u64(DIGEST_CHUNK_BYTES, granule);
	uint64_t piece = choose_piece(run, unit, network);
	run->pieces = (struct piece_plan){
		.unit_bytes = granule < DIGEST_CHUNK_BYTES ? granule : DIGEST_CHUNK_BYTES,
		.granule_bytes = granule,
		.shortest_zero = target_queues ? SHORTEST_ZERO_NETWORK : 0,
		.key = run->options->digest_key,
	};
	run->skip_zeros = target && target->starts_zero;
	run->journalled = target && target->can_vanish;
	run->zero_bytes_max = target_queues ? ZERO_NETWORK_BYTES : ZERO_LOCAL_BYTES;
	if (target && !target->can_zero)
		run->zero_bytes_max = ZERO_WRITTEN_BYTES;
	if (!target || run->skip_zeros)
		run->zero_bytes_max = UINT64_MAX / 2;
	choose_lanes(run, piece, network);
	work_init(&run->work, block_info(run->source)->size_bytes, unit, piece,
		run->options->rate_bytes_per_s, run->options->changed_only);
}

/* --- running ---------------------------------------------------------------- */

static int prepare_lane(struct run *run, unsigned i, struct err *err)
{
	struct lane *lane = &run->lanes[i];
	lane->run = run;
	lane->index = i;
	lane->state = LANE_OPENING;
	lane->wanted = i < run->nr_lanes_first;
	lane->cancel = cancel_new(err);
	if (!lane->cancel)
		return -1;
	lane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (lane->wake_fd < 0)
		return err_errno(err, errno, "cannot make an event descriptor");
	run->work.wake_fds[i] = lane->wake_fd;
	return 0;
}

static int prepare(struct run *run, struct err *err)
{
	for (unsigned i = 0; i < COPY_LANES_MAX; i++)
		run->lanes[i].wake_fd = -1;
	run->ended_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (run->ended_fd < 0)
		return err_errno(err, errno, "cannot make an event descriptor");
	for (unsigned i = 0; i < run->nr_lanes; i++)
		if (prepare_lane(run, i, err) < 0)
			return -1;
	return 0;
}

static void tell_stored(struct run *run)
{
	uint64_t stored = run->target ? block_stored_bytes(run->target) : 0;
	if (stored > atomic_load(&run->progress->stored))
		atomic_store(&run->progress->stored, stored);
}

static unsigned nr_running(struct run *run)
{
	WITH_LOCK(&run->mutex);
	return run->nr_running;
}

static void cancelled(struct run *run)
{
	struct err err = ERR_INIT;
	cancel_check(run->options->cancel, &err);
	run_fail(run, &err);
}

/* Says so when nothing moves: disks whose requests do not queue have no deadline,
 * and their requests cannot be called back. */
static void heed_silence(struct run *run, struct silence *silence)
{
	uint64_t figures = atomic_load(&run->progress->logical) +
			   atomic_load(&run->progress->read) + atomic_load(&run->progress->sent);
	int64_t now_ns = clock_now_ns();
	unsigned each_ms = run->options->silence_ms ? run->options->silence_ms : SILENCE_MS;
	if (figures != silence->figures || silence->since_ns == 0) {
		*silence = (struct silence){.figures = figures, .since_ns = now_ns};
		return;
	}
	int64_t ms = (now_ns - silence->since_ns) / 1000000;
	if (ms < (int64_t)each_ms * (silence->nr_told + 1))
		return;
	silence->nr_told++;
	log_warning("nothing was copied for %" PRId64 " s%s: waiting for %s%s%s", ms / 1000,
		cancel_requested(run->options->cancel) ? " (and it was cancelled)" : "",
		block_label(run->source), run->target ? " or " : "",
		run->target ? block_label(run->target) : "");
}

static void watch(struct run *run)
{
	struct silence silence = {.since_ns = 0};
	struct pollfd fds[2] = {
		{.fd = run->ended_fd, .events = POLLIN},
		{.fd = cancel_fd(run->options->cancel), .events = POLLIN},
	};
	while (nr_running(run) > 0) {
		poll(fds, 2, WATCH_MS);
		if (fds[0].revents) {
			uint64_t count;
			ssize_t n = read(run->ended_fd, &count, sizeof count);
			(void)n; /* the number of lanes is what counts */
		}
		if (cancel_requested(run->options->cancel)) {
			cancelled(run);
			fds[1].fd = -1;
		}
		heed_silence(run, &silence);
		tell_stored(run);
	}
}

static void run_lanes(struct run *run)
{
	unsigned nr_started = 0;
	struct err err = ERR_INIT;
	run->nr_opening = run->nr_lanes_first;
	run->nr_running = run->nr_lanes;
	while (nr_started < run->nr_lanes) {
		struct lane *lane = &run->lanes[nr_started];
		if (thread_start(&lane->thread, "copy-lane", lane_main, lane, &err) < 0) {
			run_fail(run, &err);
			break;
		}
		nr_started++;
	}
	pthread_mutex_lock(&run->mutex);
	run->nr_running -= run->nr_lanes - nr_started;
	pthread_mutex_unlock(&run->mutex);
	watch(run);
	for (unsigned i = 0; i < nr_started; i++)
		pthread_join(run->lanes[i].thread, NULL);
}

static void release(struct run *run)
{
	for (unsigned i = 0; i < run->nr_lanes; i++) {
		cancel_free(run->lanes[i].cancel);
		if (run->lanes[i].wake_fd >= 0)
			close(run->lanes[i].wake_fd);
	}
	if (run->ended_fd >= 0)
		close(run->ended_fd);
	work_destroy(&run->work);
	pthread_mutex_destroy(&run->mutex);
	free(run);
}

static int copy(struct block *source, struct block *target, const struct copy_options *options,
	struct err *err)
{
	if (check_options(options, err) < 0)
		return -1;
	struct run *run = calloc(1, sizeof *run);
	if (!run)
		return err_errno(err, ENOMEM, "cannot copy %s", block_label(source));
	run->source = source;
	run->target = target;
	run->options = options;
	run->progress = options->progress ? options->progress : &run->own_progress;
	run->ended_fd = -1;
	pthread_mutex_init(&run->mutex, NULL);
	choose(run);
	int rc = prepare(run, err);
	if (rc == 0) {
		run_lanes(run);
		if (run->failed)
			rc = err_copy(err, &run->err);
	}
	/* A target that may lose writes was flushed by the lanes that wrote. */
	if (rc == 0 && target && !run->journalled)
		rc = block_flush(target, err);
	tell_stored(run);
	release(run);
	return rc;
}

int copy_run(struct block *source, struct block *target, const struct copy_options *options,
	struct err *err)
{
	uint64_t from = block_info(source)->size_bytes, to = block_info(target)->size_bytes;
	if (from != to)
		return err_set(err, ERR_RANGE,
			"cannot copy %s (%" PRIu64 " bytes) to %s (%" PRIu64
			" bytes): the sizes differ",
			block_label(source), from, block_label(target), to);
	return copy(source, target, options, err);
}

int copy_scan(struct block *source, const struct copy_options *options, struct err *err)
{
	return copy(source, NULL, options, err);
}
