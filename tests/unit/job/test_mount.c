/* What a folder lies on; integration tests mount something else there. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "job_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static void test_folders_of_one_file_system(void **state)
{
	(void)state;
	char folder[] = "/tmp/test_mount.XXXXXX", below[64], expected[PATH_MAX];
	struct err err = ERR_INIT;
	assert_non_null(mkdtemp(folder));
	snprintf(below, sizeof below, "%s/a \\040b", folder);
	assert_int_equal(mkdir(below, 0700), 0);
	char *outer = job_mount_text(folder, &err);
	char *inner = job_mount_text(below, &err);
	rmdir(below);
	rmdir(folder);
	assert_true(outer && inner);
	assert_non_null(strstr(outer, ", folder /"));
	assert_null(strstr(outer, "/dev/"));
	snprintf(expected, sizeof expected, "%s/a \\040b", outer);
	assert_string_equal(inner, expected);
	free(outer);
	free(inner);
}

static void test_others(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	char *top = job_mount_text("/proc", &err), *below = job_mount_text("/proc/self", &err);
	char expected[64];
	snprintf(expected, sizeof expected, "proc proc, folder /%d", (int)getpid());
	assert_true(top && below);
	assert_string_equal(top, "proc proc, folder /");
	assert_string_equal(below, expected);
	free(top);
	free(below);
	assert_null(job_mount_text("/proc/there/is/none", &err));
	assert_int_equal(err.code, ERR_NOT_FOUND);
	assert_null(job_mount_text("/proc/self/status", &err));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_folders_of_one_file_system),
		cmocka_unit_test(test_others),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
