/* Threads start with a name and all signals blocked; timed waits end. */
#include "test_support.h"

#include <signal.h>

struct seen {
	bool blocked;
};

static void *look_main(void *arg)
{
	struct seen *seen = arg;
	sigset_t set;
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	seen->blocked = sigismember(&set, SIGINT) && sigismember(&set, SIGTERM);
	return NULL;
}

static void test_start(void **state)
{
	(void)state;
	struct seen seen = {0};
	struct err err = ERR_INIT;
	pthread_t thread;
	assert_int_equal(thread_start(&thread, "look", look_main, &seen, &err), 0);
	pthread_join(thread, NULL);
	assert_true(seen.blocked);
	/* The caller's own mask is as it was. */
	sigset_t set;
	pthread_sigmask(SIG_BLOCK, NULL, &set);
	assert_false(sigismember(&set, SIGINT));
}

struct gate {
	pthread_mutex_t mutex;
	pthread_cond_t opened;
	bool open;
};

static void *open_main(void *arg)
{
	struct gate *gate = arg;
	WITH_LOCK(&gate->mutex);
	gate->open = true;
	pthread_cond_signal(&gate->opened);
	return NULL;
}

static void test_wait(void **state)
{
	(void)state;
	struct gate gate = {.mutex = PTHREAD_MUTEX_INITIALIZER};
	thread_cond_init(&gate.opened);
	pthread_t thread;
	pthread_mutex_lock(&gate.mutex);
	struct deadline soon = deadline_after_ms(5);
	while (thread_cond_wait(&gate.opened, &gate.mutex, soon))
		assert_false(gate.open);
	assert_true(deadline_passed(soon));
	assert_int_equal(thread_start(&thread, "open", open_main, &gate, NULL), 0);
	struct deadline late = deadline_after_ms(60000);
	while (!gate.open)
		assert_true(thread_cond_wait(&gate.opened, &gate.mutex, late));
	pthread_mutex_unlock(&gate.mutex);
	pthread_join(thread, NULL);
	pthread_cond_destroy(&gate.opened);
}

static void test_cpus(void **state)
{
	(void)state;
	assert_true(thread_nr_cpus() >= 1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_start),
		cmocka_unit_test(test_wait),
		cmocka_unit_test(test_cpus),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
