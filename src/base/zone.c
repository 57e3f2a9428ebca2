/*
 * Time zones; see zone.h.
 *
 *   TZif   header, data with times of 4 bytes (skipped), header, data with times of 8 bytes,
 *          "\n" rule "\n"
 *   data   nr_times times, nr_times bytes (which kind each begins), nr_kinds kinds of 6 bytes
 *          (offset from UTC 4, summer time 1, name 1), names, leap seconds, flags
 *
 * A moment before the first time is of kind 0, one behind the last time follows the rule.
 */
#include "zone.h"

#include "bytes.h"
#include "cleanup.h"
#include "file.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER "/usr/share/zoneinfo/"
#define FILE_MOST (256u << 10)
#define HEADER_BYTES 44u
#define KINDS_MOST 256u
#define DAY_S 86400
#define OFFSET_MOST_S 93600 /* 26 hours */
#define AROUND_S (OFFSET_MOST_S + 3600) /* no zone changes twice within it */
#define RULE_BYTES 128

/* A day of the year, as POSIX TZ tells it, and a time on it. */
struct rule_day {
	char kind; /* 'J': 1..365 without 29 February; 'N': 0..365; 'M': month, week, weekday */
	int month, week, day;
	int64_t time_s;
};

struct rule {
	bool given, has_summer;
	int64_t offset_s, summer_offset_s; /* east of UTC */
	struct rule_day begin, end; /* of summer time */
};

struct zone {
	size_t nr_times;
	int64_t *times;
	uint8_t *kinds; /* of each time */
	int64_t offsets_s[KINDS_MOST]; /* of each kind */
	struct rule rule;
};

/* --- days --------------------------------------------------------------------- */

/* Days since 1970-01-01; years count from March on, so that a leap day comes last. */
static int64_t days_of(int64_t year, int month, int day)
{
	year -= month <= 2;
	int64_t era = (year >= 0 ? year : year - 399) / 400;
	int64_t of_era = year - era * 400;
	int64_t of_year = (153 * (month + (month > 2 ? -3 : 9)) + 2) / 5 + day - 1;
	return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719468;
}

static void date_of(int64_t days, struct zone_time *time)
{
	days += 719468;
	int64_t era = (days >= 0 ? days : days - 146096) / 146097;
	int64_t of_era = days - era * 146097;
	int64_t year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	int64_t of_year = of_era - (365 * year + year / 4 - year / 100);
	int64_t month = (5 * of_year + 2) / 153; /* 0: March */
	time->day = (int)(of_year - (153 * month + 2) / 5 + 1);
	time->month = (int)(month < 10 ? month + 3 : month - 9);
	time->year = year + era * 400 + (time->month <= 2);
}

static int64_t floor_div(int64_t value, int64_t unit)
{
	return value / unit - (value % unit < 0);
}

/* 0: Monday. */
static int weekday_of(int64_t days)
{
	return (int)((days + 3) - floor_div(days + 3, 7) * 7);
}

static bool is_leap(int64_t year)
{
	return (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
}

int zone_month_days(int64_t year, int month)
{
	static const int lengths[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
	return lengths[month - 1] + (month == 2 && is_leap(year));
}

int zone_weekday(int64_t year, int month, int day)
{
	return (weekday_of(days_of(year, month, day)) + 1) % 7;
}

/* A week belongs to the year of its Thursday. */
static void week_of(int64_t days, struct zone_time *time)
{
	int64_t thursday = days - weekday_of(days) + 3;
	struct zone_time of_thursday;
	date_of(thursday, &of_thursday);
	time->week_year = of_thursday.year;
	time->week = (int)((thursday - days_of(of_thursday.year, 1, 1)) / 7 + 1);
}

/* --- POSIX TZ strings ------------------------------------------------------------ */

static bool take_number(const char **at, int most, int *value)
{
	if (!isdigit((unsigned char)**at))
		return false;
	for (*value = 0; isdigit((unsigned char)**at); ++*at) {
		*value = *value * 10 + (**at - '0');
		if (*value > most)
			return false;
	}
	return true;
}

/* [+-]hh[:mm[:ss]] */
static bool take_time(const char **at, int64_t *seconds)
{
	int hours, minutes = 0, rest = 0;
	bool negative = **at == '-';
	if (**at == '-' || **at == '+')
		++*at;
	if (!take_number(at, 167, &hours))
		return false;
	if (**at == ':') {
		++*at;
		if (!take_number(at, 59, &minutes))
			return false;
		if (**at == ':') {
			++*at;
			if (!take_number(at, 59, &rest))
				return false;
		}
	}
	*seconds = (int64_t)hours * 3600 + (int64_t)minutes * 60 + rest;
	if (negative)
		*seconds = -*seconds;
	return true;
}

/* "CET", "<+0330>" */
static bool take_name(const char **at)
{
	const char *begin = *at;
	if (*begin == '<') {
		*at += strcspn(begin, ">");
		if (**at != '>')
			return false;
		++*at;
		return *at - begin > 2;
	}
	while (isalpha((unsigned char)**at))
		++*at;
	return *at - begin >= 3;
}

static bool take_day(const char **at, struct rule_day *day)
{
	*day = (struct rule_day){.kind = 'N', .time_s = INT64_C(2) * 3600};
	if (**at == 'J' || **at == 'M')
		day->kind = *(*at)++;
	if (day->kind == 'M') {
		if (!take_number(at, 12, &day->month) || *(*at)++ != '.' ||
			!take_number(at, 5, &day->week) || *(*at)++ != '.' ||
			!take_number(at, 6, &day->day) || day->month < 1 || day->week < 1)
			return false;
	} else if (!take_number(at, 365, &day->day) || (day->kind == 'J' && day->day < 1)) {
		return false;
	}
	if (**at != '/')
		return true;
	++*at;
	return take_time(at, &day->time_s);
}

static bool parse_rule(const char *text, struct rule *rule)
{
	*rule = (struct rule){.given = true};
	int64_t west;
	if (!take_name(&text) || !take_time(&text, &west))
		return false;
	rule->offset_s = -west;
	if (!*text)
		return true;
	rule->has_summer = true;
	rule->summer_offset_s = rule->offset_s + 3600;
	if (!take_name(&text))
		return false;
	if (*text && *text != ',') {
		if (!take_time(&text, &west))
			return false;
		rule->summer_offset_s = -west;
	}
	if (!*text) /* as the C library does where no days are given */
		text = ",M3.2.0,M11.1.0";
	return *text++ == ',' && take_day(&text, &rule->begin) && *text++ == ',' &&
	       take_day(&text, &rule->end) && !*text;
}

/* Seconds since 1970 as the wall clock counts them. */
static int64_t day_begins(const struct rule_day *day, int64_t year)
{
	int64_t days;
	if (day->kind == 'M') {
		/* The first such weekday of the month, and weeks on while the month lasts. */
		int64_t first = days_of(year, day->month, 1);
		int length = zone_month_days(year, day->month);
		int sunday_first = (weekday_of(first) + 1) % 7;
		int in_month = (day->day - sunday_first + 7) % 7 + 7 * (day->week - 1);
		while (in_month >= length)
			in_month -= 7;
		days = first + in_month;
	} else {
		days = days_of(year, 1, 1) + day->day;
		if (day->kind == 'J' && !(is_leap(year) && day->day >= 60))
			days--;
	}
	return days * DAY_S + day->time_s;
}

static int64_t rule_offset(const struct rule *rule, int64_t unix_seconds)
{
	if (!rule->has_summer)
		return rule->offset_s;
	struct zone_time time;
	date_of(floor_div(unix_seconds + rule->offset_s, DAY_S), &time);
	int64_t begin = day_begins(&rule->begin, time.year) - rule->offset_s;
	int64_t end = day_begins(&rule->end, time.year) - rule->summer_offset_s;
	bool summer = begin < end ? unix_seconds >= begin && unix_seconds < end
				  : unix_seconds >= begin || unix_seconds < end;
	return summer ? rule->summer_offset_s : rule->offset_s;
}

/* --- zone files ------------------------------------------------------------------- */

struct counts {
	uint8_t version;
	uint32_t nr_utc_flags, nr_std_flags, nr_leaps, nr_times, nr_kinds, nr_chars;
};

static bool parse_header(struct cursor *c, struct counts *counts)
{
	const uint8_t *magic = cursor_take(c, 5);
	if (!magic || memcmp(magic, "TZif", 4) != 0 || !cursor_take(c, 15))
		return false;
	counts->version = magic[4];
	counts->nr_utc_flags = cursor_be32(c);
	counts->nr_std_flags = cursor_be32(c);
	counts->nr_leaps = cursor_be32(c);
	counts->nr_times = cursor_be32(c);
	counts->nr_kinds = cursor_be32(c);
	counts->nr_chars = cursor_be32(c);
	/* Bounds that the file's own size implies, so that no sum below overflows. */
	return cursor_ok(c) && counts->nr_times <= FILE_MOST && counts->nr_kinds >= 1 &&
	       counts->nr_kinds <= KINDS_MOST && counts->nr_chars <= FILE_MOST &&
	       counts->nr_leaps <= FILE_MOST && counts->nr_std_flags <= KINDS_MOST &&
	       counts->nr_utc_flags <= KINDS_MOST;
}

static size_t rest_bytes(const struct counts *counts, size_t time_bytes)
{
	return counts->nr_chars + counts->nr_leaps * (time_bytes + 4) + counts->nr_std_flags +
	       counts->nr_utc_flags;
}

static bool parse_times(struct zone *zone, struct cursor *c, const struct counts *counts)
{
	const uint8_t *times = cursor_take(c, counts->nr_times * (size_t)8);
	const uint8_t *kinds = cursor_take(c, counts->nr_times);
	const uint8_t *info = cursor_take(c, counts->nr_kinds * (size_t)6);
	/* Leap seconds would make it another time scale than everybody's. */
	if (!cursor_ok(c) || counts->nr_leaps > 0)
		return false;
	zone->nr_times = counts->nr_times;
	zone->times = calloc(zone->nr_times + 1, sizeof *zone->times);
	zone->kinds = calloc(zone->nr_times + 1, 1);
	if (!zone->times || !zone->kinds)
		return false;
	for (size_t i = 0; i < zone->nr_times; i++) {
		zone->times[i] = (int64_t)be64_get(times + i * 8);
		zone->kinds[i] = kinds[i];
		if (kinds[i] >= counts->nr_kinds || (i > 0 && zone->times[i] <= zone->times[i - 1]))
			return false;
	}
	for (uint32_t i = 0; i < counts->nr_kinds; i++) {
		zone->offsets_s[i] = (int32_t)be32_get(info + i * (size_t)6);
		if (zone->offsets_s[i] < -OFFSET_MOST_S || zone->offsets_s[i] > OFFSET_MOST_S)
			return false;
	}
	return true;
}

static bool parse_file(struct zone *zone, const char *bytes, size_t length)
{
	struct cursor c = cursor_over(bytes, length);
	struct counts counts;
	if (!parse_header(&c, &counts) || counts.version < '2')
		return false;
	if (!cursor_take(&c, counts.nr_times * (size_t)5 + counts.nr_kinds * (size_t)6 +
				     rest_bytes(&counts, 4)) ||
		!parse_header(&c, &counts) || !parse_times(zone, &c, &counts))
		return false;
	size_t rest = rest_bytes(&counts, 8);
	if (rest > 0 && !cursor_take(&c, rest))
		return false;
	char rule[RULE_BYTES];
	size_t used = 0;
	if (cursor_u8(&c) != '\n')
		return false;
	for (uint8_t byte; (byte = cursor_u8(&c)) != '\n' && cursor_ok(&c);) {
		if (used + 1 == sizeof rule)
			return false;
		rule[used++] = (char)byte;
	}
	rule[used] = '\0';
	return cursor_ok(&c) && (used == 0 || parse_rule(rule, &zone->rule));
}

static int load(struct zone *zone, const char *path, struct err *err)
{
	char *AUTO_FREE bytes = NULL;
	size_t length;
	if (file_load(AT_FDCWD, path, FILE_MOST, &bytes, &length, err) < 0)
		return -1;
	if (!parse_file(zone, bytes, length))
		return err_set(
			err, ERR_FORMAT, "%s is not a time zone's file that can be used", path);
	return 0;
}

/* --- finding a zone ------------------------------------------------------------------ */

static bool is_name(const char *name)
{
	return name[0] && name[0] != '/' && strlen(name) < 200 && !strstr(name, "..") &&
	       strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
			    "0123456789_+-/") == strlen(name);
}

static int find(struct zone *zone, const char *name, struct err *err)
{
	char path[sizeof FOLDER + 200];
	struct err why = ERR_INIT;
	if (strcmp(name, "UTC") == 0 || !name[0])
		return 0;
	if (is_name(name)) {
		snprintf(path, sizeof path, FOLDER "%s", name);
		if (load(zone, path, &why) == 0)
			return 0;
		if (why.code != ERR_NOT_FOUND)
			return err_set(err, ERR_USAGE, "time zone \"%s\": %s", name, why.text);
	}
	if (parse_rule(name, &zone->rule))
		return 0;
	zone->rule.given = false;
	err_set(err, ERR_USAGE, "time zone \"%.100s\" is unknown", name);
	return err_hint(err, "a name as in " FOLDER ", like Europe/Berlin, or UTC");
}

static int find_local(struct zone *zone, struct err *err)
{
	const char *name = getenv("TZ");
	struct err why = ERR_INIT;
	if (name && name[0] == ':')
		name++;
	if (name && name[0] == '/')
		return load(zone, name, err);
	if (name)
		return find(zone, name, err);
	if (load(zone, "/etc/localtime", &why) == 0 || why.code == ERR_NOT_FOUND)
		return 0;
	return err_copy(err, &why);
}

struct zone *zone_open(const char *name, struct err *err)
{
	struct zone *zone = calloc(1, sizeof *zone);
	if (!zone) {
		err_errno(err, ENOMEM, "cannot open a time zone");
		return NULL;
	}
	if ((name ? find(zone, name, err) : find_local(zone, err)) == 0)
		return zone;
	zone_free(zone);
	return NULL;
}

void zone_free(struct zone *zone)
{
	if (!zone)
		return;
	free(zone->times);
	free(zone->kinds);
	free(zone);
}

/* --- telling the time ------------------------------------------------------------------ */

static int64_t offset_at(const struct zone *zone, int64_t unix_seconds)
{
	size_t low = 0, high = zone->nr_times;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		if (zone->times[middle] <= unix_seconds)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == zone->nr_times && zone->rule.given)
		return rule_offset(&zone->rule, unix_seconds);
	return low == 0 ? zone->offsets_s[0] : zone->offsets_s[zone->kinds[low - 1]];
}

struct zone_time zone_time(const struct zone *zone, int64_t unix_seconds)
{
	struct zone_time time;
	int64_t local = unix_seconds + offset_at(zone, unix_seconds);
	int64_t days = floor_div(local, DAY_S);
	int of_day = (int)(local - days * DAY_S);
	date_of(days, &time);
	week_of(days, &time);
	time.hour = of_day / 3600;
	time.minute = of_day / 60 % 60;
	time.second = of_day % 60;
	return time;
}

int64_t zone_seconds(const struct zone *zone, const struct zone_time *wall)
{
	assert(wall->year >= 1 && wall->year <= 9998 && wall->month >= 1 && wall->month <= 12);
	assert(wall->day >= 1 && wall->day <= zone_month_days(wall->year, wall->month));
	int64_t local = days_of(wall->year, wall->month, wall->day) * DAY_S +
			wall->hour * (int64_t)3600 + wall->minute * (int64_t)60 + wall->second;
	int64_t before = offset_at(zone, local - AROUND_S),
		after = offset_at(zone, local + AROUND_S);
	if (offset_at(zone, local - before) == before)
		return local - before;
	if (offset_at(zone, local - after) == after)
		return local - after;
	/* Never shown: the change lies between both. */
	int64_t low = local - after, high = local - before;
	while (high - low > 1) {
		int64_t middle = low + (high - low) / 2;
		if (offset_at(zone, middle) == after)
			high = middle;
		else
			low = middle;
	}
	return high;
}
