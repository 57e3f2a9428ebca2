/* Time zones: whole files, cut ones, and rules.  Schedules in all zones are compared with
 * Python's in tests/integration/test_retention.py. */
#include "test_support.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BERLIN "/usr/share/zoneinfo/Europe/Berlin"

static void check(const char *name, int64_t at, int month, int day, int hour, int week)
{
	struct err err = ERR_INIT;
	struct zone *zone = zone_open(name, &err);
	if (!zone)
		fail_msg("%s", err.text);
	struct zone_time time = zone_time(zone, at);
	assert_int_equal(time.month, month);
	assert_int_equal(time.day, day);
	assert_int_equal(time.hour, hour);
	assert_int_equal(time.week, week);
	zone_free(zone);
}

static void test_rules(void **state)
{
	(void)state;
	check("UTC", 1767225599, 12, 31, 23, 1); /* 2025-12-31T23:59:59Z, week 1 of 2026 */
	check("CET-1CEST,M3.5.0,M10.5.0/3", 1767225599, 1, 1, 0, 1);
	check("CET-1CEST,M3.5.0,M10.5.0/3", 1774745999, 3, 29, 1, 13); /* before the change */
	check("CET-1CEST,M3.5.0,M10.5.0/3", 1774746000, 3, 29, 3, 13);
	check("IST-1GMT0,M10.5.0,M3.5.0/1", 1767225599, 12, 31, 23, 1); /* winter is put back */
	check("EST5EDT,0/0,J365/25", 1767225599, 12, 31, 19, 1); /* summer time all year */
	check("AEST-10AEDT,M10.1.0,M4.1.0/3", 1767225599, 1, 1, 10, 1);
}

/* From the wall back to the moment; what does not exist, and what comes twice. */
static void test_seconds(void **state)
{
	(void)state;
	static const struct {
		const char *zone;
		struct zone_time wall;
		int64_t at;
	} cases[] = {
		{"UTC", {2025, 12, 31, 23, 59, 59, 0, 0}, 1767225599},
		{"Europe/Berlin", {2026, 3, 29, 1, 59, 59, 0, 0}, 1774745999},
		{"Europe/Berlin", {2026, 3, 29, 2, 0, 0, 0, 0}, 1774746000},
		{"Europe/Berlin", {2026, 3, 29, 2, 30, 0, 0, 0}, 1774746000},
		{"Europe/Berlin", {2026, 3, 29, 3, 0, 0, 0, 0}, 1774746000},
		{"Europe/Berlin", {2026, 10, 25, 2, 30, 0, 0, 0}, 1792888200}, /* the first */
		{"Europe/Berlin", {2026, 10, 25, 3, 0, 0, 0, 0}, 1792893600},
		{"Australia/Lord_Howe", {2026, 10, 4, 2, 15, 0, 0, 0}, 1791041400}, /* 30 min */
		{"Pacific/Apia", {2011, 12, 30, 12, 0, 0, 0, 0}, 1325239200}, /* no such day */
	};
	for (size_t i = 0; i < ARRAY_LENGTH(cases); i++) {
		struct err err = ERR_INIT;
		struct zone *zone = zone_open(cases[i].zone, &err);
		if (!zone)
			fail_msg("%s", err.text);
		if (zone_seconds(zone, &cases[i].wall) != cases[i].at)
			fail_msg("%zu: %lld", i, (long long)zone_seconds(zone, &cases[i].wall));
		zone_free(zone);
	}
	assert_int_equal(zone_month_days(2000, 2), 29);
	assert_int_equal(zone_month_days(2100, 2), 28);
	assert_int_equal(zone_weekday(2026, 11, 22), 0);
}

static void test_refused(void **state)
{
	(void)state;
	static const char *const names[] = {"Europe/Nowhere", "../../../etc/passwd", "Europe", "XY",
		"CET-1CEST,M13.5.0,M10.5.0", "CET-1CEST,M3.5.0", "CET-1CEST,M3.5.0,M10.5.0x",
		"CET-999"};
	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		struct err err = ERR_INIT;
		assert_null(zone_open(names[i], &err));
		assert_int_equal(err.code, ERR_USAGE);
		assert_non_null(strstr(err.text, "time zone"));
	}
}

/* A file that is cut anywhere is refused, or is the same zone (its end is no loss). */
static void test_cut_files(void **state)
{
	(void)state;
	char *AUTO_FREE bytes = NULL;
	char path[] = "/tmp/sendense-zone-XXXXXX";
	size_t length;
	struct err err = ERR_INIT;
	if (file_load(AT_FDCWD, BERLIN, 1 << 20, &bytes, &length, &err) < 0)
		skip();
	int fd = mkstemp(path);
	assert_true(fd >= 0);
	setenv("TZ", path, 1);
	for (size_t cut = 0; cut <= length; cut++) {
		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(pwrite(fd, bytes, cut, 0), (ssize_t)cut);
		struct zone *zone = zone_open(NULL, &err);
		assert_int_equal(zone != NULL, cut == length);
		if (!zone)
			assert_int_equal(err.code, ERR_FORMAT);
		zone_free(zone);
	}
	unsetenv("TZ");
	unlink(path);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rules),
		cmocka_unit_test(test_seconds),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_cut_files),
	};
	return cmocka_run_group_tests_name("zone", tests, NULL, NULL);
}
