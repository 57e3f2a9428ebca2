/* Schedules: what is refused, jitter, windows, what was missed. */
#include "fixture.h"

#include "schedule.h"

static struct schedule *parse(const char *text)
{
	struct err err = ERR_INIT;
	json_t *value = fixture_json(text);
	struct schedule *schedule = schedule_parse("nightly", value, "UTC", &err);
	if (!schedule)
		fail_msg("%s", err.text);
	json_decref(value);
	return schedule;
}

static void test_refused(void **context)
{
	(void)context;
	static const struct {
		const char *text, *why;
	} cases[] = {
		{"{}", "cron"},
		{"{'cron':5}", "cron"},
		{"{'cron':'0 0 * *'}", "cron: "},
		{"{'cron':'@daily','cronn':1}", "cronn"},
		{"{'cron':'@daily','action':'destroy'}", "action"},
		{"{'cron':'@daily','time_zone':'Europe/Nowhere'}", "time_zone: "},
		{"{'cron':'@daily','jitter_s':-1}", "jitter_s"},
		{"{'cron':'@daily','jitter_s':86401}", "jitter_s"},
		{"{'cron':'@daily','window':{'from':'22:00'}}", "window.to"},
		{"{'cron':'@daily','window':{'from':'22:00','to':'24:00'}}", "window.to"},
		{"{'cron':'@daily','window':{'from':'+2:00','to':'12:00'}}", "window.from"},
		{"{'cron':'@daily','window':{'from':'12:00','to':'12:00'}}", "window"},
		{"{'cron':'@daily','window':{'from':'12:00','to':'13:00','x':1}}", "window"},
		{"{'cron':'@daily','retries':21}", "retries"},
		{"{'cron':'@daily','enabled':'yes'}", "enabled"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		json_t *value = fixture_json(cases[i].text);
		assert_null(schedule_parse("nightly", value, NULL, &err));
		assert_int_equal(err.code, ERR_USAGE);
		if (!strstr(err.text, cases[i].why))
			fail_msg("%s: %s", cases[i].text, err.text);
		json_decref(value);
	}
	static const char *const ids[] = {"", ".", "-x", "a/b", "a b", "\xc3\xa4",
		"0123456789012345678901234567890123456789012345678901234567890123x"};
	for (size_t i = 0; i < ARRAY_LENGTH(ids); i++)
		assert_int_equal(schedule_check_id("id", ids[i], NULL), -1);
}

/* The same every time, within its bounds, and spread over them. */
static void test_jitter(void **context)
{
	(void)context;
	struct schedule *schedule = parse("{'cron':'0 22 * * *','jitter_s':3600}");
	struct schedule *again = parse("{'cron':'0 23 * * *','jitter_s':3600}");
	unsigned in_quarter[4] = {0};
	for (int i = 0; i < 400; i++) {
		char who[32];
		snprintf(who, sizeof who, "vm%d", i);
		unsigned jitter = schedule_jitter(schedule, who);
		assert_true(jitter <= 3600);
		assert_int_equal(jitter, schedule_jitter(again, who));
		in_quarter[jitter * 4 / 3601]++;
		int64_t due = schedule_due(schedule, who, fixture_utc("2026-11-22 12:00"));
		assert_int_equal(due, fixture_utc("2026-11-22 22:00") + jitter);
		/* What was seen up to just now is due the next day. */
		int64_t seen = schedule_seen(schedule, who, 0, due);
		assert_int_equal(schedule_due(schedule, who, seen),
			fixture_utc("2026-11-23 22:00") + jitter);
	}
	for (size_t i = 0; i < 4; i++)
		assert_true(in_quarter[i] > 60);
	schedule_free(schedule);
	schedule_free(again);
}

static void test_window(void **context)
{
	(void)context;
	struct schedule *night = parse("{'cron':'@daily','time_zone':'Europe/Berlin',"
				       "'window':{'from':'22:00','to':'06:00'}}");
	static const struct {
		const char *utc;
		bool open;
		const char *opens;
	} cases[] = {
		{"2026-11-22 20:59", false, "2026-11-22 21:00"},
		{"2026-11-22 21:00", true, "2026-11-22 21:00"},
		{"2026-11-23 04:59", true, "2026-11-23 04:59"},
		{"2026-11-23 05:00", false, "2026-11-23 21:00"},
		/* Summer time. */
		{"2026-07-01 19:59", false, "2026-07-01 20:00"},
		{"2026-07-01 20:00", true, "2026-07-01 20:00"},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		int64_t now = fixture_utc(cases[i].utc);
		assert_int_equal(schedule_is_open(night, now), cases[i].open);
		assert_int_equal(schedule_opens(night, now), fixture_utc(cases[i].opens));
	}
	/* A window that opens in the hour that does not exist opens at its end. */
	struct schedule *early = parse("{'cron':'@daily','time_zone':'Europe/Berlin',"
				       "'window':{'from':'02:30','to':'04:00'}}");
	assert_int_equal(schedule_opens(early, fixture_utc("2026-03-29 00:30")),
		fixture_utc("2026-03-29 01:00"));
	assert_true(schedule_is_open(early, fixture_utc("2026-03-29 01:00")));
	schedule_free(early);
	schedule_free(night);
}

static void test_mend(void **context)
{
	(void)context;
	struct schedule *schedule = parse("{'cron':'0 22 * * *'}");
	int64_t now = fixture_utc("2026-11-22 12:00"), seen = now + 3600;
	assert_false(schedule_mend(schedule, "a", now, &seen));
	assert_int_equal(seen, now + 3600);
	assert_int_equal(schedule_seen(schedule, "a", seen, now), seen);
	seen = now + 86401;
	assert_true(schedule_mend(schedule, "a", now, &seen));
	assert_int_equal(seen, now);
	schedule_free(schedule);
}

/* What changes when something is due changes the rule, and nothing else. */
static void test_rule(void **context)
{
	(void)context;
	struct schedule *a = parse("{'cron':'0 22 * * *'}");
	static const struct {
		const char *text;
		bool same;
	} cases[] = {
		{"{'cron':'0 22 * * *','most':3,'retries':1}", true},
		{"{'cron':'0 22 * * *','window':{'from':'22:00','to':'23:00'}}", true},
		{"{'cron':'0 23 * * *'}", false},
		{"{'cron':'0 22 * * *','time_zone':'Europe/Berlin'}", false},
		{"{'cron':'0 22 * * *','jitter_s':1}", false},
		{"{'cron':'0 22 * * *','enabled':false}", false},
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct schedule *b = parse(cases[i].text);
		assert_int_equal(strcmp(a->rule, b->rule) == 0, cases[i].same);
		schedule_free(b);
	}
	schedule_free(a);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_jitter),
		cmocka_unit_test(test_window),
		cmocka_unit_test(test_mend),
		cmocka_unit_test(test_rule),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
