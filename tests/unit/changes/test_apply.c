/* A source with its changes: its map, its lanes, and a copy of what changed. */
#include "fake.h"
#include "test_support.h"

#define SIZE ((size_t)(9 << 20) + 12345)

struct scene {
	struct fake *source;
	struct changes *changes;
	struct block *disk;
	struct list list;
	uint8_t changed[SIZE]; /* one for each byte */
};

static struct scene *begin(bool queues, unsigned seed)
{
	static const size_t lengths[] = {1, 511, 512, 4096, 65536, 65536, 300000};
	struct scene *s = calloc(1, sizeof *s);
	uint64_t count = 0, bytes = 0;
	FILE *file = list_begin(&s->list, SIZE);
	s->source = fake_new(SIZE, true, queues);
	fake_fill(s->source, seed);
	for (size_t at = (unsigned)rand_r(&seed) % 100000; at < SIZE;) {
		size_t n = lengths[(unsigned)rand_r(&seed) % ARRAY_LENGTH(lengths)];
		n = min_size(n, SIZE - at);
		fprintf(file, "{\"offset\":%zu,\"length\":%zu}\n", at, n);
		memset(s->changed + at, 1, n);
		count++;
		bytes += n;
		/* Sometimes the next one follows at once. */
		at += n + (rand_r(&seed) % 4 ? (unsigned)rand_r(&seed) % 300000 : 0);
	}
	list_end(file, count, bytes);
	struct err err = ERR_INIT;
	s->changes = changes_open(s->list.path, NULL, &err);
	if (!s->changes)
		fail_msg("%s", err.text);
	s->disk = changes_apply(s->changes, &s->source->block, &err);
	if (!s->disk)
		fail_msg("%s", err.text);
	return s;
}

static void end(struct scene *s)
{
	block_close(s->disk, NULL);
	changes_close(s->changes);
	assert_int_equal(s->source->nr_lanes, 0);
	fake_free(s->source);
	unlink(s->list.path);
	free(s);
}

static struct block_io *wait_for(struct block_lane *lane)
{
	struct block_io *io;
	while (!(io = block_lane_reap(lane))) {
		struct pollfd fd = block_lane_pollfd(lane);
		assert_int_equal(poll(&fd, 1, 10000), 1);
		block_lane_dispatch(lane, fd.revents);
	}
	return io;
}

/* Asks for a part of the map, on the lane if there is one. */
static size_t ask(struct scene *s, struct block_lane *lane, uint64_t offset, uint64_t length,
	struct block_extent *extents, size_t max)
{
	size_t nr = 0;
	if (!lane) {
		assert_int_equal(
			block_extents(s->disk, offset, length, extents, max, &nr, NULL), 0);
		return nr;
	}
	struct block_io io = {.op = BLOCK_OP_EXTENTS,
		.offset = offset,
		.length = length,
		.buffer = extents,
		.nr_extents = max};
	block_lane_submit(lane, &io);
	/* What the source answers at once is there at once: nothing would wake a poll. */
	struct block_io *done = s->source->block.info.has_extents && block_lanes_queue(s->disk)
					? wait_for(lane)
					: block_lane_reap(lane);
	assert_ptr_equal(done, &io);
	assert_int_equal(io.err.code, ERR_NONE);
	return io.nr_extents;
}

static void check_extents(const struct scene *s, uint64_t at, const struct block_extent *extents,
	size_t nr, uint64_t length)
{
	uint64_t end = at + length;
	assert_true(nr > 0);
	for (size_t i = 0; i < nr; i++)
		for (uint64_t stop = at + extents[i].length; at < stop; at++) {
			uint32_t flags = s->source->holes[at / 512] ? BLOCK_HOLE | BLOCK_ZERO : 0;
			flags |= s->changed[at] ? 0 : BLOCK_UNCHANGED;
			if (at >= end || extents[i].flags != flags)
				fail_msg("offset %llu", (unsigned long long)at);
		}
}

static void test_map(void **state)
{
	struct block_extent extents[64] = {{0, 0}};
	(void)state;
	for (unsigned i = 0; i < 8; i++) {
		struct scene *s = begin(i & 1, i);
		struct block_lane *lane = i & 2 ? block_lane_open(s->disk, NULL, NULL) : NULL;
		size_t max = i & 4 ? 64 : 1;
		s->source->most_extents = i % 3;
		assert_true(block_info(s->disk)->has_changes && block_info(s->disk)->read_only);
		for (uint64_t at = 0; at < SIZE;) {
			uint64_t length = min_u64(SIZE - at, 3000001);
			size_t nr = ask(s, lane, at, length, extents, max);
			check_extents(s, at, extents, nr, length);
			for (size_t e = 0; e < nr; e++)
				at += extents[e].length;
		}
		block_lane_close(lane);
		end(s);
	}
}

/* A source that knows no extents has changes all the same. */
static void test_source_without_extents(void **state)
{
	struct block_extent extents[4] = {{0, 0}};
	(void)state;
	for (unsigned queues = 0; queues < 2; queues++) {
		struct scene *s = begin(queues, 3);
		s->source->block.info.has_extents = false;
		memset(s->source->holes, 0, SIZE / 512 + 1);
		struct block_lane *lane = block_lane_open(s->disk, NULL, NULL);
		check_extents(s, 0, extents, ask(s, NULL, 0, SIZE, extents, 4), SIZE);
		check_extents(s, 0, extents, ask(s, lane, 0, SIZE, extents, 4), SIZE);
		block_lane_close(lane);
		end(s);
	}
}

/* A list of what is allocated: all else is a hole, and nothing is called unchanged. */
static void test_allocated(void **state)
{
	struct block_extent extents[64] = {{0, 0}};
	size_t nr;
	(void)state;
	for (unsigned queues = 0; queues < 2; queues++) {
		struct scene *s = begin(queues, 6 + queues);
		struct block *disk = changes_allocated(s->changes, &s->source->block, NULL);
		assert_non_null(disk);
		assert_true(block_info(disk)->has_extents && !block_info(disk)->has_changes);
		for (uint64_t at = 0; at < SIZE;) {
			assert_int_equal(
				block_extents(disk, at, SIZE - at, extents, 64, &nr, NULL), 0);
			for (size_t i = 0; i < nr; i++)
				for (uint64_t stop = at + extents[i].length; at < stop; at++) {
					bool hole = s->source->holes[at / 512] || !s->changed[at];
					assert_int_equal(extents[i].flags,
						hole ? BLOCK_HOLE | BLOCK_ZERO : 0);
				}
		}
		block_close(disk, NULL);
		end(s);
	}
}

/* Many requests at once go through, and a lane that is closed forgets them. */
static void test_lane(void **state)
{
	static uint8_t buffers[8][4096];
	struct block_extent extents[8] = {{0, 0}};
	struct block_io ios[9];
	struct scene *s = begin(true, 4);
	struct block_lane *lane = block_lane_open(s->disk, NULL, NULL);
	(void)state;
	assert_true(block_lanes_queue(s->disk));
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 8; i++) {
			ios[i] = (struct block_io){.op = BLOCK_OP_READ,
				.offset = i * MIB,
				.length = 4096,
				.buffer = buffers[i]};
			block_lane_submit(lane, &ios[i]);
		}
		ios[8] = (struct block_io){
			.op = BLOCK_OP_EXTENTS, .length = SIZE, .buffer = extents, .nr_extents = 8};
		block_lane_submit(lane, &ios[8]);
		assert_int_equal(block_lane_in_flight(lane), 9);
		assert_int_equal(s->source->in_flight, 9);
		for (unsigned i = 0; round == 0 && i < 9; i++)
			assert_int_equal(wait_for(lane)->err.code, ERR_NONE);
	}
	for (unsigned i = 0; i < 8; i++)
		assert_memory_equal(buffers[i], s->source->bytes + i * MIB, 4096);
	block_lane_close(lane);
	assert_int_equal(s->source->in_flight, 0);
	end(s);
}

static void test_copy_of_what_changed(void **state)
{
	(void)state;
	for (unsigned queues = 0; queues < 2; queues++) {
		struct scene *s = begin(queues, 5 + queues);
		struct fake *target = fake_new(SIZE, false, queues);
		struct copy_options options = {.changed_only = true};
		struct err err = ERR_INIT;
		memcpy(target->bytes, s->source->bytes, SIZE);
		for (size_t i = 0; i < SIZE; i++)
			if (s->changed[i])
				target->bytes[i] ^= 0x55;
		if (copy_run(s->disk, &target->block, &options, &err) < 0)
			fail_msg("%s", err.text);
		assert_memory_equal(s->source->bytes, target->bytes, SIZE);
		uint64_t bytes = 0;
		for (size_t at = 0; at < SIZE; at += 65536)
			if (memchr(s->changed + at, 1, min_size(65536, SIZE - at)))
				bytes += min_size(65536, SIZE - at);
		assert_true(bytes < SIZE && s->source->bytes_read <= bytes);
		fake_free(target);
		end(s);
	}
}

static void test_other_size(void **state)
{
	struct scene *s = begin(false, 1);
	struct fake *other = fake_new(4096, true, false);
	struct err err = ERR_INIT;
	(void)state;
	assert_null(changes_apply(s->changes, &other->block, &err));
	assert_int_equal(err.code, ERR_RANGE);
	assert_non_null(strstr(err.text, " 4096"));
	assert_non_null(strstr(err.text, "9449529"));
	fake_free(other);
	end(s);
}

/* An error of the list comes with the request. */
static void test_list_gone_bad(void **state)
{
	struct block_extent extents[4] = {{0, 0}};
	(void)state;
	for (unsigned queues = 0; queues < 2; queues++) {
		struct scene *s = begin(queues, 6);
		struct block_lane *lane = block_lane_open(s->disk, NULL, NULL);
		assert_int_equal(truncate(s->list.path, 100), 0);
		struct block_io io = {
			.op = BLOCK_OP_EXTENTS, .length = SIZE, .buffer = extents, .nr_extents = 4};
		block_lane_submit(lane, &io);
		assert_ptr_equal(wait_for(lane), &io);
		assert_int_equal(io.err.code, ERR_FORMAT);
		block_lane_close(lane);
		end(s);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_map),
		cmocka_unit_test(test_source_without_extents),
		cmocka_unit_test(test_allocated),
		cmocka_unit_test(test_lane),
		cmocka_unit_test(test_copy_of_what_changed),
		cmocka_unit_test(test_other_size),
		cmocka_unit_test(test_list_gone_bad),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
