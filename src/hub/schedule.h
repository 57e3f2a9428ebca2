/*
 * schedule: when something is done: fields of cron in a zone, jitter, a window.
 *
 *   due    = a moment of cron + the jitter of that machine
 *   begins = due, or when the window opens, a place is free, the machine is not busy
 *   seen   = how far the moments of cron have been dealt with; what was missed is due once
 *
 * The JSON of a schedule is described in docs/hub.md.  Pure; a parsed schedule never changes.
 */
#ifndef SENDENSE_HUB_SCHEDULE_H
#define SENDENSE_HUB_SCHEDULE_H

#include "cron.h"

#include <jansson.h>

#define SCHEDULE_ID_BYTES 65 /* 1..64 of [A-Za-z0-9._-], not beginning with a dot or dash */

#define SCHEDULE_RULE_BYTES 33

enum schedule_action {
	SCHEDULE_BACKUP, /* the machines whose policy names it */
	SCHEDULE_VERIFY, /* repositories, what was verified longest ago first, for a time */
	SCHEDULE_PRUNE, /* the machines whose policy says what to keep */
	SCHEDULE_REPORT, /* tells how the week was */
};

struct schedule {
	char id[SCHEDULE_ID_BYTES];
	bool enabled;
	enum schedule_action action;
	struct cron cron;
	struct zone *zone;
	unsigned jitter_s;
	bool has_window;
	int window_from, window_to; /* minutes of the day; from > to: over midnight */
	unsigned most, most_per_source; /* at once; 0: as the hub's limits say */
	unsigned retries, retry_after_s; /* of a job that failed; the pause doubles */
	unsigned time_box_s; /* of VERIFY; 0: none */
	char *repository; /* of VERIFY: this one alone; NULL: each */
	/* Differs when what is due when does: what lay before a change is not made up for. */
	char rule[SCHEDULE_RULE_BYTES];
};

/* 0, or ERR_USAGE with the rule that is broken. */
int schedule_check_id(const char *what, const char *id, struct err *err);

/* id is not looked at in value.  zone: of the hub, NULL: the local one.  ERR_USAGE names the
 * member. */
struct schedule *schedule_parse(
	const char *id, const json_t *value, const char *zone, struct err *err);
/* NULL is harmless. */
void schedule_free(struct schedule *schedule);

const char *schedule_action_name(enum schedule_action action);

/* 0..jitter_s, always the same for the same schedule and machine. */
unsigned schedule_jitter(const struct schedule *schedule, const char *who);

/* The first due moment of `who` behind `seen`, whatever the window says. */
int64_t schedule_due(const struct schedule *schedule, const char *who, int64_t seen);

/* What `seen` becomes when who is begun at `now`: every due moment up to now is dealt with. */
int64_t schedule_seen(const struct schedule *schedule, const char *who, int64_t seen, int64_t now);

/*
 * After a jump of the clock backwards `seen` lies ahead.  By less than a day nothing is due until
 * then, so that nothing is done twice; by more the clock was wrong before, and what
 * it made of `seen` too: true, and *seen is mended.
 */
bool schedule_mend(const struct schedule *schedule, const char *who, int64_t now, int64_t *seen);

/* The window, by the wall clock.  Without one it is always open. */
bool schedule_is_open(const struct schedule *schedule, int64_t now);
/* now, when it is open; else when it opens next. */
int64_t schedule_opens(const struct schedule *schedule, int64_t now);

#endif
