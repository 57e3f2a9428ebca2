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

/* A refcount block of zeros, so that there is something to mend. */
static void spoil(void)
{
	FILE *file = fopen(path, "r+");
	uint8_t word[8], zeros[64] = {0};
	assert_non_null(file);
	assert_int_equal(fseek(file, 48, SEEK_SET), 0);
	assert_int_equal(fread(word, sizeof word, 1, file), 1);
	assert_int_equal(fseek(file, (long)be64_get(word), SEEK_SET), 0);
	assert_int_equal(fread(word, sizeof word, 1, file), 1);
	assert_int_equal(fseek(file, (long)be64_get(word), SEEK_SET), 0);
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
			test_what_is_not_an_image, make_folder, drop_folder),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
