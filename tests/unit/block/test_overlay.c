/* The overlay: a shadow in memory, many threads, the limit, a disk of 64 TiB. */
#include "test_support.h"

#include <sched.h>
#include <sys/resource.h>

#define CELL 65536u
#define DISK_BYTES (24 * CELL + 1000)
#define NR_THREADS 4
#define NR_ROUNDS 150

static struct block *make_base(uint8_t *content)
{
	struct err err = ERR_INIT;
	struct block *base = block_raw_create(test_path("disk"), DISK_BYTES, false, &err);
	assert_non_null(base);
	unsigned seed = 3;
	for (size_t i = 0; i < DISK_BYTES; i++)
		content[i] = i / CELL % 3 == 2 ? 0 : (uint8_t)rand_r(&seed);
	assert_ok(block_write(base, content, DISK_BYTES, 0, 0, &err));
	assert_ok(block_close(base, &err));
	base = block_raw_open(test_path("disk"), true, &err);
	assert_non_null(base);
	return base;
}

struct worker {
	struct block *disk;
	uint8_t *shadow;
	unsigned index, seed;
	pthread_barrier_t *start;
	char problem[ERR_TEXT_BYTES];
};

/*
 * Each worker owns every fourth piece of 1,000 bytes: pieces of different
 * workers meet in the same cells, and nobody changes another one's bytes.
 */
static void *work_main(void *arg)
{
	struct worker *w = arg;
	unsigned seed = w->seed;
	uint8_t buffer[1000];
	struct err err = ERR_INIT;
	pthread_barrier_wait(w->start);
	for (unsigned round = 0; round < NR_ROUNDS; round++) {
		uint64_t nr_pieces = DISK_BYTES / 1000;
		uint64_t piece = (uint64_t)rand_r(&seed) % nr_pieces;
		piece -= piece % NR_THREADS;
		piece += w->index;
		if (piece >= nr_pieces)
			continue;
		uint64_t from = (uint64_t)rand_r(&seed) % 1000;
		size_t length = 1 + (size_t)rand_r(&seed) % (1000 - from);
		uint64_t offset = piece * 1000 + from;
		int rc = 0;
		switch (rand_r(&seed) % 3) {
		case 0:
			memset(buffer, (int)(1 + round % 255), length);
			memcpy(w->shadow + offset, buffer, length);
			rc = block_write(w->disk, buffer, length, offset, 0, &err);
			break;
		case 1:
			memset(w->shadow + offset, 0, length);
			rc = block_zero(w->disk, offset, length, 0, &err);
			break;
		default:
			rc = block_read(w->disk, buffer, length, offset, &err);
			if (rc == 0 && memcmp(buffer, w->shadow + offset, length) != 0)
				rc = err_set(&err, ERR_CORRUPT, "wrong bytes at %llu",
					(unsigned long long)offset);
		}
		if (rc < 0) {
			memcpy(w->problem, err.text, sizeof w->problem);
			return NULL;
		}
	}
	return NULL;
}

/* A base that takes its time, so that others come in between. */
struct slow {
	struct block block;
	uint8_t bytes[DISK_BYTES];
};

static int slow_read(
	struct block *block, void *buffer, size_t length, uint64_t offset, struct err *err)
{
	(void)err;
	for (unsigned i = 0; i < 20; i++)
		sched_yield();
	memcpy(buffer, ((struct slow *)block)->bytes + offset, length);
	return 0;
}

static int slow_close(struct block *block, struct err *err)
{
	(void)err;
	block_fini(block);
	return 0;
}

static const struct block_driver slow_driver = {
	.name = "slow", .read = slow_read, .close = slow_close};

static void storm(struct block *base, const uint8_t *content, unsigned round)
{
	static uint8_t shadow[DISK_BYTES], bytes[DISK_BYTES];
	struct err err = ERR_INIT;
	memcpy(shadow, content, DISK_BYTES);
	struct block *disk = block_overlay_open(base, test_folder, 0, &err);
	assert_non_null(disk);
	struct worker workers[NR_THREADS];
	pthread_t threads[NR_THREADS];
	pthread_barrier_t start;
	pthread_barrier_init(&start, NULL, NR_THREADS);
	for (unsigned i = 0; i < NR_THREADS; i++) {
		workers[i] = (struct worker){.disk = disk,
			.shadow = shadow,
			.index = i,
			.seed = round * 100 + i,
			.start = &start};
		assert_ok(thread_start(&threads[i], "worker", work_main, &workers[i], &err));
	}
	for (unsigned i = 0; i < NR_THREADS; i++)
		pthread_join(threads[i], NULL);
	pthread_barrier_destroy(&start);
	for (unsigned i = 0; i < NR_THREADS; i++)
		assert_string_equal(workers[i].problem, "");
	assert_ok(block_read(disk, bytes, DISK_BYTES, 0, &err));
	assert_memory_equal(bytes, shadow, DISK_BYTES);
	assert_ok(block_flush(disk, &err));
	assert_ok(block_close(disk, &err));
}

/* Cells are filled once: many overlays see that moment more often than one. */
static void test_storm_against_shadow(void **state)
{
	(void)state;
	static struct slow base;
	static uint8_t content[DISK_BYTES];
	unsigned seed = 3;
	for (size_t i = 0; i < DISK_BYTES; i++)
		content[i] = i / CELL % 3 == 2 ? 0 : (uint8_t)rand_r(&seed);
	memcpy(base.bytes, content, DISK_BYTES);
	block_init(&base.block, &slow_driver, NULL);
	base.block.info = (struct block_info){
		.size_bytes = DISK_BYTES, .read_only = true, .granule_bytes = 4096};
	for (unsigned round = 0; round < 20; round++)
		storm(&base.block, content, round);
	/* Nothing of all this has reached the base. */
	assert_memory_equal(base.bytes, content, DISK_BYTES);
	block_close(&base.block, NULL);
}

static void test_whole_and_wide_writes(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	uint8_t *AUTO_FREE shadow = malloc(DISK_BYTES);
	uint8_t *AUTO_FREE bytes = malloc(DISK_BYTES);
	struct block *base = make_base(shadow);
	struct block *disk = block_overlay_open(base, test_folder, 0, &err);
	unsigned seed = 5;
	for (unsigned round = 0; round < 60; round++) {
		uint64_t offset = (uint64_t)rand_r(&seed) % DISK_BYTES;
		size_t length = 1 + (size_t)rand_r(&seed) % (DISK_BYTES - (size_t)offset);
		if (round % 4 == 0) {
			offset = offset / CELL * CELL;
			length = (size_t)min_u64(3 * CELL, DISK_BYTES - offset);
		}
		if (round % 3 == 0) {
			memset(shadow + offset, 0, length);
			assert_ok(block_zero(disk, offset, length, 0, &err));
		} else {
			memset(shadow + offset, (int)round, length);
			assert_ok(block_write(disk, shadow + offset, length, offset, 0, &err));
		}
		assert_ok(block_read(disk, bytes, DISK_BYTES, 0, &err));
		assert_memory_equal(bytes, shadow, DISK_BYTES);
	}
	block_close(disk, NULL);
	block_close(base, NULL);
}

static void test_limit(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	uint8_t *AUTO_FREE content = malloc(DISK_BYTES);
	uint8_t *AUTO_FREE bytes = malloc(DISK_BYTES);
	struct block *base = make_base(content);
	struct block *disk = block_overlay_open(base, test_folder, 2 * CELL, &err);
	assert_ok(block_write(disk, "a", 1, 0, 0, &err));
	assert_ok(block_write(disk, "b", 1, 5 * CELL, 0, &err));
	assert_fails(block_write(disk, "c", 1, 7 * CELL, 0, &err), ERR_NO_SPACE);
	assert_non_null(strstr(err.text, "the scratch limit of 131072 bytes of overlay over raw:"));
	assert_fails(block_write(disk, content, 2 * CELL, 4 * CELL, 0, &err), ERR_NO_SPACE);
	/* What is there can be written again, and the rest still reads. */
	assert_ok(block_write(disk, "d", 1, 5 * CELL + 3, 0, &err));
	assert_ok(block_read(disk, bytes, DISK_BYTES, 0, &err));
	content[0] = 'a';
	content[5 * CELL] = 'b';
	content[5 * CELL + 3] = 'd';
	assert_memory_equal(bytes, content, DISK_BYTES);
	assert_true(block_stored_bytes(disk) <= 2 * CELL + 4096);
	block_close(disk, NULL);
	block_close(base, NULL);
}

/* A cell whose filling failed is given back to the limit. */
static void test_failed_writes_use_nothing_up(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *base = block_raw_create(test_path("disk"), 10 * CELL, false, &err);
	struct block *disk = block_overlay_open(base, test_folder, 2 * CELL, &err);
	assert_int_equal(truncate(test_path("disk"), 0), 0);
	for (unsigned i = 0; i < 5; i++)
		assert_fails(block_write(disk, "x", 1, i * CELL, 0, &err), ERR_IO);
	assert_int_equal(truncate(test_path("disk"), 10 * CELL), 0);
	assert_ok(block_write(disk, "x", 1, 3 * CELL, 0, &err));
	assert_ok(block_write(disk, "x", 1, 4 * CELL, 0, &err));
	assert_fails(block_write(disk, "x", 1, 5 * CELL, 0, &err), ERR_NO_SPACE);
	block_close(disk, NULL);
	block_close(base, NULL);
}

static void test_extents(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *base = block_null_open(10 * CELL, &err);
	struct block *disk = block_overlay_open(base, test_folder, 0, &err);
	assert_true(block_info(disk)->starts_zero);
	assert_ok(block_write(disk, "x", 1, 3 * CELL + 5, 0, &err));
	struct block_extent e[8];
	size_t nr;
	uint64_t at = 0, expected[][2] = {{3 * CELL, BLOCK_HOLE | BLOCK_ZERO}, {CELL, 0},
				 {6 * CELL, BLOCK_HOLE | BLOCK_ZERO}};
	for (size_t i = 0; i < 3; i++) {
		assert_ok(block_extents(disk, at, 10 * CELL - at, e, 8, &nr, &err));
		assert_true(e[0].length == expected[i][0] && e[0].flags == expected[i][1]);
		at += e[0].length;
	}
	assert_true(at == 10 * CELL);
	block_close(disk, NULL);
	block_close(base, NULL);
}

/* Every other cell is unchanged. */
static int tell_changes(void *context, uint64_t offset, const struct block_extent *from,
	size_t nr_from, struct block_extent *out, size_t max, size_t *nr, struct err *err)
{
	uint64_t at = offset, end = offset;
	(void)context, (void)err;
	for (size_t i = 0; i < nr_from; i++)
		end += from[i].length;
	for (*nr = 0; at < end;) {
		uint64_t next = min_u64(round_down(at, CELL) + CELL, end);
		if (!block_remap_put(out, max, nr, next - at, at / CELL % 2 ? BLOCK_UNCHANGED : 0))
			break;
		at = next;
	}
	return 0;
}

/* What the base says of changes is not true of what was written over it. */
static void test_changes_are_not_told(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *null = block_null_open(10 * CELL, &err);
	struct block *base = block_remap_open(null, tell_changes, NULL, &err);
	struct block *disk = block_overlay_open(base, test_folder, 0, &err);
	struct block_extent e[16];
	size_t nr;
	assert_true(block_info(base)->has_changes && !block_info(disk)->has_changes);
	assert_ok(block_extents(base, 0, 10 * CELL, e, 16, &nr, &err));
	assert_int_equal(nr, 10);
	assert_int_equal(e[1].flags, BLOCK_UNCHANGED);
	assert_ok(block_extents(disk, 0, 10 * CELL, e, 16, &nr, &err));
	for (size_t i = 0; i < nr; i++)
		assert_int_equal(e[i].flags, 0);
	block_close(disk, NULL);
	block_close(base, NULL);
	block_close(null, NULL);
}

static void test_unchanged_units(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	uint32_t unchanged;
	struct block *null = block_null_open(40 * CELL, &err);
	struct block *disk = block_remap_open(null, tell_changes, NULL, &err);
	assert_ok(block_unchanged(disk, 0, 10 * CELL, CELL, &unchanged, &err));
	assert_int_equal(unchanged, 0x2aa);
	/* All 32, and one that is short. */
	assert_ok(block_unchanged(disk, CELL, 32 * CELL, CELL, &unchanged, &err));
	assert_int_equal(unchanged, 0x55555555);
	assert_ok(block_unchanged(disk, CELL, 2 * CELL + 1, CELL, &unchanged, &err));
	assert_int_equal(unchanged, 5);
	/* None that is changed in part. */
	assert_ok(block_unchanged(disk, 0, 10 * CELL, 2 * CELL, &unchanged, &err));
	assert_int_equal(unchanged, 0);
	assert_ok(block_unchanged(disk, CELL / 2, 2 * CELL, CELL / 2, &unchanged, &err));
	assert_int_equal(unchanged, 6);
	/* Of a disk that does not know, nothing. */
	assert_ok(block_unchanged(null, 0, 10 * CELL, CELL, &unchanged, &err));
	assert_int_equal(unchanged, 0);
	block_close(disk, NULL);
	block_close(null, NULL);
}

static long peak_kib(void)
{
	struct rusage usage;
	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_maxrss;
}

static void test_a_large_disk_needs_little_memory(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	uint64_t size = 64 * TIB + 512;
	struct block *base = block_null_open(size, &err);
	long before = peak_kib();
	struct block *disk = block_overlay_open(base, test_folder, 0, &err);
	if (!disk)
		fail_msg("%s", err.text);
	char out[2];
	uint64_t offset = 1;
	for (unsigned i = 0; i < 64; i++, offset += TIB - 7) {
		assert_ok(block_write(disk, "xy", 2, offset, 0, &err));
		assert_ok(block_read(disk, out, 2, offset, &err));
		assert_memory_equal(out, "xy", 2);
	}
	assert_ok(block_write(disk, "z", 1, size - 1, 0, &err));
	assert_ok(block_read(disk, out, 2, size - 2, &err));
	assert_memory_equal(out, "\0z", 2);
	assert_in_range(peak_kib() - before, 0, 16 * 1024);
	/* Zeros where the base reads as zeros are not worth a cell. */
	uint64_t stored = block_stored_bytes(disk);
	assert_ok(block_zero(disk, TIB / 2, 4 * TIB, 0, &err));
	assert_true(block_stored_bytes(disk) <= stored);
	assert_in_range(peak_kib() - before, 0, 32 * 1024);
	block_close(disk, NULL);
	block_close(base, NULL);
}

static void test_bad_folder(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *base = block_null_open(100, &err);
	assert_null(block_overlay_open(base, test_path("none"), 0, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_non_null(strstr(err.text, "cannot make a scratch file in "));
	block_close(base, NULL);
	base = block_null_open(INT64_MAX, &err);
	assert_null(block_overlay_open(base, test_folder, 0, &err));
	assert_int_equal(err.code, ERR_UNSUPPORTED);
	block_close(base, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			test_storm_against_shadow, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_whole_and_wide_writes, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(test_limit, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_failed_writes_use_nothing_up, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(test_extents, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_changes_are_not_told, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_unchanged_units, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_a_large_disk_needs_little_memory, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_bad_folder, test_make_folder, test_drop_folder),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
