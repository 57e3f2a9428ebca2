/* REST: how the hub stands, at a glance, for Prometheus, and as a stream of events. */
#include "time_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

json_t *api_status_alarm(const struct alarm *alarm)
{
	bool of_machine = alarm_subject(alarm) == ALARM_OF_MACHINE;
	json_t *item = json_pack("{s:s, s:b, s:s, s:s, s:o, s:s}", "kind",
		alarm_kind_name(alarm->kind), "severe", alarm->severe, "object", alarm->object,
		of_machine ? "vm" : alarm_subject_name(alarm), alarm->object, "since",
		time_moment(alarm->since), "text", alarm->text);
	if (item && alarm->job && alarm->job[0])
		json_object_set_new(item, "job", json_string(alarm->job));
	return item;
}

static void add_repository(void *context, const struct capacity_report *report)
{
	json_t *item = json_pack("{s:s, s:s, s:I, s:I}", "name", report->name, "state",
		capacity_state_name(report->state), "free_bytes", (json_int_t)report->free_bytes,
		"total_bytes", (json_int_t)report->total_bytes);
	if (item && report->text[0])
		json_object_set_new(item, "text", json_string(report->text));
	json_array_append_new(context, item);
}

struct soonest {
	int64_t next;
	const char *schedule, *current;
};

static void note_soonest(void *context, const struct runs_entry *entry)
{
	struct soonest *s = context;
	if (entry->next == 0 || (s->next > 0 && entry->next >= s->next))
		return;
	s->next = entry->next;
	s->schedule = s->current;
}

static json_t *next_run(struct hub_time *time, int64_t now)
{
	struct soonest s = {0};
	struct runs_view view = time_view(time, now);
	for (size_t i = 0; i < time->nr_schedules; i++) {
		s.current = time->schedules[i]->id;
		runs_list(time->runs, &view, time->schedules[i], note_soonest, &s);
	}
	return s.next > 0
		       ? json_pack("{s:s, s:o}", "schedule", s.schedule, "at", time_moment(s.next))
		       : json_null();
}

/* What the actor may see of alarms and machines; the mutex is held. */
static json_t *judge(struct hub_time *time, const struct rest_actor *actor, json_t *reply)
{
	size_t nr;
	int nr_machines = 0, nr_late = 0;
	bool severe = false, any = false;
	const struct alarm *alarms = alarm_list(time->alarms, &nr);
	json_t *items = json_array();
	for (size_t i = 0; i < nr; i++) {
		bool of_machine = alarm_subject(&alarms[i]) == ALARM_OF_MACHINE;
		if (of_machine ? !rest_actor_may(actor, alarms[i].object)
			       : rest_actor_is_held(actor))
			continue;
		severe |= alarms[i].severe;
		any = true;
		json_array_append_new(items, api_status_alarm(&alarms[i]));
	}
	for (size_t i = 0; i < time->machines->nr_machines; i++) {
		const char *name = time->machines->machines[i].name;
		if (!rest_actor_may(actor, name))
			continue;
		nr_machines++;
		nr_late += alarm_find(time->alarms, ALARM_OBJECTIVE, name) != NULL;
	}
	json_object_set_new(reply, "status",
		json_string(severe ? "alarm"
			    : any  ? "warning"
				   : "ok"));
	json_object_set_new(reply, "alarms", items);
	json_object_set_new(
		reply, "vms", json_pack("{s:i, s:i}", "total", nr_machines, "late", nr_late));
	return reply;
}

int api_status(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	struct hub_time *time = hub->time;
	const struct rest_actor *actor = rest_actor(request);
	struct notify_figures notices;
	unsigned nr_queued = 0, nr_running = 0;
	int64_t now = time_now();
	jobs_count(hub->jobs, &nr_queued, &nr_running);
	notify_figures(time->notify, &notices);
	json_t *reply = json_pack("{s:s, s:s, s:s, s:o, s:I, s:{s:i, s:i}, s:i}", "name",
		hub_config(hub)->name, "version", hub->options->version, "build",
		hub->options->build, "time", time_moment(now), "uptime_s",
		(json_int_t)((clock_now_ns() - hub->started_ns) / 1000000000), "jobs", "queued",
		(int)nr_queued, "running", (int)nr_running, "notices_pending",
		(int)notices.nr_pending);
	json_t *repositories = json_array();
	if (!reply || !repositories) {
		json_decref(reply);
		json_decref(repositories);
		return err_errno(err, ENOMEM, "cannot tell how the hub stands");
	}
	pthread_mutex_lock(&time->mutex);
	int rc = time_refresh(time, err);
	if (rc == 0) {
		/* Alarms as of now, not as of the last look around. */
		sweep_run(time, now);
		judge(time, actor, reply);
		capacity_look(time->capacity, add_repository, repositories);
		if (!rest_actor_is_held(actor)) /* it may be of other machines */
			json_object_set_new(reply, "next_run", next_run(time, now));
	}
	pthread_mutex_unlock(&time->mutex);
	json_object_set_new(reply, "repositories", repositories);
	if (rc == 0)
		return rest_reply(request, 200, reply, err);
	json_decref(reply);
	return -1;
}

int api_metrics(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	char *AUTO_FREE text = metrics_text(hub->time, err);
	return text ? rest_reply_text(request, PROMETHEUS_TYPE, text, err) : -1;
}

/* --- the stream ----------------------------------------------------------------------------------
 */

struct listener {
	struct feed *feed;
	uint64_t after;
	struct rest_actor actor; /* with VMs of its own */
};

static int next_event(
	void *context, struct deadline until, const char **name, uint64_t *id, json_t **data)
{
	struct listener *listener = context;
	struct feed_event event;
	for (;;) {
		int rc = feed_next(listener->feed, listener->after, until, &event);
		if (rc != 1)
			return rc;
		listener->after = event.id;
		/* A token for some VMs hears of those alone. */
		if (!rest_actor_is_held(&listener->actor) ||
			(event.vm[0] && rest_actor_may(&listener->actor, event.vm)))
			break;
		json_decref(event.data);
	}
	*name = event.name;
	*id = event.id;
	*data = event.data;
	return 1;
}

static void stop_listening(void *context)
{
	struct listener *listener = context;
	rest_actor_clear(&listener->actor);
	free(listener);
}

int api_stream(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const struct rest_actor *actor = rest_actor(request);
	const char *last = rest_header(request, "Last-Event-ID");
	struct listener *listener = calloc(1, sizeof *listener);
	if (!listener)
		return err_errno(err, ENOMEM, "cannot listen to events");
	listener->feed = hub->time->feed;
	listener->after = last ? strtoull(last, NULL, 10) : feed_newest(listener->feed);
	listener->actor = *actor;
	listener->actor.vms = json_deep_copy(actor->vms);
	return rest_reply_stream(request, next_event, stop_listening, listener, err);
}
