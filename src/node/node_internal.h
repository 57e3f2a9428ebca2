/*
 * Inside the node.
 *
 *   run.c       starts and stops everything, signals, reload
 *   config.c    the file of settings                    check.c   check-config
 *   init.c      node init                               keeper.c  old jobs forgotten
 *   discover.c  what machines there are                 digest.c  of the program that runs
 *   enrol.c     node enrol                              link.c    work that a hub gives
 *   api.c       health, status, tokens, audit log       api_jobs.c   jobs
 *   api_machines.c  vCenters, machines, snapshots that are owed, metrics
 */
#ifndef SENDENSE_NODE_INTERNAL_H
#define SENDENSE_NODE_INTERNAL_H

#include "catalogue.h"
#include "daemon.h"
#include "node.h"
#include "rest.h"

#include <stdatomic.h>

#define NODE_DIGEST_BYTES 65 /* SHA-256 in hex, end */

struct discover;

struct node {
	const struct node_run_options *options;
	/* What counts now.  A reload puts another one here; the older ones stay until the node
	 * ends, so whoever took it once may use it to the end of his work.  Use node_config(). */
	_Atomic(struct node_config *) config;
	struct state *state;
	struct jobs *jobs;
	struct rest_server *rest;
	struct node_keeper *keeper;
	struct discover *discover;
	struct node_link *link; /* NULL: no hub gives work */
	char vmware_dir[SETUP_PATH_BYTES], replica_dir[SETUP_PATH_BYTES]; /* below the state's */
	char digest[NODE_DIGEST_BYTES]; /* of the binary that runs; "" when it cannot be read */
	int64_t started_ns; /* of the monotonic clock */
	_Atomic bool stopping; /* no new jobs are taken */
};

static inline const struct node_config *node_config(const struct node *node)
{
	return atomic_load(&node->config);
}

/* As the API shows a moment, seconds since 1970; 0: null. */
static inline json_t *node_moment(int64_t seconds)
{
	char text[CLOCK_UTC_BYTES];
	if (seconds == 0)
		return json_null();
	clock_utc_text(seconds, text);
	return json_string(text);
}

/* --- keeper.c ----------------------------------------------------------------------------- */

int node_keeper_start(struct node *node, struct err *err);
void node_keeper_stop(struct node *node);

/* --- link.c ------------------------------------------------------------------------------- */

/* Asks the hub of the settings for work; without one nothing is done. */
int node_link_start(struct node *node, struct err *err);
/* Jobs go on. */
void node_link_stop(struct node *node);
/* How the link stands, new; JSON's null: no hub gives work.  whole: with what only who may read is
 * told, the hub's URL and the last error. */
json_t *node_link_json(const struct node *node, bool whole);

/* --- digest.c ----------------------------------------------------------------------------- */

/* "" when the file cannot be read. */
void node_digest(char out[NODE_DIGEST_BYTES]);

/* --- REST --------------------------------------------------------------------------------- */

/* Writes the audit log; see access_event(). */
void node_event(struct node *node, const char *actor, const char *action, const char *object,
	const json_t *detail);

/* Callbacks of the REST server; context is the node. */
int node_authenticate(void *context, const char *hash, struct rest_actor *actor, struct err *err);
int node_remembered(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, bool *found, unsigned *status, json_t **body, struct err *err);
void node_remember(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, unsigned status, const json_t *body);
void node_audit(void *context, const struct rest_actor *actor, const char *peer,
	const char *operation, const char *path, unsigned status);

extern const struct rest_route node_routes[], node_job_routes[], node_machine_routes[];

/* All of them, as the server gets them (run.c); docs/openapi-node.json describes each. */
extern const struct rest_route *const node_route_tables[];

/* docs/openapi-node.json, as built in. */
extern const char node_document_text[];

#endif
