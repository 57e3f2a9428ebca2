/*
 * What happens by the clock, inside.
 *
 *   time.c       starts and stops it; hooks of the hub; caches
 *   cron.c       moments              schedule.c   when a machine is due
 *   policy.c     what holds for whom  machine.c    the machines: settings, policy, newest point
 *   runs.c       what was begun for whom; runs_tick.c   what is to be begun now
 *   alarm.c      what somebody should know, until it is over; sweep.c   looks for it
 *   capacity.c      free space of the repositories, looked at where nobody waits for it
 *   notify.c     notices kept until delivered; notify_webhook.c, notify_mail.c
 *   report.c     the week's report    metrics.c    for Prometheus
 *   api_objects.c (what schedules and policies share), api_schedules.c, api_policies.c,
 *   api_machines.c, api_status.c    REST
 */
#ifndef SENDENSE_HUB_TIME_INTERNAL_H
#define SENDENSE_HUB_TIME_INTERNAL_H

#include "alarm.h"
#include "capacity.h"
#include "daemon.h"
#include "hub_internal.h"
#include "metrics.h"
#include "notify.h"
#include "runs.h"

/* Members of checked JSON. */
static inline const char *time_text(const json_t *object, const char *name)
{
	return json_string_value(json_object_get(object, name));
}

static inline int64_t time_number(const json_t *object, const char *name, int64_t otherwise)
{
	const json_t *value = json_object_get(object, name);
	return json_is_integer(value) ? json_integer_value(value) : otherwise;
}

static inline bool time_flag(const json_t *object, const char *name, bool otherwise)
{
	const json_t *value = json_object_get(object, name);
	return json_is_boolean(value) ? json_is_true(value) : otherwise;
}

struct ended_job; /* time.c */

struct hub_time {
	struct hub *hub;

	/* What follows, up to handled, belongs to whoever holds it: the thread while it works, a
	 * handler while it looks. */
	pthread_mutex_t mutex;
	struct schedule **schedules;
	size_t nr_schedules;
	struct machine_set *machines;
	bool points_known; /* when these were read: hub_points_known() */
	struct runs *runs;
	struct alarms *alarms;
	struct capacity *capacity;
	char handled[64][JOB_ID_BYTES]; /* ends of jobs that were dealt with, a ring */
	unsigned nr_handled;

	/* These have locks of their own. */
	struct notify *notify;
	struct feed *feed;
	struct metrics *metrics;

	/* The thread's inbox.  Nobody waits for anything while he holds it. */
	pthread_mutex_t inbox_mutex;
	pthread_cond_t wake;
	bool woken, stop;
	bool schedules_changed, machines_changed, config_changed;
	struct ended_job *ended; /* the oldest first */
	pthread_t thread;
};

/* Seconds since 1970. */
int64_t time_now(void);
/* Schedules or machines (policies, restore points) are others now. */
void time_changed(struct hub_time *time, bool schedules, bool machines);
/* What holds now, for runs_*(); the mutex is held. */
struct runs_view time_view(const struct hub_time *time, int64_t now);
/* Reads schedules and machines anew where they changed; the mutex is held. */
int time_refresh(struct hub_time *time, struct err *err);

/* --- sweep.c: the mutex is held -------------------------------------------------------------- */

/* Raises and ends alarms; the moment at which the next one begins if nothing happens. */
int64_t sweep_run(struct hub_time *time, int64_t now);

/* --- report.c ---------------------------------------------------------------------------- */

/* How the last seven days were: text for people, and figures.  Both are the caller's.  The mutex
 * is held. */
int report_make(struct hub_time *time, int64_t now, char **text, json_t **about, struct err *err);

/* --- api_*.c: contexts are the hub
 * -------------------------------------------------------------------------------- */

rest_handler api_schedules_list, api_schedules_get, api_schedules_create, api_schedules_replace,
	api_schedules_delete, api_schedules_next;
rest_handler api_policies_list, api_policies_get, api_policies_create, api_policies_replace,
	api_policies_delete;
rest_handler api_machines_list, api_machines_get, api_machines_replace, api_machines_delete;
rest_handler api_status, api_metrics, api_stream;

/* A kind of objects that are read and replaced by id. */
struct api_objects {
	const char *kind; /* of the state */
	const char *path; /* "/api/v1/schedules" */
	/* ERR_USAGE names the member. */
	int (*check)(struct hub *hub, const char *id, const json_t *value, struct err *err);
	/* Adds what only reading shows; may be NULL. */
	void (*show)(struct hub_time *time, const char *id, json_t *value);
};
int api_objects_list(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err);
int api_objects_get(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err);
int api_objects_create(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err);
int api_objects_replace(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err);
/* Does not answer yet. */
int api_objects_delete(const struct api_objects *objects, struct hub *hub,
	struct rest_request *request, struct err *err);
/* ERR_USAGE when what another names is not there. */
int api_objects_is_there(struct hub *hub, const char *kind, const char *id, struct err *err);
/* ERR_REFUSED where the member (a text, or an array of texts) of an object of by_kind holds id. */
int api_objects_is_unnamed(struct hub *hub, const char *kind, const char *id, const char *by_kind,
	const char *member, struct err *err);
/* What is stored of a body: without what only reading shows; created stays. */
json_t *api_objects_stored(const json_t *body, const json_t *old);

/* An alarm as the API shows it. */
json_t *api_status_alarm(const struct alarm *alarm);

/* --- JSON ------------------------------------------------------------------------------------- */

/* The "error" of a job, {"code":…,"text":…}; NULL: it says none. */
void time_error(const json_t *error, struct err *err);
/* Text of a moment, or null for 0; a new reference. */
json_t *time_moment(int64_t moment);

#endif
