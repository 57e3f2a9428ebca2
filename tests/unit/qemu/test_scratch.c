/* A session's folder, and who lives. */
#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <cmocka.h>

struct seen {
	size_t nr;
	struct scratch_other last;
};

static int see(void *context, const struct scratch_other *other, struct err *err)
{
	struct seen *seen = context;
	(void)err;
	seen->nr++;
	seen->last = *other;
	return 0;
}

static int set_up(void **state)
{
	static char folder[64];
	snprintf(folder, sizeof folder, "/tmp/sd-scratch-XXXXXX");
	*state = mkdtemp(folder);
	return *state ? 0 : -1;
}

static int tear_down(void **state)
{
	return rmdir(*state);
}

static void test_ids(void **state)
{
	(void)state;
	assert_true(scratch_is_id("sendense-0123abcd"));
	assert_false(scratch_is_id("sendense-0123abcd-0"));
	assert_false(scratch_is_id("sendense-0123abc"));
	assert_false(scratch_is_id("sendense-0123ABCD"));
	assert_false(scratch_is_id("sendense-20261121T200000Z-7f3a9c"));
	assert_false(scratch_is_id(""));
}

static void test_a_folder_comes_and_goes(void **state)
{
	struct scratch scratch;
	struct err err = ERR_INIT;
	struct stat st;
	struct seen seen = {0};
	assert_int_equal(scratch_open(&scratch, *state, "/nowhere/qmp", &err), 0);
	assert_true(scratch_is_id(scratch.id));
	assert_int_equal(stat(scratch.folder, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0700);
	int fd = scratch_file(&scratch, &err);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, "x", 1, 0), 1);
	close(fd);
	assert_int_equal(scratch_scan(*state, see, &seen, &err), 0);
	assert_int_equal(seen.nr, 1);
	assert_int_equal(seen.last.state, SCRATCH_ALIVE);
	assert_string_equal(seen.last.qmp, "/nowhere/qmp");
	assert_int_equal(seen.last.pid, getpid());
	scratch_remove(&seen.last); /* not a living one's */
	assert_int_equal(stat(scratch.folder, &st), 0);
	scratch_close(&scratch);
	scratch_close(&scratch);
}

static void test_a_dead_ones_folder_is_known_and_removed(void **state)
{
	struct err err = ERR_INIT;
	struct seen seen = {0};
	pid_t child = fork();
	if (child == 0) {
		struct scratch scratch;
		_exit(scratch_open(&scratch, *state, "/nowhere/qmp", NULL) < 0 ||
			scratch_mark_frozen(&scratch, "/nowhere/qga", NULL) < 0);
	}
	int status;
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_int_equal(status, 0);
	assert_int_equal(scratch_scan(*state, see, &seen, &err), 0);
	assert_int_equal(seen.nr, 1);
	assert_int_equal(seen.last.state, SCRATCH_DEAD);
	assert_string_equal(seen.last.agent, "/nowhere/qga");
	scratch_remove(&seen.last);
	assert_int_equal(scratch_scan(*state, see, &seen, &err), 0);
	assert_int_equal(seen.nr, 1);
}

static void test_a_folder_whose_name_is_too_long_is_refused(void **state)
{
	char path[256];
	struct scratch scratch;
	struct err err = ERR_INIT;
	snprintf(path, sizeof path, "%s/%080d", (char *)*state, 1);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(scratch_open(&scratch, path, "/q", &err), -1);
	assert_int_equal(err.code, ERR_USAGE);
	assert_int_equal(rmdir(path), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_ids),
		cmocka_unit_test_setup_teardown(test_a_folder_comes_and_goes, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_a_dead_ones_folder_is_known_and_removed, set_up, tear_down),
		cmocka_unit_test_setup_teardown(
			test_a_folder_whose_name_is_too_long_is_refused, set_up, tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
