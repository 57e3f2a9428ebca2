/* cron: what is refused and why; moments are compared with a model in
 * tests/integration/test_cron.py. */
#include "test_support.h"

#include "cron.h"

#include <string.h>

static void test_refused(void **state)
{
	(void)state;
	static const struct {
		const char *text, *why;
	} cases[] = {
		{"", "minute is missing"},
		{"   ", "minute is missing"},
		{"0 0 * *", "day of week is missing"},
		{"0 0 * * * *", "more than five fields"},
		{"60 0 * * *", "minute \"60\": out of range"},
		{"0 24 * * *", "hour \"24\": out of range"},
		{"0 0 0 * *", "day of month \"0\": out of range"},
		{"0 0 32 * *", "day of month \"32\": out of range"},
		{"0 0 * 13 *", "month \"13\": out of range"},
		{"0 0 * * 8", "day of week \"8\": out of range"},
		{"0 0 * foo *", "month \"foo\""},
		{"0 0 * * monday", "day of week \"monday\""},
		{"0 22-2 * * *", "goes backwards"},
		{"5/10 * * * *", "a step stands behind"},
		{"*/0 * * * *", "step is out of range"},
		{"*/60 * * * *", "step is out of range"},
		{"*/ * * * *", "step is out of range"},
		{"1- * * * *", "a range ends"},
		{"1,,2 * * * *", "minute \"\""},
		{",1 * * * *", "minute \"\""},
		{"1, * * * *", "minute \"\""},
		{"-1 * * * *", "minute \"-1\""},
		{"**  * * * *", "not understood"},
		{"? * * * *", "minute \"?\""},
		{"0 0 L * *", "day of month \"L\""},
		{"0 0 * * 5#2", "not understood"},
		{"99999999999999999999 * * * *", "minute"},
		{"@reboot", "@reboot"},
		{"@Daily", "@Daily"},
		{"0 0 31 2 *", "never due"},
		{"0 0 30 feb *", "never due"},
		{"0 0 31 4,6,9,11 *", "never due"},
		{"0 0 31 2 */2", "never due"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		struct cron cron;
		if (cron_parse(cases[i].text, &cron, &err) == 0)
			fail_msg("\"%s\" was taken", cases[i].text);
		assert_int_equal(err.code, ERR_USAGE);
		if (!strstr(err.text, cases[i].why))
			fail_msg("\"%s\": %s", cases[i].text, err.text);
	}
}

static void test_same(void **state)
{
	(void)state;
	static const char *const pairs[][2] = {
		{"@daily", "0 0 * * *"},
		{"@hourly", "0 */1 * * *"},
		{"@weekly", "0 0 * * 7"},
		{"@yearly", "0 0 1 jan *"},
		{"  0\t0  *  *   SUN ", "0 0 * * 0"},
		{"0 0 * * fri-sun", "0 0 * * 0,5,6"},
		{"0 0 * * 5-7", "0 0 * * 0,5,6"},
		{"0-59/15 0 * * *", "0,15,30,45 0 * * *"},
		{"0 0 1 1-12 *", "0 0 1 * *"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(pairs); i++) {
		struct err err = ERR_INIT;
		struct cron a, b;
		assert_int_equal(cron_parse(pairs[i][0], &a, &err), 0);
		assert_int_equal(cron_parse(pairs[i][1], &b, &err), 0);
		assert_true(a.minutes == b.minutes && a.hours == b.hours && a.days == b.days &&
			    a.months == b.months && a.weekdays == b.weekdays);
	}
	/* One that neither day field restricts, and one that both do. */
	struct cron cron;
	assert_int_equal(cron_parse("0 0 31 2 1", &cron, NULL), 0);
	assert_true(cron.either_day);
}

/* The rarest day there is: found, and at once. */
static void test_bounded(void **state)
{
	(void)state;
	struct cron cron;
	struct err err = ERR_INIT;
	struct zone *zone = zone_open("UTC", &err);
	assert_non_null(zone);
	assert_int_equal(cron_parse("* * 29 2 */6", &cron, &err), 0);
	int64_t began = clock_now_ns(), moment = INT64_C(3224620800); /* 2072-03-08 */
	for (int i = 0; i < 1000; i++)
		assert_true(cron_next(&cron, zone, moment) > moment);
	assert_true(clock_now_ns() - began < INT64_C(5000000000));
	zone_free(zone);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_same),
		cmocka_unit_test(test_bounded),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
