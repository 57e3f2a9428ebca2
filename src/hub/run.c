/*
 * The daemon's life.
 *
 *   configuration ─► locks ─► state, index ─► NBD service ─► points ─► jobs ─► schedule
 *        ─► ends ─► sessions ─► keeper ─► REST ─► ready ─► (signals) ─► the same backwards
 *
 * Steps have a stop in steps[]; see life.h.
 */
#include "nodes.h"

#include "catalogue.h"
#include "file.h"
#include "job.h"
#include "log.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

struct running {
	struct hub hub;
	int locks[2]; /* of the folders */
	struct hub_config **retired; /* configurations that were replaced */
	size_t nr_retired;
	char **sources, **targets; /* what jobs may name, and what never */
	bool is_ready; /* it was once */
	bool hand_over;
	struct deadline stop_until;
};

/* --- folders and locks ------------------------------------------------------------------- */

static int start_locks(void *context, struct err *err)
{
	struct running *r = context;
	const struct hub_config *c = hub_config(&r->hub);
	return folder_take(c->state_dir, c->runtime_dir, "hub", r->locks, err);
}

static void stop_locks(void *context)
{
	struct running *r = context;
	folder_give(r->locks);
}

/* --- state and index -------------------------------------------------------------------------- */

static int start_state(void *context, struct err *err)
{
	struct running *r = context;
	struct hub *hub = &r->hub;
	const struct hub_config *c = hub_config(hub);
	char path[4096 + 16];
	snprintf(path, sizeof path, "%s/state.db", c->state_dir);
	hub->state = state_open(path, err);
	if (!hub->state || access_check(hub->state, "hub", &c->listen, err) < 0)
		return -1;
	snprintf(path, sizeof path, "%s/index.db", c->state_dir);
	hub->index = index_open(path, NULL, err);
	return hub->index ? 0 : -1;
}

static void stop_state(void *context)
{
	struct running *r = context;
	if (r->hub.index)
		index_close(r->hub.index);
	if (r->hub.state)
		state_close(r->hub.state);
}

/* --- the other parts
 * ------------------------------------------------------------------------------ */

static int start_daemon(void *context, struct err *err)
{
	struct running *r = context;
	return hub_daemon_start(&r->hub, err);
}

static void stop_daemon(void *context)
{
	struct running *r = context;
	hub_daemon_stop(&r->hub, r->hand_over, r->stop_until);
}

static int start_points(void *context, struct err *err)
{
	struct running *r = context;
	return hub_points_start(&r->hub, err);
}

static void stop_points(void *context)
{
	struct running *r = context;
	hub_points_stop(&r->hub);
}

static void free_rules(char **rules)
{
	for (size_t i = 0; rules && rules[i]; i++)
		free(rules[i]);
	free(rules);
}

/* What the settings allow, but nothing of the hub's own; ended by NULL. */
static char **make_rules(const struct hub_config *c, char *const *allowed, struct err *err)
{
	const char *const own[] = {
		c->state_dir, c->runtime_dir, c->path, c->key, c->webhook_secret_file};
	size_t nr = 0, nr_allowed = 0, nr_credentials = 0;
	while (allowed && allowed[nr_allowed])
		nr_allowed++;
	while (c->credentials && c->credentials[nr_credentials])
		nr_credentials++;
	char **rules = calloc(nr_allowed + nr_credentials + ARRAY_LENGTH(own) + 1, sizeof *rules);
	bool good = rules != NULL;
	for (size_t i = 0; good && i < ARRAY_LENGTH(own); i++)
		if (own[i] && (good = asprintf(&rules[nr], "!%s", own[i]) >= 0))
			nr++;
	for (size_t i = 0; good && i < nr_credentials; i++) {
		json_t *one = credentials_parse(c->credentials[i], NULL);
		const char *psk = json_string_value(json_object_get(one, "psk_file"));
		const char *folder = json_string_value(json_object_get(one, "certificates"));
		good = one && asprintf(&rules[nr], "!%s", psk ? psk : folder) >= 0;
		nr += good;
		json_decref(one);
	}
	for (size_t i = 0; good && i < nr_allowed; i++)
		good = (rules[nr++] = strdup(allowed[i])) != NULL;
	if (good)
		return rules;
	free_rules(rules);
	err_errno(err, ENOMEM, "cannot tell jobs what they may name");
	return NULL;
}

static void job_changed(void *context, const char *id, enum job_state state, const json_t *job)
{
	const char *node = json_string_value(json_object_get(job, "node"));
	if (node && job_state_is_end(state))
		hub_nodes_work_changed(context, node);
	hub_points_job_changed(context, id, state, job);
}

static void cancel_foreign(void *context, const char *id, const char *why)
{
	if (!hub_nodes_cancel(context, id, why))
		hub_sessions_cancel(context, id, why);
}

static int start_jobs(void *context, struct err *err)
{
	struct running *r = context;
	const struct hub_config *c = hub_config(&r->hub);
	r->sources = make_rules(c, c->allow_sources, err);
	r->targets = r->sources ? make_rules(c, c->allow_targets, err) : NULL;
	if (!r->targets)
		return -1;
	const struct jobs_options options = {
		.state = r->hub.state,
		.runtime_dir = c->runtime_dir,
		.state_dir = c->state_dir,
		.program = r->hub.options->program,
		.repositories = c->repositories,
		.nr_repositories = c->nr_repositories,
		.allow_sources = (const char *const *)r->sources,
		.allow_targets = (const char *const *)r->targets,
		.credentials = (const char *const *)c->credentials,
		.most = c->most_jobs,
		.most_per_source = c->most_jobs_per_source,
		.memory_bytes = c->memory_per_job_bytes,
		.changed = job_changed,
		.cancel_foreign = cancel_foreign,
		.context = &r->hub,
	};
	r->hub.jobs = jobs_start(&options, err);
	return r->hub.jobs ? 0 : -1;
}

static void stop_jobs(void *context)
{
	struct running *r = context;
	if (r->hub.jobs)
		jobs_stop(r->hub.jobs, r->hand_over, r->stop_until);
	r->hub.jobs = NULL;
	free_rules(r->targets);
	free_rules(r->sources);
	r->targets = r->sources = NULL;
}

static int start_nodes(void *context, struct err *err)
{
	struct running *r = context;
	return hub_nodes_open(&r->hub, err);
}

static void stop_nodes(void *context)
{
	struct running *r = context;
	hub_nodes_close(&r->hub);
}

static int start_watch(void *context, struct err *err)
{
	struct running *r = context;
	return hub_nodes_watch(&r->hub, err);
}

static void stop_watch(void *context)
{
	struct running *r = context;
	hub_nodes_unwatch(&r->hub);
}

static int start_sessions(void *context, struct err *err)
{
	struct running *r = context;
	return hub_sessions_start(&r->hub, err);
}

static void stop_sessions(void *context)
{
	struct running *r = context;
	hub_sessions_stop(&r->hub);
}

static int start_time(void *context, struct err *err)
{
	struct running *r = context;
	return hub_time_start(&r->hub, err);
}

static void stop_time(void *context)
{
	struct running *r = context;
	hub_time_stop(&r->hub);
}

/* Who is told of jobs that end is there now. */
static int start_ends(void *context, struct err *err)
{
	struct running *r = context;
	(void)err;
	hub_points_catch_up(&r->hub);
	return 0;
}

static int start_keeper(void *context, struct err *err)
{
	struct running *r = context;
	return hub_keeper_start(&r->hub, err);
}

static void stop_keeper(void *context)
{
	struct running *r = context;
	hub_keeper_stop(&r->hub);
}

const struct rest_route *const hub_route_tables[] = {
	hub_health_routes,
	rest_document_routes,
	hub_repository_routes,
	hub_job_routes,
	hub_session_routes,
	hub_serve_routes,
	hub_token_routes,
	hub_event_routes,
	hub_node_routes,
	hub_time_routes,
	NULL,
};

static int start_rest(void *context, struct err *err)
{
	struct running *r = context;
	const struct hub_config *c = hub_config(&r->hub);
	const struct rest_server_options options = {
		.address = c->listen.host,
		.port = c->listen.port,
		.certificate_file = c->certificate,
		.key_file = c->key,
		.clients_ca_file = c->clients == HUB_CLIENTS_REQUIRED ? c->ca : NULL,
		.tables = hub_route_tables,
		.context = &r->hub,
		.authenticate = hub_authenticate,
		.remembered = hub_remembered,
		.remember = hub_remember,
		.audit = hub_audit,
		.most_connections = c->most_connections,
		.most_per_address = c->most_connections_per_address,
	};
	r->hub.rest = rest_server_start(&options, err);
	return r->hub.rest ? 0 : err_context(err, "REST on %s:%u", c->listen.host, c->listen.port);
}

static void stop_rest(void *context)
{
	struct running *r = context;
	hub_nodes_hurry(&r->hub);
	if (r->hub.sessions)
		hub_sessions_hurry(&r->hub);
	cancel_request(r->hub.calls_end); /* its handlers may wait for the NBD service */
	rest_server_stop(r->hub.rest);
	r->hub.rest = NULL;
}

/* In this order; stopped in reverse, also where start failed.  REST goes before everything that
 * its handlers use. */
static const struct life_step steps[] = {
	{"locks", start_locks, stop_locks},
	{"state", start_state, stop_state},
	{"NBD service", start_daemon, stop_daemon},
	{"points", start_points, stop_points},
	{"nodes", start_nodes, stop_nodes},
	{"jobs", start_jobs, stop_jobs},
	{"schedule", start_time, stop_time},
	{"ended jobs", start_ends, NULL},
	{"sessions", start_sessions, stop_sessions},
	{"watch over nodes", start_watch, stop_watch},
	{"keeper", start_keeper, stop_keeper},
	{"REST", start_rest, stop_rest},
};

/* --- reload
 * -------------------------------------------------------------------------------- */

static void set_logging(const struct running *r)
{
	const struct hub_config *c = hub_config(&r->hub);
	const struct hub_run_options *o = r->hub.options;
	logging_set(c->log, o->quiet     ? LOG_LEVEL_ERROR
			    : o->verbose ? LOG_LEVEL_DEBUG
					 : (enum log_level)c->log_level);
}

/* NULL: the old ones stay. */
static struct hub_config *load_anew(struct running *r)
{
	struct hub_config **retired = reallocarray(r->retired, r->nr_retired + 1, sizeof(void *));
	if (retired)
		r->retired = retired;
	return retired ? hub_config_reload(hub_config(&r->hub)) : NULL;
}

/* A file that is wrong changes nothing. */
static void reload(void *context)
{
	struct running *r = context;
	struct hub *hub = &r->hub;
	struct err err = ERR_INIT;
	struct hub_config *new = load_anew(r);
	if (new) {
		r->retired[r->nr_retired++] = atomic_load(&hub->config);
		atomic_store(&hub->config, new);
		set_logging(r);
		if (new->certificate && rest_server_reload(hub->rest, &err) < 0)
			log_error("the old certificate stays: %s", err.text);
		hub_daemon_reload(hub);
		hub_time_reload(hub);
		log_info("the settings were read again");
	}
	hub_event(hub, "hub", "reload", new ? "done" : "refused", NULL);
}

/* --- all of it
 * -------------------------------------------------------------------------------------------- */

static int tell_ready(void *context, struct err *err)
{
	struct running *r = context;
	const struct hub_config *c = hub_config(&r->hub);
	const struct hub_run_options *o = r->hub.options;
	char url[SETTINGS_URL_BYTES], nbd[96];
	settings_address_url(
		&c->listen, c->certificate != NULL, NULL, rest_server_port(r->hub.rest), url);
	hub_daemon_address(&r->hub, nbd);
	log_info("ready on %s, NBD on %s (%s)", url, nbd[0] ? nbd : "ports of its range",
		o->software);
	hub_event(&r->hub, "hub", "start", o->software, NULL);
	r->is_ready = true;
	return o->ready ? o->ready(o->context, url, nbd, err) : 0;
}

static void begin_stop(void *context)
{
	struct running *r = context;
	struct hub *hub = &r->hub;
	const struct hub_config *c = hub_config(hub);
	atomic_store(&hub->stopping, true);
	r->hand_over = c->stop == HUB_STOP_HAND_OVER;
	r->stop_until = deadline_after_ms((int64_t)c->stop_timeout_s * 1000);
	if (r->is_ready) {
		log_info("stopping: what runs is %s, within %" PRIu64 " s",
			r->hand_over ? "handed over to the next hub" : "cancelled",
			c->stop_timeout_s);
		hub_event(hub, "hub", "stop", r->hand_over ? "hand-over" : "cancel", NULL);
	}
}

int hub_run(const struct hub_run_options *options, struct err *err)
{
	struct running r = {.locks = {-1, -1}};
	struct hub *hub = &r.hub;
	hub->options = options;
	hub->started = time(NULL);
	hub->started_ns = clock_now_ns();
	struct hub_config *config = hub_config_load(options->config_path, NULL, NULL, err);
	if (!config)
		return -1;
	atomic_store(&hub->config, config);
	set_logging(&r);
	hub->calls_end = cancel_new(err);
	const struct life life = {
		.steps = steps,
		.nr_steps = ARRAY_LENGTH(steps),
		.context = &r,
		.cancel = options->cancel,
		.ready = tell_ready,
		.reload = reload,
		.stopping = begin_stop,
	};
	int rc = hub->calls_end ? life_run(&life, err) : -1;
	cancel_free(hub->calls_end);
	hub_config_free(atomic_load(&hub->config));
	for (size_t i = 0; i < r.nr_retired; i++)
		hub_config_free(r.retired[i]);
	free(r.retired);
	return rc;
}
