/*
 * Time zones: what the clock on the wall showed at a moment.
 *
 * The C library knows one zone for a whole process (TZ), and to change that is not safe
 * beside other threads.  So the zone's file is read here: TZif (RFC 8536), with its rule for
 * the time behind the last change (a POSIX TZ string).
 *
 * Thread rule: an open zone never changes; any number of threads may use it.
 */
#ifndef SENDENSE_ZONE_H
#define SENDENSE_ZONE_H

#include "err.h"

#include <stdint.h>

struct zone;

struct zone_time {
	int64_t year;
	int month, day; /* 1..12, 1..31 */
	int hour, minute, second;
	int64_t week_year; /* ISO 8601: weeks begin on Monday, and belong to the year ... */
	int week; /* ... that most of their days are in; 1..53 */
};

/*
 * "UTC", or a name in /usr/share/zoneinfo ("Europe/Berlin"), or a POSIX TZ string
 * ("CET-1CEST,M3.5.0,M10.5.0/3").  NULL: the local one, as the C library finds it (TZ, else
 * /etc/localtime, else UTC).  ERR_USAGE: no such zone; ERR_FORMAT: the local one's
 * file is damaged.
 */
struct zone *zone_open(const char *name, struct err *err);
/* NULL is harmless. */
void zone_free(struct zone *zone);

/* Seconds since 1970, years 1 to 9999. */
struct zone_time zone_time(const struct zone *zone, int64_t unix_seconds);

/*
 * The other way: the first moment at which the clock on the wall shows that time (year to
 * second; week is not looked at).  What it shows twice is the first of both; what it never
 * shows, because clocks are put forward, is the moment they are.  Asserted: years 1 to 9998 and
 * a date that exists.
 */
int64_t zone_seconds(const struct zone *zone, const struct zone_time *wall);

/* Days of a month, 28..31. */
int zone_month_days(int64_t year, int month);
/* 0: Sunday. */
int zone_weekday(int64_t year, int month, int day);

#endif
