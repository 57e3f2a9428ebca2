/* Steps in order, SIGHUP, and the way back from wherever it came to. */
#include "../scratch.h"

#include "life.h"

#include <pthread.h>
#include <signal.h>

struct world {
	char told[64]; /* "a+" started, "a-" stopped, "R" ready, "H" SIGHUP, "S" stopping */
	struct cancel *cancel;
	bool fails; /* the step b */
	bool is_hung_up; /* somebody sends SIGHUP as soon as it is ready */
};

static void tell(struct world *w, const char *what)
{
	strncat(w->told, what, sizeof w->told - strlen(w->told) - 1);
}

static int start_a(void *context, struct err *err)
{
	(void)err;
	tell(context, "a+");
	return 0;
}

static void stop_a(void *context)
{
	tell(context, "a-");
}

static int start_b(void *context, struct err *err)
{
	struct world *w = context;
	tell(w, "b+");
	return w->fails ? err_set(err, ERR_IO, "b cannot") : 0;
}

static void stop_b(void *context)
{
	tell(context, "b-");
}

static int start_c(void *context, struct err *err)
{
	(void)err;
	tell(context, "c+");
	return 0;
}

static int ready(void *context, struct err *err)
{
	struct world *w = context;
	(void)err;
	tell(w, "R");
	if (w->is_hung_up)
		assert_int_equal(raise(SIGHUP), 0);
	else
		cancel_request(w->cancel);
	return 0;
}

static void reload(void *context)
{
	struct world *w = context;
	tell(w, "H");
	cancel_request(w->cancel);
}

static void stopping(void *context)
{
	tell(context, "S");
}

static int run(struct world *w, struct err *err)
{
	static const struct life_step steps[] = {
		{"a", start_a, stop_a}, {"b", start_b, stop_b}, {"c", start_c, NULL}};
	w->cancel = cancel_new(err);
	assert_non_null(w->cancel);
	const struct life life = {
		.steps = steps,
		.nr_steps = ARRAY_LENGTH(steps),
		.context = w,
		.cancel = w->cancel,
		.ready = ready,
		.reload = reload,
		.stopping = stopping,
	};
	int rc = life_run(&life, err);
	cancel_free(w->cancel);
	return rc;
}

static void test_order(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct world w = {.told = ""};
	SUPPORT_OK(run(&w, &err), err);
	assert_string_equal(w.told, "a+b+c+RSb-a-");
	/* Late signals do no harm. */
	assert_int_equal(raise(SIGHUP), 0);
}

static void test_reload(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct world w = {.is_hung_up = true};
	SUPPORT_OK(run(&w, &err), err);
	assert_string_equal(w.told, "a+b+c+RHSb-a-");
}

static void test_failure(void **state)
{
	(void)state;
	struct err err = ERR_INIT;
	struct world w = {.fails = true};
	assert_int_equal(run(&w, &err), -1);
	support_expect(&err, ERR_IO, "b cannot");
	assert_string_equal(w.told, "a+b+Sb-a-");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_reload),
		cmocka_unit_test(test_failure),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
