/*
 * Inside the hub.
 *
 *   run.c           starts and stops everything, signals, reload
 *   config.c        the file of settings                    check.c   check-config
 *   init.c          hub init                                archive.c, moving.c   export, import
 *   daemon.c        the NBD service's process: watched, started again
 *   sessions.c      push sessions and serves: what the NBD service tells becomes jobs' states
 *   points.c        the index, kept up to date; each change of a job, in order
 *   keeper.c        what is done once in a while: copies of the state, old jobs forgotten
 *   audit.c         who did what; whose token it is (see access.h)
 *   nodes.c, node_jobs.c   daemons near the hypervisors, and the jobs that are theirs (nodes.h)
 *   api_*.c         REST handlers, one file for each kind of object
 *   time.c, cron.c, schedule.c, policy.c, alarm.c, metrics.c, notify.c ...
 *                   what happens by the clock, and what is told to the outside
 */
#ifndef SENDENSE_HUB_INTERNAL_H
#define SENDENSE_HUB_INTERNAL_H

#include "catalogue.h"
#include "daemon.h"
#include "hub.h"
#include "rest.h"

#include <stdatomic.h>

struct index;
struct host;
struct hub_daemon;
struct hub_keeper;
struct hub_nodes;
struct hub_points;
struct hub_sessions;
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
	struct host *host; /* the NBD service */
	struct hub_daemon *daemon; /* who looks after it */
	struct hub_sessions *sessions;
	struct hub_points *points;
	struct hub_keeper *keeper;
	struct hub_nodes *nodes;
	struct hub_time *time; /* the schedule's own; NULL before hub_time_start() */
	int64_t started; /* seconds since 1970 */
	int64_t started_ns; /* of the monotonic clock */
	_Atomic bool stopping; /* no new jobs are taken */
	struct cancel *calls_end; /* then no answer of the NBD service is waited for any more */
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

/* Callbacks of the REST server; context is the hub. */
int hub_authenticate(void *context, const char *hash, struct rest_actor *actor, struct err *err);
int hub_remembered(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, bool *found, unsigned *status, json_t **body, struct err *err);
void hub_remember(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, unsigned status, const json_t *body);
void hub_audit(void *context, const struct rest_actor *actor, const char *peer,
	const char *operation, const char *path, unsigned status);

/* --- points.c ---------------------------------------------------------------------------- */

int hub_points_start(struct hub *hub, struct err *err);
void hub_points_stop(struct hub *hub);
/* A jobs_options.changed: brings the index up to date where the job changed it, then tells
 * hub_time_job_changed(), in the order of the changes, from a thread of its own. */
void hub_points_job_changed(void *context, const char *id, enum job_state state, const json_t *job);
/* From here on changes are told; of jobs whose end an earlier hub had no time for, too. */
void hub_points_catch_up(struct hub *hub);
/* All that follows from the end of this job has been done. */
void hub_points_settled(struct hub *hub, const char *id);
/* Brings the index up to date with one VM in a repository (vm NULL: all of it). */
int hub_points_refresh(struct hub *hub, const char *repository, const char *vm, struct err *err);
/* False while an index that is new has not been filled: what it does not hold may be there. */
bool hub_points_known(struct hub *hub);
/* The repository, open, after its mount and its id were looked at; ERR_NOT_FOUND: the
 * configuration has none of that name.  The caller closes it. */
struct repository *hub_repository_open(
	struct hub *hub, const char *name, bool to_write, struct err *err);

/* --- daemon.c, sessions.c ------------------------------------------------------------------ */

/* Finds or starts the NBD service and looks after it. */
int hub_daemon_start(struct hub *hub, struct err *err);
/* The service goes on when hand_over and it has sessions, else it ends. */
void hub_daemon_stop(struct hub *hub, bool hand_over, struct deadline until);
/* "127.0.0.1:10809", "" when it does not run. */
void hub_daemon_address(struct hub *hub, char out[96]);
/* The new certificate, if it changed. */
void hub_daemon_reload(struct hub *hub);

/* Reconciles what an earlier hub noted with what the NBD service has. */
int hub_sessions_start(struct hub *hub, struct err *err);
void hub_sessions_stop(struct hub *hub);
/* Something was opened or asked for: the service is looked at now. */
void hub_sessions_wake(struct hub *hub);
/* Until that session, which is about to end, is not open any more, and its job knows. */
void hub_sessions_wait(struct hub *hub, const char *id, struct deadline until);
/* The hub stops: what is just being opened is given up, and kept to be gone on with.  Takes 2 s at
 * most; what is not given up by then the next hub gives up. */
void hub_sessions_hurry(struct hub *hub);
/* A jobs_options.cancel_foreign; context is the hub. */
void hub_sessions_cancel(void *context, const char *id, const char *why);
/* One call to the NBD service; verb and id ("session" or "serve") are put into request, which is
 * taken.  The answer without "ok"; the caller's.  ERR_DISCONNECTED once the hub stops: what was
 * asked is done all the same, and the next hub finds what came of it. */
json_t *hub_host_call(struct hub *hub, const char *verb, json_t *request, struct err *err);
/* The same with octets behind the request, or, where out is given, behind the answer. */
json_t *hub_host_octets(struct hub *hub, const char *verb, json_t *request, const void *octets,
	size_t length, void **out, size_t *out_length, struct err *err);

/* "" where it has no such text. */
static inline const char *hub_text(const json_t *object, const char *name)
{
	const char *text = json_string_value(json_object_get(object, name));
	return text ? text : "";
}

/* --- nodes.c, node_jobs.c (more in nodes.h) ----------------------------------------------- */

int hub_nodes_open(struct hub *hub, struct err *err);
void hub_nodes_close(struct hub *hub);
/* Behind the jobs: from here on a node that is silent has its jobs failed. */
int hub_nodes_watch(struct hub *hub, struct err *err);
void hub_nodes_unwatch(struct hub *hub);
/* The hub stops: nobody waits for work any more. */
void hub_nodes_hurry(struct hub *hub);
/* Whose token it is (actor's name is the node's): notes that it was heard of, and puts the VMs into
 * the actor that are its.  ERR_DENIED: it was taken out. */
int hub_nodes_authenticate(struct hub *hub, struct rest_actor *actor, struct err *err);
/* As jobs_add(), for a node too: its spec names the "node". */
int hub_jobs_add(struct hub *hub, const json_t *spec, const char *requested_by,
	char id[STATE_JOB_BYTES], struct err *err);
/* A foreign job of a node is to be cancelled; false: it is another's.  One that the node has not
 * begun ends at once: it finds it gone. */
bool hub_nodes_cancel(struct hub *hub, const char *id, const char *why);

/* --- keeper.c --------------------------------------------------------------------------------- */

int hub_keeper_start(struct hub *hub, struct err *err);
void hub_keeper_stop(struct hub *hub);

/* --- builds ---------------------------------------------------------------------------------- */

/* Whether a build ("1a2b3c4d5e6f") may take part: ERR_REFUSED by [builds] allow, a line in the
 * log by warn. */
int hub_build_check(const struct hub *hub, const char *build, const char *who, struct err *err);

/* --- REST ----------------------------------------------------------------------------------- */

extern const struct rest_route hub_health_routes[], hub_job_routes[], hub_session_routes[],
	hub_serve_routes[], hub_repository_routes[], hub_token_routes[], hub_event_routes[],
	hub_node_routes[];

/* All of them, as the server gets them (run.c); docs/openapi.json describes each. */
extern const struct rest_route *const hub_route_tables[];

/* Whether new work is taken: ERR_BUSY while the hub stops. */
int hub_takes_work(struct hub *hub, struct err *err);
/* Adds the job to the queue and answers 202 with it; spec is taken. */
int hub_reply_new_job(struct hub *hub, struct rest_request *request, json_t *spec, struct err *err);
/* The answer where a repository of the configuration cannot be used (500: it is not the caller's
 * fault, and not that there is nothing); only who operates the hub is told of paths.  A full one
 * stays what it is.  Returns -1. */
int hub_unavailable(struct rest_request *request, const char *repository, struct err *err);
/* An export's "uri" and "address", for who made this call, where the service listens on all
 * addresses (api_sessions.c). */
void hub_export_address(struct hub *hub, const struct rest_request *request, json_t *export);
/* The call's {vm} or this one must be within the token's; ERR_DENIED. */
int hub_check_vm(const struct rest_request *request, const char *vm, struct err *err);

/* --- what the clock's files give (owner: time.c) ----------------------------------------- */

/* Schedules, policies, machines, status, metrics, the stream of events. */
extern const struct rest_route hub_time_routes[];
/* Behind the jobs', before REST listens; reads hub->state.  Starts the scheduler's and the
 * notifier's threads. */
int hub_time_start(struct hub *hub, struct err *err);
/* No jobs are begun any more when it returns. */
void hub_time_stop(struct hub *hub);
/* Each change of a job, after the index knows of its outcome; from one thread of its own, so it
 * may take a second. */
void hub_time_job_changed(struct hub *hub, const char *id, enum job_state state, const json_t *job);
/* Each line of the audit log; any thread, must not block. */
void hub_time_event(struct hub *hub, const struct state_event *event);
/* Of others than jobs: seen on a walk through a repository. */
void hub_time_points_changed(struct hub *hub);
/* One fell silent, was heard of again or was taken out. */
void hub_time_node_changed(struct hub *hub);
/* hub_config() is another one. */
void hub_time_reload(struct hub *hub);

#endif
