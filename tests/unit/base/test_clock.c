/* The clock and deadlines, at their ends too. */
#include "test_support.h"

#include <limits.h>

static void test_deadlines(void **state)
{
	(void)state;
	assert_true(deadline_passed(deadline_after_ms(0)));
	assert_true(deadline_passed(deadline_after_ms(-5)));
	assert_true(deadline_passed(deadline_after_ms(INT64_MIN)));
	struct deadline minute = deadline_after_ms(60000);
	assert_false(deadline_passed(minute));
	assert_in_range(deadline_left_ms(minute), 50000, 60000);
	/* No end in sight, but no overflow either. */
	struct deadline far = deadline_after_ms(INT64_MAX);
	assert_false(deadline_passed(far));
	assert_int_equal(deadline_left_ms(far), INT_MAX);
	assert_true(deadline_timespec(far).tv_sec > 0);
	assert_true(deadline_min(far, minute).at_ns == minute.at_ns);
	assert_true(deadline_min(minute, far).at_ns == minute.at_ns);
}

/* A poll() for what is left must not end before the deadline: callers would spin. */
static void test_left_is_rounded_up(void **state)
{
	(void)state;
	for (int64_t span_ns = 1; span_ns < 100000000; span_ns = span_ns * 3 + 999) {
		struct deadline d = {.at_ns = clock_now_ns() + span_ns};
		int64_t left_ms = deadline_left_ms(d);
		assert_true(left_ms * 1000000 >= d.at_ns - clock_now_ns());
		assert_true(left_ms <= span_ns / 1000000 + 1);
	}
	assert_int_equal(deadline_left_ms((struct deadline){.at_ns = clock_now_ns()}), 0);
}

static void test_timespec(void **state)
{
	(void)state;
	struct deadline d = {.at_ns = 12345678901};
	struct timespec ts = deadline_timespec(d);
	assert_int_equal(ts.tv_sec, 12);
	assert_int_equal(ts.tv_nsec, 345678901);
}

static void test_utc_text(void **state)
{
	(void)state;
	char text[CLOCK_UTC_BYTES];
	clock_utc_text(0, text);
	assert_string_equal(text, "1970-01-01T00:00:00Z");
	clock_utc_text(951782400, text);
	assert_string_equal(text, "2000-02-29T00:00:00Z");
	clock_utc_text(253402300799, text);
	assert_string_equal(text, "9999-12-31T23:59:59Z");
}

static void test_durations(void **state)
{
	(void)state;
	static const struct {
		const char *text;
		uint64_t seconds; /* 0: refused */
	} cases[] = {{"90", 90}, {"90s", 90}, {"15m", 900}, {"15min", 900}, {"2h", 7200},
		{"1d", 86400}, {"4w", 2419200}, {"1y", 31536000}, {"", 0}, {"s", 0}, {"-1s", 0},
		{" 1s", 0}, {"1 s", 0}, {"1S", 0}, {"1.5h", 0}, {"99999999999999999999", 0},
		{"18446744073709551615w", 0}};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		uint64_t seconds = 0;
		int rc = clock_parse_duration(cases[i].text, &seconds, &err);
		assert_int_equal(rc, cases[i].seconds ? 0 : -1);
		assert_int_equal(err.code, cases[i].seconds ? ERR_NONE : ERR_USAGE);
		if (rc == 0)
			assert_int_equal(seconds, cases[i].seconds);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_deadlines),
		cmocka_unit_test(test_left_is_rounded_up),
		cmocka_unit_test(test_timespec),
		cmocka_unit_test(test_utc_text),
		cmocka_unit_test(test_durations),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
