/*
 * The daemon's life.
 *
 *   configuration ─► locks ─► state ─► jobs ─► keeper ─► discover ─► hub ─► REST ─► ready
 *   ─► (signals) ─► the same backwards
 *
 * Steps have a stop in steps[]; see life.h.
 */
#include "node_internal.h"

#include "discover.h"
#include "log.h"
#include "statedir.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct running {
	struct node node;
	int locks[2]; /* of the folders */
	struct node_config **retired; /* configurations that were replaced */
	size_t nr_retired;
	char **targets; /* what jobs may write to, and what never */
	struct job_vcenter *vcenters;
	bool is_ready; /* it was once */
	bool hand_over;
	struct deadline stop_until;
};

/* --- folders, locks, state --------------------------------------------------------------- */

static int start_locks(void *context, struct err *err)
{
	struct running *r = context;
	const struct node_config *c = node_config(&r->node);
	return folder_take(c->state_dir, c->runtime_dir, "node", r->locks, err);
}

static void stop_locks(void *context)
{
	struct running *r = context;
	folder_give(r->locks);
}

static int start_state(void *context, struct err *err)
{
	struct running *r = context;
	struct node *node = &r->node;
	const struct node_config *c = node_config(node);
	char path[SETUP_PATH_BYTES];
	if (setup_join(node->vmware_dir, c->state_dir, "vmware", err) < 0 ||
		setup_join(node->replica_dir, c->state_dir, "replica", err) < 0 ||
		setup_join(path, c->state_dir, "state.db", err) < 0)
		return -1;
	node->state = state_open(path, err);
	return node->state ? access_check(node->state, "node", &c->listen, err) : -1;
}

static void stop_state(void *context)
{
	struct running *r = context;
	if (r->node.state)
		state_close(r->node.state);
}

/* --- jobs ---------------------------------------------------------------------------------- */

static void free_rules(char **rules)
{
	for (size_t i = 0; rules && rules[i]; i++)
		free(rules[i]);
	free(rules);
}

/* path may be NULL. */
static bool never(char **rules, size_t *nr, const char *path)
{
	if (path && asprintf(&rules[*nr], "!%s", path) < 0)
		return false;
	*nr += path != NULL;
	return true;
}

/* What the settings allow, but nothing of the node's own; ended by NULL; NULL: no memory. */
static char **make_rules(const struct node_config *c)
{
	const char *const own[] = {
		c->state_dir, c->runtime_dir, c->path, c->key, c->hub_token_file};
	size_t nr = 0, nr_allowed = 0;
	while (c->allow_targets && c->allow_targets[nr_allowed])
		nr_allowed++;
	char **rules =
		calloc(nr_allowed + c->nr_vcenters + c->nr_repositories + ARRAY_LENGTH(own) + 1,
			sizeof *rules);
	bool good = rules != NULL;
	for (size_t i = 0; good && i < ARRAY_LENGTH(own); i++)
		good = never(rules, &nr, own[i]);
	for (size_t i = 0; good && i < c->nr_vcenters; i++)
		good = never(rules, &nr, c->vcenters[i].access.password_file);
	for (size_t i = 0; good && i < c->nr_repositories; i++)
		good = never(rules, &nr, c->repositories[i].token_file);
	for (size_t i = 0; good && i < nr_allowed; i++)
		good = (rules[nr++] = strdup(c->allow_targets[i])) != NULL;
	if (good)
		return rules;
	free_rules(rules);
	return NULL;
}

static int start_jobs(void *context, struct err *err)
{
	struct running *r = context;
	const struct node_config *c = node_config(&r->node);
	r->targets = make_rules(c);
	r->vcenters = calloc(c->nr_vcenters + 1, sizeof *r->vcenters);
	if (!r->targets || !r->vcenters)
		return err_errno(err, ENOMEM, "cannot tell jobs what they may name");
	for (size_t i = 0; i < c->nr_vcenters; i++)
		r->vcenters[i] = c->vcenters[i].access;
	const struct jobs_options options = {
		.state = r->node.state,
		.runtime_dir = c->runtime_dir,
		.state_dir = c->state_dir,
		.program = r->node.options->program,
		.repositories = c->repositories,
		.nr_repositories = c->nr_repositories,
		.vcenters = r->vcenters,
		.nr_vcenters = c->nr_vcenters,
		.vmware_state_dir = r->node.vmware_dir,
		.replica_state_dir = r->node.replica_dir,
		.vddk_dir = c->vddk_dir,
		.vddk_modes = c->transport_modes,
		.allow_targets = (const char *const *)r->targets,
		.most = c->most_jobs,
		.most_per_source = c->most_jobs_per_vcenter,
		.memory_bytes = c->memory_per_job_bytes,
	};
	r->node.jobs = jobs_start(&options, err);
	return r->node.jobs ? 0 : -1;
}

static void stop_jobs(void *context)
{
	struct running *r = context;
	if (r->node.jobs)
		jobs_stop(r->node.jobs, r->hand_over, r->stop_until);
	r->node.jobs = NULL;
	free_rules(r->targets);
	free(r->vcenters);
	r->targets = NULL;
	r->vcenters = NULL;
}

static int start_keeper(void *context, struct err *err)
{
	struct running *r = context;
	return node_keeper_start(&r->node, err);
}

static void stop_keeper(void *context)
{
	struct running *r = context;
	node_keeper_stop(&r->node);
}

static int start_discover(void *context, struct err *err)
{
	struct running *r = context;
	const struct node_config *c = node_config(&r->node);
	r->node.discover = discover_start(c->vcenters, c->nr_vcenters, err);
	return r->node.discover ? 0 : -1;
}

static void stop_discover(void *context)
{
	struct running *r = context;
	discover_stop(r->node.discover);
	r->node.discover = NULL;
}

static int start_link(void *context, struct err *err)
{
	struct running *r = context;
	return node_link_start(&r->node, err);
}

static void stop_link(void *context)
{
	struct running *r = context;
	node_link_stop(&r->node);
}

/* --- REST ------------------------------------------------------------------------------------ */

const struct rest_route *const node_route_tables[] = {
	node_routes,
	node_job_routes,
	node_machine_routes,
	NULL,
};

static int start_rest(void *context, struct err *err)
{
	struct running *r = context;
	const struct node_config *c = node_config(&r->node);
	const struct rest_server_options options = {
		.address = c->listen.host,
		.port = c->listen.port,
		.certificate_file = c->certificate,
		.key_file = c->key,
		.tables = node_route_tables,
		.context = &r->node,
		.authenticate = node_authenticate,
		.remembered = node_remembered,
		.remember = node_remember,
		.audit = node_audit,
		.most_connections = c->most_connections,
	};
	r->node.rest = rest_server_start(&options, err);
	return r->node.rest ? 0 : err_context(err, "REST on %s:%u", c->listen.host, c->listen.port);
}

static void stop_rest(void *context)
{
	struct running *r = context;
	rest_server_stop(r->node.rest);
	r->node.rest = NULL;
}

/* In this order; stopped in reverse, also where start failed.  REST goes before everything that
 * its handlers use. */
static const struct life_step steps[] = {
	{"locks", start_locks, stop_locks},
	{"state", start_state, stop_state},
	{"jobs", start_jobs, stop_jobs},
	{"keeper", start_keeper, stop_keeper},
	{"discover", start_discover, stop_discover},
	{"hub", start_link, stop_link},
	{"REST", start_rest, stop_rest},
};

/* --- reload ---------------------------------------------------------------------------------- */

static void set_logging(const struct running *r)
{
	const struct node_config *c = node_config(&r->node);
	const struct node_run_options *o = r->node.options;
	logging_set(c->log, o->quiet     ? LOG_LEVEL_ERROR
			    : o->verbose ? LOG_LEVEL_DEBUG
					 : (enum log_level)c->log_level);
}

/* A file that is wrong changes nothing. */
static void reload(void *context)
{
	struct running *r = context;
	struct node *node = &r->node;
	struct err err = ERR_INIT;
	struct node_config **retired = reallocarray(r->retired, r->nr_retired + 1, sizeof(void *));
	if (retired)
		r->retired = retired;
	struct node_config *new = retired ? node_config_reload(node_config(node)) : NULL;
	if (new) {
		r->retired[r->nr_retired++] = atomic_load(&node->config);
		atomic_store(&node->config, new);
		set_logging(r);
		if (new->certificate && rest_server_reload(node->rest, &err) < 0)
			log_error("the old certificate stays: %s", err.text);
		log_info("the settings were read again");
	}
	node_event(node, "node", "reload", new ? "done" : "refused", NULL);
}

/* --- all of it ------------------------------------------------------------------------------ */

static int tell_ready(void *context, struct err *err)
{
	struct running *r = context;
	const struct node_config *c = node_config(&r->node);
	const struct node_run_options *o = r->node.options;
	char url[SETTINGS_URL_BYTES];
	settings_address_url(
		&c->listen, c->certificate != NULL, NULL, rest_server_port(r->node.rest), url);
	log_info("ready on %s (%s)", url, o->software);
	node_event(&r->node, "node", "start", o->software, NULL);
	r->is_ready = true;
	return o->ready ? o->ready(o->context, url, err) : 0;
}

static void begin_stop(void *context)
{
	struct running *r = context;
	struct node *node = &r->node;
	const struct node_config *c = node_config(node);
	atomic_store(&node->stopping, true);
	r->hand_over = c->stop == NODE_STOP_HAND_OVER;
	r->stop_until = deadline_after_ms((int64_t)c->stop_timeout_s * 1000);
	if (r->is_ready) {
		log_info("stopping: what runs is %s, within %" PRIu64 " s",
			r->hand_over ? "handed over to the next node" : "cancelled",
			c->stop_timeout_s);
		node_event(node, "node", "stop", r->hand_over ? "hand-over" : "cancel", NULL);
	}
}

int node_run(const struct node_run_options *options, struct err *err)
{
	struct running r = {.locks = {-1, -1}};
	struct node *node = &r.node;
	node->options = options;
	node->started_ns = clock_now_ns();
	struct node_config *config = node_config_load(options->config_path, NULL, NULL, err);
	if (!config)
		return -1;
	atomic_store(&node->config, config);
	set_logging(&r);
	node_digest(node->digest);
	const struct life life = {
		.steps = steps,
		.nr_steps = ARRAY_LENGTH(steps),
		.context = &r,
		.cancel = options->cancel,
		.ready = tell_ready,
		.reload = reload,
		.stopping = begin_stop,
	};
	int rc = life_run(&life, err);
	node_config_free(atomic_load(&node->config));
	for (size_t i = 0; i < r.nr_retired; i++)
		node_config_free(r.retired[i]);
	free(r.retired);
	return rc;
}
