/*
 * Five fields; see cron.h.
 *
 * Looked for is a day that matches (months that do not are passed over), then hour and minute
 * on the wall, which zone_seconds() makes a moment of.  It never goes back where the time on the
 * wall goes on, so the first one behind `after` is the answer.  What is due in every hour is
 * looked for from moment to moment instead.
 */
#include "cron.h"

#include <assert.h>
#include <ctype.h>
#include <string.h>
#include <strings.h>

#define FIELDS 5
#define FIELD_BYTES 256
#define ALL_HOURS ((UINT32_C(1) << 24) - 1)
#define DAY_S 86400
#define YEARS_MOST 50 /* 29 February on a given weekday, over a century's year without one */

struct field {
	const char *name;
	int least, most;
	const char *const *words; /* of least, least + 1, ... */
	size_t nr_words;
};

static const char *const month_words[] = {
	"jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"};
static const char *const weekday_words[] = {"sun", "mon", "tue", "wed", "thu", "fri", "sat"};

static const struct field fields[FIELDS] = {
	{.name = "minute", .least = 0, .most = 59},
	{.name = "hour", .least = 0, .most = 23},
	{.name = "day of month", .least = 1, .most = 31},
	{.name = "month",
		.least = 1,
		.most = 12,
		.words = month_words,
		.nr_words = ARRAY_LENGTH(month_words)},
	{.name = "day of week",
		.least = 0,
		.most = 7,
		.words = weekday_words,
		.nr_words = ARRAY_LENGTH(weekday_words)},
};

static const struct {
	const char *name, *fields;
} shorthands[] = {
	{"@yearly", "0 0 1 1 *"},
	{"@annually", "0 0 1 1 *"},
	{"@monthly", "0 0 1 * *"},
	{"@weekly", "0 0 * * 0"},
	{"@daily", "0 0 * * *"},
	{"@midnight", "0 0 * * *"},
	{"@hourly", "0 * * * *"},
};

/* --- parsing ----------------------------------------------------------------------- */

/* A number or a word of the field. */
static bool take_value(const struct field *field, const char **at, int *value)
{
	if (isdigit((unsigned char)**at)) {
		for (*value = 0; isdigit((unsigned char)**at); ++*at) {
			*value = *value * 10 + (**at - '0');
			if (*value > 1000)
				return false;
		}
		return true;
	}
	for (size_t i = 0; i < field->nr_words; i++) {
		size_t length = strlen(field->words[i]);
		if (strncasecmp(*at, field->words[i], length) != 0 ||
			isalnum((unsigned char)(*at)[length]))
			continue;
		*at += length;
		*value = field->least + (int)i;
		return true;
	}
	return false;
}

static int wrong(const struct field *field, const char *text, const char *why, struct err *err)
{
	return err_set(err, ERR_USAGE, "%s \"%s\": %s", field->name, text, why);
}

/* "*", "a", "a-b", each but the second with "/n". */
static int parse_part(const struct field *field, const char *text, uint64_t *bits, struct err *err)
{
	const char *at = text;
	int first = field->least, last = field->most, step = 1;
	bool is_range = true;
	if (*at == '*') {
		at++;
		if (field->words == weekday_words)
			last = 6;
	} else {
		if (!take_value(field, &at, &first))
			return wrong(field, text, "neither a number nor a name that it knows", err);
		last = first;
		is_range = *at == '-';
		if (is_range) {
			at++;
			if (!take_value(field, &at, &last))
				return wrong(
					field, text, "a range ends with a number or name", err);
			/* fri-sun */
			if (field->words == weekday_words && last == 0 && first > 0)
				last = 7;
		}
	}
	if (*at == '/') {
		if (!is_range)
			return wrong(field, text, "a step stands behind * or a range alone", err);
		at++;
		if (!isdigit((unsigned char)*at) || !take_value(field, &at, &step) || step < 1 ||
			step > field->most)
			return wrong(field, text, "the step is out of range", err);
	}
	if (*at)
		return wrong(field, text, "not understood", err);
	if (first < field->least || last > field->most)
		return wrong(field, text, "out of range", err);
	if (first > last)
		return wrong(field, text,
			"the range goes backwards (two ranges with a comma between do what is "
			"meant)",
			err);
	assert(first >= 0);
	for (int value = first; value <= last; value += step)
		*bits |= UINT64_C(1) << value;
	return 0;
}

static int parse_field(
	const struct field *field, const char *text, size_t length, uint64_t *bits, struct err *err)
{
	char copy[FIELD_BYTES];
	if (length >= sizeof copy)
		return err_set(err, ERR_USAGE, "%s: too long", field->name);
	memcpy(copy, text, length);
	copy[length] = '\0';
	*bits = 0;
	for (char *part = copy; part;) {
		char *comma = strchr(part, ',');
		if (comma)
			*comma++ = '\0';
		if (parse_part(field, part, bits, err) < 0)
			return -1;
		part = comma;
	}
	return 0;
}

/* Whether any year has a day that matches. */
static bool is_possible(const struct cron *cron)
{
	if (cron->either_day)
		return true;
	for (int month = 1; month <= 12; month++)
		for (int day = 1; day <= zone_month_days(2000, month); day++)
			if ((cron->months >> month & 1) && (cron->days >> day & 1))
				return true;
	return false;
}

int cron_parse(const char *text, struct cron *cron, struct err *err)
{
	uint64_t bits[FIELDS];
	bool stars[FIELDS];
	const char *at = text;
	for (size_t i = 0; i < ARRAY_LENGTH(shorthands); i++)
		if (strcmp(text, shorthands[i].name) == 0)
			at = shorthands[i].fields;
	if (*at == '@')
		return err_set(err, ERR_USAGE,
			"\"%s\" is unknown (there are @yearly, @monthly, @weekly, @daily, @hourly)",
			text);
	for (size_t i = 0; i < FIELDS; i++) {
		at += strspn(at, " \t");
		size_t length = strcspn(at, " \t");
		if (length == 0)
			return err_set(err, ERR_USAGE,
				"\"%s\": %s is missing (five fields: minute, hour, day of month, "
				"month, day of week)",
				text, fields[i].name);
		stars[i] = *at == '*';
		if (parse_field(&fields[i], at, length, &bits[i], err) < 0)
			return -1;
		at += length;
	}
	if (at[strspn(at, " \t")])
		return err_set(err, ERR_USAGE, "\"%s\": more than five fields", text);
	*cron = (struct cron){.minutes = bits[0],
		.hours = (uint32_t)bits[1],
		.days = (uint32_t)bits[2],
		.months = (uint32_t)bits[3],
		.weekdays = (uint32_t)((bits[4] | bits[4] >> 7) & 0x7f),
		.either_day = !stars[2] && !stars[4]};
	if (!is_possible(cron))
		return err_set(err, ERR_USAGE, "\"%s\" is never due: no such day exists", text);
	return 0;
}

/* --- the next moment -------------------------------------------------------------------- */

static bool day_matches(const struct cron *cron, const struct zone_time *wall)
{
	if (!(cron->months >> wall->month & 1))
		return false;
	bool day = cron->days >> wall->day & 1;
	bool weekday = cron->weekdays >> zone_weekday(wall->year, wall->month, wall->day) & 1;
	return cron->either_day ? day || weekday : day && weekday;
}

static void next_day(struct zone_time *wall)
{
	if (++wall->day <= zone_month_days(wall->year, wall->month))
		return;
	wall->day = 1;
	if (++wall->month <= 12)
		return;
	wall->month = 1;
	wall->year++;
}

/* To the first day from this one on that matches. */
static void find_day(const struct cron *cron, struct zone_time *wall)
{
	int64_t last_year = wall->year + YEARS_MOST;
	while (!day_matches(cron, wall)) {
		if (!(cron->months >> wall->month & 1))
			wall->day = zone_month_days(wall->year, wall->month);
		next_day(wall);
		assert(wall->year <= last_year);
	}
}

/* Of the times on that day, the first that lies behind `after`; or -1. */
static int64_t on_day(const struct cron *cron, const struct zone *zone, const struct zone_time *day,
	int64_t after)
{
	struct zone_time wall = *day;
	wall.second = 0;
	for (wall.hour = 0; wall.hour < 24; wall.hour++) {
		if (!(cron->hours >> wall.hour & 1))
			continue;
		/* The hour's end first: hours that have passed cost one look. */
		wall.minute = 59;
		if (zone_seconds(zone, &wall) <= after)
			continue;
		for (wall.minute = 0; wall.minute < 60; wall.minute++) {
			if (!(cron->minutes >> wall.minute & 1))
				continue;
			int64_t moment = zone_seconds(zone, &wall);
			if (moment > after)
				return moment;
		}
	}
	return -1;
}

static int64_t by_the_wall(const struct cron *cron, const struct zone *zone, int64_t after)
{
	struct zone_time day = zone_time(zone, after);
	for (;;) {
		find_day(cron, &day);
		int64_t moment = on_day(cron, zone, &day, after);
		if (moment >= 0)
			return moment;
		next_day(&day);
	}
}

/* What is due in every hour: minute by minute, where the day matches. */
static int64_t by_the_hour(const struct cron *cron, const struct zone *zone, int64_t after)
{
	struct zone_time wall = zone_time(zone, after);
	int64_t moment = after + 60 - wall.second;
	for (;;) {
		wall = zone_time(zone, moment);
		if (day_matches(cron, &wall)) {
			if (cron->minutes >> wall.minute & 1)
				return moment;
			moment += 60 - wall.second;
			continue;
		}
		wall.hour = wall.minute = wall.second = 0;
		struct zone_time day = wall;
		find_day(cron, &day);
		int64_t begins = zone_seconds(zone, &day);
		/* The day may have begun before, where clocks are put back over midnight. */
		moment = begins > moment ? begins : moment + 60;
	}
}

int64_t cron_next(const struct cron *cron, const struct zone *zone, int64_t after)
{
	return cron->hours == ALL_HOURS ? by_the_hour(cron, zone, after)
					: by_the_wall(cron, zone, after);
}
