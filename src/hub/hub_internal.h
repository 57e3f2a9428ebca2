/*
 * Inside the hub.
 *
 *   run.c           starts and stops everything, signals, reload
 *   config.c        the file of settings           check.c   check-config
 *   init.c          hub init                       moving.c  hub export|import
 *   daemon.c        the NBD service's process: started, watched, started again
 *   points.c        the index, kept up to date after each job
 *   audit.c         who did what
 *   api_*.c         REST handlers, one file for each kind of object
 *   time.c, cron.c, schedule.c, policy.c, alarm.c, metrics.c, notify.c ...
 *                   what happens by the clock, and what is told to the outside
 */
#ifndef SENDENSE_HUB_INTERNAL_H
#define SENDENSE_HUB_INTERNAL_H

#include "hub.h"
#include "rest.h"
#include "state.h"

#include <stdatomic.h>

struct index;
struct host_client;
struct hub_time;

struct hub {
	const struct hub_run_options *options;
	/* What counts now.  A reload puts another one here; the older ones stay until the hub
	 * ends, so whoever took it once may use it to the end of his work.  Use hub_config(). */
	_Atomic(struct hub_config *) config;
	struct state *state;
	struct index *index; /* of all repositories' restore points */
	struct jobs *jobs;
	struct rest_server *rest;
	struct hub_daemon *daemon; /* the NBD service */
	struct hub_time *time; /* the schedule's own; NULL before hub_time_start() */
	int64_t started; /* seconds since 1970 */
	int64_t started_ns; /* of the monotonic clock */
	_Atomic bool stopping; /* no new jobs are taken */
};

static inline const struct hub_config *hub_config(const struct hub *hub)
{
	return atomic_load(&hub->config);
}

/* --- audit.c ---------------------------------------------------------------------------- */

/* Writes the audit log and tells hub_time_event().  actor: "token NAME", "schedule NAME",
 * "hub"; detail (may be NULL) is borrowed.  What cannot be written is logged. */
void hub_event(struct hub *hub, const char *actor, const char *action, const char *object,
	const json_t *detail);

/* --- points.c ---------------------------------------------------------------------------- */

/* Brings the index up to date with one VM in a repository (vm NULL: all of it). */
int hub_points_refresh(struct hub *hub, const char *repository, const char *vm, struct err *err);

/* --- what the clock's files give (owner: time.c) ----------------------------------------- */

/* Schedules, policies, machines, status, metrics, the stream of events. */
extern const struct rest_route hub_time_routes[];
/* Behind the jobs', before REST listens; reads hub->state.  Starts the scheduler's and the
 * notifier's threads. */
int hub_time_start(struct hub *hub, struct err *err);
/* No jobs are begun any more when it returns. */
void hub_time_stop(struct hub *hub);
/* Each change of a job, after the index knows of its outcome; from the supervisor's thread,
 * must not block. */
void hub_time_job_changed(struct hub *hub, const char *id, enum job_state state, const json_t *job);
/* Each line of the audit log; any thread, must not block. */
void hub_time_event(struct hub *hub, const struct state_event *event);
/* hub_config() is another one. */
void hub_time_reload(struct hub *hub);

#endif
