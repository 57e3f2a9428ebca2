/*
 * cron: when a schedule is due, by the five fields that everybody knows.
 *
 *   ┌ minute 0-59  ┌ hour 0-23  ┌ day 1-31  ┌ month 1-12, jan-dec  ┌ weekday 0-7, sun-sat
 *   30             22           *           *                      mon-fri
 *
 * A field is a list of "*", numbers, ranges "a-b", and these with a step "/n" (not a number
 * alone).  7 is Sunday too.  @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly
 * stand for five fields.  Where both day fields are restricted (neither begins with "*") a
 * day matches when one of them does, else when both do, as in cron.
 *
 * Daylight saving: the fields say what the clock on the wall shows.  A time that it skips is
 * due at the next minute that there is, one that it shows twice is due the first time.  What
 * is due in every hour ("*" or all of them) is due in every hour that passes: nothing is added or
 * left out where clocks change.
 *
 * Pure; values that are copied freely; any thread.
 */
#ifndef SENDENSE_HUB_CRON_H
#define SENDENSE_HUB_CRON_H

#include "base.h"

struct cron {
	uint64_t minutes; /* a bit each */
	uint32_t hours, days, months, weekdays; /* days, months from bit 1; Sunday: bit 0 */
	bool either_day; /* both day fields are restricted */
};

/* ERR_USAGE: names the field and what is wrong with it; also for what is never due (31 2). */
int cron_parse(const char *text, struct cron *cron, struct err *err);

/*
 * The first moment behind `after` (seconds since 1970, from 1970 to the year 9900) at which it is
 * due.  Found in bounded time: at most the 50 years that 29 February needs to fall on a weekday.
 */
int64_t cron_next(const struct cron *cron, const struct zone *zone, int64_t after);

#endif
