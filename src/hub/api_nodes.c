/*
 * Nodes: codes to enrol one, who is there, taken out; and what a node itself calls.
 */
#include "nodes.h"

#include "log.h"
#include "schedule.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define CODE_CHARS 20 /* of 5 bits */
#define CODE_GROUP 5
#define CODE_TEXT_BYTES (CODE_CHARS + CODE_CHARS / CODE_GROUP)
#define CODE_EXPIRES_S 3600
#define WAIT_MOST_S 60

static int check_name(const char *name, struct err *err)
{
	if (schedule_check_id("name", name, err) < 0)
		return -1;
	/* Places of the API below /nodes. */
	return strcmp(name, "self") == 0 || strcmp(name, "codes") == 0
		       ? err_set(err, ERR_USAGE, "name: \"%s\" is taken by the API itself", name)
		       : 0;
}

/* --- as they are shown ---------------------------------------------------------------------- */

static void put_moment(json_t *object, const char *name, int64_t moment)
{
	char text[CLOCK_UTC_BYTES];
	if (moment > 0)
		clock_utc_text(moment, text);
	json_object_set_new(object, name, moment > 0 ? json_string(text) : json_null());
}

static json_t *node_json(struct hub *hub, const struct state_object *node)
{
	int64_t seen;
	bool silent = hub_nodes_is_silent(hub, node, &seen);
	json_t *out = json_deep_copy(node->value);
	json_object_del(out, "token");
	json_object_del(out, "silent");
	json_object_set_new(out, "name", json_string(node->id));
	json_object_set_new(out, "state", json_string(silent ? "silent" : "alive"));
	put_moment(out, "seen", seen);
	put_moment(out, "enrolled", json_integer_value(json_object_get(node->value, "enrolled")));
	json_object_set_new(out, "jobs", json_integer(node_jobs_count(hub, node->id)));
	return out;
}

static json_t *shown(struct hub *hub, const char *name, struct err *err)
{
	struct state_object node = {0};
	if (state_get(hub->state, "node", name, &node, err) < 0)
		return NULL;
	json_t *out = node_json(hub, &node);
	state_object_clear(&node);
	if (!out)
		err_errno(err, ENOMEM, "cannot show the node %s", name);
	return out;
}

/* --- codes --------------------------------------------------------------------------------- */

/* Without letters that look like figures. */
static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

static int make_code(char out[CODE_TEXT_BYTES], struct err *err)
{
	uint8_t random[CODE_CHARS];
	size_t used = 0;
	if (file_random(random, sizeof random, err) < 0)
		return -1;
	for (size_t i = 0; i < CODE_CHARS; i++) {
		if (i > 0 && i % CODE_GROUP == 0)
			out[used++] = '-';
		out[used++] = alphabet[random[i] & 31];
	}
	out[used] = '\0';
	explicit_bzero(random, sizeof random);
	return 0;
}

/* As people type it: small letters, without strokes, O for 0. */
static void code_hash(const char *code, char hash[REST_TOKEN_HASH_BYTES])
{
	char plain[CODE_CHARS + 1];
	size_t used = 0;
	for (; *code && used < CODE_CHARS; code++) {
		char c = *code >= 'a' && *code <= 'z' ? (char)(*code - 'a' + 'A') : *code;
		c = c == 'O' ? '0' : c == 'I' || c == 'L' ? '1' : c;
		if (strchr(alphabet, c))
			plain[used++] = c;
	}
	plain[used] = '\0';
	rest_token_hash(plain, hash);
	explicit_bzero(plain, sizeof plain);
}

static int post_code(void *context, struct rest_request *request, struct err *err)
{
	static const struct rest_field fields[] = {
		{.name = "name", .type = REST_STRING, .required = true, .least = 1, .most = 64},
		{.name = "expires_s", .type = REST_INTEGER, .least = 10, .most = 604800},
		{0},
	};
	struct hub *hub = context;
	const json_t *body = rest_body(request);
	char code[CODE_TEXT_BYTES], hash[REST_TOKEN_HASH_BYTES], when[CLOCK_UTC_BYTES];
	if (rest_check(body, fields, err) < 0)
		return -1;
	const char *name = hub_text(body, "name");
	const json_t *in = json_object_get(body, "expires_s");
	int64_t expires = time(NULL) + (in ? json_integer_value(in) : CODE_EXPIRES_S);
	if (check_name(name, err) < 0 || make_code(code, err) < 0)
		return -1;
	code_hash(code, hash);
	/* The last one that was made for a node counts. */
	json_t *kept = json_pack("{s:s, s:I}", "hash", hash, "expires", (json_int_t)expires);
	int rc = kept ? state_put(hub->state, "code", name, kept, STATE_ANY, NULL, err)
		      : err_errno(err, ENOMEM, "cannot make a code");
	json_decref(kept);
	if (rc < 0)
		return -1;
	clock_utc_text(expires, when);
	json_t *answer = json_pack("{s:s, s:s, s:s}", "name", name, "code", code, "expires", when);
	explicit_bzero(code, sizeof code);
	return rest_reply(request, 201, answer, err);
}

/* --- enrolling ----------------------------------------------------------------------------- */

/* What to show for a good code; nothing else is said of one that is not. */
static int find_code(struct hub *hub, const char *name, const char *code,
	struct state_object *found, struct err *err)
{
	char hash[REST_TOKEN_HASH_BYTES];
	struct err why = ERR_INIT;
	code_hash(code, hash);
	if (!name[0] || strlen(name) >= NODE_NAME_BYTES)
		return err_set(err, ERR_DENIED, "the code is unknown, expired or used up");
	if (state_get(hub->state, "code", name, found, &why) < 0)
		return why.code == ERR_NOT_FOUND
			       ? err_set(err, ERR_DENIED, "the code is unknown, expired or used up")
			       : err_copy(err, &why);
	if (strcmp(hub_text(found->value, "hash"), hash) == 0 &&
		time(NULL) < json_integer_value(json_object_get(found->value, "expires")))
		return 0;
	state_object_clear(found);
	return err_set(err, ERR_DENIED, "the code is unknown, expired or used up");
}

static int check_protocol(json_int_t protocol, struct err *err)
{
	return protocol == REST_PROTOCOL
		       ? 0
		       : err_set(err, ERR_REFUSED,
				 "protocol: this hub speaks %d, the node %lld (bring both to one "
				 "version)",
				 REST_PROTOCOL, (long long)protocol);
}

static int check_enrolment(struct hub *hub, const json_t *body, struct err *err)
{
	static const struct rest_field fields[] = {
		{.name = "code", .type = REST_STRING, .required = true, .least = 1, .most = 64},
		{.name = "name", .type = REST_STRING, .required = true, .least = 1, .most = 64},
		{.name = "protocol",
			.type = REST_INTEGER,
			.required = true,
			.least = 0,
			.most = 1000000},
		{.name = "version", .type = REST_STRING, .required = true, .most = 255},
		{.name = "build", .type = REST_STRING, .required = true, .most = 255},
		{.name = "digest", .type = REST_STRING, .most = 128},
		{0},
	};
	char who[NODE_NAME_BYTES + 8];
	if (rest_check(body, fields, err) < 0 ||
		check_protocol(json_integer_value(json_object_get(body, "protocol")), err) < 0)
		return -1;
	snprintf(who, sizeof who, "node %s", hub_text(body, "name"));
	return hub_build_check(hub, hub_text(body, "build"), who, err);
}

/* Its token; one that it had before counts no more. */
static int make_node(struct hub *hub, struct rest_request *request, const json_t *body,
	char token[REST_TOKEN_BYTES], struct err *err)
{
	const char *name = hub_text(body, "name");
	struct state_object old = {0};
	json_t *made = NULL;
	bool had = state_get(hub->state, "node", name, &old, NULL) == 0;
	if (access_token_make(hub->state, name, REST_NODE, NULL, 0, token, &made, err) < 0) {
		state_object_clear(&old);
		return -1;
	}
	json_t *node = json_pack("{s:s, s:I, s:I, s:s, s:I, s:s, s:s, s:s}", "token",
		hub_text(made, "id"), "enrolled", (json_int_t)time(NULL), "seen",
		(json_int_t)time(NULL), "peer", rest_peer(request), "protocol",
		json_integer_value(json_object_get(body, "protocol")), "version",
		hub_text(body, "version"), "build", hub_text(body, "build"), "digest",
		hub_text(body, "digest"));
	int rc = node ? state_put(hub->state, "node", name, node, STATE_ANY, NULL, err)
		      : err_errno(err, ENOMEM, "cannot enrol the node %s", name);
	if (rc == 0 && had)
		state_delete(hub->state, "token", hub_text(old.value, "token"), STATE_ANY, NULL);
	json_decref(node);
	json_decref(made);
	state_object_clear(&old);
	return rc;
}

static int post_node(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const json_t *body = rest_body(request);
	const char *name = hub_text(body, "name");
	struct state_object code = {0};
	struct err why = ERR_INIT;
	char token[REST_TOKEN_BYTES], location[128];
	if (find_code(hub, name, hub_text(body, "code"), &code, &why) < 0)
		return why.code == ERR_DENIED ? rest_problem_stranger(request, &why)
					      : err_copy(err, &why);
	int rc = check_enrolment(hub, body, err);
	/* Whoever takes it away has it. */
	if (rc == 0 && state_delete(hub->state, "code", name, code.version, &why) < 0) {
		err_set(&why, ERR_DENIED, "the code is unknown, expired or used up");
		rc = rest_problem_stranger(request, &why);
	}
	state_object_clear(&code);
	if (rc < 0 || make_node(hub, request, body, token, err) < 0)
		return -1;
	hub_nodes_heard_of(hub, name);
	json_t *node = shown(hub, name, err);
	json_t *answer = node ? json_pack("{s:o, s:s}", "node", node, "token", token) : NULL;
	explicit_bzero(token, sizeof token);
	if (!answer)
		return node ? err_errno(err, ENOMEM, "cannot answer") : -1;
	log_info("node %s is enrolled (%s)", name, hub_text(body, "version"));
	hub_event(hub, "hub", "node.enrolled", name, NULL);
	snprintf(location, sizeof location, "/api/v1/nodes/%s", name);
	return rest_reply_made(request, 201, location, answer, err);
}

/* --- who is there -------------------------------------------------------------------------- */

struct listing {
	struct hub *hub;
	json_t *items;
	char last[256];
	unsigned limit;
	bool more;
};

static int list_node(void *context, const struct state_object *node)
{
	struct listing *l = context;
	if (json_array_size(l->items) == l->limit) {
		l->more = true;
		return 1;
	}
	json_array_append_new(l->items, node_json(l->hub, node));
	snprintf(l->last, sizeof l->last, "%s", node->id);
	return 0;
}

static int get_nodes(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	struct listing l = {.hub = hub, .items = json_array()};
	const char *after = NULL;
	int rc = rest_page(request, &l.limit, &after, err);
	if (rc == 0)
		rc = state_list(hub->state, "node", after, list_node, &l, err);
	if (rc == 0)
		return rest_reply_page(request, l.items, l.more ? l.last : NULL, err);
	json_decref(l.items);
	return -1;
}

static int get_node(void *context, struct rest_request *request, struct err *err)
{
	json_t *node = shown(context, rest_param(request, "id"), err);
	return node ? rest_reply(request, 200, node, err) : -1;
}

/* From here on its token is worth nothing; then what it was at comes to an end. */
static int delete_node(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const char *name = rest_param(request, "id");
	struct state_object node = {0};
	struct err why = ERR_INIT;
	if (state_get(hub->state, "node", name, &node, err) < 0 ||
		state_delete(hub->state, "node", name, STATE_ANY, err) < 0) {
		state_object_clear(&node);
		return -1;
	}
	state_delete(hub->state, "token", hub_text(node.value, "token"), STATE_ANY, NULL);
	state_delete(hub->state, "code", name, STATE_ANY, NULL);
	state_object_clear(&node);
	err_set(&why, ERR_DENIED, "node %s was taken out", name);
	node_jobs_end_all(hub, name, &why, false);
	hub_nodes_work_changed(hub, name);
	hub_time_node_changed(hub);
	return rest_reply(request, 204, NULL, err);
}

/* --- what a node itself calls ----------------------------------------------------------------- */

/* A node that was brought to another build says so with its next call. */
static int note_build(
	struct hub *hub, struct rest_request *request, const char *name, struct err *err)
{
	static const char *const told[] = {"version", "build", "digest"};
	struct state_object node = {0};
	char who[ACCESS_ACTOR_BYTES];
	bool differs = false;
	if (state_get(hub->state, "node", name, &node, err) < 0)
		return -1;
	json_t *value = json_deep_copy(node.value);
	for (size_t i = 0; i < ARRAY_LENGTH(told); i++) {
		const char *now = rest_query(request, told[i]);
		if (!now || strcmp(now, hub_text(node.value, told[i])) == 0)
			continue;
		json_object_set_new(value, told[i], json_string(now));
		differs = true;
	}
	access_actor_text(rest_actor(request), who);
	const char *build = rest_query(request, "build");
	int rc = 0;
	if (differs || hub_config(hub)->builds_allow)
		rc = hub_build_check(hub, build, who, err);
	if (differs) {
		json_object_set_new(value, "peer", json_string(rest_peer(request)));
		if (state_put(hub->state, "node", name, value, node.version, NULL,
			    rc == 0 ? err : NULL) < 0)
			rc = -1;
	}
	json_decref(value);
	state_object_clear(&node);
	return rc;
}

static int get_work(void *context, struct rest_request *request, struct err *err)
{
	struct hub *hub = context;
	const char *name = rest_actor(request)->name;
	uint64_t wait_s, protocol;
	char now[NODE_SEEN_BYTES];
	if (rest_query_number(request, "wait", 0, WAIT_MOST_S, 0, &wait_s, err) < 0 ||
		rest_query_number(request, "protocol", 0, 1000000, 0, &protocol, err) < 0 ||
		check_protocol((json_int_t)protocol, err) < 0 ||
		note_build(hub, request, name, err) < 0)
		return -1;
	hub_nodes_wait(hub, name, rest_query(request, "seen"),
		deadline_after_ms((int64_t)wait_s * 1000), now);
	struct state_object node = {0};
	if (state_get(hub->state, "node", name, &node, err) < 0)
		return err_set(err, ERR_DENIED, "the node was taken out");
	state_object_clear(&node);
	json_t *work = node_jobs_work(hub, name, err);
	if (!work)
		return -1;
	json_object_set_new(work, "seen", json_string(now));
	return rest_reply(request, 200, work, err);
}

static int post_job(void *context, struct rest_request *request, struct err *err)
{
	static const struct rest_field fields[] = {
		{.name = "state", .type = REST_STRING, .required = true, .most = 32},
		{.name = "stage", .type = REST_STRING, .nullable = true, .most = 63},
		{.name = "progress", .type = REST_OBJECT, .nullable = true},
		{.name = "error", .type = REST_OBJECT, .nullable = true},
		{.name = "report", .type = REST_OBJECT, .nullable = true},
		{.name = "point", .type = REST_STRING, .nullable = true, .most = 63},
		{.name = "build", .type = REST_STRING, .nullable = true, .most = 255},
		{0},
	};
	struct hub *hub = context;
	const char *id = rest_param(request, "id");
	const json_t *body = rest_body(request);
	if (rest_check(body, fields, err) < 0 ||
		node_jobs_tell(hub, rest_actor(request)->name, id, body, err) < 0)
		return -1;
	return rest_reply(request, 204, NULL, err);
}

const struct rest_route hub_node_routes[] = {
	{"POST", "/api/v1/nodes/codes", "createNodeCode", REST_ADMIN, REST_CREATES | REST_SECRET,
		post_code, 0},
	{"POST", "/api/v1/nodes", "enrolNode", REST_NONE, 0, post_node, 16384},
	{"GET", "/api/v1/nodes?limit&after", "listNodes", REST_READ, 0, get_nodes, 0},
	{"GET", "/api/v1/nodes/{id}", "getNode", REST_READ, 0, get_node, 0},
	{"DELETE", "/api/v1/nodes/{id}", "revokeNode", REST_ADMIN, 0, delete_node, 0},
	{"GET", "/api/v1/nodes/self/work?wait&seen&protocol&version&build&digest", "getNodeWork",
		REST_NODE, 0, get_work, 0},
	{"POST", "/api/v1/nodes/self/jobs/{id}", "tellNodeJob", REST_NODE, 0, post_job, 0},
	{0},
};
