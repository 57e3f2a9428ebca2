/* Raw files: holes, zeroing, making and replacing; a block device where there is one. */
#include "test_support.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

static void test_create_and_holes(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *b = block_raw_create(test_path("disk"), 10 * MIB + 512, false, &err);
	assert_non_null(b);
	assert_true(block_info(b)->starts_zero);
	assert_true(block_info(b)->size_bytes == 10 * MIB + 512);
	struct block_extent e[4];
	size_t nr;
	assert_ok(block_extents(b, 0, 10 * MIB + 512, e, 4, &nr, &err));
	assert_int_equal(nr, 1);
	assert_int_equal(e[0].flags, BLOCK_HOLE | BLOCK_ZERO);
	char out[3] = {0};
	assert_ok(block_write(b, "abc", 3, 3 * MIB - 1, BLOCK_FUA, &err));
	assert_ok(block_read(b, out, 3, 3 * MIB - 1, &err));
	assert_memory_equal(out, "abc", 3);
	/* hole, data, hole; one at a time as well as all at once */
	assert_ok(block_extents(b, 0, 10 * MIB + 512, e, 4, &nr, &err));
	assert_int_equal(nr, 3);
	assert_int_equal(e[1].flags, 0);
	assert_true(e[0].length < 3 * MIB && e[0].length + e[1].length > 3 * MIB);
	assert_true(e[0].length + e[1].length + e[2].length == 10 * MIB + 512);
	struct block_extent one;
	uint64_t at = 0;
	for (size_t i = 0; i < 3; i++, at += one.length) {
		assert_ok(block_extents(b, at, 10 * MIB + 512 - at, &one, 1, &nr, &err));
		assert_true(one.length == e[i].length && one.flags == e[i].flags);
	}
	/* Cut at both ends of what was asked. */
	assert_ok(block_extents(b, 3 * MIB, 1, e, 4, &nr, &err));
	assert_int_equal(nr, 1);
	assert_int_equal(e[0].length, 1);
	assert_in_range(block_stored_bytes(b), 1, 1024 * 1024);
	assert_ok(block_flush(b, &err));
	assert_ok(block_close(b, &err));
}

static void test_zero_and_trim(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *b = block_raw_create(test_path("disk"), 4 * MIB, false, &err);
	uint8_t *AUTO_FREE bytes = malloc(4 * MIB);
	memset(bytes, 0x55, 4 * MIB);
	assert_ok(block_write(b, bytes, 4 * MIB, 0, 0, &err));
	uint64_t full = block_stored_bytes(b);
	/* Aligned to nothing: bytes beside it stay. */
	assert_ok(block_zero(b, 4097, MIB, 0, &err));
	assert_ok(block_zero(b, 2 * MIB + 1, 100000, BLOCK_NO_HOLE | BLOCK_FUA, &err));
	assert_ok(block_read(b, bytes, 4 * MIB, 0, &err));
	for (size_t i = 0; i < 4 * MIB; i++) {
		bool zeroed =
			(i >= 4097 && i < 4097 + MIB) || (i >= 2 * MIB + 1 && i < 2 * MIB + 100001);
		if (bytes[i] != (zeroed ? 0 : 0x55))
			fail_msg("byte %zu is %d", i, bytes[i]);
	}
	assert_true(block_stored_bytes(b) < full);
	uint64_t before = block_stored_bytes(b);
	assert_ok(block_trim(b, 3 * MIB, MIB, 0, &err));
	assert_true(block_stored_bytes(b) < before);
	struct stat st;
	assert_int_equal(stat(test_path("disk"), &st), 0);
	assert_int_equal(st.st_size, 4 * MIB);
	assert_ok(block_close(b, &err));
}

static void test_existing_files(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *b = block_raw_create(test_path("disk"), 100, false, &err);
	assert_ok(block_write(b, "x", 1, 99, 0, &err));
	assert_ok(block_close(b, &err));
	assert_null(block_raw_create(test_path("disk"), 100, false, &err));
	assert_int_equal(err.code, ERR_EXISTS);
	b = block_raw_open(test_path("disk"), true, &err);
	assert_false(block_info(b)->starts_zero);
	assert_true(block_info(b)->size_bytes == 100);
	assert_fails(block_write(b, "x", 1, 0, 0, &err), ERR_DENIED);
	char byte = 0;
	assert_ok(block_read(b, &byte, 1, 99, &err));
	assert_int_equal(byte, 'x');
	/* Cut short under our hands: an error, and no byte made up. */
	assert_int_equal(truncate(test_path("disk"), 50), 0);
	assert_fails(block_read(b, &byte, 1, 99, &err), ERR_IO);
	assert_ok(block_close(b, &err));
	b = block_raw_create(test_path("disk"), 200, true, &err);
	assert_non_null(b);
	byte = 1;
	assert_ok(block_read(b, &byte, 1, 49, &err));
	assert_int_equal(byte, 0);
	assert_ok(block_close(b, &err));
}

static void test_what_is_not_a_disk(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_null(block_raw_open(test_path("disk"), true, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_null(block_raw_open(test_folder, true, &err));
	assert_int_equal(err.code, ERR_FORMAT);
	assert_null(block_raw_open("/dev/null", false, &err));
	assert_int_equal(err.code, ERR_FORMAT);
	/* A FIFO without a writer must not hang. */
	assert_int_equal(mkfifo(test_path("disk"), 0600), 0);
	assert_null(block_raw_open(test_path("disk"), true, &err));
	assert_int_equal(err.code, ERR_FORMAT);
	assert_null(block_raw_open(test_path("disk"), false, &err));
	assert_int_equal(err.code, ERR_FORMAT);
	assert_null(block_raw_create(test_path("disk"), 100, true, &err));
	assert_int_equal(err.code, ERR_EXISTS);
	/* Nothing is left of a file that could not be made as long as asked. */
	assert_null(block_raw_create(test_path("other"), UINT64_MAX, false, &err));
	assert_int_equal(err.code, ERR_NO_SPACE);
	assert_int_equal(access(test_path("other"), F_OK), -1);
	assert_null(block_raw_create(test_path("none/disk"), 100, false, &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
}

static void test_empty_file(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *b = block_raw_create(test_path("disk"), 0, false, &err);
	assert_non_null(b);
	char byte;
	assert_ok(block_read(b, &byte, 0, 0, &err));
	assert_fails(block_read(b, &byte, 1, 0, &err), ERR_RANGE);
	assert_ok(block_close(b, &err));
}

/* Gives the path of a loop device over the file, or skips the test. */
static int attach_loop(const char *path, char *device, size_t device_bytes)
{
	int AUTO_CLOSE control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	int number = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
	snprintf(device, device_bytes, "/dev/loop%d", number);
	int loop = number < 0 ? -1 : open(device, O_RDWR | O_CLOEXEC);
	int AUTO_CLOSE file = open(path, O_RDWR | O_CLOEXEC);
	if (loop >= 0 && ioctl(loop, LOOP_SET_FD, file) < 0) {
		close(loop);
		loop = -1;
	}
	return loop;
}

static void test_block_device(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *file = block_raw_create(test_path("disk"), 4 * MIB, false, &err);
	assert_ok(block_close(file, &err));
	char device[32];
	int loop = attach_loop(test_path("disk"), device, sizeof device);
	if (loop < 0) {
		print_message("no loop device here: %s\n", strerror(errno));
		skip();
	}
	struct block *b = block_raw_open(device, false, &err);
	assert_non_null(b);
	assert_true(block_info(b)->size_bytes == 4 * MIB);
	assert_false(block_info(b)->has_extents);
	uint8_t *AUTO_FREE bytes = malloc(MIB);
	memset(bytes, 0x33, MIB);
	assert_ok(block_write(b, bytes, MIB, 1000, BLOCK_FUA, &err));
	assert_ok(block_zero(b, 1001, 65536, 0, &err));
	assert_ok(block_zero(b, 65536 * 4, 65536, BLOCK_NO_HOLE, &err));
	assert_ok(block_trim(b, 65536 * 8, 65536, 0, &err));
	assert_ok(block_read(b, bytes, 65536 * 8, 1000, &err));
	for (size_t i = 0; i < 65536 * 8 - 1000; i++) {
		size_t at = i + 1000;
		bool zeroed =
			(at >= 1001 && at < 1001 + 65536) || (at >= 65536 * 4 && at < 65536 * 5);
		if (bytes[i] != (zeroed ? 0 : 0x33))
			fail_msg("byte %zu is %d", at, bytes[i]);
	}
	assert_null(block_raw_create(device, 100, true, &err));
	assert_int_equal(err.code, ERR_EXISTS);
	assert_ok(block_close(b, &err));
	ioctl(loop, LOOP_CLR_FD, 0);
	close(loop);
}

static bool sync_fails;
int __wrap_fdatasync(int fd);

int __wrap_fdatasync(int fd)
{
	(void)fd;
	errno = EIO;
	return sync_fails ? -1 : 0;
}

/* The system tells of a lost write once; asked again, it would say all is well. */
static void test_failed_sync_stays(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct block *disk = block_raw_create(test_path("disk"), MIB, false, &err);
	assert_non_null(disk);
	assert_ok(block_flush(disk, &err));
	sync_fails = true;
	assert_fails(block_flush(disk, &err), ERR_IO);
	sync_fails = false;
	assert_fails(block_flush(disk, &err), ERR_IO);
	assert_ok(block_close(disk, &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			test_create_and_holes, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_zero_and_trim, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_existing_files, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_what_is_not_a_disk, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_empty_file, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_block_device, test_make_folder, test_drop_folder),
		cmocka_unit_test_setup_teardown(
			test_failed_sync_stays, test_make_folder, test_drop_folder),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
