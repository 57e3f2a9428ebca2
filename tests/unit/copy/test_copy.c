/* Whole copies between disks that behave and disks that do not. */
#include "fake.h"

#include <stdlib.h>

#define SIZE ((size_t)(9 << 20) + 12345)

static struct digest_key key;

/* Each chunk at least once (exactly once unless again), and rightly. */
static void check_told(const struct told *t, const struct fake *f, bool again)
{
	for (uint64_t c = 0; c < t->nr_chunks; c++) {
		assert_true(again ? t->times[c] >= 1 : t->times[c] == 1);
		told_check(t, &key, f->bytes, f->size, c);
	}
}

struct scene {
	struct fake *source, *target;
	struct told *told;
	struct copy_chunk_sink sink;
	struct copy_progress progress;
	struct copy_options options;
	struct err err;
};

static void begin(struct scene *s, size_t size, bool source_queues, bool target_queues)
{
	memset(s, 0, sizeof *s);
	s->source = fake_new(size, true, source_queues);
	s->target = fake_new(size, false, target_queues);
	fake_fill(s->source, (unsigned)size);
	s->told = told_new(size);
	s->sink = told_sink(s->told);
	s->options.digest_key = &key;
	s->options.sink = &s->sink;
	s->options.progress = &s->progress;
}

static void end(struct scene *s)
{
	assert_int_equal(s->source->nr_lanes, 0);
	assert_int_equal(s->target->nr_lanes, 0);
	fake_free(s->source);
	fake_free(s->target);
	told_free(s->told);
}

static int go(struct scene *s)
{
	return copy_run(&s->source->block, &s->target->block, &s->options, &s->err);
}

static void check_copied(struct scene *s, bool again)
{
	uint64_t logical = s->progress.logical, zeros = s->progress.zeros_skipped;
	assert_memory_equal(s->source->bytes, s->target->bytes, s->source->size);
	assert_memory_equal(s->source->bytes, s->target->durable, s->source->size);
	check_told(s->told, s->source, again);
	assert_int_equal(logical, s->source->size);
	assert_int_equal(s->progress.read, s->source->bytes_read);
	assert_int_equal(s->progress.sent, s->target->bytes_written);
	if (!again)
		assert_int_equal(zeros + s->progress.sent, s->source->size);
}

static void test_all_kinds_and_sizes(void **state)
{
	static const size_t sizes[] = {1, 511, 4096, 65536, 65537, SIZE};
	(void)state;
	for (unsigned i = 0; i < 4 * ARRAY_LENGTH(sizes); i++) {
		struct scene s;
		begin(&s, sizes[i / 4], i & 1, i & 2);
		memset(s.target->bytes, 0xaa, s.target->size); /* zeros must be written */
		s.options.nr_lanes = 3;
		s.options.piece_bytes = 65536u << (i % 3);
		s.source->most_extents = i % 5;
		assert_int_equal(go(&s), 0);
		check_copied(&s, false);
		end(&s);
	}
}

static void test_nothing_to_copy(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, 0, false, true);
	assert_int_equal(go(&s), 0);
	end(&s);
}

/* A target that starts as zeros gets none, at each granule. */
static void test_zeros_stay_away(void **state)
{
	(void)state;
	for (uint32_t granule = 512; granule <= 2 << 20; granule *= 4) {
		struct scene s;
		uint32_t unit = granule < 4096 ? 4096 : granule;
		begin(&s, SIZE, false, false);
		s.target->block.info.starts_zero = true;
		s.target->block.info.granule_bytes = granule;
		assert_int_equal(go(&s), 0);
		check_copied(&s, false);
		assert_int_equal(s.target->nr_zero_requests, 0);
		uint64_t expected = 0;
		for (size_t at = 0; at < SIZE; at += unit) {
			size_t n = min_size(unit, SIZE - at);
			expected += digest_is_zero(s.source->bytes + at, n) ? 0 : n;
		}
		assert_int_equal(s.progress.sent, expected);
		end(&s);
	}
}

static void test_scan(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, SIZE, true, false);
	assert_int_equal(copy_scan(&s.source->block, &s.options, &s.err), 0);
	check_told(s.told, s.source, false);
	assert_int_equal(s.progress.logical, SIZE);
	assert_int_equal(s.progress.sent, 0);
	end(&s);
}

static void test_sizes_differ(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, 4096, false, false);
	s.target->block.info.size_bytes = 8192;
	assert_int_equal(go(&s), -1);
	assert_int_equal(s.err.code, ERR_RANGE);
	assert_non_null(strstr(s.err.text, "4096"));
	assert_non_null(strstr(s.err.text, "8192"));
	end(&s);
}

static void fail_with(bool queues, uint64_t read_at, uint64_t write_at, bool refuse,
	enum err_code code, const char *text)
{
	struct scene s;
	begin(&s, SIZE, queues, queues);
	for (size_t i = 0; i < SIZE; i++)
		s.source->bytes[i] = 1;
	memset(s.source->holes, 0, SIZE / 512 + 1);
	s.source->fail_read_at = read_at;
	s.target->fail_write_at = write_at;
	s.told->refuse = refuse;
	assert_int_equal(go(&s), -1);
	assert_int_equal(s.err.code, code);
	assert_non_null(strstr(s.err.text, text));
	assert_int_equal(s.target->nr_flushes, 0);
	end(&s);
}

static void test_failures(void **state)
{
	(void)state;
	for (unsigned queues = 0; queues < 2; queues++) {
		fail_with(
			queues, 5 << 20, UINT64_MAX, false, ERR_IO, "read fake at offset 5242880");
		fail_with(queues, UINT64_MAX, 6 << 20, false, ERR_NO_SPACE,
			"write fake at offset 6291456");
		fail_with(queues, UINT64_MAX, UINT64_MAX, true, ERR_NO_SPACE, "no room");
	}
}

static void *request_cancel(void *arg)
{
	cancel_sleep(NULL, deadline_after_ms(50), NULL);
	cancel_request(arg);
	return NULL;
}

static void test_cancel_of_a_silent_disk(void **state)
{
	struct scene s;
	pthread_t thread;
	(void)state;
	begin(&s, SIZE, true, true);
	s.source->hang_reads = true;
	s.options.cancel = cancel_new(NULL);
	thread_start(&thread, "cancel", request_cancel, s.options.cancel, NULL);
	int64_t began = clock_now_ns();
	assert_int_equal(go(&s), -1);
	assert_true(clock_now_ns() - began < 1000000000);
	assert_int_equal(s.err.code, ERR_CANCELLED);
	pthread_join(thread, NULL);
	cancel_free(s.options.cancel);
	end(&s);
}

static void cancel_when_told(void *context, enum log_level level, const char *text)
{
	if (level == LOG_LEVEL_WARNING && strstr(text, "nothing was copied"))
		cancel_request(context);
}

/* A silence that nobody ends is not kept from the operator. */
static void test_silence_is_told(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, SIZE, true, true);
	s.source->hang_reads = true;
	s.options.silence_ms = 100;
	s.options.cancel = cancel_new(NULL);
	log_set_sink(cancel_when_told, s.options.cancel, LOG_LEVEL_WARNING);
	assert_int_equal(go(&s), -1);
	log_set_sink(NULL, NULL, LOG_LEVEL_ERROR);
	assert_int_equal(s.err.code, ERR_CANCELLED);
	cancel_free(s.options.cancel);
	end(&s);
}

static void test_cancel_of_a_slow_rate(void **state)
{
	struct scene s;
	pthread_t thread;
	(void)state;
	begin(&s, SIZE, false, false);
	s.options.rate_bytes_per_s = 1;
	s.options.cancel = cancel_new(NULL);
	thread_start(&thread, "cancel", request_cancel, s.options.cancel, NULL);
	int64_t began = clock_now_ns();
	assert_int_equal(go(&s), -1);
	assert_true(clock_now_ns() - began < 1000000000);
	assert_int_equal(s.err.code, ERR_CANCELLED);
	pthread_join(thread, NULL);
	cancel_free(s.options.cancel);
	end(&s);
}

/* The server dies after so many bytes, and comes back with what it flushed. */
static void test_losses(void **state)
{
	(void)state;
	for (unsigned i = 1; i <= 12; i++) {
		struct scene s;
		begin(&s, SIZE, i & 1, true);
		s.target->block.info.can_vanish = true;
		s.target->crash_at_byte = i * 150000;
		s.target->seed = i;
		memset(s.target->durable, 0xaa, SIZE);
		s.options.nr_lanes = 1 + i % 3;
		s.options.piece_bytes = 65536;
		assert_int_equal(go(&s), 0);
		assert_int_equal(s.target->nr_crashes, 1);
		check_copied(&s, true);
		end(&s);
	}
}

/* Fewer connections than wished for do, and nobody waits for them at the end. */
/* A server that dies every few MiB: flushes come so often that the copy gets on. */
static void test_losses_again_and_again(void **state)
{
	(void)state;
	for (unsigned lanes = 1; lanes <= 2; lanes++) {
		struct scene s;
		begin(&s, 3 * SIZE, false, true);
		s.target->block.info.can_vanish = true;
		s.target->crash_each_bytes = 6 * MIB;
		s.options.nr_lanes = lanes;
		/* The fake answers in any order: far less in flight than it lives. */
		s.options.nr_in_flight = 4;
		s.options.piece_bytes = 65536;
		assert_int_equal(go(&s), 0);
		assert_true(s.target->nr_crashes > 1);
		check_copied(&s, true);
		end(&s);
	}
}

/* One that keeps nothing is given up. */
static void test_losses_without_end(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, SIZE, false, true);
	s.target->block.info.can_vanish = true;
	s.target->crash_each_bytes = 200000;
	s.options.nr_lanes = 1;
	assert_int_equal(go(&s), -1);
	assert_int_equal(s.err.code, ERR_DISCONNECTED);
	assert_non_null(strstr(s.err.text, "times"));
	end(&s);
}

static void test_lanes_that_do_not_open(void **state)
{
	(void)state;
	for (unsigned hang = 0; hang < 2; hang++) {
		struct scene s;
		begin(&s, SIZE, true, true);
		s.source->most_lanes = 1;
		s.source->hang_lanes = hang;
		s.options.nr_lanes = 4;
		s.options.piece_bytes = 65536;
		int64_t began = clock_now_ns();
		assert_int_equal(go(&s), 0);
		assert_true(clock_now_ns() - began < 10000000000);
		check_copied(&s, false);
		end(&s);
	}
}

static void test_no_lane_opens(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, SIZE, true, true);
	s.target->most_lanes = 1;
	s.target->nr_lanes = 1; /* somebody else's */
	assert_int_equal(go(&s), -1);
	assert_int_equal(s.err.code, ERR_REFUSED);
	s.target->nr_lanes = 0;
	end(&s);
}

static void test_one_lane_for_a_target_that_wants_one(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, SIZE, true, true);
	s.target->block.info.multi_lane = false;
	s.target->most_lanes = 1;
	s.options.nr_lanes = 4;
	s.options.nr_in_flight = 4;
	s.options.piece_bytes = 65536;
	assert_int_equal(go(&s), 0);
	assert_true(s.source->most_in_flight <= 4 * 8 + 1);
	check_copied(&s, false);
	end(&s);
}

/* Memory bounds what is in flight, and it is used: a long link needs that. */
static void test_in_flight(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, SIZE, true, false);
	memset(s.source->bytes, 1, SIZE);
	memset(s.source->holes, 0, SIZE / 512 + 1);
	s.options.piece_bytes = 65536;
	s.options.nr_lanes = 2;
	s.options.nr_in_flight = 64;
	s.options.memory_bytes = 32 * 65536;
	assert_int_equal(go(&s), 0);
	assert_true(s.source->most_in_flight <= 32 + 1); /* and one for the map */
	assert_true(s.source->most_in_flight >= 16);
	check_copied(&s, false);
	end(&s);
}

static void test_rate(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, 4 << 20, false, false);
	memset(s.source->bytes, 1, 4 << 20);
	memset(s.source->holes, 0, (4 << 20) / 512);
	s.options.rate_bytes_per_s = 16 << 20;
	int64_t began = clock_now_ns();
	assert_int_equal(go(&s), 0);
	/* 0.25 s, less the last piece and what may be caught up at the start */
	assert_true(clock_now_ns() - began > 100000000);
	check_copied(&s, false);
	end(&s);
}

static void test_bad_piece(void **state)
{
	struct scene s;
	(void)state;
	begin(&s, 4096, false, false);
	s.options.piece_bytes = 100000;
	assert_int_equal(go(&s), -1);
	assert_int_equal(s.err.code, ERR_USAGE);
	end(&s);
}

/* A file that is cut short while it is copied. */
static void test_source_shrinks(void **state)
{
	char path[] = "/tmp/test_copy.XXXXXX";
	struct err err = ERR_INIT;
	struct copy_options options = {0};
	int fd = mkstemp(path);
	(void)state;
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	assert_int_equal(pwrite(fd, "x", 1, 900000), 1);
	struct block *source = block_raw_open(path, true, &err);
	struct block *target = block_null_open(1 << 20, &err);
	assert_non_null(source);
	assert_int_equal(ftruncate(fd, 100), 0);
	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	assert_int_equal(copy_run(source, target, &options, &err), -1);
	assert_int_equal(err.code, ERR_IO);
	assert_non_null(strstr(err.text, "ends at offset 100"));
	block_close(source, NULL);
	block_close(target, NULL);
	unlink(path);
	close(fd);
}

int main(void)
{
	static const uint8_t seed[DIGEST_SEED_BYTES] = {3};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_all_kinds_and_sizes),
		cmocka_unit_test(test_nothing_to_copy),
		cmocka_unit_test(test_zeros_stay_away),
		cmocka_unit_test(test_scan),
		cmocka_unit_test(test_sizes_differ),
		cmocka_unit_test(test_failures),
		cmocka_unit_test(test_cancel_of_a_silent_disk),
		cmocka_unit_test(test_silence_is_told),
		cmocka_unit_test(test_cancel_of_a_slow_rate),
		cmocka_unit_test(test_losses),
		cmocka_unit_test(test_losses_again_and_again),
		cmocka_unit_test(test_losses_without_end),
		cmocka_unit_test(test_lanes_that_do_not_open),
		cmocka_unit_test(test_no_lane_opens),
		cmocka_unit_test(test_one_lane_for_a_target_that_wants_one),
		cmocka_unit_test(test_in_flight),
		cmocka_unit_test(test_rate),
		cmocka_unit_test(test_bad_piece),
		cmocka_unit_test(test_source_shrinks),
	};
	digest_key_init(&key, DIGEST_XXH3_128, seed);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
