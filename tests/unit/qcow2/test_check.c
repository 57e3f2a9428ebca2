/*
 * What qcow2_check() promises beside its findings, which are compared with QEMU's
 * in tests/integration/test_qcow2_check.py.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "qcow2.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static char folder[64], path[96];

static int make_folder(void **state)
{
	(void)state;
	strcpy(folder, "/tmp/test_check.XXXXXX");
	if (!mkdtemp(folder))
		return -1;
	snprintf(path, sizeof path, "%s/image", folder);
	return 0;
}

static int drop_folder(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(folder);
}

static void create(uint64_t size_bytes, uint32_t cluster_bytes)
{
	struct qcow2_create_options options = {
		.size_bytes = size_bytes, .cluster_bytes = cluster_bytes, .replace = true};
	struct err err = ERR_INIT;
	if (qcow2_create(path, &options, &err) < 0)
		fail_msg("%s", err.text);
}

static void fail_on_finding(void *context, const char *text)
{
	(void)context;
	fail_msg("%s", text);
}

static void test_fresh_images_are_sound(void **state)
{
	(void)state;
	const struct {
		uint64_t size_bytes;
		uint32_t cluster_bytes;
	} rows[] = {{512, 512}, {2 * GIB + 512, 512}, {0, 0}, {64 * TIB, 0}, {64 * TIB, 2 * MIB}};
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		struct err err = ERR_INIT;
		struct qcow2_check_result r;
		create(rows[i].size_bytes, rows[i].cluster_bytes);
		if (qcow2_check(path, i % 2, NULL, fail_on_finding, NULL, &r, &err) < 0)
			fail_msg("%s", err.text);
		assert_true(r.errors == 0 && r.leaks == 0 && r.repaired == 0);
		assert_true(r.clusters_used == 0 && r.compressed == 0);
		uint32_t cluster = rows[i].cluster_bytes ? rows[i].cluster_bytes : 65536;
		assert_true(r.clusters_total == div_round_up(rows[i].size_bytes, cluster));
		struct stat st;
		assert_int_equal(stat(path, &st), 0);
		assert_true(r.end_offset == round_up((uint64_t)st.st_size, cluster));
	}
}

static void count_finding(void *context, const char *text)
{
	(void)text;
	++*(unsigned *)context;
}

/* Where the first refcount block is. */
static long find_block(FILE *file)
{
	uint8_t word[8];
	assert_int_equal(fseek(file, 48, SEEK_SET), 0);
	assert_int_equal(fread(word, sizeof word, 1, file), 1);
	assert_int_equal(fseek(file, (long)be64_get(word), SEEK_SET), 0);
	assert_int_equal(fread(word, sizeof word, 1, file), 1);
	return (long)be64_get(word);
}

/* A refcount block of zeros, so that there is something to mend. */
static void spoil(void)
{
	FILE *file = fopen(path, "r+");
	uint8_t zeros[64] = {0};
	assert_non_null(file);
	assert_int_equal(fseek(file, find_block(file), SEEK_SET), 0);
	assert_int_equal(fwrite(zeros, sizeof zeros, 1, file), 1);
	assert_int_equal(fclose(file), 0);
}

static void test_cancel(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct qcow2_check_result r;
	create(GIB, 0);
	spoil();
	struct cancel *cancel = cancel_new(&err);
	assert_non_null(cancel);
	unsigned nr = 0;
	assert_int_equal(qcow2_check(path, false, cancel, count_finding, &nr, &r, &err), 0);
	assert_true(r.errors > 0 && nr == r.errors);
	cancel_request(cancel);
	assert_int_equal(qcow2_check(path, true, cancel, NULL, NULL, &r, &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
	cancel_free(cancel);
	/* Nothing was mended; without the cancel it is. */
	uint64_t errors = nr;
	assert_int_equal(qcow2_check(path, true, NULL, NULL, NULL, &r, &err), 0);
	assert_true(r.errors == errors && r.repaired == errors);
	assert_int_equal(qcow2_check(path, false, NULL, fail_on_finding, NULL, &r, &err), 0);
}

/*
 * Refcounts reach the file before the tables that need them, and may before the file's new
 * length: a crash leaves clusters that are counted behind the end of the file.  They are
 * nobody's, but not when the file grows over them.
 */
static void test_counts_behind_the_end(void **state)
{
	(void)state;
	static const uint8_t data[MIB] = {1};
	for (int reopened = 0; reopened < 2; reopened++) {
		struct err err = ERR_INIT;
		struct qcow2_check_result r;
		struct stat st;
		create(GIB, 0);
		assert_int_equal(stat(path, &st), 0);
		FILE *file = fopen(path, "r+");
		assert_non_null(file);
		assert_int_equal(
			fseek(file, find_block(file) + st.st_size / 65536 * 2, SEEK_SET), 0);
		assert_int_equal(fwrite("\0\1\0\1\0\0\0\1", 8, 1, file), 1);
		if (reopened) { /* "dirty": what is opened for writing is checked by itself */
			assert_int_equal(fseek(file, 72, SEEK_SET), 0);
			assert_int_equal(fwrite("\0\0\0\0\0\0\0\1", 8, 1, file), 1);
		}
		assert_int_equal(fclose(file), 0);
		if (!reopened)
			assert_int_equal(qcow2_check(path, true, NULL, NULL, NULL, &r, &err), 0);
		const struct qcow2_open_options options = {0};
		struct block *image = qcow2_open(path, &options, &err);
		assert_non_null(image);
		assert_int_equal(block_write(image, data, sizeof data, 0, 0, &err), 0);
		assert_int_equal(block_close(image, &err), 0);
		if (qcow2_check(path, false, NULL, fail_on_finding, NULL, &r, &err) < 0)
			fail_msg("%s", err.text);
	}
}

static void test_what_is_not_an_image(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct qcow2_check_result r;
	assert_int_equal(qcow2_check(path, false, NULL, NULL, NULL, &r, &err), -1);
	assert_int_equal(err.code, ERR_NOT_FOUND);
	/* A FIFO without a writer must not hang. */
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_int_equal(qcow2_check(path, false, NULL, NULL, NULL, &r, &err), -1);
	assert_int_equal(err.code, ERR_FORMAT);
	assert_int_equal(qcow2_check(path, true, NULL, NULL, NULL, &r, &err), -1);
	assert_int_equal(err.code, ERR_FORMAT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(
			test_fresh_images_are_sound, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(test_cancel, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(
			test_counts_behind_the_end, make_folder, drop_folder),
		cmocka_unit_test_setup_teardown(
			test_what_is_not_an_image, make_folder, drop_folder),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
