/* Time; see clock.h. */
#include "clock.h"

#include "bytes.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define NS_PER_MS 1000000
#define NS_PER_S 1000000000

int64_t clock_now_ns(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

struct deadline deadline_after_ms(int64_t timeout_ms)
{
	int64_t span_ns, at_ns;
	if (timeout_ms < 0)
		timeout_ms = 0;
	if (__builtin_mul_overflow(timeout_ms, (int64_t)NS_PER_MS, &span_ns) ||
		__builtin_add_overflow(clock_now_ns(), span_ns, &at_ns))
		at_ns = INT64_MAX;
	return (struct deadline){.at_ns = at_ns};
}

struct deadline deadline_min(struct deadline a, struct deadline b)
{
	return a.at_ns < b.at_ns ? a : b;
}

bool deadline_passed(struct deadline d)
{
	return clock_now_ns() >= d.at_ns;
}

int deadline_left_ms(struct deadline d)
{
	int64_t left_ns = d.at_ns - clock_now_ns();
	if (left_ns <= 0)
		return 0;
	int64_t left_ms = left_ns / NS_PER_MS + (left_ns % NS_PER_MS != 0);
	return left_ms > INT_MAX ? INT_MAX : (int)left_ms;
}

struct timespec deadline_timespec(struct deadline d)
{
	return (struct timespec){
		.tv_sec = (time_t)(d.at_ns / NS_PER_S), .tv_nsec = (long)(d.at_ns % NS_PER_S)};
}

void clock_utc_text(int64_t unix_seconds, char out[CLOCK_UTC_BYTES])
{
	time_t t = (time_t)unix_seconds;
	struct tm tm;
	gmtime_r(&t, &tm);
	strftime(out, CLOCK_UTC_BYTES, "%Y-%m-%dT%H:%M:%SZ", &tm);
}

int clock_parse_duration(const char *text, uint64_t *seconds, struct err *err)
{
	static const struct {
		const char *unit;
		uint64_t seconds;
	} units[] = {{"", 1}, {"s", 1}, {"m", 60}, {"min", 60}, {"h", 3600}, {"d", 86400},
		{"w", 604800}, {"y", 31536000}};
	char *end;
	errno = 0;
	unsigned long long count = strtoull(text, &end, 10);
	if (isdigit((unsigned char)text[0]) && errno == 0)
		for (size_t i = 0; i < ARRAY_LENGTH(units); i++)
			if (strcmp(end, units[i].unit) == 0 &&
				mul_u64(count, units[i].seconds, seconds))
				return 0;
	return err_set(
		err, ERR_USAGE, "\"%s\" is not a duration (like 90s, 15m, 2h, 1d, 4w or 1y)", text);
}
