/*
 * What a folder lies on; integration tests mount something else there.  The note of it is deleted
 * by two at once (state_delete() is wrapped).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "job_internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

static bool is_raced;

int __real_state_delete(
	struct state *state, const char *kind, const char *id, uint64_t version, struct err *err);
int __wrap_state_delete(
	struct state *state, const char *kind, const char *id, uint64_t version, struct err *err);

int __wrap_state_delete(
	struct state *state, const char *kind, const char *id, uint64_t version, struct err *err)
{
	if (is_raced)
		assert_int_equal(__real_state_delete(state, kind, id, version, NULL), 0);
	return __real_state_delete(state, kind, id, version, err);
}

/* A list that is asked for and a job that begins, say, find at once that it does not count. */
static void test_forgotten_by_two(void **context)
{
	(void)context;
	char folder[] = "/tmp/test_mount.XXXXXX", path[64], command[64];
	struct err err = ERR_INIT;
	const struct job_repository r = {.name = "main", .path = "/srv/backup"};
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof path, "%s/state.db", folder);
	snprintf(command, sizeof command, "rm -r %s", folder);
	struct state *state = state_open(path, &err);
	json_t *note = json_pack("{s:s, s:s, s:s}", "path", r.path, "mount", "ext4", "id", "1");
	int put =
		state ? state_put(state, "setting", "mount main", note, STATE_ANY, NULL, &err) : -1;
	json_decref(note);
	note = NULL;
	is_raced = true;
	int rc = put == 0 ? job_mount_noted(state, &r, &note, &err) : -1;
	is_raced = false;
	state_close(state);
	assert_int_equal(system(command), 0);
	if (rc < 0)
		fail_msg("%s", err.text);
	assert_null(note);
}

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
		cmocka_unit_test(test_forgotten_by_two),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
