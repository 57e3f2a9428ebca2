/* Cancel wakes sleepers at once, and every wait has an end. */
#include "test_support.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

static struct cancel *the_cancel;

static void on_signal(int number)
{
	(void)number;
	cancel_request(the_cancel);
}

static int make(void **state)
{
	(void)state;
	the_cancel = cancel_new(NULL);
	return the_cancel ? 0 : -1;
}

static int drop(void **state)
{
	(void)state;
	cancel_free(the_cancel);
	return 0;
}

static void test_none_is_never_cancelled(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_false(cancel_requested(NULL));
	assert_int_equal(cancel_fd(NULL), -1);
	assert_int_equal(cancel_check(NULL, &err), 0);
	assert_int_equal(cancel_sleep(NULL, deadline_after_ms(1), &err), 0);
	cancel_free(NULL);
}

static void test_part(void **state)
{
	(void)state;
	struct cancel *part = cancel_new_part(the_cancel, NULL);
	struct cancel *other = cancel_new_part(the_cancel, NULL);
	assert_non_null(part);
	assert_non_null(other);
	struct pollfd p = {.fd = cancel_fd(part), .events = POLLIN};
	struct pollfd o = {.fd = cancel_fd(other), .events = POLLIN};
	assert_int_equal(poll(&p, 1, 0), 0);
	cancel_request(part);
	assert_true(cancel_requested(part));
	assert_int_equal(poll(&p, 1, 0), 1);
	assert_false(cancel_requested(the_cancel));
	assert_false(cancel_requested(other));
	assert_int_equal(poll(&o, 1, 0), 0);
	cancel_request(the_cancel);
	assert_true(cancel_requested(other));
	assert_int_equal(poll(&o, 1, 0), 1);
	cancel_free(part);
	cancel_free(other);
}

static void test_request(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	assert_int_equal(cancel_check(the_cancel, &err), 0);
	struct pollfd p = {.fd = cancel_fd(the_cancel), .events = POLLIN};
	assert_int_equal(poll(&p, 1, 0), 0);
	cancel_request(the_cancel);
	cancel_request(the_cancel);
	assert_true(cancel_requested(the_cancel));
	assert_int_equal(poll(&p, 1, 0), 1);
	assert_int_equal(cancel_check(the_cancel, &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
	/* Sleeping is over before it begins. */
	assert_int_equal(cancel_sleep(the_cancel, deadline_after_ms(60000), &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
}

static void test_from_a_signal_handler(void **state)
{
	(void)state;
	struct sigaction action = {.sa_handler = on_signal}, old;
	sigaction(SIGUSR1, &action, &old);
	raise(SIGUSR1);
	sigaction(SIGUSR1, &old, NULL);
	assert_true(cancel_requested(the_cancel));
}

static void *request_main(void *arg)
{
	cancel_request(arg);
	return NULL;
}

static void test_wakes_a_sleeper(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	pthread_t thread;
	int64_t start_ns = clock_now_ns();
	assert_int_equal(thread_start(&thread, "request", request_main, the_cancel, &err), 0);
	assert_int_equal(cancel_sleep(the_cancel, deadline_after_ms(60000), &err), -1);
	assert_int_equal(err.code, ERR_CANCELLED);
	assert_true(clock_now_ns() - start_ns < 10000000000);
	pthread_join(thread, NULL);
}

static void test_poll(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	int ends[2];
	assert_int_equal(pipe(ends), 0);
	int rc = cancel_poll(
		the_cancel, ends[0], POLLIN, deadline_after_ms(5), "the greeting", &err);
	assert_int_equal(rc, -1);
	assert_int_equal(err.code, ERR_TIMEOUT);
	assert_non_null(strstr(err.text, "the greeting"));
	assert_int_equal(write(ends[1], "x", 1), 1);
	rc = cancel_poll(the_cancel, ends[0], POLLIN, deadline_after_ms(60000), "it", &err);
	assert_int_equal(rc, POLLIN);
	/* Both at once: cancel comes first. */
	cancel_request(the_cancel);
	rc = cancel_poll(the_cancel, ends[0], POLLIN, deadline_after_ms(60000), "it", &err);
	assert_int_equal(rc, -1);
	assert_int_equal(err.code, ERR_CANCELLED);
	close(ends[0]);
	close(ends[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_none_is_never_cancelled, make, drop),
		cmocka_unit_test_setup_teardown(test_request, make, drop),
		cmocka_unit_test_setup_teardown(test_part, make, drop),
		cmocka_unit_test_setup_teardown(test_from_a_signal_handler, make, drop),
		cmocka_unit_test_setup_teardown(test_wakes_a_sleeper, make, drop),
		cmocka_unit_test_setup_teardown(test_poll, make, drop),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
