/* REST: health, status, the document, tokens, the audit log; who asks, and who did what. */
#include "node_internal.h"

#include "discover.h"
#include "job.h"
#include "log.h"

#include <time.h>

/* --- health, and how it stands ------------------------------------------------------------- */

static int get_health(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	/* Everybody may ask: nothing in it tells of what is kept here, or where. */
	return rest_reply(request, 200,
		json_pack("{s:s, s:s, s:s, s:s, s:s?, s:i, s:I, s:o}", "status", "ok", "name",
			node_config(node)->name, "version", node->options->version, "build",
			node->options->build, "digest", node->digest[0] ? node->digest : NULL,
			"protocol", REST_PROTOCOL, "uptime_s",
			(json_int_t)((clock_now_ns() - node->started_ns) / 1000000000), "hub",
			node_link_json(node, false)),
		err);
}

static int get_status(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	unsigned nr_queued = 0, nr_running = 0;
	jobs_count(node->jobs, &nr_queued, &nr_running);
	return rest_reply(request, 200,
		json_pack("{s:s, s:s, s:s, s:o, s:I, s:{s:i, s:i}, s:o, s:o}", "name",
			node_config(node)->name, "version", node->options->version, "build",
			node->options->build, "time", node_moment(time(NULL)), "uptime_s",
			(json_int_t)((clock_now_ns() - node->started_ns) / 1000000000), "jobs",
			"queued", (int)nr_queued, "running", (int)nr_running, "hub",
			node_link_json(node, true), "vcenters", discover_vcenters(node->discover)),
		err);
}

static int get_document(void *context, struct rest_request *request, struct err *err)
{
	(void)context;
	return rest_reply_text(request, "application/json", node_document_text, err);
}

/* --- tokens, the audit log -------------------------------------------------------------- */

static int get_tokens(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	return access_rest_tokens(node->state, request, err);
}

static int post_token(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	return access_rest_token_make(node->state, request, err);
}

static int delete_token(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	return access_rest_token_revoke(node->state, request, err);
}

static int get_events(void *context, struct rest_request *request, struct err *err)
{
	struct node *node = context;
	return access_rest_events(node->state, request, err);
}

const struct rest_route node_routes[] = {
	{"GET", "/api/v1/health", "getHealth", REST_NONE, 0, get_health, 0},
	{"GET", "/api/v1/status", "getStatus", REST_READ, 0, get_status, 0},
	{"GET", "/api/v1/openapi.json", "getDocument", REST_NONE, 0, get_document, 0},
	{"GET", "/api/v1/tokens?limit&after", "listTokens", REST_ADMIN, 0, get_tokens, 0},
	{"POST", "/api/v1/tokens", "createToken", REST_ADMIN, REST_CREATES | REST_SECRET,
		post_token, 0},
	{"DELETE", "/api/v1/tokens/{id}", "revokeToken", REST_ADMIN, 0, delete_token, 0},
	{"GET", "/api/v1/events?object&actor&since&limit&after", "listEvents", REST_READ, 0,
		get_events, 0},
	{0},
};

/* --- callbacks of the REST server -------------------------------------------------------- */

void node_event(struct node *node, const char *actor, const char *action, const char *object,
	const json_t *detail)
{
	access_event(node->state, actor, action, object, detail);
}

void node_audit(void *context, const struct rest_actor *actor, const char *peer,
	const char *operation, const char *path, unsigned status)
{
	char who[ACCESS_ACTOR_BYTES];
	json_t *detail = json_pack("{s:s, s:i}", "peer", peer, "status", (int)status);
	node_event(context, access_actor_text(actor, who), operation, path, detail);
	json_decref(detail);
}

int node_authenticate(void *context, const char *hash, struct rest_actor *actor, struct err *err)
{
	struct node *node = context;
	return access_authenticate(node->state, hash, actor, err);
}

int node_remembered(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, bool *found, unsigned *status, json_t **body, struct err *err)
{
	struct node *node = context;
	return access_remembered(node->state, actor, key, digest, found, status, body, err);
}

void node_remember(void *context, const struct rest_actor *actor, const char *key,
	const char *digest, unsigned status, const json_t *body)
{
	struct node *node = context;
	access_remember(node->state, actor, key, digest, status, body);
}
