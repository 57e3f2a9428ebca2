/*
 * Retention: which restore points a policy keeps.
 *
 * The points are gone through from the newest to the oldest, for each rule by itself.  A
 * period counts when it comes up for the first time, and its first point, which is its newest,
 * is kept.  Where clocks are put back a period may come up again behind others (the same hour
 * twice in a night), so the last few are remembered.
 */
#include "repository.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Clocks were never put back by more than a day: at most 25 hours come up twice. */
#define REMEMBERED 32u

enum rule { HOURLY, DAILY, WEEKLY, MONTHLY, YEARLY, NR_RULES };

static const char *const rule_names[] = {
	[HOURLY] = "hourly",
	[DAILY] = "daily",
	[WEEKLY] = "weekly",
	[MONTHLY] = "monthly",
	[YEARLY] = "yearly",
};

struct period {
	int64_t seen[REMEMBERED]; /* numbers of periods, a ring */
	uint64_t nr_seen;
	unsigned left; /* so many more are kept */
};

static int64_t period_number(enum rule rule, const struct zone_time *time)
{
	int64_t month = time->year * 12 + time->month - 1, day = month * 31 + time->day - 1;
	switch (rule) {
	case HOURLY:
		return day * 24 + time->hour;
	case DAILY:
		return day;
	case WEEKLY:
		return time->week_year * 54 + time->week;
	case MONTHLY:
		return month;
	default:
		return time->year;
	}
}

static void period_text(enum rule rule, const struct zone_time *time, char *out, size_t room)
{
	int year = (int)time->year;
	switch (rule) {
	case HOURLY:
		snprintf(out, room, "%04d-%02d-%02d %02dh", year, time->month, time->day,
			time->hour);
		break;
	case DAILY:
		snprintf(out, room, "%04d-%02d-%02d", year, time->month, time->day);
		break;
	case WEEKLY:
		snprintf(out, room, "%04d-W%02d", (int)time->week_year, time->week);
		break;
	case MONTHLY:
		snprintf(out, room, "%04d-%02d", year, time->month);
		break;
	default:
		snprintf(out, room, "%04d", year);
	}
}

/* True when the point is the newest of a period that the rule keeps. */
static bool takes(struct period *period, int64_t number)
{
	for (uint64_t i = 0; i < REMEMBERED && i < period->nr_seen; i++)
		if (period->seen[i] == number)
			return false;
	period->seen[period->nr_seen++ % REMEMBERED] = number;
	if (period->left == 0)
		return false;
	period->left--;
	return true;
}

static void keep(struct retention_point *point, const char *why)
{
	size_t used = point->keep ? strlen(point->why) : 0;
	snprintf(point->why + used, sizeof point->why - used, "%s%s", used > 0 ? ", " : "", why);
	point->keep = true;
}

static void keep_within(
	const struct retention_policy *policy, struct retention_point *points, size_t nr_points)
{
	static const struct {
		int64_t seconds;
		const char *unit;
	} units[] = {{31536000, "y"}, {86400, "d"}, {3600, "h"}, {1, "s"}};
	size_t unit = 0;
	char why[40];
	if (policy->within_s <= 0)
		return;
	while (policy->within_s % units[unit].seconds != 0)
		unit++;
	snprintf(why, sizeof why, "within %" PRId64 "%s", policy->within_s / units[unit].seconds,
		units[unit].unit);
	for (size_t i = nr_points; i-- > 0;) {
		/* Unsigned: times may be anything. */
		uint64_t age_s = (uint64_t)points[nr_points - 1].time - (uint64_t)points[i].time;
		if (age_s >= (uint64_t)policy->within_s)
			return;
		keep(&points[i], why);
	}
}

static void keep_periods(const struct retention_policy *policy, const struct zone *zone,
	struct retention_point *points, size_t nr_points)
{
	struct period periods[NR_RULES] = {
		[HOURLY].left = policy->hourly,
		[DAILY].left = policy->daily,
		[WEEKLY].left = policy->weekly,
		[MONTHLY].left = policy->monthly,
		[YEARLY].left = policy->yearly,
	};
	for (size_t i = nr_points; i-- > 0;) {
		struct zone_time time = zone_time(zone, points[i].time);
		for (enum rule rule = 0; rule < NR_RULES; rule++) {
			char text[40], why[60];
			if (!takes(&periods[rule], period_number(rule, &time)))
				continue;
			period_text(rule, &time, text, sizeof text);
			snprintf(why, sizeof why, "%s %s", rule_names[rule], text);
			keep(&points[i], why);
		}
	}
}

int retention_apply(const struct retention_policy *policy, struct retention_point *points,
	size_t nr_points, struct err *err)
{
	if (!policy->last && !policy->hourly && !policy->daily && !policy->weekly &&
		!policy->monthly && !policy->yearly && policy->within_s <= 0)
		return err_set(err, ERR_USAGE, "no rule says which restore points are to be kept");
	struct zone *zone = zone_open(policy->timezone, err);
	if (!zone)
		return -1;
	for (size_t i = 0; i < nr_points; i++) {
		points[i].keep = false;
		points[i].why[0] = '\0';
	}
	for (size_t i = 0; i < nr_points && i < policy->last; i++) {
		char why[40];
		snprintf(why, sizeof why, "last %zu", i + 1);
		keep(&points[nr_points - 1 - i], why);
	}
	keep_periods(policy, zone, points, nr_points);
	keep_within(policy, points, nr_points);
	for (size_t i = 0; i < nr_points; i++) {
		if (points[i].keep)
			continue;
		if (i + 1 == nr_points)
			keep(&points[i], "newest");
		else if (points[i].held)
			keep(&points[i], "held");
		else
			snprintf(points[i].why, sizeof points[i].why, "no rule keeps it");
	}
	zone_free(zone);
	return 0;
}
