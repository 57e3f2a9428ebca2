/*
 * Time: the monotonic clock, and deadlines on it.
 *
 * Nothing waits without a deadline; there is no "for ever" on purpose.
 * Deadlines are values: copy them freely.
 */
#ifndef SENDENSE_CLOCK_H
#define SENDENSE_CLOCK_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

struct deadline {
	int64_t at_ns; /* on CLOCK_MONOTONIC */
};

int64_t clock_now_ns(void);

/* timeout_ms: 0 .. about 290 years; a negative value counts as 0. */
struct deadline deadline_after_ms(int64_t timeout_ms);

/* The earlier of two. */
struct deadline deadline_min(struct deadline a, struct deadline b);

bool deadline_passed(struct deadline d);

/* Milliseconds left, rounded up, 0 when it passed, INT_MAX at most: for poll(). */
int deadline_left_ms(struct deadline d);

/* The same as an absolute time for pthread_cond_clockwait(CLOCK_MONOTONIC). */
struct timespec deadline_timespec(struct deadline d);

/* "2026-11-21T20:00:00Z" for a time in seconds since 1970; out has room for
 * CLOCK_UTC_BYTES.  Years 1970..9999. */
#define CLOCK_UTC_BYTES 32
void clock_utc_text(int64_t unix_seconds, char out[CLOCK_UTC_BYTES]);

/* "90s", "15m", "2h", "1d", "4w", "1y" (365 days), "90": seconds; otherwise ERR_USAGE. */
int clock_parse_duration(const char *text, uint64_t *seconds, struct err *err);

#endif
