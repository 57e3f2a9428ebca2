/* REST: schedules. */
#include "time_internal.h"

#include <stdio.h>
#include <string.h>

#define COUNT 10
#define COUNT_MOST 1000

static const struct schedule *find(const struct hub_time *time, const char *id)
{
	for (size_t i = 0; i < time->nr_schedules; i++)
		if (strcmp(time->schedules[i]->id, id) == 0)
			return time->schedules[i];
	return NULL;
}

static int check(struct hub *hub, const char *id, const json_t *value, struct err *err)
{
	const struct hub_config *config = hub_config(hub);
	struct schedule *schedule = schedule_parse(id, value, config->time_zone, err);
	int rc = schedule ? 0 : -1;
	if (schedule && schedule->repository &&
		!hub_config_repository(config, schedule->repository))
		rc = err_set(err, ERR_USAGE, "repository: there is no repository \"%s\"",
			schedule->repository);
	schedule_free(schedule);
	return rc;
}

struct summary {
	int nr, nr_going, nr_waiting;
	int64_t next, last;
};

static void sum_up(void *context, const struct runs_entry *entry)
{
	struct summary *s = context;
	s->nr++;
	s->nr_going += entry->wait == RUNS_GOING;
	s->nr_waiting += entry->wait == RUNS_WAITS_FOR_PLACE ||
			 entry->wait == RUNS_WAITS_FOR_WINDOW ||
			 entry->wait == RUNS_WAITS_FOR_RETRY;
	if (entry->next > 0 && (s->next == 0 || entry->next < s->next))
		s->next = entry->next;
	if (entry->last > s->last)
		s->last = entry->last;
}

static void show(struct hub_time *time, const char *id, json_t *value)
{
	struct summary s = {0};
	struct err err = ERR_INIT;
	WITH_LOCK(&time->mutex);
	if (time_refresh(time, &err) < 0)
		log_warning("schedule %s: %s", id, err.text);
	struct runs_view view = time_view(time, time_now());
	const struct schedule *schedule = find(time, id);
	if (!schedule)
		return;
	runs_list(time->runs, &view, schedule, sum_up, &s);
	json_object_set_new(value, "status",
		json_pack("{s:o, s:o, s:i, s:i, s:i}", "next", time_moment(s.next), "last",
			time_moment(s.last), "runs", s.nr, "going", s.nr_going, "waiting",
			s.nr_waiting));
}

static const struct api_objects schedules = {
	.kind = "schedule", .path = "/api/v1/schedules", .check = check, .show = show};

int api_schedules_list(void *context, struct rest_request *request, struct err *err)
{
	return api_objects_list(&schedules, context, request, err);
}

int api_schedules_get(void *context, struct rest_request *request, struct err *err)
{
	return api_objects_get(&schedules, context, request, err);
}

int api_schedules_create(void *context, struct rest_request *request, struct err *err)
{
	return api_objects_create(&schedules, context, request, err);
}

int api_schedules_replace(void *context, struct rest_request *request, struct err *err)
{
	return api_objects_replace(&schedules, context, request, err);
}

int api_schedules_delete(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	struct hub_time *time = hub->time;
	struct err why = ERR_INIT;
	const char *id = rest_param(request, "id");
	if (api_objects_is_unnamed(hub, "schedule", id, "policy", "schedules", err) < 0 ||
		api_objects_delete(&schedules, hub, request, err) < 0)
		return -1;
	time_changed(time, true, false);
	pthread_mutex_lock(&time->mutex);
	/* First the schedule, or its runs would be made again. */
	if (time_refresh(time, &why) < 0 || runs_forget(time->runs, id, NULL, &why) < 0)
		log_warning("runs of schedule %s stay in the state: %s", id, why.text);
	pthread_mutex_unlock(&time->mutex);
	return rest_reply(request, 204, NULL, err);
}

/* --- when next ----------------------------------------------------------------------------- */

static json_t *wall_text(const struct zone *zone, int64_t moment)
{
	struct zone_time wall = zone_time(zone, moment);
	char text[64];
	snprintf(text, sizeof text, "%04d-%02d-%02dT%02d:%02d:%02d", (int)wall.year, wall.month,
		wall.day, wall.hour, wall.minute, wall.second);
	return json_string(text);
}

/* Moments of the fields themselves, without jitter. */
static json_t *moments(const struct schedule *schedule, int64_t now, uint64_t count)
{
	json_t *items = json_array();
	for (uint64_t i = 0; i < count && schedule->enabled; i++) {
		now = cron_next(&schedule->cron, schedule->zone, now);
		json_array_append_new(items, json_pack("{s:o, s:o}", "at", time_moment(now),
						     "local", wall_text(schedule->zone, now)));
	}
	return items;
}

struct runs_listing {
	json_t *items;
	const char *member; /* "vm", "repository" */
};

static void add_run(void *context, const struct runs_entry *entry)
{
	struct runs_listing *l = context;
	json_t *item = json_pack("{s:o, s:o, s:s}", "next", time_moment(entry->next), "last",
		time_moment(entry->last), "state", runs_wait_name(entry->wait));
	if (item && entry->who[0])
		json_object_set_new(item, l->member, json_string(entry->who));
	if (item && entry->last_job && entry->last_job[0])
		json_object_set_new(item, "last_job", json_string(entry->last_job));
	json_array_append_new(l->items, item);
}

int api_schedules_next(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	struct hub_time *time = hub->time;
	const char *id = rest_param(request, "id");
	uint64_t count;
	json_t *reply = NULL;
	if (rest_query_number(request, "count", 1, COUNT_MOST, COUNT, &count, err) < 0)
		return -1;
	pthread_mutex_lock(&time->mutex);
	int rc = time_refresh(time, err);
	const struct schedule *schedule = rc == 0 ? find(time, id) : NULL;
	if (schedule) {
		int64_t now = time_now();
		struct runs_view view = time_view(time, now);
		struct runs_listing l = {.items = json_array(),
			.member = schedule->action == SCHEDULE_VERIFY ? "repository" : "vm"};
		runs_list(time->runs, &view, schedule, add_run, &l);
		reply = json_pack("{s:s, s:o, s:o}", "schedule", id, "items",
			moments(schedule, now, count), "runs", l.items);
	} else if (rc == 0) {
		rc = err_set(err, ERR_NOT_FOUND, "there is no schedule \"%s\"", id);
	}
	pthread_mutex_unlock(&time->mutex);
	return rc < 0 ? -1 : rest_reply(request, 200, reply, err);
}
