/* When something is due; see schedule.h. */
#include "schedule.h"

#include "rest.h"
#include "time_internal.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define DAY_S 86400
#define MINUTES_OF_DAY 1440

static const char *const actions[] = {
	[SCHEDULE_BACKUP] = "backup",
	[SCHEDULE_VERIFY] = "verify",
	[SCHEDULE_PRUNE] = "prune",
	[SCHEDULE_REPORT] = "report",
	NULL,
};

static const struct rest_field schedule_fields[] = {
	{.name = "id", .type = REST_STRING},
	{.name = "description", .type = REST_STRING, .most = 255},
	{.name = "enabled", .type = REST_BOOL},
	{.name = "action", .type = REST_STRING, .choices = actions},
	{.name = "cron", .type = REST_STRING, .required = true, .least = 1, .most = 1000},
	{.name = "time_zone", .type = REST_STRING, .least = 1, .most = 255},
	{.name = "jitter_s", .type = REST_INTEGER, .least = 0, .most = DAY_S},
	{.name = "window", .type = REST_OBJECT, .nullable = true},
	{.name = "most", .type = REST_INTEGER, .least = 0, .most = 10000},
	{.name = "most_per_source", .type = REST_INTEGER, .least = 0, .most = 10000},
	{.name = "retries", .type = REST_INTEGER, .least = 0, .most = 20},
	{.name = "retry_after_s", .type = REST_INTEGER, .least = 1, .most = DAY_S},
	{.name = "time_box_s", .type = REST_INTEGER, .least = 0, .most = INT64_C(7) * DAY_S},
	{.name = "repository", .type = REST_STRING, .least = 1, .most = 64, .nullable = true},
	/* What only reading shows; so that what was read can be written. */
	{.name = "created", .type = REST_STRING},
	{.name = "status", .type = REST_OBJECT},
	{.name = NULL},
};

static const struct rest_field window_fields[] = {
	{.name = "from", .type = REST_STRING, .required = true, .least = 5, .most = 5},
	{.name = "to", .type = REST_STRING, .required = true, .least = 5, .most = 5},
	{.name = NULL},
};

const char *schedule_action_name(enum schedule_action action)
{
	return actions[action];
}

int schedule_check_id(const char *what, const char *id, struct err *err)
{
	size_t length = strlen(id);
	if (length >= 1 && length < SCHEDULE_ID_BYTES && isalnum((unsigned char)id[0]) &&
		strspn(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
			   "0123456789._-") == length)
		return 0;
	return err_set(err, ERR_USAGE,
		"%s \"%.100s\": 1 to 64 of letters, digits, \".\", \"_\", \"-\", beginning with a "
		"letter or digit",
		what, id);
}

/* "22:30" */
static int parse_clock(const json_t *window, const char *name, int *minutes, struct err *err)
{
	const char *text = time_text(window, name);
	int hour, minute, used = 0;
	if (isdigit((unsigned char)text[0]) && isdigit((unsigned char)text[3]) &&
		sscanf(text, "%2d:%2d%n", &hour, &minute, &used) == 2 && used == 5 && hour <= 23 &&
		minute <= 59) {
		*minutes = hour * 60 + minute;
		return 0;
	}
	return err_set(
		err, ERR_USAGE, "window.%s: \"%s\" is no time of day (like 22:30)", name, text);
}

static int parse_window(struct schedule *schedule, const json_t *window, struct err *err)
{
	if (!json_is_object(window))
		return 0;
	if (rest_check_in("window", window, window_fields, err) < 0 ||
		parse_clock(window, "from", &schedule->window_from, err) < 0 ||
		parse_clock(window, "to", &schedule->window_to, err) < 0)
		return -1;
	if (schedule->window_from == schedule->window_to)
		return err_set(err, ERR_USAGE, "window: it begins when it ends");
	schedule->has_window = true;
	return 0;
}

static void make_rule(struct schedule *schedule, const json_t *value, const char *zone)
{
	const char *own_zone = time_text(value, "time_zone");
	char text[2048];
	uint8_t hash[DIGEST_ROOT_BYTES];
	if (!own_zone)
		own_zone = zone ? zone : "local";
	int length = schedule->enabled
			     ? snprintf(text, sizeof text, "%s|%s|%u", time_text(value, "cron"),
				       own_zone, schedule->jitter_s)
			     : snprintf(text, sizeof text, "disabled");
	digest_sha256(text, (size_t)length, hash);
	digest_hex(hash, (SCHEDULE_RULE_BYTES - 1) / 2, schedule->rule);
}

static int fill(struct schedule *schedule, const json_t *value, const char *zone, struct err *err)
{
	const char *action = time_text(value, "action"), *own_zone = time_text(value, "time_zone");
	const char *repository = time_text(value, "repository");
	schedule->enabled = time_flag(value, "enabled", true);
	for (int i = 0; action && actions[i]; i++)
		if (strcmp(action, actions[i]) == 0)
			schedule->action = (enum schedule_action)i;
	schedule->jitter_s = (unsigned)time_number(value, "jitter_s", 0);
	schedule->most = (unsigned)time_number(value, "most", 0);
	schedule->most_per_source = (unsigned)time_number(value, "most_per_source", 0);
	schedule->retries = (unsigned)time_number(value, "retries", 2);
	schedule->retry_after_s = (unsigned)time_number(value, "retry_after_s", 600);
	schedule->time_box_s = (unsigned)time_number(value, "time_box_s", 0);
	if (repository && !(schedule->repository = strdup(repository)))
		return err_errno(err, ENOMEM, "cannot read a schedule");
	if (cron_parse(time_text(value, "cron"), &schedule->cron, err) < 0)
		return err_context(err, "cron");
	schedule->zone = zone_open(own_zone ? own_zone : zone, err);
	if (!schedule->zone)
		return err_context(err, "time_zone");
	make_rule(schedule, value, zone);
	return parse_window(schedule, json_object_get(value, "window"), err);
}

struct schedule *schedule_parse(
	const char *id, const json_t *value, const char *zone, struct err *err)
{
	if (schedule_check_id("id", id, err) < 0 || rest_check(value, schedule_fields, err) < 0)
		return NULL;
	struct schedule *schedule = calloc(1, sizeof *schedule);
	if (!schedule) {
		err_errno(err, ENOMEM, "cannot read a schedule");
		return NULL;
	}
	snprintf(schedule->id, sizeof schedule->id, "%s", id);
	if (fill(schedule, value, zone, err) == 0)
		return schedule;
	schedule_free(schedule);
	return NULL;
}

void schedule_free(struct schedule *schedule)
{
	if (!schedule)
		return;
	zone_free(schedule->zone);
	free(schedule->repository);
	free(schedule);
}

/* --- due ------------------------------------------------------------------------------ */

unsigned schedule_jitter(const struct schedule *schedule, const char *who)
{
	uint8_t hash[DIGEST_ROOT_BYTES];
	char text[SCHEDULE_ID_BYTES + 1 + 256];
	int length = snprintf(text, sizeof text, "%s\n%s", schedule->id, who);
	if (schedule->jitter_s == 0)
		return 0;
	digest_sha256(text, (size_t)length < sizeof text ? (size_t)length : sizeof text - 1, hash);
	return (unsigned)(be64_get(hash) % (schedule->jitter_s + 1));
}

int64_t schedule_due(const struct schedule *schedule, const char *who, int64_t seen)
{
	return cron_next(&schedule->cron, schedule->zone, seen) + schedule_jitter(schedule, who);
}

int64_t schedule_seen(const struct schedule *schedule, const char *who, int64_t seen, int64_t now)
{
	int64_t dealt_with = now - schedule_jitter(schedule, who);
	return dealt_with > seen ? dealt_with : seen;
}

bool schedule_mend(const struct schedule *schedule, const char *who, int64_t now, int64_t *seen)
{
	int64_t most = now - schedule_jitter(schedule, who);
	if (*seen <= most + DAY_S)
		return false;
	*seen = most;
	return true;
}

/* --- the window ------------------------------------------------------------------------- */

bool schedule_is_open(const struct schedule *schedule, int64_t now)
{
	if (!schedule->has_window)
		return true;
	struct zone_time wall = zone_time(schedule->zone, now);
	int minute = wall.hour * 60 + wall.minute;
	bool after = minute >= schedule->window_from, before = minute < schedule->window_to;
	return schedule->window_from < schedule->window_to ? after && before : after || before;
}

int64_t schedule_opens(const struct schedule *schedule, int64_t now)
{
	if (schedule_is_open(schedule, now))
		return now;
	/* A window is a schedule of its own: due every day when it opens. */
	struct cron opens = {.minutes = UINT64_C(1) << (schedule->window_from % 60),
		.hours = UINT32_C(1) << (schedule->window_from / 60),
		.days = ~UINT32_C(1),
		.months = ~UINT32_C(1),
		.weekdays = 0x7f};
	return cron_next(&opens, schedule->zone, now);
}
