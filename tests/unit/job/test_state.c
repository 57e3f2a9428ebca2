/* The table of states: which may follow which, written out once more. */
#include "test_support.h"

#include "job.h"

#include <string.h>

static void test_names(void **state)
{
	(void)state;
	static const char *const names[] = {"queued", "starting", "running", "verifying",
		"committing", "done", "failed", "cancelled"};
	enum job_state parsed;
	for (int i = 0; i <= JOB_CANCELLED; i++) {
		assert_string_equal(job_state_name((enum job_state)i), names[i]);
		assert_true(job_state_parse(names[i], &parsed));
		assert_int_equal(parsed, i);
		assert_int_equal(job_state_is_end((enum job_state)i), i >= JOB_DONE);
	}
	assert_false(job_state_parse("paused", &parsed));
	assert_false(job_state_parse("", &parsed));
}

static void test_table(void **state)
{
	(void)state;
	/* Rows: from; columns: to, in the order of the states. */
	static const char *const may[] = {
		"11111111", /* queued */
		"11111111", /* starting */
		"10111111", /* running: never back to starting */
		"10111111", /* verifying */
		"10111111", /* committing */
		"00000100", /* an end is an end */
		"00000010",
		"00000001",
	};
	for (int from = 0; from <= JOB_CANCELLED; from++)
		for (int to = 0; to <= JOB_CANCELLED; to++)
			assert_int_equal(job_state_may((enum job_state)from, (enum job_state)to),
				may[from][to] == '1');
}

static void test_stages(void **state)
{
	(void)state;
	assert_int_equal(job_state_of_stage("prepare"), JOB_STARTING);
	assert_int_equal(job_state_of_stage("copy"), JOB_RUNNING);
	assert_int_equal(job_state_of_stage("merge"), JOB_RUNNING);
	assert_int_equal(job_state_of_stage("audit"), JOB_VERIFYING);
	assert_int_equal(job_state_of_stage("verify"), JOB_VERIFYING);
	assert_int_equal(job_state_of_stage("rename-manifest"), JOB_COMMITTING);
	assert_int_equal(job_state_of_stage("nobody knows it"), JOB_RUNNING);
	assert_int_equal(job_state_of_stage(""), JOB_RUNNING);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_stages),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
