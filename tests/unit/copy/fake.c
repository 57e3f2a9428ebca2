/* A disk for tests; see fake.h. */
#include "fake.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#define SECTOR 512u

struct fake_lane {
	struct block_lane head;
	int fd;
	unsigned nr, seed, crashes;
	struct block_io *queue[1024];
};

static struct fake *fake_of(struct block *block)
{
	return (struct fake *)block;
}

static bool covers(uint64_t at, uint64_t offset, uint64_t length)
{
	return at >= offset && at - offset < length;
}

static int fake_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	struct fake *f = fake_of(block);
	WITH_LOCK(&f->mutex);
	if (covers(f->fail_read_at, offset, length))
		return err_errno(
			err, EIO, "cannot read fake at offset %llu", (unsigned long long)offset);
	memcpy(buffer, f->bytes + offset, length);
	f->bytes_read += length;
	return 0;
}

/* Once so much is written, the server dies and comes back with what it flushed. */
static void maybe_crash(struct fake *f, uint64_t length)
{
	uint64_t before = f->bytes_written;
	f->bytes_written += length;
	uint64_t each = f->crash_each_bytes;
	bool again = each != 0 && before / each != f->bytes_written / each;
	if (again || (f->crash_at_byte != 0 && covers(f->crash_at_byte, before, length))) {
		memcpy(f->bytes, f->durable, f->size);
		f->nr_crashes++;
	}
}

static int fake_write(struct block *block, const void *buffer, size_t length, uint64_t offset,
	unsigned flags, struct err *err)
{
	struct fake *f = fake_of(block);
	(void)flags;
	WITH_LOCK(&f->mutex);
	if (covers(f->fail_write_at, offset, length))
		return err_errno(err, ENOSPC, "cannot write fake at offset %llu",
			(unsigned long long)offset);
	memcpy(f->bytes + offset, buffer, length);
	f->nr_writes++;
	maybe_crash(f, length);
	return 0;
}

static int fake_zero(
	struct block *block, uint64_t offset, uint64_t length, unsigned flags, struct err *err)
{
	struct fake *f = fake_of(block);
	(void)flags;
	(void)err;
	WITH_LOCK(&f->mutex);
	memset(f->bytes + offset, 0, length);
	f->nr_zero_requests++;
	f->bytes_zeroed += length;
	return 0;
}

static int fake_flush(struct block *block, struct err *err)
{
	struct fake *f = fake_of(block);
	(void)err;
	WITH_LOCK(&f->mutex);
	memcpy(f->durable, f->bytes, f->size);
	f->nr_flushes++;
	return 0;
}

static int fake_extents(struct block *block, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max, size_t *nr, struct err *err)
{
	struct fake *f = fake_of(block);
	uint64_t at = offset, end = offset + length;
	(void)err;
	if (f->most_extents != 0)
		max = min_size(max, f->most_extents);
	for (*nr = 0; at < end && *nr < max; (*nr)++) {
		uint8_t hole = f->holes[at / SECTOR], unchanged = f->unchanged[at / SECTOR];
		uint64_t next = at;
		while (next < end && f->holes[next / SECTOR] == hole &&
			f->unchanged[next / SECTOR] == unchanged)
			next = min_u64((next / SECTOR + 1) * SECTOR, end);
		extents[*nr] = (struct block_extent){next - at,
			(hole ? BLOCK_HOLE | BLOCK_ZERO : 0) | (unchanged ? BLOCK_UNCHANGED : 0)};
		at = next;
	}
	return 0;
}

static int fake_close(struct block *block, struct err *err)
{
	(void)block;
	(void)err;
	return 0;
}

/* --- lanes ------------------------------------------------------------------ */

/* The number of the lane from 1, or 0: not admitted. */
static unsigned admit(struct fake *f, unsigned *crashes)
{
	WITH_LOCK(&f->mutex);
	if (f->most_lanes != 0 && f->nr_lanes == f->most_lanes)
		return 0;
	*crashes = f->nr_crashes;
	return ++f->nr_lanes;
}

static struct block_lane *fake_lane_open(
	struct block *block, struct cancel *cancel, struct err *err)
{
	struct fake *f = fake_of(block);
	unsigned crashes, number = admit(f, &crashes);
	if (number == 0) {
		if (f->hang_lanes)
			cancel_sleep(cancel, deadline_after_ms(30000), err);
		else
			err_set(err, ERR_REFUSED, "fake takes no more connections");
		return NULL;
	}
	struct fake_lane *lane = calloc(1, sizeof *lane);
	lane->fd = eventfd(1, EFD_CLOEXEC);
	lane->seed = f->seed + number;
	lane->crashes = crashes;
	return &lane->head;
}

static void fake_lane_close(struct block_lane *head)
{
	struct fake_lane *lane = (struct fake_lane *)head;
	struct fake *f = fake_of(head->block);
	pthread_mutex_lock(&f->mutex);
	f->nr_lanes--;
	f->in_flight -= lane->nr;
	pthread_mutex_unlock(&f->mutex);
	close(lane->fd);
	free(lane);
}

static void see_crashes(struct fake_lane *lane, struct fake *f)
{
	WITH_LOCK(&f->mutex);
	if (lane->crashes != f->nr_crashes)
		lane->head.nr_losses++;
	lane->crashes = f->nr_crashes;
}

static void fake_lane_submit(struct block_lane *head, struct block_io *io)
{
	struct fake_lane *lane = (struct fake_lane *)head;
	struct fake *f = fake_of(head->block);
	see_crashes(lane, f);
	assert_true(lane->nr < ARRAY_LENGTH(lane->queue));
	lane->queue[lane->nr++] = io;
	pthread_mutex_lock(&f->mutex);
	if (++f->in_flight > f->most_in_flight)
		f->most_in_flight = f->in_flight;
	pthread_mutex_unlock(&f->mutex);
}

static struct pollfd fake_lane_pollfd(struct block_lane *head)
{
	struct fake_lane *lane = (struct fake_lane *)head;
	bool hang = fake_of(head->block)->hang_reads && lane->nr > 0 &&
		    lane->queue[0]->op == BLOCK_OP_READ;
	return (struct pollfd){.fd = hang ? -1 : lane->fd, .events = POLLIN};
}

static struct deadline fake_lane_wake(struct block_lane *head)
{
	(void)head;
	return deadline_after_ms(60000);
}

static void execute(struct block *block, struct block_io *io)
{
	void *buffer = io->buffer;
	size_t length = (size_t)io->length;
	if (io->op == BLOCK_OP_READ)
		fake_read(block, buffer, length, io->offset, &io->err);
	else if (io->op == BLOCK_OP_WRITE)
		fake_write(block, buffer, length, io->offset, io->flags, &io->err);
	else if (io->op == BLOCK_OP_ZERO)
		fake_zero(block, io->offset, io->length, io->flags, &io->err);
	else if (io->op == BLOCK_OP_FLUSH)
		fake_flush(block, &io->err);
	else
		fake_extents(block, io->offset, io->length, buffer, io->nr_extents, &io->nr_extents,
			&io->err);
}

static void fake_lane_dispatch(struct block_lane *head, short revents)
{
	struct fake_lane *lane = (struct fake_lane *)head;
	struct fake *f = fake_of(head->block);
	(void)revents;
	see_crashes(lane, f);
	if (lane->nr == 0)
		return;
	unsigned i = (unsigned)rand_r(&lane->seed) % lane->nr;
	struct block_io *io = lane->queue[i];
	lane->queue[i] = lane->queue[--lane->nr];
	execute(head->block, io);
	pthread_mutex_lock(&f->mutex);
	f->in_flight--;
	pthread_mutex_unlock(&f->mutex);
	block_lane_finish(head, io);
}

static const struct block_driver blocking_driver = {
	.name = "fake",
	.read = fake_read,
	.write = fake_write,
	.zero = fake_zero,
	.flush = fake_flush,
	.extents = fake_extents,
	.close = fake_close,
};

static const struct block_driver queueing_driver = {
	.name = "fake",
	.read = fake_read,
	.write = fake_write,
	.zero = fake_zero,
	.flush = fake_flush,
	.extents = fake_extents,
	.close = fake_close,
	.lane_open = fake_lane_open,
	.lane_close = fake_lane_close,
	.lane_submit = fake_lane_submit,
	.lane_pollfd = fake_lane_pollfd,
	.lane_wake = fake_lane_wake,
	.lane_dispatch = fake_lane_dispatch,
};

/* --- beginning and end ------------------------------------------------------ */

struct fake *fake_new(size_t size, bool read_only, bool queues)
{
	struct fake *f = calloc(1, sizeof *f);
	block_init(&f->block, queues ? &queueing_driver : &blocking_driver, NULL);
	pthread_mutex_init(&f->mutex, NULL);
	f->size = size;
	f->bytes = calloc(1, size + 1);
	f->durable = calloc(1, size + 1);
	f->holes = calloc(1, size / SECTOR + 1);
	f->unchanged = calloc(1, size / SECTOR + 1);
	f->fail_read_at = f->fail_write_at = UINT64_MAX;
	f->block.info = (struct block_info){
		.size_bytes = size,
		.read_only = read_only,
		.has_extents = true,
		.can_zero = true,
		.multi_lane = true,
		.granule_bytes = 4096,
	};
	return f;
}

void fake_free(struct fake *f)
{
	pthread_mutex_destroy(&f->mutex);
	free(f->bytes);
	free(f->durable);
	free(f->holes);
	free(f->unchanged);
	free(f);
}

void fake_fill(struct fake *f, unsigned seed)
{
	static const size_t lengths[] = {512, 4096, 8192, 65536, 70144, 300032, 1 << 20};
	for (size_t at = 0; at < f->size;) {
		size_t n = lengths[(unsigned)rand_r(&seed) % ARRAY_LENGTH(lengths)];
		unsigned kind = (unsigned)rand_r(&seed) % 8;
		n = min_size(n, f->size - at);
		for (size_t i = at; i < at + n; i++) {
			f->holes[i / SECTOR] = kind < 4;
			f->bytes[i] = kind >= 5 ? (uint8_t)(rand_r(&seed) | 1) : 0;
		}
		at += n;
	}
}
