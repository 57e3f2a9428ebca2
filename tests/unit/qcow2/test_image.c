/* Open images: what they tell of themselves, zeroing, chains, the dirty mark. */
#include "qcow2_internal.h"
#include "test_support.h"

#include <signal.h>
#include <sys/resource.h>

#define SIZE (8 * MIB)

static struct block *open_disk(bool read_only)
{
	struct err err = ERR_INIT;
	struct qcow2_open_options options = {.read_only = read_only};
	struct block *disk = qcow2_open(test_path("disk"), &options, &err);
	if (!disk)
		fail_msg("%s", err.text);
	return disk;
}

static struct block *new_disk(const char *backing, const char *format)
{
	struct err err = ERR_INIT;
	struct qcow2_create_options options = {
		.size_bytes = SIZE, .backing_file = backing, .backing_format = format};
	assert_ok(qcow2_create(test_path("disk"), &options, &err));
	return open_disk(false);
}

static void make_base(void)
{
	struct err err = ERR_INIT;
	struct block *base = block_raw_create(test_path("base"), 3 * MIB + 512, false, &err);
	uint8_t *AUTO_FREE bytes = malloc(3 * MIB);
	memset(bytes, 'b', 3 * MIB);
	assert_non_null(base);
	assert_ok(block_write(base, bytes, 3 * MIB, 512, 0, &err));
	assert_ok(block_close(base, &err));
}

static void assert_bytes(struct block *disk, uint64_t offset, size_t length, uint8_t value)
{
	struct err err = ERR_INIT;
	uint8_t *AUTO_FREE bytes = malloc(length);
	assert_ok(block_read(disk, bytes, length, offset, &err));
	for (size_t i = 0; i < length; i++)
		if (bytes[i] != value)
			fail_msg("byte %zu is %02x, not %02x", (size_t)offset + i, bytes[i], value);
}

static uint32_t flags_at(struct block *disk, uint64_t offset)
{
	struct err err = ERR_INIT;
	struct block_extent extent;
	size_t nr;
	assert_ok(block_extents(disk, offset, 4096, &extent, 1, &nr, &err));
	assert_int_equal(extent.length, 4096);
	return extent.flags;
}

static void tells_of_itself(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *disk = new_disk(NULL, NULL);
	const struct block_info *info = block_info(disk);
	assert_int_equal(info->size_bytes, SIZE);
	assert_int_equal(info->granule_bytes, 65536);
	assert_true(info->starts_zero && info->has_extents && info->can_zero && info->can_trim);
	assert_true(info->can_fast_zero && info->multi_lane && !info->read_only);
	assert_int_equal(qcow2_chain_length(disk), 1);
	assert_ok(block_write(disk, "data", 4, 100, 0, &err));
	assert_true(block_stored_bytes(disk) > 0);
	assert_ok(block_close(disk, &err));

	disk = open_disk(false);
	assert_false(block_info(disk)->starts_zero);
	assert_ok(block_close(disk, &err));
}

static void is_dirty_while_it_changes(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct qcow2_facts facts;
	struct block *disk = new_disk(NULL, NULL);
	assert_ok(qcow2_facts(test_path("disk"), &facts, &err));
	assert_false(facts.dirty);
	assert_ok(block_write(disk, "data", 4, 100, 0, &err));
	assert_ok(qcow2_facts(test_path("disk"), &facts, &err));
	assert_true(facts.dirty);
	assert_ok(block_close(disk, &err));
	assert_ok(qcow2_facts(test_path("disk"), &facts, &err));
	assert_false(facts.dirty);
}

static void zeroes_without_a_backing_file(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *disk = new_disk(NULL, NULL);
	uint8_t *AUTO_FREE bytes = malloc(MIB);
	memset(bytes, 'x', MIB);
	uint64_t empty = block_stored_bytes(disk);
	assert_ok(block_zero(disk, 0, SIZE, 0, &err));
	assert_ok(block_flush(disk, &err));
	assert_int_equal(block_stored_bytes(disk), empty);

	assert_ok(block_write(disk, bytes, MIB, 0, 0, &err));
	assert_int_equal(flags_at(disk, 0), 0);
	assert_ok(block_zero(disk, 0, 65536, 0, &err));
	assert_int_equal(flags_at(disk, 0), BLOCK_HOLE | BLOCK_ZERO);
	assert_ok(block_zero(disk, 65536, 65536, BLOCK_NO_HOLE, &err));
	assert_int_equal(flags_at(disk, 65536), BLOCK_ZERO);
	assert_ok(block_zero(disk, 2 * MIB, 65536, BLOCK_NO_HOLE, &err));
	assert_int_equal(flags_at(disk, 2 * MIB), BLOCK_ZERO);
	assert_bytes(disk, 0, 131072, 0);
	assert_bytes(disk, 131072, MIB - 131072, 'x');

	assert_fails(block_zero(disk, 200000, 100, BLOCK_FAST_ZERO, &err), ERR_UNSUPPORTED);
	assert_ok(block_zero(disk, 3 * MIB + 100, 100, BLOCK_FAST_ZERO, &err));
	assert_ok(block_zero(disk, 200000, 100, 0, &err));
	assert_bytes(disk, 200000, 100, 0);
	assert_bytes(disk, 200100, 100, 'x');
	assert_ok(block_close(disk, &err));
}

static void zeroes_over_a_backing_file(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	make_base();
	struct block *disk = new_disk("base", "raw");
	assert_int_equal(qcow2_chain_length(disk), 2);
	assert_false(block_info(disk)->starts_zero);
	assert_bytes(disk, 0, 512, 0);
	assert_bytes(disk, 512, 3 * MIB, 'b');
	assert_bytes(disk, 3 * MIB + 512, 4096, 0);
	assert_ok(block_zero(disk, MIB, 65536, 0, &err));
	assert_ok(block_trim(disk, MIB + 65536, 65536, 0, &err));
	assert_bytes(disk, MIB, 131072, 0);
	assert_bytes(disk, MIB + 131072, 4096, 'b');
	/* Part of a cluster brings the rest of it along. */
	assert_ok(block_write(disk, "x", 1, 2 * MIB + 5, 0, &err));
	assert_bytes(disk, 2 * MIB, 5, 'b');
	assert_bytes(disk, 2 * MIB + 6, 70000, 'b');
	assert_ok(block_close(disk, &err));
}

static void grows_only_by_what_it_keeps(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct qcow2_check_result result;
	struct block *disk = new_disk(NULL, NULL);
	uint8_t *AUTO_FREE bytes = malloc(MIB);
	memset(bytes, 'x', MIB);
	/* Freed clusters are used again once their freeing is durable. */
	for (int i = 0; i < 40; i++) {
		assert_ok(block_write(disk, bytes, MIB, 0, 0, &err));
		assert_ok(block_trim(disk, 0, MIB, 0, &err));
		assert_ok(block_flush(disk, &err));
	}
	assert_true(block_stored_bytes(disk) < 2 * MIB);
	assert_ok(block_close(disk, &err));
	assert_ok(qcow2_check(test_path("disk"), false, NULL, NULL, NULL, &result, &err));
	assert_int_equal(result.errors + result.leaks, 0);
	assert_true(result.end_offset < 4 * MIB);
}

/* The first half of each cluster, so that they compress and share host clusters. */
static void fill_half(uint8_t *bytes, size_t length, uint64_t seed)
{
	for (size_t i = 0; i < length; i++) {
		seed = seed * 6364136223846793005u + 1442695040888963407u;
		bytes[i] = i % 65536 < 20000 ? (uint8_t)(seed >> 33) : 0;
	}
}

static void gives_the_space_of_compressed_clusters_back(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct qcow2_create_options options = {.size_bytes = SIZE};
	struct qcow2_open_options compressed = {.compress = true};
	uint8_t *AUTO_FREE bytes = malloc(SIZE);
	assert_ok(qcow2_create(test_path("disk"), &options, &err));
	struct block *disk = qcow2_open(test_path("disk"), &compressed, &err);
	assert_non_null(disk);
	uint64_t empty = block_stored_bytes(disk), full = 0;
	for (unsigned i = 1; i <= 4; i++) {
		fill_half(bytes, SIZE, i);
		assert_ok(block_write(disk, bytes, SIZE, 0, 0, &err));
		assert_ok(block_flush(disk, &err));
		if (i == 1)
			full = block_stored_bytes(disk);
		assert_true(block_stored_bytes(disk) < full + full / 4);
	}
	assert_ok(block_zero(disk, 0, SIZE, 0, &err));
	assert_ok(block_flush(disk, &err));
	assert_true(block_stored_bytes(disk) < empty + MIB / 2);
	assert_ok(block_close(disk, &err));
}

static void corrupt_images_are_only_read(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_ok(block_close(new_disk(NULL, NULL), &err));
	int fd = open(test_path("disk"), O_RDWR);
	const uint8_t corrupt = 2;
	assert_int_equal(pwrite(fd, &corrupt, 1, 79), 1);
	close(fd);
	struct qcow2_open_options options = {0};
	assert_null(qcow2_open(test_path("disk"), &options, &err));
	assert_int_equal(err.code, ERR_CORRUPT);
	assert_ok(block_close(open_disk(true), &err));
}

static void creation_is_refused(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	const char *path = test_path("disk");
	const struct qcow2_create_options bad[] = {
		{.size_bytes = 100},
		{.size_bytes = MIB, .cluster_bytes = 1000},
		{.size_bytes = MIB, .cluster_bytes = 256},
		{.size_bytes = MIB, .cluster_bytes = 4 * MIB},
		{.size_bytes = (uint64_t)1 << 62},
		{.size_bytes = (uint64_t)1 << 63},
		{.size_bytes = MIB, .backing_file = "base"},
		{.size_bytes = MIB, .backing_file = "base", .backing_format = "vmdk"},
		{.size_bytes = MIB, .backing_file = "", .backing_format = "raw"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(bad); i++) {
		assert_fails(qcow2_create(path, &bad[i], &err), ERR_USAGE);
		assert_int_equal(access(path, F_OK), -1);
	}
	struct qcow2_create_options good = {.size_bytes = 0};
	assert_ok(qcow2_create(path, &good, &err));
	assert_fails(qcow2_create(path, &good, &err), ERR_EXISTS);
	good.replace = true;
	good.size_bytes = 512;
	assert_ok(qcow2_create(path, &good, &err));
}

static void writers_and_readers_lock_each_other_out(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct qcow2_open_options to_write = {0}, to_read = {.read_only = true};
	struct qcow2_create_options again = {.size_bytes = SIZE, .replace = true};
	struct qcow2_check_result result;
	const char *path = test_path("disk");
	struct block *disk = new_disk(NULL, NULL);
	assert_ok(block_write(disk, "data", 4, 0, 0, &err));
	assert_ok(block_flush(disk, &err));
	assert_null(qcow2_open(path, &to_write, &err));
	assert_int_equal(err.code, ERR_BUSY);
	err_clear(&err);
	assert_null(qcow2_open(path, &to_read, &err));
	assert_int_equal(err.code, ERR_BUSY);
	assert_fails(qcow2_check(path, false, NULL, NULL, NULL, &result, &err), ERR_BUSY);
	assert_fails(qcow2_create(path, &again, &err), ERR_BUSY);
	assert_ok(block_close(disk, &err));

	disk = open_disk(true);
	struct block *other = open_disk(true);
	assert_bytes(other, 4, 4096, 0);
	assert_ok(qcow2_check(path, false, NULL, NULL, NULL, &result, &err));
	assert_int_equal(result.errors + result.leaks, 0);
	assert_ok(block_close(other, &err));
	assert_null(qcow2_open(path, &to_write, &err));
	assert_int_equal(err.code, ERR_BUSY);
	assert_fails(qcow2_check(path, true, NULL, NULL, NULL, &result, &err), ERR_BUSY);
	assert_ok(block_close(disk, &err));
	assert_ok(block_close(open_disk(false), &err));
}

/* A write for whose L2 table there is no room any more. */
static void a_write_that_fails_leaks_nothing(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct rlimit before, tight;
	struct qcow2_check_result result;
	struct block *disk = new_disk(NULL, NULL);
	static uint8_t bytes[65536];
	memset(bytes, 'x', sizeof bytes);
	getrlimit(RLIMIT_FSIZE, &before);
	tight = before;
	tight.rlim_cur = (rlim_t)5 * 65536; /* one more than it has */
	signal(SIGXFSZ, SIG_IGN);
	setrlimit(RLIMIT_FSIZE, &tight);
	int rc = block_write(disk, bytes, 65536, 0, 0, &err);
	setrlimit(RLIMIT_FSIZE, &before);
	assert_int_equal(rc, -1);
	assert_ok(block_close(disk, &err));
	assert_ok(qcow2_check(test_path("disk"), false, NULL, NULL, NULL, &result, &err));
	assert_int_equal(result.errors + result.leaks, 0);
}

/* Of a thousand images in a chain, each may have 64 MiB of snapshots' names. */
static void tables_of_backing_files_are_not_kept(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	uint8_t snapshots[12];
	struct qcow2_create_options options = {.size_bytes = SIZE};
	assert_ok(qcow2_create(test_path("base"), &options, &err));
	be32_put(snapshots, 1);
	be64_put(snapshots + 4, 3 * 65536); /* zeros, which is a snapshot of nothing */
	int AUTO_CLOSE fd = open(test_path("base"), O_RDWR);
	assert_int_equal(pwrite(fd, snapshots, sizeof snapshots, 60), sizeof snapshots);
	struct block *disk = new_disk("base", "qcow2");
	assert_null(qcow2_image_of(disk)->backing->h.snapshots_raw);
	assert_ok(block_close(disk, &err));
}

/* Flushes a disk in the middle of a request: after the tables were asked. */
static struct block *flush_in_between;

int __real_qcow2_read_is_zero(
	struct qcow2_image *image, uint64_t offset, uint64_t length, bool *zero, struct err *err);
int __wrap_qcow2_read_is_zero(
	struct qcow2_image *image, uint64_t offset, uint64_t length, bool *zero, struct err *err);

int __wrap_qcow2_read_is_zero(
	struct qcow2_image *image, uint64_t offset, uint64_t length, bool *zero, struct err *err)
{
	struct block *disk = flush_in_between;
	int rc = __real_qcow2_read_is_zero(image, offset, length, zero, err);
	flush_in_between = NULL;
	return rc == 0 && disk ? block_flush(disk, err) : rc;
}

/* What was assembled and is written out meanwhile is zeroed all the same. */
static void zeroes_what_leaves_the_assembly_buffer(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct qcow2_create_options options = {.size_bytes = SIZE};
	struct qcow2_open_options compressed = {.compress = true};
	assert_ok(qcow2_create(test_path("disk"), &options, &err));
	struct block *disk = qcow2_open(test_path("disk"), &compressed, &err);
	assert_non_null(disk);
	assert_ok(block_write(disk, "data", 4, 100, 0, &err));
	flush_in_between = disk;
	assert_ok(block_zero(disk, 100, 4, 0, &err));
	assert_null(flush_in_between);
	assert_bytes(disk, 100, 4, 0);
	assert_ok(block_close(disk, &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		test_in_folder(tells_of_itself),
		test_in_folder(is_dirty_while_it_changes),
		test_in_folder(zeroes_without_a_backing_file),
		test_in_folder(zeroes_over_a_backing_file),
		test_in_folder(grows_only_by_what_it_keeps),
		test_in_folder(gives_the_space_of_compressed_clusters_back),
		test_in_folder(corrupt_images_are_only_read),
		test_in_folder(creation_is_refused),
		test_in_folder(writers_and_readers_lock_each_other_out),
		test_in_folder(a_write_that_fails_leaks_nothing),
		test_in_folder(tables_of_backing_files_are_not_kept),
		test_in_folder(zeroes_what_leaves_the_assembly_buffer),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
